//! Directories of a layer that no entry has named, over directories of the layers below.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

/// What has to be undone when a later marker hides what is below: until then such a directory looks
/// like the one below it. There are never more of them than directories below.
#[derive(Debug, Default)]
pub(crate) struct Implied {
    /// By path: whether only whiteouts were put in.
    found: BTreeMap<PathBuf, bool>,
}

impl Implied {
    /// A directory was made.
    pub(crate) fn made(&mut self, path: PathBuf) {
        self.found.insert(path, true);
    }

    /// An entry has named the directory.
    pub(crate) fn named(&mut self, path: &Path) {
        self.found.remove(path);
    }

    /// Something other than a whiteout is put into the directory.
    pub(crate) fn filled(&mut self, path: &Path) {
        if let Some(only_whiteouts) = self.found.get_mut(path) {
            *only_whiteouts = false;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Whether the directory is there for the sake of whiteouts only.
    pub(crate) fn holds_only_whiteouts(&self, path: &Path) -> bool {
        self.found.get(path).copied().unwrap_or(false)
    }

    /// Forgets the directory and all below it, and gives their paths.
    pub(crate) fn take_tree(&mut self, path: &Path) -> Vec<PathBuf> {
        // Components are compared one by one, so a tree is a range.
        let from = (Bound::Included(path), Bound::Unbounded);
        let range = self.found.range::<Path, _>(from);
        let paths = range.map(|(found, _)| found);
        let tree: Vec<PathBuf> = paths
            .take_while(|found| found.starts_with(path))
            .cloned()
            .collect();
        for path in &tree {
            self.found.remove(path);
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_taken_without_its_neighbours() {
        let mut implied = Implied::default();
        for path in ["a", "a/b", "a/b/c", "a-", "a0/b", "b"] {
            implied.made(path.into());
        }
        let taken = implied.take_tree("a".as_ref());
        assert_eq!(taken, ["a", "a/b", "a/b/c"].map(PathBuf::from));
        assert!(implied.holds_only_whiteouts("a-".as_ref()));
        assert_eq!(implied.take_tree("".as_ref()).len(), 3);
        assert!(implied.is_empty());
    }
}
