//! The first file system of a guest: an archive as `cpio -H newc` writes it.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::kernel::Kernel;
use crate::e2e::Programs;

/// What the suites need, in any order.
const MODULES: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "xfs",
    "ext4",
    "quota_v2",
    "overlay",
];

/// Where the guest finds its parts.
pub(super) const OVL: &str = "/ovl";
pub(super) const MODULE_DIR: &str = "/modules";

/// Writes an archive with the programs, of which this one is the first process, and the modules.
pub(super) fn write(kernel: &Kernel, programs: &Programs, path: &Path) -> Result<()> {
    let mut archive = Archive::default();
    for dir in ["dev", "proc", "sys", "mnt", "tmp", "modules"] {
        archive.add(dir, 0o040_755, (0, 0), &[]);
    }
    // The kernel opens it for the first process before that can make it.
    archive.add("dev/console", 0o020_600, (5, 1), &[]);
    archive.add("init", 0o100_755, (0, 0), &fs::read(&programs.xtask)?);
    archive.add("ovl", 0o100_755, (0, 0), &fs::read(&programs.ovl)?);
    let modules = kernel.modules(&MODULES)?;
    for (number, (name, module)) in modules.iter().enumerate() {
        let name = format!("modules/{number:02}-{name}.ko");
        archive.add(&name, 0o100_644, (0, 0), module);
    }
    fs::write(path, archive.finish())?;
    Ok(())
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        self.entries += 1;
        let numbers = [
            self.entries,
            mode as usize,
            0,
            0,
            1,
            0,
            contents.len(),
            0,
            0,
            device.0 as usize,
            device.1 as usize,
            name.len() + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for number in numbers {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_the_contents_in_whole_words() {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, (0, 0), b"12345");
        let bytes = archive.finish();
        let (header, rest) = bytes.split_at(110);
        assert_eq!(&header[..22], b"07070100000001000081ed");
        assert_eq!(&header[54..62], b"00000005");
        assert_eq!(&header[94..102], b"00000005");
        assert_eq!(&rest[..6], b"init\0\0");
        assert_eq!(&rest[6..14], b"12345\0\0\0");
        assert_eq!(&rest[14..20], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
