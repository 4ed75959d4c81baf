//! `wgpt plan`, `--batch auto` and `--recompute` through the command line.

use std::path::Path;

use super::{text_file, wgpt};

/// Cells of the table's row of a batch.
fn row(out: &str, batch: usize) -> Vec<f64> {
    let words = |line: &str| line.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>().ok();
    let found = out.lines().filter_map(words).find(|cells| cells.len() == 8 && cells[0] == batch as f64);
    found.unwrap_or_else(|| panic!("no row of batch {batch}:\n{out}"))
}

#[test]
fn plans_need_no_device() {
    let dir = tempfile::tempdir().expect("folder");
    let plan = |args: &[&str]| wgpt(dir.path(), &[&["plan"], args].concat());
    let out = plan(&["--model", "d12", "--precision", "f32"]).ends_with(0).out;
    let cells = row(&out, 4);
    // 124,475,904 parameters of four bytes, their gradients, two moments
    assert!(
        (cells[1] - 474.8).abs() < 0.2 && (cells[2] - 474.8).abs() < 0.2 && (cells[3] - 949.7).abs() < 0.2,
        "{out}"
    );
    assert!((cells[1..7].iter().sum::<f64>() - cells[7]).abs() < 0.5, "{out}");
    let totals = ["none", "gelu", "ln", "block"]
        .map(|level| row(&plan(&["--model", "d12", "--batch", "8", "--recompute", level]).ends_with(0).out, 8)[7]);
    assert!(totals.is_sorted_by(|a, b| a > b), "{totals:?}");
    let small = plan(&["--model", "d12", "--batch", "8", "--binding", "128MiB"]).ends_with(0).out;
    assert!(small.contains("bindings of 128.0 MiB"), "{small}");

    let out = plan(&["--model", "d12", "--memory", "24GiB", "--batch", "auto"]).ends_with(0).out;
    let largest: usize = out.split("GiB: ").nth(1).and_then(|text| text.trim().parse().ok()).expect("a batch");
    assert!(row(&out, largest)[7] <= 24.0 * 1024.0, "{out}");
    plan(&["--model", "d12", "--memory", "24GiB", "--batch", &largest.to_string()]).ends_with(0);
    plan(&["--model", "d12", "--memory", "24GiB", "--batch", &(largest + 1).to_string()]).ends_with(5);
    plan(&["--model", "d12", "--memory", "1GiB"]).ends_with(5);
    // without --memory nothing is too large
    plan(&["--model", "d84", "--batch", "64"]).ends_with(0);
    plan(&["--model", "d12", "--batch", "auto"]).ends_with(2);
    plan(&["--model", "d12", "--recompute", "all"]).ends_with(2);
    plan(&["--price-per-hour", "2"]).ends_with(2);
}

#[test]
fn plans_tell_hours_and_dollars() {
    let dir = tempfile::tempdir().expect("folder");
    let plan = |args: &[&str]| wgpt(dir.path(), &[&["plan", "--model", "d12", "--batch", "1"], args].concat());
    let out = plan(&["--tokens-per-second", "100000", "--tokens", "3.6e9", "--price-per-hour", "2"]).ends_with(0).out;
    assert!(out.contains(": 10.00 hours, 20.00 dollars"), "{out}");
    // 6 N + 6 L C T is 803.5 million operations a token
    let out = plan(&["--tflops", "80.35", "--steps", "1000", "--tokens-per-step", "360000"]).ends_with(0).out;
    assert!(out.contains(": 1.000 hours") && !out.contains("dollars"), "{out}");
    std::fs::create_dir(dir.path().join("run")).expect("folder");
    let lines = [50.0, 2e5, 1e5].map(|speed| format!("{{\"step\":1,\"tokens_per_s\":{speed}}}\n")).concat();
    std::fs::write(dir.path().join("run/metrics.jsonl"), lines).expect("written");
    let config = |layers: u32| {
        let shape = format!("positions = 1024\nvocab = 50257\nlayers = {layers}\nheads = 12\nchannels = 768\n");
        let text = format!("[model]\n{shape}[train]\ncontext = 1024\n");
        std::fs::write(dir.path().join("run/config.toml"), text).expect("written");
    };
    config(12);
    let out = plan(&["--like", "run", "--tokens", "3.6e8"]).ends_with(0).out;
    assert!(out.contains(": 1.000 hours"), "{out}");
    // twice the layers: 1,370.4 million operations a token, so a run at that speed does d12 1.7056 times as fast
    config(24);
    let out = plan(&["--like", "run", "--tokens", "6.14027e8"]).ends_with(0).out;
    assert!(out.contains(": 1.000 hours"), "{out}");
    plan(&["--like", "nowhere"]).ends_with(3);
}

/// The number before ` tokens/s` in a line of a prediction.
fn predicted(out: &str, card: &str) -> f64 {
    let line = out.lines().find(|line| line.contains(card) && line.contains("predicted")).expect("a prediction");
    let before = line.split(" tokens/s").next().and_then(|text| text.rsplit(' ').next());
    before.and_then(|number| number.replace(',', "").parse().ok()).unwrap_or_else(|| panic!("no number in {line}"))
}

#[test]
fn plans_predict_speeds_for_gpus_that_are_not_here() {
    let dir = tempfile::tempdir().expect("folder");
    let plan = |args: &[&str]| wgpt(dir.path(), &[&["plan", "--model", "d12"], args].concat());
    let out = plan(&["--gpu", "RTX 4090", "--batch", "16", "--kernels"]).ends_with(0).out;
    assert!(out.contains("fits into 23.0 GiB") && out.contains("limiter"), "{out}");
    let speed = predicted(&out, "NVIDIA RTX 4090 in f16");
    let hours = plan(&["--gpu", "rtx-4090", "--batch", "16", "--tokens", "1e10"]).ends_with(0).out;
    let hours = hours.lines().last().expect("a line");
    let told: f64 = hours.split("about ").nth(1).and_then(|text| text.split(' ').next()?.parse().ok()).expect("hours");
    assert!(hours.contains("prediction") && (told / (1e10 / speed / 3600.0) - 1.0).abs() < 0.01, "{hours}");
    // f32 has no matrix units, and a batch that does not fit is refused as with --memory
    let f32 = plan(&["--gpu", "rtx-4090", "--batch", "16", "--precision", "f32"]).ends_with(0).out;
    assert!(predicted(&f32, "in f32") < speed / 2.0, "{f32}");
    plan(&["--gpu", "rtx-4090", "--batch", "128"]).ends_with(5);
    // a table of batches, and all cards
    let out = plan(&["--gpu", "h100"]).ends_with(0).out;
    assert!(
        out.contains("ms per micro-step, predicted")
            && out.lines().any(|line| line.starts_with("batch 64: NVIDIA H100")),
        "{out}"
    );
    let all = ["--gpu", "all", "--batch", "64", "--tokens", "1e10", "--price-per-hour", "2"];
    let out = plan(&all).ends_with(0).out;
    let line = |card: &str| out.lines().find(|line| line.starts_with(card)).unwrap_or_else(|| panic!("{out}"));
    assert!(line("NVIDIA H100").ends_with("fits") && line("Apple M1").contains("f32"), "{out}");
    assert!(line("Apple M1").contains("does not fit: needs"), "{out}");
    // tokens a second, hours and dollars belong together
    let cells = line("NVIDIA RTX 4090").replace(',', "");
    let cells: Vec<f64> = cells.split_whitespace().filter_map(|cell| cell.parse().ok()).collect();
    let [_, _, speed, hours, dollars] = cells[..] else { panic!("{cells:?}") };
    assert!((hours * speed * 3600.0 / 1e10 - 1.0).abs() < 0.02 && (dollars / hours - 2.0).abs() < 0.02, "{cells:?}");
    for (wrong, code) in [
        (&["--gpu", "voodoo2"][..], 2),
        (&["--gpu", ""], 2),
        (&["--kernels"], 2),
        (&["--gpu", "h100", "--tflops", "1"], 2),
        (&["--gpu", "h100", "--machine-code", "nowhere.json"], 3),
    ] {
        plan(wrong).ends_with(code);
    }
    std::fs::write(dir.path().join("broken.json"), "[{\"gpu\": 1}]").expect("written");
    plan(&["--gpu", "h100", "--machine-code", "broken.json"]).ends_with(3);
}

fn train(dir: &Path, out: &str, more: &[&str]) -> super::Outcome {
    let flags = ["train", "--text", "text.txt", "--tokenizer", "bytes", "--layers", "2", "--heads", "2", "--channels"];
    let rest = ["32", "--context", "16", "--steps", "4", "--precision", "f32", "--out", out];
    wgpt(dir, &[&flags[..], &rest, more].concat())
}

#[test]
fn an_automatic_batch_fits_is_noted_and_used_again() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 60_000);
    let noted = |out: &str| -> usize {
        let config = std::fs::read_to_string(dir.join(out).join("config.toml")).expect("config.toml");
        let table: toml::Table = config.parse().expect("TOML");
        table["training"]["batch"].as_integer().expect("a number") as usize
    };
    train(dir, "a", &["--batch", "auto", "--memory", "8MiB"]).ends_with(0);
    let batch = noted("a");
    assert!(batch > 1, "{batch}");
    train(dir, "b", &["--batch", &(batch + 1).to_string(), "--memory", "8MiB"]).ends_with(5);
    // the same run whatever there is of memory now
    let again = train(dir, "a", &["--batch", "auto", "--memory", "16MiB"]).ends_with(0);
    assert!(again.out.contains("finished"), "{}", again.out);
    // steps of given tokens are whole micro-steps
    train(dir, "c", &["--batch", "auto", "--memory", "8MiB", "--tokens-per-step", "256"]).ends_with(0);
    assert!(noted("c") <= 16 && 16 % noted("c") == 0, "{}", noted("c"));
    train(dir, "d", &["--batch", "auto", "--memory", "300KiB"]).ends_with(5);
}

/// Every level trains with the same bits, and a run may resume at another level.
#[test]
fn recomputing_moves_no_bit_of_a_run() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    text_file(dir, "text.txt", 20_000);
    let losses = |out: &str| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(dir.join(out).join("metrics.jsonl")).expect("metrics");
        let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["loss"].clone();
        text.lines().map(line).collect()
    };
    train(dir, "none", &[]).ends_with(0);
    train(dir, "block", &["--recompute", "block"]).ends_with(0);
    assert_eq!(losses("none"), losses("block"));
    let again = train(dir, "none", &["--recompute", "gelu"]).ends_with(0);
    assert!(again.out.contains("finished"), "{}", again.out);
    train(dir, "none", &["--recompute", "much"]).ends_with(2);
}

/// The bytes of ZeRO-1 in f32, and on a card the efficiency.
#[test]
fn devices_are_planned_and_their_exchange_is_predicted() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    let plan = ["plan", "--model", "d12", "--batch", "16"];
    let one = wgpt(dir, &plan).ends_with(0).out;
    assert!(!one.contains("exchange"), "{one}");
    let eight = wgpt(dir, &[&plan[..], &["--devices", "8", "--link", "pcie5"]].concat()).ends_with(0).out;
    for says in
        ["devices  8, one rank each;", "474.8 MiB out of a device and 83", "52.8 GB/s out", "predicted, not measured"]
    {
        assert!(eight.contains(says), "{says}: {eight}");
    }
    assert!(!eight.contains("efficiency"), "{eight}");
    let card = [&plan[..], &["--gpu", "rtx-4090", "--devices", "2", "--tokens-per-step"]].concat();
    let predicted = wgpt(dir, &[&card[..], &["524288"]].concat()).ends_with(0).out;
    assert!(predicted.contains("efficiency 9"), "{predicted}");
    let number = |text: &str, before: &str| -> f64 {
        let (head, _) = text.split_once(before).unwrap_or_else(|| panic!("{before}: {text}"));
        head.split_whitespace().next_back().and_then(|word| word.replace(',', "").parse().ok()).expect("a number")
    };
    let more_by = " ms more by the exchange";
    // half of the gradients' bytes, and what they take
    let bf16 = wgpt(dir, &[&card[..], &["524288", "--wire", "bf16"]].concat()).ends_with(0).out;
    assert!(
        bf16.contains("gradients in bf16") && bf16.contains("356.2 MiB out of a device and 356.1 MiB in"),
        "{bf16}"
    );
    assert!(number(&bf16, more_by) < 0.8 * number(&predicted, more_by), "{bf16}");
    let ranks = wgpt(dir, &[&card[..], &["524288", "--emulate-ranks", "8"]].concat()).ends_with(0).out;
    assert!(ranks.contains("devices  2, 4 ranks each;") && ranks.contains("524,288 tokens of batch 16"), "{ranks}");
    // all cards, and of several batches one that divides the step
    let all = ["plan", "--model", "d12", "--batch", "16", "--gpu", "all", "--devices", "2"];
    let cards = wgpt(dir, &all).ends_with(0).out;
    assert!(cards.contains("tokens/s of all") && cards.contains("devices  2, one rank each;"), "{cards}");
    let table = ["plan", "--model", "d12", "--gpu", "h100", "--devices", "16", "--tokens-per-step", "524288"];
    let chosen = wgpt(dir, &table).ends_with(0).out;
    assert!(chosen.contains("tokens of batch 32"), "{chosen}");
    // machines: fewer of them too, by network and wire, and what would mend it
    let nodes = ["--gpu", "h100", "--devices", "8", "--link", "pcie5,100G", "--nodes"];
    let four = wgpt(dir, &[&plan[..], &nodes, &["4"]].concat()).ends_with(0).out;
    for says in [
        "devices  32, 8 on each of 4 machines, one rank each;",
        "100G: 11.25 GB/s between machines",
        "nodes  devices  batch  10G f32  10G bf16",
        "10G: below 90 % from 2 machines; on 4, --wire bf16 gives ",
        "1 machine: ",
    ] {
        assert!(four.contains(says), "{says}: {four}");
    }
    let rows: Vec<Vec<f64>> = four
        .lines()
        .map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<f64>>())
        .filter(|row| row.len() == 11)
        .collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), [1.0, 2.0, 4.0], "{four}");
    for row in &rows[1..] {
        // a faster network and fewer bytes help
        assert!(row[3] < row[5] && row[5] < row[7] && row[7] <= row[9] && row[3] <= row[4], "{row:?}");
    }
    for (flags, says) in [
        (&["--devices", "0"][..], "expected a number from 1 to 1024"),
        (
            &["--devices", "2", "--link", "usb"],
            "expected one of pcie4, pcie5, one of 10G, 25G, 100G, 200G, 400G, or both",
        ),
        (&["--devices", "2", "--link", "pcie5,pcie4"], "or both with a comma"),
        (&["--nodes", "2"], "--devices"),
        (&["--nodes", "300", "--devices", "8"], "2400 devices in all, expected at most 1024"),
        (&["--link", "pcie4"], "--devices"),
        (&["--gpu", "rtx-4090", "--devices", "2", "--tokens-per-step", "40000"], "a multiple of 32768"),
        (&["--devices", "2", "--tokens-per-step", "40960"], "try --batch 10 or --tokens-per-step 65536"),
        (&["--devices", "2", "--tokens-per-step", "1e-320"], "try --tokens-per-step 32768"),
        (&["--devices", "2", "--tokens-per-step", "1e300"], "at most 2^50"),
        (&["--devices", "4", "--emulate-ranks", "6"], "6 ranks on 4 devices, expected a multiple of 4; try 8"),
        (&["--wire", "bf16"], "--devices"),
    ] {
        let refused = wgpt(dir, &[&plan[..], flags].concat()).ends_with(2);
        assert!(refused.err.contains(says), "{flags:?}: {}", refused.err);
    }
}
