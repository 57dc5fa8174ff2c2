//! Two merged directories on the way down, of which one may be the other with layers on top.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::emit::refuse_changed;
use crate::error::{Context as _, DiffError};
use crate::tree::{Metadata, Node};
use crate::view::{Found, Look, View, ViewDir};

/// A directory of both trees.
pub(crate) struct Level {
    pub(crate) tree: ViewDir,
    pub(crate) base: ViewDir,
    /// In reverse byte order, so that the next one is the last.
    pub(crate) names: Vec<OsString>,
    /// How many layers of the tree lie on top, when all that is below them is the base. Only their
    /// names can differ then. `None` when the two have to be compared as a whole.
    pub(crate) above: Option<usize>,
    /// The parts that were listed, as they were before.
    listed: Vec<Metadata>,
}

impl Level {
    pub(crate) fn open(
        view: View<'_>,
        tree: ViewDir,
        base: ViewDir,
        above: Option<usize>,
        path: &Path,
    ) -> Result<Self, DiffError> {
        let parts = match above {
            Some(above) => tree.parts_above(above),
            None => tree.parts(),
        };
        let look = |part| view.tree().metadata(Node::Dir(part)).on("look at", path);
        let listed = parts.iter().map(look).collect::<Result<Vec<_>, _>>()?;
        let mut names: Vec<OsString> = match above {
            Some(_) => {
                let mut names = Vec::new();
                for part in parts {
                    let entries = view.tree().read_dir(part).on("list", path)?;
                    names.extend(entries.into_iter().map(|entry| entry.name));
                }
                names
            }
            None => {
                let mut names = view.names(&tree).on("list", path)?;
                names.extend(view.names(&base).on("list", path)?);
                names.into_iter().collect()
            }
        };
        names.sort_unstable_by(|one, other| other.cmp(one));
        names.dedup();
        Ok(Self {
            tree,
            base,
            names,
            above,
            listed,
        })
    }

    /// Fails when something was put into the directory, or taken out of it, since it was listed.
    pub(crate) fn refuse_changed(&self, view: View<'_>, path: &Path) -> Result<(), DiffError> {
        for (part, before) in self.tree.parts().iter().zip(&self.listed) {
            refuse_changed(view, Node::Dir(part), before, path)?;
        }
        Ok(())
    }
}

/// What the base has under a name that was looked up in the tree.
pub(crate) struct Below {
    pub(crate) then: Found,
    /// Of a directory: how the two are to be compared.
    pub(crate) above: Option<usize>,
}

/// Finds in the base what has a name, and how it relates to what the tree has there.
pub(crate) fn below(
    view: View<'_>,
    level: &Level,
    look: &Look,
    name: &OsStr,
    path: &Path,
) -> Result<Below, DiffError> {
    let Some(above) = level.above else {
        let then = view.lookup(&level.base, name).on("look at", path)?;
        return Ok(Below { then, above: None });
    };
    let Found::Directory(tree, _) = &look.found else {
        let then = view.lookup(&level.base, name).on("look at", path)?;
        return Ok(Below { then, above: None });
    };
    let moved = look.moved.is_some_and(|layer| layer < above);
    let is_above = tree.is_above(above);
    if !moved && !is_above {
        // Nothing of the layers on top has a say in what is below.
        let dir = tree.below(above, &level.base);
        let metadata = match dir.parts().first() {
            Some(part) => view.tree().metadata(Node::Dir(part)).on("look at", path)?,
            None => {
                return Ok(Below {
                    then: Found::Nothing,
                    above: None,
                });
            }
        };
        let then = Found::Directory(dir, metadata);
        return Ok(Below {
            then,
            above: Some(above),
        });
    }
    let then = view.lookup(&level.base, name).on("look at", path)?;
    let aligned = match &then {
        // It may have been moved away and back.
        Found::Directory(base, _) if !is_above => {
            let dir = tree.below(above, &level.base);
            view.is_same(&dir, base).on("look at", path)?
        }
        Found::Directory(..) => false,
        Found::Nothing | Found::Object(..) => is_above,
    };
    let above = aligned.then_some(above);
    Ok(Below { then, above })
}
