//! overlayfs: what a stack of directories shows, and where changes go.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use ovl_diff::{DeviceNumber, NodeKind};
use ovl_layout::XattrNamespace;
use rustix::io::Errno;

use super::State;
use super::inode::{Body, Ino, Inode, Result, check_name};

/// One overlay. Its directories are named by the path from its root.
#[derive(Debug)]
pub(super) struct Overlay {
    pub(super) upper: Option<Ino>,
    pub(super) work: Option<Ino>,
    pub(super) lowers: Vec<Ino>,
    pub(super) xattrs: XattrNamespace,
}

/// The directories that make up a merged one.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged {
    pub(super) upper: Option<Ino>,
    pub(super) lowers: Vec<Ino>,
}

impl Merged {
    /// The directory whose attributes show.
    pub(super) fn top(&self) -> Option<Ino> {
        self.upper.or_else(|| self.lowers.first().copied())
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Directory(Merged),
    /// Something else, and whether it is in the upper layer.
    Object(Ino, bool),
}

impl State {
    fn overlay_xattr(&self, overlay: &Overlay, ino: Ino, name: &str) -> Result<Option<&Vec<u8>>> {
        let name = [overlay.xattrs.prefix(), name].concat();
        Ok(self.inode(ino)?.xattrs.get(OsStr::new(&name)))
    }

    fn is_opaque(&self, overlay: &Overlay, ino: Ino) -> Result<bool> {
        Ok(self
            .overlay_xattr(overlay, ino, "opaque")?
            .is_some_and(|value| value == b"y"))
    }

    pub(super) fn overlay_lookup(
        &self,
        overlay: &Overlay,
        dir: &Merged,
        name: &OsStr,
    ) -> Result<Option<Entry>> {
        check_name(name)?;
        let mut merged = Merged::default();
        let upper = dir.upper.map(|ino| (ino, true));
        for (part, is_upper) in upper
            .into_iter()
            .chain(dir.lowers.iter().map(|&ino| (ino, false)))
        {
            let Some(ino) = self.child(part, name)? else {
                continue;
            };
            let inode = self.inode(ino)?;
            if inode.is_whiteout() {
                break;
            }
            if !inode.is_dir() {
                if merged.top().is_none() {
                    return Ok(Some(Entry::Object(ino, is_upper)));
                }
                break;
            }
            match is_upper {
                true => merged.upper = Some(ino),
                false => merged.lowers.push(ino),
            }
            if self.is_opaque(overlay, ino)? {
                break;
            }
        }
        Ok(merged.top().map(|_| Entry::Directory(merged)))
    }

    /// The merged directory at a path.
    pub(super) fn overlay_dir(&self, overlay: &Overlay, path: &[OsString]) -> Result<Merged> {
        // An opaque root hides nothing: the kernel ignores the mark there.
        let mut dir = Merged {
            upper: overlay.upper,
            lowers: overlay.lowers.clone(),
        };
        for name in path {
            match self.overlay_lookup(overlay, &dir, name)? {
                Some(Entry::Directory(inner)) => dir = inner,
                Some(Entry::Object(..)) => return Err(Errno::NOTDIR),
                None => return Err(Errno::NOENT),
            }
        }
        Ok(dir)
    }

    /// The visible names of a merged directory.
    pub(super) fn overlay_names(&self, dir: &Merged) -> Result<BTreeMap<OsString, Ino>> {
        let (mut names, mut hidden) = (BTreeMap::new(), BTreeSet::new());
        for &part in dir.upper.iter().chain(&dir.lowers) {
            for (name, &ino) in self.entries(part)? {
                if hidden.contains(name) || names.contains_key(name) {
                    continue;
                }
                if self.inode(ino)?.is_whiteout() {
                    hidden.insert(name.clone());
                } else {
                    names.insert(name.clone(), ino);
                }
            }
        }
        Ok(names)
    }

    fn below_has(&self, overlay: &Overlay, dir: &Merged, name: &OsStr) -> Result<bool> {
        let lowers = Merged {
            upper: None,
            lowers: dir.lowers.clone(),
        };
        Ok(self.overlay_lookup(overlay, &lowers, name)?.is_some())
    }

    /// The upper directory at a path, copied up with those above it where it is only below.
    pub(super) fn copy_up_dir(&mut self, overlay: &Overlay, path: &[OsString]) -> Result<Ino> {
        let root = overlay.upper.ok_or(Errno::ROFS)?;
        let mut upper = root;
        for depth in 0..path.len() {
            let dir = self.overlay_dir(overlay, &path[..=depth])?;
            if let Some(ino) = dir.upper {
                upper = ino;
                continue;
            }
            let lower = *dir.lowers.first().ok_or(Errno::NOENT)?;
            upper = self.copy_into(overlay, lower, upper, &path[depth])?;
        }
        Ok(upper)
    }

    /// The upper object of that name, copied up where it is only below.
    pub(super) fn copy_up(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<Ino> {
        let dir = self.overlay_dir(overlay, path)?;
        match self
            .overlay_lookup(overlay, &dir, name)?
            .ok_or(Errno::NOENT)?
        {
            Entry::Object(ino, true) => Ok(ino),
            Entry::Object(ino, false) => {
                let upper = self.copy_up_dir(overlay, path)?;
                self.copy_into(overlay, ino, upper, name)
            }
            Entry::Directory(_) => {
                let path: Vec<OsString> = [path, &[name.to_owned()]].concat();
                self.copy_up_dir(overlay, &path)
            }
        }
    }

    fn copy_into(&mut self, overlay: &Overlay, from: Ino, dir: Ino, name: &OsStr) -> Result<Ino> {
        let original = self.inode(from)?.clone();
        let body = match &original.body {
            Body::Directory(_) => Body::Directory(BTreeMap::new()),
            other => other.clone(),
        };
        // Copying up is no change of the directory it goes to.
        let before = self.inode(dir)?.mtime;
        let ino = self.add(dir, name, body, original.mode)?;
        let origin = OsString::from([overlay.xattrs.prefix(), "origin"].concat());
        let impure = OsString::from([overlay.xattrs.prefix(), "impure"].concat());
        let copy = self.inode_mut(ino)?;
        (copy.uid, copy.gid, copy.mtime) = (original.uid, original.gid, original.mtime);
        let private = overlay.xattrs.prefix();
        let kept = original
            .xattrs
            .into_iter()
            .filter(|(name, _)| !is_private(private, name));
        copy.xattrs = kept.collect();
        copy.xattrs.insert(origin, from.to_be_bytes().to_vec());
        let parent = self.inode_mut(dir)?;
        parent.mtime = before;
        parent.xattrs.insert(impure, b"y".to_vec());
        Ok(ino)
    }

    /// Puts a new object into a merged directory.
    pub(super) fn overlay_add(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
        body: Body,
        mode: u32,
    ) -> Result<Ino> {
        let is_whiteout = Inode::new(body.clone(), 0, 0).is_whiteout();
        if is_whiteout {
            return Err(Errno::PERM);
        }
        let (upper, hidden) = self.make_room(overlay, path, name)?;
        let is_dir = matches!(body, Body::Directory(_));
        let ino = self.add(upper, name, body, mode)?;
        if is_dir && hidden {
            self.set_opaque(overlay, ino)?;
        }
        Ok(ino)
    }

    /// Makes a name of a merged directory free in its upper part: nothing visible may have it. Says
    /// whether a whiteout had hidden something below.
    fn make_room(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<(Ino, bool)> {
        let dir = self.overlay_dir(overlay, path)?;
        if self.overlay_lookup(overlay, &dir, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let upper = self.copy_up_dir(overlay, path)?;
        let hidden = self.child(upper, name)?.is_some();
        if hidden {
            self.unlink(upper, name)?;
        }
        Ok((upper, hidden))
    }

    fn set_opaque(&mut self, overlay: &Overlay, ino: Ino) -> Result<()> {
        let name = OsString::from(overlay.xattrs.opaque());
        self.inode_mut(ino)?.xattrs.insert(name, b"y".to_vec());
        Ok(())
    }

    /// Hides what is below a name whose upper part is gone.
    fn white_out(&mut self, overlay: &Overlay, path: &[OsString], name: &OsStr) -> Result<()> {
        let dir = self.overlay_dir(overlay, path)?;
        if !self.below_has(overlay, &dir, name)? {
            return Ok(());
        }
        let upper = self.copy_up_dir(overlay, path)?;
        let body = Body::Node(NodeKind::CharDevice(DeviceNumber::default()));
        self.add(upper, name, body, 0).map(|_| ())
    }

    pub(super) fn overlay_unlink(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<()> {
        let dir = self.overlay_dir(overlay, path)?;
        match self
            .overlay_lookup(overlay, &dir, name)?
            .ok_or(Errno::NOENT)?
        {
            Entry::Directory(_) => return Err(Errno::ISDIR),
            Entry::Object(_, is_upper) => {
                let upper = self.copy_up_dir(overlay, path)?;
                if is_upper {
                    self.unlink(upper, name)?;
                }
            }
        }
        self.white_out(overlay, path, name)
    }

    pub(super) fn overlay_rmdir(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<()> {
        let dir = self.overlay_dir(overlay, path)?;
        let Entry::Directory(inner) = self
            .overlay_lookup(overlay, &dir, name)?
            .ok_or(Errno::NOENT)?
        else {
            return Err(Errno::NOTDIR);
        };
        if !self.overlay_names(&inner)?.is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        let upper = self.copy_up_dir(overlay, path)?;
        if let Some(ino) = inner.upper {
            // Only whiteouts are left in it.
            for whiteout in self.entries(ino)?.keys().cloned().collect::<Vec<_>>() {
                self.unlink(ino, &whiteout)?;
            }
            self.rmdir(upper, name)?;
        }
        self.white_out(overlay, path, name)
    }

    pub(super) fn overlay_link(
        &mut self,
        overlay: &Overlay,
        (from_path, from): (&[OsString], &OsStr),
        (path, name): (&[OsString], &OsStr),
    ) -> Result<()> {
        let dir = self.overlay_dir(overlay, from_path)?;
        match self
            .overlay_lookup(overlay, &dir, from)?
            .ok_or(Errno::NOENT)?
        {
            Entry::Directory(_) => return Err(Errno::PERM),
            Entry::Object(..) => {}
        }
        let dir = self.overlay_dir(overlay, path)?;
        if self.overlay_lookup(overlay, &dir, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        let ino = self.copy_up(overlay, from_path, from)?;
        let (upper, _) = self.make_room(overlay, path, name)?;
        self.link(ino, upper, name)
    }

    pub(super) fn overlay_rename(
        &mut self,
        overlay: &Overlay,
        (from_path, from): (&[OsString], &OsStr),
        (path, name): (&[OsString], &OsStr),
    ) -> Result<()> {
        let source = self.overlay_dir(overlay, from_path)?;
        let moved = self
            .overlay_lookup(overlay, &source, from)?
            .ok_or(Errno::NOENT)?;
        if let Entry::Directory(dir) = &moved
            && !dir.lowers.is_empty()
        {
            // Without redirects the contents below could not follow.
            return Err(Errno::XDEV);
        }
        let is_dir = matches!(moved, Entry::Directory(_));
        let target = self.overlay_dir(overlay, path)?;
        match (self.overlay_lookup(overlay, &target, name)?, is_dir) {
            (None, _) => {}
            (Some(Entry::Object(..)), true) => return Err(Errno::NOTDIR),
            (Some(Entry::Directory(_)), false) => return Err(Errno::ISDIR),
            (Some(Entry::Object(..)), false) => {
                if (from_path, from) == (path, name) {
                    return Ok(());
                }
                self.copy_up(overlay, from_path, from)?;
                self.overlay_unlink(overlay, path, name)?;
            }
            (Some(Entry::Directory(_)), true) => self.overlay_rmdir(overlay, path, name)?,
        }
        self.copy_up(overlay, from_path, from)?;
        let upper = self.copy_up_dir(overlay, from_path)?;
        let (target, hidden) = self.make_room(overlay, path, name)?;
        self.rename((upper, from), (target, name))?;
        if is_dir && hidden {
            let ino = self.child(target, name)?.ok_or(Errno::NOENT)?;
            self.set_opaque(overlay, ino)?;
        }
        self.white_out(overlay, from_path, from)
    }
}

/// Whether overlayfs keeps an attribute to itself; an escaped one is the user's.
pub(super) fn is_private(prefix: &str, name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes
        .strip_prefix(prefix.as_bytes())
        .is_some_and(|rest| !rest.starts_with(b"overlay."))
}
