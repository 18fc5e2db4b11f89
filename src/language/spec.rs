//! What to do with a pretrained model, as one line of text in the manifest.
//!
//! ```text
//! language:classify;head=both;train=encoder.layer.5.*|classifier.*;tokens=128
//! language:classify;template={} It was;labels=0:terrible,1:great;lora=8
//! language:causal;tokens=128;budget=1024
//! ```
//!
//! Settings at their defaults are left out. Where the weights are is each node's own business; that all
//! nodes have the same is checked by the manifest's base hash.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What a language model is trained to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Tell the classes of texts.
    Classify,
    /// Predict the next token.
    Causal,
}

/// How an encoder's sentence vector becomes a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// A linear layer, zero at the start.
    Linear,
    /// The cosine to the sentence vectors of the label words, which has no parameters.
    Prototype,
    /// The sum of both: starts as the prototypes, and can leave them.
    #[default]
    Both,
}

/// What to do with a pretrained model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LanguageSpec {
    /// The task.
    pub task: Task,
    /// How an encoder's vectors become classes.
    pub head: Head,
    /// A regular expression that the whole name of a trained tensor matches; `None` means all, or only
    /// the head beside LoRA.
    pub train: Option<String>,
    /// Rank of low-rank adapters of the attention's queries and values; 0 for none.
    pub lora: u16,
    /// What stands around a text, with `{}` for it.
    pub template: Option<String>,
    /// The word of each label; labels that are words themselves may be left out.
    pub labels: Vec<(String, String)>,
    /// Tokens of a text that are read; what is longer is cut and counted.
    pub tokens: u32,
    /// Tokens of a minibatch, 0 for no limit: rows beyond it are left out.
    pub budget: u32,
}

/// Tokens of a text that are read, unless the user says otherwise.
pub const TOKENS: u32 = 128;

/// The largest rank of an adapter.
pub const LORA_MAX: u16 = 1024;

/// Why a text is no language model.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LanguageSpecError {
    /// Another task.
    #[error("unknown task {0:?} of a language model; known are classify and causal")]
    Task(String),
    /// Another head.
    #[error("unknown head {0:?}; known are linear, prototype and both")]
    Head(String),
    /// A setting that does not exist or has a value it cannot have.
    #[error("{setting:?} of a language model {problem}")]
    Setting {
        /// The setting, as written.
        setting: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl LanguageSpec {
    /// The defaults of a task.
    pub fn new(task: Task) -> LanguageSpec {
        LanguageSpec {
            task,
            head: Head::default(),
            train: None,
            lora: 0,
            template: None,
            labels: Vec::new(),
            tokens: TOKENS,
            budget: 0,
        }
    }

    /// Checks what the types do not, so that the text form can be read back.
    ///
    /// # Errors
    /// The first setting that cannot be, with the reason.
    pub fn check(&self) -> Result<(), LanguageSpecError> {
        let fail = |setting: &str, problem| {
            Err(LanguageSpecError::Setting { setting: setting.to_owned(), problem })
        };
        if let Some(template) = &self.template
            && template.matches("{}").count() != 1
        {
            return fail(template, "must have {} for the text, once");
        }
        let texts = self.train.iter().chain(&self.template);
        let words = self.labels.iter().flat_map(|(label, word)| [label, word]);
        if let Some(text) =
            texts.clone().chain(words.clone()).find(|text| text.contains([';', '\n']))
        {
            return fail(text, "holds a semicolon or a line break, which separate settings");
        }
        if let Some(word) = words.clone().find(|word| word.contains([',', ':']) || word.is_empty())
        {
            return fail(
                word,
                "is empty or holds a comma or a colon, which separate labels and words",
            );
        }
        let mut labels: Vec<&String> = self.labels.iter().map(|(label, _)| label).collect();
        labels.sort();
        if let Some(pair) = labels.windows(2).find(|pair| pair[0] == pair[1]) {
            return fail(pair[0], "is named twice among the labels");
        }
        if self.lora > LORA_MAX {
            return fail("lora", "must be at most 1024");
        }
        if !(2..=1 << 20).contains(&self.tokens) {
            return fail("tokens", "must be between 2 and 1048576");
        }
        Ok(())
    }
}

impl FromStr for Task {
    type Err = LanguageSpecError;
    fn from_str(text: &str) -> Result<Task, LanguageSpecError> {
        match text {
            "classify" => Ok(Task::Classify),
            "causal" => Ok(Task::Causal),
            _ => Err(LanguageSpecError::Task(text.into())),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Task::Classify => "classify",
            Task::Causal => "causal",
        })
    }
}

impl FromStr for Head {
    type Err = LanguageSpecError;
    fn from_str(text: &str) -> Result<Head, LanguageSpecError> {
        match text {
            "linear" => Ok(Head::Linear),
            "prototype" => Ok(Head::Prototype),
            "both" => Ok(Head::Both),
            _ => Err(LanguageSpecError::Head(text.into())),
        }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Head::Linear => "linear",
            Head::Prototype => "prototype",
            Head::Both => "both",
        })
    }
}

/// Reads `LABEL:WORD,LABEL:WORD`.
///
/// # Errors
/// A part without a colon.
pub fn parse_labels(text: &str) -> Result<Vec<(String, String)>, LanguageSpecError> {
    let pair = |part: &str| match part.split_once(':') {
        Some((label, word)) => Ok((label.to_owned(), word.to_owned())),
        None => Err(LanguageSpecError::Setting {
            setting: part.to_owned(),
            problem: "must be LABEL:WORD, separated by commas",
        }),
    };
    text.split(',').map(pair).collect()
}

impl FromStr for LanguageSpec {
    type Err = LanguageSpecError;

    fn from_str(text: &str) -> Result<LanguageSpec, LanguageSpecError> {
        let mut settings = text.split(';');
        let mut spec = LanguageSpec::new(settings.next().unwrap_or_default().parse()?);
        for setting in settings {
            let fail =
                |problem| LanguageSpecError::Setting { setting: setting.to_owned(), problem };
            let (key, value) = setting.split_once('=').ok_or_else(|| fail("has no value"))?;
            match key {
                "head" => spec.head = value.parse()?,
                "train" => spec.train = Some(value.to_owned()),
                "template" => spec.template = Some(value.to_owned()),
                "labels" => spec.labels = parse_labels(value)?,
                "lora" => spec.lora = value.parse().map_err(|_| fail("is no number"))?,
                "tokens" => spec.tokens = value.parse().map_err(|_| fail("is no number"))?,
                "budget" => spec.budget = value.parse().map_err(|_| fail("is no number"))?,
                _ => {
                    return Err(fail(
                        "is unknown; known are head, train, template, labels, lora, tokens and budget",
                    ));
                }
            }
        }
        spec.check()?;
        Ok(spec)
    }
}

impl fmt::Display for LanguageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.task.fmt(f)?;
        if self.head != Head::default() {
            write!(f, ";head={}", self.head)?;
        }
        if let Some(train) = &self.train {
            write!(f, ";train={train}")?;
        }
        if let Some(template) = &self.template {
            write!(f, ";template={template}")?;
        }
        for (index, (label, word)) in self.labels.iter().enumerate() {
            let before = if index == 0 { ";labels=" } else { "," };
            write!(f, "{before}{label}:{word}")?;
        }
        for (key, value, default) in [
            ("lora", u32::from(self.lora), 0),
            ("tokens", self.tokens, TOKENS),
            ("budget", self.budget, 0),
        ] {
            if value != default {
                write!(f, ";{key}={value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_round_trip() {
        for text in [
            "classify",
            "causal;tokens=64;budget=512",
            "classify;head=linear;train=encoder.*|classifier.*;lora=8",
            "classify;template={} It was;labels=0:terrible,1:very good",
        ] {
            assert_eq!(text.parse::<LanguageSpec>().unwrap().to_string(), text);
        }
        let defaults: LanguageSpec = "classify;head=both;tokens=128;budget=0".parse().unwrap();
        assert_eq!(defaults.to_string(), "classify");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        for (text, says) in [
            ("", "classify and causal"),
            ("classify;haed=linear", "head, train"),
            ("classify;head=deep", "prototype"),
            ("classify;tokens=x", "no number"),
            ("classify;tokens=1", "tokens"),
            ("classify;template=It was", "{}"),
            ("classify;labels=0", "LABEL:WORD"),
            ("classify;labels=0:a,0:b", "twice"),
            ("classify;train", "no value"),
        ] {
            let error = text.parse::<LanguageSpec>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
