//! What any kernel must do under the store, as functions that run on a mock and on the real one.
//!
//! Each case gets a [`Subject`]: a kernel and an empty directory on it. Cases panic when the subject
//! does not do what they say, as tests do. That the same cases pass on the real kernel is what
//! makes the mock worth anything.

mod archives;
mod damage;
mod homes;
mod id_maps;
mod layers;
mod mounts;
mod quotas;
mod scripts;
mod support;

use std::path::{Path, PathBuf};

use ovl_driver::Kernel;

pub use scripts::{Overwrite, ScriptsSummary, run_scripts};

/// A kernel under test, and a directory to work in.
#[derive(Clone, Debug)]
pub struct Subject {
    kernel: Kernel,
    dir: PathBuf,
}

impl Subject {
    /// A kernel and an empty directory on it, given by its absolute path. The directory's file
    /// system must be fit for an upper layer, and the caller privileged to mount.
    #[must_use]
    pub fn new(kernel: Kernel, dir: impl Into<PathBuf>) -> Self {
        Self {
            kernel,
            dir: dir.into(),
        }
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// One rule.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The rule as a sentence with underscores.
    pub name: &'static str,
    /// Panics when the subject breaks the rule.
    pub run: fn(&Subject),
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        homes::CASES,
        id_maps::CASES,
        layers::CASES,
        mounts::CASES,
        archives::CASES,
        damage::CASES,
        quotas::CASES,
        scripts::CASES,
    ]
    .concat()
}

/// Lists functions of a module as cases.
macro_rules! cases {
    ($($name:ident,)*) => {
        pub(super) const CASES: &[super::Case] =
            &[$(super::Case { name: stringify!($name), run: $name },)*];
    };
}
use cases as list;
