//! Every check finds a planted fault, and nothing else.

use std::collections::BTreeSet;

use super::budgets::Table;
use super::rules::{self, Row};

const KERNELS: [&str; 4] = [
    "adamw.forward",
    "attention_coop.forward.hs64.128x32.4x1.e16",
    "matmul_coop.forward.128x128x32.2x4.e16.bias_gelu.wide",
    "matmul_tiled.forward.128x128x8.8x8",
];

/// Kernels without a fault: three of a step in f16, one of f32; the same on a GPU that shows statistics alone.
fn sound() -> Vec<Row> {
    let widths = |narrow: u64, wide: u64| format!("{{\"16\":0,\"32\":{narrow},\"64\":0,\"128\":{wide}}}");
    let mut lines = Vec::new();
    for kernel in KERNELS {
        let narrow = if kernel.starts_with("matmul_coop") { 0 } else { 4 };
        let head = |gpu: &str| {
            format!(
                "{{\"gpu\":\"{gpu}\",\"kernel\":\"{kernel}\",\"registers\":96,\"spills\":0,\"warps\":16,\"instructions\":1000"
            )
        };
        let counts = "\"moves\":5,\"matrix\":32,\"fma\":72,\"barriers\":2";
        lines.push(format!(
            "{},{counts},\"global\":{},\"workgroup\":{},\"loop\":{{\"instructions\":100,{counts},\"global\":{},\
             \"workgroup\":{}}}}}",
            head("ampere"),
            widths(8, 8),
            widths(0, 8),
            widths(narrow, 4),
            widths(0, 4)
        ));
        lines.push(format!(
            "{},\"moves\":null,\"matrix\":null,\"fma\":null,\"barriers\":null,\"global\":null,\"workgroup\":null,\"loop\":null}}",
            head("apple-m1")
        ));
    }
    rules::read(&format!("[{}]", lines.join(","))).expect("sound JSON")
}

/// All faults of rows, under the budgets that the sound ones need.
fn faults(rows: &[Row]) -> Vec<String> {
    let mut table = Table::read("").expect("an empty table");
    table.bless(&sound(), "1");
    let table = Table::read(&table.text()).expect("the text of a table");
    let of_f16: BTreeSet<String> = KERNELS[..3].iter().map(|k| (*k).to_owned()).collect();
    let mut faults = table.check(rows, "1");
    faults.extend(rules::check(rows));
    faults.extend(rules::check_products(rows));
    faults.extend(rules::check_step("ampere", rows, &of_f16, 10));
    faults
}

#[test]
fn sound_kernels_have_no_fault() {
    assert_eq!(faults(&sound()), Vec::<String>::new());
}

#[test]
fn every_kind_of_fault_is_found() {
    let attention = 2;
    let matmul = 4;
    let tiled = 6;
    let apple_matmul = 5;
    type Plant = fn(&mut Row);
    let cases: [(usize, Plant, &[&str]); 20] = [
        (attention, |r| r.instructions += 1, &["instructions: expected at most 1000, found 1001"]),
        (tiled, |r| r.registers = 104, &["registers: expected at most 96, found 104"]),
        (tiled, |r| r.warps = 15, &["warps: expected at least 16, found 15"]),
        // the table's own budget and the rule
        (tiled, |r| r.spills = 1, &["spills: expected at most 0, found 1", "spills: expected at most 0, found 1"]),
        (apple_matmul, |r| r.spills = 2, &["spills: expected at most 0, found 2"]),
        (apple_matmul, |r| r.instructions = 1200, &["instructions: expected at most 1000, found 1200"]),
        (
            matmul,
            |r| r.code.as_mut().unwrap().global.bits32 = 9,
            &["32-bit accesses to buffers: expected at most 8, found 9"],
        ),
        (
            matmul,
            |r| r.code.as_mut().unwrap().global.bits16 = 1,
            &["16-bit accesses to buffers: expected at most 0, found 1"],
        ),
        (
            attention,
            |r| r.code.as_mut().unwrap().global.bits16 = 3,
            &["16-bit accesses to buffers: expected at most 0, found 3"],
        ),
        (
            matmul,
            |r| r.code.as_mut().unwrap().main_loop.global.bits64 = 2,
            &["less than 16 bytes in the main loop: expected at most 0, found 2"],
        ),
        (
            matmul,
            |r| r.code.as_mut().unwrap().main_loop.global.bits32 = 1,
            &["less than 16 bytes in the main loop: expected at most 0, found 1"],
        ),
        (
            attention,
            |r| r.code.as_mut().unwrap().main_loop.global.bits64 = 1,
            &["less than 16 bytes in the main loop: expected at most 0, found 1"],
        ),
        (attention, |r| r.code.as_mut().unwrap().main_loop.global.bits128 = 0, &["expected some, found 0"]),
        (
            matmul,
            |r| r.code.as_mut().unwrap().main_loop.instructions = 108,
            &["instructions a product of matrices: expected at most 3.2, found 3.22"],
        ),
        (
            matmul,
            |r| r.registers = 129,
            &["registers: expected at most 96, found 129", "for two workgroups an SM: expected at most 128, found 129"],
        ),
        (
            matmul,
            |r| r.code.as_mut().unwrap().barriers = 5,
            &["barriers outside the main loop: expected at most 2, found 3"],
        ),
        (
            matmul,
            |r| r.code.as_mut().unwrap().main_loop.workgroup.bits16 = 1,
            &["16-bit accesses to workgroup memory in the main loop: expected at most 0, found 1"],
        ),
        (
            matmul,
            |r| r.instructions = 1575,
            &[
                "instructions: expected at most 1000, found 1575",
                "instructions outside the main loop: expected at most 1472, found 1475",
                "bias_gelu: instructions of 1 kernels: expected at most 1550, found 1575",
            ],
        ),
        (tiled, |r| r.code.as_mut().unwrap().main_loop.fma = 69, &["expected 70 %, found 69 of 100"]),
        (
            attention,
            |r| r.instructions = 21_501,
            &[
                "instructions: expected at most 1000, found 21501",
                "a d12 step in f16: instructions of 3 kernels: expected at most 23500, found 23501",
            ],
        ),
    ];
    for (at, plant, expected) in cases {
        let mut rows = sound();
        plant(&mut rows[at]);
        let faults = faults(&rows);
        assert_eq!(faults.len(), expected.len(), "{expected:?}: {faults:?}");
        for (fault, text) in faults.iter().zip(expected) {
            assert!(fault.contains(text), "{text}: {fault}");
            assert!(fault.starts_with(&rows[at].gpu), "{fault}");
        }
    }
}

/// Parts that keep the name of the kernel that they were count together; f32's do not count.
#[test]
fn parts_of_a_split_kernel_count_together() {
    let mut rows = sound();
    let mut part = rows[4].clone();
    rows[4].instructions = 1300;
    part.instructions = 1300;
    part.kernel = "matmul_coop.bias_gelu_rest.wide".into();
    let names: BTreeSet<String> = [rows[4].kernel.clone(), part.kernel.clone()].into();
    rows.push(part);
    let faults = rules::check_step("ampere", &rows, &names, 10);
    assert_eq!(faults, ["ampere: bias_gelu: instructions of 2 kernels: expected at most 1550, found 2600"]);
}

#[test]
fn a_kernel_without_a_line_and_a_line_without_a_kernel_are_faults() {
    let mut rows = sound();
    rows[0].kernel = "adamw.another".into();
    let faults = faults(&rows);
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults[0].starts_with("ampere: adamw.another: a kernel without a line"), "{faults:?}");
    assert!(faults[1].starts_with("ampere: adamw.forward: not compiled"), "{faults:?}");
}

#[test]
fn blessing_takes_the_better_numbers_and_another_compiler_a_tenth_more() {
    let mut table = Table::read("").expect("an empty table");
    table.bless(&sound(), "1");
    let before = table.clone();
    let mut rows = sound();
    for row in &mut rows {
        (row.instructions, row.registers, row.warps) = (1100, 90, 15);
    }
    assert_eq!(table.check(&rows, "1").len(), 16);
    assert!(table.check(&rows, "2").is_empty(), "{:?}", table.check(&rows, "2"));
    table.bless(&rows, "2");
    assert_eq!(table.mesa, "2");
    for (key, budget) in &table.lines {
        let old = &before.lines[key];
        assert_eq!((budget.instructions, budget.registers, budget.warps), (old.instructions, 90, old.warps));
    }
    let text = table.text();
    assert!(Table::read(&text.replace(" 1000 ", " many ")).is_err());
    assert!(Table::read(&format!("{text}{}", text.lines().last().expect("a line"))).is_err());
}

#[test]
fn json_without_a_key_is_refused() {
    for broken in [
        "{}",
        "[{}]",
        "[{\"gpu\":\"ampere\",\"kernel\":\"a\",\"registers\":1,\"spills\":0,\"warps\":1,\"instructions\":1}]",
    ] {
        assert!(rules::read(broken).is_err(), "{broken}");
    }
}
