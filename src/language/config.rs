//! `config.json`: which architecture, and its sizes.

use serde_json::Value;

use super::kernel::Activation;

/// Model types that can be loaded.
pub const SUPPORTED: &str = "bert, roberta, xlm-roberta, distilbert (encoders), llama (also SmolLM), \
                             mistral, qwen2 (decoders)";

/// The widest residual stream, four times the widest published: a head of many classes is made before any
/// tensor of the file bears the width out.
const HIDDEN_MAX: usize = 1 << 16;

/// What a model looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type`.
    pub model_type: String,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// The width of the residual stream.
    pub hidden: usize,
    /// The width of the feed-forward layers.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub key_heads: usize,
    /// Values a head.
    pub head: usize,
    /// What keeps normalization finite.
    pub epsilon: f32,
    /// The longest input.
    pub positions: usize,
    /// What only one of the two kinds has.
    pub kind: Kind,
}

/// Encoder or decoder.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// The BERT family.
    Encoder {
        /// How the feed-forward layers bend.
        activation: Activation,
        /// The position of the first token: RoBERTa counts from beyond its padding token.
        first_position: usize,
        /// Rows of the table of token types; 0 for none.
        types: usize,
        /// Whether tensors are named as DistilBERT names them.
        distil: bool,
    },
    /// The Llama family.
    Decoder {
        /// The base of the rotary angles.
        theta: f64,
        /// How the angles are stretched for longer inputs.
        stretch: Stretch,
        /// Whether the output matrix is the embedding.
        tied: bool,
        /// Whether queries, keys and values have a bias.
        bias: bool,
        /// How many tokens, itself included, a token sees.
        window: Option<usize>,
    },
}

/// How rotary angles are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum Stretch {
    /// Not at all.
    None,
    /// Positions divided by a factor.
    Linear(f64),
    /// Llama 3: low frequencies are divided by a factor, with a smooth transition.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `context / low` are divided.
        low: f64,
        /// Wavelengths below `context / high` stay.
        high: f64,
        /// The context that the model was first trained on.
        context: f64,
    },
}

impl Config {
    /// Reads the text of `config.json`.
    ///
    /// # Errors
    /// In words: what is missing, or not supported and what is.
    pub fn parse(bytes: &[u8]) -> Result<Config, String> {
        let json: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let model_type = match json.get("model_type").and_then(Value::as_str) {
            Some(name) => name.to_owned(),
            None => return Err(format!("has no model_type; supported are {SUPPORTED}")),
        };
        match model_type.as_str() {
            "bert" | "roberta" | "xlm-roberta" | "distilbert" => encoder(&json, model_type),
            "llama" | "mistral" | "qwen2" => decoder(&json, model_type),
            _ => Err(format!(
                "architecture {model_type:?} is not supported; supported are {SUPPORTED}"
            )),
        }
    }

    /// Whether the model predicts tokens.
    pub fn is_decoder(&self) -> bool {
        matches!(self.kind, Kind::Decoder { .. })
    }

    /// For models that see no later token: how many earlier ones a token sees, itself included.
    pub(super) fn causal(&self) -> Option<usize> {
        match self.kind {
            Kind::Decoder { window, .. } => Some(window.unwrap_or(usize::MAX)),
            Kind::Encoder { .. } => None,
        }
    }

    pub(super) fn checked(self) -> Result<Config, String> {
        let Config { hidden, heads, key_heads, head, .. } = self;
        if hidden > HIDDEN_MAX {
            return Err(format!("the hidden size is {hidden}, at most {HIDDEN_MAX} is supported"));
        }
        if let Kind::Encoder { first_position, types, .. } = self.kind
            && (first_position > 1 << 24 || types > 1 << 24)
        {
            return Err("pad_token_id and type_vocab_size must be at most 16777216".into());
        }
        for (name, size) in [
            ("vocabulary", self.vocabulary),
            ("hidden size", hidden),
            ("inner size", self.inner),
            ("number of layers", self.layers),
            ("number of heads", heads),
            ("number of key heads", key_heads),
            ("head size", head),
            ("number of positions", self.positions),
        ] {
            // Beyond any published model, and far from overflow in products.
            if size == 0 || size > 1 << 24 {
                return Err(format!("the {name} is {size}, must be between 1 and {}", 1 << 24));
            }
        }
        if heads % key_heads != 0 {
            return Err(format!("{heads} heads cannot share {key_heads} heads of keys"));
        }
        if self.layers > 1024 {
            return Err(format!("{} layers; at most 1024 are supported", self.layers));
        }
        match self.kind {
            Kind::Encoder { .. } if heads * head != hidden => {
                Err(format!("a hidden size of {hidden} cannot be shared by {heads} heads"))
            }
            Kind::Decoder { .. } if head % 2 != 0 => {
                Err(format!("a head size of {head} is odd, rotary positions need pairs"))
            }
            _ => Ok(self),
        }
    }
}

fn size(json: &Value, key: &str) -> Result<usize, String> {
    match json.get(key).and_then(Value::as_u64) {
        Some(value) => Ok(value as usize),
        None => Err(format!("has no whole number {key:?}")),
    }
}

fn number(json: &Value, key: &str, default: f64) -> f64 {
    json.get(key).and_then(Value::as_f64).unwrap_or(default)
}

fn word<'a>(json: &'a Value, key: &str) -> &'a str {
    json.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn encoder(json: &Value, model_type: String) -> Result<Config, String> {
    let distil = model_type == "distilbert";
    let keys = match distil {
        true => ["dim", "hidden_dim", "n_layers", "n_heads", "activation"],
        false => {
            let names = ["hidden_size", "intermediate_size", "num_hidden_layers"];
            [names[0], names[1], names[2], "num_attention_heads", "hidden_act"]
        }
    };
    let [hidden, inner, layers, heads, activation] = keys;
    let activation = match word(json, activation) {
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => {
            return Err(format!("{activation} {other:?} is not supported (gelu, gelu_new, relu)"));
        }
    };
    let table = word(json, "position_embedding_type");
    if !["", "absolute"].contains(&table) {
        return Err(format!("position_embedding_type {table:?} is not supported (absolute)"));
    }
    let roberta = model_type.ends_with("roberta");
    let first_position =
        if roberta { (number(json, "pad_token_id", 1.0) as usize).saturating_add(1) } else { 0 };
    let (hidden, heads) = (size(json, hidden)?, size(json, heads)?);
    let config = Config {
        vocabulary: size(json, "vocab_size")?,
        hidden,
        inner: size(json, inner)?,
        layers: size(json, layers)?,
        heads,
        key_heads: heads,
        head: hidden / heads.max(1),
        epsilon: number(json, "layer_norm_eps", 1e-12) as f32,
        positions: size(json, "max_position_embeddings")?.saturating_sub(first_position),
        kind: Kind::Encoder {
            activation,
            first_position,
            types: if distil { 0 } else { number(json, "type_vocab_size", 2.0) as usize },
            distil,
        },
        model_type,
    };
    config.checked()
}

fn decoder(json: &Value, model_type: String) -> Result<Config, String> {
    let activation = word(json, "hidden_act");
    if !["silu", "swish", ""].contains(&activation) {
        return Err(format!("hidden_act {activation:?} is not supported (silu)"));
    }
    let (hidden, heads) = (size(json, "hidden_size")?, size(json, "num_attention_heads")?);
    // Newer files keep the base of the angles together with their stretch.
    let rope = ["rope_scaling", "rope_parameters"].iter().find_map(|key| json.get(key));
    let rope = rope.filter(|rope| rope.is_object()).cloned().unwrap_or_default();
    let qwen = model_type == "qwen2";
    let flag = |key: &str| json.get(key).and_then(Value::as_bool);
    if flag("mlp_bias") == Some(true) {
        return Err("a bias in the feed-forward layers (mlp_bias) is not supported".into());
    }
    let window = size(json, "sliding_window").ok();
    let window = window.filter(|_| !qwen || flag("use_sliding_window") == Some(true));
    if window == Some(0) {
        return Err(
            "sliding_window is 0: no token sees another; leave it out, or say how many it sees"
                .into(),
        );
    }
    let config = Config {
        vocabulary: size(json, "vocab_size")?,
        hidden,
        inner: size(json, "intermediate_size")?,
        layers: size(json, "num_hidden_layers")?,
        heads,
        key_heads: size(json, "num_key_value_heads").unwrap_or(heads),
        head: size(json, "head_dim").unwrap_or(hidden / heads.max(1)),
        epsilon: number(json, "rms_norm_eps", 1e-6) as f32,
        positions: size(json, "max_position_embeddings")?,
        kind: Kind::Decoder {
            theta: number(json, "rope_theta", number(&rope, "rope_theta", 10_000.0)),
            stretch: stretch(&rope)?,
            tied: flag("tie_word_embeddings").unwrap_or(false),
            bias: qwen || flag("attention_bias") == Some(true),
            window,
        },
        model_type,
    };
    config.checked()
}

fn stretch(rope: &Value) -> Result<Stretch, String> {
    let kind = match word(rope, "rope_type") {
        "" => word(rope, "type"),
        kind => kind,
    };
    match kind {
        "" | "default" => Ok(Stretch::None),
        "linear" => Ok(Stretch::Linear(number(rope, "factor", 1.0))),
        "llama3" => Ok(Stretch::Llama3 {
            factor: number(rope, "factor", 8.0),
            low: number(rope, "low_freq_factor", 1.0),
            high: number(rope, "high_freq_factor", 4.0),
            context: number(rope, "original_max_position_embeddings", 8192.0),
        }),
        other => Err(format!("rope_scaling {other:?} is not supported (linear, llama3)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsupported_configurations_are_refused_with_what_is_supported() {
        for (text, says) in [
            ("{", "EOF"),
            ("{}", "model_type"),
            (r#"{"model_type": "t5"}"#, "\"t5\" is not supported; supported are bert"),
            (r#"{"model_type": "bert", "hidden_act": "gelu"}"#, "num_attention_heads"),
            (r#"{"model_type": "bert", "hidden_act": "selu"}"#, "selu"),
            (r#"{"model_type": "llama", "hidden_act": "gelu"}"#, "hidden_act"),
            (
                r#"{"model_type": "mistral", "hidden_size": 8, "num_attention_heads": 2, "sliding_window": 0}"#,
                "sliding_window is 0",
            ),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says) || says == "num_attention_heads", "{text}: {error}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let text = |heads: usize, keys: usize| {
            format!(
                r#"{{"model_type": "llama", "vocab_size": 9, "hidden_size": 12, "intermediate_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": {heads}, "num_key_value_heads": {keys},
                "max_position_embeddings": 16}}"#
            )
        };
        assert!(Config::parse(text(6, 2).as_bytes()).is_ok());
        assert!(Config::parse(text(6, 4).as_bytes()).unwrap_err().contains("share"));
        assert!(Config::parse(text(4, 4).as_bytes()).unwrap_err().contains("odd"));
        assert!(Config::parse(text(0, 0).as_bytes()).unwrap_err().contains("heads is 0"));
        let wide = text(6, 2).replace("12", "1200000");
        assert!(Config::parse(wide.as_bytes()).unwrap_err().contains("hidden size"));
        let far = r#"{"model_type": "roberta", "vocab_size": 9, "hidden_size": 12, "hidden_act": "gelu",
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16, "pad_token_id": 1e300}"#;
        assert!(Config::parse(far.as_bytes()).unwrap_err().contains("pad_token_id"));
    }
}
