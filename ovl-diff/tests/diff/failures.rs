//! What a diff refuses; the output is never a whole archive then.

use std::ffi::OsStr;
use std::io::{self, Write};

use ovl_diff::{DiffError, DirHandle, Node, NodeKind, TreeBackend, View};

use super::{assert_cut_short, refused, set_xattr};
use crate::support::{Entry, each};

#[test]
fn row_059_a_name_that_would_delete_something_is_refused() {
    each(|scene| {
        for name in [".wh.sbin", ".wh..wh..opq", ".wh.", ".wh..wh.aufs"] {
            let upper = scene.layer();
            let dir = scene.make_dir(&upper, "d");
            scene.write(&dir, "before", &[7; 600]);
            scene.write(&dir, name, b"");
            let error = refused(scene, &upper, &[]);
            assert!(matches!(&error, DiffError::ReservedName { .. }), "{error}");
            assert!(
                error.to_string().starts_with(&format!("d/{name} ")),
                "{error}"
            );

            let upper = scene.layer();
            scene.make_dir(&upper, name);
            let error = refused(scene, &upper, &[]);
            assert!(matches!(&error, DiffError::ReservedName { .. }), "{error}");
        }
    });
}

#[test]
fn row_059_the_whiteout_of_such_a_name_is_refused_too() {
    each(|scene| {
        // Written down, they would be an opaque marker, bookkeeping of AUFS, and nonsense.
        for name in [".wh..opq", ".wh.x", ".wh."] {
            let (lower, upper) = (scene.layer(), scene.layer());
            scene.write(&lower, name, b"");
            scene.write(&lower, "innocent", b"");
            scene.whiteout(&upper, name);
            let error = refused(scene, &upper, &[lower]);
            assert!(matches!(&error, DiffError::ReservedName { .. }), "{error}");
            // Nothing below: nothing to write.
            let alone = ovl_diff::diff(scene.view(), &upper, &[], false, io::sink());
            assert_eq!(alone.unwrap().entries, 1);
        }
    });
}

#[test]
fn contents_that_are_elsewhere_are_refused() {
    each(|scene| {
        let lower = scene
            .stack(&[&[Entry::file("f", b"data"), Entry::dir("d")]])
            .lowers;
        for (name, attribute) in [
            ("f", "trusted.overlay.metacopy"),
            ("d", "trusted.overlay.redirect"),
        ] {
            let upper = scene.layer();
            if name == "d" {
                scene.make_dir(&upper, name);
            } else {
                scene.write(&upper, name, b"");
            }
            set_xattr(scene, &upper, name, attribute, b"");
            let error = refused(scene, &upper, &lower);
            assert!(
                error.to_string().contains(attribute) || error.to_string().contains(name),
                "{error}"
            );
            assert!(matches!(error, DiffError::Elsewhere { .. }), "{error:?}");
            if name == "d" {
                let changes = ovl_diff::changes(scene.view(), &upper, &lower, false);
                assert!(
                    matches!(changes, Err(DiffError::Elsewhere { .. })),
                    "{changes:?}"
                );
            }
        }
    });
}

#[test]
fn a_metacopy_file_below_is_not_copied_up_without_its_data() {
    each(|scene| {
        let lower = scene.layer();
        scene.write(&lower, "f", b"");
        set_xattr(scene, &lower, "f", "trusted.overlay.metacopy", b"");
        let stack = scene.stack_of(vec![lower]);
        let bytes = crate::support::archive(&[Entry::hard_link("h", "f")]);
        let options = ovl_diff::ApplyOptions::new(scene.xattrs);
        let error = stack.try_apply(&bytes, &options).err().unwrap();
        assert!(matches!(error, ovl_diff::ApplyError::Tree(_)), "{error:?}");
    });
}

/// Calls back when the first bytes come.
struct Meddler<F: FnMut()> {
    bytes: Vec<u8>,
    meddle: Option<F>,
}

impl<F: FnMut()> Write for Meddler<F> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if let Some(mut meddle) = self.meddle.take() {
            meddle();
        }
        self.bytes.extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error() {
    each(|scene| {
        let meddlings: [fn(&dyn TreeBackend, &DirHandle); 5] = [
            |tree, upper| {
                let node = Node::Entry(upper, OsStr::new("f"));
                tree.set_mode(node, 0o600).unwrap();
            },
            |tree, upper| rewrite(tree, upper, 10),
            |tree, upper| rewrite(tree, upper, 3_000_000),
            |tree, upper| rewrite(tree, upper, 2_000_000),
            |tree, upper| {
                tree.unlink(upper, OsStr::new("f")).unwrap();
            },
        ];
        for meddle in meddlings {
            let upper = scene.layer();
            scene.write(&upper, "f", &vec![7; 2_000_000]);
            scene
                .tree()
                .set_mode(Node::Entry(&upper, OsStr::new("f")), 0o640)
                .unwrap();
            // Outlives the name.
            let name = OsStr::new("f");
            let _open = scene.tree().open_file(&upper, name).unwrap();
            let tree = scene.tree();
            let mut output = Meddler {
                bytes: Vec::new(),
                meddle: Some(|| meddle(tree, &upper)),
            };
            let result = ovl_diff::diff(scene.view(), &upper, &[], false, &mut output);
            assert!(
                matches!(result, Err(DiffError::Changed { .. })),
                "{result:?}"
            );
            assert_cut_short(&output.bytes);
        }
    });
}

fn rewrite(tree: &dyn TreeBackend, upper: &DirHandle, len: u64) {
    // The name of a new inode, and the old one without it.
    let name = OsStr::new("f");
    tree.unlink(upper, name).unwrap();
    let file = tree.create_file(upper, name, 0o600).unwrap();
    tree.set_len(&file, len).unwrap();
}

/// Fails after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self.0.checked_sub(buffer.len()) {
            Some(left) => self.0 = left,
            None => return Err(io::Error::from(io::ErrorKind::StorageFull)),
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    each(|scene| {
        let upper = scene
            .stack(&[])
            .apply(&[Entry::file("f", vec![1; 600_000])])
            .upper;
        for room in [0, 1000, 300_000, 600_000] {
            let result = ovl_diff::diff(scene.view(), &upper, &[], false, Full(room));
            assert!(
                matches!(result, Err(DiffError::Write { .. })),
                "{room}: {result:?}"
            );
        }
    });
}

#[test]
fn a_read_error_is_an_error() {
    each(|scene| {
        // Whiteouts below are looked for through a file: not a directory there.
        let upper = scene.layer();
        let other = ovl_diff::DirHandle::new("of another backend");
        let mut bytes = Vec::new();
        let result = ovl_diff::diff(scene.view(), &other, &[], false, &mut bytes);
        assert!(matches!(result, Err(DiffError::Tree(_))), "{result:?}");
        assert_cut_short(&bytes);
        let kind = NodeKind::Fifo;
        scene
            .tree()
            .create_node(&upper, OsStr::new("p"), kind, 0)
            .unwrap();
        let view = View::new(scene.tree(), scene.xattrs);
        assert!(ovl_diff::diff(view, &upper, &[other], false, io::sink()).is_err());
    });
}
