// tools/join-shader adds: shared/stub.wgsl
// hash.wgsl: a hash of words and their positions, the same in any order of additions
//   values (count words, from position first on);  sums (2): sums[k] += sum of mix(word, position, k), modulo 2^32
//   An invocation hashes EACH words. Sums of integers do not depend on the order, so atomics do no harm here.
const EACH = 256u;

struct HashImmediates {
    count: u32,    // number of words
    first: u32,    // position of the first word
}
var<immediate> params: HashImmediates;

@group(0) @binding(0) var<storage, read> values: array<u32>;
@group(0) @binding(1) var<storage, read_write> sums: array<atomic<u32>, 2>;

// The last steps of MurmurHash3 with 32 bits: every bit of x changes about half of the result's bits.
fn scramble(x: u32) -> u32 {
    var h = x;
    h = (h ^ (h >> 16u)) * 0x85ebca6bu;
    h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
    return h ^ (h >> 16u);
}

fn mix(word: u32, position: u32, k: u32) -> u32 {
    return scramble(word ^ scramble(position + k * 0x9e3779b9u));
}

@compute @workgroup_size(WORKGROUP)
fn forward(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
           @builtin(local_invocation_index) lane: u32) {
    let begin = group_index(group, groups) * WORKGROUP * EACH + lane;
    if begin >= params.count { return; }
    var a = 0u;
    var b = 0u;
    for (var turn = 0u; turn < EACH; turn++) {
        let i = begin + turn * WORKGROUP;
        if i >= params.count { break; }
        let word = values[i];
        a += mix(word, params.first + i, 0u);
        b += mix(word, params.first + i, 1u);
    }
    atomicAdd(&sums[0], a);
    atomicAdd(&sums[1], b);
}
