//! The faults. Each is a small slip that the compiler does not find.

/// One fault: a text that stands once in a file, and what is put in its place.
pub(super) struct Mutant {
    /// What goes wrong.
    pub(super) name: &'static str,
    pub(super) file: &'static str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
}

impl Mutant {
    /// The packages whose tests may notice it, the nearest first.
    pub(super) fn packages(&self) -> impl Iterator<Item = &'static str> + use<> {
        let own = self.file.split('/').next().unwrap_or_default();
        let users = ["ovl-driver", "ovl-testkit", "ovl-diff", "ovl-cli"];
        std::iter::once(own).chain(users.into_iter().filter(move |user| *user != own))
    }

    /// Whether nothing shows it but that something waits forever.
    pub(super) fn hangs(&self) -> bool {
        HANGING.contains(&self.name)
    }
}

/// Faults by which something waits forever.
const HANGING: &[&str] = &[];

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "publish onto an existing name",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"        sync(&store.links, &store.layout.link_dir())?;
        let mode = RenameMode::NoReplace;"#,
        to: r#"        sync(&store.links, &store.layout.link_dir())?;
        let mode = RenameMode::Exchange;"#,
    },
    Mutant {
        name: "skip the sync of the layer",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"            sync_layer(tree, &self.dir).map_err"#,
        to: r#"            sync_layer(tree, &self.diff).map_err"#,
    },
    Mutant {
        name: "skip the sync of the links",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"        sync(&store.links, &store.layout.link_dir())?;
"#,
        to: r#"        let _ = &sync;
"#,
    },
    Mutant {
        name: "skip the sync of the home",
        file: "ovl-driver/src/blocking/mod.rs",
        from: r#"        if !self.durable() {
            return Ok(());
        }
        let synced"#,
        to: r#"        if !self.durable() || what == "published" {
            return Ok(());
        }
        let synced"#,
    },
    Mutant {
        name: "skip the sync of a seal",
        file: "ovl-driver/src/blocking/create.rs",
        from: r#"        if self.durable() {
            tree.sync(Node::Dir(&dir))"#,
        to: r#"        if self.durable() && is_sealed {
            tree.sync(Node::Dir(&dir))"#,
    },
    Mutant {
        name: "forget to seal the parent",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"            store.seal(parent, Locked::ByNobody)?;
"#,
        to: r#""#,
    },
    Mutant {
        name: "forget to note the child",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"            store.note_child(&self.own, parent, self.record.link)?;
"#,
        to: r#""#,
    },
    Mutant {
        name: "leak the link of a layer not published",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"        if self.linked && self.store.unlink_staged(&self.own, &self.name).is_err() {"#,
        to: r#"        if self.linked && self.published {"#,
    },
    Mutant {
        name: "leave the staging directory of a failure",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"        let _ = self.store.remove_staged(&self.own, &self.name);
    }"#,
        to: r#"    }"#,
    },
    Mutant {
        name: "leave the record unsynced",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"            record.as_bytes(),
            durable,
        )"#,
        to: r#"            record.as_bytes(),
            durable && self.published,
        )"#,
    },
    Mutant {
        name: "seal what is not on disk",
        file: "ovl-driver/src/blocking/create.rs",
        from: r#"        if self.durable() && !is_sealed"#,
        to: r#"        if !self.durable() && !is_sealed"#,
    },
    Mutant {
        name: "trust a parent that nobody waited for",
        file: "ovl-driver/src/blocking/create.rs",
        from: r#"            let waits = record.unsynced || "#,
        to: r#"            let waits = record.unsynced && record.root_opaque || "#,
    },
    Mutant {
        name: "seal for a layer that cannot be",
        file: "ovl-driver/src/blocking/staging.rs",
        from: r#"            store.refuse_existing(id)?;
"#,
        to: r#""#,
    },
    Mutant {
        name: "take half a layer away without a second look",
        file: "ovl-driver/src/blocking/check/gc.rs",
        from: r#"        if !seen.is_worthless() {"#,
        to: r#"        if seen.contents.is_some() {"#,
    },
    Mutant {
        name: "drop the lock of the parent early",
        file: "ovl-driver/src/blocking/create.rs",
        from: r#"            lock: Some(lock),"#,
        to: r#"            lock: Some(lock).filter(|_| false),"#,
    },
    Mutant {
        name: "drop the lock of a mount",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"        let layer = self.locked_layer(id, &lock)?;"#,
        to: r#"        let layer = self.locked_layer(id, &lock)?;
        drop(lock);"#,
    },
    Mutant {
        name: "take an unmount for granted that is busy",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"                Ok(()) | Err(MountError::NotMounted { .. }) => break,"#,
        to: r#"                Ok(()) | Err(MountError::NotMounted { .. } | MountError::Busy { .. }) => break,"#,
    },
    Mutant {
        name: "unmount with one hold left",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"        if holds.total() > 0 {
            self.write_holds(&own, id, &holds)?;
            return Ok(holds.total());"#,
        to: r#"        if holds.total() > 1 {
            self.write_holds(&own, id, &holds)?;
            return Ok(holds.total());"#,
    },
    Mutant {
        name: "keep the mount point after an unmount",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"        match tree.remove_dir(dir, OsStr::new(names::MERGED)) {"#,
        to: r#"        match tree.metadata(Node::Dir(dir)).map(drop) {"#,
    },
    Mutant {
        name: "believe a hold of another boot",
        file: "ovl-driver/src/blocking/mounted.rs",
        from: r#".filter(|holds| holds.boot == boot)"#,
        to: r#".filter(|holds| !holds.boot.is_empty() && !boot.is_empty())"#,
    },
    Mutant {
        name: "remove a layer that others stand on",
        file: "ovl-driver/src/blocking/remove.rs",
        from: r#"        if !children.is_empty() {"#,
        to: r#"        if !children.is_empty() && !force {"#,
    },
    Mutant {
        name: "remove without looking at staging",
        file: "ovl-driver/src/blocking/remove.rs",
        from: r#"        if self.is_in_flight(id, None)? {"#,
        to: r#"        if !force && self.is_in_flight(id, None)? && force {"#,
    },
    Mutant {
        name: "leave the link of a removed layer",
        file: "ovl-driver/src/blocking/remove.rs",
        from: r#"            let _ = self.unlink_layer(&own, id, link);
"#,
        to: r#""#,
    },
    Mutant {
        name: "take an unreadable lower file for none",
        file: "ovl-driver/src/blocking/layer.rs",
        from: r#"        let chain = match read(names::LOWER)? {"#,
        to: r#"        let chain = match read(names::LOWER).unwrap_or(None) {"#,
    },
    Mutant {
        name: "believe a chain that the parent does not have",
        file: "ovl-driver/src/blocking/layer.rs",
        from: r#"chain.links() != known.links)"#,
        to: r#"chain.depth() > known.links.len())"#,
    },
    Mutant {
        name: "believe a link that leads to another layer",
        file: "ovl-driver/src/blocking/layer.rs",
        from: r#"        if below.link != link {"#,
        to: r#"        if below.link != link && at > 600 {"#,
    },
    Mutant {
        name: "believe in a known layer whatever has become of it",
        file: "ovl-driver/src/blocking/known.rs",
        from: r#"known.seen.dir != self.dir_stamp(&id)?"#,
        to: r#"self.dir_stamp(&id).is_none()"#,
    },
    Mutant {
        name: "remember a layer that may change in the same tick",
        file: "ovl-driver/src/blocking/known.rs",
        from: r#"(!moment.is_young(dir)).then_some(Seen { links, dir })"#,
        to: r#"Some(Seen { links, dir })"#,
    },
    Mutant {
        name: "believe in a known link wherever it leads",
        file: "ovl-driver/src/blocking/known.rs",
        from: r#"if self.resolve(&id, link).ok()? != id {"#,
        to: r#"if self.resolve(&id, link).is_err() {"#,
    },
    Mutant {
        name: "allow one layer too many",
        file: "ovl-layout/src/chain.rs",
        from: r#"depth > max_depth"#,
        to: r#"depth > max_depth + 1"#,
    },
    Mutant {
        name: "accept an empty lower file",
        file: "ovl-layout/src/chain.rs",
        from: r#"return Err(LowerFileError::Empty)"#,
        to: r#"return Ok(Self::default())"#,
    },
    Mutant {
        name: "take mount data of one byte too many",
        file: "ovl-mount/src/call.rs",
        from: r#"        if len > limit {
            let strategy"#,
        to: r#"        if len > limit + 1 {
            let strategy"#,
    },
    Mutant {
        name: "leave a comma as it is",
        file: "ovl-mount/src/call.rs",
        from: r#"        if matches!(byte, b'\\' | b',' | b':') {"#,
        to: r#"        if matches!(byte, b'\\' | b':') {"#,
    },
    Mutant {
        name: "turn the lower layers round",
        file: "ovl-mount/src/call.rs",
        from: r#"            .chain(links.map(|link|"#,
        to: r#"            .chain(links.rev().map(|link|"#,
    },
    Mutant {
        name: "take settings of one byte too many",
        file: "ovl-mount/src/call.rs",
        from: r#"            if len > MAX_SETTING_LEN {"#,
        to: r#"            if len > MAX_SETTING_LEN + 1 {"#,
    },
    Mutant {
        name: "mount a read-only layer without its own contents",
        file: "ovl-mount/src/plan.rs",
        from: r#"usize::from(self.access == Access::ReadOnly)"#,
        to: r#"usize::from(self.access == Access::Writable)"#,
    },
    Mutant {
        name: "whiteout names that are not below",
        file: "ovl-diff/src/apply.rs",
        from: r#"        if !below.exists() {
            return Ok(());
        }
"#,
        to: r#""#,
    },
    Mutant {
        name: "leave the names of a replaced object",
        file: "ovl-diff/src/apply.rs",
        from: r#"                remove_any(self.position.view(), dir, name)
                    .map_err(|error| error.below(self.position.path()))?;
"#,
        to: r#""#,
    },
    Mutant {
        name: "follow more links than the kernel",
        file: "ovl-diff/src/apply.rs",
        from: r#"            if links > MAX_LINKS {"#,
        to: r#"            if links > MAX_LINKS * 1000 {"#,
    },
    Mutant {
        name: "let a link lead out of the root",
        file: "ovl-diff/src/apply.rs",
        from: r#"                    return Err(Stop::Bad(BadReason::LinkEscape));"#,
        to: r#"                    continue;"#,
    },
    Mutant {
        name: "accept the device of a whiteout",
        file: "ovl-diff/src/apply.rs",
        from: r#"            && number == DeviceNumber::default()"#,
        to: r#"            && number == DeviceNumber::default()
            && entry.size > 0"#,
    },
    Mutant {
        name: "forget the hole at the end",
        file: "ovl-diff/src/apply/files.rs",
        from: r#"        if end < size {"#,
        to: r#"        if end + 1 == size {"#,
    },
    Mutant {
        name: "leave the times of directories",
        file: "ovl-diff/src/place.rs",
        from: r#"(&frame.upper, frame.mtime, frame.touched) {"#,
        to: r#"(&frame.upper, frame.mtime, frame.touched && index > 0) {"#,
    },
    Mutant {
        name: "keep what an opaque directory hides",
        file: "ovl-diff/src/place.rs",
        from: r#"        .on("mark as opaque", path)?;
    purge(view, dir, path)"#,
        to: r#"        .on("mark as opaque", path)?;
    let _ = purge;
    Ok(())"#,
    },
    Mutant {
        name: "give implied parents no attributes",
        file: "ovl-diff/src/place.rs",
        from: r#"            (Some(metadata), Some(below)) => {
                let (from, to)"#,
        to: r#"            (Some(metadata), Some(below)) if metadata.nlink > 1000 => {
                let (from, to)"#,
    },
    Mutant {
        name: "leave a whiteout out of a diff",
        file: "ovl-diff/src/native.rs",
        from: r#"                emitter.whiteout(parent, name, whiteout.as_ref())?;
"#,
        to: r#"                let _ = (whiteout, parent);
"#,
    },
    Mutant {
        name: "leave the mark of an opaque directory out",
        file: "ovl-diff/src/native.rs",
        from: r#"            emitter.opaque(path, metadata)?;
            ViewDir::default()"#,
        to: r#"            ViewDir::default()"#,
    },
    Mutant {
        name: "ignore what changes under a diff",
        file: "ovl-diff/src/emit.rs",
        from: r#"        Some(after) if identity(&after) == identity(before) => Ok(()),"#,
        to: r#"        Some(after) if identity(&after).0 == identity(before).0 => Ok(()),"#,
    },
    Mutant {
        name: "write hard links as files",
        file: "ovl-diff/src/emit.rs",
        from: r#"        if metadata.nlink > 1 {
            if let"#,
        to: r#"        if metadata.nlink > 1000 {
            if let"#,
    },
    Mutant {
        name: "ignore a sync that fails",
        file: "ovl-diff/src/durable.rs",
        from: r#"        tree.sync(node).on("sync", &self.path)"#,
        to: r#"        tree.sync(node).on("sync", &self.path).or(Ok(()))"#,
    },
    Mutant {
        name: "give a project id out that is in use",
        file: "ovl-quota/src/control.rs",
        from: r#"                Ok(usage) if usage.is_empty() => break Ok(id),"#,
        to: r#"                Ok(_) if id.get() > 0 => break Ok(id),"#,
    },
    Mutant {
        name: "leave the limits of a released project",
        file: "ovl-quota/src/control.rs",
        from: r#"        self.set_limits(dir, project, &Limits::UNLIMITED)?;
        self.assign"#,
        to: r#"        self.assign"#,
    },
    Mutant {
        name: "note a first hold without a lock",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"        let _noting = self.lock_holds(own, LockKind::Shared)?;
        let (tree, contents)"#,
        to: r#"        let (tree, contents)"#,
    },
    Mutant {
        name: "ask the kernel about a layer that another may be mounting",
        file: "ovl-driver/src/blocking/mounted.rs",
        from: "match self.glance_at_mount(&own, &layer.id)?",
        to: "match self.read_mounted(&own, &layer.id)?",
    },
    Mutant {
        name: "take no answer for the end of a file system",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: "!matches!(alive, Ok(Some(false)))",
        to: "matches!(alive, Ok(Some(true)))",
    },
    Mutant {
        name: "take a layer that only a mount would open for one that was opened",
        file: "ovl-driver/src/blocking/known.rs",
        from: r#"        if contents == Contents::Opened && known.contents != contents {
            return None;
        }
"#,
        to: "",
    },
    Mutant {
        name: "never wait for a mount that is busy for a moment",
        file: "ovl-driver/src/blocking/mounting.rs",
        from: r#"(MountError::Busy { .. }, Some(pause)) => std"#,
        to: r#"(MountError::Busy { .. }, Some(pause)) if pause.is_zero() => std"#,
    },
    Mutant {
        name: "remove the holds when the lock is gone",
        file: "ovl-driver/src/blocking/remove.rs",
        from: r#"        files::remove(tree, &own.holds, id.as_str())
            .map_err(|error| Error::io("remove the holds of", &path, error))?;
        tree.rename(&self.home, id.as_ref(), &own.trash, &trash_name, mode)
            .map_err(|error| Error::io("remove", &path, error))?;
        // Nobody waits for the disk but whoever removes.
        drop(lock);"#,
        to: r#"        tree.rename(&self.home, id.as_ref(), &own.trash, &trash_name, mode)
            .map_err(|error| Error::io("remove", &path, error))?;
        // Nobody waits for the disk but whoever removes.
        drop(lock);
        files::remove(tree, &own.holds, id.as_str())
            .map_err(|error| Error::io("remove the holds of", &path, error))?;"#,
    },
    Mutant {
        name: "forget that what was copied was volatile",
        file: "ovl-driver/src/blocking/volatile.rs",
        from: r#"            copy.volatile = noted.and_then(|record| record.volatile.clone());"#,
        to: r#"            copy.volatile = noted.and(None);"#,
    },
    Mutant {
        name: "forget what was lost already",
        file: "ovl-driver/src/blocking/volatile.rs",
        from: r#"            Some(noted) => *noted == self.boot()?,"#,
        to: r#"            Some(noted) => !noted.is_empty(),"#,
    },
    Mutant {
        name: "take the note of another keeper away",
        file: "ovl-cli/src/keeper.rs",
        from: r#"pid == own && start_time(own) == Some(started)"#,
        to: r#"pid == own || !started.is_empty()"#,
    },
    Mutant {
        name: "stack one layer more than the kernel",
        file: "ovl-mount/src/plan.rs",
        from: r#"lowers > KERNEL_MAX_LOWERS {"#,
        to: r#"lowers > KERNEL_MAX_LOWERS + 1 {"#,
    },
    Mutant {
        name: "mount fewer layers by fd than there are",
        file: "ovl-mount/src/plan.rs",
        from: r#"&& ids != self.chain.depth()"#,
        to: r#"&& ids > self.chain.depth()"#,
    },
    Mutant {
        name: "take a whiteout with contents",
        file: "ovl-diff/src/apply.rs",
        from: r#"            EntryKind::Regular => entry.size == 0,"#,
        to: r#"            EntryKind::Regular => entry.size < 2,"#,
    },
    Mutant {
        name: "show through a whiteout what is below",
        file: "ovl-diff/src/place.rs",
        from: r#"            _ if over_whiteout => (ViewDir::default(), None),"#,
        to: r#"            _ if over_whiteout && name.is_empty() => (ViewDir::default(), None),"#,
    },
    Mutant {
        name: "lose what a socket hides",
        file: "ovl-diff/src/emit.rs",
        from: r#"        if hides {
            self.whiteout(parent, name, None)"#,
        to: r#"        if hides && parent == Path::new("") {
            self.whiteout(parent, name, None)"#,
    },
    Mutant {
        name: "ignore a link that changes under a diff",
        file: "ovl-diff/src/emit.rs",
        from: r#"                refuse_changed(self.view, node, metadata, path)?;
                let kind = MemberKind::Symlink {"#,
        to: r#"                let kind = MemberKind::Symlink {"#,
    },
    Mutant {
        name: "leave an opaque root out of the record",
        file: "ovl-layout/src/record.rs",
        from: r#"        if self.root_opaque {"#,
        to: r#"        if self.root_opaque && self.volatile.is_some() {"#,
    },
    Mutant {
        name: "take settings with a depth of nothing",
        file: "ovl-layout/src/record.rs",
        from: r#"if (1..=MAX_DEPTH).contains"#,
        to: r#"if (0..=MAX_DEPTH).contains"#,
    },
    Mutant {
        name: "take over a project of somebody else",
        file: "ovl-quota/src/control.rs",
        from: r#"            if !range.contains(project) {"#,
        to: r#"            if !range.contains(project) && limits == Limits::UNLIMITED {"#,
    },
    Mutant {
        name: "lose an id whose directory was not tagged",
        file: "ovl-quota/src/control.rs",
        from: r#"        if let Err(error) = self.assign(dir, Some(project)) {
            ids.release(project);"#,
        to: r#"        if let Err(error) = self.assign(dir, Some(project)) {"#,
    },
    Mutant {
        name: "let root exceed the limits of a layer",
        file: "ovl-driver/src/blocking/quota.rs",
        from: r#"        let kept = self.kernel.quota().keep_to_limits();"#,
        to: r#"        let kept = Ok::<_, io::Error>(KeepsToLimits::default());"#,
    },
];
