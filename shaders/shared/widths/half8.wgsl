// shared/widths/half8.wgsl: eight neighbouring f16, 16 bytes, which an invocation loads or stores at once
struct Half8 { low: vec4<f16>, high: vec4<f16> }
