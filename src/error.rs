//! The one error type of the library.
//!
//! Every message reads `where: what, expected X, got Y; try Z`: the variant only says which exit code the
//! command line ends with, so that scripts can tell a bad flag from a full disk.

/// Shorthand for a result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, grouped by who has to act.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A flag, a setting or the shape of a model is wrong, or the output folder belongs to another run.
    #[error("{0}")]
    Usage(String),
    /// An input file is missing, broken or too short.
    #[error("{0}")]
    Data(String),
    /// There is no adapter, the one asked for is unknown, or it is lost for good.
    #[error("{0}")]
    Device(String),
    /// The device went away while it was used.
    #[error("{0}")]
    Lost(String),
    /// The model or a batch does not fit.
    #[error("{0}")]
    Memory(String),
    /// Writing failed: full disk, read-only folder, I/O error.
    #[error("{0}")]
    Output(String),
    /// Another process holds the run's folder.
    #[error("{0}")]
    Locked(String),
    /// A signal ended the run, which was saved: the same command goes on.
    #[error("{0}")]
    Stopped(String),
    /// Training diverged: too many non-finite steps in a row.
    #[error("{0}")]
    Diverged(String),
    /// A tensor handed to an operator has the wrong shape: a bug of the caller.
    #[error("{0}")]
    Shape(String),
    /// The driver or wgpu refused something: a shader, a pipeline, a submission.
    #[error("{0}")]
    Gpu(String),
    /// The network failed.
    #[error("{0}")]
    Network(String),
}

impl Error {
    /// The process exit code that stands for this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Data(_) => 3,
            Self::Device(_) | Self::Lost(_) => 4,
            Self::Memory(_) => 5,
            Self::Output(_) => 6,
            Self::Locked(_) => 7,
            Self::Diverged(_) => 8,
            Self::Stopped(_) => 75,
            Self::Shape(_) | Self::Gpu(_) | Self::Network(_) => 1,
        }
    }
}
