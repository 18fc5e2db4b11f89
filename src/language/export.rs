//! Tuned weights as files that Python's libraries read.

use std::collections::BTreeMap;

use serde_json::json;

use super::config::Kind;
use super::folder::{Folder, FolderError};
use super::model::ADAPTER_SCALE;
use super::objective::named;
use crate::params::State;

/// The whole model as one safetensors file: the folder's tensors under their own names, those of the state
/// in place of the old ones, adapters multiplied out into their matrices. The head is `classifier.weight`
/// and `classifier.bias`.
///
/// # Errors
/// If the state is not of this folder's model.
pub fn export(folder: &Folder, state: &State) -> Result<Vec<u8>, FolderError> {
    let mut trained = named(state);
    let adapters: Vec<String> = trained
        .keys()
        .filter_map(|name| name.strip_suffix(".lora_A.weight"))
        .map(String::from)
        .collect();
    for name in adapters {
        let down = trained.remove(&format!("{name}.lora_A.weight"));
        let up = trained.remove(&format!("{name}.lora_B.weight"));
        let (Some((down_shape, down)), Some((up_shape, up))) = (down, up) else { continue };
        let (rank, inputs, outputs) = (down_shape[0], down_shape[1], up_shape[0]);
        let matrix = format!("{name}.weight");
        let shape = vec![outputs, inputs];
        let mut values = match trained.remove(&matrix) {
            Some((_, values)) => values,
            None => folder.values(&matrix, &shape)?,
        };
        for (row, up) in values.chunks_exact_mut(inputs).zip(up.chunks_exact(rank)) {
            for (factor, down) in up.iter().zip(down.chunks_exact(inputs)) {
                let factor = factor * ADAPTER_SCALE as f32;
                row.iter_mut().zip(down).for_each(|(value, down)| *value += factor * down);
            }
        }
        trained.insert(matrix, (shape, values));
    }
    let bytes = |values: Vec<f32>| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let replaced: BTreeMap<String, (Vec<usize>, Vec<u8>)> =
        trained.into_iter().map(|(name, (shape, values))| (name, (shape, bytes(values)))).collect();
    folder.with_replaced(&replaced)
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
