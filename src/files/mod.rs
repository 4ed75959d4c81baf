//! Bytes on disk: whole files or none, folders that a test can break, locks, Hugging Face's cache. No GPU, no model.
//!
//! | module | what it holds |
//! |---|---|
//! | [`atomic`] | writes a file as a whole or not at all |
//! | [`bounded`] | reads files that are not too long |
//! | [`disk`] | file operations behind a trait, so that tests record them and let each fail |
//! | [`hub`] | where Hugging Face's cache keeps models and data sets |
//! | [`identity`] | tells whether a path still leads to what was opened there |
//! | [`kind`] | kinds of files, told by their first bytes |
//! | [`lines`] | lines of files, none of which may be without end |
//! | [`lock`] | locked files, which the system frees when their process ends |
//! | [`map`] | files as bytes in memory; one that is cut meanwhile is an error |
//! | [`open`] | opens plain files: links, pipes and devices in their place are refused |
//! | [`path_text`] | paths as text that reads back, whatever bytes they have |
//! | [`shell`] | words of commands that are shown, quoted for a shell |
//! | [`visible`] | text of strangers with every character visible |

pub mod atomic;
pub mod bounded;
pub mod disk;
pub mod hub;
pub mod identity;
pub mod kind;
pub mod lines;
pub mod lock;
pub mod map;
pub mod open;
pub mod path_text;
pub mod shell;
pub mod visible;
