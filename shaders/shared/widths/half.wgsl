// tools/join-shader adds: shared/widths/vec4.wgsl
// shared/widths/half.wgsl: rounds an f32 to f16 and returns it as f32. It uses integers, because drivers remove a
// conversion to f16 and back.
fn as_stored(x: Vec) -> Vec {
    let bits = bitcast<UVec>(x);
    let odd = (bits >> UVec(13u)) & UVec(1u);
    let normal = bitcast<Vec>((bits + UVec(0xfffu) + odd) & UVec(0xffffe000u));
    // numbers below the smallest normal one are multiples of 2^-24
    return select(normal, round(x * 16777216.0) * 5.9604644775390625e-8, abs(x) < Vec(6.103515625e-5));
}
