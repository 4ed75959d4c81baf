// tools/join-shader adds: shared/widths/vec4.wgsl shared/widths/single.wgsl shared/widths/half.wgsl shared/grid.wgsl shared/reduce.wgsl
// shared/stub.wgsl: only for editors and tests, never part of a kernel: typical values of the names that
// src/ops writes into kernels, so that tools/join-shader can show any operator's file with all its names defined

// The header of a kernel (src/gpu/kernel). Activations are loaded and stored in units of Stored: Vec in f32; f16,
// vec4<f16> or a Half8 (widths/pair.wgsl) in f16. VECS_PER_STORED, pack(first, last) and unpack(stored, k) are in
// widths/, as are Vec, UVec and their reductions.
alias Stored = vec4<f16>;

// attention and its variants
const HSV = 16u;       // Vec of a head
const LANES = 4u;      // attention_tiled: invocations that share a row
const CHANNELS = 16u;  // attention_step: invocations along a head, a power of two
const OUTS = 1u;       // attention_step: Vec of the output that an invocation has

// layernorm
const TEAM = 32u;      // invocations that share a row
const COLS = 3u;       // Stored of a row that an invocation of the team keeps
const SUBGROUP = 32u;  // invocations per subgroup, where teams add up by subgroups
fn load_dinp(i: u32) -> Stored { return Stored(); }            // the gradient so far: dinp[i], or zero where it begins
fn store_dinp(i: u32, first: Vec, last: Vec) {}                // to dinp[i], or to dinp_f32 where it ends

// sums
const GRADIENTS = 1u;  // gradients whose sums the rows hold
const SHARE = 16u;     // invocations that share a column of rows
const KEPT = 2u;       // Vec of dweight that an invocation adds up at once, so that their loads overlap
@group(0) @binding(3) var<storage, read> rows: array<Vec>;
fn put(which: u32, c: u32, sum: Vec, adds: bool) {}            // out_which[c] = sum, or += sum

// attention_step: number of runs of CHANNELS invocations
const PARTS = 4u;

// wire: the values for f16
const MANTISSA = 10u;
const BIAS = 15u;
const TINY_STEPS = 16777216.0;
const TINY_STEP = 1.0 / TINY_STEPS;

// roof
alias Scalar = f16;
alias Vec4 = vec4<f16>;
