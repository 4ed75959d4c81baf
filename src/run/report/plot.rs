//! Curves as inline SVG with axes of HTML text, which stays as large as it is on a narrow screen.

use std::fmt::Write;

use crate::run::report::history::Point;
use crate::run::report::page::escape;

/// Points of a curve at most.
pub const MOST_POINTS: usize = 2000;
/// Edge of the drawing in its own units, which the page stretches.
const EDGE: f64 = 1000.0;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A thin line.
    Line,
    /// A line with a dot at every point, if there are not too many.
    Dots,
    /// A line of dashes.
    Dashes,
}

impl Style {
    /// Its class in the page, behind another.
    fn class(self) -> &'static str {
        match self {
            Self::Line => "",
            Self::Dots => " bold",
            Self::Dashes => " dashes",
        }
    }
}

/// A curve.
#[derive(Debug, Clone)]
pub struct Curve<'a> {
    /// For the legend.
    pub name: String,
    /// Number of its colour; 0 is that of references.
    pub colour: usize,
    /// How it is drawn.
    pub style: Style,
    /// Its points, steps ascending.
    pub points: &'a [Point],
    /// What its values are multiplied by.
    pub factor: f64,
}

/// Where the vertical axis begins and how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From the least value; the first steps, of another size than all later ones, may leave the frame above.
    Near,
    /// From zero.
    Zero,
    /// By its logarithm.
    Log,
}

/// Leaves at most about `most` points: of every stretch of steps the lowest and the highest, so that no spike is lost.
#[must_use]
pub fn thin(points: &[Point], most: usize) -> Vec<Point> {
    if points.len() <= most {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil((most / 2).max(1));
    let mut kept = Vec::with_capacity(most + 2);
    for part in points.chunks(stretch) {
        let by = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) = (part.iter().min_by(by), part.iter().max_by(by)) else { continue };
        kept.push(*if low.0 <= high.0 { low } else { high });
        if low.0 != high.0 {
            kept.push(*if low.0 <= high.0 { high } else { low });
        }
    }
    kept
}

/// Round numbers, some `count` of them, that lie within a range.
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

/// Numbers of the form 1, 2 and 5 times a power of ten within a range; powers alone where these are too many.
fn log_ticks(from: f64, to: f64) -> Vec<f64> {
    let (low, high) = (from.log10().floor() as i32, to.log10().ceil() as i32);
    let within = |factors: &[f64]| -> Vec<f64> {
        let all = (low..=high).flat_map(|power| factors.iter().map(move |f| f * 10_f64.powi(power)));
        all.filter(|tick| (from * 0.999..=to * 1.001).contains(tick)).collect()
    };
    let all = within(&[1.0, 2.0, 5.0]);
    match all.len() {
        0 | 1 => ticks(from, to, 4),
        2..=7 => all,
        _ => within(&[1.0]),
    }
}

/// A number short enough for an axis: `2.5k`, `0.0003` as `3e-4`.
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

/// The frame of a chart: steps across, values up.
struct Frame {
    x: [f64; 2],
    y: [f64; 2],
    log: bool,
}

impl Frame {
    fn new(curves: &[Curve], scale: Scale) -> Option<Self> {
        let steps = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.0));
        let (first, last) = (steps().min()?, steps().max()?);
        // the frame is that of what comes after the first fortieth of the steps
        let settled = if scale == Scale::Near { first + (last - first) / 40 } else { first };
        let log = scale == Scale::Log;
        let values = || {
            let late = curves
                .iter()
                .flat_map(|c| c.points.iter().filter(|p| p.0 >= settled).map(|p| f64::from(p.1) * c.factor));
            late.filter(|y| !log || *y > 0.0)
        };
        let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), y| (low.min(y), high.max(y)));
        if low > high {
            return None;
        }
        let room = if low == high { low.abs().max(1e-6) * 0.1 } else { (high - low) * 0.05 };
        let y = match scale {
            Scale::Zero => [0.0, if high > 0.0 { high * 1.05 } else { 1.0 }],
            Scale::Near => [low - room, high + room],
            Scale::Log => [low / 1.1, high * 1.1],
        };
        Some(Self { x: [f64::from(first), f64::from(last).max(f64::from(first) + 1.0)], y, log })
    }

    fn across(&self, x: f64) -> f64 {
        (x - self.x[0]) / (self.x[1] - self.x[0])
    }

    /// From the top, 0 to 1 within the frame.
    fn down(&self, y: f64) -> f64 {
        let f = |y: f64| if self.log { y.max(f64::MIN_POSITIVE).log10() } else { y };
        1.0 - (f(y) - f(self.y[0])) / (f(self.y[1]) - f(self.y[0]))
    }

    fn path(&self, points: &[Point], factor: f64, dots: bool) -> String {
        let mut path = String::new();
        for (i, (step, value)) in points.iter().enumerate() {
            let [x, y] = [self.across(f64::from(*step)), self.down(f64::from(*value) * factor)]
                .map(|v| (v * EDGE).clamp(-9e4, 9e4));
            let letter = if i == 0 || dots { 'M' } else { 'L' };
            let _ = write!(path, "{letter}{x:.1} {y:.2}");
            if dots {
                // a line of no length has round ends, which stay round when the drawing is stretched
                path.push_str("h0");
            }
        }
        path
    }
}

/// A chart with title, legend, axes and curves; nothing if there is no point to show.
#[must_use]
pub fn chart(title: &str, unit: &str, curves: &[Curve], scale: Scale) -> String {
    let curves: Vec<&Curve> = curves.iter().filter(|c| !c.points.is_empty()).collect();
    let thinned: Vec<Vec<Point>> = curves.iter().map(|c| thin(c.points, MOST_POINTS)).collect();
    let shown: Vec<Curve> = curves.iter().zip(&thinned).map(|(c, points)| Curve { points, ..(*c).clone() }).collect();
    let Some(frame) = Frame::new(&shown, scale) else { return String::new() };
    let (mut html, mut lines, mut labels) = (String::new(), String::new(), String::new());
    let _ = write!(
        html,
        "<figure><figcaption>{} <small>{}</small></figcaption><p class=legend>",
        escape(title),
        escape(unit)
    );
    // one curve without a name needs no legend; references are drawn first and named last
    let (own, others): (Vec<&Curve>, Vec<&Curve>) = shown.iter().partition(|curve| curve.colour != 0);
    for curve in own.into_iter().chain(others).filter(|curve| !curve.name.is_empty()) {
        let style = curve.style.class();
        let _ = write!(html, "<span class=\"c{}{style}\"><i></i>{}</span>", curve.colour, escape(&curve.name));
    }
    let y_ticks = if frame.log { log_ticks(frame.y[0], frame.y[1]) } else { ticks(frame.y[0], frame.y[1], 7) };
    for tick in y_ticks {
        let top = frame.down(tick);
        let _ = write!(lines, "<path class=grid d=\"M0 {0:.1}H{EDGE}\"/>", top * EDGE);
        let _ = write!(labels, "<b class=y style=\"top:{:.2}%\">{}</b>", top * 100.0, short(tick));
    }
    for tick in ticks(frame.x[0], frame.x[1], 4).into_iter().filter(|tick| tick.fract() == 0.0) {
        let left = frame.across(tick);
        let _ = write!(lines, "<path class=grid d=\"M{0:.1} 0V{EDGE}\"/>", left * EDGE);
        let _ = write!(labels, "<b class=x style=\"left:{:.2}%\">{}</b>", left * 100.0, short(tick));
    }
    for curve in &shown {
        let style = curve.style.class();
        let thin = if curve.points.len() > 400 { " thin" } else { "" };
        let _ = write!(
            lines,
            "<path class=\"curve c{}{style}{thin}\" data-name=\"{}\" d=\"{}\"/>",
            curve.colour,
            escape(&curve.name),
            frame.path(curve.points, curve.factor, false)
        );
        if curve.points.len() == 1 || curve.style == Style::Dots && curve.points.len() <= 60 {
            let dots = frame.path(curve.points, curve.factor, true);
            let _ = write!(lines, "<path class=\"dots c{}\" d=\"{dots}\"/>", curve.colour);
        }
    }
    let Frame { x, y, log } = frame;
    let _ = write!(
        html,
        "</p><div class=plot data-x=\"{} {}\" data-y=\"{} {}\" data-log={}><svg viewBox=\"0 0 {EDGE} {EDGE}\" \
         preserveAspectRatio=none role=img aria-label=\"{} over steps\">{lines}</svg>{labels}<div class=line></div><div \
         class=tip></div></div></figure>",
        x[0],
        x[1],
        y[0],
        y[1],
        u8::from(log),
        escape(title)
    );
    html
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

    #[test]
    fn long_curves_are_thinned_and_keep_their_spikes() {
        let mut points: Vec<Point> = (0..600_000).map(|i| (i, 3.0 + (i % 7) as f32 * 0.01)).collect();
        points[123_456].1 = 50.0;
        points[345_678].1 = -50.0;
        let thinned = thin(&points, MOST_POINTS);
        assert!(thinned.len() <= MOST_POINTS, "{}", thinned.len());
        assert!(thinned.contains(&(123_456, 50.0)) && thinned.contains(&(345_678, -50.0)));
        assert!(thinned.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert_eq!(thin(&points[..50], MOST_POINTS), &points[..50]);
    }

    #[test]
    fn a_chart_places_its_points() {
        let points = [(0, 4.0), (5, 2.0), (10, 3.0)];
        let curve = |points| Curve { name: "a<b".into(), colour: 1, style: Style::Line, points, factor: 2.0 };
        let html = chart("Loss", "nats", &[curve(&points)], Scale::Zero);
        // 0 to 8.4, so 8 lies 4/84 below the top, 4 at 44/84
        assert!(html.contains("d=\"M0.0 47.62L500.0 523.81L1000.0 285.71\""), "{html}");
        assert!(html.contains("a&lt;b") && !html.contains("a<b"));
        assert!(html.contains("<b class=x style=\"left:100.00%\">10</b>"), "{html}");
        assert_eq!(chart("Loss", "nats", &[curve(&[])], Scale::Zero), "");
        for scale in [Scale::Near, Scale::Zero, Scale::Log] {
            for points in [
                &[(3, 0.0)][..],
                &[(3, 1.0), (4, 1.0)],
                &[(0, 1e-30), (1, 1e30)],
                &[(u32::MAX, 1.0)],
                &[(3, -1.0)],
                &[(3, 1e-45)],
                &[(9, 1.0), (2, 3.0)],
            ] {
                let html = chart("x", "", &[curve(points)], scale);
                assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            }
        }
    }
}
