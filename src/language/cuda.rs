//! The state and its directions on a CUDA device: the one place with `unsafe`, the launches of the kernels in
//! `direction.cu`.
//!
//! The state of the machine's memory counts; a device has a [`StateCopy`] of it. The copy knows the mark of
//! the state that it is of, is made anew where that is another one, and follows a state's updates with the
//! same additions, so that in a run nothing but keys and amounts goes to the device.

#![expect(unsafe_code, reason = "the arguments of a launch cannot be checked by the compiler")]

use std::sync::OnceLock;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

use crate::direction::{BLOCK_PARAMETERS, Direction};
use crate::lb8::pow2_f64;
use crate::params::{End, Mark, Payout, State, Tensor, changes_of};

const SOURCE: &str = include_str!("direction.cu");

/// What candle keeps the loaded kernels under.
const MODULE: &str = "rumormill-direction";

/// `THREADS` of the source.
const THREADS: u32 = 256;

/// Threads that share a ChaCha block.
const BLOCK_THREADS: u64 = 16;

/// The kernels, compiled once a process by the toolkit's own compiler (NVRTC), which candle links anyway. So
/// the text that tests run on the processor is the one that runs on the card, whatever card it is.
fn compiled() -> Result<&'static str> {
    static COMPILED: OnceLock<std::result::Result<String, String>> = OnceLock::new();
    let compile = || {
        // Every rounding is spelled out in the source; this is the second lock on the door.
        let options = CompileOptions { fmad: Some(false), ftz: Some(false), ..Default::default() };
        match compile_ptx_with_opts(SOURCE, options) {
            Ok(ptx) => Ok(ptx.to_src()),
            Err(error) => Err(format!("the kernels for directions do not compile: {error:?}")),
        }
    };
    match COMPILED.get_or_init(compile) {
        Ok(compiled) => Ok(compiled),
        Err(error) => bail!("{error}"),
    }
}

/// A launch of so many threads or a few more.
fn grid(threads: u64) -> Result<LaunchConfig> {
    let Ok(blocks) = u32::try_from(threads.div_ceil(u64::from(THREADS))) else {
        bail!("a tensor too large for one launch: {threads} threads")
    };
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 })
}

/// The threads that have the words of so many parameters.
fn word_threads(len: usize) -> u64 {
    len.div_ceil(BLOCK_PARAMETERS) as u64 * BLOCK_THREADS
}

/// A key as the generator takes it.
fn words_of(direction: &Direction) -> [u32; 8] {
    let words = direction.key().as_chunks::<4>().0;
    std::array::from_fn(|at| u32::from_le_bytes(words[at]))
}

/// The values of a state on a device, in the order of its layout.
pub(super) struct StateCopy {
    mark: Mark,
    device: CudaDevice,
    values: CudaSlice<i32>,
}

impl StateCopy {
    pub(super) fn new(device: &CudaDevice, state: &State) -> Result<StateCopy> {
        let values = device.clone_htod(state.values())?;
        Ok(StateCopy { mark: state.mark(), device: device.clone(), values })
    }

    /// Whether this is a copy of the state as it is.
    pub(super) fn is_of(&self, mark: &Mark) -> bool {
        self.mark.is(mark)
    }

    /// Takes the values of a state of the same layout.
    pub(super) fn renew(&mut self, state: &State) -> Result<()> {
        // A copy that fails halfway is a copy of nothing.
        self.mark = Mark::default();
        self.device.memcpy_htod(state.values(), &mut self.values)?;
        self.mark = state.mark();
        Ok(())
    }

    /// Does what [`State::apply`] did to the state that this was a copy of.
    pub(super) fn apply(&mut self, payouts: &[Payout], state: &State) -> Result<()> {
        self.mark = Mark::default();
        let mut directions = Vec::new();
        for (index, tensor) in state.layout().tensors().iter().enumerate() {
            directions.clear();
            for (direction, amount) in changes_of(payouts, tensor.lsb_log2) {
                directions.extend_from_slice(&words_of(&direction));
                directions.push(amount as u32);
            }
            self.add(index, tensor, &directions)?;
        }
        self.mark = state.mark();
        Ok(())
    }

    /// Adds directions, nine numbers each, to a tensor.
    fn add(&mut self, index: usize, tensor: &Tensor, directions: &[u32]) -> Result<()> {
        if tensor.len == 0 || directions.is_empty() {
            return Ok(());
        }
        let function =
            self.device.get_or_load_custom_func("add_directions", MODULE, compiled()?)?;
        let (len, stream) = (tensor.len as u64, index as u64);
        let count = (directions.len() / 9) as u32;
        let directions = self.device.clone_htod(directions)?;
        let mut values = self.values.slice_mut(tensor.offset..tensor.offset + tensor.len);
        let mut builder = function.builder();
        builder.arg(&mut values).arg(&len).arg(&stream).arg(&directions).arg(&count);
        let grid = grid(word_threads(tensor.len))?;
        // SAFETY: the arguments are those of `add_directions` in number, order and type. It reads and writes
        // `values[..len]`, which is the view's length, and reads `directions[..9 · count]`.
        unsafe { builder.launch(grid) }.w()?;
        Ok(())
    }

    /// Writes what [`State::write_part`] writes to a tensor on the device.
    pub(super) fn write(
        &self,
        state: &State,
        index: usize,
        end: Option<End<'_>>,
        out: &mut CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        let Tensor { offset, len, lsb_log2, .. } = state.layout().tensors()[index];
        let Some((from, to)) = layout.contiguous_offsets() else {
            bail!("a contiguous tensor was expected")
        };
        // Checked, as the launches trust in it.
        assert!(self.is_of(&state.mark()), "a copy is renewed before it is used");
        assert_eq!(to - from, len, "a view has the tensor's size");
        if len == 0 {
            return Ok(());
        }
        let name = if end.is_some() { "write_end" } else { "write_view" };
        let function = self.device.get_or_load_custom_func(name, MODULE, compiled()?)?;
        let mut out = out.as_cuda_slice_mut::<f32>()?.slice_mut(from..to);
        let values = self.values.slice(offset..offset + len);
        let (count, stream, lsb) = (len as u64, index as u64, pow2_f64(lsb_log2) as f32);
        let mut builder = function.builder();
        builder.arg(&mut out).arg(&values).arg(&count);
        let Some(end) = end else {
            builder.arg(&lsb);
            let grid = grid(count)?;
            // SAFETY: the arguments are those of `write_view` in number, order and type. It reads
            // `values[..count]` and writes `out[..count]`, which both views are long.
            unsafe { builder.launch(grid) }.w()?;
            return Ok(());
        };
        let (key, step) = (words_of(end.direction), end.step());
        builder.arg(&key).arg(&stream).arg(&lsb).arg(&step);
        let grid = grid(word_threads(len))?;
        // SAFETY: the arguments are those of `write_end` in number, order and type; eight numbers of 32 bits are
        // laid out as its `Key`. It reads `values[..count]` and writes `out[..count]`, which both views are long.
        unsafe { builder.launch(grid) }.w()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::op;
    use super::super::view::Source;
    use super::*;
    use crate::id::{Round, RunId, Slot};
    use crate::params::{TensorSpec, coefficient};
    use crate::sample::KeyedRng;

    /// The first card, if there is one.
    fn card() -> Option<Device> {
        match super::super::device::Device::Cuda(0).open() {
            Ok(device) => Some(device),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn direction(slot: u32) -> Direction {
        Direction::new(&RunId([7; 32]), Round(3), Slot(slot))
    }

    /// Tensors of sizes around those of blocks and launches, and of different units, with values anywhere in their
    /// range.
    fn some_state() -> State {
        let mut rng = KeyedRng::from_seed("rumormill v1 test", 9, 0);
        let sizes = [1, 511, 512, 513, 8192, 8197, 100_003];
        let scales = [1e-3, 0.1, 100.0, 1.0, 1e6, 1e-2, 0.5];
        let specs =
            sizes.iter().enumerate().map(|(at, &len)| TensorSpec::new(at.to_string(), &[len]));
        let all = sizes.iter().zip(scales);
        let base: Vec<f32> = all.flat_map(|(&len, scale)| vec![scale; len]).collect();
        let state = State::from_base(specs.collect(), base).unwrap();
        let values = (0..state.layout().dim()).map(|_| rng.next_u32() as i32).collect();
        State::from_values(state.layout().clone(), values).unwrap()
    }

    /// What a copy's kernels write for a tensor.
    fn written(copy: &StateCopy, state: &State, index: usize, end: Option<End<'_>>) -> Vec<u32> {
        let len = state.layout().tensors()[index].len;
        let device = Device::Cuda(copy.device.clone());
        let tensor = candle_core::Tensor::zeros((1, len), DType::F32, &device).unwrap();
        let source = Source::One(state, end);
        tensor
            .inplace_op1(&op::Write { source: &source, tensor: index, copy: Some(copy) })
            .unwrap();
        bits(&tensor.get(0).unwrap().to_vec1().unwrap())
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    fn assert_equal(copy: &StateCopy, state: &State, what: &str) {
        let values = copy.device.clone_dtoh(&copy.values).unwrap();
        assert!(values == state.values(), "{what}: the copy's values");
        let direction = direction(1);
        let end = |epsilon_log2, plus| Some(End { direction: &direction, epsilon_log2, plus });
        for index in 0..state.layout().tensors().len() {
            for end in [None, end(-8, true), end(-8, false), end(-30, true), end(3, false)] {
                let mut expected = vec![0.0; state.layout().tensors()[index].len];
                state.write_part(index, 0, end, &mut expected);
                let found = written(copy, state, index, end);
                assert!(found == bits(&expected), "{what}: tensor {index}, {end:?}");
            }
        }
    }

    #[test]
    fn a_device_has_the_weights_and_follows_the_updates_bit_for_bit() {
        let Some(device) = card() else { return };
        let mut state = some_state();
        let mut copy = StateCopy::new(device.as_cuda_device().unwrap(), &state).unwrap();
        assert_equal(&copy, &state, "as sent");
        for count in [1, 2, 40] {
            let payouts: Vec<Payout> = (0..count)
                .map(|slot| Payout {
                    direction: direction(slot),
                    from: coefficient(f64::from(slot) * 0.37),
                    to: coefficient(-1.5 + f64::from(slot * slot) * 0.011),
                })
                .collect();
            let before = state.mark();
            state.apply(&payouts);
            assert!(copy.is_of(&before) && !copy.is_of(&state.mark()));
            copy.apply(&payouts, &state).unwrap();
            assert_equal(&copy, &state, &format!("{count} payouts"));
        }
        let other = some_state();
        assert!(!copy.is_of(&other.mark()));
        copy.renew(&other).unwrap();
        assert_equal(&copy, &other, "renewed");
    }

    #[test]
    fn the_kernels_compile_and_their_launches_are_as_wide_as_they_say() {
        assert!(SOURCE.contains(&format!("#define THREADS {THREADS}\n")));
        assert_eq!(grid(1).unwrap().grid_dim.0, 1);
        assert_eq!(grid(word_threads(8193)).unwrap().grid_dim.0, 2);
        assert!(grid(u64::MAX).is_err());
        if card().is_some() {
            assert!(compiled().unwrap().contains("write_end"));
        }
    }
}
