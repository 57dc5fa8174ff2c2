//! overlayfs: renames and exchanges, and the redirects that they leave.

use std::ffi::{OsStr, OsString};

use ovl_driver::FsType;
use ovl_mount::RedirectDir;
use rustix::io::Errno;

use super::State;
use super::inode::Result;
use super::overlay::{Entry, Overlay, whiteout};
use super::quota::Writer;

impl State {
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
        self.note_impure(overlay, ino, target)?;
        let leaves_whiteout = self.below_has(overlay, &source, from)?;
        if occupied {
            if leaves_whiteout && self.fs_type == FsType::EXT {
                // It puts the whiteout there first, and the old entry back once it refuses.
                self.entries_mut(upper)?;
            }
            return Err(self.occupied());
        }
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
    pub(super) fn set_redirect(
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
