//! The one table of GPT-2's parameters. Sizes, file order, gradients, AdamW's groups and the tests all read it.

use super::config::Config;

/// Initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Normal with standard deviation 0.02.
    Normal,
    /// Normal with standard deviation 0.02 / sqrt(2 L): projections back into the residual stream.
    ResidualNormal,
}

/// One of the 16 tensors, in llm.c's order and under llm.c's names.
#[derive(Debug, Clone, Copy)]
pub struct Param {
    /// llm.c's name.
    pub name: &'static str,
    /// Whether every block has one; otherwise the model has one.
    pub per_layer: bool,
    /// Returns the shape of one copy: rows, columns. One-dimensional tensors have one row.
    pub shape: fn(&Config) -> [usize; 2],
    /// Whether weight decay applies, which is so for two-dimensional tensors.
    pub decays: bool,
    /// Initial values.
    pub init: Init,
}

impl Param {
    /// Returns the elements of one copy.
    #[must_use]
    pub fn elements(&self, config: &Config) -> usize {
        let [rows, columns] = (self.shape)(config);
        rows * columns
    }

    /// Returns the number of copies: L, or 1.
    #[must_use]
    pub fn copies(&self, config: &Config) -> usize {
        if self.per_layer { config.layers } else { 1 }
    }
}

const fn matrix(name: &'static str, per_layer: bool, shape: fn(&Config) -> [usize; 2], init: Init) -> Param {
    Param { name, per_layer, shape, decays: true, init }
}

const fn vector(name: &'static str, per_layer: bool, shape: fn(&Config) -> [usize; 2], init: Init) -> Param {
    Param { name, per_layer, shape, decays: false, init }
}

/// The table, in the order of llm.c's checkpoint file. Linear weights are (out, in): `y = x Wᵀ + b`.
pub const PARAMS: [Param; 16] = [
    matrix("wte", false, |c| [c.padded_vocab(), c.channels], Init::Normal),
    matrix("wpe", false, |c| [c.positions, c.channels], Init::Normal),
    vector("ln1w", true, |c| [1, c.channels], Init::Ones),
    vector("ln1b", true, |c| [1, c.channels], Init::Zeros),
    matrix("qkvw", true, |c| [3 * c.channels, c.channels], Init::Normal),
    vector("qkvb", true, |c| [1, 3 * c.channels], Init::Zeros),
    matrix("attprojw", true, |c| [c.channels, c.channels], Init::ResidualNormal),
    vector("attprojb", true, |c| [1, c.channels], Init::Zeros),
    vector("ln2w", true, |c| [1, c.channels], Init::Ones),
    vector("ln2b", true, |c| [1, c.channels], Init::Zeros),
    matrix("fcw", true, |c| [4 * c.channels, c.channels], Init::Normal),
    vector("fcb", true, |c| [1, 4 * c.channels], Init::Zeros),
    matrix("fcprojw", true, |c| [c.channels, 4 * c.channels], Init::ResidualNormal),
    vector("fcprojb", true, |c| [1, c.channels], Init::Zeros),
    vector("lnfw", false, |c| [1, c.channels], Init::Ones),
    vector("lnfb", false, |c| [1, c.channels], Init::Zeros),
];

/// Returns the position of a name in [`PARAMS`].
///
/// # Panics
/// If there is no such parameter, which is a bug of the caller.
#[must_use]
pub fn index(name: &str) -> usize {
    PARAMS.iter().position(|p| p.name == name).unwrap_or_else(|| panic!("no parameter is called `{name}`"))
}

/// The weights of a model on the host: one vector per entry of [`PARAMS`], with the copies of all blocks one after the
/// other.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// The model's shape.
    pub config: Config,
    /// For entry i of [`PARAMS`]: `copies * elements` values, row-major. Rows V.. of `wte` are zero.
    pub tensors: Vec<Vec<f32>>,
}

impl Weights {
    /// Returns weights of the right sizes that are all zero.
    #[must_use]
    pub fn zeros(config: Config) -> Self {
        let tensors = PARAMS.iter().map(|p| vec![0.0; p.copies(&config) * p.elements(&config)]).collect();
        Self { config, tensors }
    }

    /// Returns one copy of a parameter. `layer` is 0 for parameters that the model has once.
    #[must_use]
    pub fn get(&self, name: &str, layer: usize) -> &[f32] {
        let i = index(name);
        let n = PARAMS[i].elements(&self.config);
        &self.tensors[i][layer * n..(layer + 1) * n]
    }

    /// Returns one copy of a parameter for writing.
    #[must_use]
    pub fn get_mut(&mut self, name: &str, layer: usize) -> &mut [f32] {
        let i = index(name);
        let n = PARAMS[i].elements(&self.config);
        &mut self.tensors[i][layer * n..(layer + 1) * n]
    }
}
