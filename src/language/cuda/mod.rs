//! Language models on a CUDA device: the kernels beside it in `*.cu`, and the only `unsafe` there is, to launch
//! them.
//!
//! [`state`] has the state of a model and writes its weights; [`pass`] has what lies between the matrix products of
//! a forward pass, which candle's CUDA backend leaves to cuBLAS.

#![expect(unsafe_code, reason = "the arguments of a launch cannot be checked by the compiler")]

use std::sync::OnceLock;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, result};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use candle_core::{CudaDevice, Result, bail};

pub(super) mod pass;
pub(super) mod state;

/// Opens a card for one model.
///
/// All work of a model goes through one stream, whatever thread it comes from. candle's usual one is another for
/// each thread, and weights that one thread has sent need not have arrived where another uses them.
pub(super) fn open(card: usize) -> Result<candle_core::Device> {
    let device = CudaDevice::new_with_stream(card)?;
    // SAFETY: with one stream there is nothing to order between streams; no other is ever made of this context.
    // Otherwise every tensor has two events and every launch waits for those of its arguments, which takes longer
    // than a small model's kernels.
    unsafe { device.disable_event_tracking() };
    keep_memory(&device)?;
    Ok(candle_core::Device::Cuda(device))
}

/// Has the driver keep memory that was freed, so that a process keeps what it used at its highest: by default it
/// unmaps it whenever the processor waits for the card, twice a probe.
fn keep_memory(device: &CudaDevice) -> Result<()> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(());
    }
    context.bind_to_thread().w()?;
    let mut all = u64::MAX;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the device is that of a context that lives; the attribute's value is a number of 64 bits.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device()).w()?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast()).w()
    }
}

/// A file of kernels.
struct Unit {
    /// What candle keeps the loaded kernels under.
    name: String,
    source: &'static str,
    /// Constants, as `-D` gives them.
    constants: Vec<String>,
    /// Whether a product and a sum may be rounded once for both.
    fused: bool,
    compiled: OnceLock<std::result::Result<String, String>>,
}

impl Unit {
    /// The file, compiled once a process by the toolkit's own compiler (NVRTC), which candle links anyway. So the
    /// text that tests run on the processor is the one that runs on the card, whatever card it is.
    fn compiled(&self) -> Result<&str> {
        let compile = || {
            let options = self.constants.iter().map(|constant| format!("-D{constant}")).collect();
            let options = CompileOptions {
                fmad: Some(self.fused),
                ftz: Some(false),
                options,
                ..Default::default()
            };
            let compiled = compile_ptx_with_opts(self.source, options);
            compiled.map(|code| code.to_src()).map_err(|error| format!("{error:?}"))
        };
        match self.compiled.get_or_init(compile) {
            Ok(code) => Ok(code),
            Err(error) => bail!("the kernels of {} do not compile: {error}", self.name),
        }
    }

    /// Compiles and loads a kernel, and so the file, before it is needed.
    fn load(&self, device: &CudaDevice, kernel: &str) -> Result<()> {
        device.get_or_load_custom_func(kernel, &self.name, self.compiled()?).map(|_| ())
    }
}

/// Compiles and loads all kernels for a model, so that what is wrong with the card's software, or with the model for a
/// card, is known at the start.
pub(super) fn prepare(device: &candle_core::Device, head: usize, heads: usize) -> Result<()> {
    let candle_core::Device::Cuda(device) = device else { return Ok(()) };
    let attention = pass::attention_unit(head, heads)?;
    state::UNIT.load(device, "write_end")?;
    pass::UNIT.load(device, "add")?;
    attention.load(device, "attention")
}

/// So many blocks of so many threads.
fn blocks(blocks: usize, threads: u32) -> Result<LaunchConfig> {
    let Ok(blocks) = u32::try_from(blocks) else {
        bail!("too many blocks of threads for one launch: {blocks}")
    };
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 })
}

/// Launches a kernel on a device's stream: `launch!(device, unit, "name", grid, arguments…)`, the arguments by
/// reference.
macro_rules! launch {
    ($device:expr, $unit:expr, $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {{
        let unit = $unit;
        let kernel = $device.get_or_load_custom_func($name, &unit.name, unit.compiled()?)?;
        let mut builder = kernel.builder();
        $(builder.arg($argument);)+
        // SAFETY: the arguments are the kernel's in number, order and type, and what it reads and writes of slices
        // lies in them. Every use stands beside the checks of their lengths; what is said of sequences by numbers on
        // the device, `Batch` made of the sequences themselves.
        unsafe { builder.launch($grid) }.w()?;
    }};
}
use launch;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The first card, if there is one.
    pub(in crate::language) fn card() -> Option<candle_core::Device> {
        match super::super::device::Device::Cuda(0).open() {
            Ok(device) => Some(device),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn launches_are_as_wide_as_they_say() {
        assert_eq!(blocks(2, 256).unwrap().grid_dim.0, 2);
        assert!(blocks(usize::MAX, 256).is_err());
    }
}
