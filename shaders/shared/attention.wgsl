// shared/attention.wgsl: what the attention kernels are told, and where a workgroup of theirs is
struct AttentionImmediates {
    positions: u32,    // T
    heads: u32,
    scale: f32,        // 1 / sqrt(HS)
    first: u32,        // a dispatch has workgroups `first` to `end` of those that all rows of all heads take
    end: u32,
    first_head: u32,   // of lse and delta, which may begin before the sequences at hand
}
var<immediate> params: AttentionImmediates;

const LOW = -1.0e30; // stands for minus infinity, which fast math may drop

// Which head of which sequence and which run of rows a workgroup has, if any; and where the head is in lse and delta.
struct Place { b: u32, h: u32, statistics: u32, first: u32, valid: bool }

// Of `rows` rows a workgroup; with `last_first` those with the most keys come first.
fn place(index: u32, rows: u32, last_first: bool) -> Place {
    let group = params.first + index;
    let blocks = (params.positions + rows - 1u) / rows;
    let bh = group / blocks;
    let block = group % blocks;
    let first = select(block, blocks - 1u - block, last_first) * rows;
    return Place(bh / params.heads, bh % params.heads, (params.first_head + bh) * params.positions, first,
                 group < params.end);
}
