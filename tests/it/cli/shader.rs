//! `wgpt shader` through the command line.

use super::wgpt;

#[test]
fn a_kernel_is_printed_by_its_name_or_the_beginning_of_it() {
    let dir = tempfile::tempdir().expect("folder");
    let shader = |args: &[&str]| wgpt(dir.path(), &[&["shader"], args].concat());
    // this adapter's, which a software adapter and a GPU get with other sizes of workgroups
    let out = shader(&["residual.forward"]).ends_with(0).out;
    assert!(out.starts_with("// residual.forward: entry point forward, WORKGROUP = "), "{out}");
    assert!(!out.contains("join-shader"), "{out}");
    assert!(out.contains("fn forward(") && !out.contains("cannot run it"), "{out}");
    let names = shader(&[]).ends_with(0).out;
    assert!(names.lines().count() > 100 && names.lines().any(|name| name == "residual.forward"), "{names}");
    // several begin so: they are listed; one does: it is printed
    let listed = shader(&["stepcontrol"]).ends_with(0).out;
    assert_eq!(listed, "stepcontrol.accumulate\nstepcontrol.decide\n");
    let decide = shader(&["stepcontrol.d"]).ends_with(0).out;
    assert!(decide.starts_with("// stepcontrol.decide: entry point decide"), "{decide}");
}

#[test]
fn kernels_of_gpus_that_are_not_here_are_printed_too() {
    let dir = tempfile::tempdir().expect("folder");
    let shader = |args: &[&str]| wgpt(dir.path(), &[&["shader"], args].concat());
    let coop = "attention_coop.forward.hs64.128x32.4x1.e16";
    let out = shader(&[coop, "--gpu", "h100"]).ends_with(0).out;
    assert!(out.contains("subgroups of 32") && out.contains("// for NVIDIA H100") && !out.contains("cannot"), "{out}");
    // a card without f16 or matrix units of that edge does not get it
    let error = shader(&[coop, "--gpu", "apple-m1"]).ends_with(2).err;
    assert!(error.contains("apple-m1 has no kernel") && error.contains("--all"), "{error}");
    let all = shader(&[coop, "--all"]).ends_with(0).out;
    assert!(all.contains("coopMultiplyAdd"), "{all}");
}

#[test]
fn a_name_that_no_kernel_has_is_answered_with_the_nearest() {
    let dir = tempfile::tempdir().expect("folder");
    let shader = |args: &[&str]| wgpt(dir.path(), &[&["shader"], args].concat());
    let error = shader(&["residul.forward"]).ends_with(2).err;
    assert!(error.starts_with("error: shader: no kernel's name begins with `residul.forward`"), "{error}");
    assert!(error.contains("the nearest are residual.forward, "), "{error}");
    let error = shader(&["Layernorm.forward"]).ends_with(2).err;
    assert!(error.contains("the nearest are layernorm.forward, "), "{error}");
    let error = shader(&["\u{1b}[31mzzz\n"]).ends_with(2).err;
    assert!(error.contains("`\\u{1b}[31mzzz\\n`; `wgpt shader` lists all") && error.lines().count() == 1, "{error}");
    shader(&["residual.forward", "--gpu", "h1000"]).ends_with(2);
    shader(&["residual.forward", "--gpu", "h100", "--device", "0"]).ends_with(2);
    shader(&["residual.forward", "--gpu", "h100", "--all"]).ends_with(2);
}
