//! The page: figures, charts, samples and configuration of one run, or several runs over one another.

use std::fmt::Write;

use crate::files::visible::changes_direction;
use crate::run::report::history::{History, Point};
use crate::run::report::plot::{Curve, Scale, Style, chart, short};
use crate::run::report::sheet::Sheet;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Says in the first bytes of a file that it may be overwritten.
pub const MARK: &str = "<meta name=generator content=\"wgpt report\">";

/// Text as HTML shows it: nothing in it is markup, and control characters are gone.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || changes_direction(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The whole page: one file, which refers to no other.
#[must_use]
pub fn page(sheets: &[Sheet], reference: Option<&History>) -> String {
    let names: Vec<&str> = sheets.iter().map(|sheet| sheet.history.name.as_str()).collect();
    let title = escape(&names.join(", "));
    let mut html = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>{MARK}<meta name=viewport content=\"width=device-width\"><title>\
         {title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
    );
    match sheets {
        [one] => {
            let _ = write!(html, "<p class=about>{}</p>{}", escape(&one.about()), cards(one));
        }
        many => html += &table(many),
    }
    let _ = write!(html, "<div class=charts>{}</div>", charts(sheets, reference));
    for sheet in sheets {
        html += &details(sheet, sheets.len() > 1);
    }
    let _ = write!(html, "<script>{SCRIPT}</script></body></html>");
    html
}

/// The figures of one run.
fn cards(sheet: &Sheet) -> String {
    let mut html = String::from("<dl class=cards>");
    for (name, value, note) in sheet.figures() {
        let note = if note.is_empty() { note } else { format!("<small>{}</small>", escape(&note)) };
        let _ = write!(html, "<div><dt>{name}</dt><dd>{}{note}</dd></div>", escape(&value));
    }
    html + "</dl>"
}

/// The figures of several runs, a row each.
fn table(sheets: &[Sheet]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let figures: Vec<_> = sheets.iter().map(Sheet::figures).collect();
    for (name, ..) in figures.iter().flatten() {
        if !columns.contains(name) {
            columns.push(name);
        }
    }
    let mut html = String::from("<div class=scroll><table><tr><th>run</th>");
    columns.iter().for_each(|name| html += &format!("<th>{name}</th>"));
    for (sheet, figures) in sheets.iter().zip(&figures) {
        let _ = write!(html, "</tr><tr><td>{}</td>", escape(&sheet.history.name));
        for column in &columns {
            let value = figures.iter().find(|(name, ..)| name == column).map_or("", |(_, value, _)| value);
            let _ = write!(html, "<td>{}</td>", escape(value));
        }
    }
    html + "</tr></table></div>"
}

fn charts(sheets: &[Sheet], reference: Option<&History>) -> String {
    type Values = for<'h> fn(&'h History) -> &'h [Point];
    // of the reference as far as the runs have come, so that they fill the frame
    let last = sheets.iter().map(|sheet| sheet.history.step).max().unwrap_or(0) as u32;
    let known = |points: &'_ [Point]| points.partition_point(|(step, _)| *step <= last);
    // one curve of every run that has it, and of the reference
    let all = |values: Values, word: &str, style: Style| -> Vec<Curve> {
        let own = sheets.iter().enumerate().map(|(i, sheet)| {
            let alone = if word.is_empty() && reference.is_some() { "this run" } else { word };
            let name = if sheets.len() == 1 { alone.to_owned() } else { format!("{} {word}", sheet.history.name) };
            Curve {
                name: name.trim().to_owned(),
                colour: colour(i),
                style,
                points: values(&sheet.history),
                factor: 1.0,
            }
        });
        let other = reference.map(|history| Curve {
            name: format!("{} {word}", history.name).trim().to_owned(),
            colour: 0,
            style: if style == Style::Line { style } else { Style::Dashes },
            points: &values(history)[..known(values(history))],
            factor: 1.0,
        });
        other.into_iter().chain(own).collect()
    };
    let single = sheets.len() == 1;
    let mut loss = all(|h| &h.loss, "train", Style::Line);
    let mut validation = all(|h| &h.val_loss, "validation", Style::Dots);
    if single {
        // beside the training's own colour
        validation.iter_mut().filter(|c| c.colour != 0).for_each(|c| c.colour = 2);
    }
    loss.append(&mut validation);
    let mut html = chart("Loss", "nats a token", &loss, Scale::Near);
    html += &chart("HellaSwag", "accuracy", &all(|h| &h.hellaswag, "", Style::Dots), Scale::Near);
    html += &chart("Gradient norm", "before clipping", &all(|h| &h.norm, "", Style::Line), Scale::Log);
    html += &chart("Learning rate", "", &all(|h| &h.lr, "", Style::Line), Scale::Zero);
    let mut speed = all(|h| &h.speed, "", Style::Line);
    speed.retain(|curve| curve.colour != 0);
    if single {
        speed.iter_mut().for_each(|curve| curve.name.clear());
    }
    html += &chart("Throughput", "tokens a second", &speed, Scale::Zero);
    let utilisation = sheets.iter().zip(&speed).filter_map(|(sheet, curve)| {
        Some(Curve { factor: 100.0 * sheet.utilisation_of_a_token_a_second()?, ..curve.clone() })
    });
    html + &chart("MFU", "% of the peak", &utilisation.collect::<Vec<_>>(), Scale::Zero)
}

fn colour(i: usize) -> usize {
    1 + i % 6
}

/// Samples and configuration.
fn details(sheet: &Sheet, named: bool) -> String {
    let mut html = String::new();
    let of = if named { format!(" of {}", escape(&sheet.history.name)) } else { String::new() };
    if let Some(((step, text), older)) = sheet.samples.split_last() {
        let _ = write!(html, "<h2>Sample{of} after step {}</h2><pre>{}</pre>", short(*step as f64), escape(text));
        for (step, text) in older.iter().rev() {
            let _ = write!(html, "<details><summary>after step {step}</summary><pre>{}</pre></details>", escape(text));
        }
    }
    if !sheet.config.is_empty() {
        let open = if named { "" } else { " open" };
        let _ = write!(
            html,
            "<h2>Configuration{of}</h2><details{open}><summary>config.toml</summary><pre>{}</pre></details>",
            escape(&sheet.config)
        );
    }
    html
}
