//! The Llama family: rotary positions, normalization in front, gated feed-forward layers, sight backward.

use candle_core::{Device, Result, Tensor};

use super::config::{Config, Kind, Stretch};
use super::model::{Batch, Linear, Table, Weights, linear_shapes};
use super::op::{self, Angles};

/// A Llama-like decoder over a set of weights.
pub(super) struct Decoder {
    /// The rows of words.
    pub(super) words: Table,
    layers: Vec<Layer>,
    norm: Tensor,
    /// The rows of the output matrix; whole where every token is predicted.
    pub(super) output: Table,
    epsilon: f32,
    head: usize,
    causal: Option<usize>,
    angles: Angles,
}

struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The tensors of a decoder, without the folder's prefix.
pub(super) fn tensors(config: &Config) -> Vec<(String, Vec<usize>)> {
    let Kind::Decoder { tied, bias, .. } = config.kind else { return Vec::new() };
    let &Config { vocabulary, hidden, inner, heads, key_heads, head, .. } = config;
    let mut all = vec![("embed_tokens.weight".into(), vec![vocabulary, hidden])];
    for layer in 0..config.layers {
        let name = |part: &str| format!("layers.{layer}.{part}");
        all.push((name("input_layernorm.weight"), vec![hidden]));
        for (part, outputs) in [("q_proj", heads), ("k_proj", key_heads), ("v_proj", key_heads)] {
            let name = name(&format!("self_attn.{part}"));
            linear_shapes(&mut all, name, outputs * head, hidden, bias);
        }
        // Of the supported models only Llama with attention_bias has one here too.
        let biased = bias && config.model_type == "llama";
        linear_shapes(&mut all, name("self_attn.o_proj"), hidden, heads * head, biased);
        all.push((name("post_attention_layernorm.weight"), vec![hidden]));
        for part in ["gate_proj", "up_proj"] {
            linear_shapes(&mut all, name(&format!("mlp.{part}")), inner, hidden, false);
        }
        linear_shapes(&mut all, name("mlp.down_proj"), hidden, inner, false);
    }
    all.push(("norm.weight".into(), vec![hidden]));
    if !tied {
        all.push(("lm_head.weight".into(), vec![vocabulary, hidden]));
    }
    all
}

/// Whether a layer's tensor of this name is of its second half.
pub(super) fn feeds_forward(name: &str) -> bool {
    name.contains(".mlp.") || name.contains(".post_attention_layernorm.")
}

/// The matrices that adapters are made for: queries and values.
pub(super) fn adapted(config: &Config) -> Vec<String> {
    let parts = |layer| ["q_proj", "v_proj"].map(|part| format!("layers.{layer}.self_attn.{part}"));
    (0..config.layers).flat_map(parts).collect()
}

/// Cosines and sines of the angles, half a head a position.
fn angles(config: &Config, theta: f64, stretch: &Stretch, positions: usize) -> [Vec<f32>; 2] {
    let half = config.head / 2;
    let frequency = |pair: usize| {
        let plain = theta.powf(-2.0 * pair as f64 / config.head as f64);
        match *stretch {
            Stretch::None => plain,
            Stretch::Linear(factor) => plain / factor,
            Stretch::Llama3 { factor, low, high, context } => {
                let length = 2.0 * std::f64::consts::PI / plain;
                if length < context / high {
                    plain
                } else if length > context / low {
                    plain / factor
                } else {
                    let smooth = (context / length - low) / (high - low);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
        }
    };
    let frequencies: Vec<f64> = (0..half).map(frequency).collect();
    let angles = || {
        let position = 0..positions;
        position.flat_map(|position| frequencies.iter().map(move |f| position as f64 * f))
    };
    [angles().map(|a| a.cos() as f32).collect(), angles().map(|a| a.sin() as f32).collect()]
}

impl Decoder {
    /// `positions` is the longest sequence that will come.
    pub(super) fn new(
        config: &Config,
        weights: &Weights<'_>,
        positions: usize,
        device: &Device,
    ) -> Result<Decoder> {
        let Kind::Decoder { theta, ref stretch, tied, .. } = config.kind else {
            unreachable!("a decoder's configuration")
        };
        let layer = |layer: usize| {
            let linear = |part: &str| weights.linear(&format!("layers.{layer}.{part}"));
            let norm = |part: &str| weights.get(&format!("layers.{layer}.{part}.weight"));
            Layer {
                attention_norm: norm("input_layernorm"),
                query: linear("self_attn.q_proj"),
                key: linear("self_attn.k_proj"),
                value: linear("self_attn.v_proj"),
                output: linear("self_attn.o_proj"),
                norm: norm("post_attention_layernorm"),
                gate: linear("mlp.gate_proj"),
                up: linear("mlp.up_proj"),
                down: linear("mlp.down_proj"),
            }
        };
        let output = if tied { "embed_tokens.weight" } else { "lm_head.weight" };
        let angles = angles(config, theta, stretch, positions);
        Ok(Decoder {
            output: weights.table(output),
            words: weights.table("embed_tokens.weight"),
            layers: (0..config.layers).map(layer).collect(),
            norm: weights.get("norm.weight"),
            epsilon: config.epsilon,
            head: config.head,
            causal: config.causal(),
            angles: Angles::new(angles, config.head / 2, device)?,
        })
    }

    /// The first half of a layer.
    pub(super) fn attention(&self, index: usize, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let layer = &self.layers[index];
        let normal = self.normalize(x, &layer.attention_norm)?;
        let (q, k) = (layer.query.apply(&normal)?, layer.key.apply(&normal)?);
        let v = layer.value.apply(&normal)?;
        let turned = |x| op::rotate(x, self.head, batch, &self.angles);
        let (q, k) = (turned(q)?, turned(k)?);
        let seen = op::attention([&q, &k, &v], batch, self.head, self.causal)?;
        layer.output.apply_and_add(&seen, x)
    }

    /// The second half of a layer.
    pub(super) fn feed_forward(&self, index: usize, x: &Tensor) -> Result<Tensor> {
        let layer = &self.layers[index];
        let normal = self.normalize(x, &layer.norm)?;
        let gate = layer.gate.apply(&normal)?;
        let gate = op::silu_times(gate, &layer.up.apply(&normal)?)?;
        layer.down.apply_and_add(&gate, x)
    }

    /// The last normalization, in front of the output matrix.
    pub(super) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.normalize(x, &self.norm)
    }

    fn normalize(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        op::rms_norm(x, weight, self.epsilon)
    }
}
