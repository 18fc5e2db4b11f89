//! What encoders and decoders share: packed batches, weights by name, linear layers with adapters.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::config::{Config, Kind};
use super::decoder::{self, Decoder};
use super::encoder::{self, Encoder};
use super::kernel::Activation;
use super::op;

/// How much an adapter's product counts.
pub(super) const ADAPTER_SCALE: f64 = 2.0;

/// Sequences packed one behind the other.
pub(super) struct Batch {
    /// The tokens.
    pub(super) ids: Vec<u32>,
    /// The position of each token in its sequence.
    pub(super) positions: Vec<u32>,
    /// Where each sequence begins, and the end of the last.
    pub(super) offsets: Vec<usize>,
    /// What kernels of a device read there.
    #[cfg(feature = "cuda")]
    pub(super) on_device: Option<OnDevice>,
}

/// A batch on a device.
#[cfg(feature = "cuda")]
pub(super) struct OnDevice {
    /// The position of each token in its sequence.
    pub(super) positions: Tensor,
    /// What attention's blocks of threads work on.
    pub(super) tiles: Tensor,
}

impl Batch {
    /// A batch for heads of so many values.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub(super) fn new(head: usize, sequences: &[&[u32]], device: &Device) -> Result<Batch> {
        let mut offsets = vec![0];
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for sequence in sequences {
            ids.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            offsets.push(ids.len());
        }
        #[cfg(feature = "cuda")]
        let on_device = match device.is_cpu() {
            true => None,
            false => {
                let tiles = super::cuda::pass::tiles(&offsets, head);
                let count = tiles.len();
                Some(OnDevice {
                    positions: Tensor::from_slice(&positions, positions.len(), device)?,
                    tiles: Tensor::from_vec(tiles, count, device)?,
                })
            }
        };
        Ok(Batch {
            ids,
            positions,
            offsets,
            #[cfg(feature = "cuda")]
            on_device,
        })
    }
}

/// Weights by their names without the folder's prefix.
pub(super) struct Weights<'a> {
    /// Those that are, or will be, written whole.
    pub(super) tensors: &'a BTreeMap<String, Tensor>,
    /// Tables of which rows are written for each batch: their numbers among the trained tensors, and widths.
    pub(super) tables: &'a BTreeMap<String, (usize, usize)>,
}

impl Weights<'_> {
    /// A weight; the loader has checked that all are there.
    pub(super) fn get(&self, name: &str) -> Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the loader knows tensor {name}")).clone()
    }

    /// A matrix of which rows are read.
    pub(super) fn table(&self, name: &str) -> Table {
        match self.tables.get(name) {
            Some(&(tensor, width)) => Table::Rows { tensor, width },
            None => Table::Whole(self.get(name)),
        }
    }

    /// A linear layer, with its adapter if there is one.
    pub(super) fn linear(&self, name: &str) -> Linear {
        let part = |part: &str| self.tensors.get(&format!("{name}.{part}")).cloned();
        let turned = |tensor: Tensor| tensor.t().expect("a matrix");
        Linear {
            weight: turned(self.get(&format!("{name}.weight"))),
            bias: part("bias"),
            adapter: part("lora_A.weight")
                .zip(part("lora_B.weight"))
                .map(|(a, b)| (turned(a), turned(b))),
        }
    }
}

/// A matrix of which a pass reads some rows.
pub(super) enum Table {
    /// It stands somewhere.
    Whole(Tensor),
    /// Its rows are written for each batch: half of a small encoder is its table of words, of which a batch
    /// has few.
    Rows {
        /// Its number among the trained tensors.
        tensor: usize,
        /// The length of a row.
        width: usize,
    },
}

impl Table {
    /// The matrix, where all of it is read.
    ///
    /// # Panics
    /// Where it is not.
    pub(super) fn whole(&self) -> &Tensor {
        match self {
            Table::Whole(matrix) => matrix,
            Table::Rows { .. } => panic!("a matrix that stands nowhere"),
        }
    }
}

/// Rows of a table at one end.
pub(super) struct TableRows {
    /// Their numbers, ascending; of a matrix that stands somewhere all rows are there.
    pub(super) numbers: Option<Arc<[u32]>>,
    /// The rows, one below the other.
    pub(super) matrix: Tensor,
}

impl TableRows {
    /// The rows of these numbers, which may repeat, one below the other.
    ///
    /// # Panics
    /// If one is not there.
    pub(super) fn read(&self, numbers: &[u32]) -> Result<Tensor> {
        let place = |number: &u32| match &self.numbers {
            Some(all) => all.binary_search(number).expect("a row that was written") as u32,
            None => *number,
        };
        let places: Vec<u32> = numbers.iter().map(place).collect();
        let count = places.len();
        self.matrix.index_select(&Tensor::from_vec(places, count, self.matrix.device())?, 0)
    }
}

/// The shapes of a linear layer's tensors.
pub(super) fn linear_shapes(
    all: &mut Vec<(String, Vec<usize>)>,
    name: String,
    outputs: usize,
    inputs: usize,
    bias: bool,
) {
    if bias {
        all.push((format!("{name}.bias"), vec![outputs]));
    }
    all.push((format!("{name}.weight"), vec![outputs, inputs]));
}

/// A linear layer. Its tensors share memory with the weights they were made of.
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<(Tensor, Tensor)>,
}

impl Linear {
    fn product(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight)?;
        let Some((down, up)) = &self.adapter else { return Ok(y) };
        let low = (x.matmul(down)? * ADAPTER_SCALE)?;
        op::add(y, &low.matmul(up)?)
    }

    /// `x Wᵀ + b`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => op::add_bias(y, bias),
            None => Ok(y),
        }
    }

    /// `x Wᵀ + b + other`.
    pub(super) fn apply_and_add(&self, x: &Tensor, other: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => op::add_bias_and(y, bias, other),
            None => op::add(y, other),
        }
    }

    /// `activation(x Wᵀ + b)`.
    pub(super) fn apply_bent(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let y = self.product(x)?;
        let bias = self.bias.as_ref().expect("an encoder's layers have biases");
        op::bias_activation(y, bias, activation)
    }
}

/// A half of a layer with this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Half {
    Attention(usize),
    FeedForward(usize),
}

/// The halves of these layers, in the order of a pass.
pub(super) fn halves(layers: Range<usize>) -> impl Iterator<Item = Half> {
    layers.flat_map(|layer| [Half::Attention(layer), Half::FeedForward(layer)])
}

/// The half of a layer that a tensor is of; none for embeddings and for what comes behind the last layer.
pub(super) fn half_of(config: &Config, name: &str) -> Option<Half> {
    let layer = layer_number(name)?;
    let second = match config.kind {
        Kind::Encoder { distil, .. } => encoder::feeds_forward(distil, name),
        Kind::Decoder { .. } => decoder::feeds_forward(name),
    };
    Some(if second { Half::FeedForward(layer) } else { Half::Attention(layer) })
}

/// A transformer over a set of weights.
pub(super) enum Model {
    /// The BERT family.
    Encoder(Encoder),
    /// The Llama family.
    Decoder(Decoder),
}

impl Model {
    /// `positions` is the longest sequence that will come.
    pub(super) fn new(
        config: &Config,
        weights: &Weights<'_>,
        positions: usize,
        device: &Device,
    ) -> Result<Model> {
        Ok(match config.is_decoder() {
            true => Model::Decoder(Decoder::new(config, weights, positions, device)?),
            false => Model::Encoder(Encoder::new(config, weights)),
        })
    }

    /// The tables that embeddings are read from: of words, and an encoder's of positions.
    pub(super) fn tables(&self) -> Vec<&Table> {
        match self {
            Model::Encoder(model) => model.tables().to_vec(),
            Model::Decoder(model) => vec![&model.words],
        }
    }

    /// The rows that these sequences have in each of them, ascending.
    pub(super) fn rows_of(&self, sequences: &[&[u32]]) -> Vec<Vec<u32>> {
        let mut words = sequences.concat();
        words.sort_unstable();
        words.dedup();
        match self {
            Model::Encoder(model) => vec![words, model.positions_of(sequences)],
            Model::Decoder(_) => vec![words],
        }
    }

    /// What enters the first layer, from rows of the tables.
    pub(super) fn embed(&self, batch: &Batch, rows: &[TableRows]) -> Result<Tensor> {
        match self {
            Model::Encoder(model) => model.embed(batch, rows),
            Model::Decoder(_) => rows[0].read(&batch.ids),
        }
    }

    /// A half of a layer on what came out of the half before, or of the embedding.
    pub(super) fn half(&self, half: Half, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        match (self, half) {
            (Model::Encoder(model), Half::Attention(layer)) => model.attention(layer, x, batch),
            (Model::Encoder(model), Half::FeedForward(layer)) => model.feed_forward(layer, x),
            (Model::Decoder(model), Half::Attention(layer)) => model.attention(layer, x, batch),
            (Model::Decoder(model), Half::FeedForward(layer)) => model.feed_forward(layer, x),
        }
    }
}

/// The tensors of a model, without the folder's prefix.
pub(super) fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    match config.is_decoder() {
        true => decoder::tensors(config),
        false => encoder::tensors(config),
    }
}

/// The matrices that adapters are made for, without `.weight`.
pub(super) fn adapted(config: &Config) -> Vec<String> {
    match config.is_decoder() {
        true => decoder::adapted(config),
        false => encoder::adapted(config),
    }
}

/// The number of the layer that a tensor is of; none for embeddings and for what comes behind the last layer.
fn layer_number(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The first layer that a tensor enters: 0 for embeddings, the number of layers for what comes behind
/// the last.
pub(super) fn layer_of(config: &Config, name: &str) -> usize {
    match layer_number(name) {
        // An embedding enters the first; so does a decoder's output matrix where it is the embedding.
        None if name.contains("embed") => 0,
        None => config.layers,
        Some(layer) => layer,
    }
}

/// Whether passes read all of the tensor of this name, and not only the rows of their tokens, positions or
/// answers. Of a decoder's output matrix all is read where it predicts every token (`causal`).
pub(super) fn is_read_whole(config: &Config, name: &str, causal: bool) -> bool {
    let tied = matches!(config.kind, Kind::Decoder { tied: true, .. });
    match name {
        "embeddings.word_embeddings.weight" | "embeddings.position_embeddings.weight" => false,
        "embed_tokens.weight" => causal && tied,
        "lm_head.weight" => causal,
        _ => true,
    }
}
