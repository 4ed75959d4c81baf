//! The f64 definition of every operator in the plainest loops, for tests and benches only.
//!
//! Conventions:
//! - Arrays are row-major slices of f64, the last axis fastest. Sizes are upper case (`B T C V Vp NH HS`, `N = B*T`
//!   rows), indices lower case.
//! - An output that an operator overwrites is *returned*. An output that it adds to (`+=`, the parameter gradients) is
//!   a `&mut` argument.
//! - A slice of the wrong length is a bug of the caller and panics.
//! - `tests/reference.rs` compares every backward with central finite differences of its forward.
//!
//! This module imports nothing from the other floors, except that [`gpt2`] reads the parameter table of
//! [`crate::model`].

#![expect(non_snake_case, reason = "sizes are spelt as in the docs and in WGSL: `for t in 0..T`")]
#![expect(clippy::needless_range_loop, reason = "the index is the meaning here")]

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod cast;
pub mod compare;
pub mod crossentropy;
pub mod embedding;
pub mod gelu;
pub mod gpt2;
pub mod gradnorm;
pub mod hash;
pub mod layernorm;
pub mod matmul;
pub mod random;
pub mod residual;
pub mod roof;
pub mod sums;
pub mod tree;
pub mod wire;
