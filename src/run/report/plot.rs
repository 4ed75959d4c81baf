//! Charts as inline SVG, with labels of HTML text that keep their size on a narrow screen.
//!
//! `page.js` draws the same charts on other axes; its rules are the ones here.

use std::fmt::Write;

use crate::run::report::axis::{Frame, Scale, short};
use crate::run::report::curves::Series;
use crate::run::report::history::Point;
use crate::run::report::html::escape;

/// Edge of the drawing in its own units, which the page stretches.
const EDGE: f64 = 1000.0;
/// The most points that get a dot each.
const MAX_DOTS: usize = 80;
/// Lines of a chart are thin if one of its curves has more points than this.
const MAX_THICK: usize = 400;
/// Number of colours in the page's style, without that of references.
const COLOURS: usize = 8;

/// The way a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A line through values of every step.
    Line,
    /// A bold line through measurements between steps, with a dot at each. The one before training is a dot alone, because
    /// nothing was measured between it and the next.
    Measured,
    /// Measurements of a reference, as a dashed line.
    MeasuredReference,
}

impl Style {
    /// Returns its class in the page, behind a space.
    fn class(self) -> &'static str {
        match self {
            Self::Line => "",
            Self::Measured => " bold",
            Self::MeasuredReference => " dashes",
        }
    }
}

/// A curve of a chart.
#[derive(Debug, Clone)]
pub struct Curve<'a> {
    /// Index of its run in the page.
    pub run: usize,
    /// Its series.
    pub series: Series,
    /// Its name for the legend and the pointer.
    pub name: String,
    /// Its colour: 0 for references, from 1 for runs.
    pub colour: usize,
    /// The way it is drawn.
    pub style: Style,
    /// Its points, steps ascending.
    pub points: &'a [Point],
}

impl Curve<'_> {
    /// Returns the points that the line joins, and the measurement before training.
    fn parts(&self) -> (&[Point], Option<Point>) {
        match self.points.split_first() {
            Some((first @ (0, _), rest)) if self.style != Style::Line => (rest, Some(*first)),
            _ => (self.points, None),
        }
    }
}

/// An entry of a legend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegendEntry {
    /// Its text.
    pub name: String,
    /// The colour of its sample; `None` for that of text.
    pub colour: Option<usize>,
    /// The style of its sample.
    pub style: Style,
}

/// A chart over steps.
#[derive(Debug, Clone)]
pub struct Chart<'a> {
    /// Its title.
    pub title: &'static str,
    /// Name and unit of the vertical axis.
    pub y_name: &'static str,
    /// The vertical scale.
    pub scale: Scale,
    /// Its curves, the first one at the back.
    pub curves: Vec<Curve<'a>>,
    /// Its legend; may be empty.
    pub legend: Vec<LegendEntry>,
}

/// Returns the attributes of an element: the class of a colour, more classes, and a style that may be empty. Colours beyond
/// those of the page's style are made from a hue.
fn attributes(colour: usize, classes: &str, style: &str) -> String {
    if colour > COLOURS {
        // the golden angle, which keeps neighbours apart however many there are
        let hue = (colour - COLOURS) * 137 % 360;
        let separator = if style.is_empty() { "" } else { ";" };
        return format!("class=\"cx{classes}\" style=\"{style}{separator}--h:{hue}\"");
    }
    let style = if style.is_empty() { String::new() } else { format!(" style=\"{style}\"") };
    format!("class=\"c{colour}{classes}\"{style}")
}

/// Returns a coordinate with one decimal, or none if that is zero.
fn coordinate(part: f64) -> String {
    let text = format!("{:.1}", (part * EDGE).clamp(-9e4, 9e4));
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// Returns the path of a line through points.
fn line_path(frame: &Frame, points: &[Point]) -> String {
    let mut path = String::new();
    for (i, (step, value)) in points.iter().enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        let (x, y) = (frame.across(f64::from(*step)), frame.down(f64::from(*value)));
        let _ = write!(path, "{letter}{} {}", coordinate(x), coordinate(y));
    }
    path
}

/// Returns the path of dots at points: lines without length, whose round ends stay round when the drawing is stretched.
fn dot_path(frame: &Frame, points: &[Point]) -> String {
    let mut path = String::new();
    for (step, value) in points {
        let (x, y) = (frame.across(f64::from(*step)), frame.down(f64::from(*value)));
        let _ = write!(path, "M{} {}h0", coordinate(x), coordinate(y));
    }
    path
}

impl Chart<'_> {
    /// Returns the chart as HTML; empty if it has no point to show.
    #[must_use]
    pub fn html(&self) -> String {
        let curves: Vec<&Curve> = self.curves.iter().filter(|curve| !curve.points.is_empty()).collect();
        let Some(frame) = self.frame(&curves) else { return String::new() };
        let mut html = format!(
            "<figure data-scale={}><figcaption>{}</figcaption><p class=legend>",
            self.scale.name(),
            escape(self.title)
        );
        for entry in &self.legend {
            let style = entry.style.class();
            let attributes = match entry.colour {
                Some(colour) => attributes(colour, style, ""),
                None => format!("class=\"key{style}\""),
            };
            let _ = write!(html, "<span {attributes}><i></i>{}</span>", escape(&entry.name));
        }
        let (mut lines, mut labels) = (String::new(), String::new());
        for tick in frame.y_ticks() {
            let top = frame.down(tick);
            let _ = write!(lines, "<path class=grid d=\"M0 {}H{EDGE}\"/>", coordinate(top));
            let _ = write!(labels, "<b class=y style=\"top:{:.2}%\">{}</b>", top * 100.0, short(tick));
        }
        for tick in frame.x_ticks() {
            let left = frame.across(tick);
            let _ = write!(lines, "<path class=grid d=\"M{} 0V{EDGE}\"/>", coordinate(left));
            let _ = write!(labels, "<b class=x style=\"left:{:.2}%\">{}</b>", left * 100.0, short(tick));
        }
        // with several runs, validation has the same colour as training, so the lines of training are thin
        let several = curves.iter().filter(|curve| curve.style == Style::Measured && curve.colour != 0).count() > 1;
        let is_thin = several || curves.iter().any(|curve| curve.points.len() > MAX_THICK);
        let thin = if is_thin { " thin" } else { "" };
        for curve in &curves {
            lines += &drawn(curve, &frame, if curve.style == Style::Line { thin } else { "" });
        }
        labels += &marks(&frame, &curves);
        let _ = write!(
            html,
            "</p><p class=note>{}</p><div class=plot><svg viewBox=\"0 0 {EDGE} {EDGE}\" preserveAspectRatio=none role=img \
             aria-label=\"{} over steps\">{lines}</svg>{labels}<b class=xname>step</b><b class=yname>{}</b><div \
             class=line></div><div class=tip></div></div></figure>",
            escape(&note(&frame, &curves)),
            escape(self.title),
            escape(self.y_name),
        );
        html
    }

    /// Returns the frame of the chart: the steps of its runs, not those of references.
    fn frame(&self, curves: &[&Curve]) -> Option<Frame> {
        let steps = |own: bool| {
            let curves = curves.iter().filter(move |curve| !own || curve.colour != 0);
            curves.flat_map(|curve| curve.points.iter().map(|point| point.0))
        };
        let is_own = steps(true).next().is_some();
        let x = [f64::from(steps(is_own).min()?), f64::from(steps(is_own).max()?)];
        let points = curves.iter().flat_map(|curve| curve.points.iter());
        Frame::new(x, points.map(|(step, value)| (f64::from(*step), f64::from(*value))), self.scale)
    }
}

/// Returns the paths of a curve. All its points stay in one path, for the script.
fn drawn(curve: &Curve, frame: &Frame, thin: &str) -> String {
    let (line, before) = curve.parts();
    let mut paths = format!(
        "<path {} data-run={} data-series={} data-name=\"{}\" d=\"{}\"/>",
        attributes(curve.colour, &format!(" curve{}{thin}", curve.style.class()), ""),
        curve.run,
        curve.series.key(),
        escape(&curve.name),
        line_path(frame, line)
    );
    let with_dots = line.len() == 1 || curve.style == Style::Measured && line.len() <= MAX_DOTS;
    let mut dots = dot_path(frame, if with_dots { line } else { &[] });
    if let Some(before) = before.filter(|(step, value)| frame.contains(f64::from(*step), f64::from(*value))) {
        dots += &dot_path(frame, &[before]);
    }
    if !dots.is_empty() {
        let _ = write!(paths, "<path {} d=\"{dots}\"/>", attributes(curve.colour, " dots", ""));
    }
    paths
}

/// Returns the measurements before training that are above or below the frame, with their curves.
fn hidden_measurements<'c>(frame: &Frame, curves: &[&'c Curve]) -> Vec<(&'c Curve<'c>, Point)> {
    let before = curves.iter().filter_map(|curve| Some((*curve, curve.parts().1?)));
    before.filter(|(_, (_, value))| !(frame.y[0]..=frame.y[1]).contains(&f64::from(*value))).collect()
}

/// Returns the triangles that point to hidden measurements.
fn triangles(frame: &Frame, hidden: &[(&Curve, Point)]) -> String {
    let is_above = |(_, (_, value)): &(&Curve, Point)| f64::from(*value) > frame.y[1];
    let (above, below) = (hidden.iter().any(is_above), !hidden.iter().all(is_above));
    format!("{}{}", if above { "▲" } else { "" }, if below { "▼" } else { "" })
}

/// Returns triangles at the edge of the plot that point to measurements outside it.
fn marks(frame: &Frame, curves: &[&Curve]) -> String {
    let mut html = String::new();
    for (curve, (step, value)) in hidden_measurements(frame, curves) {
        let left = frame.across(f64::from(step)).clamp(0.0, 1.0) * 100.0;
        let (classes, triangle) = if f64::from(value) > frame.y[1] { (" up", '▲') } else { (" down", '▼') };
        let attributes = attributes(curve.colour, classes, &format!("left:{left:.2}%"));
        let _ = write!(html, "<b {attributes}>{triangle}</b>");
    }
    html
}

/// Returns a sentence about what the plot does not show; empty if it shows everything.
fn note(frame: &Frame, curves: &[&Curve]) -> String {
    let mut parts = Vec::new();
    let hidden = hidden_measurements(frame, curves);
    let values = || hidden.iter().map(|(_, (_, value))| f64::from(*value));
    let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
    let what = match hidden.as_slice() {
        [(curve, _)] if !curve.name.is_empty() => format!("{} ", curve.name),
        [(Curve { series: Series::ValLoss, .. }, _), ..] => "validation ".to_owned(),
        _ => String::new(),
    };
    let triangles = triangles(frame, &hidden);
    match (short(low), short(high)) {
        _ if hidden.is_empty() => {}
        (low, high) if low == high => parts.push(format!("{what}before training: {low} ({triangles})")),
        (low, high) => parts.push(format!("{what}before training: {low} to {high} ({triangles})")),
    }
    let is_hidden = |curve: &&&Curve| {
        let (line, before) = curve.parts();
        let is_inside = |point: &Point| frame.contains(f64::from(point.0), f64::from(point.1));
        before.is_none() && !line.iter().any(is_inside)
    };
    let outside: Vec<&str> = curves.iter().filter(is_hidden).map(|curve| curve.name.as_str()).collect();
    if !outside.is_empty() {
        parts.push(format!("outside the plot: {}", outside.join(", ")));
    }
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve<'a>(points: &'a [Point], style: Style) -> Curve<'a> {
        Curve { run: 0, series: Series::ValLoss, name: "a<b".into(), colour: 1, style, points }
    }

    fn chart(curves: Vec<Curve>, scale: Scale) -> Chart {
        Chart { title: "Loss", y_name: "loss (nats/token)", scale, curves, legend: Vec::new() }
    }

    #[test]
    fn a_chart_places_its_points_and_names_its_axes() {
        let points = [(0, 8.0), (5, 4.0), (10, 6.0)];
        let html = chart(vec![curve(&points, Style::Line)], Scale::Zero).html();
        // 0 to 8.4, so 8 is 4/84 below the top and 4 is 44/84
        assert!(html.contains("d=\"M0 47.6L500 523.8L1000 285.7\""), "{html}");
        assert!(html.contains("a&lt;b") && !html.contains("a<b"));
        assert!(html.contains("<b class=x style=\"left:100.00%\">10</b>"), "{html}");
        assert!(html.contains("<b class=xname>step</b><b class=yname>loss (nats/token)</b>"), "{html}");
        assert_eq!(chart(vec![curve(&[], Style::Line)], Scale::Zero).html(), "");
    }

    #[test]
    fn hard_values_draw_no_broken_numbers() {
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
                for style in [Style::Line, Style::Measured, Style::MeasuredReference] {
                    let html = chart(vec![curve(points, style)], scale).html();
                    assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
                }
            }
        }
    }

    #[test]
    fn the_measurement_before_training_is_joined_to_no_line() {
        let loss: Vec<Point> = (1..=100).map(|i| (i, 2.0 + 3.0 / i as f32)).collect();
        let measured = [(0, 5.5), (50, 2.1), (100, 2.05)];
        let curves = || vec![curve(&loss, Style::Line), curve(&measured, Style::Measured)];
        let html = chart(curves(), Scale::Near).html();
        // the line begins in the middle, and a triangle at the left edge points to 5.5
        assert!(html.contains("data-name=\"a&lt;b\" d=\"M500 "), "{html}");
        assert!(html.contains("<b class=\"c1 up\" style=\"left:0.00%\">▲</b>"), "{html}");
        assert!(html.contains("<p class=note>a&lt;b before training: 5.5 (▲)</p>"), "{html}");
        // on an axis that has room for it, it is a dot
        let html = chart(curves(), Scale::Log).html();
        assert!(html.contains("<p class=note></p>") && !html.contains('▲'), "{html}");
        // alone it is all there is
        let html = chart(vec![curve(&measured[..1], Style::Measured)], Scale::Near).html();
        assert!(html.contains("dots\" d=\"M0 500h0\""), "{html}");
    }

    #[test]
    fn curves_of_a_chart_are_equally_thick() {
        let long: Vec<Point> = (1..=500).map(|i| (i, i as f32)).collect();
        let html = chart(vec![curve(&long, Style::Line), curve(&long[..9], Style::Line)], Scale::Near).html();
        assert_eq!(html.matches("class=\"c1 curve thin\"").count(), 2, "{html}");
    }

    #[test]
    fn a_curve_that_is_not_in_the_frame_is_named() {
        let (loss, other) = ([(1, 2.0), (100, 1.0)], [(1, 50.0)]);
        let far = Curve { name: "far".into(), ..curve(&other, Style::Line) };
        let html = chart(vec![curve(&loss, Style::Line), far], Scale::Near).html();
        assert!(html.contains("outside the plot: far"), "{html}");
    }

    #[test]
    fn every_colour_has_a_name_or_a_hue() {
        assert_eq!(attributes(8, " up", ""), "class=\"c8 up\"");
        assert_eq!(attributes(9, "", ""), "class=\"cx\" style=\"--h:137\"");
        let hues: Vec<String> = (9..40).map(|colour| attributes(colour, "", "")).collect();
        assert!(hues.iter().enumerate().all(|(i, hue)| !hues[..i].contains(hue)), "{hues:?}");
    }
}
