//! Pretrained transformers as objectives: fine-tuning with one byte a gradient.
//!
//! [`Folder`] reads a model, [`LanguageModel`] joins it with a data set of texts. Trained are all tensors of
//! the model, those whose names match an expression, or low-rank adapters; together with the head they
//! are the parameters of the [`State`]. Everything else stays as it was read and is shared by all nodes of
//! a process.
//!
//! **The weights of half a layer.** A probe takes both its ends through the layers side by side, on the same batch:
//! it writes the weights of attention or feed-forward at both ends over those of the half before, and runs it
//! ([`view`]). So a node holds the state (4 bytes a parameter), half a layer twice and the activations of some passes,
//! and not a second model. Of tables of words and positions it writes the rows of its batch; a decoder that predicts
//! every token has its output matrix whole, at both ends.
//!
//! **A pass a thread.** The ends, and the texts of each, are shared out to the threads of the caller's pool.
//! Sequences are packed, not padded; matrix products are candle's, the rest is in [`kernel`].
//!
//! **Devices.** With the feature `cuda` all this can be on an NVIDIA card ([`device`]), which holds all weights of
//! one end: they are made there from keys, to the same bits, and what lies between the products is in kernels of ours.
//!
//! **What does not change is computed once.** If the lowest layers are not trained, their output for a
//! training row is the same in every probe and is kept.
//!
//! **Heads.** An encoder's sentence vector is the mean over its tokens, of length √hidden. Its logits are
//! `W v + b`, and 20 times the cosines to the vectors of the labels' words under the same weights. A decoder
//! answers with the word of a label behind the template: the logits are those of the words' first
//! tokens.

pub mod device;
#[cfg(feature = "language")]
pub mod memory;
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
#[cfg(all(test, feature = "language"))]
mod tests;
#[cfg(feature = "language")]
mod tokenizer;
#[cfg(feature = "language")]
mod view;

#[cfg(feature = "language")]
pub use self::{
    config::Config,
    config::SUPPORTED,
    export::{ExportError, export, export_config},
    folder::{Folder, FolderError},
    load::LanguageError,
    objective::LanguageModel,
    tokenizer::Tokenizer,
    view::Slot,
};
