//! ggml's Q8_0: blocks of 32 numbers, stored as an f16 scale and 32 signed bytes. A number is its byte times the scale.

use std::io::{self, Write};

use half::f16;

/// Numbers per block.
pub const BLOCK: usize = 32;
/// Bytes per block: the scale, and a byte for each number.
pub const BLOCK_BYTES: usize = 2 + BLOCK;

/// Writes whole blocks with the bits of ggml's reference, `quantize_row_q8_0_ref`.
///
/// The scale is `max |x| / 127`. Numbers are divided by the f32 scale, before it is rounded to f16, and then rounded to
/// the nearest whole number, halves away from zero.
///
/// # Errors
/// The error of `out`.
///
/// # Panics
/// If the number of `values` is not a multiple of the block size: a bug of the caller.
pub fn write(values: &[f32], out: &mut dyn Write) -> io::Result<()> {
    let (blocks, []) = values.as_chunks::<BLOCK>() else {
        panic!("q8_0: {} values, expected whole blocks", values.len())
    };
    let mut bytes = [0; BLOCK_BYTES];
    for block in blocks {
        let scale = scale(block);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let (head, quants) = bytes.split_at_mut(2);
        head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (quant, value) in quants.iter_mut().zip(block) {
            *quant = (value * inverse).round() as i8 as u8;
        }
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Returns a value that makes the scale of its block too large for f16, if there is one.
pub fn too_large(values: &[f32]) -> Option<f32> {
    // the largest scale that is not rounded to infinity is below 65,520
    values.iter().copied().find(|x| f16::from_f32(x.abs() / 127.0).is_infinite())
}

fn scale(block: &[f32; BLOCK]) -> f32 {
    block.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        let mut values = [0.0; 2 * BLOCK];
        // a scale of 1/2: 0.25 is half a step, which rounds away from zero
        values[..6].copy_from_slice(&[63.5, 0.25, -0.25, 0.249, -63.5, 31.0]);
        let mut bytes = Vec::new();
        write(&values, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 2 * BLOCK_BYTES);
        assert_eq!(bytes[..2], f16::from_f32(0.5).to_le_bytes());
        let quants: Vec<i8> = bytes[2..9].iter().map(|byte| *byte as i8).collect();
        assert_eq!(quants, [127, 1, -1, 0, -127, 62, 0]);
        // a block of zeros has the scale 0
        assert!(bytes[BLOCK_BYTES..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn scales_that_f16_cannot_hold() {
        assert_eq!(too_large(&[65_519.0 * 127.0, -1.0]), None);
        assert_eq!(too_large(&[1.0, -65_521.0 * 127.0]), Some(-65_521.0 * 127.0));
    }
}
