//! Docker's options and names, as its users write and read them.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;

use ovl_layout::Layout;
use ovl_quota::{Bytes, Limits, LimitsError, SizeError, parse_size};

use crate::types::{Answer, CreateLayer, LayerInfo, OpenOptions, Status};

const SIZE: &str = "size";
const OVERLAY2_SIZE: &str = "overlay2.size";
const OVERRIDE_KERNEL_CHECK: &str = "overlay2.override_kernel_check";
const HOME_OPTIONS: &[&str] = &[OVERLAY2_SIZE, OVERRIDE_KERNEL_CHECK];
const LAYER_OPTIONS: &[&str] = &[SIZE];

/// Docker's storage options of a home, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HomeOptions {
    /// How to open the home.
    pub open: OpenOptions,
    /// What the user should know.
    pub notes: Vec<OptionNote>,
}

/// Something about an option that is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OptionNote {
    /// The option is accepted and does nothing.
    #[non_exhaustive]
    WithoutEffect {
        /// Its key.
        key: &'static str,
    },
}

impl fmt::Display for OptionNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutEffect { key } => write!(
                f,
                "the storage option {key} has no effect: the kernel is asked what it can do, its version is not checked"
            ),
        }
    }
}

impl OpenOptions {
    /// Reads Docker's storage options of a home (`--storage-opt` of `dockerd`), each a `key=value`.
    ///
    /// Keys are read in either case, and white space around keys and values is dropped. Known are
    /// `overlay2.size`, the default limit of writable layers, and `overlay2.override_kernel_check`,
    /// a truth value without effect.
    ///
    /// ```
    /// use ovl_driver::OpenOptions;
    ///
    /// let options = OpenOptions::from_docker(["overlay2.size = 10G"])?;
    /// assert_eq!(options.open.size.map(|size| size.get()), Some(10 << 30));
    /// assert!(OpenOptions::from_docker(["overlay2.size=0"]).is_err());
    /// # Ok::<(), ovl_driver::OptionError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OptionError`], naming the option.
    ///
    /// # Compatibility
    ///
    /// Docker takes a size of 0 as no limit, and the last of two equal keys.
    pub fn from_docker<S: AsRef<str>>(
        options: impl IntoIterator<Item = S>,
    ) -> Result<HomeOptions, OptionError> {
        let mut parsed = HomeOptions::default();
        let mut keys = Keys::new(HOME_OPTIONS);
        for option in options {
            let option = option.as_ref();
            let Some((key, value)) = option.split_once('=') else {
                return Err(OptionError::NoValue {
                    option: option.to_owned(),
                    known: HOME_OPTIONS,
                });
            };
            let (key, value) = (keys.take(key.trim())?, value.trim());
            if key == OVERLAY2_SIZE {
                parsed.open.size = Some(size(key, value)?);
            } else {
                check_truth_value(key, value)?;
                parsed.notes.push(OptionNote::WithoutEffect { key });
            }
        }
        Ok(parsed)
    }
}

impl CreateLayer {
    /// Sets what Docker's storage options of a layer (`--storage-opt` of `docker create`) ask for.
    ///
    /// Keys are read in either case; nothing is trimmed. Known is `size`, the layer's limit.
    ///
    /// ```
    /// use ovl_driver::CreateLayer;
    ///
    /// let layer = CreateLayer::new("container".parse()?).docker_options([("Size", "120 MiB")])?;
    /// assert_eq!(layer.limits.bytes.map(|size| size.get()), Some(120 << 20));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OptionError`], naming the option.
    ///
    /// # Compatibility
    ///
    /// Docker takes a size of 0 to 511 bytes as no limit, and of `size` and `SIZE` either one.
    pub fn docker_options<K: AsRef<str>, V: AsRef<str>>(
        self,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, OptionError> {
        let mut layer = self;
        let mut keys = Keys::new(LAYER_OPTIONS);
        for (key, value) in options {
            let key = keys.take(key.as_ref())?;
            layer = layer.size(Some(size(key, value.as_ref())?));
        }
        Ok(layer)
    }
}

impl Status {
    /// What Docker's `Status` gives and `docker info` prints: names and values, in order.
    #[must_use]
    pub fn docker_pairs(&self) -> [(&'static str, &'static str); 5] {
        let text = |answer: Answer| if answer.yes { "true" } else { "false" };
        [
            ("Backing Filesystem", self.backing_fs.name()),
            ("Supports d_type", text(self.d_type)),
            ("Using metacopy", text(self.metacopy)),
            ("Native Overlay Diff", text(self.native_diff)),
            ("userxattr", text(self.userxattr)),
        ]
    }
}

impl LayerInfo {
    /// What Docker's `GetMetadata` gives: the layer's paths by Docker's names, `LowerDir` only for
    /// a layer with others below, joined with colons, uppermost first.
    ///
    /// None is checked to exist: a base layer has no `WorkDir`, and only a mounted layer a
    /// `MergedDir`.
    #[must_use]
    pub fn docker_pairs(&self) -> Vec<(&'static str, OsString)> {
        let own = |path: &Path| path.as_os_str().to_owned();
        let mut pairs = vec![
            ("WorkDir", own(self.paths.work())),
            ("MergedDir", own(self.paths.merged())),
            ("UpperDir", own(self.paths.diff())),
        ];
        let home = self.paths.dir().parent().unwrap_or(Path::new("/"));
        let layout = Layout::new(home);
        let lowers = self.chain.iter().map(|id| own(layout.layer(id).diff()));
        let lowers: Vec<OsString> = lowers.collect();
        if !lowers.is_empty() {
            pairs.push(("LowerDir", lowers.join(OsStr::new(":"))));
        }
        pairs
    }
}

/// Why one of Docker's storage options is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// There is no `=`.
    #[error("the storage option {option:?} has no value; write key=value with one of the keys {}", known.join(", "))]
    #[non_exhaustive]
    NoValue {
        /// The whole option.
        option: String,
        /// The keys that there are.
        known: &'static [&'static str],
    },
    /// There is no such key.
    #[error("there is no storage option {key:?}; known are {}", known.join(", "))]
    #[non_exhaustive]
    Unknown {
        /// The key.
        key: String,
        /// The keys that there are.
        known: &'static [&'static str],
    },
    /// A key is given twice, perhaps in different case.
    #[error("the storage option {key} is given more than once; known are {}", known.join(", "))]
    #[non_exhaustive]
    Duplicate {
        /// The key.
        key: &'static str,
        /// The keys that there are.
        known: &'static [&'static str],
    },
    /// The value should be a size.
    #[error("the storage option {key} is not a size")]
    #[non_exhaustive]
    Size {
        /// The key.
        key: &'static str,
        /// Why not.
        source: SizeError,
    },
    /// The value is a size that cannot be a limit.
    #[error("the storage option {key} cannot be a limit")]
    #[non_exhaustive]
    Limit {
        /// The key.
        key: &'static str,
        /// Why not.
        source: LimitsError,
    },
    /// The value should be a truth value.
    #[error(
        "the storage option {key} is {value:?}, neither true nor false; use 1, t, true, 0, f or false"
    )]
    #[non_exhaustive]
    TruthValue {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
    },
}

/// The keys seen so far.
struct Keys {
    known: &'static [&'static str],
    seen: Vec<&'static str>,
}

impl Keys {
    fn new(known: &'static [&'static str]) -> Self {
        let seen = Vec::new();
        Self { known, seen }
    }

    /// The key as it is documented.
    fn take(&mut self, key: &str) -> Result<&'static str, OptionError> {
        let mut known = self.known.iter().copied();
        let Some(found) = known.find(|known| known.eq_ignore_ascii_case(key)) else {
            return Err(OptionError::Unknown {
                key: key.to_owned(),
                known: self.known,
            });
        };
        if self.seen.contains(&found) {
            return Err(OptionError::Duplicate {
                key: found,
                known: self.known,
            });
        }
        self.seen.push(found);
        Ok(found)
    }
}

fn size(key: &'static str, value: &str) -> Result<Bytes, OptionError> {
    let size = parse_size(value).map_err(|source| OptionError::Size { key, source })?;
    match Limits::UNLIMITED.bytes(Some(size)).rounded() {
        Ok(_) => Ok(size),
        Err(source) => Err(OptionError::Limit { key, source }),
    }
}

/// The truth values of Go's `strconv.ParseBool`.
fn check_truth_value(key: &'static str, value: &str) -> Result<(), OptionError> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" | "0" | "f" | "F" | "FALSE" | "false"
        | "False" => Ok(()),
        _ => Err(OptionError::TruthValue {
            key,
            value: value.to_owned(),
        }),
    }
}
