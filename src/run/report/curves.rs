//! The curves of one run on the page: their points, thinned, and the same points as CSV.

use std::fmt::Write;

use crate::run::report::history::{History, Point};

/// The most points of a curve on the page.
pub const MAX_POINTS: usize = 2000;
/// The first line of a run's CSV.
const HEADER: &str = "series,step,tokens,value\n";

/// A quantity that is drawn over steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Series {
    /// Training loss.
    Loss,
    /// Validation loss.
    ValLoss,
    /// Accuracy on HellaSwag.
    HellaSwag,
    /// Gradient norm before clipping.
    GradNorm,
    /// Learning rate.
    Lr,
    /// Tokens per second.
    TokensPerS,
    /// Model FLOPs utilisation in percent.
    Mfu,
}

impl Series {
    /// Returns the series' name in the CSV. Those in `metrics.jsonl` have the same name there.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::ValLoss => "val_loss",
            Self::HellaSwag => "hellaswag",
            Self::GradNorm => "grad_norm",
            Self::Lr => "lr",
            Self::TokensPerS => "tokens_per_s",
            Self::Mfu => "mfu_percent",
        }
    }

    /// Returns whether the page offers to smooth the series.
    fn is_noisy(self) -> bool {
        matches!(self, Self::Loss | Self::GradNorm | Self::TokensPerS | Self::Mfu)
    }
}

/// The points of one series.
#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    series: Series,
    points: Vec<Point>,
    /// Means of the stretches that `points` has the extremes of; empty if all points are there.
    means: Vec<Point>,
}

/// The curves of one run or of a reference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunCurves {
    /// Its name on the page.
    pub name: String,
    /// Tokens per step, if known.
    pub tokens_per_step: Option<u64>,
    drawn: Vec<Drawn>,
}

impl RunCurves {
    /// Returns the curves of `history` up to step `last`. `mfu` is the MFU in percent at one token per second, if the peak is
    /// known.
    #[must_use]
    pub fn new(history: &History, tokens_per_step: Option<u64>, last: u32, mfu: Option<f64>) -> Self {
        let scaled: Vec<Point> = mfu.map_or_else(Vec::new, |factor| {
            let scaled = history.speed.iter().map(|(step, speed)| (*step, (f64::from(*speed) * factor) as f32));
            scaled.filter(|(_, mfu)| mfu.is_finite()).collect()
        });
        let all = [
            (Series::Loss, &history.loss),
            (Series::ValLoss, &history.val_loss),
            (Series::HellaSwag, &history.hellaswag),
            (Series::GradNorm, &history.norm),
            (Series::Lr, &history.lr),
            (Series::TokensPerS, &history.speed),
            (Series::Mfu, &scaled),
        ];
        let drawn = all.into_iter().filter_map(|(series, points)| {
            let points = &points[..points.partition_point(|(step, _)| *step <= last)];
            let means =
                if series.is_noisy() && points.len() > MAX_POINTS { means(points, MAX_POINTS / 2) } else { Vec::new() };
            (!points.is_empty()).then(|| Drawn { series, points: thin(points, MAX_POINTS), means })
        });
        Self { name: history.name.clone(), tokens_per_step, drawn: drawn.collect() }
    }

    /// Returns the points of a series, at most about [`MAX_POINTS`].
    #[must_use]
    pub fn points(&self, series: Series) -> &[Point] {
        self.drawn.iter().find(|drawn| drawn.series == series).map_or(&[], |drawn| &drawn.points)
    }

    /// Returns all points as CSV. A thinned series is followed by the means of its stretches, named with `_mean`.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut csv = HEADER.to_owned();
        let mut add = |key: &str, points: &[Point]| {
            for (step, value) in points {
                let tokens = self.tokens_per_step.map(|tokens| tokens.saturating_mul(u64::from(*step)).to_string());
                let _ = writeln!(csv, "{key},{step},{},{value}", tokens.unwrap_or_default());
            }
        };
        for Drawn { series, points, means } in &self.drawn {
            add(series.key(), points);
            add(&format!("{}_mean", series.key()), means);
        }
        csv
    }
}

/// Returns at most about `most` points: the first tenth of them as they are, for logarithmic axes, and of every later stretch
/// of steps the lowest and the highest, so that no spike is lost.
#[must_use]
pub fn thin(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most {
        return points.to_vec();
    }
    let (head, rest) = points.split_at(most / 10);
    let stretch = rest.len().div_ceil(((most - head.len()) / 2).max(1));
    let mut kept = head.to_vec();
    for part in rest.chunks(stretch) {
        let by = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (part.iter().min_by(by), part.iter().max_by(by)) else { continue };
        kept.push(*if low.0 <= high.0 { low } else { high });
        if low.0 != high.0 {
            kept.push(*if low.0 <= high.0 { high } else { low });
        }
    }
    kept
}

/// Returns the mean of each of at most `most` stretches of points, at the step in its middle.
fn means(points: &[Point], most: usize) -> Vec<Point> {
    let stretch = points.len().div_ceil(most.max(1));
    let mean = |part: &[Point]| part.iter().map(|point| f64::from(point.1)).sum::<f64>() / part.len() as f64;
    points.chunks(stretch).map(|part| (part[part.len() / 2].0, mean(part) as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_thinned_and_keep_their_spikes() {
        let mut points: Vec<Point> = (0..600_000).map(|i| (i, 3.0 + (i % 7) as f32 * 0.01)).collect();
        points[123_456].1 = 50.0;
        points[345_678].1 = -50.0;
        let thinned = thin(&points, MAX_POINTS);
        assert!(thinned.len() <= MAX_POINTS, "{}", thinned.len());
        assert!(thinned.contains(&(123_456, 50.0)) && thinned.contains(&(345_678, -50.0)));
        assert_eq!(thinned[..200], points[..200]);
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(thin(&points[..50], MAX_POINTS), &points[..50]);
    }

    #[test]
    fn csv_has_a_header_and_the_points_with_their_tokens() {
        let history =
            History { loss: vec![(1, 5.5), (2, 5.25)], val_loss: vec![(0, 6.0), (2, 5.0)], ..History::default() };
        let known = RunCurves::new(&history, Some(1 << 40), 2, None).csv();
        let expected = "series,step,tokens,value\nloss,1,1099511627776,5.5\nloss,2,2199023255552,5.25\n\
                        val_loss,0,0,6\nval_loss,2,2199023255552,5\n";
        assert_eq!(known, expected);
        assert_eq!(
            RunCurves::new(&history, None, 1, None).csv(),
            "series,step,tokens,value\nloss,1,,5.5\nval_loss,0,,6\n"
        );
    }

    #[test]
    fn a_thinned_curve_comes_with_its_means() {
        let history = History { loss: (1..=10_000).map(|i| (i, (i % 2) as f32)).collect(), ..History::default() };
        let csv = RunCurves::new(&history, Some(2), u32::MAX, None).csv();
        let rows = |key: &str| csv.lines().filter(|line| line.starts_with(key)).count();
        assert_eq!(rows("loss_mean,"), MAX_POINTS / 2);
        assert!((MAX_POINTS * 9 / 10..=MAX_POINTS).contains(&rows("loss,")));
        assert!(csv.contains("\nloss_mean,6,12,0.5\n"), "{csv}");
    }

    #[test]
    fn mfu_is_speed_in_another_unit() {
        let history = History { speed: vec![(1, 200.0)], ..History::default() };
        assert_eq!(RunCurves::new(&history, None, 9, Some(0.25)).points(Series::Mfu), [(1, 50.0)]);
        assert!(RunCurves::new(&history, None, 9, None).points(Series::Mfu).is_empty());
    }
}
