//! Faults that the rules must find, and look-alikes that are none.

use super::{floors, operators, stems, tests, words};

#[test]
fn planted_faults_are_found() {
    for (path, text, faults) in [
        ("src/ops/bias.rs", "use crate::gpu::{Kernel, Pass};", 0),
        ("src/ops/bias.rs", "use crate::{error::Error, gpu::Gpu};", 1),
        ("src/ops/bias.rs", "use crate::model::{Config, params}; use crate::train as t; use crate::run::*;", 3),
        ("src/ops/matmul/mod.rs", "use super::group; use super::super::cli;", 1),
        ("src/ops/mod.rs", "fn f() -> super::train::X { println!(\"{}\", crate::model::f()) }", 2),
        ("src/ops/bias.rs", "// crate::model\nconst S: &str = \"crate::model\";", 0),
        ("src/ops/bias.rs", "use crate::cli;\n#[cfg(test)]\nmod tests { use crate::cli; }", 1),
        ("src/ops/bias_tests.rs", "use crate::reference::bias;", 0),
        ("src/infer/generator.rs", "use crate::measure::plan;", 1),
        ("src/reference/gpt2.rs", "use crate::model::Config; use super::bias;", 0),
        ("src/reference/bias.rs", "use crate::model::Config;", 1),
        ("src/cli/train.rs", "use wgpt::reference::gpt2; use wgpt::run;", 1),
        ("src/cases/bias.rs", "use crate::reference::bias; use crate::formats::hf;", 1),
        ("src/newfloor/x.rs", "", 1),
        ("src/main.rs", "use wgpt::cli;", 0),
        ("src/ops/attention.rs", "use super::{bias, group}; fn f() { crate::ops::gelu::forward() }", 2),
        ("src/ops/gradnorm.rs", "use super::{stepcontrol, gelu};", 1),
        ("src/ops/bias.rs", "fn f() { self::f(); super::bias::f() }", 0),
        ("src/model/forward.rs", "use crate::ops::bias;", 0),
        ("src/train/run.rs", "use wgpu as w;", 1),
        ("src/train/run.rs", "fn f(d: &wgpu::Device) {}\nfn g() { vec![ash::vk::X] }", 2),
        ("src/train/run.rs", "// not wgpu::Device\nconst S: &str = \"wgpu\";", 0),
        ("src/gpu/pass.rs", "use wgpu::Device; use ash::vk;", 1),
        ("src/gpu/vulkan.rs", "use ash::vk;", 0),
        ("src/gpu/pass.rs", "// the Attention kernel\nconst TOKENS: u8 = 1;\n// wgpt's own, gpt2's", 3),
        ("src/gpu/pass.rs", "// try --batch 4; this - or that -- 3\n// see `wgpt tune`", 2),
        ("src/model/config.rs", "const S: &str = \"--model: no token\";", 1),
        ("src/ops/bias.rs", "const GPT2: &str = \"--batch\";", 0),
    ] {
        let files = [("src/ops/bias.rs", ""), ("src/ops/gelu.rs", ""), (path, text)];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let found = [floors(&files), operators(&files), words(&files)].concat();
        assert_eq!(found.len(), faults, "{path}: {text}: {found:?}");
    }
}

#[test]
fn planted_tests_that_leave_something_out_in_silence_are_found() {
    for (path, text, faults) in [
        ("tests/it/eval.rs", "println!(\"not run: no f16\");", 1),
        ("tests/it/eval.rs", "say(&format!(\"isa: not run: {why}\"));", 1),
        ("tests/it/eval.rs", "not_run(\"answers\", \"no f16\"); assert!(text.contains(\"not run\"));", 0),
        ("src/run/lock.rs", "println!(\"not run\");\n#[cfg(test)]\nmod tests { }", 0),
        ("src/run/lock.rs", "#[cfg(test)]\nmod tests {\n eprintln!(\"not run: {why}\"); }", 1),
        ("src/run/lock_tests.rs", "print!(\"not run\");", 1),
        ("src/run/lock.rs", "/// ```\n/// f();\n/// ```", 1),
        ("src/run/lock.rs", "    /// ```text\n    /// f()\n    /// ```", 0),
    ] {
        assert_eq!(tests(&[(path.to_owned(), text.to_owned())]).len(), faults, "{path}: {text}");
    }
}

#[test]
fn planted_gaps_in_the_stems_are_found() {
    let gelu = ["shaders/gelu.wgsl", "src/ops/gelu.rs", "src/reference/gelu.rs", "src/cases/gelu.rs"];
    let matmul =
        ["src/ops/matmul/mod.rs", "src/ops/matmul/generate/a.rs", "src/reference/matmul.rs", "src/cases/matmul.rs"];
    let decides = ["shaders/stepcontrol.wgsl", "src/ops/stepcontrol.rs", "src/cases/stepcontrol.rs"];
    for (files, more, faults) in [
        (&gelu[..], &["shaders/shared/reduce.wgsl", "src/ops/mod.rs", "src/ops/matrix_units.rs"][..], 0),
        (&gelu[1..], &[], 1),
        (&gelu[..3], &[], 1),
        (&gelu[..2], &["src/cases/gelu.rs"], 1),
        (&[gelu[0]], &gelu[2..], 1),
        (&gelu, &["shaders/gelu_fast.wgsl"], 0),
        (&gelu, &["shaders/gelufast.wgsl", "shaders/_gelu.wgsl"], 6),
        (&matmul, &[], 0),
        (&matmul[..1], &matmul[2..], 1),
        (&decides, &[], 0),
        (&decides, &["src/reference/stepcontrol.rs"], 1),
    ] {
        let found = stems(&files.iter().chain(more).map(|path| (*path).to_owned()).collect());
        assert_eq!(found.len(), faults, "{files:?} {more:?}: {found:?}");
    }
}
