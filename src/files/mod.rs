//! Bytes on disk: atomic writes, file operations that tests can make fail, locks, Hugging Face's cache. No GPU, no
//! model.
//!
//! | module | contents |
//! |---|---|
//! | [`atomic`] | writes a file as a whole or not at all |
//! | [`bounded`] | reads whole files up to a size limit |
//! | [`disk`] | file operations behind a trait, so that tests record them and make each fail |
//! | [`hub`] | paths of models and data sets in Hugging Face's cache |
//! | [`identity`] | checks whether a path still leads to the file that was opened there |
//! | [`kind`] | kinds of files, recognised by their first bytes |
//! | [`lines`] | reads files by line, with a limit on the length of a line |
//! | [`lock`] | file locks, which the system releases when their process ends |
//! | [`map`] | files mapped into memory; a file that is truncated meanwhile is an error |
//! | [`open`] | opens plain files; refuses links, pipes and devices in their place |
//! | [`path_text`] | paths as text that reads back, whatever bytes they have |
//! | [`shell`] | words of displayed commands, quoted for a shell |
//! | [`visible`] | makes every character of untrusted text visible |

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
