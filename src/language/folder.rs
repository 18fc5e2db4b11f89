//! A model folder: configuration, weights, tokenizer. Reading is the caller's, as with data sets.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use super::config::{Config, Kind, Stretch};
use super::tokenizer::Tokenizer;
use crate::data::source::{Found, Look, OpenFile, read_all};
use crate::tensors::{Dtype, Stored, TensorsError, TensorsFile, read_range};

/// Why a folder holds no model.
#[derive(Debug, Error)]
pub enum FolderError {
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that must be there.
    #[error("{} has no {file}; {remedy}", folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A file that does not say what it should.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        problem: String,
    },
    /// A tensor that the architecture needs and no file has.
    #[error("{}: no tensor {tensor:?}, which a {model_type} model of this configuration needs", folder.display())]
    Tensor {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
        /// The architecture.
        model_type: String,
    },
    /// A tensor of another shape than the configuration says.
    #[error("{}: tensor {tensor:?} has shape {found:?}, config.json makes it {expected:?}", folder.display())]
    Shape {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
        /// In the file.
        found: Vec<usize>,
        /// By the configuration.
        expected: Vec<usize>,
    },
    /// A tensor of another kind of numbers.
    #[error("{}: tensor {tensor:?} holds {dtype}; f32, f16, bf16 and f64 are read", folder.display())]
    Numbers {
        /// The folder.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it holds.
        dtype: String,
    },
    /// A tokenizer of another model.
    #[error(
        "{}: the tokenizer has tokens up to {largest}, the model's vocabulary {vocabulary} rows: take the \
         tokenizer of this model", folder.display()
    )]
    Vocabulary {
        /// The folder.
        folder: PathBuf,
        /// The tokenizer's last token.
        largest: usize,
        /// Rows of the embedding.
        vocabulary: usize,
    },
}

/// What a folder holds.
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// The configuration.
    pub config: Config,
    /// Turns texts into tokens.
    pub tokenizer: Tokenizer,
    /// Hash of configuration and tokenizer as files.
    pub hash: [u8; 32],
    /// What stands in front of the tensors' names.
    pub prefix: String,
    files: Vec<Weights>,
    tensors: BTreeMap<String, Place>,
}

/// A file of weights.
struct Weights {
    path: PathBuf,
    /// Reading moves its place; nothing is held beyond a call.
    file: RefCell<Box<dyn OpenFile>>,
}

/// Where a tensor's numbers are.
struct Place {
    file: usize,
    stored: Stored,
}

const HOLDS: &str = "a model folder holds config.json, model.safetensors (or its shards with \
                     model.safetensors.index.json) and tokenizer.json";

/// Prefixes of published checkpoints.
const PREFIXES: [&str; 6] = ["", "bert.", "roberta.", "distilbert.", "model.", "0.auto_model."];

impl Folder {
    /// Reads a folder, or a `.bin` of llama2.c with `tokenizer.bin` or a `tok….bin` beside it.
    ///
    /// # Errors
    /// See [`FolderError`]; each names the file.
    pub fn read(path: &Path, look: Look<'_>) -> Result<Folder, FolderError> {
        let found = look(path).map_err(|source| FolderError::Read { path: path.into(), source })?;
        let folder = match found {
            Found::File(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)
                    .map_err(|source| FolderError::Read { path: path.into(), source })?;
                llama2c(path, bytes, look)?
            }
            Found::Folder => safetensors(path, look)?,
        };
        let (largest, vocabulary) = (folder.tokenizer.size(), folder.config.vocabulary);
        if largest > vocabulary {
            let folder = path.into();
            return Err(FolderError::Vocabulary { folder, largest: largest - 1, vocabulary });
        }
        Ok(folder)
    }

    /// The names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The name in the files of a tensor that the architecture knows by `name`.
    pub fn stored_name(&self, name: &str) -> Option<String> {
        let plain = format!("{}{name}", self.prefix);
        // Early checkpoints call the parts of a normalization otherwise.
        let old = plain.replace("LayerNorm.weight", "LayerNorm.gamma");
        let old = old.replace("LayerNorm.bias", "LayerNorm.beta");
        [plain, name.to_owned(), old].into_iter().find(|name| self.tensors.contains_key(name))
    }

    /// What reads a tensor's numbers.
    ///
    /// # Errors
    /// It is not there, or of another shape or kind.
    fn reader_of(&self, stored: &str, shape: &[usize]) -> Result<Reader, FolderError> {
        let (folder, tensor) = (self.path.clone(), stored.to_owned());
        let Some(Place { stored: Stored { dtype, shape: found, .. }, .. }) =
            self.tensors.get(stored)
        else {
            let model_type = self.config.model_type.clone();
            return Err(FolderError::Tensor { folder, tensor, model_type });
        };
        if found != shape {
            let (found, expected) = (found.clone(), shape.to_vec());
            return Err(FolderError::Shape { folder, tensor, found, expected });
        }
        let unread = || FolderError::Numbers { folder, tensor, dtype: format!("{dtype:?}") };
        reader(*dtype).ok_or_else(unread)
    }

    /// Checks that a tensor can be read: before memory is asked for by what the configuration says.
    ///
    /// # Errors
    /// It is not there, or of another shape or kind.
    pub(super) fn check(&self, stored: &str, shape: &[usize]) -> Result<(), FolderError> {
        self.reader_of(stored, shape).map(|_| ())
    }

    /// Appends a tensor's values, after a check of its shape.
    ///
    /// # Errors
    /// It is not there, or of another shape or kind, or cannot be read.
    pub fn values(
        &self,
        stored: &str,
        shape: &[usize],
        out: &mut Vec<f32>,
    ) -> Result<(), FolderError> {
        let read = self.reader_of(stored, shape)?;
        self.bytes_of(stored, |bytes| {
            read(bytes, out);
            Ok(())
        })
    }

    /// The kind and shape of all tensors, by their names.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, Place { stored, .. })| (&**name, stored.dtype, &*stored.shape))
    }

    /// Gives a tensor's bytes, some at a time.
    ///
    /// # Errors
    /// It is not there or cannot be read; or the receiver's.
    pub(super) fn bytes_of<E: From<FolderError>>(
        &self,
        name: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        /// Whose fault it is.
        enum Failure<E> {
            Read(io::Error),
            Take(E),
        }
        impl<E> From<io::Error> for Failure<E> {
            fn from(error: io::Error) -> Failure<E> {
                Failure::Read(error)
            }
        }
        let Some(Place { file, stored }) = self.tensors.get(name) else {
            let (folder, model_type) = (self.path.clone(), self.config.model_type.clone());
            return Err(FolderError::Tensor { folder, tensor: name.into(), model_type }.into());
        };
        let Weights { path, file } = &self.files[*file];
        let taken = read_range(&mut *file.borrow_mut(), stored.range.clone(), |bytes| {
            take(bytes).map_err(Failure::Take)
        });
        taken.map_err(|failure| match failure {
            Failure::Read(source) => FolderError::Read { path: path.clone(), source }.into(),
            Failure::Take(error) => error,
        })
    }
}

/// Appends the numbers in some bytes.
type Reader = fn(&[u8], &mut Vec<f32>);

/// What reads numbers of a kind, if it is supported.
fn reader(dtype: Dtype) -> Option<Reader> {
    match dtype {
        Dtype::F32 => Some(|bytes, out| {
            out.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }),
        Dtype::F64 => Some(|bytes, out| {
            out.extend(bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32));
        }),
        Dtype::BF16 => Some(|bytes, out| {
            let widen =
                |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            out.extend(bytes.as_chunks().0.iter().map(widen));
        }),
        Dtype::F16 => Some(|bytes, out| {
            out.extend(bytes.as_chunks().0.iter().map(|bytes| half(u16::from_le_bytes(*bytes))));
        }),
        _ => None,
    }
}

/// A 16-bit number, exactly.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (bits >> 10 & 31, f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (fraction + 1024.0) * 2f32.powi(i32::from(exponent) - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

/// A file of the folder, `None` if it is not there.
fn open(path: &Path, look: Look<'_>) -> Result<Option<Box<dyn OpenFile>>, FolderError> {
    match look(path) {
        Ok(Found::File(file)) => Ok(Some(file)),
        Ok(Found::Folder) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read { path: path.into(), source }),
    }
}

/// Its bytes.
fn file(path: &Path, look: Look<'_>) -> Result<Option<Vec<u8>>, FolderError> {
    let bytes = open(path, look)?.map(read_all).transpose();
    bytes.map_err(|source| FolderError::Read { path: path.into(), source })
}

fn absent(folder: &Path, name: &str, remedy: &'static str) -> FolderError {
    FolderError::Missing { folder: folder.into(), file: name.into(), remedy }
}

fn required(
    folder: &Path,
    name: &str,
    remedy: &'static str,
    look: Look<'_>,
) -> Result<Vec<u8>, FolderError> {
    file(&folder.join(name), look)?.ok_or_else(|| absent(folder, name, remedy))
}

fn safetensors(path: &Path, look: Look<'_>) -> Result<Folder, FolderError> {
    let config_bytes = required(path, "config.json", HOLDS, look)?;
    let fail = |file: &str, problem: String| FolderError::File { path: path.join(file), problem };
    let config = Config::parse(&config_bytes).map_err(|problem| fail("config.json", problem))?;
    let whole = "model.safetensors";
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    let mut add = |name: &str, file: Box<dyn OpenFile>| {
        let path = path.join(name);
        let weights = TensorsFile::open(file).map_err(|error| match error {
            TensorsError::Read(source) => FolderError::Read { path: path.clone(), source },
            damaged => fail(name, format!("{damaged}; fetch it again")),
        })?;
        for tensor in weights.names() {
            if let Some(stored) = weights.tensor(&tensor) {
                tensors.insert(tensor, Place { file: files.len(), stored });
            }
        }
        let file = RefCell::new(weights.into_inner());
        files.push(Weights { path, file });
        Ok(())
    };
    match open(&path.join(whole), look)? {
        Some(file) => add(whole, file)?,
        None => {
            let index_name = "model.safetensors.index.json";
            let Some(index) = file(&path.join(index_name), look)? else {
                let remedy = match file(&path.join("pytorch_model.bin"), look)? {
                    Some(_) => "save the model with safe_serialization=True; pickles are not read",
                    None => HOLDS,
                };
                return Err(absent(path, whole, remedy));
            };
            let index: Value = serde_json::from_slice(&index)
                .map_err(|error| fail(index_name, error.to_string()))?;
            let map = index.get("weight_map").and_then(Value::as_object);
            let map = map.ok_or_else(|| fail(index_name, "has no weight_map".into()))?;
            let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                if name.contains(['/', '\\']) {
                    return Err(fail(index_name, format!("{name:?} is not in the folder")));
                }
                let remedy = "its index names this shard; fetch it again";
                let shard = open(&path.join(name), look)?;
                add(name, shard.ok_or_else(|| absent(path, name, remedy))?)?;
            }
        }
    }
    let first = match config.is_decoder() {
        true => "embed_tokens.weight",
        false => "embeddings.word_embeddings.weight",
    };
    let prefix = PREFIXES.iter().find(|prefix| tensors.contains_key(&format!("{prefix}{first}")));
    let Some(prefix) = prefix else {
        let (folder, model_type) = (path.into(), config.model_type);
        return Err(FolderError::Tensor { folder, tensor: first.into(), model_type });
    };
    let tokenizer_bytes = required(path, "tokenizer.json", HOLDS, look)?;
    let tokenizer = Tokenizer::from_json(&tokenizer_bytes)
        .map_err(|problem| fail("tokenizer.json", problem))?;
    Ok(Folder {
        path: path.into(),
        hash: hash(&config_bytes, &tokenizer_bytes),
        config,
        tokenizer,
        prefix: (*prefix).into(),
        files,
        tensors,
    })
}

fn hash(config: &[u8], tokenizer: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 model folder");
    hasher.update(&(config.len() as u64).to_le_bytes()).update(config).update(tokenizer);
    *hasher.finalize().as_bytes()
}

/// The header of llama2.c: seven numbers.
const HEADER: usize = 28;

fn llama2c(path: &Path, mut bytes: Vec<u8>, look: Look<'_>) -> Result<Folder, FolderError> {
    let fail = |problem: String| FolderError::File { path: path.into(), problem };
    let Some(&header) = bytes.first_chunk::<HEADER>() else {
        return Err(fail(
            "is no llama2.c model: shorter than its header; name a model folder".into(),
        ));
    };
    let numbers: Vec<i64> =
        header.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect();
    let [dim, hidden, layers, heads, key_heads, vocabulary, positions] = numbers[..] else {
        return Err(fail("is no llama2.c model".into()));
    };
    let plausible = |value: i64| (1..1 << 20).contains(&value);
    let sizes = [dim, hidden, layers, heads, key_heads, vocabulary.abs(), positions];
    if !sizes.into_iter().all(plausible) || dim % heads != 0 || heads % key_heads != 0 {
        return Err(fail("is no llama2.c model: its header has impossible sizes".into()));
    }
    let [dim, inner, layers, heads, key_heads, rows, positions] = sizes.map(|size| size as usize);
    let head = dim / heads;
    let config = Config {
        model_type: "llama".into(),
        vocabulary: rows,
        hidden: dim,
        inner,
        layers,
        heads,
        key_heads,
        head,
        epsilon: 1e-5,
        positions,
        kind: Kind::Decoder {
            theta: 10_000.0,
            stretch: Stretch::None,
            tied: vocabulary > 0,
            bias: false,
            window: None,
        },
    };
    let config = config.checked().map_err(fail)?;
    // Every array holds all layers one behind the other.
    let keys = key_heads * head;
    let arrays: [(&str, Vec<usize>); 9] = [
        ("input_layernorm", vec![dim]),
        ("self_attn.q_proj", vec![dim, dim]),
        ("self_attn.k_proj", vec![keys, dim]),
        ("self_attn.v_proj", vec![keys, dim]),
        ("self_attn.o_proj", vec![dim, dim]),
        ("post_attention_layernorm", vec![dim]),
        ("mlp.gate_proj", vec![inner, dim]),
        ("mlp.down_proj", vec![dim, inner]),
        ("mlp.up_proj", vec![inner, dim]),
    ];
    let mut tensors = BTreeMap::new();
    let mut at = HEADER;
    let mut take = |name: String, shape: &[usize], turned: bool| -> Result<(), FolderError> {
        let end = at + 4 * shape.iter().product::<usize>();
        let Some(values) = bytes.get_mut(at..end) else {
            return Err(fail(format!("is cut off in {name}, at byte {}", bytes.len())));
        };
        if turned {
            halves_of_heads(values, shape, head);
        }
        let range = at as u64..end as u64;
        let stored = Stored { dtype: Dtype::F32, shape: shape.to_vec(), range };
        tensors.insert(name, Place { file: 0, stored });
        at = end;
        Ok(())
    };
    take("model.embed_tokens.weight".into(), &[rows, dim], false)?;
    for (part, shape) in &arrays {
        let turned = ["self_attn.q_proj", "self_attn.k_proj"].contains(part);
        for layer in 0..layers {
            take(format!("model.layers.{layer}.{part}.weight"), shape, turned)?;
        }
    }
    take("model.norm.weight".into(), &[dim], false)?;
    if vocabulary < 0 {
        // Two tables of angles stand in between, which follow from the sizes.
        take("rotary tables".into(), &[2, positions, head / 2], false)?;
        take("lm_head.weight".into(), &[rows, dim], false)?;
    }
    tensors.remove("rotary tables");
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut tokenizer_bytes = None;
    for name in ["tokenizer.bin".into(), format!("tok{rows}.bin")] {
        tokenizer_bytes = tokenizer_bytes.or(file(&folder.join(name), look)?);
    }
    let tokenizer_bytes = tokenizer_bytes.ok_or_else(|| {
        let name = format!("tokenizer.bin or tok{rows}.bin");
        absent(folder, &name, "put the tokenizer of llama2.c beside its model")
    })?;
    let tokenizer = Tokenizer::from_scored(&tokenizer_bytes, rows)
        .map_err(|problem| FolderError::File { path: folder.join("tokenizer.bin"), problem })?;
    let file: RefCell<Box<dyn OpenFile>> = RefCell::new(Box::new(io::Cursor::new(bytes)));
    Ok(Folder {
        path: path.into(),
        hash: hash(&header, &tokenizer_bytes),
        config,
        tokenizer,
        prefix: "model.".into(),
        files: vec![Weights { path: path.into(), file }],
        tensors,
    })
}

/// Puts rows of queries or keys in the order of Llama's published checkpoints: llama2.c turns pairs of
/// neighbors, these pairs half a head apart.
fn halves_of_heads(values: &mut [u8], shape: &[usize], head: usize) {
    let row = 4 * shape[1];
    for head in values.chunks_exact_mut(row * head) {
        let neighbors = head.to_vec();
        let halves = (0..2).flat_map(|parity| neighbors.chunks_exact(row).skip(parity).step_by(2));
        head.chunks_exact_mut(row).zip(halves).for_each(|(to, from)| to.copy_from_slice(from));
    }
}
