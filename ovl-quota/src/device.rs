//! The block device below a directory, for kernels without `quotactl_fd(2)`.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor, stat};

/// Path of the block device whose file system `dir` is on: the source of a mount of it, or udev's
/// link by number. Whatever is named there is taken only if it is that device.
pub(crate) fn device_of(dir: BorrowedFd<'_>) -> io::Result<CString> {
    let device = fstat(dir)?.st_dev;
    let number = format!("{}:{}", major(device), minor(device));
    let mut candidates = mount_sources(&fs::read("/proc/self/mountinfo")?, &number);
    candidates.push(OsString::from(format!("/dev/block/{number}")));
    candidates
        .into_iter()
        .find(|path| is_block_device(path.as_ref(), device))
        .and_then(|path| CString::new(path.as_bytes()).ok())
        .ok_or_else(|| {
            let message = format!(
                "this kernel has no quotactl_fd (Linux 5.14), and the block device {number} is not \
                 in /dev; create its node there"
            );
            io::Error::new(io::ErrorKind::Unsupported, message)
        })
}

fn is_block_device(path: &Path, device: rustix::fs::Dev) -> bool {
    stat(path).is_ok_and(|found| {
        FileType::from_raw_mode(found.st_mode) == FileType::BlockDevice && found.st_rdev == device
    })
}

/// The sources of all mounts of the device `number`, as `proc_pid_mountinfo(5)` lists them.
fn mount_sources(mountinfo: &[u8], number: &str) -> Vec<OsString> {
    let mut sources = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ');
        if fields.nth(2) != Some(number.as_bytes()) {
            continue;
        }
        // A number of optional fields ends with `-`; then come the type and the source.
        if let Some(source) = fields.skip_while(|&field| field != b"-").nth(2) {
            let source = OsString::from_vec(unescape(source));
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
    }
    sources
}

/// Reads `\040` and the like, with which the kernel writes spaces, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (
                b'\\',
                [
                    a @ b'0'..=b'3',
                    b @ b'0'..=b'7',
                    c @ b'0'..=b'7',
                    after @ ..,
                ],
            ) => {
                text.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => text.push(byte),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{mount_sources, unescape};

    const MOUNTS: &[u8] = b"\
        22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        30 22 8:16 / /data rw shared:2 master:1 - xfs /dev/sd\\040b rw,prjquota\n\
        31 22 8:16 /sub /bind rw - xfs /dev/sd\\040b rw,prjquota\n\
        32 22 8:1 / /again rw - ext4 /dev/sda1 rw\n\
        33 22 8:166 / /other rw - xfs /dev/sdk6 rw\n";

    #[test]
    fn sources_of_every_mount_of_a_device_are_found_once() {
        assert_eq!(mount_sources(MOUNTS, "8:16"), ["/dev/sd b"]);
        assert_eq!(mount_sources(MOUNTS, "8:1"), ["/dev/root", "/dev/sda1"]);
        assert!(mount_sources(MOUNTS, "8:17").is_empty());
    }

    #[test]
    fn short_lines_are_skipped() {
        assert!(mount_sources(b"\n1 2 8:1\n1 2 8:1 / / rw - ext4\n", "8:1").is_empty());
    }

    #[test]
    fn octal_escapes_are_read_and_other_backslashes_kept() {
        assert_eq!(unescape(br"a\040b\134c\011"), b"a b\\c\t");
        assert_eq!(unescape(br"\04 \8 \400 \"), br"\04 \8 \400 \");
    }
}
