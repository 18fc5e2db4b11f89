//! `hub:OWNER/NAME[@REVISION]` in place of a folder of weights: the model is downloaded once, into the cache
//! that the Python libraries use, too.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// What stands in front of a name on the hub.
const SCHEME: &str = "hub:";

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    model: String,
    revision: String,
}

impl Name {
    /// `None` for a path.
    fn of(weights: &Path) -> Option<Result<Name, String>> {
        let name = weights.to_str()?.strip_prefix(SCHEME)?;
        let (model, revision) = name.split_once('@').unwrap_or((name, "main"));
        let part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let whole = model.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name));
        Some(match whole && part(revision) {
            true => Ok(Name { model: model.into(), revision: revision.into() }),
            false => Err(format!(
                "'{}' is not hub:OWNER/NAME or hub:OWNER/NAME@REVISION",
                weights.display()
            )),
        })
    }
}

/// Whether weights are named by their place on the hub rather than by a path.
pub fn is_named(weights: &Path) -> bool {
    Name::of(weights).is_some()
}

/// The folder or file of weights; downloads it where the name is one of the hub.
///
/// # Errors
/// The name is malformed, the build has no hub client, or the model cannot be had.
pub fn located(weights: &Path) -> Result<PathBuf> {
    match Name::of(weights) {
        None => Ok(weights.to_path_buf()),
        Some(Err(problem)) => bail!(problem),
        Some(Ok(name)) => fetch(&name),
    }
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &Name) -> Result<PathBuf> {
    bail!(
        "this program was built without the hub client: build it with `--features hub`, or download {} and \
         name its folder",
        name.model
    )
}

#[cfg(feature = "hub")]
fn fetch(name: &Name) -> Result<PathBuf> {
    use anyhow::Context;
    use hf_hub::api::sync::ApiBuilder;
    use hf_hub::{Repo, RepoType};

    let Name { model, revision } = name;
    let api = ApiBuilder::from_env().with_progress(false).build()?;
    let repo = Repo::with_revision(model.clone(), RepoType::Model, revision.clone());
    let repo = api.repo(repo);
    let get = |file: &str| {
        repo.get(file).with_context(|| {
            format!(
                "cannot download {file} of {model} at {revision} from the hub (is there a connection, and \
                 is the name right?); a folder that is here already can be named instead"
            )
        })
    };
    tracing::info!("{model} at {revision} comes from the hub, unless it is in its cache");
    let config = get("config.json")?;
    get("tokenizer.json")?;
    if let Err(whole) = get("model.safetensors") {
        // A large model is in shards, which the index names.
        let Ok(index) = get("model.safetensors.index.json") else { return Err(whole) };
        for shard in shards(&std::fs::read(&index)?)? {
            get(&shard)?;
        }
    }
    let folder = config.parent().context("a file of the cache is in a folder")?;
    Ok(folder.to_path_buf())
}

/// The files that an index of shards names, each once.
///
/// # Errors
/// It is no index, or a name leads out of its folder.
#[cfg_attr(not(feature = "hub"), cfg(test))]
fn shards(index: &[u8]) -> Result<std::collections::BTreeSet<String>> {
    let index: serde_json::Value = serde_json::from_slice(index)?;
    let Some(map) = index["weight_map"].as_object() else {
        bail!("model.safetensors.index.json has no weight_map");
    };
    let names = map.values().map(|name| match name.as_str() {
        Some(name) if name.ends_with(".safetensors") && !name.contains(['/', '\\']) => {
            Ok(name.to_owned())
        }
        _ => bail!("model.safetensors.index.json names {name}, which is no file beside it"),
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<Result<Name, String>> {
        Name::of(Path::new(text))
    }

    #[test]
    fn names_and_paths_are_told_apart() {
        let of = |model: &str, revision: &str| {
            Some(Ok(Name { model: model.into(), revision: revision.into() }))
        };
        assert_eq!(name("hub:owner/model-1.5"), of("owner/model-1.5", "main"));
        assert_eq!(name("hub:owner/model@v2"), of("owner/model", "v2"));
        assert_eq!(name("models/hub"), None);
        for wrong in ["hub:", "hub:model", "hub:a/b/c", "hub:../x", "hub:a/b@", "hub:a/b c"] {
            let said = name(wrong).unwrap().unwrap_err();
            assert!(said.contains("hub:OWNER/NAME"), "{wrong}: {said}");
        }
    }

    #[test]
    fn shards_are_files_beside_their_index() {
        let index = |file: &str| format!(r#"{{"weight_map":{{"a":"{file}","b":"{file}"}}}}"#);
        let names = shards(index("model-1.safetensors").as_bytes()).unwrap();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["model-1.safetensors"]);
        for wrong in ["../x.safetensors", "x.bin", ""] {
            assert!(shards(index(wrong).as_bytes()).is_err(), "{wrong}");
        }
        assert!(shards(b"{}").is_err() && shards(b"[").is_err());
    }
}
