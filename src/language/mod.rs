//! Pretrained transformers as objectives: fine-tuning with one byte a gradient.
//!
//! [`Folder`] reads a model, [`LanguageModel`] joins it with a data set of texts. Trained are all tensors of
//! the model, those whose names match an expression, or low-rank adapters; together with the head they
//! are the parameters of the [`State`]. Everything else stays as it was read and is shared by all nodes of
//! a process.
//!
//! **One set of weights.** A probe writes one end over the trained tensors, runs a forward pass, writes
//! the other end over them and runs another, on the same batch. So a node holds the state (4 bytes a
//! parameter), one view (4 bytes) and the activations of one forward pass. Of tables of words and
//! positions a probe writes the rows of its batch only: whoever reads weights has them written first.
//!
//! **A pass a thread.** The texts of a forward pass are shared out to the threads of the caller's pool, and
//! each runs all layers over its own. Sequences are packed, not padded; matrix products are candle's, the
//! rest is in [`kernel`].
//!
//! **Devices.** With the feature `cuda` all this can be on an NVIDIA card ([`device`]): the ends of probes are
//! made there from keys, to the same bits, and the passes between products are candle's own.
//!
//! **What does not change is computed once.** If the lowest layers are not trained, their output for a
//! training row is the same in every probe and is kept.
//!
//! **Heads.** An encoder's sentence vector is the mean over its tokens, of length √hidden. Its logits are
//! `W v + b`, and 20 times the cosines to the vectors of the labels' words under the same weights. A decoder
//! answers with the word of a label behind the template: the logits are those of the words' first
//! tokens.

pub mod device;
pub mod spec;

#[cfg(feature = "language")]
mod config;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(feature = "language")]
mod data;
#[cfg(feature = "language")]
mod decoder;
#[cfg(feature = "language")]
mod encoder;
#[cfg(feature = "language")]
mod export;
#[cfg(feature = "language")]
mod folder;
#[cfg(feature = "language")]
mod kernel;
#[cfg(feature = "language")]
mod load;
#[cfg(feature = "language")]
mod model;
#[cfg(feature = "language")]
mod objective;
#[cfg(feature = "language")]
mod op;
#[cfg(feature = "language")]
mod pass;
#[cfg(all(test, feature = "language"))]
mod tests;
#[cfg(feature = "language")]
mod tokenizer;

#[cfg(feature = "language")]
pub use self::{
    config::Config,
    config::SUPPORTED,
    export::{export, export_config},
    folder::{Folder, FolderError},
    load::LanguageError,
    objective::LanguageModel,
    objective::Slot,
    tokenizer::Tokenizer,
};
