//! Objectives: what a probe measures.
//!
//! An [`Objective`] holds the data and says how parameters become a loss. The protocol never calls it: it
//! asks for a probe and is told two losses, which need not agree between machines to the last bit
//! (they use the platform's `exp` and a matrix product of the machine's width). What must agree,
//! the base model, does: [`Objective::base`] uses no maths library but `sqrt`.
//!
//! First-order methods, which the network is compared with, take [`Objective::gradient`] of the same
//! loss, and their step sizes from [`Objective::curvature`].
//!
//! A loss that is not finite is a value like any other and flows through.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use crate::data::{Dataset, Features, Table};
use crate::direction::Direction;
use crate::language::spec::{LanguageSpec, LanguageSpecError};
pub use crate::params::TensorSpec;
use crate::params::{Mark, Payout, State};

mod cnn;
mod kernel;
mod layer;
mod linear;
mod logistic;
mod network;
mod spectrum;

pub use cnn::Cnn;
pub use linear::Linear;
pub use logistic::Logistic;
pub use network::Network;

/// A model on a data set: the losses of a minibatch, and the quality over a whole table.
pub trait Objective: Send + Sync {
    /// The tensors of the model, in the order of the flat parameters.
    fn tensors(&self) -> Vec<TensorSpec>;

    /// The initial parameters: the same for the same seed on every platform.
    fn base(&self, seed: u64) -> Vec<f32>;

    /// The mean losses over a minibatch at two parameter vectors, `plus` and `minus`.
    ///
    /// `batch` holds rows of the training table. Nothing is allocated once `scratch` has served a
    /// probe of this objective.
    ///
    /// # Panics
    /// If a vector is not as long as the tensors together, the batch is empty or a row too large.
    fn loss_pair(
        &self,
        plus: &[f32],
        minus: &[f32],
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32);

    /// Loss and accuracy over all rows of a table.
    ///
    /// # Panics
    /// If `params` is not as long as the tensors together.
    fn evaluate(&self, params: &[f32], split: Split, scratch: &mut Scratch) -> Evaluation;

    /// The losses at both ends of a probe: those of [`Objective::loss_pair`] at what
    /// [`State::write_pair`] writes.
    ///
    /// # Panics
    /// As [`Objective::loss_pair`].
    fn probe(
        &self,
        state: &State,
        direction: &Direction,
        epsilon_log2: i32,
        batch: &[u32],
        scratch: &mut Scratch,
    ) -> (f32, f32) {
        // Taken out, as the objective borrows the rest.
        let [mut plus, mut minus] = std::mem::take(&mut scratch.ends);
        plus.resize(state.layout().dim(), 0.0);
        minus.resize(state.layout().dim(), 0.0);
        state.write_pair(direction, epsilon_log2, &mut plus, &mut minus);
        let losses = self.loss_pair(&plus, &minus, batch, scratch);
        scratch.ends = [plus, minus];
        losses
    }

    /// Numbers of large tensors of which a probe reads few rows, so that their changes may wait: see
    /// [`State::apply_lazily`]. None where a device has a copy of the state.
    fn tables(&self) -> &[usize] {
        &[]
    }

    /// Says that payouts were applied to a state with the mark `before`, which is now `state`: an objective that
    /// keeps a copy of it elsewhere can follow. Nothing is wrong where nobody says so; it costs a new copy.
    fn applied(&self, before: &Mark, payouts: &[Payout], state: &State, scratch: &mut Scratch) {
        let _ = (before, payouts, state, scratch);
    }

    /// [`Objective::evaluate`] at a state.
    fn quality(&self, state: &State, split: Split, scratch: &mut Scratch) -> Evaluation {
        let [mut view, other] = std::mem::take(&mut scratch.ends);
        view.resize(state.layout().dim(), 0.0);
        state.write_view(&mut view);
        let evaluation = self.evaluate(&view, split, scratch);
        scratch.ends = [view, other];
        evaluation
    }

    /// A hash of whatever the losses depend on beside parameters and data: weights that are not
    /// trained, a tokenizer. `None` if there is no such thing.
    fn fixed_hash(&self) -> Option<[u8; 32]> {
        None
    }

    /// The same model with class `c` called `C − 1 − c` in training, if it has to be made from this one:
    /// what a node that flips labels learns from.
    fn with_flipped_labels(&self) -> Option<Arc<dyn Objective>> {
        None
    }

    /// Whether [`Objective::gradient`] exists.
    fn is_differentiable(&self) -> bool {
        true
    }

    /// What people should know of the data as the model sees them, a line each.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// The mean loss over rows of the training table, and its gradient, written to `out`.
    ///
    /// The loss is in nats and includes the model's penalty. Where a rectifier has no derivative,
    /// that of its flat side is taken. [`Logistic`] and [`Linear`] compute in `f64` throughout, so
    /// that an optimum can be approached to the last digits; the others in `f32`, with the sums of
    /// blocks of rows in `f64`.
    ///
    /// # Panics
    /// If `params` or `out` is not as long as the tensors together, the batch is empty or a row too
    /// large.
    fn gradient(
        &self,
        params: &[f64],
        batch: &[u32],
        out: &mut [f64],
        scratch: &mut Scratch,
    ) -> f64;

    /// Strong convexity μ ≥ 0 and smoothness L of the mean loss over rows of the training table.
    ///
    /// The pair brackets the eigenvalues of the Hessian at all parameters, so `1/L` is a safe step.
    /// μ is 0 where some parameter has no penalty. `None` if the loss is not convex.
    ///
    /// # Panics
    /// If there are no rows, or one is too large.
    fn curvature(&self, rows: &[u32], scratch: &mut Scratch) -> Option<(f64, f64)>;
}

/// Which table of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The rows trained on.
    Train,
    /// The rows held out.
    Test,
}

impl Split {
    fn table(self, dataset: &Dataset) -> &Table {
        match self {
            Split::Train => &dataset.train,
            Split::Test => &dataset.test,
        }
    }
}

/// The quality of a model over a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// The mean loss, in nats; with its penalty where the model has one.
    pub loss: f64,
    /// The share of rows whose class is the most likely one.
    pub accuracy: f64,
    /// The number of rows.
    pub count: usize,
}

/// Buffers that probes reuse; one a thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// The parameters at both ends of a probe.
    ends: [Vec<f32>; 2],
    /// A language model's weights.
    #[cfg(feature = "language")]
    pub(crate) weights: crate::language::Slot,
    /// The non-zero inputs of a layer, at the plus or at both ends.
    inputs: kernel::Sparse,
    /// The non-zero inputs of a layer at the minus end.
    inputs_minus: kernel::Sparse,
    /// The first layer's biases with what the features' offset adds to them.
    bias: Vec<f32>,
    bias_minus: Vec<f32>,
    /// A layer's outputs.
    outputs: Vec<f32>,
    outputs_minus: Vec<f32>,
    /// Rows and activations of an evaluation, a block of rows at a time.
    block: [Vec<f32>; 2],
    /// The parameters of a gradient, as the network computes with them.
    params: Vec<f32>,
    /// The inputs of every layer after the first, a block of rows at a time.
    hidden: Vec<Vec<f32>>,
    /// The slopes of a block's loss by a layer's outputs, and by its inputs.
    deltas: [Vec<f32>; 2],
    /// The slopes of a block's loss by a layer's parameters.
    slopes: Vec<f32>,
    /// A layer's biases and outputs where a gradient is computed in `f64`.
    wide: [Vec<f64>; 2],
    /// Images on their way through convolutions.
    images: cnn::Buffers,
}

/// The name of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSpec {
    /// `softmax`: multinomial logistic regression.
    Softmax,
    /// `logistic`, or `logistic:L2` with a penalty of `L2/2 · |weights|²`: two classes.
    ///
    /// `logistic:L2:no-bias` is the problem of the optimization literature, where the penalty
    /// covers every parameter.
    Logistic {
        /// The penalty's factor, at least zero.
        l2: f64,
        /// Whether there is a bias; it has no penalty.
        bias: bool,
    },
    /// `linear`, or `linear:L2` with a penalty of `L2/2 · |weights|²`: least squares onto the
    /// classes.
    Linear {
        /// The penalty's factor, at least zero.
        l2: f64,
    },
    /// `cnn`: two convolutions and two layers, for square images.
    Cnn,
    /// `mlp:H[,H2…]`: hidden layers of these sizes with rectified units, then softmax.
    Mlp {
        /// The sizes, first hidden layer first.
        hidden: Vec<usize>,
    },
    /// `language:…`: a pretrained transformer, whose weights are in a folder.
    Language(LanguageSpec),
}

/// The largest size of a hidden layer; a guess at what one-scalar updates can still train.
pub const HIDDEN_MAX: usize = 4096;

/// The largest number of hidden layers.
pub const DEPTH_MAX: usize = 8;

/// The largest number of parameters: 1 GiB as `f32`.
pub const PARAMETERS_MAX: usize = 1 << 28;

/// The names of models, for messages.
const KNOWN: &str = "softmax, linear[:L2], logistic[:L2[:no-bias]], mlp:H[,H2…] and cnn; a pretrained \
                     transformer is named with --weights";

/// Why a text names no model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelSpecError {
    /// Another word.
    #[error("unknown model {0:?}; known are {KNOWN}")]
    Unknown(String),
    /// A hidden layer of no possible size.
    #[error("hidden layer size {0:?} is not a number from 1 to {HIDDEN_MAX}")]
    Hidden(String),
    /// Too many hidden layers.
    #[error("{0} hidden layers; at most {DEPTH_MAX} are supported")]
    Depth(usize),
    /// A penalty that is none.
    #[error("penalty {0:?} is not a number from 0 on")]
    Penalty(String),
    /// A language model that is none.
    #[error(transparent)]
    Language(#[from] LanguageSpecError),
}

impl FromStr for ModelSpec {
    type Err = ModelSpecError;

    fn from_str(text: &str) -> Result<ModelSpec, ModelSpecError> {
        let (word, rest) = match text.split_once(':') {
            Some((word, rest)) => (word, Some(rest)),
            None => (text, None),
        };
        match (word, rest) {
            ("softmax", None) => Ok(ModelSpec::Softmax),
            ("cnn", None) => Ok(ModelSpec::Cnn),
            ("language", Some(spec)) => Ok(ModelSpec::Language(spec.parse()?)),
            ("linear", None) => Ok(ModelSpec::Linear { l2: 0.0 }),
            ("linear", Some(l2)) => Ok(ModelSpec::Linear { l2: penalty(l2)? }),
            ("logistic", None) => Ok(ModelSpec::Logistic { l2: 0.0, bias: true }),
            ("logistic", Some(rest)) => match rest.split_once(':') {
                None => Ok(ModelSpec::Logistic { l2: penalty(rest)?, bias: true }),
                Some((l2, "no-bias")) => Ok(ModelSpec::Logistic { l2: penalty(l2)?, bias: false }),
                Some(_) => Err(ModelSpecError::Unknown(text.to_owned())),
            },
            ("mlp", Some(sizes)) => {
                let hidden: Vec<usize> =
                    sizes.split(',').map(hidden_size).collect::<Result<_, _>>()?;
                if hidden.len() > DEPTH_MAX {
                    return Err(ModelSpecError::Depth(hidden.len()));
                }
                Ok(ModelSpec::Mlp { hidden })
            }
            _ => Err(ModelSpecError::Unknown(text.to_owned())),
        }
    }
}

fn penalty(text: &str) -> Result<f64, ModelSpecError> {
    let l2 = text.parse().ok().filter(|l2| (0.0..f64::INFINITY).contains(l2));
    l2.ok_or_else(|| ModelSpecError::Penalty(text.to_owned()))
}

fn hidden_size(text: &str) -> Result<usize, ModelSpecError> {
    let size = text.parse().ok().filter(|size| (1..=HIDDEN_MAX).contains(size));
    size.ok_or_else(|| ModelSpecError::Hidden(text.to_owned()))
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSpec::Softmax => f.write_str("softmax"),
            ModelSpec::Cnn => f.write_str("cnn"),
            ModelSpec::Language(spec) => write!(f, "language:{spec}"),
            ModelSpec::Linear { l2: 0.0 } => f.write_str("linear"),
            ModelSpec::Linear { l2 } => write!(f, "linear:{l2:?}"),
            ModelSpec::Logistic { l2: 0.0, bias: true } => f.write_str("logistic"),
            ModelSpec::Logistic { l2, bias: true } => write!(f, "logistic:{l2:?}"),
            ModelSpec::Logistic { l2, bias: false } => write!(f, "logistic:{l2:?}:no-bias"),
            ModelSpec::Mlp { hidden } => {
                f.write_str("mlp")?;
                hidden
                    .iter()
                    .zip(std::iter::once(':').chain(std::iter::repeat(',')))
                    .try_for_each(|(size, separator)| write!(f, "{separator}{size}"))
            }
        }
    }
}

/// Why a model cannot be had on a data set.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    /// The logistic model tells two classes apart.
    #[error("the logistic model needs 2 classes, the data have {0}; use softmax")]
    Classes(usize),
    /// The convolutional model sees images, and halves them twice.
    #[error(
        "the cnn model needs square images of 16, 20, 24 … pixels a side, the data have {0} \
         features; use mlp:H"
    )]
    Images(usize),
    /// A model beyond [`PARAMETERS_MAX`].
    #[error("the model has {0} parameters; at most {PARAMETERS_MAX} are supported")]
    Parameters(usize),
    /// Texts for a model of numbers.
    #[error(
        "the model {0} learns from numbers, the data are texts; name a language model with --weights"
    )]
    Texts(String),
    /// A language model without its weights.
    #[error("a language model needs the folder of its weights; name it with --weights")]
    Weights,
}

/// The objective of a model on a data set.
///
/// # Errors
/// If the model does not fit the number of classes or features, or is too large.
pub fn build(spec: &ModelSpec, dataset: Arc<Dataset>) -> Result<Box<dyn Objective>, BuildError> {
    if let Features::Text(_) = dataset.train.features {
        return Err(match spec {
            ModelSpec::Language(_) => BuildError::Weights,
            _ => BuildError::Texts(spec.to_string()),
        });
    }
    let objective: Box<dyn Objective> = match spec {
        ModelSpec::Language(_) => return Err(BuildError::Weights),
        ModelSpec::Softmax => Box::new(Network::new(dataset, &[])),
        ModelSpec::Mlp { hidden } => Box::new(Network::new(dataset, hidden)),
        ModelSpec::Linear { l2 } => Box::new(Linear::new(dataset, *l2)),
        ModelSpec::Cnn => {
            let features = dataset.features;
            Box::new(Cnn::new(dataset).ok_or(BuildError::Images(features))?)
        }
        ModelSpec::Logistic { .. } if dataset.classes != 2 => {
            return Err(BuildError::Classes(dataset.classes));
        }
        ModelSpec::Logistic { l2, bias: true } => Box::new(Logistic::new(dataset, *l2)),
        ModelSpec::Logistic { l2, bias: false } => {
            Box::new(Logistic::new(dataset, *l2).without_bias())
        }
    };
    let parameters =
        objective.tensors().iter().fold(0usize, |sum, tensor| sum.saturating_add(tensor.len()));
    if parameters > PARAMETERS_MAX {
        return Err(BuildError::Parameters(parameters));
    }
    Ok(objective)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_survive_a_round_trip() {
        for name in [
            "softmax",
            "logistic",
            "logistic:0.001",
            "logistic:0.01:no-bias",
            "logistic:0.0:no-bias",
            "linear",
            "linear:0.5",
            "cnn",
            "mlp:32",
            "mlp:64,32,1",
            "language:classify;head=linear",
        ] {
            assert_eq!(name.parse::<ModelSpec>().unwrap().to_string(), name);
        }
        assert_eq!("logistic:1e-3".parse(), Ok(ModelSpec::Logistic { l2: 1e-3, bias: true }));
    }

    #[test]
    fn models_that_do_not_fit_the_data_are_refused() {
        let raw = crate::data::csv::parse(b"1,2,a\n1,3,b\n4,1,c\n").unwrap();
        let dataset = Arc::new(Dataset::assemble("three", raw.clone(), Some(raw)).unwrap());
        let error = |model: &str| build(&model.parse().unwrap(), dataset.clone()).err();
        assert_eq!(error("logistic:1:no-bias"), Some(BuildError::Classes(3)));
        assert_eq!(error("cnn"), Some(BuildError::Images(2)));
        assert_eq!(error("linear:1"), None);
    }

    #[test]
    fn wrong_model_names_are_refused() {
        let error = |text: &str| text.parse::<ModelSpec>().unwrap_err();
        for text in ["", "mlp", "softmax:1", "cnn:3", "logistic:0:bias"] {
            assert_eq!(error(text), ModelSpecError::Unknown(text.to_owned()));
        }
        for size in ["", "0", "-1", "4097", "x"] {
            assert_eq!(error(&format!("mlp:8,{size}")), ModelSpecError::Hidden(size.to_owned()));
        }
        assert_eq!(error("mlp:1,1,1,1,1,1,1,1,1"), ModelSpecError::Depth(9));
        for l2 in ["-1", "nan", "inf"] {
            for model in ["logistic", "linear"] {
                let error = error(&format!("{model}:{l2}"));
                assert_eq!(error, ModelSpecError::Penalty(l2.to_owned()));
            }
        }
    }
}
