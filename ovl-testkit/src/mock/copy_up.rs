//! overlayfs: where changes of a merged view go, and how they get there.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use ovl_mount::RedirectDir;
use rustix::io::Errno;

use super::State;
use super::data::Data;
use super::inode::{Body, Ino, Inode, Result};
use super::overlay::{Entry, Object, Overlay, whiteout};
use super::quota::Writer;

/// One that has no name yet, or one more name of one.
enum Whiteout {
    New(Box<Inode>),
    Shared(Ino),
}

impl State {
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
            let &(_, lower) = dir.lowers.first().ok_or(Errno::NOENT)?;
            upper = self.copy_into(overlay, (lower, lower, true), upper, &path[depth])?;
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
            Entry::Object(object) if object.is_upper => Ok(object.ino),
            Entry::Object(object) => {
                let upper = self.copy_up_dir(overlay, path)?;
                self.copy_into(overlay, (object.ino, object.data, true), upper, name)
            }
            Entry::Directory(_) => {
                let path: Vec<OsString> = [path, &[name.to_owned()]].concat();
                self.copy_up_dir(overlay, &path)
            }
        }
    }

    /// The upper file of that name, with its data.
    pub(super) fn copy_up_data(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<Ino> {
        let dir = self.overlay_dir(overlay, path)?;
        let found = self.overlay_lookup(overlay, &dir, name)?;
        let Object {
            ino,
            is_upper,
            data,
        } = match found.ok_or(Errno::NOENT)? {
            Entry::Object(object) => object,
            Entry::Directory(_) => return Err(Errno::ISDIR),
        };
        if !is_upper {
            let upper = self.copy_up_dir(overlay, path)?;
            return self.copy_into(overlay, (ino, data, false), upper, name);
        }
        if ino != data {
            let Body::Regular(contents) = self.inode(data)?.body.clone() else {
                return Err(Errno::INVAL);
            };
            let project = self.inode(ino)?.project;
            self.charge(Writer::Overlay, project, 0, contents.blocks() * 512)?;
            let now = self.tick();
            let clock = self.clock;
            let metacopy = OsString::from(overlay.xattrs.metacopy());
            let inode = self.inode_mut(ino)?;
            inode.body = Body::Regular(contents);
            (inode.mtime, inode.ctime) = (now, now);
            inode.xattrs.remove(&metacopy);
            inode.note_write(clock);
        }
        Ok(ino)
    }

    /// Copies an object up: it, what has its data, and whether that may stay below.
    fn copy_into(
        &mut self,
        overlay: &Overlay,
        (from, data, may_stay): (Ino, Ino, bool),
        dir: Ino,
        name: &OsStr,
    ) -> Result<Ino> {
        let original = self.inode(from)?.clone();
        let is_file = matches!(original.body, Body::Regular(_));
        let metacopy = overlay.metacopy && is_file && may_stay;
        let body = match &self.inode(data)?.body {
            Body::Directory(_) => Body::Directory(BTreeMap::new()),
            Body::Regular(contents) if metacopy => {
                let mut hole = Data::default();
                hole.set_len(contents.len());
                Body::Regular(hole)
            }
            other => other.clone(),
        };
        // Copying up is no change of the directory it goes to.
        let before = self.inode(dir)?.mtime;
        // A file begins without a name, which no directory must be there for.
        let born = match is_file {
            true => overlay.inner_work.ok_or(Errno::ROFS)?,
            false => self.work_dir(overlay)?,
        };
        let ino = self.add_by(Writer::Overlay, born, (dir, name), body, original.mode)?;
        let origin = OsString::from([overlay.xattrs.prefix(), "origin"].concat());
        let impure = OsString::from([overlay.xattrs.prefix(), "impure"].concat());
        let copy = self.inode_mut(ino)?;
        (copy.uid, copy.gid, copy.mtime) = (original.uid, original.gid, original.mtime);
        let private = overlay.private();
        let kept = original
            .xattrs
            .into_iter()
            .filter(|(name, _)| !private.has(name));
        copy.xattrs = kept.collect();
        copy.xattrs.insert(origin, from.to_be_bytes().to_vec());
        if metacopy {
            let name = OsString::from(overlay.xattrs.metacopy());
            copy.xattrs.insert(name, Vec::new());
        }
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
        let born = match hidden {
            true => self.work_dir(overlay)?,
            false => upper,
        };
        let made = self.make(Writer::Overlay, born, upper, body, mode)?;
        if hidden {
            self.unlink(upper, name)?;
        }
        let ino = self.put(made, upper, name)?;
        // With these, what is below must not change; else a directory that comes there later shows.
        let settled = overlay.metacopy || overlay.redirect == RedirectDir::On;
        let merged = !self.overlay_dir(overlay, path)?.lowers.is_empty();
        if is_dir && (hidden || (settled && merged)) {
            self.set_opaque(overlay, ino)?;
        }
        Ok(ino)
    }

    /// Where the kernel makes what it then moves to its place.
    fn work_dir(&self, overlay: &Overlay) -> Result<Ino> {
        let ino = overlay.inner_work.ok_or(Errno::ROFS)?;
        match self.inode(ino)?.nlink {
            0 => Err(Errno::NOENT),
            _ => Ok(ino),
        }
    }

    /// Refuses to move something from there.
    fn pass_work_dir(&self, overlay: &Overlay, ino: Ino, dir: Ino) -> Result<()> {
        self.refuse_foreign_project(ino, self.work_dir(overlay)?)?;
        self.refuse_foreign_project(ino, dir)
    }

    /// The upper part of a merged directory, for a name that nothing visible may have. Says whether
    /// a whiteout has it there.
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
        Ok((upper, hidden))
    }

    pub(super) fn set_opaque(&mut self, overlay: &Overlay, ino: Ino) -> Result<()> {
        let name = OsString::from(overlay.xattrs.opaque());
        self.inode_mut(ino)?.xattrs.insert(name, b"y".to_vec());
        Ok(())
    }

    /// What hides what is below a name, where something is, once its upper part is gone.
    fn make_whiteout(
        &mut self,
        overlay: &Overlay,
        path: &[OsString],
        name: &OsStr,
    ) -> Result<Option<Whiteout>> {
        let dir = self.overlay_dir(overlay, path)?;
        if !self.below_has(overlay, &dir, name)? {
            return Ok(None);
        }
        let upper = self.copy_up_dir(overlay, path)?;
        let work = self.work_dir(overlay)?;
        // All that a mount makes so are one inode.
        let root = overlay.upper.ok_or(Errno::ROFS)?;
        Ok(Some(match self.whiteouts.get(&root) {
            Some(&shared) if self.inode(shared).is_ok_and(|inode| inode.nlink > 0) => {
                self.pass_work_dir(overlay, shared, upper)?;
                Whiteout::Shared(shared)
            }
            _ => {
                let made = self.make(Writer::Overlay, work, upper, whiteout(), 0)?;
                Whiteout::New(Box::new(made))
            }
        }))
    }

    fn put_whiteout(
        &mut self,
        overlay: &Overlay,
        made: Option<Whiteout>,
        (upper, name): (Ino, &OsStr),
    ) -> Result<()> {
        match made {
            None => {}
            Some(Whiteout::Shared(shared)) => self.link(shared, upper, name)?,
            Some(Whiteout::New(inode)) => {
                let made = self.put(*inode, upper, name)?;
                let root = overlay.upper.ok_or(Errno::ROFS)?;
                self.whiteouts.insert(root, made);
            }
        }
        Ok(())
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
            Entry::Directory(_) => Err(Errno::ISDIR),
            Entry::Object(object) => {
                let upper = self.copy_up_dir(overlay, path)?;
                let whiteout = self.make_whiteout(overlay, path, name)?;
                if object.is_upper {
                    self.unlink(upper, name)?;
                }
                self.put_whiteout(overlay, whiteout, (upper, name))
            }
        }
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
        let whiteout = self.make_whiteout(overlay, path, name)?;
        self.remove_upper_dir(overlay, (upper, name), inner.upper)?;
        self.put_whiteout(overlay, whiteout, (upper, name))
    }

    pub(super) fn remove_upper_dir(
        &mut self,
        overlay: &Overlay,
        (upper, name): (Ino, &OsStr),
        dir: Option<Ino>,
    ) -> Result<()> {
        let Some(dir) = dir else {
            return Ok(());
        };
        if !self.entries(dir)?.is_empty() {
            // An empty one takes its place first.
            self.pass_work_dir(overlay, dir, upper)?;
        }
        // Only whiteouts are left in it.
        for whiteout in self.entries(dir)?.keys().cloned().collect::<Vec<_>>() {
            self.unlink(dir, &whiteout)?;
        }
        self.rmdir(upper, name)
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
        if self.is_metacopy(overlay, ino)? {
            self.set_redirect(overlay, (from_path, from), true)?;
        }
        let (upper, hidden) = self.make_room(overlay, path, name)?;
        if hidden {
            self.pass_work_dir(overlay, ino, upper)?;
            self.unlink(upper, name)?;
        }
        self.link(ino, upper, name)?;
        self.note_impure(overlay, ino, upper)
    }

    /// Marks a directory that gets an object which was copied up.
    pub(super) fn note_impure(&mut self, overlay: &Overlay, ino: Ino, dir: Ino) -> Result<()> {
        if self.overlay_xattr(overlay, ino, "origin")?.is_some() {
            let impure = OsString::from([overlay.xattrs.prefix(), "impure"].concat());
            let xattrs = &mut self.inode_mut(dir)?.xattrs;
            xattrs.insert(impure, b"y".to_vec());
        }
        Ok(())
    }
}
