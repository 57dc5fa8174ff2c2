//! The same archives by ovl, GNU tar, bsdtar, Python and the `tar` crate: what they extract must be
//! the same, but where the corpus says what ovl does instead, and why.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use ovl_diff::{ApplyOptions, HostTree, TreeBackend as _, View};
use ovl_layout::XattrNamespace;
use sha2::Digest as _;

use super::builder::{Header, archive, long, pax};
use super::sparse::FORMATS;
use crate::support::{is_root, skip};

/// What is extracted: names and all that readers are compared by.
type Tree = BTreeMap<String, String>;

/// One archive.
struct Case {
    what: &'static str,
    bytes: Vec<u8>,
    /// Whether ovl takes it.
    taken: bool,
    /// Why ovl does what some other reader does not; empty where all agree.
    choice: &'static str,
    /// The only reader that may differ; empty for any.
    other: &'static str,
    alone: bool,
}

fn agreed(what: &'static str, parts: &[&[u8]]) -> Case {
    chosen(what, parts, true, "")
}

fn refused(what: &'static str, parts: &[&[u8]], choice: &'static str) -> Case {
    chosen(what, parts, false, choice)
}

fn chosen(what: &'static str, parts: &[&[u8]], taken: bool, choice: &'static str) -> Case {
    let bytes = archive(parts);
    Case {
        what,
        bytes,
        taken,
        choice,
        other: "",
        alone: false,
    }
}

fn file(name: &str) -> Vec<u8> {
    Header::file(name).holding(name)
}

fn corpus() -> Vec<Case> {
    let mut cases = names();
    cases.extend(numbers());
    cases.extend(links_and_kinds());
    cases.extend(framing());
    cases.extend(sparse_files());
    cases
}

fn names() -> Vec<Case> {
    let deep = format!("{}/{}", "d".repeat(150), "n".repeat(90));
    let prefixed = Header::file("name").set(345, b"some/prefix").holding("x");
    let gnu_prefix = Header::file("name")
        .gnu()
        .set(345, b"noprefix")
        .holding("x");
    vec![
        agreed("a plain file", &[&file("a")]),
        agreed("an absolute name is one below the root", &[&file("/a/b")]),
        agreed("a name that is not clean", &[&file("./a//b/./c")]),
        agreed(
            "bytes that are no text",
            &[&Header::file(b"\xff\xfe\n\x1b").holding("x")],
        ),
        agreed(
            "a name of 100 bytes without NUL",
            &[&file(&"n".repeat(100))],
        ),
        agreed("a prefix", &[&prefixed]),
        chosen(
            "no prefix in a GNU header",
            &[&gnu_prefix],
            true,
            "GNU tar has times and maps where ustar has the prefix; the tar crate goes by the first reading",
        ),
        agreed(
            "a PAX path",
            &[&pax(&[("path", deep.as_bytes())]), &file("short")],
        ),
        agreed(
            "a GNU long name",
            &[
                &long(b'L', &deep),
                &Header::file("short").gnu().holding("x"),
            ],
        ),
        agreed(
            "a GNU long link",
            &[
                &long(b'K', &deep),
                &Header::new(b'2', "l").gnu().link("short").seal(),
            ],
        ),
        chosen(
            "an empty PAX path",
            &[&pax(&[("path", b"")]), &file("header")],
            true,
            "POSIX: an empty value takes the record back, so the header's name counts",
        ),
        refused(
            "a PAX path and a GNU long name",
            &[&long(b'L', "gnu"), &pax(&[("path", b"pax")]), &file("x")],
            "no rule says which wins",
        ),
        refused(
            "a name with ..",
            &[&file("a/../b")],
            "never cleaned: readers clean differently",
        ),
        refused(
            "a name that climbs",
            &[&file("../b")],
            "outside of the layer",
        ),
        refused("an empty name", &[&file("")], "nothing to make"),
        refused(
            "a zero byte in a PAX path",
            &[&pax(&[("path", b"a\0b")]), &file("x")],
            "some readers cut the name there, some keep it",
        ),
        refused(
            "a regular file with a slash at the end",
            &[&file("a/")],
            "a directory for some, a file for others",
        ),
        agreed(
            "a directory of version 7",
            &[&Header::new(0, "a/").set(257, &[0; 8]).seal(), &file("a/b")],
        ),
        agreed(
            "the last of two PAX paths",
            &[&pax(&[("path", b"a"), ("path", b"b")]), &file("x")],
        )
        .but("POSIX: the last one counts; the tar crate takes the first"),
        agreed(
            "the same name twice",
            &[&file("a"), &Header::file("a").holding("second")],
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let content = [7; 700];
    let with_size = |size: &str| {
        [
            pax(&[("size", size.as_bytes())]),
            Header::file("x").with(content),
        ]
        .concat()
    };
    let owned = |at: usize, field: &[u8]| Header::file("x").gnu().set(at, field).holding("x");
    vec![
        agreed("a PAX size over none", &[&with_size("700"), &file("next")]),
        refused(
            "two sizes",
            &[
                &pax(&[("size", b"512")]),
                &Header::file("x").holding(content),
            ],
            "the next header is elsewhere for different readers",
        ),
        refused(
            "a PAX size with a sign",
            &[&with_size("+700")],
            "digits only",
        ),
        refused("a negative PAX size", &[&with_size("-1")], "digits only"),
        agreed(
            "an owner in base 256",
            &[&owned(108, b"\x80\0\0\0\0\x2d\xc6\xc0")],
        ),
        agreed(
            "a PAX owner",
            &[
                &pax(&[("uid", b"3000000"), ("gid", b"4000000000")]),
                &file("x"),
            ],
        ),
        agreed(
            "a PAX time with a fraction",
            &[&pax(&[("mtime", b"1000000000.25")]), &file("x")],
        )
        .but("POSIX; the tar crate rounds down to seconds"),
        agreed(
            "a negative PAX time",
            &[&pax(&[("mtime", b"-5")]), &file("x")],
        )
        .but("POSIX; the tar crate keeps the header's"),
        agreed("a negative time in base 256", &[&owned(136, &[0xff; 12])])
            .but("GNU's two's complement; some readers know no negative times"),
        agreed("numbers led by spaces", &[&owned(108, b"     12\0")]),
        refused(
            "letters in a number",
            &[&owned(108, b"00x0012\0")],
            "readers cut it or skip it",
        ),
        refused(
            "an owner of 32 one bits",
            &[&pax(&[("uid", b"4294967295")]), &file("x")],
            "means \"leave as it is\" to the kernel",
        ),
        agreed(
            "all mode bits",
            &[&Header::file("x").set(100, b"0007755\0").holding("x")],
        ),
        agreed(
            "type bits in the mode",
            &[&Header::file("x").set(100, b"0100640\0").holding("x")],
        ),
    ]
}

fn links_and_kinds() -> Vec<Case> {
    let device = |typeflag, name| {
        Header::new(typeflag, name)
            .set(329, b"0000001\0")
            .set(337, b"0000003\0")
            .seal()
    };
    let hard = |name, target: &str| Header::new(b'1', name).link(target).seal();
    let soft = |name, target: &str| Header::new(b'2', name).link(target).seal();
    vec![
        agreed("a hard link", &[&file("a"), &hard("d/b", "a")]),
        agreed("a symbolic link", &[&soft("l", "../x/y")]),
        agreed(
            "a link, then a file of its name",
            &[
                &file("a"),
                &soft("l", "a"),
                &Header::file("l").holding("new"),
            ],
        )
        .but("the later entry replaces the link; Python writes through it"),
        agreed(
            "a directory",
            &[
                &Header::new(b'5', "d/").set(100, b"0000750\0").seal(),
                &file("d/x"),
            ],
        ),
        agreed("a pipe", &[&Header::new(b'6', "p").seal()])
            .but("a pipe is a pipe; the tar crate writes an empty file"),
        agreed("a character device", &[&device(b'3', "c")]).but("as above"),
        agreed("a block device", &[&device(b'4', "b")]).but("as above"),
        agreed(
            "a contiguous file",
            &[&Header::new(b'7', "x").holding("data")],
        ),
        refused(
            "a hard link out",
            &[&hard("l", "../../etc/hostname")],
            "outside of the layer",
        )
        .alone(),
        refused("a hard link to nothing", &[&hard("l", "nothing")], ""),
        refused(
            "a hard link to itself",
            &[&file("l"), &hard("l", "l")],
            "it would take itself away",
        ),
        agreed("a hard link with a root", &[&file("a"), &hard("b", "/a")])
            .but("the root is the layer's, as kaniko means it"),
        refused(
            "content of a link",
            &[
                &Header::new(b'2', "l").link("x").holding(file("hidden")),
                &file("next"),
            ],
            "skipped by some, read as headers by others",
        ),
        refused(
            "content of a directory",
            &[
                &Header::new(b'5', "d/").holding(file("hidden")),
                &file("next"),
            ],
            "skipped by some, read as headers by others",
        ),
        refused(
            "an unknown type",
            &[&Header::new(b'Z', "x").holding("data")],
            "never a guess",
        ),
        refused(
            "a file below a file",
            &[&file("f"), &file("f/x")],
            "one of the two would be lost",
        ),
        refused(
            "a file through a link that leads out",
            &[
                &soft("l", "../../../../../../../tmp"),
                &file("l/ovl-differential-test"),
            ],
            "outside of the layer",
        )
        .alone(),
        chosen(
            "a directory over a link to one",
            &[
                &Header::new(b'5', "d/").seal(),
                &soft("l", "d"),
                &Header::new(b'5', "l/").seal(),
                &file("l/x"),
            ],
            true,
            "the later entry wins: a real directory in place of the link",
        ),
    ]
}

fn framing() -> Vec<Case> {
    let mut cases = vec![
        agreed(
            "a global comment",
            &[
                &Header::new(b'g', "g").holding(b"16 comment=hash\n"),
                &file("x"),
            ],
        ),
        refused(
            "a global path",
            &[&Header::new(b'g', "g").holding(b"10 path=g\n"), &file("x")],
            "obeyed by some, ignored by others",
        ),
        refused(
            "one zero block and more",
            &[&file("a"), &[0; 512], &file("b")],
            "hides the rest from some readers",
        ),
        refused(
            "a wrong checksum",
            &[&Header::file("x").set(148, b"000001\0 ").0],
            "",
        ),
        refused(
            "an extension header at the end",
            &[&file("a"), &pax(&[("path", b"b")])],
            "something is missing",
        ),
        refused(
            "a PAX record without a newline",
            &[&Header::new(b'x', "x").holding(b"9 path=bb"), &file("x")],
            "what follows is not what it seems",
        ),
        chosen(
            "bytes after the end",
            &[&file("a"), &[0; 1024], &file("b")],
            true,
            "",
        ),
    ];
    let mut cut =
        agreed("no end", &[&file("a")]).but("images without an end exist; Python refuses some");
    cut.bytes.truncate(1024);
    cases.push(cut);
    let mut cut = refused(
        "a file cut short",
        &[&Header::file("a").holding([7; 3000])],
        "",
    );
    cut.bytes.truncate(2000);
    cut.choice = "some readers take what is there";
    cases.push(cut);
    cases
}

fn sparse_files() -> Vec<Case> {
    let old_only = "a format of GNU tar; the tar crate knows the old one only";
    let mut cases = Vec::new();
    let mut written = agreed("what diff writes", &[]).but_only("the tar crate", old_only);
    written.bytes = written_by_diff();
    cases.push(written);
    for (format, write) in FORMATS {
        let data = [7; 3072];
        let map = [(4096, 1024), (20_480, 2048), (30_000, 0)];
        let case = |what, map, taken, choice| {
            chosen(
                what,
                &[&write(map, 30_000, &data), &file("next")],
                taken,
                choice,
            )
        };
        let whole = case("a sparse file", &map[..], true, "");
        cases.push(match format {
            "old" => whole,
            _ => whole.but_only("the tar crate", old_only),
        });
        let pieces = "GNU tar takes each run from a new block, the others do not";
        cases.push(case(
            "runs of any length",
            &[(0, 1000), (4096, 2072)],
            false,
            pieces,
        ));
        let lies = "where data goes must not be a guess";
        cases.push(case(
            "an overlap",
            &[(4096, 1024), (4608, 2048)],
            false,
            lies,
        ));
        cases.push(case(
            "a run outside",
            &[(4096, 1024), (29_184, 2048)],
            false,
            lies,
        ));
        cases.push(case("too few runs", &[(4096, 1024)], false, lies));
        cases.push(case(
            "too long runs",
            &[(4096, 1024), (20_480, 2049)],
            false,
            lies,
        ));
    }
    cases
}

/// The archive of a layer with a sparse file.
fn written_by_diff() -> Vec<u8> {
    let (_, old) = FORMATS[0];
    let first = [(4096, 1024), (10 << 20, 2048), (20 << 20, 0)];
    let temp = tempfile::tempdir().unwrap();
    ovl(
        &archive(&[&old(&first, 20 << 20, &[7; 3072]), &file("next")]),
        temp.path(),
    )
    .unwrap();
    let tree = HostTree::default();
    let upper = tree.open_root(temp.path()).unwrap();
    let view = View::new(&tree, XattrNamespace::Trusted);
    let mut bytes = Vec::new();
    ovl_diff::diff(view, &upper, &[], false, &mut bytes).unwrap();
    assert!(bytes.len() < 1 << 20, "the file is not sparse on disk");
    bytes
}

impl Case {
    fn but(mut self, choice: &'static str) -> Self {
        self.choice = choice;
        self
    }

    fn but_only(mut self, other: &'static str, choice: &'static str) -> Self {
        (self.other, self.choice) = (other, choice);
        self
    }

    /// Only ovl is asked: another reader might do what the archive wants.
    fn alone(mut self) -> Self {
        self.alone = true;
        self
    }
}

/// Extracts an archive into a directory; `None` when it is refused, or anything of it.
type Extract = fn(&[u8], &Path) -> Option<()>;

const READERS: [(&str, Extract); 4] = [
    ("GNU tar", |bytes, dir| {
        let options = ["-x", "-p", "-f", "-", "--numeric-owner", "-C"];
        pipe(Command::new("tar").args(options).arg(dir), bytes)
    }),
    ("bsdtar", |bytes, dir| {
        let options = ["-x", "-p", "-f", "-", "--numeric-owner", "-C"];
        pipe(Command::new("bsdtar").args(options).arg(dir), bytes)
    }),
    ("Python", |bytes, dir| {
        pipe(
            Command::new(python()).args(["-ISc", PYTHON]).arg(dir),
            bytes,
        )
    }),
    ("the tar crate", |bytes, dir| {
        let mut archive = tar::Archive::new(bytes);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.unpack(dir).ok()
    }),
];

/// Without a root in names: it would write to the host's.
const PYTHON: &str = r"
import sys, io, tarfile
def relative(member, path):
    member.name = member.name.lstrip('/')
    if member.islnk(): member.linkname = member.linkname.lstrip('/')
    return member
archive = io.BytesIO(sys.stdin.buffer.read())
archive = tarfile.open(fileobj=archive, errorlevel=2, encoding='utf-8', errors='surrogateescape')
archive.extraction_filter = staticmethod(relative)
archive.extractall(sys.argv[1], numeric_owner=True)
";

/// The interpreter itself: what has its name may be a slow script.
fn python() -> &'static OsStr {
    static FOUND: OnceLock<OsString> = OnceLock::new();
    FOUND.get_or_init(|| {
        let program = "import sys; sys.stdout.write(sys.executable)";
        let output = Command::new("python3").args(["-c", program]).output();
        OsString::from_vec(output.unwrap().stdout)
    })
}

fn pipe(command: &mut Command, bytes: &[u8]) -> Option<()> {
    let mut child = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // A reader that has had enough closes its end.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    child.wait().unwrap().success().then_some(())
}

fn is_there(reader: &str) -> bool {
    let version = |program: &str| {
        let mut command = Command::new(program);
        let command = command.arg("--version").stdout(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    match reader {
        "GNU tar" => version("tar"),
        "bsdtar" => version("bsdtar"),
        "Python" => version("python3"),
        _ => true,
    }
}

fn ovl(bytes: &[u8], dir: &Path) -> Option<()> {
    let tree = HostTree::default();
    let upper = tree.open_root(dir).unwrap();
    let options = ApplyOptions::new(XattrNamespace::Trusted);
    ovl_diff::apply(&tree, bytes, &upper, &[], &options, &mut |_| {}).ok()?;
    Some(())
}

fn extracted(extract: Extract, bytes: &[u8]) -> Option<Tree> {
    // What climbs out by one or two directories still lands in the temporary one.
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("a/b/c");
    fs::create_dir_all(&dir).unwrap();
    extract(bytes, &dir)?;
    let mut tree = Tree::new();
    look(&dir, &dir, &mut tree);
    Some(tree)
}

/// Names, kinds, contents, links, owners, and the modes and times of files. Implied directories get
/// what modes and times the reader likes.
fn look(root: &Path, dir: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let found = fs::symlink_metadata(&path).unwrap();
        let (kind, mode) = (found.file_type(), found.mode() & 0o7777);
        // The tar crate writes 1 for 0.
        let time = match found.mtime() {
            0 => 1,
            time => time,
        };
        let what = if kind.is_dir() {
            "a directory".to_owned()
        } else if kind.is_symlink() {
            format!("a link to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            let links = found.nlink();
            let content = fs::read(&path).unwrap();
            let digest = sha2::Sha256::digest(&content);
            let (len, digest) = (content.len(), &digest[..4]);
            format!(
                "{mode:o} of {time}.{}, {links} names, {len} bytes {digest:x?}",
                found.mtime_nsec()
            )
        } else {
            let block = kind.is_block_device();
            format!("{mode:o} {:?} {block} {}", kind.is_fifo(), found.rdev())
        };
        tree.insert(
            name.escape_ascii().to_string(),
            format!("{}:{} {what}", found.uid(), found.gid()),
        );
        if kind.is_dir() {
            look(root, &path, tree);
        }
    }
}

#[test]
fn where_readers_agree_ovl_does_too_and_elsewhere_it_does_what_is_written_here() {
    if !is_root() {
        skip("comparing readers of archives needs root, for owners and devices");
        return;
    }
    let readers = READERS.iter().filter(|(reader, _)| {
        let there = is_there(reader);
        if !there {
            skip(&format!("comparing with {reader}, which is not installed"));
        }
        there
    });
    let readers: Vec<_> = readers.collect();
    let mut wrong = Vec::new();
    for case in corpus() {
        let what = case.what;
        let ours = extracted(ovl, &case.bytes);
        if ours.is_some() != case.taken {
            wrong.push(format!("{what}: ovl does not do what is written: {ours:?}"));
        }
        for (reader, extract) in readers.iter().filter(|_| !case.alone) {
            let theirs = extracted(*extract, &case.bytes);
            let other = case.other.is_empty() || case.other == *reader;
            if theirs != ours && (case.choice.is_empty() || !other) {
                wrong.push(format!("{what}: {reader} {theirs:?}, ovl {ours:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
