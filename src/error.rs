//! The one error type of the library.
//!
//! Each variant has an exit code of the command line, so that scripts can tell a bad flag from a full disk. The fields
//! hold where, what, expected, found and what to do, so that tests compare fields instead of sentences.

use std::fmt;

/// Shorthand for a result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Largest number of characters displayed per field: the longest path that Linux allows.
const MOST_SHOWN: usize = 4096;

/// The fields of an [`Error`]. Displayed as `place: what, expected X, got Y; advice`; empty fields are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fault {
    /// A file, a flag, an operator.
    pub place: String,
    /// The fault.
    pub what: String,
    /// A correct value.
    pub expected: String,
    /// The value that was found.
    pub found: String,
    /// An action that helps, such as `try --batch 4`.
    pub advice: String,
}

impl Fault {
    /// Makes a fault from its place and what is wrong there.
    #[must_use]
    pub fn at(place: impl fmt::Display, what: impl Into<String>) -> Self {
        Self { place: place.to_string(), what: what.into(), ..Self::default() }
    }

    /// Sets the correct value.
    #[must_use]
    pub fn expected(self, expected: impl fmt::Display) -> Self {
        Self { expected: expected.to_string(), ..self }
    }

    /// Sets the value that was found instead.
    #[must_use]
    pub fn found(self, found: impl fmt::Display) -> Self {
        Self { found: found.to_string(), ..self }
    }

    /// Sets what to do, such as `try --batch 4`.
    #[must_use]
    pub fn advice(self, advice: impl fmt::Display) -> Self {
        Self { advice: advice.to_string(), ..self }
    }

    /// Puts the name of the whole before the place: `heads` within `config.json` becomes `config.json: heads`.
    #[must_use]
    pub fn within(self, whole: impl fmt::Display) -> Self {
        let place = if self.place.is_empty() { whole.to_string() } else { format!("{whole}: {}", self.place) };
        Self { place, ..self }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        for (before, part) in [
            ("", &self.place),
            (": ", &self.what),
            (", expected ", &self.expected),
            (", got ", &self.found),
            ("; ", &self.advice),
        ] {
            if !part.is_empty() {
                let before = if text.is_empty() { before.trim_start_matches([':', ';', ',', ' ']) } else { before };
                // a file from elsewhere may have a value of megabytes where a word is expected
                let end = part.char_indices().nth(MOST_SHOWN).map(|(end, _)| end);
                text = text + before + &part[..end.unwrap_or(part.len())] + if end.is_some() { "..." } else { "" };
            }
        }
        f.write_str(&text)
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self { what, ..Self::default() }
    }
}

impl From<&str> for Fault {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

/// Defines the variants with their exit codes, and for each variant a function that makes it from a [`Fault`] or a
/// text.
macro_rules! errors {
    ($($(#[doc = $doc:literal])+ $variant:ident $make:ident $code:literal;)+) => {
        /// An error, grouped by who has to act.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        pub enum Error {
            $($(#[doc = $doc])+ #[error("{0}")] $variant(Box<Fault>),)+
        }

        impl Error {
            $(
                #[doc = concat!("Makes an [`Error::", stringify!($variant), "`].")]
                #[must_use]
                pub fn $make(fault: impl Into<Fault>) -> Self {
                    Self::$variant(Box::new(fault.into()))
                }
            )+

            /// Returns the exit code of a process that ends with this error.
            #[must_use]
            pub fn exit_code(&self) -> u8 {
                match self {
                    $(Self::$variant(_) => $code,)+
                }
            }

            /// Makes the error of an exit code. If several variants share the code, this is the first of them; for an
            /// unknown code it is [`Error::Gpu`].
            #[must_use]
            pub fn of_code(code: u8, fault: impl Into<Fault>) -> Self {
                let fault = Box::new(fault.into());
                $(if code == $code {
                    return Self::$variant(fault);
                })+
                Self::Gpu(fault)
            }

            /// Returns the fields.
            #[must_use]
            pub fn fault(&self) -> &Fault {
                match self {
                    $(Self::$variant(fault) => fault,)+
                }
            }

            fn fault_mut(&mut self) -> &mut Fault {
                match self {
                    $(Self::$variant(fault) => fault,)+
                }
            }
        }
    };
}

errors! {
    /// A flag, a setting or the shape of a model is wrong, or the output folder belongs to another run.
    Usage usage 2;
    /// An input file is missing, broken or too short.
    Data data 3;
    /// No adapter exists, the requested one is unknown, or the device is lost for good.
    Device device 4;
    /// The device was lost while it was in use. The caller may open it again.
    Lost lost 4;
    /// The model or a batch does not fit.
    Memory memory 5;
    /// Writing failed: full disk, read-only folder, I/O error.
    Output output 6;
    /// Another process holds the run's folder.
    Locked locked 7;
    /// Training diverged: too many non-finite steps in a row.
    Diverged diverged 8;
    /// Devices of a run hold different weights.
    Disagree disagree 9;
    /// A signal ended the run, which was saved and can be resumed.
    Stopped stopped 75;
    /// A tensor handed to an operator has the wrong shape: a bug of the caller.
    Shape shape 1;
    /// The driver or wgpu refused something: a shader, a pipeline, a submission.
    Gpu gpu 1;
    /// The network failed.
    Network network 1;
}

impl Error {
    /// Replaces the place. A caller uses it to name the flag or file that a value came from.
    #[must_use]
    pub fn with_place(mut self, place: impl fmt::Display) -> Self {
        self.fault_mut().place = place.to_string();
        self
    }

    /// Adds the number of the device that reported the error, for runs with several devices.
    #[must_use]
    pub fn on_device(self, device: usize) -> Self {
        self.within(format!("device {device}"))
    }

    /// Puts the name of the whole before the place, as [`Fault::within`] does.
    #[must_use]
    pub fn within(mut self, whole: impl fmt::Display) -> Self {
        let fault = self.fault_mut();
        *fault = std::mem::take(fault).within(whole);
        self
    }

    /// Sets what to do, unless the error already has an advice.
    #[must_use]
    pub fn with_advice(mut self, advice: impl fmt::Display) -> Self {
        let fault = self.fault_mut();
        if fault.advice.is_empty() {
            fault.advice = advice.to_string();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_above_add_what_they_know() {
        let low = Fault::at("heads", "").expected("8").found(5);
        assert_eq!(Error::data(low.clone().within("config.json")).to_string(), "config.json: heads, expected 8, got 5");
        assert_eq!(Fault::from("broken").within("a.bin").to_string(), "a.bin: broken");
        let high = Error::usage(low).with_place("--heads").with_advice("try --heads 8");
        assert_eq!(high.to_string(), "--heads, expected 8, got 5; try --heads 8");
        assert_eq!(high.clone().with_advice("try something else"), high);
    }

    #[test]
    fn fields_make_one_line() {
        let whole = Fault::at("--batch", "too large").expected("at most 4").found(8).advice("try --batch 4");
        assert_eq!(whole.to_string(), "--batch: too large, expected at most 4, got 8; try --batch 4");
        assert_eq!(Fault::at("a.bin", "no such file").to_string(), "a.bin: no such file");
        assert_eq!(Fault::at("a.bin", "").expected("a shard").to_string(), "a.bin, expected a shard");
        assert_eq!(Fault::from("anything").to_string(), "anything");
        let long = Fault::at("a.toml", "é".repeat(1 << 20)).found("b".repeat(5000)).to_string();
        assert_eq!(long.chars().count(), "a.toml: , got ".len() + 2 * (4096 + 3));
        assert_eq!(Error::usage(whole.clone()).fault(), &whole);
        assert_eq!(Error::usage(whole).exit_code(), 2);
    }
}
