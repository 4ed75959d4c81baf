//! Comparison of a measured step with its prediction.

use serde::Serialize;

use crate::measure::table::number;
use crate::measure::{Profile, Roofs, Table};

use crate::measure::predict::card::{self, Card};
use crate::measure::predict::code::Codes;

/// A predicted and a measured rate or time.
#[derive(Debug, Clone, Serialize)]
pub struct ComparedRow {
    /// Name of the kernel or the rate.
    pub name: String,
    /// Predicted value.
    pub predicted: f64,
    /// Measured value.
    pub measured: f64,
    /// Measured value divided by the predicted one.
    pub ratio: f64,
    /// The limit of the prediction.
    pub limiter: &'static str,
    /// The kernel whose machine code was used if this kernel has none.
    pub nearest: Option<String>,
}

impl ComparedRow {
    fn new(name: impl Into<String>, predicted: f64, measured: f64, limiter: &'static str) -> Self {
        Self { name: name.into(), predicted, measured, ratio: measured / predicted, limiter, nearest: None }
    }
}

/// Measured kernels of a step and rates of an adapter, compared with the prediction for a card.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Name of the predicted card.
    pub card: String,
    /// Rates, in GB/s and TFLOP/s.
    pub rates: Vec<ComparedRow>,
    /// Milliseconds per step of each kernel, most measured time first.
    pub kernels: Vec<ComparedRow>,
    /// Kernels without a prediction, because there is no machine code of their operator.
    pub unpredicted: Vec<String>,
    /// Milliseconds per step of all predicted kernels, clears and copies.
    pub step: ComparedRow,
}

/// Compares measured rates with a card's.
#[must_use]
pub fn rates(card: &Card, roofs: &Roofs) -> Vec<ComparedRow> {
    let tera = |flops: f64| card.units * card.clock_ghz * flops / 1e3;
    let memory = card.memory_gb * card::constants().memory_share;
    let mut rows = vec![
        ComparedRow::new("copy, GB/s", memory, roofs.copy / 1e9, "memory"),
        ComparedRow::new(
            "multiply-adds in f32, TFLOP/s",
            tera(card.fma_flops),
            roofs.fused_f32 / 1e12,
            "multiply-adds",
        ),
    ];
    if let (Some(rate), Some(measured)) = (card.matrix_flops, roofs.matrix) {
        rows.push(ComparedRow::new("matrices from registers, TFLOP/s", tera(rate), measured / 1e12, "matrix"));
        // for matrices of 16x16: six loads for eight products
        let fed = card.workgroup_bytes * (8.0 * 8192.0) / (6.0 * 512.0);
        let limiter = if fed < rate { "workgroup memory" } else { "matrix" };
        let row =
            |measured| ComparedRow::new("and from workgroup memory, TFLOP/s", tera(rate.min(fed)), measured, limiter);
        rows.extend(roofs.matrix_fed.map(|measured| row(measured / 1e12)));
    }
    rows
}

impl Comparison {
    /// Compares a profile with the prediction for the kernels that it ran.
    #[must_use]
    pub fn new(card: &Card, profile: &Profile, roofs: &Roofs) -> Self {
        let (predicted, unpredicted) = super::rows(card, Codes::committed(), profile.program());
        let row = |measured: super::super::profile::KernelRow| {
            let found = predicted.iter().find(|row| row.kernel == measured.name)?;
            let row = ComparedRow::new(measured.name, found.ms, measured.ms, found.limiter);
            Some(ComparedRow { nearest: found.nearest.clone(), ..row })
        };
        let kernels: Vec<ComparedRow> = profile.kernels(roofs).into_iter().filter_map(row).collect();
        let sum = |of: fn(&ComparedRow) -> f64| kernels.iter().map(of).sum::<f64>();
        let step = ComparedRow::new("all of these", sum(|row| row.predicted), sum(|row| row.measured), "");
        Self { card: card.name.clone(), rates: rates(card, roofs), kernels, unpredicted, step }
    }

    /// Returns the tables, most measured time first.
    #[must_use]
    pub fn report(&self) -> String {
        let unpredicted = match self.unpredicted.len() {
            0 => String::new(),
            _ => format!("not predicted, no machine code: {}\n", self.unpredicted.join(", ")),
        };
        let foreign: Vec<String> = self
            .kernels
            .iter()
            .filter_map(|row| Some(format!("{} as {}\n", row.name, row.nearest.as_ref()?)))
            .collect();
        let foreign = match foreign.len() {
            0 => String::new(),
            _ => format!("without machine code of their own, predicted:\n{}", foreign.concat()),
        };
        format!(
            "compared with the prediction for {}\n{}\n{}{foreign}{unpredicted}",
            self.card,
            table("<rate", "", &self.rates),
            table("<kernel", " ms", self.kernels.iter().chain([&self.step]))
        )
    }
}

/// Returns a table of rows. `unit` is appended to the headings of numbers: ` ms`.
#[must_use]
pub fn table<'r>(heading: &str, unit: &str, rows: impl IntoIterator<Item = &'r ComparedRow>) -> String {
    let (predicted, measured) = (format!("predicted{unit}"), format!("measured{unit}"));
    let mut table = Table::new(&[heading, &predicted, &measured, "measured/predicted", "<predicted limiter"]);
    for row in rows {
        let [predicted, measured, ratio] = [row.predicted, row.measured, row.ratio].map(number);
        table.row([row.name.clone(), predicted, measured, ratio, row.limiter.into()]);
    }
    table.to_string()
}
