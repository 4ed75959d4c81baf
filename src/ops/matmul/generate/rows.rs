//! The kernel for software adapters.

use super::{Algorithm, BindingElement, Bindings, Product, Spec, Text, component, entry, prologue, store};

/// The kernel for software adapters.
///
/// A *slot* is the unit in which an invocation owns columns of a row: four neighbouring columns with vec4, else one.
/// For `Forward` it is always one column, because a read of `b` loads neighbours in k. Its slots are `width` columns
/// apart, so that the rows of `b` that the lanes read fall into different sets of the CPU's cache.
pub(super) struct Rows {
    spec: Spec,
    width: u32,
    rows: u32,
    columns: u32,
    unroll: u32,
    /// Type of one slot.
    slot: BindingElement,
    /// The bindings. `a` is read along M for `BackwardWeight`, otherwise along K; `b` along K for `Forward`, otherwise
    /// along N.
    bindings: Bindings,
}

/// Rows whose code forms one block.
///
/// The condition of a block is true except for rows beyond the matrix. Its purpose is to help the driver's compiler:
/// within a block of four rows it keeps accumulators in registers, but with all rows in one block it interleaves and
/// spills them.
const BLOCK_ROWS: u32 = 4;

impl Rows {
    pub(super) fn new(spec: Spec) -> Self {
        let Algorithm::Rows { width, rows, columns, unroll, pairs } = spec.algorithm else {
            unreachable!("the caller matched Algorithm::Rows")
        };
        let element = if spec.vec4() { BindingElement::Vec4 } else { BindingElement::F32 };
        let operand = if spec.vec4() && pairs { BindingElement::Pair } else { element };
        let (slot, b, out) = match spec.product {
            Product::Forward => (BindingElement::F32, operand, BindingElement::F32),
            _ if columns.is_multiple_of(4) => (element, operand, operand),
            _ => (BindingElement::F32, BindingElement::F32, BindingElement::F32),
        };
        Self { spec, width, rows, columns, unroll, slot, bindings: Bindings { a: operand, b, out, by_element: false } }
    }

    fn slots(&self) -> u32 {
        self.columns / self.slot.width()
    }

    /// Returns the steps of k that one read of an operand loads.
    fn step(&self) -> u32 {
        if self.spec.product == Product::BackwardWeight { 1 } else { self.bindings.a.width() }
    }

    pub(super) fn write(&self) -> String {
        let Self { spec, width, rows, columns, unroll, .. } = self;
        let idea =
            format!("{rows} rows, {columns} columns per invocation; rows and k are uniform over the {width} lanes.");
        let t = &mut prologue(spec, &idea, &self.bindings);
        self.functions(t);
        entry(t, spec);
        t.line("// row tiles are innermost: a panel of b stays in cache while all rows pass over it");
        t.line("let tile = group.y * groups.x + group.x;");
        t.line(format_args!("let row_tiles = (params.m + {}u) / {rows}u;", rows - 1));
        t.line(format_args!("let row = (tile % row_tiles) * {rows}u;"));
        t.line(format_args!("let first_column = (tile / row_tiles) * {}u;", width * columns));
        self.columns_of_invocation(t);
        self.starts(t);
        for r in 0..*rows {
            for s in 0..self.slots() {
                t.line(format_args!("var acc{r}_{s} = {}();", self.slot));
            }
        }
        t.line("var k = 0u;");
        t.open(format_args!("for (; k + {unroll}u <= params.k; k += {unroll}u)"));
        self.steps(t, *unroll);
        t.close();
        let step = self.step();
        if *unroll > step {
            t.open(format_args!("for (; k < params.k; k += {step}u)"));
            self.steps(t, step);
            t.close();
        }
        self.stores(t);
        t.close();
        std::mem::take(&mut t.text)
    }

    /// Writes functions for code that the kernel repeats hundreds of times. Compilers inline them. They are needed
    /// because naga's time grows with the square of a function's length, and every run of the program parses its
    /// kernels.
    fn functions(&self, t: &mut Text) {
        let slot = self.slot;
        if self.takes_four_steps() {
            let b: Vec<String> = match self.spec.product {
                Product::Forward => vec!["b: vec4<f32>".into()],
                _ => (0..4).map(|j| format!("b{j}: {slot}")).collect(),
            };
            t.line("// four steps of k, one after the other");
            t.open(format_args!("fn add_steps(sum: {slot}, a: vec4<f32>, {}) -> {slot}", b.join(", ")));
            let mut sum = "sum".to_owned();
            for j in 0..4 {
                let (a, b) = (self.factor(format!("a.{}", component(j))), self.step_of_b(j));
                sum = format!("fma({a}, {b}, {sum})");
            }
            t.line(format_args!("return {sum};"));
            t.close();
            t.line("");
        }
        let Bindings { out, .. } = self.bindings;
        t.open(format_args!("fn store(row: u32, column: u32, sum: {slot})"));
        t.line("if row >= params.m { return; }");
        let at = out.units("params.out_offset + row * params.out_stride + column");
        let bias_at = out.value().units("params.bias_offset + column");
        store(t, &self.spec, out, &at, &bias_at, "sum");
        t.close();
        t.line("");
    }

    /// Returns whether one read of `a` loads four steps of k.
    fn takes_four_steps(&self) -> bool {
        self.spec.product != Product::BackwardWeight && self.bindings.a.width() == 4
    }

    /// Returns a scalar of `a` as a factor of a slot.
    fn factor(&self, a: String) -> String {
        if self.slot == BindingElement::Vec4 { format!("vec4({a})") } else { a }
    }

    /// Returns the name of step `j` of `b` in `add_steps`.
    fn step_of_b(&self, j: u32) -> String {
        match self.spec.product {
            Product::Forward => format!("b.{}", component(j)),
            _ => format!("b{j}"),
        }
    }

    /// Writes the column of each slot, and the nearest column inside the matrix, which reads use.
    fn columns_of_invocation(&self, t: &mut Text) {
        let width = self.slot.width();
        for s in 0..self.slots() {
            t.line(format_args!("let column{s} = first_column + {}u + thread * {width}u;", s * width * self.width));
            t.line(format_args!("let inside{s} = min(column{s}, params.n - {width}u);"));
        }
    }

    /// Writes the indices at which the reads of each slot and row start.
    fn starts(&self, t: &mut Text) {
        for s in 0..self.slots() {
            let start = match self.spec.product {
                Product::Forward => format!("params.b_offset + inside{s} * params.b_stride"),
                _ => format!("params.b_offset + inside{s}"),
            };
            t.line(format_args!("let b_start{s} = {};", self.bindings.b.units(start)));
        }
        if self.spec.product == Product::BackwardWeight {
            let width = self.bindings.a.width();
            for r in (0..self.rows).step_by(width as usize) {
                let start = format!("params.a_offset + min(row + {r}u, params.m - {width}u)");
                t.line(format_args!("let a_start{r} = {};", self.bindings.a.units(start)));
            }
            t.line(format_args!("let a_stride = {};", self.bindings.a.units("params.a_stride")));
        } else {
            for r in 0..self.rows {
                let start = format!("params.a_offset + min(row + {r}u, params.m - 1u) * params.a_stride");
                t.line(format_args!("let a_start{r} = {};", self.bindings.a.units(start)));
            }
        }
        if self.spec.product != Product::Forward {
            t.line(format_args!("let b_stride = {};", self.bindings.b.units("params.b_stride")));
        }
    }

    /// Writes `count` steps of k, a multiple of [`Self::step`].
    fn steps(&self, t: &mut Text, count: u32) {
        for s in 0..self.slots() {
            self.reads_of_b(t, s, count);
        }
        for first in (0..self.rows).step_by(BLOCK_ROWS as usize) {
            t.open(format_args!("if row + {first}u < params.m"));
            for r in first..(first + BLOCK_ROWS).min(self.rows) {
                self.reads_of_a(t, r, count);
                if self.takes_four_steps() {
                    (0..count).step_by(4).for_each(|j| self.multiply_four(t, r, j));
                } else {
                    (0..count).for_each(|j| self.multiply(t, r, j));
                }
            }
            t.close();
        }
    }

    /// Writes the reads `b{s}_{j}`: slot `s` at step k + j of `b`, or at four steps from there.
    fn reads_of_b(&self, t: &mut Text, s: u32, count: u32) {
        let forward = self.spec.product == Product::Forward;
        let width = if forward { self.bindings.b.width() } else { 1 };
        for j in (0..count).step_by(width as usize) {
            let index = if forward {
                format!("b_start{s} + {}", self.bindings.b.units(format_args!("k + {j}u")))
            } else {
                format!("b_start{s} + (k + {j}u) * b_stride")
            };
            t.line(format_args!("let b{s}_{j} = {};", self.bindings.b.read("b", index)));
        }
    }

    /// Writes the reads `a{r}_{j}`: row `r` at step k + j of `a`. A vec4 loads four steps or four rows from there; in
    /// the latter case the other three rows need no read.
    fn reads_of_a(&self, t: &mut Text, r: u32, count: u32) {
        let a = self.bindings.a;
        let along_rows = self.spec.product == Product::BackwardWeight;
        if along_rows && !r.is_multiple_of(a.width()) {
            return;
        }
        for j in (0..count).step_by(if along_rows { 1 } else { a.width() as usize }) {
            let index = if along_rows {
                format!("a_start{r} + (k + {j}u) * a_stride")
            } else {
                format!("a_start{r} + {}", a.units(format_args!("k + {j}u")))
            };
            t.line(format_args!("let a{r}_{j} = {};", a.read("a", index)));
        }
    }

    /// Writes four multiply-adds for every slot of row `r`.
    fn multiply_four(&self, t: &mut Text, r: u32, j: u32) {
        for s in 0..self.slots() {
            let b: Vec<String> = match self.spec.product {
                Product::Forward => vec![format!("b{s}_{j}")],
                _ => (j..j + 4).map(|j| format!("b{s}_{j}")).collect(),
            };
            t.line(format_args!("acc{r}_{s} = add_steps(acc{r}_{s}, a{r}_{j}, {});", b.join(", ")));
        }
    }

    /// Writes one multiply-add for every slot of row `r`.
    fn multiply(&self, t: &mut Text, r: u32, j: u32) {
        let a = match self.bindings.a.width() {
            1 => format!("a{r}_{j}"),
            _ => format!("a{}_{j}.{}", r / 4 * 4, component(r)),
        };
        let a = self.factor(a);
        for s in 0..self.slots() {
            t.line(format_args!("acc{r}_{s} = fma({a}, b{s}_{j}, acc{r}_{s});"));
        }
    }

    fn stores(&self, t: &mut Text) {
        for s in 0..self.slots() {
            t.open(format_args!("if column{s} < params.n"));
            for r in 0..self.rows {
                t.line(format_args!("store(row + {r}u, column{s}, acc{r}_{s});"));
            }
            t.close();
        }
    }
}
