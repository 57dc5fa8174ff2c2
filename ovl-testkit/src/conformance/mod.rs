//! What any kernel must do under the store, as functions that run on a mock and on the real one.
//!
//! Each case gets a [`Subject`]: a kernel and an empty directory on it. Cases panic when the subject
//! does not do what they say, as tests do. That the same cases pass on the real kernel is what
//! makes the mock worth anything.

mod archives;
mod damage;
mod docker;
mod edits;
mod homes;
mod id_maps;
mod layers;
mod mounts;
mod out_of_sight;
mod quotas;
mod refusals;
mod rows;
mod scripts;
mod strategies;
mod support;
mod trees;
mod upkeep;
mod volatile;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ovl_driver::Kernel;

use crate::edit::Edit;

pub use scripts::{ScriptsSummary, run_scripts};

/// A kernel under test, and a directory to work in.
#[derive(Clone, Debug)]
pub struct Subject {
    kernel: Kernel,
    dir: PathBuf,
    editor: Option<Editor>,
    skips: Arc<Mutex<Vec<Skip>>>,
}

/// Changes files of the subject in place.
#[derive(Clone)]
struct Editor(Arc<EditFn>);

type EditFn = dyn Fn(&Path, Edit<'_>) -> io::Result<()> + Send + Sync;

impl fmt::Debug for Editor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Editor")
    }
}

/// What a case left out because the subject's kernel lacks something.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skip {
    /// The part of the case; `None` when nothing of it has been tried.
    pub part: Option<String>,
    /// What the kernel lacks.
    pub reason: String,
}

impl Skip {
    /// A case that was left out as a whole.
    #[must_use]
    pub fn whole(reason: impl Into<String>) -> Self {
        Self {
            part: None,
            reason: reason.into(),
        }
    }

    /// A part of a case that was left out.
    #[must_use]
    pub fn part(part: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            part: Some(part.into()),
            reason: reason.into(),
        }
    }
}

impl Subject {
    /// A kernel and an empty directory on it, given by its absolute path. The directory's file
    /// system must be fit for an upper layer, and the caller privileged to mount.
    #[must_use]
    pub fn new(kernel: Kernel, dir: impl Into<PathBuf>) -> Self {
        Self {
            kernel,
            dir: dir.into(),
            editor: None,
            skips: Arc::default(),
        }
    }

    /// The same with a way to change files in place, which no kernel that a store uses has:
    /// [`edit_file`](crate::edit_file) on the real one, [`edit`](crate::MockKernel::edit) on a mock.
    /// Without it the cases that need one are left out.
    #[must_use]
    pub fn editing(
        self,
        edit: impl Fn(&Path, Edit<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self {
            editor: Some(Editor(Arc::new(edit))),
            ..self
        }
    }

    /// Changes a file in place. None where the subject cannot.
    pub(crate) fn edit(&self, path: &Path, edit: Edit<'_>) -> Option<io::Result<()>> {
        self.editor.as_ref().map(|editor| (editor.0)(path, edit))
    }

    /// What the cases that ran on this subject have left out so far.
    #[must_use]
    pub fn skips(&self) -> Vec<Skip> {
        // A case that panics elsewhere has not damaged the list.
        let skips = self.skips.lock().unwrap_or_else(PoisonError::into_inner);
        skips.clone()
    }

    fn skip(&self, skip: Skip) {
        let mut skips = self.skips.lock().unwrap_or_else(PoisonError::into_inner);
        if !skips.contains(&skip) {
            skips.push(skip);
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
    /// What it is about, such as `quotas`: the last part of its module's path.
    pub subject: &'static str,
    /// Panics when the subject breaks the rule.
    pub run: fn(&Subject),
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    [
        docker::CASES,
        homes::CASES,
        id_maps::CASES,
        layers::CASES,
        mounts::CASES,
        out_of_sight::CASES,
        strategies::CASES,
        volatile::CASES,
        edits::CASES,
        refusals::CASES,
        trees::CASES,
        archives::CASES,
        damage::CASES,
        upkeep::CASES,
        rows::CASES,
        quotas::CASES,
        scripts::CASES,
    ]
    .concat()
}

/// Lists functions of a module as cases.
macro_rules! cases {
    ($($name:ident,)*) => {
        pub(super) const CASES: &[super::Case] = &[$(super::Case {
            name: stringify!($name),
            subject: super::last_part(module_path!()),
            run: $name,
        },)*];
    };
}
use cases as list;

const fn last_part(path: &'static str) -> &'static str {
    let mut rest = path.as_bytes();
    let mut start = rest.len();
    while let [before @ .., last] = rest {
        if *last == b':' {
            break;
        }
        start = before.len();
        rest = before;
    }
    path.split_at(start).1
}
