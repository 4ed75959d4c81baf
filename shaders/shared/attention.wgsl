// shared/attention.wgsl: the immediates of attention kernels, and the position of a workgroup
struct AttentionImmediates {
    positions: u32,    // T
    heads: u32,
    scale: f32,        // 1 / sqrt(HS)
    first: u32,        // a dispatch has workgroups `first` to `end` of those for all rows of all heads
    end: u32,
    first_head: u32,   // first head in lse and delta, which may begin before this dispatch's sequences
}
var<immediate> params: AttentionImmediates;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// The head, sequence and block of rows of a workgroup, if it has any, and the head's position in lse and delta.
struct Place { b: u32, h: u32, statistics: u32, first: u32, valid: bool }

// Returns the position for workgroups of `rows` rows. With `last_first` rows with the most keys come first.
fn place(index: u32, rows: u32, last_first: bool) -> Place {
    let group = params.first + index;
    let blocks = (params.positions + rows - 1u) / rows;
    let bh = group / blocks;
    let block = group % blocks;
    let first = select(block, blocks - 1u - block, last_first) * rows;
    return Place(bh / params.heads, bh % params.heads, (params.first_head + bh) * params.positions, first,
                 group < params.end);
}
