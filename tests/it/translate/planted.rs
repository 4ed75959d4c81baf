//! Planted faults: every check of this file's neighbours is shown a shader that it must refuse, and the same shader
//! without the fault.

use std::fmt::Write as _;

use wgpt::gpu::Kernel;

use super::dialects::{self, Checks, Form};
use super::{Text, frontends, rules, translate, validator};

fn kernel(source: String) -> Kernel {
    Kernel::probe("planted", "main", source)
}

/// What [`translate`] says against a kernel; empty if nothing.
fn faults(source: &str) -> String {
    translate(&kernel(source.to_owned())).err().unwrap_or_default().join("\n")
}

/// Fails unless `sound` passes and `broken` is refused with a message that contains all of `words`.
#[track_caller]
fn refuses(sound: &str, broken: &str, words: &[&str]) {
    assert_ne!(sound, broken, "the fault was not planted");
    assert_eq!(faults(sound), "", "the sound shader is refused:\n{sound}");
    let message = faults(broken);
    assert!(!message.is_empty(), "passes, expected a fault:\n{broken}");
    for word in words {
        assert!(message.contains(word), "expected `{word}` in:\n{message}");
    }
}

/// Reverses the words of a workgroup: immediates, a loop, workgroup memory and a barrier.
fn plain() -> String {
    "
struct P { n: u32, scale: f32 }
var<immediate> p: P;
@group(0) @binding(0) var<storage, read> inp: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
override WG: u32 = 64;
var<workgroup> shared_words: array<f32, 64>;
@compute @workgroup_size(WG)
fn main(@builtin(global_invocation_id) at: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
    var sum = 0.0;
    for (var i = 0u; i < p.n; i += 1u) { sum += inp[i] / f32(i / p.n + 1u); }
    shared_words[lane.x] = sum;
    workgroupBarrier();
    if (at.x < p.n) { out[at.x] = p.scale * shared_words[WG - 1u - lane.x]; }
}
"
    .into()
}

/// A product of two matrices of the given edge.
fn cooperative(edge: u32) -> String {
    format!(
        "
enable f16;
enable wgpu_cooperative_matrix;
alias MA = coop_mat{edge}x{edge}<f16, A>;
alias MB = coop_mat{edge}x{edge}<f16, B>;
alias MC = coop_mat{edge}x{edge}<f32, C>;
@group(0) @binding(0) var<storage, read> a: array<f16>;
@group(0) @binding(1) var<storage, read> b: array<f16>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>) {{
    let start = group.x * 64u;
    var c = MC();
    c = coopMultiplyAdd(coopLoadT<MA>(&a[start], 8u), coopLoadT<MB>(&b[start], 8u), c);
    let result = c;
    let at = start;
    let stride = 8u;
    coopStoreT(result, &out[at], stride);
}}
"
    )
}

/// A shader that adds up `count` buffers.
fn many_buffers(count: usize) -> String {
    let mut source = String::new();
    for i in 0..count - 1 {
        let _ = writeln!(source, "@group(0) @binding({i}) var<storage, read> inp{i}: array<f32>;");
    }
    let _ = writeln!(source, "@group(0) @binding({}) var<storage, read_write> out: array<f32>;", count - 1);
    let sum: Vec<String> = (0..count - 1).map(|i| format!("inp{i}[0]")).collect();
    let _ = writeln!(source, "@compute @workgroup_size(64) fn main() {{ out[0] = {}; }}", sum.join(" + "));
    source
}

#[test]
fn a_type_error_is_refused() {
    refuses(&plain(), &plain().replace("f32(i / p.n + 1u)", "(i / p.n + 1u)"), &["planted", "p.n"]);
}

#[test]
fn a_syntax_error_is_refused() {
    refuses(&plain(), &plain().replace("workgroupBarrier();", "workgroupBarrier(;"), &["does not parse"]);
}

#[test]
fn too_much_workgroup_memory_is_refused() {
    // 32 KiB is the most that is allowed
    let most = plain().replace("array<f32, 64>", "array<f32, 8192>");
    refuses(&most, &most.replace("8192", "8193"), &["32784 bytes of workgroup memory"]);
}

#[test]
fn workgroup_memory_sized_by_an_override_is_counted() {
    let sized = plain().replace("array<f32, 64>", "array<f32, WG>");
    let sound = Kernel { constants: vec![("WG", 8192.0)], ..kernel(sized) };
    assert_eq!(translate(&sound).err().unwrap_or_default(), Vec::<String>::new());
    let broken = Kernel { constants: vec![("WG", 8196.0)], ..sound };
    let message = translate(&broken).err().unwrap_or_default().join("\n");
    assert!(message.contains("32784 bytes of workgroup memory"), "{message}");
}

/// A constant that nobody reads would leave the text's own value in place.
#[test]
fn an_override_constant_that_the_text_lacks_is_refused() {
    let sound = Kernel { constants: vec![("WG", 64.0)], ..kernel(plain()) };
    assert_eq!(translate(&sound).err().unwrap_or_default(), Vec::<String>::new());
    let reflected = Kernel { constants: vec![("WGS", 64.0)], ..sound }.reflect();
    let message = reflected.expect_err("an unknown constant").to_string();
    assert!(message.contains("planted") && message.contains("`WGS`"), "{message}");
}

#[test]
fn thirty_buffers_are_refused() {
    refuses(&many_buffers(29), &many_buffers(30), &["30 buffers, Metal allows 29"]);
}

#[test]
fn what_not_every_adapter_has_must_be_claimed() {
    let half = plain().replace("var sum = 0.0;", "var sum = f32(f16(p.scale));");
    let claimed = format!("enable f16;\n{half}");
    refuses(&claimed, &half, &["planted"]);
    for (name, expression) in
        [("planted_subgroup.forward", "subgroupAdd(sum)"), ("planted.forward.pairs", "sum * f32(u64(p.n))")]
    {
        let source = plain().replace("shared_words[lane.x] = sum", &format!("shared_words[lane.x] = {expression}"));
        assert!(faults(&source).contains("is not valid"), "{}", faults(&source));
        let named = Kernel { name: name.into(), ..kernel(source) };
        assert_eq!(translate(&named).err().unwrap_or_default(), Vec::<String>::new());
    }
}

#[test]
fn sixteen_wide_matrices_are_kept_from_metal_and_dx12() -> Result<(), String> {
    let form = Form::new(&kernel(cooperative(16)))?;
    assert!(!rules::matrix_edges(&form).is_empty());
    assert!(!form.for_metal() && form.shader_models().is_empty());
    let form = Form::new(&kernel(cooperative(8)))?;
    assert_eq!(rules::matrix_edges(&form), Vec::<String>::new());
    assert!(form.for_metal() && form.shader_models().is_empty());
    Ok(())
}

#[test]
fn matrices_through_pointers_to_vectors_are_refused() {
    let broken = cooperative(8).replace("var<storage, read> a: array<f16>", "var<storage, read> a: array<vec4<f16>>");
    refuses(&cooperative(8), &broken, &["coopLoad through a pointer to Vector"]);
    let broken = cooperative(8).replace("read_write> out: array<f32>", "read_write> out: array<vec4<f32>>");
    refuses(&cooperative(8), &broken, &["coopStore through a pointer to Vector"]);
}

#[test]
fn arithmetic_on_matrices_is_refused() {
    for operator in ["c + c", "c - c", "c * 0.5", "2.0 * c"] {
        let broken = cooperative(8).replace("let result = c;", &format!("let result = {operator};"));
        refuses(&cooperative(8), &broken, &["Metal has no arithmetic on them"]);
    }
}

#[test]
fn arithmetic_on_matrices_in_a_helper_is_refused() {
    let broken = cooperative(8).replace("let result = c;", "let result = twice(c);")
        + "fn twice(m: MC) -> MC { return m + m; }\n";
    refuses(&cooperative(8), &broken, &["Metal has no arithmetic on them"]);
}

#[test]
fn matrices_of_integers_are_refused() {
    let broken = cooperative(8).replace("array<f16>", "array<u32>");
    refuses(&cooperative(8), &broken, &["coopLoad of Scalar", "Uint"]);
}

#[test]
fn mixed_matrix_operands_are_refused() {
    let broken = cooperative(8).replace("var<storage, read> b: array<f16>", "var<storage, read> b: array<f32>");
    refuses(&cooperative(8), &broken, &["coopMultiplyAdd of elements of [2, 4, 4] bytes"]);
}

#[test]
fn matrices_in_workgroup_memory_are_refused() {
    let broken =
        cooperative(8).replace("let result = c;", "kept = c;\n    let result = kept;") + "var<workgroup> kept: MC;\n";
    refuses(&cooperative(8), &broken, &["cooperative matrix in WorkGroup memory: `kept`"]);
}

/// A product of matrices beside words in workgroup memory, which `put(line)` is called with `line` of.
fn with_shared_words(put: &str, line: &str) -> String {
    let functions = format!(
        "var<workgroup> words: array<vec4<f32>, 64>;
fn line_of(n: u32, width: u32) -> u32 {{ return n / (width / 4u); }}
fn put(line: u32) {{ {put} }}
@compute"
    );
    let main = "fn main(@builtin(local_invocation_index) thread: u32, @builtin(workgroup_id) group: vec3<u32>) {";
    cooperative(8)
        .replace("@compute", &functions)
        .replace("fn main(@builtin(workgroup_id) group: vec3<u32>) {", &format!("{main}\n    put({line});"))
}

#[test]
fn an_index_into_workgroup_memory_from_a_division_by_no_power_of_two_is_refused() {
    let put = "words[line] = vec4(1.0);";
    let words = ["an index into workgroup memory comes from the division", "by no power of two"];
    let sound = with_shared_words(put, "thread / 4u");
    for line in ["thread / 6u", "thread % 6u", "line_of(thread, 24u)", "thread / group.y", "(thread / 3u) * 2u + 1u"] {
        refuses(&sound, &with_shared_words(put, line), &words);
    }
    for line in ["line_of(thread, 32u)", "(thread * 10923u) >> 16u"] {
        assert_eq!(faults(&with_shared_words(put, line)), "", "{line}");
    }
    // through a variable, and a load
    let loop_of = |by: &str| format!("for (var i = line{by}; i < 64u; i++) {{ words[i] = vec4(1.0); }}");
    refuses(&with_shared_words(&loop_of(""), "thread"), &with_shared_words(&loop_of(" / 12u"), "thread"), &words);
    let read = |by: &str| format!("words[0] = words[line{by}];");
    refuses(&with_shared_words(&read(""), "thread"), &with_shared_words(&read(" / 12u"), "thread"), &words);
    // without matrices nothing is known against it
    let plain = plain();
    assert_eq!(faults(&plain.replace("shared_words[lane.x]", "shared_words[lane.x / 6u]")), "");
}

#[test]
fn arrays_in_workgroup_memory_beside_matrices_take_whole_pieces_of_16_bytes() {
    let sound = with_shared_words("words[line] = vec4(1.0);", "thread");
    let odd = "var<workgroup> odd: array<f32, 7>;\nfn put(line: u32) { odd[0] = 1.0;";
    let broken = sound.replace("fn put(line: u32) {", odd);
    refuses(&broken.replace("f32, 7", "f32, 8"), &broken, &["an array of 28 bytes in workgroup memory"]);
}

/// naga 30 accepts this and panics while writing SPIR-V: wgpu would take the program down.
#[test]
fn a_panic_of_nagas_writer_is_a_fault() {
    let broken =
        cooperative(8).replace("coopStoreT(result, &out[at], stride);", "coopStoreT(c * 0.5, &out[at + 1u], stride);");
    refuses(&cooperative(8), &broken, &["naga panics"]);
}

/// The words of a shader and their environment.
fn words_of(source: String) -> Result<(Vec<u32>, &'static str), String> {
    let translated = translate(&kernel(source)).map_err(|faults| faults.join("\n"))?;
    let first = translated.texts.into_iter().find_map(|t| match t.text {
        Text::Spirv { words, environment } => Some((words, environment)),
        _ => None,
    });
    first.ok_or_else(|| "no SPIR-V".into())
}

/// A module that naga alone would let through: its first capability removed. The sound ones beside it are not blamed.
#[test]
fn spirv_val_refuses_a_broken_module() -> Result<(), String> {
    for source in [plain(), cooperative(8)] {
        let (words, environment) = words_of(source)?;
        let outcome = validator::spirv_val(&[("sound", &words, environment)]);
        if !outcome.ran {
            assert_eq!(outcome.faults, Vec::<String>::new());
            outcome.report("a planted fault of SPIR-V");
            return Ok(());
        }
        assert_eq!(outcome.faults, Vec::<String>::new());
        let broken: Vec<u32> = [&words[..5], &words[5 + (words[5] >> 16) as usize..]].concat();
        let mut more = words.clone();
        more[3] += 1; // another bound
        for modules in [
            &[("broken", broken.as_slice(), environment)][..],
            &[("another", &more, environment), ("broken", &broken, environment), ("sound", &words, environment)],
        ] {
            let outcome = validator::spirv_val(modules);
            assert_eq!(outcome.faults.len(), 1, "{}: {:?}", outcome.summary, outcome.faults);
            assert!(outcome.faults[0].starts_with("broken: "), "{}", outcome.faults[0]);
        }
    }
    Ok(())
}

#[test]
fn validators_are_told_apart_by_their_year_and_findings_by_their_file() {
    assert_eq!(validator::year("SPIRV-Tools v2023.1 unknown hash, 2023-01-17T00:00:00"), 2023);
    assert_eq!(validator::year("SPIRV-Tools v2026.4 unknown hash, 2026-10-02T11:54:22+00:00"), 2026);
    assert_eq!(validator::year("SPIRV-Tools of today"), u32::MAX);
    let text = "error: /tmp/x/0.spv:159: [VUID-1] wrong\n  %2 = OpVariable\n\nerror: /tmp/x/12.spv:0: wrong too\n";
    let found = validator::by_file(text, "/tmp/x");
    assert_eq!(found.keys().collect::<Vec<_>>(), [&0, &12]);
    assert!(found[&0].contains("VUID-1") && found[&0].contains("OpVariable") && !found[&0].contains("too"));
}

#[test]
fn hlsl_front_ends_refuse_a_broken_text() -> Result<(), String> {
    let form = Form::new(&kernel(plain()))?;
    for (model, name) in form.shader_models() {
        let (text, entry) = dialects::hlsl(&form, *model, Checks::On)?;
        let broken = text.replace("asfloat(", "asfloatt(");
        assert_ne!(text, broken, "the fault was not planted");
        for run in [frontends::slang, frontends::dxc] {
            let outcome = run(&[("sound", &text, &entry, name)]);
            if !outcome.ran {
                assert_eq!(outcome.faults, Vec::<String>::new());
                outcome.report("a planted fault of HLSL");
                continue;
            }
            assert_eq!(outcome.faults, Vec::<String>::new());
            let outcome = run(&[("broken", &broken, &entry, name)]);
            let expected = usize::from(*name == "6.2" || outcome.summary.starts_with("Slang"));
            assert_eq!(outcome.faults.len(), expected, "{}", outcome.summary);
            assert!(outcome.faults.iter().all(|f| f.contains("asfloatt")), "{:?}", outcome.faults);
        }
    }
    Ok(())
}
