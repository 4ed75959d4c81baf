//! A measured step beside the predicted one.

use serde::Serialize;

use crate::measure::table::number;
use crate::measure::{Profile, Roofs, Table};

use crate::measure::predict::card::{self, Card};
use crate::measure::predict::code::Codes;

/// A rate or a time, predicted and measured.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Kernel, or what is measured.
    pub name: String,
    /// Predicted.
    pub predicted: f64,
    /// Measured.
    pub measured: f64,
    /// Measured over predicted.
    pub ratio: f64,
    /// The limit of the prediction.
    pub limiter: &'static str,
    /// The kernel whose machine code was taken instead, where it has none.
    pub nearest: Option<String>,
}

impl Row {
    fn new(name: impl Into<String>, predicted: f64, measured: f64, limiter: &'static str) -> Self {
        Self { name: name.into(), predicted, measured, ratio: measured / predicted, limiter, nearest: None }
    }
}

/// Kernels of a step and the adapter's rates beside what was predicted of a card.
#[derive(Debug, Clone, Serialize)]
pub struct Beside {
    /// The card whose prediction it is.
    pub card: String,
    /// Rates, in GB/s and TFLOP/s.
    pub rates: Vec<Row>,
    /// Milliseconds of each kernel in a step, by measured time.
    pub kernels: Vec<Row>,
    /// Kernels that are not predicted: of whose operator there is no machine code.
    pub unpredicted: Vec<String>,
    /// Milliseconds of a step: of all kernels that are predicted, clears and copies.
    pub step: Row,
}

/// Sets measured rates beside a card's.
#[must_use]
pub fn rates(card: &Card, roofs: &Roofs) -> Vec<Row> {
    let tera = |flops: f64| card.units * card.clock_ghz * flops / 1e3;
    let memory = card.memory_gb * card::constants().memory_share;
    let mut rows = vec![
        Row::new("copy, GB/s", memory, roofs.copy / 1e9, "memory"),
        Row::new("multiply-adds in f32, TFLOP/s", tera(card.fma_flops), roofs.fused_f32 / 1e12, "multiply-adds"),
    ];
    if let (Some(rate), Some(measured)) = (card.matrix_flops, roofs.matrix) {
        rows.push(Row::new("matrices from registers, TFLOP/s", tera(rate), measured / 1e12, "matrix"));
        // of 16x16: six are loaded for eight products
        let fed = card.workgroup_bytes * (8.0 * 8192.0) / (6.0 * 512.0);
        let limiter = if fed < rate { "workgroup memory" } else { "matrix" };
        let row = |measured| Row::new("and from workgroup memory, TFLOP/s", tera(rate.min(fed)), measured, limiter);
        rows.extend(roofs.matrix_fed.map(|measured| row(measured / 1e12)));
    }
    rows
}

impl Beside {
    /// Sets a profile beside the prediction for the very kernels that it ran.
    #[must_use]
    pub fn new(card: &Card, profile: &Profile, roofs: &Roofs) -> Self {
        let (predicted, unpredicted) = super::rows(card, Codes::committed(), profile.program());
        let row = |measured: super::super::profile::KernelRow| {
            let found = predicted.iter().find(|row| row.kernel == measured.name)?;
            let row = Row::new(measured.name, found.ms, measured.ms, found.limiter);
            Some(Row { nearest: found.nearest.clone(), ..row })
        };
        let kernels: Vec<Row> = profile.kernels(roofs).into_iter().filter_map(row).collect();
        let sum = |of: fn(&Row) -> f64| kernels.iter().map(of).sum::<f64>();
        let step = Row::new("all of these", sum(|row| row.predicted), sum(|row| row.measured), "");
        Self { card: card.name.clone(), rates: rates(card, roofs), kernels, unpredicted, step }
    }

    /// The tables, most measured time first.
    #[must_use]
    pub fn report(&self) -> String {
        let unpredicted = match self.unpredicted.len() {
            0 => String::new(),
            _ => format!("not predicted, for want of machine code: {}\n", self.unpredicted.join(", ")),
        };
        let foreign: Vec<String> = self
            .kernels
            .iter()
            .filter_map(|row| Some(format!("{} as {}\n", row.name, row.nearest.as_ref()?)))
            .collect();
        let foreign = match foreign.len() {
            0 => String::new(),
            _ => format!("predicted by the machine code of other kernels:\n{}", foreign.concat()),
        };
        format!(
            "beside the prediction for {}\n{}\n{}{foreign}{unpredicted}",
            self.card,
            table("<rate", "", &self.rates),
            table("<kernel", " ms", self.kernels.iter().chain([&self.step]))
        )
    }
}

/// Returns a table of rows, whose numbers are of a unit such as ` ms`.
#[must_use]
pub fn table<'r>(heading: &str, unit: &str, rows: impl IntoIterator<Item = &'r Row>) -> String {
    let (predicted, measured) = (format!("predicted{unit}"), format!("measured{unit}"));
    let mut table = Table::new(&[heading, &predicted, &measured, "measured/predicted", "<predicted limiter"]);
    for row in rows {
        let [predicted, measured, ratio] = [row.predicted, row.measured, row.ratio].map(number);
        table.row([row.name.clone(), predicted, measured, ratio, row.limiter.into()]);
    }
    table.to_string()
}
