use spirv::{Decoration, MemoryAccess, MemorySemantics, Op, StorageClass};

use super::module::{Instruction, Module, Type};
use super::*;

fn modules(text: &str) -> (Module, Module) {
    let before = written(&Kernel::probe("probe", "main", text.into()), (1, 5), false).expect("writes");
    let after = repair(&before).expect("repairs");
    assert_eq!(repair(&after).as_ref(), Ok(&after), "a second time changes nothing");
    (Module::new(&before), Module::new(&after))
}

fn count(module: &Module, is: impl Fn(&Instruction) -> bool) -> usize {
    module.list.iter().filter(|i| is(i)).count()
}

const MATRICES: &str = "
enable f16;
enable wgpu_cooperative_matrix;
var<workgroup> tile: array<f16, 64>;
@group(0) @binding(0) var<storage, read> inp: array<f16>;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
@compute @workgroup_size(32)
fn main(@builtin(local_invocation_index) lane: u32) {
    tile[lane] = inp[lane];
    tile[lane + 32u] = inp[lane + 32u];
    workgroupBarrier();
    var c = coop_mat8x8<f32, C>();
    let a = coopLoadT<coop_mat8x8<f16, A>>(&tile[0], 8u);
    let b = coopLoadT<coop_mat8x8<f16, B>>(&inp[0], 8u);
    c = coopMultiplyAdd(a, b, c);
    let result = c;
    coopStoreT(result, &out[0], 8u);
}";

#[test]
fn every_shared_access_and_barrier_of_matrix_kernels_is_marked_and_nothing_else_changes() {
    let (before, after) = modules(MATRICES);
    let marked = |i: &Instruction| {
        let memory = match i.op() {
            Op::Load => 3,
            Op::Store => 2,
            Op::CooperativeMatrixLoadKHR => 5,
            Op::CooperativeMatrixStoreKHR => 4,
            _ => return false,
        };
        i.operands.get(memory).is_some_and(|mask| mask & MemoryAccess::NON_PRIVATE_POINTER.bits() != 0)
    };
    assert_eq!(count(&before, marked), 0);
    // two loads and two stores that fill the tile, two cooperative loads, one cooperative store
    assert_eq!(count(&after, marked), 7);
    let both = (MemorySemantics::MAKE_AVAILABLE | MemorySemantics::MAKE_VISIBLE).bits();
    let barriers: Vec<u32> = after.all(Op::ControlBarrier).map(|o| o[2]).collect();
    assert_eq!(barriers.len(), 1);
    assert!(barriers.iter().all(|id| after.constants()[id].1 & both == both));
    assert_eq!((strides(&before), strides(&after)), (3, 2));
    assert_eq!(before.list.len(), after.list.len(), "one constant more, one decoration less");
}

#[test]
fn a_subgroup_barrier_orders_workgroup_memory_and_for_cpu_drivers_is_a_memory_barrier() {
    let (_, after) = modules(&MATRICES.replace("workgroupBarrier();", "subgroupBarrier();"));
    let semantics = |o: &[u32], at: usize| after.constants()[&o[at]].1;
    let barriers: Vec<u32> = after.all(Op::ControlBarrier).map(|o| semantics(o, 2)).collect();
    let ordered = (MemorySemantics::WORKGROUP_MEMORY | MemorySemantics::MAKE_VISIBLE).bits();
    assert!(barriers.len() == 1 && barriers[0] & ordered == ordered, "{barriers:?}");
    let vectors = Module::new(&in_lockstep(&after.words()));
    assert_eq!([Op::ControlBarrier, Op::MemoryBarrier].map(|op| vectors.all(op).count()), [0, 1]);
    let of_workgroup = Module::new(&in_lockstep(&modules(MATRICES).1.words()));
    assert_eq!(of_workgroup.all(Op::ControlBarrier).count(), 1);
}

#[test]
fn a_matrix_kernel_with_a_barrier_of_the_whole_device_is_refused() {
    let text = MATRICES.replace("workgroupBarrier();", "storageBarrier();");
    let words = written(&Kernel::probe("probe", "main", text), (1, 5), false).expect("writes");
    assert!(repair(&words).expect_err("refused").contains("expected workgroupBarrier"));
}

const FUNCTIONS: &str = "
enable f16;
enable wgpu_cooperative_matrix;
alias MatrixC = coop_mat8x8<f32, C>;
alias MatrixH = coop_mat8x8<f16, C>;
@group(0) @binding(0) var<storage, read> inp: array<f32>;
@group(0) @binding(1) var<storage, read_write> out: array<f16>;
fn to_half(m: MatrixC) -> MatrixH { return MatrixH(); }
fn scaled(x: f32, y: f32) -> f32 { return x * y + 1.0; }
fn each_scaled(m: MatrixC, other: MatrixC) -> MatrixC { _ = scaled(0.0, 0.0); return m; }
@compute @workgroup_size(32)
fn main() {
    let c = coopLoadT<MatrixC>(&inp[0], 8u);
    let result = to_half(each_scaled(c, c));
    coopStoreT(result, &out[0], 8u);
}";

#[test]
fn functions_of_matrices_convert_and_call_for_every_element() {
    let (before, after) = modules(FUNCTIONS);
    let written = [Op::FConvert, Op::CooperativeMatrixLengthKHR, Op::LoopMerge];
    assert_eq!(written.map(|op| before.all(op).count()), [0, 0, 0]);
    assert_eq!(written.map(|op| after.all(op).count()), [1, 1, 1]);
    // two calls from the entry, one from the loop
    assert_eq!(after.all(Op::FunctionCall).count(), 3);
    assert_eq!(after.all(Op::ULessThan).count(), 1);
}

#[test]
fn other_functions_of_matrices_are_refused() {
    for (from, to) in [
        ("_ = scaled(0.0, 0.0); return m;", "return m;"),
        ("_ = scaled(0.0, 0.0); return m;", "_ = scaled(0.0, 0.0); _ = scaled(1.0, 0.0); return m;"),
        ("fn scaled(x: f32, y: f32) -> f32 { return x * y + 1.0; }", "fn scaled(x: f32, y: u32) -> f32 { return x; }"),
    ] {
        let text = FUNCTIONS
            .replace(from, to)
            .replace("scaled(0.0, 0.0)", if to.contains("u32") { "scaled(0.0, 0u)" } else { "scaled(0.0, 0.0)" });
        let words = written(&Kernel::probe("probe", "main", text), (1, 5), false).expect("writes");
        assert!(repair(&words).expect_err("refused").contains("a function of matrices"), "{to}");
    }
}

fn strides(module: &Module) -> usize {
    module.all(Op::Decorate).filter(|o| o[1] == Decoration::ArrayStride as u32).count()
}

#[test]
fn modules_with_nothing_to_repair_stay_as_they_are() {
    let text = "@group(0) @binding(0) var<storage, read_write> out: array<f32>;
        @compute @workgroup_size(1) fn main() { out[0] = 1.0; }";
    let words = written(&Kernel::probe("plain", "main", text.into()), (1, 0), false).expect("writes");
    assert_eq!(repair(&words), Ok(words));
}

const EIGHT: &str = "
enable f16;
struct Half8 { low: vec4<f16>, high: vec4<f16> }
@group(0) @binding(0) var<storage, read> inp: array<Half8>;
@group(0) @binding(1) var<storage, read_write> out: array<Half8>;
@compute @workgroup_size(1)
fn main() {
    var eight = Half8();
    if inp[1].low.x > 0.0 { eight = inp[0]; }
    out[0] = Half8(eight.high, eight.low);
}";

/// Returns the widths in bits of all loads from and stores to buffers.
fn widths(module: &Module) -> Vec<u32> {
    let (types, pointers) = (module.types(), module.pointers());
    let bits = |ty: u32| {
        let scalar = |id: u32| module.all(Op::TypeFloat).chain(module.all(Op::TypeInt)).find(|o| o[0] == id);
        let vector = module.all(Op::TypeVector).find(|o| o[0] == ty);
        vector.map_or(0, |o| scalar(o[1]).expect("a scalar")[1] * o[2])
    };
    module
        .list
        .iter()
        .filter_map(|i| {
            let pointer = match i.op() {
                Op::Load => i.operands[2],
                Op::Store => i.operands[0],
                _ => return None,
            };
            match types.get(pointers.get(&pointer)?) {
                Some(Type::Pointer(StorageClass::StorageBuffer, to)) => Some(bits(*to)),
                _ => None,
            }
        })
        .collect()
}

#[test]
fn eight_f16_move_as_one_access_of_16_bytes() {
    let text = EIGHT
        .replace("inp[1].low.x > 0.0", "lane == 0u")
        .replace("fn main()", "fn main(@builtin(local_invocation_index) lane: u32)");
    let (before, after) = modules(&text);
    assert_eq!(widths(&before), [0, 0], "structs");
    assert_eq!(widths(&after), [128, 128]);
    // the struct stays a value and a local variable, without a layout
    assert_eq!(strides(&after), 1, "both buffers share one array type");
    let offsets = after.all(Op::MemberDecorate).filter(|o| o[2] == Decoration::Offset as u32).count();
    assert_eq!(offsets, 2, "those of the two buffers");
}

#[test]
fn accessing_a_half_of_eight_f16_is_an_error_instead_of_a_slow_access() {
    let words = written(&Kernel::probe("half", "main", EIGHT.into()), (1, 5), false).expect("writes");
    assert!(repair(&words).is_err_and(|e| e.contains("a half of eight f16")));
}

#[test]
fn eight_f16_with_gaps_or_misaligned_are_an_error_instead_of_a_wrong_access() {
    let whole = EIGHT.replace("inp[1].low.x > 0.0", "out[1].high.x > 0.0").replace("if out[1].high.x > 0.0 { ", "{ ");
    for (from, to, what) in [
        ("low: vec4<f16>, high", "@size(16) low: vec4<f16>, @size(16) high", "more than 16 bytes"),
        ("low: vec4<f16>, high", "@size(16) low: vec4<f16>, high", "more than 16 bytes"),
        ("inp: array<Half8>", "inp: Block", "a multiple of 16 bytes"),
    ] {
        let block = "struct Block { n: vec2<u32>, items: array<Half8> }\nstruct Half8";
        let text = whole.replace(from, to).replace("struct Half8", block);
        let text = if to == "inp: Block" { text.replace("inp[0]", "inp.items[0]") } else { text };
        let words = written(&Kernel::probe("loose", "main", text), (1, 5), false).expect("writes");
        assert!(repair(&words).is_err_and(|e| e.contains(what)), "{to}");
    }
}

#[test]
fn types_that_buffers_and_local_memory_share_are_cloned() {
    let (_, after) = modules(
        "struct Inner { x: array<f32, 3>, y: u32 }
        struct Outer { inner: Inner, z: vec4<f32> }
        @group(0) @binding(0) var<storage, read_write> all: array<Outer>;
        var<workgroup> kept: array<Outer, 2>;
        @compute @workgroup_size(1)
        fn main() {
            var one = all[0];
            one.inner.x[1] = 2.0;
            kept[1] = one;
            kept[0].inner = one.inner;
            workgroupBarrier();
            all[1] = kept[1];
        }",
    );
    let (types, laid_out) = (after.types(), after.laid_out());
    let locals: Vec<u32> = after
        .pointers()
        .values()
        .filter_map(|ty| match types.get(ty) {
            Some(Type::Pointer(StorageClass::Function | StorageClass::Workgroup, to)) => Some(*to),
            _ => None,
        })
        .collect();
    assert!(locals.len() >= 4 && locals.iter().all(|ty| !laid_out.contains(ty) || !types.contains_key(ty)));
}
