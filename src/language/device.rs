//! Where a language model computes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A device, as people name it: `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor and its memory.
    #[default]
    Cpu,
    /// An NVIDIA card, counted from 0; needs the feature `cuda`.
    Cuda(usize),
}

/// No name of a device.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no device; say cpu, cuda (the first card) or cuda:N (counted from 0)")]
pub struct DeviceNameError(String);

impl FromStr for Device {
    type Err = DeviceNameError;

    fn from_str(text: &str) -> Result<Device, DeviceNameError> {
        let card = match text.strip_prefix("cuda") {
            None if text == "cpu" => return Ok(Device::Cpu),
            Some("") => Some(0),
            // Digits only: a number may have a plus in front elsewhere.
            Some(rest) => rest
                .strip_prefix(':')
                .filter(|rest| !rest.starts_with('+'))
                .and_then(|number| number.parse().ok()),
            None => None,
        };
        card.map(Device::Cuda).ok_or_else(|| DeviceNameError(text.to_owned()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(card) => write!(f, "cuda:{card}"),
        }
    }
}

#[cfg(feature = "language")]
impl Device {
    /// Makes the device ready.
    ///
    /// # Errors
    /// It is not there, or this build cannot use it; says what would help.
    pub(super) fn open(self) -> Result<candle_core::Device, super::LanguageError> {
        match self {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(card) => super::cuda::open(card).map_err(|error| self.refuses(&error)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(super::LanguageError::Setting {
                setting: "--device",
                problem: format!(
                    "{self}: this program was built without CUDA; build it with `--features cuda`, where the CUDA \
                     toolkit is installed, or leave --device out"
                ),
            }),
        }
    }

    /// That it cannot be used, and what would help.
    #[cfg(feature = "cuda")]
    pub(super) fn refuses(self, error: &candle_core::Error) -> super::LanguageError {
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default();
        super::LanguageError::Setting {
            setting: "--device",
            problem: format!(
                "{self}: cannot be used ({first}); `nvidia-smi -L` lists the cards, counted from 0, and --device cpu \
                 needs none"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_read_and_written() {
        for (text, device) in
            [("cpu", Device::Cpu), ("cuda:0", Device::Cuda(0)), ("cuda:12", Device::Cuda(12))]
        {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda0", "cuda:x", "CPU", "cpu:0"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }

    #[cfg(all(feature = "language", not(feature = "cuda")))]
    #[test]
    fn a_build_without_cuda_says_how_to_get_it() {
        let error = Device::Cuda(1).open().unwrap_err().to_string();
        assert!(error.contains("cuda:1") && error.contains("--features cuda"), "{error}");
    }
}
