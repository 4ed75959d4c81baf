//! Compares every operator on the GPU with its f64 reference. The cases are the tables of `src/cases`, and one harness
//! runs them: see [`harness`].
//!
//! `devices.rs` lists the modes. Two modes run all shapes: `release`, and the kernels for GPUs (on a GPU: the kernels for
//! software adapters) under WebGPU's limits. The other modes run one shape of each product, attention and norm.
//! `coverage.rs` records what runs and names each kernel that does not. On software adapters, whose drivers take seconds
//! to compile a kernel, `choice.rs` leaves out cases whose kernels combine their properties in no new way.
//!
//! | family | shapes, and the branch that each covers |
//! |---|---|
//! | element by element | 4, 8 and 1 elements an access; one group and more; windows; folded grids |
//! | layernorm | 132 (4 an access, one over a team), 129 (1), 768 (on software adapters 256), 136 (8, f16), 1600 (team of 64), 5 (fewer than lanes), 2049 rows (many blocks); teams that add up by a tree and by subgroups |
//! | classifier | rows shorter than a workgroup and longer, GPT-2's, whose workgroups are the largest; sums by a tree and by subgroups |
//! | products, f32 | 68x124x132 (ragged, 4), 64x64x64 (whole), 13x17x19 (1), one under and over 64 and 128, one row, 768 deep, windows, 1030x2050 (large tiles) |
//! | products, f16 | 68x120x136 (8), 68x124x132 (4), 13x17x19 (1), 64x128x64 (whole), 1100, 1088 and 1027 deep (parts) |
//! | attention | each size of head, 1 to 1031 positions, windows, short dispatches; on matrices the smallest blocks, heads of 32 and 48 (GPUs: 64), eight subgroups |
//! | checked, dialects | 68x124x132, on matrices 68x120x136, one row; heads of 8 and 16; rows of 132; each product with its widest end |
//! | 4 and 16 lanes | the first shapes of each operator |
//!
//! Left out, because the same texts run or the same branches are taken:
//! - lengths of rows, products and positions between those above; tiles of 128 in windows;
//! - in checked mode and in the dialects all further shapes and the narrower ends: bounds checks and dialects change accesses
//!   to memory, and the widest end has all of them;
//! - at 4 and 16 lanes all other shapes: those texts differ from the text for 8 lanes in the width and in tiles, and each runs;
//! - on software adapters (`--ignored`): heads of 64 on matrices, and attention on matrices of 16, on which
//!   `model::mixed` trains; in kernels of other adapters the large heads but GPT-2's; checked f16 but on matrices, because
//!   the text differs from that for f32 in a type; checked backward passes on matrices and of attention in kernels of
//!   other adapters; attention's backward pass in SPIR-V as naga writes it and with subgroups of several sizes.

mod adamw;
mod attention;
mod choice;
mod coverage;
mod devices;
mod embedding;
mod harness;
mod lanes;
mod layernorm;
mod matmul;
mod order;
mod planted;
mod program;
mod residual;
mod rings;
mod roof;
mod shapes;
mod stepcontrol;

/// Makes one test for each operator, which runs its cases in every mode.
macro_rules! operators {
    ($($name:ident)*) => {
        mod cases {
            $(#[test]
            fn $name() {
                super::harness::run(&wgpt::cases::$name::CASES);
            })*
        }
    };
}

wgpt::for_each_operator!(operators);
