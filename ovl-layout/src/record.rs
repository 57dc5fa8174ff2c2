//! Our own small files: lines of `key value` between a line with format name and version,
//! and the line `end`.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use crate::{
    DOCKER_MAX_DEPTH, IdMap, IdMaps, LayerId, LinkId, LowerChain, MAX_DEPTH, XattrNamespace,
};

const LAYER_FORMAT: &str = "ovl-layer";
const HOME_FORMAT: &str = "ovl-home";
const VERSION: u32 = 1;

/// Why a layer is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealReason {
    /// It was imported as a finished layer.
    Import,
}

/// What we note about a layer beside Docker's files, in `<id>/.ovl-layer`.
///
/// Docker's files are the truth. When the link differs from the `link` file, another program wrote
/// the layer anew and the record is void; when it agrees, a missing or shorter `lower` is damage.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerRecord {
    /// The layer's link id when the record was written.
    pub link: LinkId,
    /// The parent it was created on.
    pub parent: Option<LayerId>,
    /// Entries in the `lower` file; 0 for a base layer and for one with an opaque root.
    pub depth: usize,
    /// Why the layer is sealed, where that is not because it has children.
    pub sealed: Option<SealReason>,
    /// The layer hides everything below it: it has a parent but no `lower` file.
    pub root_opaque: bool,
    /// The boot in which the layer was mounted volatile. After that boot nobody can tell what of
    /// its contents reached the disk.
    pub volatile: Option<String>,
    /// Nobody has waited until the layer, as it is since it is sealed or as it was made, and what it
    /// stands on were on disk. Whoever makes a durable layer on it has to.
    pub unsynced: bool,
}

impl LayerRecord {
    /// The record of an open layer.
    #[must_use]
    pub fn new(link: LinkId, parent: Option<LayerId>, chain: &LowerChain) -> Self {
        Self {
            link,
            parent,
            depth: chain.depth(),
            sealed: None,
            root_opaque: false,
            volatile: None,
            unsynced: false,
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`RecordError`] for another format or version, and for missing, unknown or malformed lines.
    pub fn parse_file(contents: &[u8]) -> Result<Self, RecordError> {
        let mut lines = Lines::parse(contents, LAYER_FORMAT)?;
        let record = Self {
            link: lines.required("link")?,
            parent: lines.optional("parent")?,
            depth: lines.required("depth")?,
            sealed: lines.optional::<SealReason>("sealed")?,
            root_opaque: lines.optional::<bool>("root-opaque")?.unwrap_or(false),
            volatile: lines.optional("volatile")?,
            unsynced: lines.optional::<bool>("unsynced")?.unwrap_or(false),
        };
        lines.finish()?;
        Ok(record)
    }
}

impl FromStr for SealReason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "import" => Ok(Self::Import),
            _ => Err(()),
        }
    }
}

/// Writes the file.
impl fmt::Display for LayerRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{LAYER_FORMAT} {VERSION}\nlink {}\ndepth {}",
            self.link, self.depth
        )?;
        if let Some(parent) = &self.parent {
            writeln!(f, "parent {parent}")?;
        }
        match self.sealed {
            Some(SealReason::Import) => writeln!(f, "sealed import")?,
            None => {}
        }
        if self.root_opaque {
            writeln!(f, "root-opaque true")?;
        }
        if let Some(boot) = &self.volatile {
            writeln!(f, "volatile {boot}")?;
        }
        if self.unsynced {
            writeln!(f, "unsynced true")?;
        }
        writeln!(f, "end")
    }
}

/// What holds for a whole home, in `<home>/.ovl/settings`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HomeSettings {
    /// Where overlay's private attributes are kept.
    pub xattrs: XattrNamespace,
    /// Layers that may stand below a layer: 1 to [`MAX_DEPTH`].
    pub max_depth: usize,
    /// What is on disk when an operation returns, where its caller does not say.
    pub durability: Durability,
    /// Whose owners stand on disk for the owners inside containers.
    pub id_maps: IdMaps,
    /// Bytes that a writable layer may take, where its maker does not say.
    pub size: Option<u64>,
    /// The project id after which the home's own begin.
    pub project_base: Option<u32>,
}

impl HomeSettings {
    /// The settings of a new home: Docker's depth.
    #[must_use]
    pub fn new(xattrs: XattrNamespace) -> Self {
        Self {
            xattrs,
            max_depth: DOCKER_MAX_DEPTH,
            durability: Durability::default(),
            id_maps: IdMaps::default(),
            size: None,
            project_base: None,
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    ///
    /// [`RecordError`] for another format or version, and for missing, unknown or malformed lines.
    pub fn parse_file(contents: &[u8]) -> Result<Self, RecordError> {
        let mut lines = Lines::parse(contents, HOME_FORMAT)?;
        let settings = Self {
            xattrs: lines.required("xattrs")?,
            max_depth: lines.required("max-depth")?,
            durability: lines.optional("durability")?.unwrap_or_default(),
            id_maps: IdMaps {
                uids: lines.optional::<IdMap>("uid-map")?.unwrap_or_default(),
                gids: lines.optional::<IdMap>("gid-map")?.unwrap_or_default(),
            },
            size: lines.optional("size")?,
            project_base: lines.optional("project-base")?,
        };
        lines.finish()?;
        if (1..=MAX_DEPTH).contains(&settings.max_depth) {
            Ok(settings)
        } else {
            let value = settings.max_depth.to_string();
            Err(RecordError::Value {
                key: "max-depth",
                value,
            })
        }
    }
}

/// Writes the file.
impl fmt::Display for HomeSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HOME_FORMAT} {VERSION}")?;
        writeln!(f, "xattrs {}\nmax-depth {}", self.xattrs, self.max_depth)?;
        writeln!(f, "durability {}", self.durability)?;
        for (key, map) in [
            ("uid-map", &self.id_maps.uids),
            ("gid-map", &self.id_maps.gids),
        ] {
            if !map.is_identity() {
                writeln!(f, "{key} {map}")?;
            }
        }
        if let Some(size) = self.size {
            writeln!(f, "size {size}")?;
        }
        if let Some(base) = self.project_base {
            writeln!(f, "project-base {base}")?;
        }
        writeln!(f, "end")
    }
}

/// What is on disk when an operation returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Nothing is waited for: a power cut may lose or damage what was made last.
    None,
    /// A layer's contents and names are on disk before the layer can be seen.
    #[default]
    Layer,
    /// As [`Layer`](Self::Layer), and nothing of a removed layer comes back, its link neither.
    Full,
}

impl FromStr for Durability {
    type Err = DurabilityError;

    fn from_str(text: &str) -> Result<Self, DurabilityError> {
        match text {
            "none" => Ok(Self::None),
            "layer" => Ok(Self::Layer),
            "full" => Ok(Self::Full),
            _ => Err(DurabilityError {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Layer => "layer",
            Self::Full => "full",
        })
    }
}

/// A text that names no durability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a durability: none, layer or full")]
#[non_exhaustive]
pub struct DurabilityError {
    /// The text.
    pub text: String,
}

/// Why one of our own files cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The first line is not the format's.
    #[error("the first line is {found:?}, not \"{format} {VERSION}\"")]
    #[non_exhaustive]
    Format {
        /// The format looked for.
        format: &'static str,
        /// The line found.
        found: String,
    },
    /// A newer version of the format.
    #[error(
        "written in version {found} of its format, this program knows version {VERSION}; use a newer ovl"
    )]
    #[non_exhaustive]
    Newer {
        /// The version found.
        found: u32,
    },
    /// A line is missing.
    #[error("the line \"{key}\" is missing")]
    #[non_exhaustive]
    Missing {
        /// The line's key.
        key: &'static str,
    },
    /// A line holds something else than it should.
    #[error("the line \"{key}\" holds {value:?}")]
    #[non_exhaustive]
    Value {
        /// The line's key.
        key: &'static str,
        /// What it holds.
        value: String,
    },
    /// A line that the format does not have, or has once only.
    #[error("the line {line:?} does not belong here")]
    #[non_exhaustive]
    Unknown {
        /// The line.
        line: String,
    },
}

/// The `key value` lines of one file, each to be taken once.
struct Lines<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Lines<'a> {
    fn parse(contents: &'a [u8], format: &'static str) -> Result<Self, RecordError> {
        let wrong = |found: &str| RecordError::Format {
            format,
            found: found.to_owned(),
        };
        let text = std::str::from_utf8(contents).map_err(|_| {
            wrong(&String::from_utf8_lossy(
                &contents[..contents.len().min(40)],
            ))
        })?;
        let mut lines = text.split('\n');
        let first = lines.next().unwrap_or_default();
        let version = first
            .strip_prefix(format)
            .and_then(|rest| rest.strip_prefix(' '));
        match version.and_then(|version| version.parse::<u32>().ok()) {
            Some(VERSION) => {}
            Some(found) if found > VERSION => return Err(RecordError::Newer { found }),
            _ => return Err(wrong(first)),
        }
        // Without its end, the file was cut short.
        let (Some(""), Some("end")) = (lines.next_back(), lines.next_back()) else {
            return Err(RecordError::Missing { key: "end" });
        };
        let split = |line: &'a str| {
            line.split_once(' ').ok_or_else(|| RecordError::Unknown {
                line: line.to_owned(),
            })
        };
        Ok(Self(lines.map(split).collect::<Result<_, _>>()?))
    }

    fn optional<T: FromStr>(&mut self, key: &'static str) -> Result<Option<T>, RecordError> {
        let Some(index) = self.0.iter().position(|(found, _)| *found == key) else {
            return Ok(None);
        };
        let (_, value) = self.0.remove(index);
        let parsed = value.parse().map_err(|_| RecordError::Value {
            key,
            value: value.to_owned(),
        });
        Ok(Some(parsed?))
    }

    fn required<T: FromStr>(&mut self, key: &'static str) -> Result<T, RecordError> {
        self.optional(key)?.ok_or(RecordError::Missing { key })
    }

    fn finish(self) -> Result<(), RecordError> {
        match self.0.first() {
            None => Ok(()),
            Some((key, value)) => {
                let mut line = String::new();
                let _ = write!(line, "{key} {value}");
                Err(RecordError::Unknown { line })
            }
        }
    }
}
