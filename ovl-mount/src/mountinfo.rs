//! Reads `/proc/<pid>/mountinfo`: pure functions over its bytes.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use crate::backend::MountInfo;

/// Reads the whole table, in its order.
///
/// A mount whose directory was removed meanwhile is listed under the path that the directory had.
///
/// # Errors
///
/// [`MalformedLine`]; a table that is not understood is not acted upon.
///
/// # References
///
/// `proc_pid_mountinfo(5)`; `show_mountinfo` in `fs/proc_namespace.c`.
pub(crate) fn parse(table: &[u8]) -> Result<Vec<MountInfo>, MalformedLine> {
    let table = table.strip_suffix(b"\n").unwrap_or(table);
    if table.is_empty() {
        return Ok(Vec::new());
    }
    table
        .split(|&byte| byte == b'\n')
        .enumerate()
        .map(|(index, line)| {
            parse_line(line).ok_or_else(|| MalformedLine {
                number: index + 1,
                line: String::from_utf8_lossy(line).into_owned(),
            })
        })
        .collect()
}

/// A line that does not have the fields of the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of the mount table is malformed: {line:?}")]
pub(crate) struct MalformedLine {
    /// Counted from 1.
    number: usize,
    line: String,
}

/// `id parent major:minor root target options [optional...] - type source super-options`
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    // An empty source leaves two spaces in a row, so runs of spaces are not merged.
    let mut fields = line.split(|&byte| byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let target = fields.nth(3)?;
    let options = fields.next()?;
    let mut shared = false;
    fields.find(|field| {
        shared |= field.starts_with(b"shared:");
        *field == b"-"
    })?;
    let fs_type = fields.next()?;
    let super_options = fields.nth(1)?;
    let read_only = is_read_only(options) || is_read_only(super_options);
    let fs_type = String::from_utf8_lossy(&unescape(fs_type)).into_owned();
    Some(MountInfo::new(id, path(target)?, fs_type, read_only).shared(shared))
}

/// The kernel writes `ro` or `rw` first. What follows in the file system's options is the file
/// system's own, and can hold any text.
fn is_read_only(options: &[u8]) -> bool {
    options.split(|&byte| byte == b',').next() == Some(b"ro")
}

fn path(field: &[u8]) -> Option<PathBuf> {
    if !field.starts_with(b"/") {
        return None;
    }
    // The kernel never writes two slashes in a row anywhere else.
    let field = field.strip_suffix(b"//deleted").unwrap_or(field);
    Some(OsString::from_vec(unescape(field)).into())
}

/// Turns a backslash and three octal digits into the byte: the kernel writes space, tab, newline
/// and backslash so.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (
                b'\\',
                &[
                    high @ b'0'..=b'3',
                    middle @ b'0'..=b'7',
                    low @ b'0'..=b'7',
                    ref after @ ..,
                ],
            ) => {
                bytes.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::Path;

    use super::*;

    fn one(line: &[u8]) -> MountInfo {
        let mut mounts = parse(line).unwrap();
        assert_eq!(mounts.len(), 1);
        mounts.remove(0)
    }

    fn target_of(field: &[u8]) -> PathBuf {
        let line = [b"7 1 0:1 / ".as_slice(), field, b" rw - tmpfs t rw"].concat();
        one(&line).target
    }

    #[test]
    fn lines_keep_their_order_and_fields() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            36 22 0:30 / /h/top/merged rw,nodev - overlay overlay rw,lowerdir=/h/l/A,upperdir=/h/u\n";
        let expected = [
            MountInfo::new(22, "/".into(), "ext4".into(), false).shared(true),
            MountInfo::new(36, "/h/top/merged".into(), "overlay".into(), false),
        ];
        assert_eq!(parse(table).unwrap(), expected);
    }

    #[test]
    fn any_number_of_optional_fields_is_skipped() {
        for optional in [
            "",
            "shared:5 ",
            "shared:5 master:3 propagate_from:2 unbindable ",
        ] {
            let line = format!("9 1 0:5 / /m rw {optional}- xfs /dev/b rw");
            let shared = optional.starts_with("shared");
            assert_eq!(
                one(line.as_bytes()),
                MountInfo::new(9, "/m".into(), "xfs".into(), false).shared(shared)
            );
        }
    }

    #[test]
    fn read_only_means_the_mount_or_its_file_system() {
        let read_only =
            |mount, fs| one(format!("9 1 0:5 / /m {mount} - xfs /dev/b {fs}").as_bytes()).read_only;
        assert!(!read_only("rw,nosuid", "rw,noquota"));
        assert!(read_only("ro,nosuid", "rw"));
        assert!(read_only("rw", "ro,lowerdir=/a:/b"));
        assert!(read_only("ro", "ro"));
    }

    #[test]
    fn text_of_a_file_system_s_own_option_does_not_make_it_read_only() {
        let line = br#"9 1 0:5 / /m rw - overlay overlay rw,context="a,ro,b",lowerdir=/ro"#;
        assert!(!one(line).read_only);
    }

    #[test]
    fn escapes_become_the_bytes_they_stand_for() {
        assert_eq!(target_of(br"/a\040b"), Path::new("/a b"));
        assert_eq!(target_of(br"/a\011b\012c"), Path::new("/a\tb\nc"));
        assert_eq!(target_of(br"/a\134b"), Path::new(r"/a\b"));
        // An escaped backslash does not begin another escape.
        assert_eq!(target_of(br"/a\134040"), Path::new(r"/a\040"));
        assert_eq!(target_of(br"/\377"), Path::new(OsStr::from_bytes(b"/\xff")));
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        for field in [r"/a\", r"/a\0", r"/a\04", r"/a\049", r"/a\400", r"/a\x20"] {
            assert_eq!(target_of(field.as_bytes()), Path::new(field));
        }
    }

    #[test]
    fn a_removed_mount_point_is_listed_under_its_old_path() {
        assert_eq!(
            target_of(b"/h/top/merged//deleted"),
            Path::new("/h/top/merged")
        );
        // A directory of that name is none.
        assert_eq!(target_of(b"/h/deleted"), Path::new("/h/deleted"));
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_kept() {
        assert_eq!(
            target_of(b"/\xff\xfe/m"),
            Path::new(OsStr::from_bytes(b"/\xff\xfe/m"))
        );
    }

    #[test]
    fn an_empty_source_is_a_field() {
        let mount = one(b"9 1 0:5 / /m rw - tmpfs  ro,size=1k");
        assert_eq!(mount, MountInfo::new(9, "/m".into(), "tmpfs".into(), true));
    }

    #[test]
    fn an_empty_table_has_no_mounts_and_a_missing_newline_is_tolerated() {
        assert_eq!(parse(b""), Ok(Vec::new()));
        assert_eq!(parse(b"\n"), Ok(Vec::new()));
        assert_eq!(parse(b"9 1 0:5 / /m rw - xfs /dev/b rw").unwrap().len(), 1);
    }

    #[test]
    fn a_line_without_its_fields_is_refused_with_its_number() {
        let good = "9 1 0:5 / /m rw - xfs /dev/b rw";
        for bad in [
            "",
            "x 1 0:5 / /m rw - xfs /dev/b rw",
            "-1 1 0:5 / /m rw - xfs /dev/b rw",
            "9 1 0:5 / m rw - xfs /dev/b rw",
            "9 1 0:5 / /m rw xfs /dev/b rw",
            "9 1 0:5 / /m rw - xfs /dev/b",
            "9 1 0:5 /",
        ] {
            let error = parse(format!("{good}\n{bad}\n{good}\n").as_bytes()).unwrap_err();
            assert_eq!(
                error,
                MalformedLine {
                    number: 2,
                    line: bad.to_owned()
                }
            );
        }
    }
}
