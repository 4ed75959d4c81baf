//! The reader of machine code, on short texts of the shapes that the drivers print.

use super::kernel::{self, Kernel};
use super::parse::{self, Code, Counts, Widths};
use super::table;

/// Two nested loops with a branch in the inner one, predicates, and every access.
const NAK: &str = "\
block.u 0 L2 [] -> {
      ur0       = s2r sr[0x25]                                        // delay=1 wr:0
      r8 p1     = iadd3 r8 c[0x1][0x40] rZ                            // delay=11
      r2        = ld.global.a64.constant.b32 [r2..4]                  // delay=1 wr:0
                  st.local.b32 [r1] r2                                // delay=1
} -> [1]
block.u 1 L5 [0, 5] -> {
      r4..8     = ld.global.a64.strong.gpu.b128 [r2..4]               // delay=1 wr:0
                  st.shared.strong.cta.b64 [r9] r4..6                 // delay=1
                  membar.sc..cta                                      // delay=1
                  bar.sync                                            // delay=6
} -> [2]
block 2 L8 [1, 4] -> {
      r4..8     = ldsm.16.m8n8.x4 [r9]                                // delay=1 wr:0
      r8        = mov r4                                              // delay=1
      r0..4     = hmma.m16n8k16.f32 r4..8 r8..10 r0..4                // delay=8
@!p1              bra pT L10                                          // delay=1
} -> [3, 4]
block 3 L9 [2] -> {
@p2   r9        = ld.global.a64.constant.u16 [r2..4]                  // delay=1
} -> [4]
block 4 L10 [2, 3] -> {
      r0..4     = hmma.m16n8k16.f32 r4..8 r8..10 r0..4                // delay=8
} -> [2, 5]
block.u 5 L11 [4] -> {
@p0               bra pT L5                                           // delay=1
} -> [1, 6]
block.u 6 L12 [5] -> {
                  exit                                                // delay=1 wt=000001
} -> []
";

const NAK_STATISTICS: &str = "\
executable\tcompute
subgroup size\t32
Instruction count\t16
Max warps/SM\t12
Spills to memory\t0
Fills from memory\t0
Number of GPRs\t144
SLM size\t16
";

const ACO: &str = "\
BB0:
	s_load_b128 s[8:11], s[2:3], 0x0                            ; f4080201 f8000000
	s_delay_alu instid0(VALU_DEP_1) | instskip(SKIP_2) | instid1(VALU_DEP_1) ; bf8700b1
	buffer_load_b32 v1, v0, s[8:11], 0 offen                    ; e0500000
BB1:
	buffer_load_b128 v[4:7], v2, s[8:11], 0 offen               ; e05c0000
	ds_store_2addr_b32 v3, v4, v5 offset1:1                     ; d8380100
	s_barrier                                                   ; bfbd0000
BB2:
	ds_load_u16_d16_hi v4, v3                                   ; da9c0000
	ds_read_b64 v[4:5], v3                                      ; d9d80000
	v_wmma_f32_16x16x16_f16 v[8:15], v[16:23], v[24:31], v[8:15] ; cc404008
	v_mov_b32_e32 v1, v2                                        ; 7e020302
	s_cbranch_scc1 BB2                                          ; bfa2fff6
BB4:
	buffer_store_dwordx3 v[4:6], v2, s[8:11], 0 offen           ; e0740000
	s_cbranch_scc0 BB1                                          ; bfa1fff0
	s_cbranch_execz BB5                                         ; bfa50001
BB5:
	scratch_load_b32 v0, off, off                               ; dc510000
	s_endpgm                                                    ; bfb00000
";

const ACO_STATISTICS: &str = "\
subgroup size\t64
VGPRs\t96
Spilled SGPRs\t0
Spilled VGPRs\t0
Scratch size\t0
Subgroups per SIMD\t16
Latency\t9006
";

const APPLE_STATISTICS: &str = "\
subgroup size\t32
Instructions\t2757
GPRs\t255
Scratch\t24
Threads\t384
Spills\t7
Fills\t10
";

const ADRENO_STATISTICS: &str = "\
subgroup size\t64
Max Waves Per Core\t4
Instruction Count\t1511
Registers used\t48
STP Count\t2
LDP Count\t3
";

#[test]
fn nak_is_counted_and_its_inner_loop_is_the_main_one() {
    let expected = Code {
        all: Counts {
            instructions: 16,
            moves: 1,
            matrix: 2,
            fma: 0,
            barriers: 1,
            scratch: 1,
            global: Widths([1, 1, 0, 1]),
            workgroup: Widths([0, 0, 1, 1]),
        },
        main_loop: Counts {
            instructions: 6,
            moves: 1,
            matrix: 2,
            global: Widths([1, 0, 0, 0]),
            workgroup: Widths([0, 0, 0, 1]),
            ..Counts::default()
        },
    };
    assert_eq!(parse::nak(NAK), expected);
    // without matrix products the longest loop
    let plain = NAK.replace("hmma", "ffma");
    let Code { all, main_loop } = parse::nak(&plain);
    assert_eq!((main_loop.instructions, main_loop.fma, all.matrix, all.fma), (11, 2, 0, 2));
    assert_eq!(parse::nak("block 0 L0 [] -> {\n exit // delay=1\n} -> []\n").main_loop, Counts::default());
}

#[test]
fn aco_is_counted_and_its_inner_loop_is_the_main_one() {
    let expected = Code {
        all: Counts {
            instructions: 16,
            moves: 1,
            matrix: 1,
            fma: 0,
            barriers: 1,
            scratch: 1,
            global: Widths([0, 1, 1, 1]),
            workgroup: Widths([1, 2, 1, 0]),
        },
        main_loop: Counts {
            instructions: 5,
            moves: 1,
            matrix: 1,
            workgroup: Widths([1, 0, 1, 0]),
            ..Counts::default()
        },
    };
    assert_eq!(parse::aco(ACO), expected);
    let plain = ACO.replace("v_wmma_f32_16x16x16_f16", "v_fma_f32");
    assert_eq!((parse::aco(&plain).main_loop.instructions, parse::aco(&plain).main_loop.fma), (10, 1));
    assert_eq!(parse::aco(&plain.replace("v_fma_f32", "v_dual_fmac_f32")).all.fma, 2);
    // RDNA4 has two instructions for a barrier
    let newer = ACO.replace("\ts_barrier  ", "\ts_barrier_signal -1 ; 0\n\ts_barrier_wait 0xffff");
    assert_eq!((parse::aco(&newer).all.barriers, parse::aco(&newer).all.instructions), (1, 17));
}

#[test]
fn spills_are_whatever_a_driver_calls_them() {
    let new = |statistics: &str, code: Option<&str>| Kernel::new("k", statistics, code).expect("statistics");
    let numbers = |k: Kernel| (k.registers, k.spills, k.warps, k.instructions);
    let nak = |statistics: &str, code: &str| numbers(new(statistics, Some(code)));
    assert_eq!(nak(NAK_STATISTICS, NAK), (144, 1, 12, 16), "an access to local memory");
    let without = NAK.replace("st.local", "st.other");
    assert_eq!(nak(NAK_STATISTICS, &without).1, 4, "words of local memory");
    let told =
        NAK_STATISTICS.replace("Spills to memory\t0", "Spills to memory\t3").replace("SLM size\t16", "SLM size\t0");
    assert_eq!(nak(&told, &without).1, 3, "spills as told");
    assert_eq!(nak(&NAK_STATISTICS.replace("SLM size\t16", "SLM size\t0"), &without).1, 0);

    assert_eq!(numbers(new(ACO_STATISTICS, Some(ACO))), (96, 1, 16, 16), "an access to scratch");
    let without = ACO.replace("scratch_load_b32", "v_nop");
    let aco = |old: &str, new: &str| nak(&ACO_STATISTICS.replace(old, new), &without).1;
    assert_eq!(aco("Scratch size\t0", "Scratch size\t0"), 0);
    assert_eq!(aco("Scratch size\t0", "Scratch size\t8"), 2);
    assert_eq!(aco("Spilled SGPRs\t0", "Spilled SGPRs\t5"), 5);
    assert_eq!(aco("Spilled VGPRs\t0", "Spilled VGPRs\t6"), 6);

    assert_eq!(numbers(new(APPLE_STATISTICS, None)), (255, 17, 12, 2757));
    assert_eq!(numbers(new(ADRENO_STATISTICS, None)), (48, 5, 4, 1511));
    assert!(Kernel::new("k", NAK_STATISTICS, None).is_err(), "NVK without machine code");
    assert!(Kernel::new("k", "GPRs\t4\n", None).is_err(), "statistics that lack some");
    assert!(Kernel::new("k", "", None).is_err());
}

#[test]
fn runs_are_merged_by_names() -> std::io::Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |run: &str, number: u32, name: &str, registers: &str| {
        let run = folder.path().join("hopper").join(run);
        std::fs::create_dir_all(&run)?;
        let file = |kind: &str| run.join(format!("{number:04}.{kind}"));
        std::fs::write(file("name"), format!("{name}\n"))?;
        std::fs::write(file("stats"), NAK_STATISTICS.replace("GPRs\t144", &format!("GPRs\t{registers}")))?;
        std::fs::write(file("NAK_assembly.txt"), NAK)
    };
    write("1", 0, "cast", "40")?;
    write("1", 1, "adamw", "32")?;
    write("1", 2, "adamw", "32")?; // the same once more
    write("1", 3, "adamw", "48")?; // another under its name
    write("2", 0, "adamw", "56")?;
    write("2", 1, "bias", "24")?;
    let kernels = kernel::read(&folder.path().join("hopper")).expect("a folder");
    let names: Vec<(&str, u64)> = kernels.iter().map(|k| (k.name.as_str(), k.registers)).collect();
    assert_eq!(names, [("adamw", 32), ("adamw#2", 48), ("bias", 24), ("cast", 40)]);
    assert!(kernel::read(&folder.path().join("ada")).is_err());

    let json: serde_json::Value =
        serde_json::from_str(&format!("[{}]", table::json("hopper", &kernels).join(","))).expect("JSON");
    assert_eq!(
        json[3],
        serde_json::json!({"gpu": "hopper", "kernel": "cast", "registers": 40, "spills": 1, "warps": 12,
            "instructions": 16, "moves": 1, "matrix": 2, "fma": 0, "barriers": 1, "global": {"16": 1, "32": 1, "64": 0, "128": 1},
            "workgroup": {"16": 0, "32": 0, "64": 1, "128": 1}, "loop": {"instructions": 6, "moves": 1, "matrix": 2, "fma": 0,
            "barriers": 0, "global": {"16": 1, "32": 0, "64": 0, "128": 0}, "workgroup": {"16": 0, "32": 0, "64": 0, "128": 1}}})
    );
    let text = table::text(&kernels);
    let row: Vec<&str> = text.lines().last().expect("a row").split_whitespace().collect();
    let expected = "cast 40 1 12 16 2 1 1x128 1x32 1x16 1x128 1x64 6 1 2 1x16";
    assert_eq!(row, expected.split(' ').collect::<Vec<_>>(), "{text}");
    let apple = [Kernel::new("k", APPLE_STATISTICS, None).expect("statistics")];
    assert!(table::json("apple-m1", &apple)[0].ends_with("\"workgroup\":null,\"loop\":null}"));
    assert!(
        table::text(&apple).contains("k       255        17      12     2757          -"),
        "{}",
        table::text(&apple)
    );
    Ok(())
}
