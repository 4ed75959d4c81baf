//! Conversion of `config.toml` files from versions that had no recipes.

use toml::{Table, Value};

use super::file::RECORD;

/// Returns whether a file is of such a version: it has a table `train`, which recipes do not have.
pub(super) fn is_old(file: &Table) -> bool {
    file.get("train").is_some_and(Value::is_table)
}

/// Removes a table from a file and returns it; empty if the file has none.
fn take(file: &mut Table, name: &str) -> Table {
    match file.remove(name) {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    }
}

/// Returns the same run in the present format: a recipe and a table of facts.
pub(super) fn converted(mut file: Table) -> Table {
    let [mut model, mut data, mut training, mut run] =
        ["model", "data", "train", "run"].map(|name| take(&mut file, name));
    let mut record = Table::new();
    for key in ["positions", "vocab", "layers", "heads", "channels"] {
        record.extend(model.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    model.remove("positions");
    if model.contains_key("init") {
        model.retain(|key, _| key == "init");
    }
    for key in ["finished", "adapter"] {
        record.extend(run.remove(key).map(|value| (key.to_owned(), value)));
    }
    data.remove("stories_bytes");
    for (was, is) in [("shards", "data"), ("validation", "val")] {
        let value = data.remove(was);
        data.extend(value.map(|value| (is.to_owned(), value)));
    }
    let shuffle = data.remove("shuffle").and_then(|value| value.as_bool()).unwrap_or(true);
    data.insert("no-shuffle".into(), Value::Boolean(!shuffle));
    let rows = training.remove("val_rows").and_then(|rows| rows.as_integer());
    let context = training.get("context").and_then(Value::as_integer);
    run.extend(
        rows.zip(context).map(|(rows, context)| ("val-limit".to_owned(), Value::Integer(rows.saturating_mul(context)))),
    );
    let every = training.remove("val_every");
    run.extend(every.map(|value| ("val-every".to_owned(), value)));
    let recompute = run.remove("recompute");
    training.extend(recompute.map(|value| ("recompute".to_owned(), value)));
    if run.get("keep").and_then(Value::as_integer) == Some(0) {
        run.remove("keep");
    }
    // settings that did not exist yet are empty
    run.retain(|_, value| value.as_str() != Some(""));
    training.retain(|_, value| value.as_str() != Some(""));
    let tables = [("data", data), ("model", model), ("training", training), ("run", run), (RECORD, record)];
    tables.into_iter().map(|(name, table)| (name.to_owned(), Value::Table(table))).collect()
}
