//! The BERT family: absolute positions, normalization behind every sum, sight in both directions.
//!
//! All sequences of a batch are packed one behind the other, so that a short one costs no padding.

use candle_core::{Result, Tensor};

use super::config::{Config, Kind};
use super::kernel::Activation;
use super::model::{Batch, Linear, Table, TableRows, Weights, linear_shapes};
use super::op;

/// A BERT-like encoder over a set of weights.
pub(super) struct Encoder {
    words: Table,
    positions: Table,
    /// The row of the table of positions that the first token gets.
    first_position: u32,
    types: Option<Tensor>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Norm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f32,
}

impl Norm {
    fn new(weights: &Weights<'_>, name: &str, epsilon: f32) -> Norm {
        let part = |part| weights.get(&format!("{name}.{part}"));
        Norm { weight: part("weight"), bias: part("bias"), epsilon }
    }

    fn apply(&self, x: Tensor) -> Result<Tensor> {
        op::layer_norm(x, &self.weight, &self.bias, self.epsilon)
    }
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    wide: Linear,
    narrow: Linear,
    norm: Norm,
    activation: Activation,
    head: usize,
}

/// What the parts of a layer are called.
struct Names {
    layer: &'static str,
    attention: [&'static str; 4],
    attention_norm: &'static str,
    feed_forward: [&'static str; 2],
    norm: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    attention: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ],
    attention_norm: "attention.output.LayerNorm",
    feed_forward: ["intermediate.dense", "output.dense"],
    norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layer: "transformer.layer",
    attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
    attention_norm: "sa_layer_norm",
    feed_forward: ["ffn.lin1", "ffn.lin2"],
    norm: "output_layer_norm",
};

fn names(distil: bool) -> &'static Names {
    if distil { &DISTILBERT } else { &BERT }
}

/// The tensors of an encoder, without the folder's prefix.
pub(super) fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let Kind::Encoder { first_position, types, distil, .. } = config.kind else {
        return Vec::new();
    };
    let &Config { vocabulary, hidden, inner, positions, .. } = config;
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut embedding = |name: &str, rows: usize| {
        all.push((format!("embeddings.{name}_embeddings.weight"), vec![rows, hidden]));
    };
    embedding("word", vocabulary);
    embedding("position", positions + first_position);
    if types > 0 {
        embedding("token_type", types);
    }
    let names = names(distil);
    let norm = |all: &mut Vec<(String, Vec<usize>)>, name: String| {
        all.push((format!("{name}.weight"), vec![hidden]));
        all.push((format!("{name}.bias"), vec![hidden]));
    };
    norm(&mut all, "embeddings.LayerNorm".into());
    for layer in 0..config.layers {
        let name = |part: &str| format!("{}.{layer}.{part}", names.layer);
        for part in names.attention {
            linear_shapes(&mut all, name(part), hidden, hidden, true);
        }
        norm(&mut all, name(names.attention_norm));
        linear_shapes(&mut all, name(names.feed_forward[0]), inner, hidden, true);
        linear_shapes(&mut all, name(names.feed_forward[1]), hidden, inner, true);
        norm(&mut all, name(names.norm));
    }
    all
}

/// Whether a layer's tensor of this name is of its second half.
pub(super) fn feeds_forward(distil: bool, name: &str) -> bool {
    let names = names(distil);
    // Behind the name and the number of the layers.
    let own = name
        .strip_prefix(names.layer)
        .unwrap_or(name)
        .trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    names.feed_forward.iter().chain([&names.norm]).any(|part| own.starts_with(part))
}

/// The matrices that adapters are made for: queries and values.
pub(super) fn adapted(config: &Config) -> Vec<String> {
    let Kind::Encoder { distil, .. } = config.kind else { return Vec::new() };
    let names = names(distil);
    let layers = 0..config.layers;
    let parts = |layer| [0, 2].map(|at| format!("{}.{layer}.{}", names.layer, names.attention[at]));
    layers.flat_map(parts).collect()
}

impl Encoder {
    pub(super) fn new(config: &Config, weights: &Weights<'_>) -> Encoder {
        let Kind::Encoder { activation, types, distil, first_position, .. } = config.kind else {
            unreachable!("an encoder's configuration")
        };
        let names = names(distil);
        let layer = |layer: usize| {
            let name = |part: &str| format!("{}.{layer}.{part}", names.layer);
            let [query, key, value, output] =
                names.attention.map(|part| weights.linear(&name(part)));
            let [wide, narrow] = names.feed_forward.map(|part| weights.linear(&name(part)));
            Layer {
                query,
                key,
                value,
                output,
                attention_norm: Norm::new(weights, &name(names.attention_norm), config.epsilon),
                wide,
                narrow,
                norm: Norm::new(weights, &name(names.norm), config.epsilon),
                activation,
                head: config.head,
            }
        };
        Encoder {
            words: weights.table("embeddings.word_embeddings.weight"),
            positions: weights.table("embeddings.position_embeddings.weight"),
            first_position: first_position as u32,
            types: (types > 0).then(|| weights.get("embeddings.token_type_embeddings.weight")),
            norm: Norm::new(weights, "embeddings.LayerNorm", config.epsilon),
            layers: (0..config.layers).map(layer).collect(),
        }
    }

    /// Those of words and of positions.
    pub(super) fn tables(&self) -> [&Table; 2] {
        [&self.words, &self.positions]
    }

    /// The rows of positions that these sequences have.
    pub(super) fn positions_of(&self, sequences: &[&[u32]]) -> Vec<u32> {
        let longest = sequences.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
        (self.first_position..self.first_position + longest as u32).collect()
    }

    /// What enters the first layer, from rows of both tables.
    pub(super) fn embed(&self, batch: &Batch, rows: &[TableRows]) -> Result<Tensor> {
        let positions: Vec<u32> =
            batch.positions.iter().map(|at| at + self.first_position).collect();
        let x = op::add(rows[0].read(&batch.ids)?, &rows[1].read(&positions)?)?;
        let x = match &self.types {
            Some(types) => op::add_bias(x, &types.get(0)?)?,
            None => x,
        };
        self.norm.apply(x)
    }

    /// The first half of a layer.
    pub(super) fn attention(&self, index: usize, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let layer = &self.layers[index];
        let (q, k) = (layer.query.apply(x)?, layer.key.apply(x)?);
        let v = layer.value.apply(x)?;
        let seen = op::attention([&q, &k, &v], batch, layer.head, None)?;
        layer.attention_norm.apply(layer.output.apply_and_add(&seen, x)?)
    }

    /// The second half of a layer.
    pub(super) fn feed_forward(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let layer = &self.layers[index];
        let wide = layer.wide.apply_bent(x, layer.activation)?;
        layer.norm.apply(layer.narrow.apply_and_add(&wide, x)?)
    }
}
