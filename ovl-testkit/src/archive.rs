//! Small layer archives, written by hand.

use tar::{EntryType, Header};

/// Builds a layer archive entry by entry. Names are taken as they are, so hostile ones can be made.
#[derive(Debug)]
pub struct ArchiveBuilder {
    bytes: Vec<u8>,
    owner: (u32, u32),
}

impl ArchiveBuilder {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self {
            bytes: Vec::new(),
            owner: (0, 0),
        }
    }

    /// Gives the entries that follow to this user and group instead of root.
    #[must_use]
    pub fn owned_by(self, uid: u32, gid: u32) -> Self {
        let owner = (uid, gid);
        Self { owner, ..self }
    }

    /// Gives the next entry an extended attribute. Another one for the same entry makes the archive
    /// a bad one.
    #[must_use]
    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        let record = [format!(" SCHILY.xattr.{name}=").as_bytes(), value, b"\n"].concat();
        // The length counts its own digits.
        let mut len = record.len() + 1;
        while len != record.len() + len.to_string().len() {
            len += 1;
        }
        let record = [len.to_string().as_bytes(), &record].concat();
        self.entry("PaxHeaders/x", EntryType::XHeader, 0o644, "", &record)
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(name, EntryType::Directory, mode, "", b"")
    }

    /// Adds a regular file.
    #[must_use]
    pub fn file(self, name: &str, contents: &[u8]) -> Self {
        self.entry(name, EntryType::Regular, 0o644, "", contents)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Symlink, 0o777, target, b"")
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, EntryType::Link, 0o644, target, b"")
    }

    /// Adds an entry of any type, from the year 2001.
    ///
    /// # Panics
    ///
    /// For names and targets of more than 100 bytes.
    #[must_use]
    pub fn entry(
        mut self,
        name: &str,
        kind: EntryType,
        mode: u32,
        target: &str,
        contents: &[u8],
    ) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(self.owner.0.into());
        header.set_gid(self.owner.1.into());
        header.set_mtime(1_000_000_000);
        header.set_size(contents.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

impl Default for ArchiveBuilder {
    fn default() -> Self {
        Self::new()
    }
}
