//! Hard links, also to what only a layer below has.

use std::ffi::OsStr;
use std::io;

use super::{Applier, Stop, components};
use crate::archive::BadReason;
use crate::copy::{Private, copy_object};
use crate::error::{Context as _, TreeError};
use crate::tree::{DirHandle, FileKind, Metadata, Node};
use crate::view::{Found, ViewDir};

impl Applier<'_, '_> {
    pub(super) fn hard_link(
        &mut self,
        target: &[u8],
        parents: &[&OsStr],
        name: &OsStr,
    ) -> Result<(), Stop> {
        let target = components(target).map_err(|reason| match reason {
            BadReason::PathEscape => Stop::Bad(BadReason::LinkEscape),
            other => Stop::Bad(other),
        })?;
        let Some((&target_name, target_parents)) = target.split_last() else {
            return Err(Stop::Bad(BadReason::BadHardLink));
        };
        if target_name == name && target_parents == parents {
            return Err(Stop::Bad(BadReason::DanglingHardLink));
        }
        self.resolve(target_parents)?;
        let path = self.position.path_of(target_name);
        let upper = self.position.upper_if_any();
        let view = self.position.view();
        let in_upper = match &upper {
            Some(dir) => view.entry(dir, target_name).on("look at", &path)?,
            None => None,
        };
        let (from, metadata) = match (in_upper, upper) {
            (Some(metadata), Some(dir)) => (dir, metadata),
            _ => {
                let below = self.position.below().clone();
                match view.lookup(&below, target_name).on("look at", &path)? {
                    Found::Nothing => return Err(Stop::Bad(BadReason::DanglingHardLink)),
                    Found::Directory(..) => return Err(Stop::Bad(BadReason::BadHardLink)),
                    Found::Object(_, metadata) if metadata.kind == FileKind::Socket => {
                        return Err(Stop::Bad(BadReason::BadHardLink));
                    }
                    Found::Object(dir, metadata) => (
                        self.copy_up(&below, &dir, target_name, &metadata)?,
                        metadata,
                    ),
                }
            }
        };
        if metadata.is_dir() || metadata.is_whiteout_device() {
            return Err(Stop::Bad(BadReason::BadHardLink));
        }
        self.resolve(parents)?;
        let dir = self.position.upper()?;
        let path = self.position.path_of(name);
        if let Some(existing) = self
            .position
            .view()
            .entry(&dir, name)
            .on("look at", &path)?
        {
            let source = self
                .tree
                .metadata(Node::Entry(&from, target_name))
                .on("look at", &path)?;
            if (existing.dev, existing.ino) == (source.dev, source.ino) {
                return Ok(());
            }
        }
        match self.create(&dir, name, |tree| {
            tree.hard_link(&from, target_name, &dir, name)
        })? {
            // It was in the directory that has made way for the link.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Stop::Bad(BadReason::DanglingHardLink));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::TooManyLinks | io::ErrorKind::CrossesDevices
                ) =>
            {
                // It may be a file that is not complete yet.
                self.files.wait();
                let metadata = self.tree.metadata(Node::Entry(&from, target_name));
                let metadata = metadata.on("look at", &path)?;
                let (view, inherits) = (self.position.view(), self.position.inherits());
                let (from, to) = ((&from, target_name), (&dir, name));
                copy_object(view, from, None, &metadata, to, Private::Keep, inherits)
                    .on("copy", &path)?;
                self.copied_links += 1;
            }
            result => result.on("link", &path)?,
        }
        self.position.touch();
        Ok(())
    }

    /// Copies a lower layer's object into this layer, at its own place, so that it can be linked.
    fn copy_up(
        &mut self,
        below: &ViewDir,
        from: &DirHandle,
        name: &OsStr,
        metadata: &Metadata,
    ) -> Result<DirHandle, TreeError> {
        let to = self.position.upper()?;
        let path = self.position.path_of(name);
        let (view, inherits) = (self.position.view(), self.position.inherits());
        let data = match metadata.kind {
            FileKind::Regular => Some(view.open_file(below, name).on("open", &path)?),
            _ => None,
        };
        copy_object(
            view,
            (from, name),
            data.as_ref(),
            metadata,
            (&to, name),
            Private::Drop,
            inherits,
        )
        .on("copy up", &path)?;
        self.position.touch();
        Ok(to)
    }
}
