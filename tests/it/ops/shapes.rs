//! Tensors of wrong shapes are refused by name, before anything is recorded.

use std::collections::BTreeSet;

use wgpt::cases::{self, Breadth, Case, Role};
use wgpt::error::{Error, Result};
use wgpt::gpu::{Caps, Elem, Gpu, Pass, Tensor};
use wgpt::ops::{attention, embedding, residual};

fn tensor(gpu: &Gpu, [rows, columns]: [usize; 2]) -> Tensor {
    gpu.tensor("t", rows, columns, Elem::F32).expect("memory")
}

/// Records on a dry device. Returns the refusal, `None` if there was none.
fn refusal(gpu: &Gpu, launch: impl FnOnce(&mut Pass) -> Result<()>) -> Option<String> {
    let mut pass = Pass::new(gpu);
    let error = launch(&mut pass).err()?;
    assert!(matches!(error, Error::Shape(_)), "{error:?}");
    assert!(pass.finish().commands.is_empty(), "{error}: something was recorded");
    Some(error.to_string())
}

/// The start of a pass's messages: three passes share the checks of another.
fn place(case: &Case) -> String {
    match (case.pass.operator, case.pass.pass) {
        ("crossentropy", _) => "crossentropy.forward: ".into(),
        ("embedding", "forward_at") => "embedding.forward".into(),
        ("gradnorm", "forward") => "gradnorm.".into(),
        _ => format!("{}: ", case.pass),
    }
}

/// Slots, as `pass slot`, with one row more: of tables whose last rows nobody names, of rows that are all summed.
const FREE_ROWS: [&str; 9] = [
    "attention.step cache",
    "bias.backward dout",
    "cast.widen inp",
    "embedding.backward dwpe",
    "embedding.backward dwte",
    "embedding.forward wpe",
    "embedding.forward wte",
    "embedding.forward_at wpe",
    "embedding.forward_at wte",
];
/// Slots with one column more: of padding, of values that are all hashed.
const FREE_COLUMNS: [&str; 3] =
    ["crossentropy.forward logits", "crossentropy.forward_backward logits", "hash.forward values"];
/// Slots with either: structs, of which the first words are read, sums over all that there is, and memory that may be
/// too large.
const FREE: [&str; 9] = [
    " state",
    " hyper",
    " report",
    " windows",
    "gradnorm.forward grads",
    "roof.fused",
    "stepcontrol",
    "sums.add scratch",
    "sums.add squares",
];

#[test]
fn each_slot_of_each_case_is_refused_with_one_row_or_column_more() {
    let caps = Caps { f16: true, ..Caps::webgpu_defaults() };
    let gpu = &Gpu::dry(caps.clone());
    let mut accepted = BTreeSet::new();
    for case in cases::ALL.iter().flat_map(|cases| (cases.tests)(&caps, Breadth::Narrow)) {
        for (i, slot) in case.slots.iter().enumerate().filter(|(_, slot)| slot.role != Role::Scratch) {
            for (rows, columns, more) in [(1, 0, "row"), (0, 1, "column")] {
                let what = format!("{} {}", case.pass, slot.name);
                let mut tensors = case.allocate(gpu).expect("memory");
                let [r, c] = slot.shape;
                tensors[i] = gpu.tensor(slot.name, r + rows, c + columns, slot.elem).expect("memory");
                match refusal(gpu, |pass| case.record(pass, &tensors)) {
                    Some(message) => assert!(message.starts_with(&place(&case)), "{what}, one {more} more: {message}"),
                    None => {
                        let (named, either) = (if rows > 0 { &FREE_ROWS[..] } else { &FREE_COLUMNS }, &FREE);
                        let free = named.iter().find(|name| what == **name);
                        let free = free.or_else(|| either.iter().find(|name| what.contains(**name)));
                        accepted.insert(free.unwrap_or_else(|| panic!("{what}: one {more} more was taken for right")));
                    }
                }
            }
        }
    }
    let free = FREE_ROWS.len() + FREE_COLUMNS.len() + FREE.len();
    assert_eq!(accepted.len(), free, "only {accepted:?} were taken for right");
}

#[test]
fn messages_name_the_place_the_tensor_and_both_shapes() {
    let gpu = &Gpu::dry(Caps::webgpu_defaults());
    let [full, other] = [[6, 16], [6, 17]].map(|shape| tensor(gpu, shape));
    let message =
        refusal(gpu, |pass| residual::forward(pass, residual::Forward { inp: &full, branch: &other, out: &full }));
    assert_eq!(message.as_deref(), Some("residual.forward: `branch` has another shape, expected (6, 16), got (6, 17)"));
    let (qkv, out) = (&tensor(gpu, [6, 48]), &full);
    for heads in [4, 3, 0] {
        let shape = attention::AttentionSizes { batch: 2, positions: 3, heads };
        let lse = &tensor(gpu, [2 * heads, 3]);
        let message = refusal(gpu, |pass| attention::forward(pass, attention::Forward { shape, qkv, out, lse }));
        let want = format!("attention.forward: {heads} heads of 16 channels, expected heads of 8 to 128");
        assert_eq!(message, Some(want));
    }
    let buckets = &embedding::Buckets::new(gpu, 6).expect("memory");
    let (dwte, dwpe) = (&tensor(gpu, [9, 16]), &tensor(gpu, [3, 16]));
    let io = embedding::Backward { buckets, dout: &full, dwte, dwpe, positions: 4, scratch: &full };
    let message = refusal(gpu, |pass| embedding::backward(pass, io));
    assert_eq!(message.as_deref(), Some("embedding.backward: `dwpe` has 3 rows, expected at least 4"));
}
