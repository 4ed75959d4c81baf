//! Axes of a chart: the frame that curves are drawn in, round numbers on it, and short numbers for labels.

/// The vertical scale of a chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From the least value to the greatest. Values of the first fortieth of the steps may lie outside the frame, because
    /// they are of another size than all later ones.
    Near,
    /// From zero.
    Zero,
    /// Logarithmic.
    Log,
}

impl Scale {
    /// Returns the scale's name in the page.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Zero => "zero",
            Self::Log => "log",
        }
    }
}

/// The frame of a chart. The horizontal axis is linear.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Frame {
    /// Steps at the left and right edge.
    pub x: [f64; 2],
    /// Values at the bottom and top edge.
    pub y: [f64; 2],
    /// Whether the vertical axis is logarithmic.
    pub log: bool,
}

impl Frame {
    /// Returns the frame for steps from `x[0]` to `x[1]` and for these points. `None` if no point can be drawn in it.
    #[must_use]
    pub fn new(x: [f64; 2], points: impl Iterator<Item = (f64, f64)>, scale: Scale) -> Option<Self> {
        let settled = if scale == Scale::Near { x[0] + (x[1] - x[0]) / 40.0 } else { x[0] };
        let x = [x[0], x[1].max(x[0] + 1.0)];
        let log = scale == Scale::Log;
        let drawn = points.filter(|(step, y)| (settled..=x[1]).contains(step) && (!log || *y > 0.0));
        let (low, high) = drawn.fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(y), high.max(y)));
        if low > high {
            return None;
        }
        let room = if low == high { low.abs().max(1e-6) * 0.1 } else { (high - low) * 0.05 };
        let y = match scale {
            Scale::Zero => [0.0, if high > 0.0 { high * 1.05 } else { 1.0 }],
            Scale::Near => [low - room, high + room],
            Scale::Log => [low / 1.1, high * 1.1],
        };
        Some(Self { x, y, log })
    }

    /// Returns the distance of a step from the left edge, as a part of the width.
    #[must_use]
    pub fn across(&self, x: f64) -> f64 {
        (x - self.x[0]) / (self.x[1] - self.x[0])
    }

    /// Returns the distance of a value from the top edge, as a part of the height.
    #[must_use]
    pub fn down(&self, y: f64) -> f64 {
        let f = |y: f64| if self.log { y.max(f64::MIN_POSITIVE).log10() } else { y };
        1.0 - (f(y) - f(self.y[0])) / (f(self.y[1]) - f(self.y[0]))
    }

    /// Returns whether a point is inside the frame.
    #[must_use]
    pub fn contains(&self, x: f64, y: f64) -> bool {
        (self.x[0]..=self.x[1]).contains(&x) && (self.y[0]..=self.y[1]).contains(&y)
    }

    /// Returns the values that get a label on the vertical axis.
    #[must_use]
    pub fn y_ticks(&self) -> Vec<f64> {
        if self.log { log_ticks(self.y[0], self.y[1]) } else { ticks(self.y[0], self.y[1], 7) }
    }

    /// Returns the steps that get a label on the horizontal axis.
    #[must_use]
    pub fn x_ticks(&self) -> Vec<f64> {
        ticks(self.x[0], self.x[1], 6).into_iter().filter(|tick| tick.fract() == 0.0).collect()
    }
}

/// Returns round numbers within a range, at most about `count`.
#[must_use]
pub fn ticks(from: f64, to: f64, count: usize) -> Vec<f64> {
    let rough = (to - from) / count.max(1) as f64;
    if rough <= 0.0 || !rough.is_finite() {
        return vec![from];
    }
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|f| f * power).find(|step| *step >= rough).unwrap_or(rough);
    let first = (from / step - 1e-9).ceil() as i64;
    let last = (to / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Returns the numbers within a range that are 1, 2 or 5 times a power of ten; only powers of ten if these are too many, and
/// [`ticks`] if they are too few.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let (low, high) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let within = |factors: &[f64]| -> Vec<f64> {
        let all = (low..=high).flat_map(|power| factors.iter().map(move |f| f * 10_f64.powi(power)));
        all.filter(|tick| (from * 0.999..=to * 1.001).contains(tick)).collect()
    };
    let all = within(&[1.0, 2.0, 5.0]);
    match all.len() {
        0..=2 => ticks(from, to, 6),
        3..=7 => all,
        _ => within(&[1.0]),
    }
}

/// Returns a number that is short enough for an axis: `2.5k`, or `3e-4` for 0.0003.
#[must_use]
pub fn short(value: f64) -> String {
    let digits = |value: f64, places: usize| {
        let text = format!("{value:.places$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    let size = value.abs();
    match size {
        0.0 => "0".into(),
        _ if size >= 1e12 => format!("{value:.1e}"),
        _ if size >= 1e9 => format!("{}G", digits(value / 1e9, 2)),
        _ if size >= 1e6 => format!("{}M", digits(value / 1e6, 2)),
        _ if size >= 1e4 => format!("{}k", digits(value / 1e3, 1)),
        _ if size >= 100.0 => digits(value, 0),
        _ if size >= 1e-2 => digits(value, 4),
        _ => {
            let power = size.log10().floor() as i32;
            format!("{}e{power}", digits(value / 10_f64.powi(power), 2))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 19_560.0, 4), [0.0, 5000.0, 10_000.0, 15_000.0]);
        assert_eq!(ticks(3.1, 4.2, 5), [3.5, 4.0]);
        assert_eq!(ticks(2.0, 2.0, 5), [2.0]);
        for (from, to) in [(0.0, 1.0), (-3.0, 7.5), (1e-5, 6e-4), (0.3, 0.300_001)] {
            let found = ticks(from, to, 5);
            assert!((2..=12).contains(&found.len()), "{found:?}");
            assert!(found.iter().all(|tick| *tick >= from - 1e-9 && *tick <= to + 1e-9), "{found:?}");
        }
        assert_eq!(log_ticks(0.2, 16.0), [0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        assert_eq!(log_ticks(1e-3, 1e3).len(), 7);
        assert!(log_ticks(2.2, 2.4).len() >= 2);
    }

    #[test]
    fn a_step_axis_of_any_length_has_several_ticks() {
        for last in [5_u32, 10, 70, 300, 970, 1001, 19_560, 600_000] {
            let frame = Frame { x: [0.0, f64::from(last)], y: [0.0, 1.0], log: false };
            assert!((3..=7).contains(&frame.x_ticks().len()), "{last}: {:?}", frame.x_ticks());
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (6e-4, "6e-4"),
            (2.5e-4, "2.5e-4"),
            (0.05, "0.05"),
            (3.5, "3.5"),
            (11.0, "11"),
            (250.0, "250"),
            (5000.0, "5000"),
            (15_000.0, "15k"),
            (177_968.0, "178k"),
            (3_745_000.0, "3.75M"),
            (3e38, "3.0e38"),
            (-2.0, "-2"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
