use wgpt::cases::embedding::{backward, common_and_rare};
use wgpt::cases::{Contents, bits};

use super::harness::{devices, verify_with};

/// Most rows of a run.
const RUN_ROWS: usize = 128;

fn floats(contents: &Contents) -> Vec<f32> {
    contents.before.iter().map(|word| f32::from_bits(*word)).collect()
}

/// `dwte` in f32, added up as the shader says. Additions alone have the same bits on every adapter.
fn dwte(tokens: &[u32], dout: &[f32], mut dwte: Vec<f32>, c: usize) -> Vec<u32> {
    for i in 0..dwte.len() {
        let rows = (0..tokens.len()).filter(|n| tokens[*n] as usize == i / c);
        let column: Vec<f32> = rows.map(|n| dout[n * c + i % c]).collect();
        let run = |before: f32, rows: &[f32]| rows.iter().fold(before, |sum, x| sum + x);
        dwte[i] = if column.len() <= RUN_ROWS {
            run(dwte[i], &column)
        } else {
            dwte[i] + column.chunks(RUN_ROWS).fold(0.0, |sum, rows| sum + run(0.0, rows))
        };
    }
    dwte.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_order_of_additions_does_not_depend_on_windows() {
    let c = 20;
    let batch = common_and_rare(c);
    let tokens = batch.tokens.clone().expect("given");
    let mut contents = backward(batch.clone()).contents();
    let want = dwte(&tokens, &floats(&contents[2]), floats(&contents[3]), c);
    contents[3].want = Some(bits(&want));
    let whole = || backward(batch.clone());
    for case in [whole(), whole().bound(1100 * c as u64 * 4), whole().bound(400 * c as u64 * 4)] {
        for device in devices() {
            verify_with(&device, &case, &contents, None).unwrap_or_else(|report| panic!("{report}"));
        }
    }
}
