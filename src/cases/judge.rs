//! Comparison of a tensor's contents after a run with the wanted values.

use crate::gpu::Elem;

use super::case::{Role, Slot};
use super::values::{Want, Word};

/// Returns the bits of an element that is not written yet: a NaN.
pub fn unwritten(elem: Elem) -> u32 {
    if elem == Elem::F16 { 0x7ead } else { 0x7fc0_0bad }
}

/// Converts an element's bits to the number that they represent.
pub fn float(elem: Elem, bits: u32) -> f64 {
    match elem {
        Elem::F16 => half::f16::from_bits(bits as u16).to_f64(),
        Elem::F32 | Elem::U32 => f64::from(f32::from_bits(bits)),
    }
}

/// Converts elements to the bytes in memory.
pub fn to_bytes(elem: Elem, elements: &[u32]) -> Vec<u8> {
    match elem {
        Elem::F16 => elements.iter().flat_map(|&e| (e as u16).to_le_bytes()).collect(),
        Elem::F32 | Elem::U32 => elements.iter().flat_map(|&e| e.to_le_bytes()).collect(),
    }
}

/// Converts bytes in memory to the bits of each element.
pub fn from_bytes(elem: Elem, bytes: &[u8]) -> Vec<u32> {
    match elem {
        Elem::F16 => bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect(),
        Elem::F32 | Elem::U32 => bytemuck::pod_collect_to_vec(bytes),
    }
}

impl Slot {
    /// Compares the bits of all elements with the wanted values. Every element of an overwritten tensor must have been
    /// written.
    ///
    /// # Errors
    /// A report with the first wrong element.
    pub fn judge(&self, want: &Want, got: &[u32]) -> Result<(), String> {
        let slot = self;
        let (positions, want) = match want {
            Want::At(positions, want) => (Some(positions.as_slice()), &**want),
            want => (None, want),
        };
        let at = |i: usize| positions.map_or(i, |positions| positions[i]);
        let (mut wrong, mut first) = (0, None);
        let float = |i: usize| float(slot.elem, got[i]);
        let mut compare = |i: usize, fine: bool, want: &dyn Fn() -> String| {
            if fine {
                return;
            }
            wrong += 1;
            first.get_or_insert_with(|| {
                let (row, column) = (i / slot.shape[1], i % slot.shape[1]);
                let got = match got[i] {
                    word if word == unwritten(slot.elem) => "nothing: never written".into(),
                    word => format!("{:e} ({word:#x})", float(i)),
                };
                format!("`{}`[{row}, {column}]: got {got}, want {}", slot.name, want())
            });
        };
        match want {
            Want::Near { want, tolerance } => {
                for (i, (want, tolerance)) in want.iter().zip(tolerance).enumerate() {
                    // so that NaN fails
                    let fine = (float(at(i)) - want).abs() <= *tolerance;
                    compare(at(i), fine, &|| format!("{want:e} within {tolerance:e}"));
                }
            }
            Want::Words(words) => {
                for (i, word) in words.iter().enumerate() {
                    let fine = match *word {
                        Word::Bits(bits) => got[at(i)] == bits,
                        Word::Near(want, tolerance) => (float(at(i)) - want).abs() <= tolerance,
                        Word::NonFinite => !float(at(i)).is_finite() && got[at(i)] != unwritten(slot.elem),
                    };
                    compare(at(i), fine, &|| format!("{word:?}"));
                }
            }
            Want::Total { want, tolerance } => {
                let total: f64 = (0..got.len()).map(float).sum();
                let fine = (total - want).abs() <= *tolerance;
                if !fine {
                    let name = slot.name;
                    return Err(format!("sum of `{name}`: got {total:e}, want {want:e} within {tolerance:e}"));
                }
            }
            Want::At(..) | Want::Anything => {}
        }
        if positions.is_some() && slot.role == Role::Overwritten {
            (0..got.len()).for_each(|i| compare(i, got[i] != unwritten(slot.elem), &|| "a number".into()));
        }
        match first {
            None => Ok(()),
            Some(first) => Err(format!("{first}; {wrong} of {} elements are wrong", got.len())),
        }
    }
}
