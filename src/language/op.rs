//! What lies between the matrix products of a forward pass, as candle operations: in main memory the kernels of
//! [`kernel`], on a device those of [`cuda::pass`](super::cuda::pass); in place on tensors that nobody else holds.
//!
//! A device's results differ from the processor's in the last bits, as those of two processors do; probes are
//! measured, not agreed upon.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, InplaceOp1, InplaceOp2, InplaceOp3,
    Layout, Result, Shape, Storage, Tensor, bail,
};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use candle_core::{CudaStorage, backend::BackendStorage};

#[cfg(feature = "cuda")]
use super::cuda::{pass, state::StateCopy};
use super::kernel::{self, Activation};
use super::model::Batch;
use super::view::{Place, Source};
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

/// Reads a tensor's values; those on a device are copied, and not all of the view that a weight is a part of.
pub(super) fn with<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(read(slice(storage, layout)?)),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => {
            let Some((from, to)) = layout.contiguous_offsets() else {
                bail!("a contiguous tensor was expected")
            };
            let values = storage.as_cuda_slice::<f32>()?.slice(from..to);
            Ok(read(&storage.device().clone_dtoh(&values)?))
        }
        _ => bail!("a tensor in main memory or on a card was expected"),
    }
}

/// Parameters written by one thread at a time: two superblocks, whose signs are made together.
const WRITE_CHUNK: usize = 32 * BLOCK_PARAMETERS;

/// Writes tensors of a source over a room in main memory, whose first dimension is the ends.
pub(super) struct Write<'a> {
    pub(super) source: &'a Source<'a>,
    /// Where each is, in the order of the room.
    pub(super) places: &'a [Place],
}

impl Write<'_> {
    /// The places in an end's room cut into chunks: a tensor, its first parameter there, and the room.
    fn chunks<'o>(&self, mut room: &'o mut [f32]) -> Vec<(usize, usize, &'o mut [f32])> {
        let (mut chunks, mut begun) = (Vec::new(), 0);
        for &Place { tensor, at, len } in self.places {
            let (own, rest) = room.split_at_mut(at + len - begun);
            let own = own[at - begun..].chunks_mut(WRITE_CHUNK).enumerate();
            chunks.extend(own.map(|(chunk, out)| (tensor, chunk * WRITE_CHUNK, out)));
            (room, begun) = (rest, at + len);
        }
        chunks
    }
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "write-weights"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let out = slice_mut(storage, layout)?;
        let (plus, minus) = out.split_at_mut(out.len() / layout.dims()[0]);
        let plus = self.chunks(plus).into_par_iter();
        if self.source.ends() == 1 {
            plus.for_each(|(tensor, first, out)| self.source.write(0, tensor, first, out));
        } else {
            plus.zip(self.chunks(minus)).for_each(|((tensor, first, plus), (.., minus))| {
                self.source.write_both(tensor, first, [plus, minus]);
            });
        }
        Ok(())
    }
}

/// Writes all tensors of a source of one end, one behind the other.
pub(super) struct WriteAll<'a> {
    pub(super) source: &'a Source<'a>,
    /// Where each begins, and its length.
    pub(super) places: &'a [(usize, usize)],
    /// The copy of the source's state on the device.
    #[cfg(feature = "cuda")]
    pub(super) copy: Option<&'a StateCopy>,
}

impl InplaceOp1 for WriteAll<'_> {
    fn name(&self) -> &'static str {
        "write-all-weights"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let out = slice_mut(storage, layout)?;
        for (tensor, &(at, len)) in self.places.iter().enumerate() {
            self.source.write(0, tensor, 0, &mut out[at..at + len]);
        }
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        match (self.source, self.copy) {
            (&Source::One(state, end), Some(copy)) => copy.write(state, end, storage, layout),
            (&Source::Given(&[values], core), _) => {
                let device = storage.device().clone();
                let out = storage.as_cuda_slice_mut::<f32>()?;
                for (&(at, len), &from) in self.places.iter().zip(&core.offsets) {
                    let mut out = out.slice_mut(at..at + len);
                    device.memcpy_htod(&values[from..from + len], &mut out)?;
                }
                Ok(())
            }
            _ => bail!("a device has the weights of one end, and a copy of their state"),
        }
    }
}

/// What is done to every value with another's, in place.
enum With {
    /// `x + bias`, the bias a row.
    Bias,
    /// `activation(x + bias)`.
    BiasActivation(Activation),
    /// `x + other`.
    Other,
    /// `silu(x) · other`.
    SiluTimes,
}

impl InplaceOp2 for With {
    fn name(&self) -> &'static str {
        "with"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout, o: &CpuStorage, ol: &Layout) -> Result<()> {
        let (x, other) = (slice_mut(x, xl)?, slice(o, ol)?);
        match *self {
            With::Bias => kernel::add_bias(x, other),
            With::BiasActivation(activation) => kernel::bias_activation(x, other, activation),
            With::Other => kernel::add(x, other),
            With::SiluTimes => kernel::silu_times(x, other),
        }
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        xl: &Layout,
        o: &CudaStorage,
        ol: &Layout,
    ) -> Result<()> {
        let (x, other) = ((x, xl), (o, ol));
        match *self {
            With::Bias => pass::add_bias(x, other),
            With::BiasActivation(activation) => pass::bias_activation(x, other, activation),
            With::Other => pass::add(x, other),
            With::SiluTimes => pass::silu_times(x, other),
        }
    }
}

/// What is done to every row with two others, in place.
enum WithTwo {
    /// `x + bias + other`.
    BiasAndOther,
    /// Layer normalization with a weight, a bias and this epsilon.
    LayerNorm(f32),
}

impl InplaceOp3 for WithTwo {
    fn name(&self) -> &'static str {
        "with-two"
    }
    fn cpu_fwd(
        &self,
        x: &mut CpuStorage,
        xl: &Layout,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<()> {
        let (x, a, b) = (slice_mut(x, xl)?, slice(a, al)?, slice(b, bl)?);
        match *self {
            WithTwo::BiasAndOther => kernel::add_bias_and(x, a, b),
            WithTwo::LayerNorm(epsilon) => kernel::layer_norm(x, a, b, epsilon),
        }
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &mut CudaStorage,
        xl: &Layout,
        a: &CudaStorage,
        al: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<()> {
        let (x, a, b) = ((x, xl), (a, al), (b, bl));
        match *self {
            WithTwo::BiasAndOther => pass::add_bias_and(x, a, b),
            WithTwo::LayerNorm(epsilon) => pass::layer_norm(x, a, b, epsilon),
        }
    }
}

/// Root-mean-square normalization with this epsilon.
struct RmsNorm(f32);

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
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((pass::rms_norm((x, xl), (w, wl), self.0)?, xl.shape().clone()))
    }
}

/// Cosines and sines of rotary positions, half a head a position.
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same on a device.
    #[cfg(feature = "cuda")]
    tables: Option<[Tensor; 2]>,
}

impl Angles {
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
    pub(super) fn new([cos, sin]: [Vec<f32>; 2], half: usize, device: &Device) -> Result<Angles> {
        #[cfg(feature = "cuda")]
        let tables = match device.is_cpu() {
            true => None,
            false => {
                let table = |values: &[f32]| {
                    Tensor::from_slice(values, (values.len() / half.max(1), half), device)
                };
                Some([table(&cos)?, table(&sin)?])
            }
        };
        Ok(Angles {
            cos,
            sin,
            #[cfg(feature = "cuda")]
            tables,
        })
    }
}

/// Turns the values of heads by the angles of their tokens' positions.
struct Rotate<'a> {
    head: usize,
    batch: &'a Batch,
    angles: &'a Angles,
}

impl InplaceOp1 for Rotate<'_> {
    fn name(&self) -> &'static str {
        "rotate"
    }
    fn cpu_fwd(&self, x: &mut CpuStorage, xl: &Layout) -> Result<()> {
        let width = xl.dims()[1];
        let Angles { cos, sin, .. } = self.angles;
        kernel::rotate(slice_mut(x, xl)?, width, self.head, &self.batch.positions, cos, sin);
        Ok(())
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &mut CudaStorage, xl: &Layout) -> Result<()> {
        let (Some([cos, sin]), Some(places)) = (&self.angles.tables, &self.batch.on_device) else {
            bail!("angles and positions on the device were expected")
        };
        pass::rotate((x, xl), self.head, &places.positions, [cos, sin])
    }
}

/// Attention within each of the sequences of a batch, which are packed in a matrix of tokens.
struct Attention<'a> {
    batch: &'a Batch,
    /// Values a head.
    head: usize,
    /// Whether a token sees no later one, and how many earlier ones, itself included.
    causal: Option<usize>,
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
        let mut parts = Vec::with_capacity(self.batch.offsets.len());
        for pair in self.batch.offsets.windows(2) {
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
    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        ql: &Layout,
        k: &CudaStorage,
        kl: &Layout,
        v: &CudaStorage,
        vl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let Some(places) = &self.batch.on_device else {
            bail!("the batch's sequences on the device were expected")
        };
        let all = [(q, ql), (k, kl), (v, vl)];
        let seen = pass::attention(all, &places.tiles, self.head, self.causal)?;
        Ok((seen, ql.shape().clone()))
    }
}

/// On a device, of every row the negative logarithm of its target's probability, and 1 where the target is the most
/// likely, else 0.
#[cfg(feature = "cuda")]
struct CrossEntropy<'a> {
    targets: &'a [u32],
}

#[cfg(feature = "cuda")]
impl CustomOp1 for CrossEntropy<'_> {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }
    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("logits on a device were expected")
    }
    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout) -> Result<(CudaStorage, Shape)> {
        Ok((pass::cross_entropy((x, xl), self.targets)?, (xl.dims()[0], 2).into()))
    }
}

/// The mean of every sequence's rows, of length √width.
struct Pool<'a> {
    offsets: &'a [usize],
}

impl CustomOp1 for Pool<'_> {
    fn name(&self) -> &'static str {
        "pool"
    }
    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (values, width) = (slice(x, xl)?, xl.dims()[1]);
        let mut out = vec![0.0; (self.offsets.len() - 1) * width];
        for (pair, out) in self.offsets.windows(2).zip(out.chunks_exact_mut(width)) {
            kernel::pool(&values[pair[0] * width..pair[1] * width], out);
        }
        Ok((CpuStorage::F32(out), (self.offsets.len() - 1, width).into()))
    }
    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, xl: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = (self.offsets.len() - 1, xl.dims()[1]).into();
        Ok((pass::pool((x, xl), self.offsets)?, shape))
    }
}

/// `x + bias`.
pub(super) fn add_bias(x: Tensor, bias: &Tensor) -> Result<Tensor> {
    x.inplace_op2(bias, &With::Bias)?;
    Ok(x)
}

/// `x + other`.
pub(super) fn add(x: Tensor, other: &Tensor) -> Result<Tensor> {
    x.inplace_op2(other, &With::Other)?;
    Ok(x)
}

/// `x + bias + other`.
pub(super) fn add_bias_and(x: Tensor, bias: &Tensor, other: &Tensor) -> Result<Tensor> {
    x.inplace_op3(bias, other, &WithTwo::BiasAndOther)?;
    Ok(x)
}

/// `activation(x + bias)`.
pub(super) fn bias_activation(x: Tensor, bias: &Tensor, activation: Activation) -> Result<Tensor> {
    x.inplace_op2(bias, &With::BiasActivation(activation))?;
    Ok(x)
}

/// `silu(x) · other`.
pub(super) fn silu_times(x: Tensor, other: &Tensor) -> Result<Tensor> {
    x.inplace_op2(other, &With::SiluTimes)?;
    Ok(x)
}

/// Layer normalization of every row.
pub(super) fn layer_norm(
    x: Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> Result<Tensor> {
    x.inplace_op3(weight, bias, &WithTwo::LayerNorm(epsilon))?;
    Ok(x)
}

/// Root-mean-square normalization of every row.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f32) -> Result<Tensor> {
    x.apply_op2_no_bwd(weight, &RmsNorm(epsilon))
}

/// Turns the values of every head by the angles of its token's position.
pub(super) fn rotate(x: Tensor, head: usize, batch: &Batch, angles: &Angles) -> Result<Tensor> {
    x.inplace_op1(&Rotate { head, batch, angles })?;
    Ok(x)
}

/// Attention within each sequence of a batch, with heads of so many values. Keys and values of fewer heads serve
/// several queries. `causal` says how many tokens one sees backward, itself included, if it sees none ahead.
pub(super) fn attention(
    [q, k, v]: [&Tensor; 3],
    batch: &Batch,
    head: usize,
    causal: Option<usize>,
) -> Result<Tensor> {
    q.apply_op3_no_bwd(k, v, &Attention { batch, head, causal })
}

/// The losses of rows of logits that have a target, and whether it is the most likely.
pub(super) fn losses(logits: &Tensor, targets: &[Option<u32>]) -> Result<Vec<(f64, bool)>> {
    let (rows, width) = logits.dims2()?;
    if rows != targets.len() {
        bail!("{rows} rows of logits for {} targets", targets.len())
    }
    #[cfg(feature = "cuda")]
    if !logits.device().is_cpu() {
        let numbers: Vec<u32> = targets.iter().map(|target| target.unwrap_or(0)).collect();
        let losses = logits.apply_op1_no_bwd(&CrossEntropy { targets: &numbers })?;
        return with(&losses, |losses| {
            let all = losses.as_chunks::<2>().0.iter().zip(targets);
            // One that is not finite is right in nothing.
            let one = |(&[loss, right], target): (&[f32; 2], &Option<u32>)| {
                target.map(|_| (f64::from(loss), right > 0.0 && loss.is_finite()))
            };
            all.filter_map(one).collect()
        });
    }
    with(logits, |logits| {
        let one = |(row, target): (&[f32], &Option<u32>)| {
            target.map(|target| kernel::cross_entropy(&mut row.to_vec(), target as usize))
        };
        logits.par_chunks(width).zip(targets.par_iter()).filter_map(one).collect()
    })
}

/// The mean of every sequence's rows, of length √width. `offsets` are where each begins, and the end of the last.
pub(super) fn pool(x: &Tensor, offsets: &[usize]) -> Result<Tensor> {
    x.apply_op1_no_bwd(&Pool { offsets })
}
