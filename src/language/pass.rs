//! The passes of a layer beside its matrix products: in main memory the kernels of [`op`], which work in place
//! and on packed sequences; on another device the same in candle's own operations.
//!
//! A device's results differ from the processor's in the last bits, as those of two processors do; probes are
//! measured, not agreed upon. Tests run both ways on the processor and compare them.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::kernel::Activation;
use super::model::Batch;
use super::op;

/// Sequences are padded to a multiple of so many tokens for attention on a device: few different lengths are
/// few launches, and little is computed for nothing.
const PADDING: usize = 16;

/// Added to the score of a token that is not seen. Finite, so that the rows of padding, which see nothing, stay
/// numbers; the exponential is zero all the same.
const UNSEEN: f32 = -1e30;

#[cfg(test)]
thread_local! {
    /// Makes a device of main memory.
    pub(super) static PLAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether the kernels for main memory serve.
pub(super) fn in_place(device: &Device) -> bool {
    #[cfg(test)]
    if PLAIN.get() {
        return false;
    }
    device.is_cpu()
}

/// `x + bias`.
pub(super) fn add_bias(x: Tensor, bias: &Tensor) -> Result<Tensor> {
    if !in_place(x.device()) {
        return x.broadcast_add(bias);
    }
    x.inplace_op2(bias, &op::AddBias)?;
    Ok(x)
}

/// `x + other`.
pub(super) fn add(x: Tensor, other: &Tensor) -> Result<Tensor> {
    if !in_place(x.device()) {
        return x.add(other);
    }
    x.inplace_op2(other, &op::Add)?;
    Ok(x)
}

/// `x + bias + other`.
pub(super) fn add_bias_and(x: Tensor, bias: &Tensor, other: &Tensor) -> Result<Tensor> {
    if !in_place(x.device()) {
        return x.broadcast_add(bias)?.add(other);
    }
    x.inplace_op3(bias, other, &op::AddBiasAnd)?;
    Ok(x)
}

/// `activation(x + bias)`.
pub(super) fn bias_activation(x: Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    if !in_place(x.device()) {
        let x = x.broadcast_add(bias)?;
        return match activation {
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
            Activation::Relu => x.relu(),
        };
    }
    x.inplace_op2(bias, &op::BiasActivation(activation))?;
    Ok(x)
}

/// `silu(x) · other`.
pub(super) fn silu_times(x: Tensor, other: &Tensor) -> Result<Tensor> {
    if !in_place(x.device()) {
        return x.silu()?.mul(other);
    }
    x.inplace_op2(other, &op::SiluTimes)?;
    Ok(x)
}

/// Layer normalization of every row.
pub(super) fn layer_norm(
    x: Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    if !in_place(x.device()) {
        let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = x.sqr()?.mean_keepdim(1)?;
        let x = x.broadcast_div(&(variance + f64::from(epsilon))?.sqrt()?)?;
        return x.broadcast_mul(weight)?.broadcast_add(bias);
    }
    x.inplace_op3(weight, bias, &op::LayerNorm(epsilon))?;
    Ok(x)
}

/// Root-mean-square normalization of every row.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    if !in_place(x.device()) {
        let square = x.sqr()?.mean_keepdim(1)?;
        return x.broadcast_div(&(square + f64::from(epsilon))?.sqrt()?)?.broadcast_mul(weight);
    }
    x.apply_op2_no_bwd(weight, &op::RmsNorm(epsilon))
}

/// Cosines and sines of rotary positions, half a head a position.
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same on a device.
    tables: Option<(Tensor, Tensor)>,
}

impl Angles {
    pub(super) fn new([cos, sin]: [Vec<f32>; 2], half: usize, device: &Device) -> Result<Angles> {
        let table =
            |values: &[f32]| Tensor::from_slice(values, (values.len() / half.max(1), half), device);
        let tables = match in_place(device) {
            true => None,
            false => Some((table(&cos)?, table(&sin)?)),
        };
        Ok(Angles { cos, sin, tables })
    }
}

/// Turns the values of every head by the angles of its token's position.
pub(super) fn rotate(x: Tensor, head: usize, batch: &Batch, angles: &Angles) -> Result<Tensor> {
    let Some((cos, sin)) = &angles.tables else {
        let Angles { cos, sin, .. } = angles;
        x.inplace_op1(&op::Rotate { head, positions: &batch.positions, cos, sin })?;
        return Ok(x);
    };
    let (tokens, width) = x.dims2()?;
    let half = head / 2;
    let turned = |table: &Tensor| table.index_select(&batch.places, 0)?.unsqueeze(1);
    let (cos, sin) = (turned(cos)?, turned(sin)?);
    let x = x.reshape((tokens, width / head, head))?;
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let first = a.broadcast_mul(&cos)?.sub(&b.broadcast_mul(&sin)?)?;
    let second = b.broadcast_mul(&cos)?.add(&a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[first, second], 2)?.reshape((tokens, width))
}

/// Sequences of about one length, padded.
pub(super) struct Group {
    sequences: usize,
    len: usize,
    /// The token at every place; padding repeats the first of its sequence.
    tokens: Tensor,
    /// What is added to the scores: zero, or [`UNSEEN`].
    mask: Option<Tensor>,
}

/// The sequences of a batch as a device's attention takes them.
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Where each token is in the groups one behind the other.
    places: Tensor,
}

impl Groups {
    /// `offsets` are where each sequence begins, and the end of the last; `causal` says how many tokens one sees
    /// backward, itself included, if it sees none ahead. Nothing is needed in main memory.
    pub(super) fn new(
        offsets: &[usize],
        causal: Option<usize>,
        device: &Device,
    ) -> Result<Option<Groups>> {
        if in_place(device) {
            return Ok(None);
        }
        let mut by_len: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for pair in offsets.windows(2) {
            let len = pair[1] - pair[0];
            by_len.entry(len.next_multiple_of(PADDING)).or_default().push((pair[0], len));
        }
        let mut places = vec![0; offsets.last().copied().unwrap_or_default()];
        let mut before = 0;
        let mut groups = Vec::with_capacity(by_len.len());
        for (padded, sequences) in by_len {
            let mut tokens = Vec::with_capacity(sequences.len() * padded);
            let masked = causal.is_some() || sequences.iter().any(|(_, len)| *len < padded);
            let mut mask = Vec::with_capacity(if masked { tokens.capacity() * padded } else { 0 });
            for &(first, len) in &sequences {
                let token = |at: usize| (first + if at < len { at } else { 0 }) as u32;
                (0..len).for_each(|at| places[first + at] = (before + at) as u32);
                before += padded;
                tokens.extend((0..padded).map(token));
                for at in (0..padded).filter(|_| masked) {
                    let (low, high) = match causal {
                        Some(window) => ((at + 1).saturating_sub(window), len.min(at + 1)),
                        None => (0, len),
                    };
                    let seen = |other| low <= other && other < high;
                    mask.extend((0..padded).map(|other| if seen(other) { 0.0 } else { UNSEEN }));
                }
            }
            let (count, places) = (sequences.len(), tokens.len());
            groups.push(Group {
                sequences: count,
                len: padded,
                tokens: Tensor::from_vec(tokens, places, device)?,
                mask: match masked {
                    true => Some(Tensor::from_vec(mask, (count, 1, padded, padded), device)?),
                    false => None,
                },
            });
        }
        let tokens = places.len();
        Ok(Some(Groups { groups, places: Tensor::from_vec(places, tokens, device)? }))
    }
}

/// Attention within each sequence of a batch. `causal` is that of the batch's groups.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    batch: &Batch,
    head: usize,
    causal: Option<usize>,
) -> Result<Tensor> {
    let Some(groups) = &batch.groups else {
        let attention = op::Attention { offsets: &batch.offsets, head, causal };
        return q.apply_op3_no_bwd(k, v, &attention);
    };
    let width = q.dims2()?.1;
    let heads = width / head;
    let seen: Result<Vec<Tensor>> = groups
        .groups
        .iter()
        .map(|group| {
            let &Group { sequences, len, .. } = group;
            // Sequence, head, token, value; keys of fewer heads serve several queries.
            let split = |x: &Tensor| {
                let own = x.dims2()?.1 / head;
                let x = x.index_select(&group.tokens, 0)?;
                let x = x.reshape((sequences, len, own, head))?.transpose(1, 2)?;
                let all = (sequences, own, heads / own, len, head);
                x.unsqueeze(2)?.broadcast_as(all)?.reshape((sequences, heads, len, head))
            };
            let (q, k, v) = (split(q)?, split(k)?, split(v)?);
            let scores = (q.matmul(&k.t()?)? * (1.0 / (head as f64).sqrt()))?;
            let scores = match &group.mask {
                Some(mask) => scores.broadcast_add(mask)?,
                None => scores,
            };
            let scores = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
            let scores = scores.broadcast_div(&scores.sum_keepdim(3)?)?;
            scores.matmul(&v)?.transpose(1, 2)?.reshape((sequences * len, width))
        })
        .collect();
    Tensor::cat(&seen?, 0)?.index_select(&groups.places, 0)
}

/// The losses of rows of logits that have a target, and whether it is the most likely.
pub(super) fn losses(logits: &Tensor, targets: &[Option<u32>]) -> Result<Vec<(f64, bool)>> {
    let (rows, width) = logits.dims2()?;
    if rows != targets.len() {
        bail!("{rows} rows of logits for {} targets", targets.len())
    }
    if in_place(logits.device()) {
        return op::Losses { targets, width }.of(logits);
    }
    let device = logits.device();
    let wanted: Vec<u32> = targets.iter().map(|target| target.unwrap_or(0)).collect();
    let wanted_there = Tensor::from_slice(&wanted, (rows, 1), device)?;
    let top = logits.max_keepdim(1)?;
    let sum = logits.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?;
    let loss = ((sum.log()? + top)? - logits.gather(&wanted_there, 1)?)?;
    // Zero, and not a number where a logit is none or infinite: such a row has no loss.
    let valid = (logits * 0.0)?.sum_keepdim(1)?;
    let losses = (loss + valid)?.flatten_all()?.to_vec1::<f32>()?;
    let best = logits.argmax(1)?.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    let all = losses.iter().zip(best).zip(targets);
    let one = |((loss, best), target): ((&f32, u32), &Option<u32>)| {
        target.map(|target| (f64::from(*loss), best == target && loss.is_finite()))
    };
    Ok(all.filter_map(one).collect())
}
