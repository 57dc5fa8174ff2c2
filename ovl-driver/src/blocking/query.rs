use ovl_diff::FileKind;
use ovl_layout::{DOCKER_MAX_DEPTH, LayerId, names};

use super::Overlay2;
use crate::error::Error;
use crate::files;
use crate::types::{Answer, BrokenLayer, LayerInfo, LayerList, LayerSummary};

impl Overlay2 {
    /// Whether there is a layer of this id: a directory that is or claims to be one.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    #[doc(alias = "Exists")]
    pub fn contains(&self, id: &LayerId) -> Result<bool, Error> {
        files::exists(self.kernel.tree(), &self.home, id.as_str())
            .map_err(|error| Error::io("look at", self.layout.layer(id).dir(), error))
    }

    /// Lists all layers by id. Layers that cannot be read are listed apart, with the reason.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn layers(&self) -> Result<LayerList, Error> {
        let mut list = LayerList::default();
        let mut ids = self.layer_ids()?;
        ids.sort();
        for id in ids {
            match self.summary(&id) {
                Ok(summary) => list.layers.push(summary),
                // Removed meanwhile.
                Err(Error::LayerNotFound { id: missing, .. }) if missing == id => {}
                // One layer that cannot be read does not hide the others.
                Err(error) => list.broken.push(BrokenLayer { id, error }),
            }
        }
        Ok(list)
    }

    fn summary(&self, id: &LayerId) -> Result<LayerSummary, Error> {
        let layer = self.layer(id)?;
        let tree = self.kernel.tree();
        // Only a mounted layer has the directory, so that the others cost no look at the mounts.
        let merged = files::exists(tree, &layer.dir, names::MERGED)
            .map_err(|error| Error::io("look at", self.layout.layer(id).merged(), error))?;
        let mounted = merged && self.mount_state(&layer)?.is_some();
        Ok(LayerSummary {
            id: id.clone(),
            parent: self.parent_of(&layer)?,
            depth: layer.chain.depth(),
            sealed: layer.committed,
            mounted,
        })
    }

    /// Everything about one layer.
    ///
    /// # Errors
    ///
    /// [`Error::LayerNotFound`]; [`Error::Damaged`] for a layer or stack that cannot be trusted;
    /// [`Error::Io`].
    #[doc(alias = "GetMetadata")]
    pub fn inspect(&self, id: &LayerId) -> Result<LayerInfo, Error> {
        let layer = self.layer(id)?;
        let stack = self.stack(&layer)?;
        Ok(LayerInfo {
            id: id.clone(),
            link: layer.link,
            parent: self.parent_of(&layer)?,
            sealed: layer.committed,
            root_opaque: layer.root_opaque(),
            id_maps: self.settings.id_maps.clone(),
            recorded: layer.record.is_some(),
            docker: match stack.ids.len() > DOCKER_MAX_DEPTH {
                true => Answer::new(false, "more than 128 layers are below it"),
                false => Answer::new(true, "at most 128 layers are below it"),
            },
            paths: self.layout.layer(id),
            size: self.size_of(id, &stack.upper)?,
            mount: self.mount_state(&layer)?,
            quota: self.quota_of(&layer),
            chain: stack.ids,
        })
    }

    /// The names in the home that can be layers.
    pub(super) fn layer_ids(&self) -> Result<Vec<LayerId>, Error> {
        let entries = self.kernel.tree().read_dir(&self.home);
        let entries = entries.map_err(|error| Error::io("list", self.home(), error))?;
        Ok(entries
            .into_iter()
            .filter(|entry| entry.kind == FileKind::Directory)
            .filter_map(|entry| LayerId::from_file_name(&entry.name).ok())
            .collect())
    }
}
