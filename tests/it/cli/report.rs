//! The files of a run that people read: `main.log`, TensorBoard's event files, `report.html`.

use std::fs;
use std::path::Path;

use super::bad_input::refused;
use super::{metrics, scalars, text_file, train, wgpt};

/// What llm.c's own notebook takes from a line of `main.log`.
fn logged(run: &Path) -> Vec<(usize, String, f64)> {
    let line =
        regex::Regex::new(r"^s:(\d+) (tel|eval|trl):(\d+\.\d{4})( lr:\d\.\d{6} norm:\d+\.\d\d)?$").expect("a pattern");
    let text = fs::read_to_string(run.join("main.log")).expect("main.log");
    let parse = |text: &str| {
        let found = line.captures(text).unwrap_or_else(|| panic!("not llm.c's form: {text}"));
        assert_eq!(found.get(4).is_some(), &found[2] == "trl", "{text}");
        (found[1].parse().expect("step"), found[2].to_owned(), found[3].parse().expect("a number"))
    };
    text.lines().map(parse).collect()
}

/// The CSV of a run or log in a page.
fn csv_of<'p>(page: &'p str, name: &str) -> &'p str {
    let data = page.split(&format!("<pre class=data data-name=\"{name}\"")).nth(1).expect("data");
    data.split_once('>').and_then(|(_, rest)| rest.split_once("</pre>")).expect("an element").0
}

#[test]
fn a_run_leaves_its_records() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    fs::write(
        dir.join("main.log"),
        "s:0 tel:11.0092\ns:0 trl:11.0091 lr:0.000001 norm:15.37\ns:4 trl:9.5 lr:0.0001 norm:1.00\n",
    )
    .expect("write");
    let flags = ["--steps", "6", "--val-every", "2", "--sample-every", "3", "--checkpoint-every", "3", "--out", "run"];
    let more = ["--compare", "main.log", "--peak-tflops", "0.5", "--price-per-hour", "3600"];
    let out = train(dir, &[&flags[..], &more].concat()).ends_with(0).out;
    let last = out.lines().find(|line| line.starts_with("step 6/6")).expect("the last step");
    for words in ["| ETA 0:00 | ", " so far | ", " % MFU | $"] {
        assert!(last.contains(words), "{last}");
    }
    let run = dir.join("run");
    let lines = metrics(&run);

    // TensorBoard's files have every value of the metrics
    let scalars = scalars(&run);
    for (name, key) in [("train/loss", "loss"), ("val/loss", "val_loss"), ("train/lr", "lr"), ("speed/ms", "ms")] {
        let there: Vec<(u64, f32)> = scalars.iter().filter(|s| s.1 == name).map(|s| (s.0, s.2)).collect();
        let here = lines.iter().filter_map(|m| Some((m["step"].as_u64()?, m[key].as_f64()? as f32)));
        assert_eq!(there, here.collect::<Vec<_>>(), "{name}");
    }

    // llm.c's log has them too, training steps counted from 0
    let mut expected = Vec::new();
    for m in &lines {
        let step = m["step"].as_u64().expect("step") as usize;
        expected.extend(m["loss"].as_f64().map(|loss| (step - 1, "trl".to_owned(), loss)));
        expected.extend(m["val_loss"].as_f64().map(|loss| (step, "tel".to_owned(), loss)));
    }
    let logged = logged(&run);
    assert_eq!(logged.len(), expected.len());
    for (a, b) in logged.iter().zip(&expected) {
        assert!((a.0, &a.1) == (b.0, &b.1) && (a.2 - b.2).abs() <= 5e-5, "{a:?}, expected {b:?}");
    }

    let page = fs::read_to_string(run.join("report.html")).expect("report.html");
    for words in [
        "<h1>run</h1>",
        "of 6",
        "Loss",
        "Gradient norm",
        "Learning rate",
        "Throughput",
        "MFU",
        "at $3600 per hour",
        "Sample",
    ] {
        assert!(page.contains(words), "expected `{words}`");
    }
    for curve in ["train", "validation", "main.log train", "main.log validation"] {
        assert!(page.contains(&format!("data-name=\"{curve}\"")), "{curve}");
    }
    assert!(page.contains("checkpoint-every = 3") && page.contains("software)"));
    for word in ["http", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(word), "`{word}` in a page that refers to no other file");
    }
    assert!(!page.contains("NaN"));
    // axes have names, and the validation before training is joined to no line
    for (x, y) in [("step", "loss (nats/token)"), ("step", "learning rate"), ("step", "tokens/s")] {
        assert!(page.contains(&format!("<b class=xname>{x}</b><b class=yname>{y}</b>")), "{x}, {y}");
    }
    let validation = page.split("<path ").find(|path| path.contains("data-name=\"validation\"")).expect("a curve");
    let joined = validation.split(" d=\"").nth(1).expect("a path").matches(['M', 'L']).count();
    assert_eq!(joined, lines.iter().filter(|m| m["val_loss"].is_number()).count() - 1, "{validation}");
    // the values that the script draws and saves
    let csv = csv_of(&page, "run");
    assert!(csv.starts_with("series,step,tokens,value\n"), "{csv}");
    let per_step =
        csv.lines().find(|line| line.starts_with("loss,1,")).expect("step 1").split(',').nth(2).expect("tokens");
    let per_step: u64 = per_step.parse().expect("tokens per step");
    for m in &lines {
        let step = m["step"].as_u64().expect("step");
        for series in ["loss", "val_loss", "grad_norm", "lr", "tokens_per_s"] {
            if let Some(value) = m[series].as_f64() {
                let row = format!("\n{series},{step},{},{}\n", step * per_step, value as f32);
                assert!(csv.contains(&row), "{row:?} in {csv}");
            }
        }
    }
    assert!(csv_of(&page, "main.log").contains("\nloss,1,,11.0091\n"));

    // a page that cannot be written ends nothing
    fs::remove_file(run.join("report.html")).expect("remove");
    fs::create_dir(run.join("report.html")).expect("folder");
    let config = fs::read_to_string(run.join("config.toml")).expect("config");
    assert!(config.contains("adapter = ") && config.contains("finished = true\n"), "{config}");
    fs::write(run.join("config.toml"), config.replace("finished = true\n", "")).expect("write");
    fs::remove_dir_all(run.join("checkpoints/step-00000006")).expect("the last checkpoint");
    let again = train(dir, &[&flags[..], &more].concat()).ends_with(0);
    assert!(again.out.contains("resumed  after step 3"), "{}", again.out);
    assert_eq!(again.err.matches("report.html").count(), 1, "{}", again.err);
    assert_eq!(metrics(&run).len(), 7);
    let parts = |all: &[(u64, String, f32)]| -> Vec<String> {
        all.iter().filter(|s| !s.1.starts_with("speed/")).map(|s| format!("{s:?}")).collect()
    };
    assert_eq!(parts(&super::scalars(&run)), parts(&scalars), "event files after a resume");
    assert_eq!(fs::read_dir(run.join("tb")).expect("tb").count(), 2);
}

#[test]
fn reports_of_runs_and_logs() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let line = |step: usize, loss: f64| {
        format!(
            "{{\"step\":{step},\"loss\":{loss},\"grad_norm\":1.5,\"lr\":0.001,\"ms\":10.0,\"tokens_per_s\":100.0}}\n"
        )
    };
    for (run, lowest) in [("a", 2.0), ("b", 3.0)] {
        fs::create_dir(dir.join(run)).expect("folder");
        let mut text: String = (1..=5000).map(|i| line(i, lowest + 5.0 / i as f64)).collect();
        // as a run at work leaves it
        text += "{\"step\":5001,\"lo";
        fs::write(dir.join(run).join("metrics.jsonl"), text).expect("write");
    }
    fs::write(dir.join("a/samples.txt"), "--- step 7 ---\n<script>alert(1)</script> \u{1b}[31m\n").expect("write");
    fs::write(dir.join("c.log"), "s:0 trl:11.0 lr:0.1 norm:1.0\ns:99 trl:4.0 lr:0.1 norm:nan\n").expect("write");
    wgpt(dir, &["report", "a"]).ends_with(0);
    let page = fs::read_to_string(dir.join("a/report.html")).expect("page");
    assert!(page.contains("<dd>5,000") && page.contains("2.0010") && page.contains("&lt;script&gt;alert"));
    assert!(!page.contains("<script>alert") && !page.contains('\u{1b}'));
    assert!(page.len() < 450_000, "{} bytes", page.len());
    // every curve has at most 2,000 points, and all of them as CSV
    let csv = csv_of(&page, "a");
    let rows = csv.lines().filter(|line| line.starts_with("loss,")).count();
    assert!((1500..=2000).contains(&rows), "{rows} rows");
    assert!(csv.contains("\nloss,1,,7\n") && csv.contains("\nloss,5000,,2.001\n"));
    wgpt(dir, &["report", "a", "b", "c.log", "--compare", "c.log", "--out", "all.html"]).ends_with(0);
    let page = fs::read_to_string(dir.join("all.html")).expect("page");
    for curve in ["a train", "b train", "c.log train"] {
        assert!(page.contains(&format!("data-name=\"{curve}\"")), "{curve}");
    }
    // one colour per run, whatever is drawn
    let curves: Vec<&str> = page.split("<path ").skip(1).filter_map(|path| path.split("/>").next()).collect();
    for (run, colour) in [("a", "c1"), ("b", "c2"), ("c.log", "c3")] {
        let paths: Vec<&str> =
            curves.iter().copied().filter(|path| path.contains(&format!("data-name=\"{run}"))).collect();
        let own = paths.iter().filter(|path| path.starts_with(&format!("class=\"{colour} "))).count();
        let reference = paths.iter().filter(|path| path.starts_with("class=\"c0 ")).count();
        assert!(own >= 3 && own + reference == paths.len() && (reference == 0 || run == "c.log"), "{run}: {paths:?}");
    }
    // again over its own page, but over nothing else
    wgpt(dir, &["report", "c.log", "--out", "all.html"]).ends_with(0);
    fs::write(dir.join("notes.txt"), "mine").expect("write");
    refused(wgpt(dir, &["report", "a", "--out", "notes.txt"]), 2, &["notes.txt", "something else"]);
    assert_eq!(fs::read_to_string(dir.join("notes.txt")).expect("notes"), "mine");
    fs::create_dir(dir.join("empty")).expect("folder");
    refused(wgpt(dir, &["report", "empty"]), 3, &["empty: holds no run", "metrics.jsonl"]);
    refused(wgpt(dir, &["report", "missing"]), 3, &["missing: no such file or folder"]);
    refused(wgpt(dir, &["report", "notes.txt"]), 3, &["notes.txt: has no line such as"]);
    refused(wgpt(dir, &["report", "a", "--compare", "missing"]), 3, &["missing: no such file or folder"]);
    refused(wgpt(dir, &["report", "a", "--price-per-hour", "-1"]), 2, &["--price-per-hour"]);
    refused(wgpt(dir, &["report", "a", "--out", "no/such/a.html"]), 6, &["no/such/a.html"]);
    refused(wgpt(dir, &["report"]), 2, &["needs RUN"]);
    text_file(dir, "text.txt", 4000);
    refused(train(dir, &["--compare", "missing.log", "--out", "run"]), 3, &["missing.log: no such file or folder"]);
    refused(train(dir, &["--peak-tflops", "much"]), 2, &["--peak-tflops", "or `measure`"]);
    assert!(!dir.join("run").exists());
}
