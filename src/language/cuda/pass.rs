//! What lies between the matrix products of a forward pass, on a device: launches of `pass.cu` and `attention.cu`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaView, CudaViewMut, LaunchConfig, PushKernelArg,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Storage, Tensor, bail};

use super::{Unit, blocks, launch};
use crate::language::kernel::Activation;

/// `THREADS` of the kernels.
const THREADS: u32 = 256;

/// Threads of a warp.
const WARP: u32 = 32;

/// A thread of attention has at most so many values of a head, if they can be divided: it holds three times as many
/// in registers.
const PART_MAX: usize = 32;

/// A head that cannot be divided so far may have so many values a thread; more is refused.
const PART_LIMIT: usize = 128;

pub(super) static UNIT: LazyLock<Unit> = LazyLock::new(|| Unit {
    name: "rumormill-pass".into(),
    source: include_str!("pass.cu"),
    constants: Vec::new(),
    fused: true,
    compiled: OnceLock::new(),
});

/// The kernel of attention for heads of so many values.
pub(super) fn attention_unit(head: usize, heads: usize) -> Result<Arc<Unit>> {
    static UNITS: Mutex<BTreeMap<usize, Arc<Unit>>> = Mutex::new(BTreeMap::new());
    let lanes = lanes(head);
    if head / lanes > PART_LIMIT || heads > usize::from(u16::MAX) {
        bail!(
            "attention of {heads} heads of {head} values is not made for a card: at most {} heads, and {PART_LIMIT} \
             values, or that times a power of two up to {WARP}",
            u16::MAX
        )
    }
    let unit = || {
        Arc::new(Unit {
            name: format!("rumormill-attention-{head}"),
            source: include_str!("attention.cu"),
            constants: vec![format!("HEAD={head}"), format!("LANES={lanes}")],
            fused: true,
            compiled: OnceLock::new(),
        })
    };
    // A poisoned lock guards no invariant.
    let mut units = UNITS.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Arc::clone(units.entry(head).or_insert_with(unit)))
}

/// A matrix in memory order: where its values are, its rows and their length.
struct Matrix {
    at: Range<usize>,
    rows: usize,
    width: usize,
}

impl Matrix {
    fn of(layout: &Layout) -> Result<Matrix> {
        let (Some((from, to)), Some(&width)) = (layout.contiguous_offsets(), layout.dims().last())
        else {
            bail!("a contiguous matrix was expected")
        };
        let rows = (to - from).checked_div(width).unwrap_or(0);
        if u32::try_from(rows.max(width)).is_err() {
            bail!("a matrix of {rows} rows of {width} values is too large for a launch")
        }
        Ok(Matrix { at: from..to, rows, width })
    }

    fn read<'a>(&self, storage: &'a CudaStorage) -> Result<CudaView<'a, f32>> {
        Ok(storage.as_cuda_slice::<f32>()?.slice(self.at.clone()))
    }

    fn change<'a>(&self, storage: &'a mut CudaStorage) -> Result<CudaViewMut<'a, f32>> {
        Ok(storage.as_cuda_slice_mut::<f32>()?.slice_mut(self.at.clone()))
    }

    fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// A block of threads a row.
    fn by_block(&self) -> Result<LaunchConfig> {
        blocks(self.rows, THREADS)
    }
}

/// A warp a row.
fn by_warp(rows: usize) -> Result<LaunchConfig> {
    blocks(rows.div_ceil((THREADS / WARP) as usize), THREADS)
}

/// Refuses what a kernel would read beyond.
fn require(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { bail!("{what}") }
}

/// Something beside a matrix: its storage and layout.
type Beside<'a> = (&'a CudaStorage, &'a Layout);

/// `x + bias`.
pub(in crate::language) fn add_bias(
    (x, x_layout): (&mut CudaStorage, &Layout),
    (bias, bias_layout): Beside<'_>,
) -> Result<()> {
    row_by_row((x, x_layout), "add_bias", (bias, bias_layout), None)
}

/// `x + other`.
pub(in crate::language) fn add(x: (&mut CudaStorage, &Layout), other: Beside<'_>) -> Result<()> {
    value_by_value(x, "add", other)
}

/// `silu(x) · other`.
pub(in crate::language) fn silu_times(
    x: (&mut CudaStorage, &Layout),
    other: Beside<'_>,
) -> Result<()> {
    value_by_value(x, "silu_times", other)
}

fn value_by_value(
    (x, x_layout): (&mut CudaStorage, &Layout),
    kernel: &str,
    (other, other_layout): Beside<'_>,
) -> Result<()> {
    let (matrix, of_other) = (Matrix::of(x_layout)?, Matrix::of(other_layout)?);
    require(matrix.at.len() == of_other.at.len(), "two matrices of one size were expected")?;
    if matrix.is_empty() {
        return Ok(());
    }
    let (device, width) = (x.device().clone(), matrix.width as u32);
    let (mut x, other) = (matrix.change(x)?, of_other.read(other)?);
    launch!(&device, &*UNIT, kernel, matrix.by_block()?, &mut x, &other, &width);
    Ok(())
}

/// `activation(x + bias)`.
pub(in crate::language) fn bias_activation(
    x: (&mut CudaStorage, &Layout),
    bias: Beside<'_>,
    activation: Activation,
) -> Result<()> {
    let number = match activation {
        Activation::Gelu => 0,
        Activation::GeluTanh => 1,
        Activation::Relu => 2,
    };
    row_by_row(x, "bias_activation", bias, Some(number))
}

fn row_by_row(
    (x, x_layout): (&mut CudaStorage, &Layout),
    kernel: &str,
    (bias, bias_layout): Beside<'_>,
    last: Option<u32>,
) -> Result<()> {
    let (matrix, of_bias) = (Matrix::of(x_layout)?, Matrix::of(bias_layout)?);
    require(matrix.width == of_bias.at.len(), "a bias as long as a row was expected")?;
    if matrix.is_empty() {
        return Ok(());
    }
    let (device, width) = (x.device().clone(), matrix.width as u32);
    let (mut x, bias) = (matrix.change(x)?, of_bias.read(bias)?);
    match last {
        None => launch!(&device, &*UNIT, kernel, matrix.by_block()?, &mut x, &bias, &width),
        Some(last) => {
            launch!(&device, &*UNIT, kernel, matrix.by_block()?, &mut x, &bias, &width, &last);
        }
    }
    Ok(())
}

/// `x + bias + other`.
pub(in crate::language) fn add_bias_and(
    (x, x_layout): (&mut CudaStorage, &Layout),
    (bias, bias_layout): Beside<'_>,
    (other, other_layout): Beside<'_>,
) -> Result<()> {
    let matrix = Matrix::of(x_layout)?;
    let (of_bias, of_other) = (Matrix::of(bias_layout)?, Matrix::of(other_layout)?);
    let fit = matrix.width == of_bias.at.len() && matrix.at.len() == of_other.at.len();
    require(fit, "a bias as long as a row and two matrices of one size were expected")?;
    if matrix.is_empty() {
        return Ok(());
    }
    let (device, width) = (x.device().clone(), matrix.width as u32);
    let (mut x, bias, other) = (matrix.change(x)?, of_bias.read(bias)?, of_other.read(other)?);
    let grid = matrix.by_block()?;
    launch!(&device, &*UNIT, "add_bias_and", grid, &mut x, &bias, &other, &width);
    Ok(())
}

/// Layer normalization of every row.
pub(in crate::language) fn layer_norm(
    (x, x_layout): (&mut CudaStorage, &Layout),
    (weight, weight_layout): Beside<'_>,
    (bias, bias_layout): Beside<'_>,
    epsilon: f32,
) -> Result<()> {
    let matrix = Matrix::of(x_layout)?;
    let (of_weight, of_bias) = (Matrix::of(weight_layout)?, Matrix::of(bias_layout)?);
    let fit = matrix.width == of_weight.at.len() && matrix.width == of_bias.at.len();
    require(fit, "a weight and a bias as long as a row were expected")?;
    if matrix.is_empty() {
        return Ok(());
    }
    let (device, grid) = (x.device().clone(), by_warp(matrix.rows)?);
    let (rows, width) = (matrix.rows as u32, matrix.width as u32);
    let (mut x, weight, bias) = (matrix.change(x)?, of_weight.read(weight)?, of_bias.read(bias)?);
    launch!(&device, &*UNIT, "layer_norm", grid, &mut x, &weight, &bias, &rows, &width, &epsilon);
    Ok(())
}

/// Room for so many values, which a launch is to write.
fn room(device: &CudaDevice, len: usize) -> Result<CudaSlice<f32>> {
    // SAFETY: every kernel that gets room writes all of it, and nothing reads it before.
    unsafe { device.alloc::<f32>(len) }
}

/// Root-mean-square normalization of every row.
pub(in crate::language) fn rms_norm(
    (x, x_layout): Beside<'_>,
    (weight, weight_layout): Beside<'_>,
    epsilon: f32,
) -> Result<CudaStorage> {
    let (matrix, of_weight) = (Matrix::of(x_layout)?, Matrix::of(weight_layout)?);
    require(matrix.width == of_weight.at.len(), "a weight as long as a row was expected")?;
    let device = x.device();
    let mut out = room(device, matrix.at.len())?;
    if !matrix.is_empty() {
        let (rows, width) = (matrix.rows as u32, matrix.width as u32);
        let (x, weight, grid) = (matrix.read(x)?, of_weight.read(weight)?, by_warp(matrix.rows)?);
        launch!(device, &*UNIT, "rms_norm", grid, &mut out, &x, &weight, &rows, &width, &epsilon);
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Does something with a tensor's storage on the device and its place there.
fn with<T>(
    tensor: &Tensor,
    work: impl FnOnce(&CudaStorage, Range<usize>) -> Result<T>,
) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cuda(storage), Some((from, to))) => work(storage, from..to),
        _ => bail!("a contiguous tensor on the device was expected"),
    }
}

/// Turns pairs of a head's values by the angles of its row's position, of which `cosines` and `sines` hold half a
/// head each. The positions are rows of these.
pub(in crate::language) fn rotate(
    (x, x_layout): (&mut CudaStorage, &Layout),
    head: usize,
    positions: &Tensor,
    [cosines, sines]: [&Tensor; 2],
) -> Result<()> {
    let matrix = Matrix::of(x_layout)?;
    let half = head / 2;
    let fit = positions.elem_count() == matrix.rows
        && cosines.shape() == sines.shape()
        && cosines.dims().last() == Some(&half)
        && head.is_multiple_of(2)
        && matrix.width.is_multiple_of(head);
    require(fit, "whole heads, and a position for every row, were expected")?;
    if matrix.is_empty() {
        return Ok(());
    }
    let (device, grid) = (x.device().clone(), matrix.by_block()?);
    let (width, half) = (matrix.width as u32, half as u32);
    let mut x = matrix.change(x)?;
    with(positions, |positions, at| {
        let positions = positions.as_cuda_slice::<u32>()?.slice(at);
        with(cosines, |cosines, at| {
            let cosines = cosines.as_cuda_slice::<f32>()?.slice(at);
            with(sines, |sines, at| {
                let sines = sines.as_cuda_slice::<f32>()?.slice(at);
                launch!(
                    &device, &*UNIT, "rotate", grid, &mut x, &positions, &cosines, &sines, &width,
                    &half,
                );
                Ok(())
            })
        })
    })
}

/// Threads that share a query of heads of so many values.
fn lanes(head: usize) -> usize {
    let mut lanes = 1;
    while head / lanes > PART_MAX && head.is_multiple_of(2 * lanes) && lanes < WARP as usize {
        lanes *= 2;
    }
    lanes
}

/// What attention's blocks of threads work on: the first token of a sequence, its tokens, and the first of the
/// queries of a block, three numbers each. `offsets` are where the sequences begin, and the end of the last.
pub(in crate::language) fn tiles(offsets: &[usize], head: usize) -> Vec<u32> {
    let queries = WARP as usize / lanes(head);
    let mut tiles = Vec::new();
    for pair in offsets.windows(2) {
        let len = pair[1] - pair[0];
        for query in (0..len).step_by(queries) {
            tiles.extend([pair[0] as u32, len as u32, query as u32]);
        }
    }
    tiles
}

/// Attention within each of the sequences of these [`tiles`], with the settings of [`super::super::op::Attention`].
pub(in crate::language) fn attention(
    [q, k, v]: [Beside<'_>; 3],
    tiles: &Tensor,
    head: usize,
    causal: Option<usize>,
) -> Result<CudaStorage> {
    let [of_q, of_k, of_v] = [Matrix::of(q.1)?, Matrix::of(k.1)?, Matrix::of(v.1)?];
    let (heads, key_heads) = (of_q.width / head, of_k.width / head);
    let fit = of_q.rows == of_k.rows
        && of_k.rows == of_v.rows
        && of_k.width == of_v.width
        && of_q.width == heads * head
        && of_k.width == key_heads * head
        && key_heads > 0
        && heads.is_multiple_of(key_heads)
        && tiles.elem_count().is_multiple_of(3);
    require(fit, "queries, keys and values of as many tokens and whole heads were expected")?;
    // Four values are read at once.
    let aligned = [&of_q, &of_k, &of_v].iter().all(|matrix| matrix.at.start.is_multiple_of(4));
    require(aligned, "matrices that begin at a multiple of four values were expected")?;
    let device = q.0.device();
    let mut out = room(device, of_q.at.len())?;
    let blocks = tiles.elem_count() / 3;
    require(of_q.is_empty() || blocks > 0, "tiles of all tokens were expected")?;
    if !of_q.is_empty() {
        let unit = attention_unit(head, heads)?;
        let grid = LaunchConfig {
            grid_dim: (blocks as u32, heads as u32, 1),
            block_dim: (WARP, 1, 1),
            shared_mem_bytes: 0,
        };
        let scale = 1.0 / (head as f32).sqrt();
        let (heads, key_heads) = (heads as u32, key_heads as u32);
        // None is so long that one more than all its tokens would make a difference.
        let window = causal.map_or(0, |window| window.min(1 << 30) as u32);
        let (q, k, v) = (of_q.read(q.0)?, of_k.read(k.0)?, of_v.read(v.0)?);
        with(tiles, |tiles, at| {
            let tiles = tiles.as_cuda_slice::<u32>()?.slice(at);
            launch!(
                device,
                &*unit,
                "attention",
                grid,
                &mut out,
                &q,
                &k,
                &v,
                &tiles,
                &heads,
                &key_heads,
                &scale,
                &window,
            );
            Ok(())
        })?;
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// Of every row the negative logarithm of its target's probability, and 1 where the target is the most likely, else
/// 0. A target beyond a row has no loss.
pub(in crate::language) fn cross_entropy(
    (logits, layout): Beside<'_>,
    targets: &[u32],
) -> Result<CudaStorage> {
    let matrix = Matrix::of(layout)?;
    require(matrix.rows == targets.len(), "as many targets as rows were expected")?;
    let device = logits.device();
    let mut out = room(device, 2 * matrix.rows)?;
    if !matrix.is_empty() {
        let targets = device.clone_htod(targets)?;
        let (rows, width) = (matrix.rows as u32, matrix.width as u32);
        let (logits, grid) = (matrix.read(logits)?, by_warp(matrix.rows)?);
        launch!(device, &*UNIT, "cross_entropy", grid, &mut out, &logits, &targets, &rows, &width);
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

/// The mean of every sequence's rows, of length √width. `offsets` are where the sequences begin, and the end of the
/// last.
pub(in crate::language) fn pool((x, layout): Beside<'_>, offsets: &[usize]) -> Result<CudaStorage> {
    let matrix = Matrix::of(layout)?;
    let sequences = offsets.len().saturating_sub(1);
    let fit = offsets.is_sorted() && offsets.last().is_none_or(|end| *end <= matrix.rows);
    require(fit, "sequences that are there were expected")?;
    let device = x.device();
    let mut out = room(device, sequences * matrix.width)?;
    if sequences > 0 && matrix.width > 0 {
        let offsets: Vec<u32> = offsets.iter().map(|offset| *offset as u32).collect();
        let offsets = device.clone_htod(&offsets)?;
        let (count, width) = (sequences as u32, matrix.width as u32);
        let (x, grid) = (matrix.read(x)?, by_warp(sequences)?);
        launch!(device, &*UNIT, "pool", grid, &mut out, &x, &offsets, &count, &width);
    }
    Ok(CudaStorage::wrap_cuda_slice(out, device.clone()))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::tests::card;
    use super::*;
    use crate::language::model::Batch;
    use crate::language::op;
    use crate::sample::KeyedRng;

    /// A matrix of values around zero.
    fn random(seed: u64, rows: usize, width: usize, device: &Device) -> Tensor {
        let mut rng = KeyedRng::from_seed("rumormill v1 test", seed, 0);
        let value = |_| rng.next_u32() as i32 as f32 / (1u32 << 30) as f32;
        let values: Vec<f32> = (0..rows * width).map(value).collect();
        Tensor::from_vec(values, (rows, width), device).unwrap()
    }

    /// A row of them.
    fn row(seed: u64, width: usize, device: &Device) -> Tensor {
        random(seed, 1, width, device).get(0).unwrap()
    }

    /// Does the same in main memory and on the card.
    fn compare(card: &Device, what: &str, work: impl Fn(&Device) -> Result<Tensor>) {
        let [here, there] = [&Device::Cpu, card].map(|device| {
            work(device).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>()).unwrap()
        });
        assert_eq!(here.len(), there.len(), "{what}");
        for (at, (here, there)) in here.iter().zip(&there).enumerate() {
            let far = (here - there).abs();
            assert!(far <= 4e-6 * (1.0 + here.abs()), "{what} {at}: {here} {there}");
        }
    }

    #[test]
    fn a_card_computes_what_main_memory_does() {
        let Some(card) = card() else { return };
        for (rows, width) in [(1, 5), (11, 70), (300, 384), (9, 2048)] {
            let x = |device: &Device| random(1, rows, width, device);
            let other = |device: &Device| random(2, rows, width, device);
            let weight = |device: &Device| row(3, width, device);
            let bias = |device: &Device| row(4, width, device);
            let all = format!("{rows} rows of {width}");
            let compare = |what: &str, work: &dyn Fn(&Device) -> Result<Tensor>| {
                compare(&card, &format!("{what}, {all}"), work);
            };
            compare("bias", &|on| op::add_bias(x(on), &bias(on)));
            compare("other", &|on| op::add(x(on), &other(on)));
            compare("both", &|on| op::add_bias_and(x(on), &bias(on), &other(on)));
            compare("silu", &|on| op::silu_times(x(on), &other(on)));
            for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
                let what = format!("{activation:?}");
                compare(&what, &|on| op::bias_activation(x(on), &bias(on), activation));
            }
            compare("layer norm", &|on| op::layer_norm(x(on), &weight(on), &bias(on), 1e-5));
            compare("rms norm", &|on| op::rms_norm(&x(on), &weight(on), 1e-5));
            compare("pool", &|on| op::pool(&x(on), &[0, rows / 3, rows]));
            // A part of a longer row, as weights are of a view.
            compare("part", &|on| {
                op::add_bias(x(on), &row(5, 64 + width, on).narrow(0, 64, width)?)
            });
            let targets: Vec<Option<u32>> =
                (0..rows).map(|row| (row % 3 > 0).then_some((row * 7 % width) as u32)).collect();
            compare("losses", &|on| {
                let losses = op::losses(&x(on), &targets)?;
                let flat =
                    losses.iter().flat_map(|(loss, right)| [*loss as f32, f32::from(*right)]);
                Tensor::from_vec(flat.collect(), 2 * losses.len(), on)
            });
        }
    }

    #[test]
    fn a_card_attends_and_turns_as_main_memory_does() {
        let Some(card) = card() else { return };
        let sequences: Vec<Vec<u32>> =
            [1, 70, 31, 32, 33, 200].iter().map(|&len| vec![0; len]).collect();
        let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let tokens: usize = sequences.iter().map(|sequence| sequence.len()).sum();
        for (head, heads, key_heads) in
            [(4, 4, 4), (32, 12, 12), (64, 8, 2), (80, 4, 4), (128, 4, 1), (66, 2, 1), (256, 2, 2)]
        {
            let half = head / 2;
            let angles: Vec<f32> = (0..200 * half).map(|at| at as f32 * 0.37).collect();
            let work = |on: &Device, causal: Option<usize>| {
                let batch = Batch::new(head, &sequences, on)?;
                let [cos, sin] = [f32::cos, f32::sin]
                    .map(|f| -> Vec<f32> { angles.iter().map(|angle| f(*angle)).collect() });
                let angles = op::Angles::new([cos, sin], half, on)?;
                let q = op::rotate(random(1, tokens, heads * head, on), head, &batch, &angles)?;
                let k = random(2, tokens, key_heads * head, on);
                let v = random(3, tokens, key_heads * head, on);
                op::attention([&q, &k, &v], &batch, head, causal)
            };
            for causal in [None, Some(1), Some(40), Some(usize::MAX)] {
                let what = format!("{heads} heads of {head}, {causal:?}");
                compare(&card, &what, |on| work(on, causal));
            }
        }
    }

    #[test]
    fn queries_are_shared_by_threads_and_blocks() {
        let heads = [(4, 1), (32, 1), (64, 2), (128, 4), (80, 4), (66, 2), (256, 8), (33, 1)];
        for (head, expected) in heads {
            assert_eq!(lanes(head), expected, "heads of {head}");
        }
        assert_eq!(tiles(&[0, 2, 35], 32), [0, 2, 0, 2, 33, 0, 2, 33, 32]);
        assert_eq!(tiles(&[0, 17], 64), [0, 17, 0, 0, 17, 16]);
        assert!(UNIT.source.contains(&format!("#define THREADS {THREADS}\n")));
        let attention = attention_unit(64, 1).unwrap();
        assert!(attention.source.contains(&format!("#define WARP {WARP}\n")));
        for (head, heads) in [(4099, 1), (65_535, 1), (8192, 1), (64, 65_536)] {
            assert!(attention_unit(head, heads).is_err(), "{heads} heads of {head}");
        }
    }
}
