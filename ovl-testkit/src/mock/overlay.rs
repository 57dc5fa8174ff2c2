//! overlayfs: what a stack of directories shows, and where changes go.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt as _;

use ovl_diff::{DeviceNumber, NodeKind};
use ovl_layout::XattrNamespace;
use ovl_mount::RedirectDir;
use rustix::io::Errno;

use super::State;
use super::inode::{Body, Ino, Result, check_name};

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

pub(super) fn whiteout() -> Body {
    Body::Node(NodeKind::CharDevice(DeviceNumber::default()))
}

impl State {
    pub(super) fn overlay_xattr(
        &self,
        overlay: &Overlay,
        ino: Ino,
        name: &str,
    ) -> Result<Option<&Vec<u8>>> {
        let name = [overlay.xattrs.prefix(), name].concat();
        Ok(self.inode(ino)?.xattrs.get(OsStr::new(&name)))
    }

    pub(super) fn is_opaque(&self, overlay: &Overlay, ino: Ino) -> Result<bool> {
        Ok(self
            .overlay_xattr(overlay, ino, "opaque")?
            .is_some_and(|value| value == b"y"))
    }

    pub(super) fn is_metacopy(&self, overlay: &Overlay, ino: Ino) -> Result<bool> {
        let is_file = matches!(self.inode(ino)?.body, Body::Regular(_));
        Ok(is_file && self.overlay_xattr(overlay, ino, "metacopy")?.is_some())
    }

    pub(super) fn redirect_of(&self, overlay: &Overlay, ino: Ino) -> Result<Option<Vec<OsString>>> {
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

    pub(super) fn below_has(&self, overlay: &Overlay, dir: &Merged, name: &OsStr) -> Result<bool> {
        let lowers = Merged {
            upper: None,
            lowers: dir.lowers.clone(),
        };
        Ok(self.overlay_lookup(overlay, &lowers, name)?.is_some())
    }
}
