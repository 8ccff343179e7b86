//! The configuration half of a request: every file read and checked, every option with who asked for it.

use std::convert::Infallible;
use std::str::FromStr;

use anyhow::{Context as _, anyhow, bail};
use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

use super::KernelRequest;
use super::build::Base;
use super::config::{self, Origin, Setting};
use crate::error::{EXIT_USAGE, ExitWith as _, Hint as _};
use crate::name;
use crate::nearest::{nearest, nearest_path};
use crate::workspace::{Workspace, hex};

/// Part of every request's key: raise it when a build of the same request comes out differently.
const BUILD_VERSION: u32 = 1;

/// `--config`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ConfigChoice {
    /// The lean config of fragments in `kernel/microvm`.
    #[default]
    Microvm,
    /// The recipe's own config.
    Recipe,
    /// A whole config or a defconfig.
    Path(Utf8PathBuf),
}

impl FromStr for ConfigChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<ConfigChoice, Infallible> {
        Ok(match text {
            "microvm" => ConfigChoice::Microvm,
            "recipe" => ConfigChoice::Recipe,
            path => ConfigChoice::Path(path.into()),
        })
    }
}

/// What is asked of Kconfig.
#[derive(Debug)]
pub struct Plan {
    /// `microvm`, `recipe`, a file's name; with `+N` where N options were put on top.
    pub name: String,
    /// What the settings are put on.
    pub base: Base,
    /// One for each option.
    pub settings: Vec<Setting>,
}

impl Plan {
    /// Reads every file that the request names. Errors name the file and the line.
    pub fn load(workspace: &Workspace, request: &KernelRequest) -> anyhow::Result<Plan> {
        let folder = workspace.kernel_folder();
        let (mut name, base, mut settings) = match &request.config {
            ConfigChoice::Microvm => ("microvm".to_owned(), Base::Tiny, shipped(&folder.join("microvm"))?),
            ConfigChoice::Recipe => {
                let settings = read(&folder.join("recipe.config"), "kernel/recipe.config", Origin::Whole)?;
                ("recipe".to_owned(), Base::Defaults, settings)
            }
            ConfigChoice::Path(path) => {
                exists(path, "config", &["microvm", "recipe"])?;
                let settings = read(path, path.as_str(), Origin::Whole)?;
                (name::like(path.file_name().unwrap_or_default(), "config"), Base::Defaults, settings)
            }
        };
        let mut on_top = Vec::new();
        for path in &request.fragments {
            exists(path, "fragment", &[])?;
            on_top.extend(read(path, path.as_str(), Origin::User)?);
        }
        for argument in &request.sets {
            on_top.push(config::parse_set(argument).exit_with(EXIT_USAGE)?);
        }
        if !on_top.is_empty() {
            let on_top = config::merge(on_top);
            name = format!("{name}+{}", on_top.len());
            settings.extend(on_top);
        }
        Ok(Plan { name, base, settings: config::merge(settings) })
    }

    /// Identifies a source with these settings, compiler aside.
    pub fn request_key(&self, source_identity: &str) -> String {
        let base = self.base;
        let text =
            format!("{BUILD_VERSION}\n{source_identity}\n{base:?}\n{}", config::render(&self.settings));
        hex(&Sha256::digest(text))[..16].to_owned()
    }
}

/// The fragments of a folder in the order of their names.
fn shipped(folder: &Utf8Path) -> anyhow::Result<Vec<Setting>> {
    let entries = folder.read_dir_utf8().with_context(|| format!("failed to read the folder `{folder}`"))?;
    let mut paths: Vec<Utf8PathBuf> = entries
        .flatten()
        .map(|entry| entry.into_path())
        .filter(|path| path.extension() == Some("config"))
        .collect();
    paths.sort();
    let mut settings = Vec::new();
    for path in paths {
        let name = format!("kernel/microvm/{}", path.file_name().unwrap_or_default());
        settings.extend(read(&path, &name, Origin::Shipped)?);
    }
    Ok(settings)
}

fn read(path: &Utf8Path, name: &str, origin: Origin) -> anyhow::Result<Vec<Setting>> {
    let bytes = std::fs::read(path).with_context(|| format!("failed to read `{path}`"))?;
    let settings = config::parse(&String::from_utf8_lossy(&bytes), name, origin)?;
    if settings.is_empty() {
        bail!("`{path}` is not a kernel config: it names no option");
    }
    Ok(settings)
}

fn exists(path: &Utf8Path, what: &str, names: &[&str]) -> anyhow::Result<()> {
    if path.is_file() {
        return Ok(());
    }
    let near = nearest(path.as_str(), names.iter().copied()).map(str::to_owned);
    let near = near.or_else(|| nearest_path(path).map(Utf8PathBuf::into_string));
    let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let error = Err(anyhow!("no such kernel {what}: `{path}`{near}"));
    if names.is_empty() {
        error
    } else {
        error.hint("`--config` takes microvm, recipe or the path of a config file")
    }
}
