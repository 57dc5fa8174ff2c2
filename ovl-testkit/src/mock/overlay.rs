//! overlayfs: what a stack of directories shows, and where changes go.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use ovl_diff::{DeviceNumber, NodeKind};
use ovl_layout::XattrNamespace;
use ovl_mount::RedirectDir;
use rustix::io::Errno;

use super::State;
use super::data::Data;
use super::inode::{Body, Ino, Inode, Result, check_name};
use super::quota::Writer;

/// One overlay. Its directories are named by the path from its root.
#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) upper: Option<Ino>,
    pub(super) work: Option<Ino>,
    /// The directory that the kernel makes in it, where what it makes begins.
    pub(super) inner_work: Option<Ino>,
    pub(super) lowers: Vec<Ino>,
    pub(super) xattrs: XattrNamespace,
    pub(super) redirect: RedirectDir,
    pub(super) metacopy: bool,
    /// A user's own attributes under its prefix are kept.
    pub(super) escapes: bool,
}

impl Overlay {
    pub(super) fn private(&self) -> Private {
        Private {
            prefix: self.xattrs.prefix(),
            escapes: self.escapes,
        }
    }
}

/// Which attributes overlayfs keeps to itself.
#[derive(Clone, Copy)]
pub(super) struct Private {
    pub(super) prefix: &'static str,
    /// But for escaped ones, which are the user's.
    pub(super) escapes: bool,
}

impl Private {
    pub(super) fn has(self, name: &OsStr) -> bool {
        let rest = name.as_encoded_bytes().strip_prefix(self.prefix.as_bytes());
        rest.is_some_and(|rest| !(self.escapes && rest.starts_with(b"overlay.")))
    }
}

/// The directories that make up a merged one.
#[derive(Clone, Debug, Default)]
pub(super) struct Merged {
    pub(super) upper: Option<Ino>,
    /// Each with the number of its layer.
    pub(super) lowers: Vec<(usize, Ino)>,
}

impl Merged {
    /// The directory whose attributes show.
    pub(super) fn top(&self) -> Option<Ino> {
        let lower = self.lowers.first().map(|&(_, ino)| ino);
        self.upper.or(lower)
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    Directory(Merged),
    Object(Object),
}

/// What is no directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    pub(super) ino: Ino,
    pub(super) is_upper: bool,
    /// What holds the contents.
    pub(super) data: Ino,
}

/// The way to a name through the layers.
struct Search {
    names: Vec<OsString>,
    /// From the layers' roots.
    absolute: bool,
    is_dir: bool,
    stop: bool,
    /// No layer is looked at after this one.
    last: bool,
    /// The object last found has its data further down.
    metacopy: bool,
    redirected: bool,
}

/// One that has no name yet, or one more name of one.
enum Whiteout {
    New(Inode),
    Shared(Ino),
}

fn whiteout() -> Body {
    Body::Node(NodeKind::CharDevice(DeviceNumber::default()))
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

    fn is_metacopy(&self, overlay: &Overlay, ino: Ino) -> Result<bool> {
        let is_file = matches!(self.inode(ino)?.body, Body::Regular(_));
        Ok(is_file && self.overlay_xattr(overlay, ino, "metacopy")?.is_some())
    }

    fn redirect_of(&self, overlay: &Overlay, ino: Ino) -> Result<Option<Vec<OsString>>> {
        let Some(value) = self.overlay_xattr(overlay, ino, "redirect")? else {
            return Ok(None);
        };
        // An absolute one begins with an empty name.
        let parts = value.split(|&byte| byte == b'/').map(<[u8]>::to_vec);
        let names: Vec<OsString> = parts.map(OsString::from_vec).collect();
        let (first, rest) = names.split_first().ok_or(Errno::INVAL)?;
        let valid = match first.is_empty() {
            true => !rest.is_empty() && rest.iter().all(|name| !name.is_empty()),
            false => rest.is_empty(),
        };
        valid.then_some(Some(names)).ok_or(Errno::INVAL)
    }

    pub(super) fn overlay_lookup(
        &self,
        overlay: &Overlay,
        dir: &Merged,
        name: &OsStr,
    ) -> Result<Option<Entry>> {
        check_name(name)?;
        let follow = overlay.redirect != RedirectDir::NoFollow;
        let mut search = Search {
            names: vec![name.to_owned()],
            absolute: false,
            is_dir: false,
            stop: false,
            last: !follow && dir.lowers.is_empty(),
            metacopy: false,
            redirected: false,
        };
        let mut merged = Merged::default();
        let mut objects: Vec<(Ino, bool)> = Vec::new();
        if let Some(upper) = dir.upper
            && let Some(ino) = self.lookup_layer(overlay, upper, &mut search)?
        {
            match search.is_dir {
                true => merged.upper = Some(ino),
                false => objects.push((ino, true)),
            }
        }
        let roots: Vec<(usize, Ino)> = overlay.lowers.iter().copied().enumerate().collect();
        let (mut stack, mut at_roots) = (&dir.lowers, false);
        if search.absolute {
            (stack, at_roots) = (&roots, true);
        }
        let mut next = 0;
        while !search.stop
            && let Some(&(layer, base)) = stack.get(next)
        {
            next += 1;
            search.last = match follow {
                true => layer + 1 == roots.len(),
                false => next == stack.len(),
            };
            // So since Linux 6.16; before, only where the layer had the name.
            let refused = search.metacopy && !overlay.metacopy || search.redirected && !follow;
            if refused {
                return Err(Errno::PERM);
            }
            let Some(ino) = self.lookup_layer(overlay, base, &mut search)? else {
                continue;
            };
            match search.is_dir {
                true => merged.lowers.push((layer, ino)),
                false => objects.push((ino, false)),
            }
            if search.absolute && !at_roots {
                (stack, at_roots, next) = (&roots, true, layer + 1);
            }
        }
        if let (Some(&(ino, is_upper)), Some(&(data, _))) = (objects.first(), objects.last()) {
            return match search.metacopy {
                // Its data is nowhere.
                true => Err(Errno::IO),
                false => Ok(Some(Entry::Object(Object {
                    ino,
                    is_upper,
                    data,
                }))),
            };
        }
        Ok(merged.top().map(|_| Entry::Directory(merged)))
    }

    /// What a reader of a directory gets. In one with objects that were copied up, each is looked up
    /// for its inode number, and one that cannot be is left out.
    pub(super) fn overlay_list(
        &self,
        overlay: &Overlay,
        path: &[OsString],
    ) -> Result<BTreeMap<OsString, Ino>> {
        let dir = self.overlay_dir(overlay, path)?;
        let mut names = self.overlay_names(&dir)?;
        if let Some(upper) = dir.upper
            && self.overlay_xattr(overlay, upper, "impure")?.is_some()
        {
            let above = self.entries(upper)?;
            names.retain(|name, _| {
                !above.contains_key(name) || self.overlay_lookup(overlay, &dir, name).is_ok()
            });
        }
        Ok(names)
    }

    /// What one layer has at the end of the way, and what that says of the layers below.
    fn lookup_layer(
        &self,
        overlay: &Overlay,
        base: Ino,
        search: &mut Search,
    ) -> Result<Option<Ino>> {
        // Counted from the end, since a redirect can change what comes before.
        let (mut at, mut left) = (base, search.names.len());
        loop {
            let index = search.names.len() - left;
            let is_end = left == 1;
            let Some(ino) = self.child(at, &search.names[index])? else {
                return Ok(None);
            };
            let inode = self.inode(ino)?;
            let is_file = matches!(inode.body, Body::Regular(_));
            if inode.is_whiteout() || (is_end && search.metacopy && !is_file) {
                search.stop = true;
                return Ok(None);
            }
            if !inode.is_dir() {
                if search.is_dir || !is_end {
                    search.stop = true;
                    return Ok(None);
                }
                search.metacopy = self.is_metacopy(overlay, ino)?;
                search.stop = !search.metacopy;
                if search.metacopy && !search.last {
                    self.follow(overlay, ino, index, search)?;
                }
                return Ok(Some(ino));
            }
            search.is_dir |= is_end;
            if !search.last {
                if self.is_opaque(overlay, ino)? {
                    search.stop = true;
                } else {
                    self.follow(overlay, ino, index, search)?;
                }
            }
            if is_end {
                return Ok(Some(ino));
            }
            (at, left) = (ino, left - 1);
        }
    }

    /// Changes the way as an object on it says.
    fn follow(&self, overlay: &Overlay, ino: Ino, index: usize, search: &mut Search) -> Result<()> {
        let Some(redirect) = self.redirect_of(overlay, ino)? else {
            return Ok(());
        };
        search.redirected = true;
        match redirect.split_first() {
            Some((first, rest)) if first.is_empty() => {
                search.names.splice(..=index, rest.iter().cloned());
                (search.absolute, search.stop) = (true, false);
            }
            _ => {
                search.names.splice(index..=index, redirect);
            }
        }
        Ok(())
    }

    /// The merged directory at a path.
    pub(super) fn overlay_dir(&self, overlay: &Overlay, path: &[OsString]) -> Result<Merged> {
        // An opaque root hides nothing: the kernel ignores the mark there.
        let mut dir = Merged {
            upper: overlay.upper,
            lowers: overlay.lowers.iter().copied().enumerate().collect(),
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
        let lowers = dir.lowers.iter().map(|(_, ino)| ino);
        for &part in dir.upper.iter().chain(lowers) {
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

    fn set_opaque(&mut self, overlay: &Overlay, ino: Ino) -> Result<()> {
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
            _ => Whiteout::New(self.make(Writer::Overlay, work, upper, whiteout(), 0)?),
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
                let made = self.put(inode, upper, name)?;
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

    fn remove_upper_dir(
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
    fn note_impure(&mut self, overlay: &Overlay, ino: Ino, dir: Ino) -> Result<()> {
        if self.overlay_xattr(overlay, ino, "origin")?.is_some() {
            let impure = OsString::from([overlay.xattrs.prefix(), "impure"].concat());
            let xattrs = &mut self.inode_mut(dir)?.xattrs;
            xattrs.insert(impure, b"y".to_vec());
        }
        Ok(())
    }

    pub(super) fn overlay_rename(
        &mut self,
        overlay: &Overlay,
        (from_path, from): (&[OsString], &OsStr),
        (path, name): (&[OsString], &OsStr),
    ) -> Result<()> {
        if path.starts_with(&[from_path, &[from.to_owned()]].concat()) {
            return Err(Errno::INVAL);
        }
        if from_path.starts_with(&[path, &[name.to_owned()]].concat()) {
            return Err(Errno::NOTEMPTY);
        }
        let source = self.overlay_dir(overlay, from_path)?;
        let moved = self
            .overlay_lookup(overlay, &source, from)?
            .ok_or(Errno::NOENT)?;
        if (from_path, from) == (path, name) {
            return Ok(());
        }
        let is_dir = matches!(moved, Entry::Directory(_));
        let target = self.overlay_dir(overlay, path)?;
        let there = self.overlay_lookup(overlay, &target, name)?;
        match (&moved, &there) {
            (Entry::Directory(_), Some(Entry::Object(_))) => return Err(Errno::NOTDIR),
            (Entry::Object(_), Some(Entry::Directory(_))) => return Err(Errno::ISDIR),
            // Two names of one inode, which those below are not to an overlay.
            (Entry::Object(one), Some(Entry::Object(other)))
                if one.is_upper && other.is_upper && one.ino == other.ino =>
            {
                return Ok(());
            }
            _ => {}
        }
        if let Entry::Directory(dir) = &moved
            && !dir.lowers.is_empty()
            && overlay.redirect != RedirectDir::On
        {
            // Without redirects the contents below could not follow.
            return Err(Errno::XDEV);
        }
        // A directory that is in the upper layer alone is left to the file system to refuse.
        let mut occupied = false;
        if let Some(Entry::Directory(dir)) = &there
            && !self.overlay_names(dir)?.is_empty()
        {
            occupied = dir.lowers.is_empty();
            if !occupied {
                return Err(Errno::NOTEMPTY);
            }
        }
        let ino = self.copy_up(overlay, from_path, from)?;
        let upper = self.copy_up_dir(overlay, from_path)?;
        let target = self.copy_up_dir(overlay, path)?;
        let merges = match &moved {
            Entry::Directory(dir) => !dir.lowers.is_empty(),
            Entry::Object(_) => self.is_metacopy(overlay, ino)?,
        };
        if merges {
            self.set_redirect(overlay, (from_path, from), from_path != path)?;
        } else if is_dir && !self.overlay_dir(overlay, path)?.lowers.is_empty() {
            self.set_opaque(overlay, ino)?;
        }
        if occupied {
            return Err(self.occupied());
        }
        self.note_impure(overlay, ino, target)?;
        let leaves_whiteout = self.below_has(overlay, &source, from)?;
        match there {
            None if (leaves_whiteout || is_dir) && self.child(target, name)?.is_some() => {
                // The whiteout takes the place of what it makes place for, for good or until it goes.
                self.exchange((upper, from), (target, name))?;
                return match leaves_whiteout {
                    true => Ok(()),
                    false => self.unlink(upper, from),
                };
            }
            None => {}
            Some(Entry::Object(object)) if object.is_upper => self.unlink(target, name)?,
            Some(Entry::Object(_)) => {}
            Some(Entry::Directory(dir)) => {
                self.remove_upper_dir(overlay, (target, name), dir.upper)?;
            }
        }
        self.rename((upper, from), (target, name))?;
        if leaves_whiteout {
            self.add_by(Writer::Overlay, upper, (upper, from), whiteout(), 0)?;
        }
        Ok(())
    }

    pub(super) fn overlay_exchange(
        &mut self,
        overlay: &Overlay,
        one: (&[OsString], &OsStr),
        other: (&[OsString], &OsStr),
    ) -> Result<()> {
        let path_of = |(path, name): (&[OsString], &OsStr)| [path, &[name.to_owned()]].concat();
        if other.0.starts_with(&path_of(one)) || one.0.starts_with(&path_of(other)) {
            return Err(Errno::INVAL);
        }
        let mut found = Vec::new();
        for (path, name) in [one, other] {
            let dir = self.overlay_dir(overlay, path)?;
            let entry = self.overlay_lookup(overlay, &dir, name)?;
            found.push(entry.ok_or(Errno::NOENT)?);
        }
        if one == other {
            return Ok(());
        }
        if let [Entry::Object(first), Entry::Object(second)] = &*found
            && first.is_upper
            && second.is_upper
            && first.ino == second.ino
        {
            return Ok(());
        }
        let merges =
            |entry: &Entry| matches!(entry, Entry::Directory(dir) if !dir.lowers.is_empty());
        if found.iter().any(merges) && overlay.redirect != RedirectDir::On {
            return Err(Errno::XDEV);
        }
        let mut moved = Vec::new();
        for (path, name) in [one, other] {
            let ino = self.copy_up(overlay, path, name)?;
            moved.push((ino, self.copy_up_dir(overlay, path)?));
        }
        let sides = [(one, other.0), (other, one.0)];
        for ((entry, (ino, _)), (place, target)) in found.iter().zip(&moved).zip(sides) {
            let is_dir = matches!(entry, Entry::Directory(_));
            if merges(entry) || self.is_metacopy(overlay, *ino)? {
                self.set_redirect(overlay, place, one.0 != other.0)?;
            } else if is_dir && !self.overlay_dir(overlay, target)?.lowers.is_empty() {
                self.set_opaque(overlay, *ino)?;
            }
        }
        let (first, second) = (moved[0], moved[1]);
        self.note_impure(overlay, first.0, second.1)?;
        self.note_impure(overlay, second.0, first.1)?;
        self.exchange((first.1, one.1), (second.1, other.1))
    }

    /// Writes down where the upper object of that name has its contents below, before it is renamed
    /// or linked: under its name, or from the roots of the layers.
    fn set_redirect(
        &mut self,
        overlay: &Overlay,
        (path, name): (&[OsString], &OsStr),
        elsewhere: bool,
    ) -> Result<()> {
        let dir = self.overlay_dir(overlay, path)?;
        let upper = dir.upper.ok_or(Errno::NOENT)?;
        let ino = self.child(upper, name)?.ok_or(Errno::NOENT)?;
        let is_linked = match self.overlay_lookup(overlay, &dir, name)? {
            Some(Entry::Object(object)) => self.inode(object.data)?.nlink > 1,
            _ => false,
        };
        let absolute = elsewhere || is_linked;
        let own = self.redirect_of(overlay, ino)?;
        let is_absolute = |names: &[OsString]| names.first().is_some_and(|name| name.is_empty());
        if own
            .as_ref()
            .is_some_and(|own| !absolute || is_absolute(own))
        {
            return Ok(());
        }
        let mut names = own.unwrap_or_else(|| vec![name.to_owned()]);
        if absolute {
            for depth in (1..=path.len()).rev() {
                if is_absolute(&names) {
                    break;
                }
                let above = self.overlay_dir(overlay, &path[..depth])?.upper;
                let redirect = match above {
                    Some(above) if !self.is_opaque(overlay, above)? => {
                        self.redirect_of(overlay, above)?
                    }
                    _ => None,
                };
                let mut longer = redirect.unwrap_or_else(|| vec![path[depth - 1].clone()]);
                longer.append(&mut names);
                names = longer;
            }
            if !is_absolute(&names) {
                names.insert(0, OsString::new());
            }
        }
        let value = names.join(OsStr::new("/")).into_encoded_bytes();
        // As much as the kernel writes.
        if value.len() > 256 {
            return Err(Errno::XDEV);
        }
        let attribute = OsString::from(overlay.xattrs.redirect());
        self.inode_mut(ino)?.xattrs.insert(attribute, value);
        Ok(())
    }
}
