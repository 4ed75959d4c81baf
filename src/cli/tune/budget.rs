//! Shares the time of `wgpt tune` among its jobs.

use std::time::{Duration, Instant};

use wgpt::error::{Error, Result};
use wgpt::measure::tune::{Job, RaceResult};

/// Default seconds for a job.
const SECONDS: f64 = 10.0;

/// The time that the kernels of each job may take.
pub struct Budget {
    begin: Instant,
    each: Option<Duration>,
    total: Option<Duration>,
}

impl Budget {
    /// Returns the time that `--seconds` and `--total` allow, counted from [`Self::begin`].
    pub fn new(seconds: Option<f64>, total: Option<f64>) -> Result<Self> {
        let read = |flag: &str, seconds: Option<f64>| {
            let Some(seconds) = seconds else { return Ok(None) };
            let time = Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= Duration::from_secs(86_400));
            time.map(Some).ok_or_else(|| Error::usage(format!("{flag}: {seconds:e}, expected 0 to 86400")))
        };
        let total = read("--total", total)?;
        let default = if total.is_some() { None } else { Some(SECONDS) };
        let each = read("--seconds", seconds.or(default))?;
        Ok(Self { begin: Instant::now(), each, total })
    }

    /// Starts the time of the first job: opening the device and measuring its roofs are not counted.
    pub fn begin(&mut self) {
        self.begin = Instant::now();
    }

    /// Returns the longest time of so many jobs, in words.
    pub fn at_most(&self, jobs: usize) -> String {
        let all = self.each.map(|each| each * jobs as u32);
        match (self.each, self.total) {
            (Some(each), total) if total.is_none_or(|total| all < Some(total)) => {
                format!("{} s (--seconds {} each)", each.as_secs_f64() * jobs as f64, each.as_secs_f64())
            }
            (_, total) => {
                let total = total.unwrap_or_default().as_secs_f64();
                format!("{total} s (--total {total})")
            }
        }
    }

    /// Returns the time of the first of the remaining jobs, of which there is at least one.
    ///
    /// A job's share of the rest of `--total` is proportional to the square root of its operations in a step. A job
    /// with more operations gets more time, because it is a larger part of a step. It does not get proportionally more:
    /// building a kernel takes as long for a small product as for a large one, so small ones would have no time for a
    /// second kernel.
    pub fn next(&self, left: &[Job]) -> Duration {
        let share = self.total.map(|total| {
            let weights: f64 = left.iter().map(weight).sum();
            total.saturating_sub(self.begin.elapsed()).mul_f64(left.first().map_or(0.0, weight) / weights.max(1.0))
        });
        [self.each, share].into_iter().flatten().min().unwrap_or_default()
    }

    /// Returns the flags that would give all kernels of these jobs time, by the mean time of those that were tried.
    pub fn would_do(&self, raced: &[RaceResult]) -> String {
        let tried: usize = raced.iter().map(|raced| raced.trials.len()).sum();
        let all = tried + raced.iter().map(|raced| raced.left).sum::<usize>();
        let seconds = self.begin.elapsed().as_secs_f64() / tried.max(1) as f64 * all as f64;
        // the largest jobs take longer than the mean
        let each = 2.0 * seconds / raced.len().max(1) as f64;
        match (self.each, self.total) {
            (None, _) => format!("--total {}", round_up(seconds)),
            (Some(_), None) => format!("--seconds {}", round_up(each)),
            (Some(_), Some(_)) => format!("--seconds {} --total {}", round_up(each), round_up(seconds)),
        }
    }
}

fn weight(job: &Job) -> f64 {
    job.step_flops().sqrt()
}

/// Rounds up to whole seconds, and above ten to multiples of ten.
fn round_up(seconds: f64) -> u64 {
    let unit = if seconds > 10.0 { 10.0 } else { 1.0 };
    ((seconds / unit).ceil() * unit).max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use wgpt::measure::tune::Work;
    use wgpt::ops::matmul::Product;

    fn job(rows: usize) -> Job {
        Job { layer: "fc", work: Work::Product(Product::Forward, [rows, 100, 100]), times: 1 }
    }

    #[test]
    fn a_job_of_a_hundredth_of_the_operations_gets_a_tenth_of_the_time() {
        let budget = Budget::new(None, Some(110.0)).expect("seconds");
        let jobs = [job(10_000), job(100)];
        assert!((budget.next(&jobs).as_secs_f64() - 100.0).abs() < 1.0);
        // the second job gets the time that the first did not take
        assert!((budget.next(&jobs[1..]).as_secs_f64() - 110.0).abs() < 1.0);
        let both = Budget::new(Some(3.0), Some(110.0)).expect("seconds");
        assert!((both.next(&jobs).as_secs_f64() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_longest_time_is_named_with_its_flag() {
        let at_most = |each, total| Budget::new(each, total).expect("seconds").at_most(15);
        assert_eq!(at_most(None, None), "150 s (--seconds 10 each)");
        assert_eq!(at_most(None, Some(120.0)), "120 s (--total 120)");
        assert_eq!(at_most(Some(2.0), Some(120.0)), "30 s (--seconds 2 each)");
        assert_eq!(at_most(Some(9.0), Some(120.0)), "120 s (--total 120)");
    }

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!([0.2, 3.1, 10.0, 10.1, 142.0].map(round_up), [1, 4, 10, 20, 150]);
    }
}
