//! What must be in a home, from what was done to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, bail, ensure};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{Base, LayerSummary};
use ovl_layout::LayerId;

use super::contents::{self, Files};
use super::{Log, Step};

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It was killed: the kernel keeps all that it wrote, and its mounts.
    Kill,
    /// The machine was: nothing is mounted, and what no sync covers may be anything.
    PowerCut,
}

/// The layers of a home.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Model {
    layers: BTreeMap<LayerId, Layer>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Layer {
    parent: Option<LayerId>,
    sealed: bool,
    /// What it shows, with everything below it.
    files: Files,
    /// Holds that last.
    persistent: u64,
    /// Holds of the process that is at work.
    own: u64,
    /// What was written through mounts and nobody has waited for.
    loose: BTreeSet<String>,
    /// A hash of its archive, if anybody has looked since it last changed.
    digest: Option<u64>,
}

impl Model {
    pub(crate) fn persistent(&self) -> BTreeMap<LayerId, u64> {
        let held = self.layers.iter().filter(|(_, layer)| layer.persistent > 0);
        held.map(|(id, layer)| (id.clone(), layer.persistent))
            .collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &LayerId> {
        self.layers.keys()
    }

    /// Nobody holds a mount any more.
    pub(crate) fn unmount_all(&mut self) {
        for layer in self.layers.values_mut() {
            (layer.persistent, layer.own) = (0, 0);
        }
    }

    /// The kernel has it all.
    fn forget_loose(&mut self) {
        for layer in self.layers.values_mut() {
            layer.loose.clear();
        }
    }

    /// Compares a home with what the log of a process that is gone says, and takes over what was
    /// left open by its end.
    pub(crate) fn follow(&mut self, log: &Log, store: &Overlay2, how: Ending) -> Result<()> {
        for step in &log.done {
            self.take(step);
        }
        let mut after = self.clone();
        if let Some(step) = &log.pending {
            after.take(step);
        }
        match how {
            Ending::Kill => {
                self.forget_loose();
                after.forget_loose();
            }
            Ending::PowerCut => {
                self.unmount_all();
                after.unmount_all();
            }
        }
        let list = store.layers()?;
        if let Some(broken) = list.broken.first() {
            ensure!(false, "{} is broken: {}", broken.id, broken.error);
        }
        let mut found = BTreeMap::new();
        for summary in list.layers {
            let layer = Layer::read(store, &summary)?;
            let candidates = [self.layers.get(&summary.id), after.layers.get(&summary.id)];
            let pending = log.pending.as_ref();
            let fits = |expected: &&Layer| layer.differs(expected, &summary.id, pending).is_none();
            if !candidates.iter().flatten().any(fits) {
                let differences: Vec<String> = candidates
                    .iter()
                    .flatten()
                    .filter_map(|expected| layer.differs(expected, &summary.id, pending))
                    .collect();
                match differences.is_empty() {
                    true => ensure!(false, "{} should not be there", summary.id),
                    false => ensure!(false, "{}: {}", summary.id, differences.join("; or: ")),
                }
            }
            found.insert(summary.id, layer);
        }
        for id in self.layers.keys().filter(|id| !found.contains_key(*id)) {
            ensure!(!after.layers.contains_key(id), "{id} is lost");
        }
        self.layers = found;
        Ok(())
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Open | Step::List | Step::Reclaim | Step::Gc | Step::Diff { .. } => {}
            Step::Import { id, parent, seed } => {
                let mut layer = self.child(parent.as_ref());
                contents::archived(*seed, &mut layer.files);
                layer.sealed = true;
                self.layers.insert(id.clone(), layer);
            }
            Step::Create { id, parent } | Step::CreateWritable { id, parent } => {
                let layer = self.child(parent.as_ref());
                self.layers.insert(id.clone(), layer);
            }
            Step::Remove { id, .. } => {
                self.layers.remove(id);
            }
            Step::UnmountAll => self.unmount_all(),
            Step::Mount { id, .. }
            | Step::Write { id, .. }
            | Step::Unmount { id }
            | Step::Apply { id, .. }
            | Step::Digest { id, .. } => {
                if let Some(layer) = self.layers.get_mut(id) {
                    layer.take(step);
                }
            }
        }
    }

    fn child(&mut self, parent: Option<&LayerId>) -> Layer {
        let mut layer = Layer::default();
        if let Some(id) = parent
            && let Some(parent) = self.layers.get_mut(id)
        {
            parent.sealed = true;
            // Whoever seals waits for what is sealed.
            parent.loose.clear();
            layer.parent = Some(id.clone());
            layer.files.clone_from(&parent.files);
        }
        layer
    }
}

impl Layer {
    fn read(store: &Overlay2, summary: &LayerSummary) -> Result<Self> {
        let mut archive = Vec::new();
        store.diff(&summary.id, &Base::Empty, &mut archive)?;
        let mount = store.inspect(&summary.id)?.mount;
        if let Some(mount) = &mount {
            let processes = &mount.processes;
            ensure!(
                processes.is_empty(),
                "{} is held by {processes:?}, which are gone",
                summary.id
            );
        }
        Ok(Self {
            parent: summary.parent.clone(),
            sealed: summary.sealed,
            files: contents::read(&archive)?,
            persistent: mount.map_or(0, |mount| mount.persistent),
            own: 0,
            loose: BTreeSet::new(),
            digest: Some(contents::digest(store, &summary.id)?),
        })
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { seed, .. } => {
                contents::written(*seed, &mut self.files);
                self.loose.append(&mut contents::touched(*seed));
                self.digest = None;
            }
            Step::Apply { seed, .. } => {
                contents::archived(*seed, &mut self.files);
                self.loose.clear();
                self.digest = None;
            }
            Step::Digest { digest, .. } => self.digest = Some(*digest),
            Step::Mount {
                persistent: true, ..
            } => self.persistent += 1,
            Step::Mount { .. } => self.own += 1,
            // The process's own ones go first.
            Step::Unmount { .. } if self.own > 0 => self.own -= 1,
            Step::Unmount { .. } => self.persistent = self.persistent.saturating_sub(1),
            _ => {}
        }
    }

    /// How this layer is not what it should be; what `pending` was about to change may be either.
    fn differs(&self, expected: &Self, id: &LayerId, pending: Option<&Step>) -> Option<String> {
        let on_this = |other: &LayerId| other == id;
        if self.parent != expected.parent {
            return Some(format!(
                "it stands on {:?}, not {:?}",
                self.parent, expected.parent
            ));
        }
        // A parent is sealed before its child can be seen.
        let sealing = match pending {
            Some(
                Step::Import { parent, .. }
                | Step::Create { parent, .. }
                | Step::CreateWritable { parent, .. },
            ) => parent.as_ref().is_some_and(on_this),
            _ => false,
        };
        if self.sealed != expected.sealed && !sealing {
            return Some(format!("sealed is {}", self.sealed));
        }
        // A removal unmounts first.
        let removing = matches!(pending, Some(Step::Remove { id, .. }) if on_this(id));
        if self.persistent != expected.persistent && !(removing && self.persistent == 0) {
            return Some(format!(
                "{} persistent holds, not {}",
                self.persistent, expected.persistent
            ));
        }
        let writing = match pending {
            Some(Step::Write { id, seed }) if on_this(id) => contents::touched(*seed),
            _ => BTreeSet::new(),
        };
        let paths = self.files.keys().chain(expected.files.keys());
        let known = |path: &&String| !writing.contains(*path) && !expected.loose.contains(*path);
        let wrong = paths.filter(known);
        let wrong = wrong
            .clone()
            .find(|path| self.files.get(*path) != expected.files.get(*path));
        if let Some(wrong) = wrong {
            return Some(format!(
                "{wrong} is {:?}, not {:?}",
                self.files.get(wrong),
                expected.files.get(wrong)
            ));
        }
        let is_known = writing.is_empty() && expected.loose.is_empty() && expected.digest.is_some();
        (is_known && self.digest != expected.digest).then(|| "its archive is another".to_owned())
    }
}

/// Lines that [`FromStr`] reads again, of what is there after an end: nothing is loose or held.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, layer) in &self.layers {
            let parent = layer.parent.as_ref().map_or("-", LayerId::as_str);
            let (sealed, digest) = (layer.sealed, layer.digest.unwrap_or_default());
            writeln!(f, "layer {id} {parent} {sealed} {digest}")?;
            for (path, (len, hash)) in &layer.files {
                writeln!(f, "file {id} {path} {len} {hash}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Model {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut model = Self::default();
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["layer", id, parent, sealed, digest] => {
                    let parent = (parent != "-").then(|| parent.parse()).transpose()?;
                    let layer = Layer {
                        parent,
                        sealed: sealed.parse()?,
                        digest: Some(digest.parse()?),
                        ..Layer::default()
                    };
                    model.layers.insert(id.parse()?, layer);
                }
                ["file", id, path, len, hash] => {
                    let layer = model.layers.get_mut(&id.parse::<LayerId>()?);
                    let layer = layer.with_context(|| format!("{line:?} is of no layer"))?;
                    layer
                        .files
                        .insert(path.to_owned(), (len.parse()?, hash.parse()?));
                }
                _ => bail!("{line:?} is no line of a home"),
            }
        }
        Ok(model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_read_as_it_is_written() -> Result<()> {
        let mut model = Model::default();
        for step in ["import a - 1", "create b a", "digest a 5", "digest b 6"] {
            model.take(&step.parse()?);
        }
        assert_eq!(model.to_string().parse::<Model>()?, model);
        assert!("layer a - true".parse::<Model>().is_err());
        assert!("file a b 1 2".parse::<Model>().is_err());
        Ok(())
    }

    #[test]
    fn what_was_written_is_loose_until_a_child_seals_it() -> Result<()> {
        let mut model = Model::default();
        let loose = |model: &Model| model.layers.values().next().map(|a| a.loose.is_empty());
        for (step, firm) in [
            ("create a -", true),
            ("write a 1", false),
            ("apply a 2", true),
            ("write a 3", false),
            ("create b a", true),
        ] {
            model.take(&step.parse()?);
            assert_eq!(loose(&model), Some(firm), "{step}");
        }
        Ok(())
    }
}
