//! The kernels as candle operations: in place on tensors that nobody else holds.

use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, InplaceOp1, InplaceOp2, InplaceOp3, Layout, Result, Shape,
    Tensor, bail,
};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

#[cfg(feature = "cuda")]
use super::cuda::StateCopy;
use super::kernel::{self, Activation};
use super::view::Source;
use crate::direction::BLOCK_PARAMETERS;

/// The values of a tensor in memory order.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&values[from..to]),
        _ => bail!("a contiguous tensor of 32-bit numbers was expected"),
    }
}

fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) => Ok(&mut values[from..to]),
        _ => bail!("a contiguous tensor of 32-bit numbers was expected"),
    }
}

/// Reads a tensor's values; those on a device are copied.
pub(super) fn with<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    if !tensor.device().is_cpu() {
        return Ok(read(&tensor.flatten_all()?.to_vec1::<f32>()?));
    }
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(read(slice(storage, layout)?)),
        _ => bail!("a tensor in main memory was expected"),
    }
}

/// Parameters written by one thread at a time: whole blocks of a direction's signs.
const WRITE_CHUNK: usize = 128 * BLOCK_PARAMETERS;

/// Writes a tensor of a source over a weight, whose first dimension is the ends.
pub(super) struct Write<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) tensor: usize,
    /// Where the weight is on a device, the state's copy there.
    #[cfg(feature = "cuda")]
    pub(super) copy: Option<&'a StateCopy>,
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "write-weights"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let out = slice_mut(storage, layout)?;
        let end_len = out.len() / layout.dims()[0];
        let (plus, rest) = out.split_at_mut(end_len);
        let plus = plus.par_chunks_mut(WRITE_CHUNK).enumerate();
        if self.source.ends() == 1 {
            plus.for_each(|(chunk, out)| {
                self.source.write(0, self.tensor, chunk * WRITE_CHUNK, out)
            });
        } else {
            let minus = rest[..end_len].par_chunks_mut(WRITE_CHUNK);
            plus.zip(minus).for_each(|((chunk, plus), minus)| {
                self.source.write_both(self.tensor, chunk * WRITE_CHUNK, [plus, minus]);
            });
        }
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        match *self.source {
            Source::One(state, end) => {
                let copy = self.copy.expect("a view on a device has a copy of the state there");
                copy.write(state, self.tensor, end, storage, layout)
            }
            Source::Given(&[values], core) => {
                let device = storage.device().clone();
                let Some((from, to)) = layout.contiguous_offsets() else {
                    bail!("a contiguous tensor was expected")
                };
                let values = &values[core.offsets[self.tensor]..][..to - from];
                let mut out = storage.as_cuda_slice_mut::<f32>()?.slice_mut(from..to);
                device.memcpy_htod(values, &mut out)
            }
            _ => bail!("a device holds the weights of one end"),
        }
    }
}

/// `x + bias`.
pub(super) struct AddBias;

impl InplaceOp2 for AddBias {
    fn name(&self) -> &'static str {
        "add-bias"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        kernel::add_bias(slice_mut(x, xl)?, slice(b, bl)?);
        Ok(())
    }
}

/// `activation(x + bias)`.
pub(super) struct BiasActivation(pub(super) Activation);

impl InplaceOp2 for BiasActivation {
    fn name(&self) -> &'static str {
        "bias-activation"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, b: &CpuStorage, bl: &Layout) -> Result<()> {
        kernel::bias_activation(slice_mut(x, xl)?, slice(b, bl)?, self.0);
        Ok(())
    }
}

/// `x + other`.
pub(super) struct Add;

impl InplaceOp2 for Add {
    fn name(&self) -> &'static str {
        "add"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, o: &CpuStorage, ol: &Layout) -> Result<()> {
        kernel::add(slice_mut(x, xl)?, slice(o, ol)?);
        Ok(())
    }
}

/// `silu(x) · other`.
pub(super) struct SiluTimes;

impl InplaceOp2 for SiluTimes {
    fn name(&self) -> &'static str {
        "silu-times"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, o: &CpuStorage, ol: &Layout) -> Result<()> {
        kernel::silu_times(slice_mut(x, xl)?, slice(o, ol)?);
        Ok(())
    }
}

/// `x + bias + other`.
pub(super) struct AddBiasAnd;

impl InplaceOp3 for AddBiasAnd {
    fn name(&self) -> &'static str {
        "add-bias-and"
    }
    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
        o: &CpuStorage,
        ol: &Layout,
    ) -> Result<()> {
        kernel::add_bias_and(slice_mut(x, xl)?, slice(b, bl)?, slice(o, ol)?);
        Ok(())
    }
}

/// Layer normalization with this epsilon.
pub(super) struct LayerNorm(pub(super) f32);

impl InplaceOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }
    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<()> {
        kernel::layer_norm(slice_mut(x, xl)?, slice(w, wl)?, slice(b, bl)?, self.0);
        Ok(())
    }
}

/// Root-mean-square normalization with this epsilon.
pub(super) struct RmsNorm(pub(super) f32);

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let values = slice(x, xl)?;
        let mut out = vec![0.0; values.len()];
        kernel::rms_norm(values, slice(w, wl)?, self.0, &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

/// Rotary positions, as a table of half a head a position.
pub(super) struct Rotate<'a> {
    pub(super) head: usize,
    pub(super) positions: &'a [u32],
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout) -> Result<()> {
        let width = xl.dims()[1];
        let values = slice_mut(x, xl)?;
        kernel::rotate(values, width, self.head, self.positions, self.cos, self.sin);
        Ok(())
    }
}

/// Attention within each of the sequences that are packed in a matrix of tokens.
pub(super) struct Attention<'a> {
    /// Where each sequence begins, and the end of the last.
    pub(super) offsets: &'a [usize],
    /// Values a head.
    pub(super) head: usize,
    /// Whether a token sees no later one, and how many earlier ones, itself included.
    pub(super) causal: Option<usize>,
}

impl Attention<'_> {
    /// One sequence: scores, softmax, values, head by head. Keys of fewer heads serve several queries.
    fn sequence(
        &self,
        q: ArrayView2<f32>,
        k: ArrayView2<f32>,
        v: ArrayView2<f32>,
        out: &mut [f32],
    ) {
        let (len, width) = q.dim();
        let head = self.head;
        let shared = width / k.dim().1;
        let scale = 1.0 / (head as f32).sqrt();
        let mut scores = vec![0.0; len * len];
        let mut out = ArrayViewMut2::from_shape((len, width), out).expect("as long as the queries");
        for at in 0..width / head {
            let columns = |at: usize| Slice::from(at * head..(at + 1) * head);
            let (own, other) = (columns(at), columns(at / shared));
            let mut matrix =
                ArrayViewMut2::from_shape((len, len), &mut scores).expect("a square of scores");
            let (q, k) = (q.slice_axis(Axis(1), own), k.slice_axis(Axis(1), other));
            general_mat_mul(1.0, &q, &k.t(), 0.0, &mut matrix);
            kernel::softmax(&mut scores, len, scale, self.causal);
            let matrix = ArrayView2::from_shape((len, len), &scores).expect("a square of scores");
            let v = v.slice_axis(Axis(1), other);
            general_mat_mul(1.0, &matrix, &v, 0.0, &mut out.slice_axis_mut(Axis(1), own));
        }
    }
}

impl CustomOp3 for Attention<'_> {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (slice(q, ql)?, slice(k, kl)?, slice(v, vl)?);
        let (tokens, width) = (ql.dims()[0], ql.dims()[1]);
        let narrow = kl.dims()[1];
        let view = |values, width| ArrayView2::from_shape((tokens, width), values);
        let (Ok(q), Ok(k), Ok(v)) = (view(q, width), view(k, narrow), view(v, narrow)) else {
            bail!("queries, keys and values of different numbers of tokens")
        };
        let mut out = vec![0.0; tokens * width];
        let mut rest = &mut out[..];
        let mut parts = Vec::with_capacity(self.offsets.len());
        for pair in self.offsets.windows(2) {
            let (part, after) = rest.split_at_mut((pair[1] - pair[0]) * width);
            rest = after;
            parts.push((pair[0]..pair[1], part));
        }
        let one = |(rows, part): (std::ops::Range<usize>, &mut [f32])| {
            let [q, k, v] =
                [&q, &k, &v].map(|all| all.slice_axis(Axis(0), Slice::from(rows.clone())));
            self.sequence(q, k, v, part);
        };
        match rayon::current_num_threads() {
            1 => parts.into_iter().for_each(one),
            _ => parts.into_par_iter().for_each(one),
        }
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }
}

/// The losses of rows of logits that have a target.
pub(super) struct Losses<'a> {
    pub(super) targets: &'a [Option<u32>],
    pub(super) width: usize,
}

impl Losses<'_> {
    pub(super) fn of(&self, logits: &Tensor) -> Result<Vec<(f64, bool)>> {
        with(logits, |logits| {
            let one = |(row, target): (&[f32], &Option<u32>)| {
                target.map(|target| kernel::cross_entropy(&mut row.to_vec(), target as usize))
            };
            let rows = logits.par_chunks(self.width).zip(self.targets.par_iter());
            rows.filter_map(one).collect()
        })
    }
}
