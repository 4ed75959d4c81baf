//! Values of settings that are neither numbers nor names of files.

/// When checkpoints are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interval {
    /// Every so many steps; 0 for none but on a signal.
    Steps(usize),
    /// When so many minutes have gone by since the last.
    Minutes(f64),
}

impl std::str::FromStr for Interval {
    type Err = String;

    /// `250` is steps, `10m` minutes.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("`{text}`, expected steps, such as 250, or minutes, such as 10m");
        match text.strip_suffix('m') {
            None => text.parse().map(Self::Steps).map_err(|_| wrong()),
            Some(minutes) => match minutes.parse::<f64>() {
                Ok(minutes) if minutes > 0.0 && minutes.is_finite() => Ok(Self::Minutes(minutes)),
                _ => Err(wrong()),
            },
        }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Steps(steps) => write!(f, "{steps}"),
            Self::Minutes(minutes) => write!(f, "{minutes}m"),
        }
    }
}
