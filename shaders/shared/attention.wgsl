// shared/attention.wgsl: what the attention kernels are told, and where a workgroup of theirs is
struct P {
    batch: u32,
    positions: u32,   // T
    heads: u32,
    scale: f32,       // 1 / sqrt(HS)
}
var<immediate> p: P;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// Which head and which run of rows a workgroup has, if any.
struct Place { b: u32, h: u32, first: u32, valid: bool }
