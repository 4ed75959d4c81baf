//! The page: figures, charts, samples, configuration and data of one run, or of several runs compared.

use std::fmt::Write;

use crate::files::visible::turns;
use crate::run::report::axis::Scale;
use crate::run::report::curves::{RunCurves, Series};
use crate::run::report::history::History;
use crate::run::report::plot::{Chart, Curve, LegendEntry, Style};
use crate::run::report::run_summary::RunSummary;
use crate::units;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// The most runs that the title names.
const MAX_NAMES_IN_TITLE: usize = 4;
/// Marks a file, in its first bytes, as a page that may be overwritten.
pub const MARK: &str = "<meta name=generator content=\"wgpt report\">";

/// Returns text for HTML. Nothing in it is markup, and control characters are replaced.
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
            c if c.is_control() || turns(c) => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Returns the whole page: one file, which refers to no other.
#[must_use]
pub fn page(runs: &[RunSummary], reference: Option<&History>) -> String {
    let histories: Vec<&History> = runs.iter().map(|run| &run.history).chain(reference).collect();
    let names = distinct_names(&histories);
    let own = &names[..runs.len()];
    let title = match own.len() {
        0..=MAX_NAMES_IN_TITLE => escape(&own.join(", ")),
        several => format!("Comparison of {several} runs"),
    };
    let mut html = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8>{MARK}<meta name=viewport content=\"width=device-width\"><title>\
         {title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
    );
    match runs {
        [one] => {
            let _ = write!(html, "<p class=about>{}</p>{}", escape(&one.about()), cards(one));
        }
        many => html += &table(many, own),
    }
    let curves = curves(runs, reference, names.clone());
    let _ = write!(html, "<div class=charts>{}</div>", charts(&curves, runs.len()));
    for (run, name) in runs.iter().zip(own) {
        html += &details(run, (runs.len() > 1).then_some(name));
    }
    html += "<h2>Data</h2>";
    for (i, curves) in curves.iter().enumerate() {
        let name = escape(&curves.name);
        let _ = write!(
            html,
            "<details><summary>{name} as CSV</summary><pre class=data data-name=\"{name}\" data-run={i}>{}</pre></details>",
            escape(&curves.csv())
        );
    }
    let _ = write!(html, "<script>{SCRIPT}</script></body></html>");
    html
}

/// Returns a name for each history: its short name, or its whole path if another one has the same.
fn distinct_names(histories: &[&History]) -> Vec<String> {
    let is_unique = |name: &str| histories.iter().filter(|other| other.name == name).count() == 1;
    let name = |history: &&History| if is_unique(&history.name) { history.name.clone() } else { history.path.clone() };
    histories.iter().map(name).collect()
}

/// Returns the figures of one run.
fn cards(run: &RunSummary) -> String {
    let mut html = String::from("<dl class=cards>");
    for (name, value, note) in run.figures() {
        let note = if note.is_empty() { note } else { format!("<small>{}</small>", escape(&note)) };
        let _ = write!(html, "<div><dt>{name}</dt><dd>{}{note}</dd></div>", escape(&value));
    }
    html + "</dl>"
}

/// Returns the figures of several runs, one row each.
fn table(runs: &[RunSummary], names: &[String]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    let figures: Vec<_> = runs.iter().map(RunSummary::figures).collect();
    for (name, ..) in figures.iter().flatten() {
        if !columns.contains(name) {
            columns.push(name);
        }
    }
    let mut html = String::from("<div class=scroll><table><tr><th>run</th>");
    columns.iter().for_each(|name| html += &format!("<th>{name}</th>"));
    for (name, figures) in names.iter().zip(&figures) {
        let _ = write!(html, "</tr><tr><td>{}</td>", escape(name));
        for column in &columns {
            let value = figures.iter().find(|(name, ..)| name == column).map_or("", |(_, value, _)| value);
            let _ = write!(html, "<td>{}</td>", escape(value));
        }
    }
    html + "</tr></table></div>"
}

/// Returns the curves of all runs, and after them those of the reference as far as the runs have come.
fn curves(runs: &[RunSummary], reference: Option<&History>, names: Vec<String>) -> Vec<RunCurves> {
    let mut all: Vec<RunCurves> = runs
        .iter()
        .map(|run| {
            let mfu = run.mfu_per_token_per_second().map(|part| 100.0 * part);
            RunCurves::new(&run.history, run.tokens_per_step(), u32::MAX, mfu)
        })
        .collect();
    if let Some(reference) = reference {
        let steps = runs.iter().map(|run| run.history.step as u64);
        // also as many tokens as the runs have seen, for that axis
        let tokens = runs.iter().filter_map(|run| Some(run.tokens_per_step()?.saturating_mul(run.history.step as u64)));
        let by_tokens = reference.tokens_per_step.filter(|each| *each > 0).map(|each| tokens.max().unwrap_or(0) / each);
        let last = steps.max().unwrap_or(0).max(by_tokens.unwrap_or(0));
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        all.push(RunCurves::new(reference, reference.tokens_per_step, last, None));
    }
    all.iter_mut().zip(names).for_each(|(curves, name)| curves.name = name);
    all
}

/// Returns all charts. The first `runs` of the curves are those of runs, the others those of references.
fn charts(curves: &[RunCurves], runs: usize) -> String {
    let several = runs > 1;
    let has_reference = curves.len() > runs;
    // curves of references are drawn first
    let order = || (runs..curves.len()).chain(0..runs);
    let of_series = |series: Series, word: &str, style: Style| -> Vec<Curve> {
        order()
            .map(|run| {
                let is_own = run < runs;
                let name = match (several || !is_own, word) {
                    (true, _) => format!("{} {word}", curves[run].name),
                    (false, "") if has_reference => "this run".to_owned(),
                    (false, word) => word.to_owned(),
                };
                let style = if style == Style::Measured && !is_own { Style::MeasuredReference } else { style };
                let name = name.trim().to_owned();
                Curve {
                    run,
                    series,
                    name,
                    colour: if is_own { run + 1 } else { 0 },
                    style,
                    points: curves[run].points(series),
                }
            })
            .filter(|curve| !curve.points.is_empty())
            .collect()
    };
    let mut loss = of_series(Series::Loss, "train", Style::Line);
    let mut validation = of_series(Series::ValLoss, "validation", Style::Measured);
    if !several {
        // another colour than that of the training loss
        validation.iter_mut().filter(|curve| curve.colour != 0).for_each(|curve| curve.colour = 2);
    }
    loss.append(&mut validation);
    let plain = |series: Series, style: Style| of_series(series, "", style);
    let all = [
        ("Loss", "loss (nats/token)", Scale::Near, loss),
        ("HellaSwag", "accuracy", Scale::Near, plain(Series::HellaSwag, Style::Measured)),
        ("Gradient norm", "norm before clipping", Scale::Log, plain(Series::GradNorm, Style::Line)),
        ("Learning rate", "learning rate", Scale::Zero, plain(Series::Lr, Style::Line)),
        ("Throughput", "tokens/s", Scale::Zero, plain(Series::TokensPerS, Style::Line)),
        ("MFU", "% of peak FLOP/s", Scale::Zero, plain(Series::Mfu, Style::Line)),
    ];
    let charts = all.into_iter().map(|(title, y_name, scale, drawn)| {
        let legend = if several { legend_of_runs(&drawn, curves) } else { legend(&drawn) };
        Chart { title, y_name, scale, legend, curves: drawn }.html()
    });
    charts.collect()
}

/// Returns the legend of one run, with a reference or without. A curve without a name needs none.
fn legend(drawn: &[Curve]) -> Vec<LegendEntry> {
    let (own, others): (Vec<&Curve>, Vec<&Curve>) = drawn.iter().partition(|curve| curve.colour != 0);
    let named = own.into_iter().chain(others).filter(|curve| !curve.name.is_empty());
    let entry = |c: &Curve| LegendEntry { name: c.name.clone(), colour: Some(c.colour), style: c.style };
    named.map(entry).collect()
}

/// Returns the legend of several runs: each run's colour, and the styles if there are two.
fn legend_of_runs(drawn: &[Curve], runs: &[RunCurves]) -> Vec<LegendEntry> {
    let of_run = |(i, run): (usize, &RunCurves)| {
        let colour = drawn.iter().find(|curve| curve.run == i)?.colour;
        Some(LegendEntry { name: run.name.clone(), colour: Some(colour), style: Style::Line })
    };
    let mut entries: Vec<LegendEntry> = runs.iter().enumerate().filter_map(of_run).collect();
    let has = |style: Style| drawn.iter().any(|curve| curve.colour != 0 && curve.style == style);
    if has(Style::Line) && has(Style::Measured) {
        let key = |name: &str, style| LegendEntry { name: name.to_owned(), colour: None, style };
        entries.extend([key("train", Style::Line), key("validation", Style::Measured)]);
    }
    entries
}

/// Returns samples and configuration, under the run's name if there are several runs.
fn details(run: &RunSummary, name: Option<&String>) -> String {
    let mut html = String::new();
    let of = name.map_or_else(String::new, |name| format!(" of {}", escape(name)));
    let after = |step: usize| format!("after step {}", units::count(step as u64));
    if let Some(((step, text), older)) = run.samples.split_last() {
        let _ = write!(html, "<h2>Sample{of} {}</h2><pre>{}</pre>", after(*step), escape(text));
        for (step, text) in older.iter().rev() {
            let (after, text) = (after(*step), escape(text));
            let _ = write!(html, "<details><summary>{after}</summary><pre>{text}</pre></details>");
        }
    }
    if !run.config.is_empty() {
        let open = if name.is_some() { "" } else { " open" };
        let _ = write!(
            html,
            "<h2>Configuration{of}</h2><details{open}><summary>config.toml</summary><pre>{}</pre></details>",
            escape(&run.config)
        );
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, loss: f32) -> RunSummary {
        let history = History {
            name: name.into(),
            path: format!("/all/{name}"),
            loss: vec![(1, loss), (100, loss / 2.0)],
            val_loss: vec![(0, 9.0), (100, loss / 2.0)],
            step: 100,
            ..History::default()
        };
        RunSummary { history, ..RunSummary::default() }
    }

    #[test]
    fn a_comparison_has_one_colour_per_run() {
        let runs: Vec<RunSummary> = (1..=12).map(|i| run(&format!("runs/{i}"), i as f32)).collect();
        let html = page(&runs, Some(&run("log", 3.0).history));
        for (i, run) in runs.iter().enumerate() {
            let class = if i < 8 { format!("\"c{}", i + 1) } else { format!("\"cx curve{}", "") };
            for series in ["train", "validation"] {
                let name = format!("data-name=\"{} {series}\"", run.history.name);
                let path = html.split("<path ").find(|path| path.contains(&name)).unwrap();
                assert!(path.starts_with(&format!("class={class}")), "{path}");
            }
            assert_eq!(html.matches(&format!("</i>{}</span>", run.history.name)).count(), 1);
        }
        let hue = |i: usize| format!("style=\"--h:{}\"", (i - 8) * 137 % 360);
        assert!((9..=12).all(|i| html.matches(&hue(i)).count() >= 3), "{html}");
        assert_eq!(html.matches("class=\"c0 curve").count(), 2);
    }

    #[test]
    fn runs_of_one_name_are_told_apart_by_their_paths() {
        let mut runs = [run("runs/1", 1.0), run("runs/1", 2.0), run("runs/2", 3.0)];
        runs[0].history.path = "/other/runs/1".into();
        assert!(page(&runs, None).contains("<h1>/other/runs/1, /all/runs/1, runs/2</h1>"));
    }

    #[test]
    fn hostile_names_and_samples_are_text() {
        let name = "</script></pre>\"'><img onerror=alert(1)>,\n=1\u{1b}[2J\u{202e}";
        let mut runs = [run(name, 1.0), run("b", 2.0)];
        runs[0].samples = vec![(1, "</pre><script>alert(1)</script>".into())];
        runs[0].config = "</pre><script>alert(2)</script>".into();
        for html in [page(&runs, Some(&run(name, 3.0).history)), page(&runs[..1], None)] {
            assert_eq!(html.matches("<script>").count(), 1);
            assert_eq!(html.matches("</script>").count(), 1);
            assert_eq!(html.matches("<pre").count(), html.matches("</pre>").count());
            for part in ["<img", "\u{1b}", "\u{202e}", "\"'>"] {
                assert!(!html.contains(part), "{part:?}");
            }
        }
    }

    #[test]
    fn data_are_in_the_page_as_csv() {
        let html = page(&[run("a", 4.0)], Some(&run("b", 6.0).history));
        let rows = "series,step,tokens,value\nloss,1,,4\nloss,100,,2\nval_loss,0,,9\nval_loss,100,,2\n</pre>";
        assert!(html.contains(&format!("<pre class=data data-name=\"a\" data-run=0>{rows}")), "{html}");
        assert!(html.contains("<pre class=data data-name=\"b\" data-run=1>series,step"), "{html}");
    }
}
