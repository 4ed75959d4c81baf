//! Tests of [`super`].

use super::*;
use crate::gpu::Kernel;

fn caps(backend: &str, edge: u32, subgroup_sizes: (u32, u32)) -> Caps {
    Caps { backend: backend.into(), matrix_edges: vec![edge], subgroup_sizes, ..Caps::webgpu_defaults() }
}

#[test]
fn units_follow_the_adapter() {
    let units = |caps: &Caps| MatrixUnits::of(caps).expect("matrices");
    let vulkan = units(&caps("Vulkan", 16, (32, 32)));
    assert_eq!(
        vulkan,
        MatrixUnits { edge: 16, native: 16, lanes: 32, varying: false, functions: false, wide_tiles: true }
    );
    let metal = units(&caps("Metal", 8, (4, 64)));
    assert_eq!(
        metal,
        MatrixUnits { edge: 8, native: 8, lanes: 32, varying: false, functions: false, wide_tiles: false }
    );
    let amd = caps("Vulkan", 16, (32, 64));
    assert!(units(&amd).varying && units(&amd).lanes == 64);
    assert!(!units(&Caps { subgroup_control: true, ..amd }).varying);
    let emulated = units(&Caps { emulated_edge: Some(16), ..caps("Vulkan", 8, (8, 8)) });
    assert_eq!((emulated.edge, emulated.native, emulated.blocks()), (16, 8, 2));
    assert!(MatrixUnits::of(&Caps::webgpu_defaults()).is_none());
}

#[test]
fn rounds_cover_every_piece_and_guard_the_last() {
    for (pieces, threads, guards) in [(64, 32, [false, false]), (33, 32, [false, true]), (31, 32, [true, true])] {
        let rounds = Rounds { pieces, threads };
        assert_eq!(rounds.count(), pieces.div_ceil(threads));
        (0..rounds.count()).for_each(|i| assert_eq!(rounds.guard(i).is_some(), guards[i as usize], "{pieces} {i}"));
    }
    assert_eq!(Rounds { pieces: 33, threads: 32 }.guard(1).as_deref(), Some("thread + 32u < 33u"));
}

/// Returns a kernel for `out = a b` of one matrix, written by the steps in the module's documentation.
fn product(units: MatrixUnits) -> Kernel {
    let (edge, threads) = (units.native, 2 * units.lanes);
    let tiles = ["a_tile", "b_tile"].map(|name| Tile::halves(name, edge, edge));
    let sums = Tile::sums("sums", edge, edge);
    let t = &mut Text::default();
    DIRECTIVES.iter().for_each(|line| t.line(line));
    if units.varying {
        t.line(UNIFORM_SUBGROUPS);
    }
    units.aliases(t);
    tiles.iter().chain([&sums]).for_each(|tile| units.declare(t, tile));
    t.line("@group(0) @binding(0) var<storage, read> inp: array<vec4<f16>>;");
    t.line("@group(0) @binding(1) var<storage, read_write> out: array<vec4<f32>>;");
    t.line(format_args!("@compute @workgroup_size({threads})"));
    t.line("fn main(@builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32)");
    t.open("");
    let rounds = Rounds { pieces: edge * edge / 4, threads };
    for (o, tile) in tiles.iter().enumerate() {
        for i in 0..rounds.count() {
            guarded(t, rounds.guard(i).as_deref(), |t| {
                let (piece, across) = (rounds.piece(i), edge / 4);
                t.line(format_args!("let four{o} = inp[{piece} + {}u];", o as u32 * rounds.pieces));
                let at = format!("({piece}) / {across}u * {}u + ({piece}) % {across}u * 4u", tile.stride());
                units.write_fours(t, tile.name, &at, &[format!("four{o}")]);
            });
        }
    }
    t.line("workgroupBarrier();");
    units.on_grid(t, 1, |t| {
        let stride = format!("{}u", tiles[0].stride());
        t.line(format_args!("let a = {};", units.load(LoadBy::Rows, "A", "a_tile", "0u", &stride)));
        t.line(format_args!("let b = {};", units.load(LoadBy::Rows, "B", "b_tile", "0u", &stride)));
        t.line("let c = coopMultiplyAdd(a, b, MatrixC());");
        units.spill_accumulator(t, "c", "sums", "0u", format_args!("{}u", sums.stride()));
    });
    t.line("workgroupBarrier();");
    t.line(format_args!("if thread < {edge}u {{ out[thread] = {}; }}", units.read_four("sums", "thread * 4u")));
    t.close();
    Kernel { subgroup_size: Some(units.lanes), ..Kernel::probe("planted.product", "main", std::mem::take(&mut t.text)) }
}

#[test]
fn a_kernel_written_as_the_documentation_says_is_valid_and_takes_the_bytes_of_its_tiles() {
    for (wide_tiles, varying, native) in [(true, false, 16), (false, false, 8), (true, true, 8)] {
        let kernel = product(MatrixUnits { edge: native, native, lanes: 32, varying, functions: false, wide_tiles });
        let bytes = kernel.reflect().expect("is valid").workgroup_bytes;
        let told = 2 * Tile::halves("", native, native).bytes() + Tile::sums("", native, native).bytes();
        assert_eq!(bytes, told, "{}", kernel.source);
    }
}
