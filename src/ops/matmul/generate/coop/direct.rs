//! Epilogues in registers: sums begin with the bias, the residual or the previous contents of the result, and are
//! stored directly to memory.
//!
//! Results of f16 are converted, and GELU is applied element by element, by functions of whole matrices that a SPIR-V
//! pass writes; see [`crate::gpu::Caps::matrix_functions`].

use super::{CoopKernel, CoopMatmul, Epilogue, Rounds, Text, Tile, workgroup_size};
use crate::gpu::Elem;
use crate::gpu::wgsl_text::without_directive;
use crate::ops::matrix_units::{divided, guarded, store};

/// Matrices of the pre-activation that are fetched at once. More would need more registers than the main loop.
const AHEAD: usize = 4;

/// Returns the tile that holds the bias of a tile's columns once for each row of a matrix.
pub(super) fn bias_lines(coop: &CoopMatmul) -> Tile {
    Tile::sums("bias_lines", coop.units.native, coop.tile_n)
}

impl CoopKernel {
    fn is_half(&self) -> bool {
        self.spec.out == Elem::F16
    }

    /// Writes the functions of matrices that the epilogue needs.
    pub(super) fn matrix_functions(&self, t: &mut Text) {
        if !self.is_half() {
            return;
        }
        let n = self.units().native;
        t.line(format_args!("alias MatrixH = coop_mat{n}x{n}<f16, C>;"));
        let conversions = include_str!("../../../../../shaders/shared/matrices.wgsl");
        let of_elements = match self.spec.epilogue {
            Epilogue::BiasGelu => {
                t.line("// 0, which no compiler can know");
                t.line("fn unknown_zero() -> u32 { return params.k >> 31u; }");
                include_str!("../../../../../shaders/shared/gelu_matrices.wgsl")
            }
            Epilogue::GeluBackward => include_str!("../../../../../shaders/shared/gelu_slope_matrices.wgsl"),
            _ => "",
        };
        for part in [conversions, of_elements] {
            without_directive(part).lines().for_each(|line| t.line(line));
        }
        t.line("");
    }

    /// Returns the index in the result of the subgroup's matrix (i, j), in vec4, if its first matrix is at `first`.
    fn place(&self, first: &str, i: u32, j: u32) -> String {
        let n = self.units().native;
        format!("{first} + {}u * out_line + {}u", i * n, j * n / 4)
    }

    /// Returns whether sums begin with values that are loaded from a buffer of the result's shape.
    pub(super) fn begins_in_memory(&self) -> bool {
        self.is_direct() && (self.spec.accumulate || self.spec.epilogue == Epilogue::BiasResidual)
    }

    /// Returns whether sums begin with the bias. Matrices in the same columns share a piece of it.
    pub(super) fn begins_with_bias(&self) -> bool {
        self.is_direct() && self.spec.epilogue.bias() && self.spec.epilogue != Epilogue::BiasResidual
    }

    /// Writes the subgroup's position in the result, and initialises sums that do not begin as constants.
    pub(super) fn begin_sums(&self, t: &mut Text) {
        t.line("// in vec4: the subgroup's position in the result, and the distance between rows");
        t.line("let out_line = params.out_stride / 4u;");
        t.line("let out_row = first_row + subgroup_row;");
        t.line("let out_at = (out_start + out_row * params.out_stride + first_column + subgroup_column) / 4u;");
        let bias = self.spec.epilogue.bias();
        if bias {
            self.fill_bias_lines(t);
        }
        // one matrix of the bias initialises several sums; the first product reads it, after the barrier that completes
        // the tiles
        if self.is_peeled() && self.begins_with_bias() || !bias && !self.spec.accumulate {
            return;
        }
        if bias {
            t.line("workgroupBarrier();");
        }
        self.on_grid(t, |t| {
            if bias {
                self.load_bias(t);
            }
            for (i, j) in self.all_matrices() {
                let at = self.place("out_at", i, j);
                let begin = match (self.spec.epilogue, self.spec.accumulate) {
                    (Epilogue::BiasResidual, _) => {
                        format!("coopLoadT<MatrixC>(&residual[{at}], out_line) + bias{j}")
                    }
                    (_, false) => format!("bias{j}"),
                    (_, true) if self.is_half() => format!("to_float(coopLoadT<MatrixH>(&out[{at}], out_line))"),
                    (_, true) => format!("coopLoadT<MatrixC>(&out[{at}], out_line)"),
                };
                t.line(format_args!("c{i}_{j} = {begin};"));
            }
        });
    }

    /// Loads the pieces of the bias for a row of the subgroup's matrices.
    pub(super) fn load_bias(&self, t: &mut Text) {
        let (n, stride) = (self.units().native, bias_lines(&self.coop).stride() / 4);
        t.line("let bias_column = subgroup_column / 4u;");
        for j in 0..self.native_matrices().1 {
            let at = format!("bias_column + {}u", j * n / 4);
            t.line(format_args!("let bias{j} = coopLoadT<MatrixC>(&bias_lines[{at}], {stride}u);"));
        }
    }

    fn fill_bias_lines(&self, t: &mut Text) {
        let (tile, threads) = (bias_lines(&self.coop), workgroup_size(&self.spec));
        let across = tile.length / 4;
        let rounds = Rounds { pieces: tile.lines * across, threads };
        t.line("let bias_at = (params.bias_offset + first_column) / 4u;");
        for i in 0..rounds.count() {
            let number = format!("bias_piece{i}");
            let (line, column) = divided(&number, across, rounds.pieces.next_multiple_of(threads));
            let at = format!("({line}) * {}u + bias_column{i}", tile.stride() / 4);
            guarded(t, rounds.guard(i).as_deref(), |t| {
                t.line(format_args!("let {number} = {};", rounds.piece(i)));
                t.line(format_args!("let bias_column{i} = {column};"));
                t.line(format_args!("bias_lines[{at}] = bias[bias_at + bias_column{i}];"));
            });
        }
    }

    /// Writes the stores of all sums.
    pub(super) fn store_sums(&self, t: &mut Text) {
        if self.begins_in_memory() {
            t.line("// computed again: compilers would keep the addresses of all matrices in registers during the loop. `next` is not 0");
            t.line("let out_end = select(out_at, 0u, next == 0u);");
        } else {
            t.line("let out_end = out_at;");
        }
        self.on_grid(t, |t| {
            for (at, (i, j)) in self.all_matrices().enumerate() {
                if self.spec.epilogue == Epilogue::GeluBackward && at.is_multiple_of(AHEAD) {
                    for (i, j) in self.all_matrices().skip(at).take(AHEAD) {
                        let at = self.place("out_end", i, j);
                        t.line(format_args!("let pre{i}_{j} = coopLoadT<MatrixH>(&pre[{at}], out_line);"));
                    }
                }
                let at = self.place("out_end", i, j);
                let c = format!("c{i}_{j}");
                if !self.is_half() {
                    store(t, &c, "out", &at, "out_line");
                    continue;
                }
                let ended = match self.spec.epilogue {
                    Epilogue::GeluBackward => format!("times_slopes({c}, to_float(pre{i}_{j}))"),
                    _ => c.clone(),
                };
                t.line(format_args!("let h{i}_{j} = to_half({ended});"));
                store(t, &format!("h{i}_{j}"), "out", &at, "out_line");
                if self.spec.epilogue == Epilogue::BiasGelu {
                    // GELU of the stored value, not of the unrounded one, so that it can be recomputed from the stored
                    // value
                    t.line(format_args!("let g{i}_{j} = to_half(gelus({c}));"));
                    store(t, &format!("g{i}_{j}"), "gelu_out", &at, "out_line");
                }
            }
        });
    }
}
