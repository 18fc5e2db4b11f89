//! Tuned weights as files that Python's libraries read.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;
use thiserror::Error;

use super::config::Kind;
use super::folder::{Folder, FolderError};
use super::model::ADAPTER_SCALE;
use crate::params::{State, Tensor};
use crate::tensors::{Announced, Dtype, header};

/// Why tuned weights could not be written.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The folder they are written like.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The system refused to write.
    #[error(transparent)]
    Write(#[from] io::Error),
}

/// A tensor of the tuned model.
struct Tuned {
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values,
}

/// Where its values come from.
enum Values {
    /// The folder.
    Kept,
    /// The state, by number.
    Trained(usize),
    /// Multiplied out.
    Merged(Vec<f32>),
}

/// Writes the whole model as one safetensors file: the folder's tensors under their own names, those of the state
/// in place of the old ones, adapters multiplied out into their matrices. The head is `classifier.weight`
/// and `classifier.bias`. What comes from folder or state is in memory a piece at a time.
///
/// # Errors
/// If the state is not of this folder's model, or the system refuses to read or write.
pub fn export(folder: &Folder, state: &State, out: &mut impl Write) -> Result<(), ExportError> {
    let mut all: BTreeMap<String, Tuned> = BTreeMap::new();
    for (name, dtype, shape) in folder.tensors() {
        all.insert(name.into(), Tuned { dtype, shape: shape.to_vec(), values: Values::Kept });
    }
    for (index, tensor) in state.layout().tensors().iter().enumerate() {
        let (dtype, shape, values) = (Dtype::F32, tensor.shape.clone(), Values::Trained(index));
        all.insert(tensor.name.clone(), Tuned { dtype, shape, values });
    }
    // Those that the folder itself has stay as they are.
    let of_adapter = |tensor: &Tensor| tensor.name.strip_suffix(".lora_A.weight").map(String::from);
    let adapters: Vec<String> = state.layout().tensors().iter().filter_map(of_adapter).collect();
    for name in adapters {
        merge(&name, folder, state, &mut all)?;
    }
    let mut order: Vec<(&String, &Tuned)> = all.iter().collect();
    // Larger numbers first, so that all are aligned.
    order.sort_by_key(|(_, tuned)| std::cmp::Reverse(tuned.dtype.bitsize()));
    let announced = |(name, tuned): &(&String, &Tuned)| Announced {
        name: (*name).clone(),
        dtype: tuned.dtype,
        shape: tuned.shape.clone(),
    };
    let announced: Vec<Announced> = order.iter().map(announced).collect();
    // Python's libraries want to know where the file comes from.
    let about = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    out.write_all(&header(&announced, &about))?;
    for (name, Tuned { values, .. }) in order {
        match values {
            Values::Kept => {
                folder.bytes_of(name, |bytes| Ok::<_, ExportError>(out.write_all(bytes)?))?
            }
            Values::Trained(index) => state.weight_bytes(*index, |bytes| out.write_all(bytes))?,
            Values::Merged(values) => {
                values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))?;
            }
        }
    }
    Ok(())
}

/// Multiplies an adapter out into its matrix.
fn merge(
    name: &str,
    folder: &Folder,
    state: &State,
    all: &mut BTreeMap<String, Tuned>,
) -> Result<(), ExportError> {
    let weights = |index: usize| {
        let mut values = vec![0.0; state.layout().tensors()[index].len];
        state.write_part(index, 0, None, &mut values);
        values
    };
    let mut part = |part: &str| match all.remove(&format!("{name}.{part}.weight")) {
        Some(Tuned { shape, values: Values::Trained(index), .. }) => Some((shape, weights(index))),
        _ => None,
    };
    let (Some((down_shape, down)), Some((up_shape, up))) = (part("lora_A"), part("lora_B")) else {
        return Ok(());
    };
    let (rank, inputs, outputs) = (down_shape[0], down_shape[1], up_shape[0]);
    let matrix = format!("{name}.weight");
    let shape = vec![outputs, inputs];
    let mut values = match all.get(&matrix) {
        Some(Tuned { values: Values::Trained(index), .. }) => weights(*index),
        _ => {
            let mut values = Vec::new();
            folder.values(&matrix, &shape, &mut values)?;
            values
        }
    };
    for (row, up) in values.chunks_exact_mut(inputs).zip(up.chunks_exact(rank)) {
        for (factor, down) in up.iter().zip(down.chunks_exact(inputs)) {
            let factor = factor * ADAPTER_SCALE as f32;
            row.iter_mut().zip(down).for_each(|(value, down)| *value += factor * down);
        }
    }
    let values = Values::Merged(values);
    all.insert(matrix, Tuned { dtype: Dtype::F32, shape, values });
    Ok(())
}

/// A `config.json` for a model of llama2.c, whose file has none.
pub fn export_config(folder: &Folder) -> String {
    let config = &folder.config;
    let tied = matches!(config.kind, Kind::Decoder { tied: true, .. });
    let object = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "max_position_embeddings": config.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": config.vocabulary,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    });
    format!("{object:#}\n")
}
