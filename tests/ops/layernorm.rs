use wgpt::ops::layernorm::{self, Affine, Backward, Forward};
use wgpt::reference;

use crate::harness::{
    Device, EPS, FULL, HALF, Inputs, Kind, bits, check, devices, devices_with_f16, folded, input, listing, overwritten,
    rounding, scratch, updated, wide, windowed, within,
};

fn average(values: impl Iterator<Item = f64>, c: usize) -> f64 {
    values.sum::<f64>() / c as f64
}

/// Budgets of the forward: of what is divided by the deviation, of the deviation, of the result.
struct Budgets {
    xhat: Vec<f64>,
    rstd: Vec<f64>,
    out: Vec<f64>,
}

fn budgets(kind: Kind, inp: &[f64], weight: &[f64], want: &reference::layernorm::Forward, c: usize) -> Budgets {
    let sum = rounding(c) * EPS;
    let mut budgets = Budgets { xhat: vec![], rstd: vec![], out: vec![] };
    for (n, row) in inp.chunks(c).enumerate() {
        let (mean, rstd) = (want.mean[n], want.rstd[n]);
        let mean_off = (sum + EPS) * average(row.iter().map(|x| x.abs()), c);
        let off = |x: f64| mean_off + EPS * (x - mean).abs();
        let variance = average(row.iter().map(|x| (x - mean).powi(2)), c);
        let variance_off = average(row.iter().map(|&x| (2.0 * (x - mean).abs() + off(x)) * off(x)), c) + sum * variance;
        // WGSL allows 2.5 ulp for a division and some for the root
        let rstd_off = 0.5 * variance_off * rstd * rstd + 6.0 * EPS;
        budgets.rstd.push(rstd_off * rstd);
        for (i, &x) in row.iter().enumerate() {
            let xhat = (x - mean) * rstd;
            let xhat_off = rstd * off(x) + xhat.abs() * (rstd_off + 2.0 * EPS);
            // the result comes from the normalised value as it is stored
            let stored = (xhat.abs() + xhat_off) * kind.rounding() + if kind == HALF { 2f64.powi(-25) } else { 0.0 };
            budgets.xhat.push(xhat_off);
            let scaled = weight[i].abs() * (xhat_off + stored + EPS * xhat.abs());
            budgets.out.push(scaled + EPS * want.out[n * c + i].abs());
        }
    }
    budgets
}

fn run(devices: &[Device], kind: Kind, [n, c]: [usize; 2], inp: &[f32]) {
    let mut inputs = Inputs::new();
    let [weight, bias, dweight, dbias, dsum] = [(); 5].map(|()| inputs.values(c));
    let [dout, dinp] = [(); 2].map(|()| kind.values(&mut inputs, n * c));
    let (x, w, g) = (wide(inp), wide(&weight), wide(&dout));
    let want = reference::layernorm::forward(&x, &w, &wide(&bias), c);
    let budget = budgets(kind, &x, &w, &want, c);
    let slots = [
        input("inp", [n, c], inp),
        input("weight", [1, c], &weight),
        input("bias", [1, c], &bias),
        kind.overwritten("xhat", [n, c], kind.within(want.xhat.clone(), budget.xhat)),
        kind.overwritten("out", [n, c], kind.within(want.out.clone(), budget.out)),
        overwritten("rstd", [n, 1], within(want.rstd.clone(), budget.rstd)),
    ];
    check(devices, "layernorm.forward", &[n, c], slots, |pass, [inp, weight, bias, xhat, out, rstd]| {
        layernorm::forward(pass, Forward { inp, weight, bias, xhat, out, rstd })
    });

    // what the forward keeps, as it is stored
    let (xhat, rstd) = (kind.round(&want.xhat), FULL.round(&want.rstd));
    let (kept, deviations) = (wide(&xhat), wide(&rstd));
    let out = reference::layernorm::affine(&kept, &w, &wide(&bias), c);
    let magnitude: Vec<f64> = (0..n * c).map(|i| (kept[i] * w[i % c]).abs() + out[i].abs()).collect();
    let slots = [
        kind.input("xhat", [n, c], &xhat),
        input("weight", [1, c], &weight),
        input("bias", [1, c], &bias),
        kind.overwritten("out", [n, c], kind.near(out, 1.0, &magnitude)),
    ];
    check(devices, "layernorm.affine", &[n, c], slots, |pass, [xhat, weight, bias, out]| {
        layernorm::affine(pass, Affine { xhat, weight, bias, out })
    });

    let (mut want_dweight, mut want_dbias) = (wide(&dweight), wide(&dbias));
    let delta = reference::layernorm::backward(&g, &kept, &deviations, &w, &mut want_dweight, &mut want_dbias, c);
    let (mut dweight_off, mut dbias_off) = (vec![0.0; c], vec![0.0; c]);
    let (sum, column) = (rounding(c + 8) * EPS, rounding(n + 8) * EPS);
    for i in 0..c {
        dweight_off[i] = column * f64::from(dweight[i].abs());
        dbias_off[i] = column * f64::from(dbias[i].abs());
    }
    let mut delta_off = vec![];
    for r in 0..n {
        let xhat = |i: usize| kept[r * c + i].abs();
        let scaled = |i: usize| (w[i] * g[r * c + i]).abs();
        let average_g = average((0..c).map(scaled), c);
        let average_gx = average((0..c).map(|i| scaled(i) * xhat(i)), c);
        for i in 0..c {
            delta_off.push(deviations[r] * sum * (scaled(i) + average_g + xhat(i) * average_gx));
            dweight_off[i] += column * g[r * c + i].abs() * xhat(i);
            dbias_off[i] += column * g[r * c + i].abs();
        }
    }
    let untouched = || updated("dsum", [1, c], &dsum, bits(&dsum.iter().map(|x| x.to_bits()).collect::<Vec<_>>()));
    for (name, summed, first, last) in [
        ("layernorm.backward", true, false, false),
        ("layernorm.backward without dsum", false, false, false),
        ("layernorm.backward, where the gradient begins", true, true, false),
        ("layernorm.backward, where it ends", true, false, true),
    ] {
        // drivers take long over wide rows: the variants, which differ in one line, have narrow ones
        if last && kind == FULL || (first || last) && c > 132 && !listing() {
            continue;
        }
        let before = if first { vec![0.0; n * c] } else { wide(&dinp) };
        let want_dinp: Vec<f64> = before.iter().zip(&delta).map(|(before, delta)| before + delta).collect();
        let off = |i: usize| delta_off[i] + EPS * (want_dinp[i].abs() + before[i].abs());
        let dinp_off: Vec<f64> = (0..n * c).map(off).collect();
        let mut want_dsum = wide(&dsum);
        let mut dsum_off: Vec<f64> = dsum.iter().map(|x| column * f64::from(x.abs())).collect();
        for i in 0..n * c {
            want_dsum[i % c] += want_dinp[i];
            dsum_off[i % c] += dinp_off[i] + column * want_dinp[i].abs();
        }
        let wide_slot = match last {
            true => overwritten("wide", [n, c], within(want_dinp.clone(), dinp_off.clone())),
            false => scratch("no wide", [1, 1]),
        };
        let want_dinp = if last { bits(&kind.bits(&dinp)) } else { kind.within(want_dinp, dinp_off) };
        let slots = [
            kind.input("dout", [n, c], &dout),
            kind.input("xhat", [n, c], &xhat),
            input("weight", [1, c], &weight),
            input("rstd", [n, 1], &rstd),
            if first {
                kind.overwritten("dinp", [n, c], want_dinp)
            } else {
                kind.updated("dinp", [n, c], &dinp, want_dinp)
            },
            wide_slot,
            updated("dweight", [1, c], &dweight, within(want_dweight.clone(), dweight_off.clone())),
            updated("dbias", [1, c], &dbias, within(want_dbias.clone(), dbias_off.clone())),
            if summed { updated("dsum", [1, c], &dsum, within(want_dsum, dsum_off)) } else { untouched() },
            scratch("scratch", [layernorm::SCRATCH_ROWS, c]),
        ];
        check(
            devices,
            name,
            &[n, c],
            slots,
            |pass, [dout, xhat, weight, rstd, dinp, wide, dweight, dbias, dsum, scratch]| {
                let (wide, dsum) = (last.then_some(wide), summed.then_some(dsum));
                let io = Backward { dout, xhat, weight, rstd, dinp, first, wide, dweight, dbias, dsum, scratch };
                layernorm::backward(pass, io)
            },
        );
    }
}

fn random(devices: &[Device], kind: Kind, shape: [usize; 2]) {
    run(devices, kind, shape, &Inputs::new().values(shape[0] * shape[1]));
}

#[test]
pub fn forward_and_backward() {
    let devices = devices();
    for shape in
        [[1, 1], [3, 5], [7, 13], [2, 127], [33, 128], [31, 129], [7, 132], [3, 516], [2049, 7], [65, 768], [64, 1600]]
    {
        random(some_of(&devices, shape[1]), FULL, shape);
    }
    let devices = devices_with_f16();
    for shape in [[1, 1], [3, 5], [33, 128], [7, 132], [31, 129], [65, 768]] {
        random(some_of(&devices, shape[1]), HALF, shape);
    }
}

/// Each number of columns is another kernel, and drivers take long over wide rows: the checked modes have narrow ones, one
/// over a tile too.
fn some_of(devices: &[Device], c: usize) -> &[Device] {
    let narrow = listing() || c <= 132 && c != 127;
    if narrow { devices } else { &devices[..devices.len().min(2)] }
}

#[test]
fn constant_rows_and_rows_far_from_zero() {
    let devices = devices();
    for c in [13, 768] {
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
        run(some_of(&devices, c), FULL, [6, c], &inp);
    }
}

#[test]
fn forward_and_backward_in_windows() {
    random(&windowed(64 * 13 * 4), FULL, [161, 13]);
    random(&windowed(128 * 13 * 4), HALF, [261, 13]);
}

#[test]
fn forward_and_backward_in_a_folded_grid() {
    random(&folded(), FULL, [401, 44]);
    random(&folded(), FULL, [401, 13]);
}

/// Rows of 256 bytes would allow windows of any number of rows; those of `mean` have 4 bytes.
#[test]
fn windows_of_wide_rows_begin_aligned_in_narrow_tensors() {
    random(&windowed(100 * 256), FULL, [257, 64]);
}
