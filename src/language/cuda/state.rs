//! The state on a device, and the weights that are made of it there.
//!
//! The state of the machine's memory counts; a device has a [`StateCopy`] of it. The copy knows the mark of
//! the state that it is of, is made anew where that is another one, and follows a state's updates with the
//! same additions, so that in a run nothing but keys and amounts goes to the device.

use std::sync::{LazyLock, OnceLock};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, DeviceRepr, LaunchConfig, PushKernelArg,
};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};

use super::{Unit, blocks, launch};
use crate::direction::{BLOCK_PARAMETERS, Direction};
use crate::lb8::pow2_f64;
use crate::params::{End, Layout as Tensors, Mark, Payout, State, change_of};

/// `THREADS` of the kernels.
const THREADS: u32 = 256;

/// Threads that share a ChaCha block.
const BLOCK_THREADS: usize = 16;

/// Directions of one launch. A node that catches up has thousands, and a card that draws a screen, too, ends a
/// kernel that takes seconds.
const DIRECTIONS_MAX: usize = 256;

/// The kernels of directions, in which nothing may be rounded otherwise than on the processor. Every rounding is
/// spelled out in them; that products and sums are not joined is the second lock on the door.
pub(super) static UNIT: LazyLock<Unit> = LazyLock::new(|| Unit {
    name: "rumormill-direction".into(),
    source: include_str!("direction.cu"),
    constants: Vec::new(),
    fused: false,
    compiled: OnceLock::new(),
});

/// `Part` of the kernels.
#[repr(C)]
#[derive(Clone, Copy)]
struct Part {
    at: u64,
    out: u64,
    len: u64,
    first_block: u64,
    stream: u32,
    lsb: f32,
}

// SAFETY: numbers alone, in the order and sizes of the kernels' `Part`, and nothing between them.
unsafe impl DeviceRepr for Part {}

/// A key as the generator takes it.
fn words_of(direction: &Direction) -> [u32; 8] {
    let words = direction.key().as_chunks::<4>().0;
    std::array::from_fn(|at| u32::from_le_bytes(words[at]))
}

/// The values of a state on a device, in the order of its layout.
pub(in crate::language) struct StateCopy {
    mark: Mark,
    tensors: Tensors,
    device: CudaDevice,
    values: CudaSlice<i32>,
    parts: CudaSlice<Part>,
    /// Of all tensors.
    chacha_blocks: usize,
    /// The end of the last tensor in a view.
    view_len: usize,
}

impl StateCopy {
    /// A copy of a state whose tensors have these places in a view: where each begins, and its length.
    pub(in crate::language) fn new(
        device: &CudaDevice,
        state: &State,
        places: &[(usize, usize)],
    ) -> Result<StateCopy> {
        let tensors = state.layout().tensors();
        assert!(
            tensors.iter().map(|tensor| tensor.len).eq(places.iter().map(|place| place.1)),
            "a place for every tensor"
        );
        let (mut parts, mut chacha_blocks, mut view_len) = (Vec::new(), 0, 0);
        for (index, (tensor, &(out, _))) in tensors.iter().zip(places).enumerate() {
            parts.push(Part {
                at: tensor.offset as u64,
                out: out as u64,
                len: tensor.len as u64,
                first_block: chacha_blocks as u64,
                stream: index as u32,
                lsb: pow2_f64(tensor.lsb_log2) as f32,
            });
            chacha_blocks += tensor.len.div_ceil(BLOCK_PARAMETERS);
            view_len = view_len.max(out + tensor.len);
        }
        Ok(StateCopy {
            mark: state.mark(),
            tensors: state.layout().clone(),
            device: device.clone(),
            values: device.clone_htod(state.values())?,
            parts: device.clone_htod(&parts)?,
            chacha_blocks,
            view_len,
        })
    }

    /// Whether this is a copy of the state as it is.
    pub(in crate::language) fn is_of(&self, mark: &Mark) -> bool {
        self.mark.is(mark)
    }

    /// Whether this can become a copy of the state: tensors of the same lengths and units.
    pub(in crate::language) fn fits(&self, state: &State) -> bool {
        self.tensors == *state.layout()
    }

    /// Takes the values of a state that it fits.
    pub(in crate::language) fn renew(&mut self, state: &State) -> Result<()> {
        assert!(self.fits(state), "a copy of other tensors is made anew");
        // A copy that fails halfway is a copy of nothing.
        self.mark = Mark::default();
        self.device.memcpy_htod(state.values(), &mut self.values)?;
        self.mark = state.mark();
        Ok(())
    }

    /// Does what [`State::apply`] did to the state that this was a copy of.
    pub(in crate::language) fn apply(&mut self, payouts: &[Payout], state: &State) -> Result<()> {
        assert!(self.fits(state), "a state keeps its tensors");
        self.mark = Mark::default();
        if self.chacha_blocks > 0 {
            payouts.chunks(DIRECTIONS_MAX).try_for_each(|payouts| self.add(payouts))?;
        }
        self.mark = state.mark();
        Ok(())
    }

    fn add(&mut self, payouts: &[Payout]) -> Result<()> {
        let keys: Vec<u32> =
            payouts.iter().flat_map(|payout| words_of(&payout.direction)).collect();
        let mut amounts = Vec::with_capacity(payouts.len() * self.parts.len());
        for tensor in self.tensors.tensors() {
            amounts.extend(payouts.iter().map(|payout| change_of(payout, tensor.lsb_log2) as u32));
        }
        let (keys, amounts) = (self.device.clone_htod(&keys)?, self.device.clone_htod(&amounts)?);
        let (count, directions) = (self.parts.len() as u32, payouts.len() as u32);
        let grid = self.grid()?;
        // Reads `keys[..8 · directions]` and `amounts[..count · directions]`, which is what they hold.
        launch!(
            &self.device,
            &*UNIT,
            "add_directions",
            grid,
            &mut self.values,
            &self.parts,
            &count,
            &keys,
            &amounts,
            &directions,
        );
        Ok(())
    }

    /// Writes the weights of all tensors, or those of one end of a probe, into a view.
    pub(in crate::language) fn write(
        &self,
        state: &State,
        end: Option<End<'_>>,
        out: &mut CudaStorage,
        layout: &Layout,
    ) -> Result<()> {
        // Checked, as the launches trust in it.
        assert!(self.is_of(&state.mark()), "a copy is renewed before it is used");
        match layout.contiguous_offsets() {
            Some((0, to)) if to >= self.view_len => (),
            _ => bail!("a view has room for all tensors"),
        }
        if self.chacha_blocks == 0 {
            return Ok(());
        }
        let out = out.as_cuda_slice_mut::<f32>()?;
        let (grid, count) = (self.grid()?, self.parts.len() as u32);
        match end {
            None => launch!(
                &self.device,
                &*UNIT,
                "write_view",
                grid,
                out,
                &self.values,
                &self.parts,
                &count
            ),
            Some(end) => {
                let (key, step) = (words_of(end.direction), end.step());
                // Eight numbers of 32 bits are laid out as the kernel's `Key`.
                launch!(
                    &self.device,
                    &*UNIT,
                    "write_end",
                    grid,
                    out,
                    &self.values,
                    &self.parts,
                    &count,
                    &key,
                    &step,
                );
            }
        }
        Ok(())
    }

    /// A thread for every word of every ChaCha block.
    fn grid(&self) -> Result<LaunchConfig> {
        blocks((self.chacha_blocks * BLOCK_THREADS).div_ceil(THREADS as usize), THREADS)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::super::tests::card;
    use super::*;
    use crate::id::{Round, RunId, Slot};
    use crate::language::op;
    use crate::language::view::{Source, places_in_view};
    use crate::params::{TensorSpec, coefficient};
    use crate::sample::KeyedRng;

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

    /// What a copy's kernels write for all tensors.
    fn written(copy: &StateCopy, state: &State, end: Option<End<'_>>) -> Vec<f32> {
        let device = Device::Cuda(copy.device.clone());
        let view = Tensor::zeros(copy.view_len, DType::F32, &device).unwrap();
        let source = Source::One(state, end);
        let places = places_of(state);
        let write = op::WriteAll { source: &source, places: &places, copy: Some(copy) };
        view.inplace_op1(&write).unwrap();
        view.to_vec1().unwrap()
    }

    fn places_of(state: &State) -> Vec<(usize, usize)> {
        places_in_view(state.layout().tensors().iter().map(|tensor| tensor.len)).0
    }

    fn assert_equal(copy: &StateCopy, state: &State, what: &str) {
        let values = copy.device.clone_dtoh(&copy.values).unwrap();
        assert!(values == state.values(), "{what}: the copy's values");
        let direction = direction(1);
        let end = |epsilon_log2, plus| Some(End { direction: &direction, epsilon_log2, plus });
        for end in [None, end(-8, true), end(-8, false), end(-30, true), end(3, false)] {
            let found = written(copy, state, end);
            for (index, (offset, len)) in places_of(state).into_iter().enumerate() {
                let mut expected = vec![0.0; len];
                state.write_part(index, 0, end, &mut expected);
                let found = &found[offset..offset + len];
                let equal = expected.iter().zip(found).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(equal, "{what}: tensor {index}, {end:?}");
            }
        }
    }

    #[test]
    fn a_device_has_the_weights_and_follows_the_updates_bit_for_bit() {
        let Some(device) = card() else { return };
        let mut state = some_state();
        let mut copy =
            StateCopy::new(device.as_cuda_device().unwrap(), &state, &places_of(&state)).unwrap();
        assert_equal(&copy, &state, "as sent");
        for count in [1, 2, 40, 600] {
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
        assert!(!copy.is_of(&other.mark()) && copy.fits(&other));
        copy.renew(&other).unwrap();
        assert_equal(&copy, &other, "renewed");
        let specs = other.layout().tensors().iter();
        let specs = specs.map(|tensor| TensorSpec::new(tensor.name.clone(), &[tensor.len]));
        let finer = vec![1e-4; other.layout().dim()];
        assert!(!copy.fits(&State::from_base(specs.collect(), finer).unwrap()));
    }

    #[test]
    fn threads_are_as_many_as_the_kernels_say() {
        assert!(UNIT.source.contains(&format!("#define THREADS {THREADS}\n")));
        assert_eq!(size_of::<Part>(), 40);
    }
}
