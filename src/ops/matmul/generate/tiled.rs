//! The kernel for GPUs.

use crate::ops::matrix_units::guarded;

use super::{
    BindingElement, Bindings, Operand, Spec, Text, component, entry, padded, place, prologue, store, workgroup_size,
};

/// The kernel for GPUs.
///
/// Workgroup memory holds both tiles k-major, `[tile_k][tile]`, as vec4 along the tile, whatever the operand's own
/// order, so that the inner loop reads only vec4. The next tile is fetched into registers while the current one is
/// multiplied.
pub(super) struct Tiled {
    pub(super) spec: Spec,
    pub(super) tile_m: u32,
    pub(super) tile_n: u32,
    pub(super) tile_k: u32,
    pub(super) thread_m: u32,
    pub(super) thread_n: u32,
    pub(super) peeled: bool,
}

impl Tiled {
    fn threads(&self) -> u32 {
        workgroup_size(&self.spec)
    }

    fn operand(&self) -> BindingElement {
        BindingElement::of(self.spec.operands, self.spec.width)
    }

    /// Returns the number of pieces in one tile of the operand: blocks of four vec4 in transposed tiles, else single
    /// vec4.
    fn pieces(&self, o: Operand) -> u32 {
        if o.along_k { o.tile / 4 * (self.tile_k / 4) } else { o.tile / 4 * self.tile_k }
    }

    fn operands(&self) -> [Operand; 2] {
        Operand::both(self.spec.product, self.tile_m, self.tile_n)
    }

    /// Returns the first thread that fetches an operand. Two small fetches are done by different threads.
    fn first_thread(&self, o: Operand) -> u32 {
        let [a, b] = self.operands().map(|o| self.pieces(o));
        if o.name == "b" && a + b <= self.threads() { a } else { 0 }
    }

    pub(super) fn write(&self) -> String {
        let Self { spec, tile_m, tile_n, tile_k, thread_m, thread_n, peeled } = self;
        let idea = format!(
            "One workgroup: {tile_m} rows, {tile_n} columns; one invocation: {thread_m} by {thread_n} of them."
        );
        let operand = self.operand();
        let out = BindingElement::of(spec.out, spec.width);
        let t = &mut prologue(spec, &idea, &Bindings { a: operand, b: operand, out, by_element: false });
        for o in self.operands() {
            let length = tile_k * padded(o.tile);
            t.line(format_args!("var<workgroup> {}_tile: array<vec4<f32>, {length}>;", o.name));
        }
        t.line("");
        for o in self.operands() {
            self.fetch_function(t, o);
        }
        entry(t, spec);
        self.place(t);
        for r in 0..*thread_m {
            for c in 0..thread_n / 4 {
                t.line(format_args!("var acc{r}_{c} = vec4<f32>();"));
            }
        }
        self.places_of_pieces(t);
        self.fetches(t, "depth");
        t.line(format_args!("var next = depth + {tile_k}u;"));
        // if neither operand is transposed, the compiler does not copy sums anyway
        let peeled = *peeled && self.operands().iter().any(|o| o.along_k);
        if peeled {
            self.turn(t, true);
        }
        t.open("loop");
        if !peeled {
            self.turn(t, false);
        }
        t.line("if next >= depth_end { break; }");
        t.line("// everyone has read the tiles before they are overwritten");
        t.line("workgroupBarrier();");
        t.line(format_args!("next += {tile_k}u;"));
        if peeled {
            self.turn(t, false);
        }
        t.close();
        self.stores(t);
        t.close();
        std::mem::take(&mut t.text)
    }

    /// Writes one iteration: it fills the tiles, and multiplies them while it fetches the next ones.
    fn turn(&self, t: &mut Text, first: bool) {
        self.fill_tiles(t);
        t.line("// the tiles are complete before anyone reads them");
        t.line("workgroupBarrier();");
        t.open("if next < depth_end");
        self.fetches(t, "next");
        t.close();
        self.multiply(t, first);
    }

    /// Writes `fetch_a(line, at)`, which returns four neighbours in memory, zero outside the matrix.
    fn fetch_function(&self, t: &mut Text, o: Operand) {
        let (name, [line, at]) = (o.name, o.bounds());
        t.open(format_args!("fn fetch_{name}(line: u32, at: u32) -> vec4<f32>"));
        let element = self.operand();
        if !self.spec.ragged {
            t.line(format_args!("return {};", element.read(name, element.units(o.element()))));
            t.close();
            t.line("");
            return;
        }
        t.line("var four = vec4<f32>();");
        t.open(format_args!("if line < params.{line}"));
        if self.spec.vec4() {
            t.open(format_args!("if at < params.{at}"));
            t.line(format_args!("four = {};", element.read(name, element.units(o.element()))));
            t.close();
        } else {
            o.read_scalars(t, |index| element.read(name, index));
        }
        t.close();
        t.line("return four;");
        t.close();
        t.line("");
    }

    /// Writes the positions of the workgroup's tile and of the invocation in it.
    fn place(&self, t: &mut Text) {
        let Self { tile_m, tile_n, thread_n, .. } = self;
        place(t, &self.spec, *tile_m, *tile_n);
        t.line(format_args!("let thread_row = thread / {}u;", tile_n / thread_n));
        t.line(format_args!("let thread_column = thread % {}u;", tile_n / thread_n));
    }

    /// Returns the pieces of the operand's tile that each thread moves, as (index, guard if not all threads take part).
    fn rounds(&self, o: Operand) -> Vec<(u32, Option<String>)> {
        let (pieces, threads) = (self.pieces(o), self.threads());
        let whole = self.first_thread(o) == 0 && pieces.is_multiple_of(threads);
        (0..pieces.div_ceil(threads))
            .map(|i| (i, (!whole).then(|| format!("{}_piece{i} < {pieces}u", o.name))))
            .collect()
    }

    /// Writes the positions of a thread's pieces: `line` counts vec4 along the tile, `depth` is k.
    fn places_of_pieces(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, threads) = (o.name, self.threads());
            for (i, _) in self.rounds(o) {
                let from = match (i, self.first_thread(o)) {
                    (0, 0) => "thread".to_owned(),
                    (0, first) => format!("thread - {first}u"),
                    (i, _) => format!("thread + {}u", i * threads),
                };
                t.line(format_args!("let {name}_piece{i} = {from};"));
                if o.along_k {
                    let across = self.tile_k / 4;
                    t.line(format_args!("let {name}_line{i} = {name}_piece{i} / {across}u;"));
                    t.line(format_args!("let {name}_depth{i} = ({name}_piece{i} % {across}u) * 4u;"));
                } else {
                    let across = o.tile / 4;
                    t.line(format_args!("let {name}_line{i} = {name}_piece{i} % {across}u;"));
                    t.line(format_args!("let {name}_depth{i} = {name}_piece{i} / {across}u;"));
                }
                for j in (0..if o.along_k { 4 } else { 1 }).filter(|_| self.fetched(o) == name) {
                    t.line(format_args!("var {name}_next{i}_{j} = vec4<f32>();"));
                }
            }
        }
    }

    /// Returns the operand whose variables hold fetched pieces. Both operands share variables if no thread has pieces
    /// of both.
    fn fetched(&self, o: Operand) -> &'static str {
        let [a, b] = self.operands();
        if self.first_thread(b) > 0 && a.along_k == b.along_k { a.name } else { o.name }
    }

    /// Writes the fetches of this thread's pieces of the tiles that start at `k`.
    fn fetches(&self, t: &mut Text, k: &str) {
        for o in self.operands() {
            let (name, first, fetched) = (o.name, o.first(), self.fetched(o));
            for (i, guard) in self.rounds(o) {
                let extent = format!("{first} + {name}_line{i} * 4u");
                let depth = format!("{k} + {name}_depth{i}");
                guarded(t, guard.as_deref(), |t| {
                    if o.along_k {
                        for j in 0..4 {
                            t.line(format_args!("{fetched}_next{i}_{j} = fetch_{name}({extent} + {j}u, {depth});"));
                        }
                    } else {
                        t.line(format_args!("{fetched}_next{i}_0 = fetch_{name}({depth}, {extent});"));
                    }
                });
            }
        }
    }

    /// Writes the stores of the fetched pieces to workgroup memory.
    fn fill_tiles(&self, t: &mut Text) {
        for o in self.operands() {
            let (name, stride, fetched) = (o.name, padded(o.tile), self.fetched(o));
            for (i, guard) in self.rounds(o) {
                guarded(t, guard.as_deref(), |t| {
                    for j in 0..if o.along_k { 4 } else { 1 } {
                        let column = || (0..4).map(|r| format!("{fetched}_next{i}_{r}.{}", component(j)));
                        let value = if o.along_k {
                            format!("vec4({})", column().collect::<Vec<_>>().join(", "))
                        } else {
                            format!("{fetched}_next{i}_0")
                        };
                        let at = format!("({name}_depth{i} + {j}u) * {stride}u + {name}_line{i}");
                        t.line(format_args!("{name}_tile[{at}] = {value};"));
                    }
                });
            }
        }
    }

    /// Writes the product of the two tiles. A thread's rows and columns are groups of four that are not adjacent, so
    /// that neighbouring threads read neighbouring vec4.
    fn multiply(&self, t: &mut Text, first: bool) {
        let (m_step, n_step) = (self.tile_m / self.thread_m, self.tile_n / self.thread_n);
        for j in 0..self.tile_k {
            for g in 0..self.thread_m / 4 {
                let at = j * padded(self.tile_m) + g * m_step;
                t.line(format_args!("let a{j}_{g} = a_tile[{at}u + thread_row];"));
            }
            for c in 0..self.thread_n / 4 {
                let at = j * padded(self.tile_n) + c * n_step;
                t.line(format_args!("let b{j}_{c} = b_tile[{at}u + thread_column];"));
            }
            for r in 0..self.thread_m {
                for c in 0..self.thread_n / 4 {
                    let a = format!("vec4(a{j}_{}.{})", r / 4, component(r));
                    if first && j == 0 {
                        t.line(format_args!("acc{r}_{c} = {a} * b{j}_{c};"));
                    } else {
                        t.line(format_args!("acc{r}_{c} = fma({a}, b{j}_{c}, acc{r}_{c});"));
                    }
                }
            }
        }
    }

    fn stores(&self, t: &mut Text) {
        let (m_step, n_step) = (self.tile_m / self.thread_m, self.tile_n / self.thread_n);
        let out = BindingElement::of(self.spec.out, self.spec.width);
        for c in 0..self.thread_n / 4 {
            t.line(format_args!("let column{c} = first_column + ({}u + thread_column) * 4u;", c * n_step));
        }
        let inside = |condition: String| if self.spec.ragged { format!("if {condition}") } else { String::new() };
        for r in 0..self.thread_m {
            t.line(format_args!("let row{r} = first_row + ({}u + thread_row) * 4u + {}u;", r / 4 * m_step, r % 4));
            t.open(inside(format!("row{r} < params.m")));
            for c in 0..self.thread_n / 4 {
                let at = format!("out_start + row{r} * params.out_stride + column{c}");
                let bias_at = format!("params.bias_offset + column{c}");
                if self.spec.vec4() {
                    t.open(inside(format!("column{c} < params.n")));
                    store(t, &self.spec, out, &out.units(at), &out.units(bias_at), &format!("acc{r}_{c}"));
                    t.close();
                } else {
                    for i in 0..4 {
                        t.open(format_args!("if column{c} + {i}u < params.n"));
                        let value = format!("acc{r}_{c}.{}", component(i));
                        store(t, &self.spec, out, &format!("{at} + {i}u"), &format!("{bias_at} + {i}u"), &value);
                        t.close();
                    }
                }
            }
            t.close();
        }
    }
}
