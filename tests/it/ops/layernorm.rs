use std::sync::Arc;

use wgpt::cases::layernorm::{Rows, passes};
use wgpt::cases::{Inputs, STORED_F32};

use super::harness::{check, devices};

#[test]
fn constant_rows_and_rows_far_from_zero() {
    let devices = devices();
    // CPU drivers take long for rows of 768
    for c in [129, if devices[0].software { 256 } else { 768 }] {
        let mut inp = Inputs::new().values(6 * c);
        for (i, x) in inp.iter_mut().enumerate() {
            match i / c {
                0 => *x = 0.0,
                1 => *x = 3.0,
                2 => *x = -0.1,
                3 => *x += 100.0,
                4 => *x *= 1e4,
                _ => *x *= 1e-6,
            }
        }
        let rows = Rows { inp: Some(Arc::new(inp)), ..Rows::new(STORED_F32, [6, c]) };
        passes(&rows).iter().for_each(|case| check(&devices, case));
    }
}
