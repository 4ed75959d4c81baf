// shared/half.wgsl: what is left of an f32 when it is stored as f16, as f32. In integers, because drivers drop a conversion
// there and back.
fn as_stored(x: V) -> V {
    let bits = bitcast<U>(x);
    let odd = (bits >> U(13u)) & U(1u);
    let normal = bitcast<V>((bits + U(0xfffu) + odd) & U(0xffffe000u));
    // numbers below the least normal one are multiples of 2^-24
    return select(normal, round(x * 16777216.0) * 5.9604644775390625e-8, abs(x) < V(6.103515625e-5));
}
