//! Translates every kernel to every dialect, without a GPU: naga parses and validates WGSL as in wgpu, its writers
//! produce SPIR-V, MSL and HLSL with wgpu's options, and [`rules`] checks the rules of platforms that the machine
//! lacks.
//!
//! More front ends read the results where they are installed. Where they are not, that is recorded as not run:
//! - SPIR-V: `spirv-val` of 2025 or newer: the one that `SPIRV_VAL` names, else Debian forky's, which `tools/fetch` brings,
//!   else the one on PATH.
//! - HLSL: `dxc` on PATH or named by `DXC`; and Slang through `tools/check-hlsl.py`, run by `python3` or by the Python
//!   that `WGPT_SLANG_PYTHON` names, if that has the package `slangpy`.
//!
//! For MSL there is no compiler outside Apple's systems: only naga's success and [`rules`] are checked.

mod dialects;
mod frontends;
mod planted;
mod rules;
mod snapshot;
mod standalone;
mod traps;
mod validator;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dialects::{Checks, Form};
use rayon::prelude::*;
use wgpt::gpu::{Caps, Kernel, KernelId};

use crate::common::not_run::{not_run, say};

/// Returns the kernels that differ in more than their name.
fn kernels() -> Vec<Kernel> {
    let mut seen = HashSet::new();
    let identities = [wgpt::ops::all_kernels(), wgpt::ops::tried_kernels()].concat();
    let mut kernels: Vec<Kernel> = identities.iter().map(KernelId::kernel).collect();
    kernels.retain(|k| seen.insert((k.source.clone(), k.entry, format!("{:?}", k.constants))));
    kernels
}

/// One text in one dialect.
struct Translation {
    /// Kernel, dialect and options, for messages.
    name: String,
    text: Text,
}

enum Text {
    Spirv { words: Vec<u32>, environment: &'static str },
    Msl,
    Hlsl { text: String, entry: String, model: &'static str },
}

/// A kernel in all its dialects.
struct Translated {
    name: String,
    texts: Vec<Translation>,
    /// The platforms that are never given the kernel.
    lacks: Vec<&'static str>,
}

/// Translates a kernel to all its dialects, or returns everything that is wrong with it.
fn translate(kernel: &Kernel) -> Result<Translated, Vec<String>> {
    let form = Form::new(kernel).map_err(|e| vec![format!("{}: {e}", kernel.name)])?;
    let mut texts = Vec::new();
    let mut faults = Vec::new();
    let mut add = |dialect: String, write: &dyn Fn() -> Result<Text, String>| {
        let name = format!("{} {dialect}", kernel.name);
        // naga's writers panic on some of what its validator accepts
        match catch_unwind(AssertUnwindSafe(write)) {
            Ok(Ok(text)) => texts.push(Translation { name, text }),
            Ok(Err(e)) => faults.push(format!("{name}: {e}")),
            Err(panic) => faults.push(format!("{name}: naga panics: {}", message(panic.as_ref()))),
        }
    };
    for checks in [Checks::Off, Checks::On] {
        for (version, environment) in form.spirv_versions() {
            // as it is handed to Vulkan
            add(format!("spirv {}.{} checks {checks:?}", version.0, version.1), &|| {
                let checked = checks == Checks::On;
                let words = wgpt::gpu::spirv::write(&form.module, &form.info, form.entry, *version, checked)?;
                let words = wgpt::gpu::spirv::for_driver(kernel, &words)?;
                let traps = if checked { Vec::new() } else { traps::faults(&words) };
                if traps.is_empty() { Ok(Text::Spirv { words, environment }) } else { Err(traps.join("; ")) }
            });
        }
        if form.for_metal() {
            add(format!("msl checks {checks:?}"), &|| dialects::msl(&form, checks).map(|_| Text::Msl));
        }
        for (model, name) in form.shader_models() {
            add(format!("hlsl {name} checks {checks:?}"), &|| {
                let (text, entry) = dialects::hlsl(&form, *model, checks)?;
                Ok(Text::Hlsl { text, entry, model: name })
            });
        }
    }
    let mut broken = rules::everywhere(&form);
    let mut lacks = Vec::new();
    if form.for_metal() {
        broken.extend(rules::metal(&form));
    } else {
        lacks.push("Metal");
    }
    if form.shader_models().is_empty() {
        lacks.push("DX12");
    } else {
        broken.extend(rules::dx12(&form));
    }
    broken.sort();
    broken.dedup();
    faults.extend(broken.iter().map(|rule| format!("{}: {rule}", kernel.name)));
    if faults.is_empty() { Ok(Translated { name: kernel.name.clone(), texts, lacks }) } else { Err(faults) }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}

#[test]
fn every_kernel_translates() -> Result<(), String> {
    let kernels = kernels();
    let results: Vec<_> = kernels.par_iter().map(translate).collect();
    let faults: Vec<&str> = results.iter().filter_map(|r| r.as_ref().err()).flatten().map(String::as_str).collect();
    if !faults.is_empty() {
        return Err(format!("{} faults:\n{}", faults.len(), faults.join("\n")));
    }
    let done: Vec<Translated> = results.into_iter().filter_map(Result::ok).collect();
    let texts: Vec<&Translation> = done.iter().flat_map(|d| &d.texts).collect();
    let count = |is: fn(&Text) -> bool| texts.iter().filter(|t| is(&t.text)).count();
    assert!(kernels.len() >= 50, "{} kernels, expected those of a dozen operators", kernels.len());
    say(&format!(
        "translate: {} kernels, {} of them distinct: {} SPIR-V modules, {} MSL texts, {} HLSL texts",
        wgpt::ops::all_kernels().len(),
        kernels.len(),
        count(|t| matches!(t, Text::Spirv { .. })),
        count(|t| matches!(t, Text::Msl)),
        count(|t| matches!(t, Text::Hlsl { .. })),
    ));
    for platform in ["Metal", "DX12"] {
        let names: Vec<&str> = done.iter().filter(|d| d.lacks.contains(&platform)).map(|d| d.name.as_str()).collect();
        if !names.is_empty() {
            not_run(
                &format!("for {platform}: {}", names.join(" ")),
                "the platform lacks the kernel's cooperative matrices",
            );
        }
    }

    let spirv: Vec<_> = texts
        .iter()
        .filter_map(|t| match &t.text {
            Text::Spirv { words, environment } => Some((t.name.as_str(), words.as_slice(), *environment)),
            _ => None,
        })
        .collect();
    let hlsl: Vec<_> = texts
        .iter()
        .filter_map(|t| match &t.text {
            Text::Hlsl { text, entry, model } => Some((t.name.as_str(), text.as_str(), entry.as_str(), *model)),
            _ => None,
        })
        .collect();
    let mut faults = Vec::new();
    let [spirv_val, dxc, slang] = [validator::spirv_val(&spirv), frontends::dxc(&hlsl), frontends::slang(&hlsl)];
    for (what, outcome) in
        [("SPIR-V through spirv-val", spirv_val), ("HLSL through dxc", dxc), ("HLSL through Slang", slang)]
    {
        outcome.report(what);
        faults.extend(outcome.faults);
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} faults:\n{}", faults.len(), faults.join("\n"))) }
}

/// Kernels are made for what WebGPU promises everywhere, so no adapter may refuse one; those with cooperative matrices
/// for what every adapter has that has such matrices, and where those are no Metal's, with an edge of 16, for 48 KiB of
/// workgroup memory too.
#[test]
fn kernels_for_any_adapter_stay_within_webgpus_limits() {
    // features are claimed by the text; this is about sizes
    let features = Caps { f16: true, int64: true, subgroups: true, matrix_functions: true, ..Caps::webgpu_defaults() };
    let features = Caps { matrix_edges: vec![8, 16], ..features };
    let caps = features.clone();
    let large = Caps { max_workgroup_bytes: 32 << 10, max_invocations: 1024, ..features };
    let larger = Caps { max_workgroup_bytes: 48 << 10, ..large.clone() };
    let faults: Vec<String> = kernels()
        .par_iter()
        .filter_map(|k| {
            let caps = match k.uses_matrices() {
                true if k.source.contains("coop_mat16x16") => &larger,
                true => &large,
                false => &caps,
            };
            k.reflect().and_then(|r| r.check(&k.name, caps)).err()
        })
        .map(|e| e.to_string())
        .collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
