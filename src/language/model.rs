//! What encoders and decoders share: packed batches, weights by name, linear layers with adapters.

use std::collections::BTreeMap;

use candle_core::{Device, Result, Tensor};

use super::config::{Config, Kind};
use super::decoder::{self, Decoder};
use super::encoder::{self, Encoder};
use super::kernel::Activation;
use super::pass::{self, Groups};

/// How much an adapter's product counts.
pub(super) const ADAPTER_SCALE: f64 = 2.0;

/// Sequences packed one behind the other.
pub(super) struct Batch {
    /// The tokens.
    pub(super) ids: Tensor,
    /// The position of each token in its sequence.
    pub(super) positions: Vec<u32>,
    /// The same as rows of the table of positions.
    pub(super) rows: Tensor,
    /// Where each sequence begins, and the end of the last.
    pub(super) offsets: Vec<usize>,
    /// The sequences as attention on a device takes them.
    pub(super) groups: Option<Groups>,
}

impl Batch {
    pub(super) fn new(config: &Config, sequences: &[&[u32]], device: &Device) -> Result<Batch> {
        let mut offsets = vec![0];
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for sequence in sequences {
            ids.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            offsets.push(ids.len());
        }
        let first = first_position(config);
        let rows: Vec<u32> = positions.iter().map(|position| position + first).collect();
        let len = ids.len();
        let tensor = |values: Vec<u32>| Tensor::from_vec(values, len, device);
        let (ids, rows) = (tensor(ids)?, tensor(rows)?);
        let groups = Groups::new(&offsets, config.causal(), device)?;
        Ok(Batch { ids, positions, rows, offsets, groups })
    }
}

/// The row of the table of positions that the first token gets.
pub(super) fn first_position(config: &Config) -> u32 {
    match config.kind {
        Kind::Encoder { first_position, .. } => first_position as u32,
        Kind::Decoder { .. } => 0,
    }
}

/// Weights by their names without the folder's prefix.
pub(super) struct Weights<'a>(pub(super) &'a BTreeMap<String, Tensor>);

impl Weights<'_> {
    /// A weight; the loader has checked that all are there.
    pub(super) fn get(&self, name: &str) -> Tensor {
        self.0.get(name).unwrap_or_else(|| panic!("the loader knows tensor {name}")).clone()
    }

    /// A linear layer, with its adapter if there is one.
    pub(super) fn linear(&self, name: &str) -> Linear {
        let part = |part: &str| self.0.get(&format!("{name}.{part}")).cloned();
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
        pass::add(y, &low.matmul(up)?)
    }

    /// `x Wᵀ + b`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => pass::add_bias(y, bias),
            None => Ok(y),
        }
    }

    /// `x Wᵀ + b + other`.
    pub(super) fn apply_and_add(&self, x: &Tensor, other: &Tensor) -> Result<Tensor> {
        let y = self.product(x)?;
        match &self.bias {
            Some(bias) => pass::add_bias_and(y, bias, other),
            None => pass::add(y, other),
        }
    }

    /// `activation(x Wᵀ + b)`.
    pub(super) fn apply_bent(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let y = self.product(x)?;
        let bias = self.bias.as_ref().expect("an encoder's layers have biases");
        pass::bias_activation(y, bias, activation)
    }
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
        weights: &BTreeMap<String, Tensor>,
        positions: usize,
        device: &Device,
    ) -> Result<Model> {
        let weights = &Weights(weights);
        Ok(match config.is_decoder() {
            true => Model::Decoder(Decoder::new(config, weights, positions, device)?),
            false => Model::Encoder(Encoder::new(config, weights)),
        })
    }

    pub(super) fn embed(&self, batch: &Batch) -> Result<Tensor> {
        match self {
            Model::Encoder(model) => model.embed(batch),
            Model::Decoder(model) => model.embed(batch),
        }
    }

    /// Layers `from..to` on what came out of the one before, or of the embedding.
    pub(super) fn layers(
        &self,
        range: std::ops::Range<usize>,
        mut x: Tensor,
        batch: &Batch,
    ) -> Result<Tensor> {
        for index in range {
            x = match self {
                Model::Encoder(model) => model.layer(index, &x, batch)?,
                Model::Decoder(model) => model.layer(index, &x, batch)?,
            };
        }
        Ok(x)
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

/// The first layer that a tensor enters: 0 for embeddings, the number of layers for what comes behind
/// the last.
pub(super) fn layer_of(config: &Config, name: &str) -> usize {
    let number = name.split('.').find_map(|part| part.parse().ok());
    match number {
        // An embedding enters the first; so does a decoder's output matrix where it is the embedding.
        None if name.contains("embed") => 0,
        None => config.layers,
        Some(layer) => layer,
    }
}

/// What a forward pass reads of a tensor.
#[derive(Clone, Copy)]
pub(super) enum Read {
    /// All of it.
    Whole,
    /// The rows of the batch's tokens.
    Words,
    /// The rows of the batch's positions.
    Positions,
}

/// What a forward pass reads of the tensor of this name.
pub(super) fn read_of(config: &Config, name: &str) -> Read {
    let own_output = matches!(config.kind, Kind::Decoder { tied: false, .. });
    match name {
        "embeddings.word_embeddings.weight" => Read::Words,
        "embed_tokens.weight" if own_output => Read::Words,
        "embeddings.position_embeddings.weight" => Read::Positions,
        _ => Read::Whole,
    }
}
