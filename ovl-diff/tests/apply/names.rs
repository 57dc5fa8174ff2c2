//! Names, parents, and several entries of one name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ovl_diff::{BadReason, FileKind};

use crate::support::{Entry, at, each};

#[test]
fn row_001_a_name_that_leads_up_from_the_root_is_refused() {
    escape(&["../victim/hello", "..", "../../../../../../etc/passwd"]);
}

#[test]
fn row_002_a_name_that_leads_up_from_anywhere_is_refused_before_any_cleaning() {
    escape(&[
        "/../victim/hello",
        "a/../../victim/hello",
        "./../victim/hello",
        "a/..",
        "up/../x",
        ".wh.a/../x",
    ]);
}

/// Whatever the kind, and whether cleaning would keep the name inside or not.
fn escape(names: &[&str]) {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::dir("a"), Entry::symlink("up", "..")]]);
        for name in names.iter().copied() {
            for entry in [
                Entry::file(name, b"bad"),
                Entry::dir(name),
                Entry::symlink(name, "x"),
                Entry::hard_link(name, "good"),
                Entry::fifo(name),
            ] {
                let entries = [Entry::file("good", b"good"), entry];
                assert_eq!(stack.refused(&entries), BadReason::PathEscape, "{name}");
            }
        }
    });
}

#[test]
fn row_003_an_absolute_name_means_the_root_of_the_layer() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("/etc/"),
            Entry::file("//etc/motd", b"1"),
            Entry::file("/top", b"2"),
        ]);
        assert_eq!(applied.names(""), ["etc", "top"]);
        assert_eq!(applied.at("etc/motd").contents, b"1");
    });
}

#[test]
fn row_004_dots_and_repeated_slashes_mean_nothing() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("./a//"),
            Entry::file("a/./b//c", b"1"),
            // Type NUL is how archives before 1988 say "file"; a directory has a slash.
            Entry::new(0, "old/"),
            Entry::file("././a/b/c", b"2"),
        ]);
        assert_eq!(applied.names("a/b"), ["c"]);
        assert_eq!(applied.at("a/b/c").contents, b"2");
        assert!(applied.at("old").is_dir());
        let slash = [Entry::file("a/", b"")];
        assert_eq!(scene.stack(&[]).refused(&slash), BadReason::TrailingSlash);
    });
}

#[test]
fn row_005_an_empty_name_is_refused() {
    each(|scene| {
        let reason = scene.stack(&[]).refused(&[Entry::file("", b"x")]);
        assert!(matches!(reason, BadReason::EmptyName { .. }), "{reason:?}");
        let reason = scene.stack(&[]).refused(&[Entry::hard_link("x", "")]);
        assert!(matches!(reason, BadReason::EmptyName { .. }), "{reason:?}");
    });
}

#[test]
fn row_008_names_are_bytes() {
    each(|scene| {
        let name = OsStr::from_bytes(b"\xff\xfe\n\x1b[31m");
        let inside = Path::new(name).join(name);
        let applied = scene.stack(&[]).apply(&[
            Entry::dir(name),
            Entry::file(&inside, b"1"),
            Entry::symlink("link", name),
            Entry::file(Path::new("link").join("through"), b"2"),
        ]);
        assert_eq!(applied.shown.0[&inside].contents, b"1");
        assert_eq!(
            applied.shown.0[&Path::new(name).join("through")].contents,
            b"2"
        );
    });
}

#[test]
fn row_007_control_bytes_in_names_are_kept_and_errors_escape_them() {
    each(|scene| {
        let name = "a\nb\u{1b}[31m\r\u{7f}\u{202e}";
        let applied = scene.stack(&[]).apply(&[Entry::file(name, b"1")]);
        assert_eq!(applied.at(name).contents, b"1");
        let bad = Path::new("..").join(name);
        let bad = scene.stack(&[]).blame(
            &crate::support::archive(&[Entry::file(bad, b"")]),
            &ovl_diff::ApplyOptions::new(scene.xattrs),
        );
        assert!(
            !bad.to_string().contains(|symbol: char| symbol.is_control()),
            "{bad}"
        );
    });
}

#[test]
fn row_009_a_component_has_at_most_255_bytes_also_when_it_is_hidden() {
    each(|scene| {
        let (longest, longer) = ("n".repeat(255), "n".repeat(256));
        let stack = scene.stack(&[&[Entry::file(&longest, b"1"), Entry::file("other", b"2")]]);
        assert_eq!(
            stack
                .apply(&[Entry::file(&longest, b"3")])
                .at(&longest)
                .contents,
            b"3"
        );
        let hidden = stack.apply(&[Entry::marker(format!(".wh.{longest}"))]);
        assert_eq!(hidden.names(""), ["other"]);
        for name in [
            longer.clone(),
            format!("{longer}/x"),
            format!(".wh.{longer}"),
        ] {
            assert_eq!(
                stack.refused(&[Entry::marker(&name)]),
                BadReason::NameTooLong,
                "{name}"
            );
        }
        let link = Entry::hard_link("x", &longer);
        assert_eq!(stack.refused(&[link]), BadReason::NameTooLong);
        let through = [Entry::symlink("l", &longer), Entry::file("l/x", b"")];
        assert_eq!(stack.refused(&through), BadReason::NameTooLong);
    });
}

#[test]
fn row_010_a_path_may_be_longer_than_the_kernel_takes_in_one_call() {
    each(|scene| {
        let dir = vec!["d".repeat(200); 30].join("/");
        let applied = scene.stack(&[]).apply(&[
            Entry::file(format!("{dir}/x"), b"1"),
            Entry::hard_link("short", format!("{dir}/x")),
        ]);
        assert_eq!(applied.at(&format!("{dir}/x")).contents, b"1");
        assert_eq!(
            applied.at(&format!("{dir}/x")).linked_to,
            Path::new("short")
        );
        let deep = vec!["d"; 4097].join("/");
        assert_eq!(
            scene.stack(&[]).refused(&[Entry::file(deep, b"")]),
            BadReason::PathTooDeep
        );
    });
}

#[test]
fn row_014_a_later_entry_replaces_an_earlier_one_and_its_inode() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::file("f", b"first, and longer")
                .mode(0o4755)
                .xattr("user.old", b"1"),
            Entry::hard_link("alias", "f"),
            Entry::file("f", b"second")
                .mode(0o600)
                .xattr("user.new", b"2"),
            Entry::dir("d")
                .mode(0o700)
                .owner(1, 2)
                .xattr("user.old", b"1"),
            Entry::file("d/kept", b""),
            Entry::dir("d")
                .mode(0o750)
                .owner(3, 4)
                .xattr("user.new", b"2")
                .mtime(5, 0),
        ]);
        let (file, dir) = (applied.at("f"), applied.at("d"));
        assert_eq!(
            (file.contents.as_slice(), file.mode),
            (&b"second"[..], 0o600)
        );
        assert_eq!(
            (file.xattr("user.old"), file.xattr("user.new")),
            (None, Some(&b"2"[..]))
        );
        assert_eq!(applied.at("alias").contents, b"first, and longer");
        assert_eq!(applied.at("alias").mode, 0o4755);
        assert_eq!(
            (dir.mode, dir.owner(), dir.mtime),
            (0o750, (3, 4), at(5, 0))
        );
        assert_eq!(
            (dir.xattr("user.old"), dir.xattr("user.new")),
            (None, Some(&b"2"[..]))
        );
        assert_eq!(applied.names("d"), ["kept"]);
    });
}

#[test]
fn row_014_a_directory_named_again_loses_what_hides_behind_the_kernels_escape() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("d").xattr("trusted.overlay.opaque", b"y"),
            Entry::dir("d"),
        ]);
        assert_eq!(applied.at("d").xattrs.len(), 0);
        assert_eq!(scene.raw(&applied.upper)[Path::new("d")].xattrs.len(), 0);
    });
}

#[test]
fn row_015_a_name_may_change_its_kind_any_number_of_times() {
    each(|scene| {
        let mut entries = vec![Entry::dir("keep")];
        for _ in 0..100 {
            entries.extend([
                Entry::dir("x"),
                Entry::file("x/inner", b"1"),
                Entry::dir("x/deep/er"),
                Entry::file("x", b"2"),
                Entry::symlink("x", "/keep"),
                Entry::fifo("x"),
                Entry::char_device("x", 1, 3),
            ]);
        }
        let applied = scene.stack(&[]).apply(&entries);
        assert_eq!(applied.names(""), ["keep", "x"]);
        assert_eq!(applied.at("x").kind, FileKind::CharDevice);
        assert!(applied.names("keep").is_empty());
        entries.push(Entry::dir("x"));
        entries.push(Entry::file("x/last", b""));
        assert_eq!(scene.stack(&[]).apply(&entries).names("x"), ["last"]);
    });
}

#[test]
fn row_016_an_entry_inside_a_file_is_refused() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::file("below", b""), Entry::file("gone", b"")]]);
        let file = Entry::file("f", b"");
        for name in ["f/y", "f/y/z", "f/.wh.y", "f/.wh..wh..opq"] {
            let reason = stack.refused(&[file.clone(), Entry::marker(name)]);
            assert_eq!(reason, BadReason::NotADirectory, "{name}");
        }
        assert_eq!(
            stack.refused(&[Entry::file("below/y", b"")]),
            BadReason::NotADirectory
        );
        let link = [file, Entry::hard_link("l", "f/y")];
        assert_eq!(stack.refused(&link), BadReason::NotADirectory);
        // What hides the file makes way.
        let applied = stack.apply(&[Entry::marker(".wh.gone"), Entry::file("gone/y", b"1")]);
        assert_eq!(applied.at("gone/y").contents, b"1");
    });
}

#[test]
fn row_017_an_entry_inside_a_special_file_is_refused_and_inside_a_whiteout_it_is_not() {
    each(|scene| {
        let stack = scene.stack(&[&[Entry::dir("w"), Entry::file("w/old", b"")]]);
        for parent in [
            Entry::fifo("p"),
            Entry::char_device("p", 1, 3),
            Entry::block_device("p", 8, 0),
        ] {
            let reason = stack.refused(&[parent, Entry::file("p/y", b"")]);
            assert_eq!(reason, BadReason::NotADirectory);
        }
        let applied = stack.apply(&[Entry::marker(".wh.w"), Entry::file("w/new", b"1")]);
        assert_eq!(applied.names("w"), ["new"]);
    });
}

#[test]
fn row_018_missing_parents_are_made() {
    each(|scene| {
        let applied = scene.stack(&[]).apply(&[
            Entry::dir("etc/dnf/"),
            Entry::file("var/lib/x/y", b"1"),
            Entry::hard_link("opt/z/link", "var/lib/x/y"),
            Entry::symlink("srv/l", "x"),
        ]);
        for dir in ["etc", "var", "var/lib", "var/lib/x", "opt", "opt/z", "srv"] {
            let seen = applied.at(dir);
            assert_eq!(
                (seen.is_dir(), seen.mode, seen.owner()),
                (true, 0o755, (0, 0)),
                "{dir}"
            );
        }
        assert_eq!(applied.at("var/lib/x/y").linked_to, Path::new("opt/z/link"));
    });
}

#[test]
fn row_019_an_implied_parent_is_as_the_layer_below_has_it() {
    each(|scene| {
        let base = [
            Entry::dir("root").mode(0o700).owner(7, 8).mtime(1000, 0),
            Entry::dir("root/.ssh")
                .mode(0o2770)
                .owner(9, 10)
                .mtime(-2000, 500)
                .xattr("user.label", b"secret")
                .xattr("trusted.overlay.x", b"escaped"),
            Entry::file("root/.ssh/old", b""),
            Entry::file("root/.ssh/gone", b""),
            Entry::dir("tmp").mode(0o1777),
        ];
        // The uppermost layer that has the directory counts.
        let middle = [Entry::dir("root/.ssh")
            .mode(0o711)
            .owner(11, 12)
            .mtime(3000, 1)];
        let cases: [&[Entry]; 5] = [
            &[Entry::file("root/.ssh/new", b"")],
            &[Entry::marker("root/.ssh/.wh.gone")],
            &[Entry::hard_link("root/.ssh/link", "root/.ssh/old")],
            &[Entry::hard_link("root/link", "root/.ssh/old")],
            &[Entry::dir("root/.ssh/deep/er")],
        ];
        for entries in cases {
            let applied = scene.stack(&[&base]).apply(entries);
            let dir = applied.at("root/.ssh");
            assert_eq!(
                (dir.mode, dir.owner(), dir.mtime),
                (0o2770, (9, 10), at(-2000, 500))
            );
            assert_eq!(dir.xattr("user.label"), Some(&b"secret"[..]));
            assert_eq!(dir.xattr("trusted.overlay.x"), Some(&b"escaped"[..]));
            let dir = applied.at("root");
            assert_eq!(
                (dir.mode, dir.owner(), dir.mtime),
                (0o700, (7, 8), at(1000, 0))
            );
            let applied = scene.stack(&[&base, &middle]).apply(entries);
            let dir = applied.at("root/.ssh");
            assert_eq!(
                (dir.mode, dir.owner(), dir.mtime),
                (0o711, (11, 12), at(3000, 1))
            );
            assert_eq!(dir.xattrs.len(), 0);
        }
        // An entry of its own wins, wherever it comes.
        let own = Entry::dir("root").mode(0o755).mtime(4, 0);
        let inner = Entry::file("root/.ssh/new", b"");
        for entries in [[own.clone(), inner.clone()], [inner, own]] {
            let applied = scene.stack(&[&base]).apply(&entries);
            let dir = applied.at("root");
            assert_eq!(
                (dir.mode, dir.owner(), dir.mtime),
                (0o755, (0, 0), at(4, 0))
            );
            assert_eq!(applied.at("root/.ssh").mode, 0o2770);
        }
        // Nothing is made for what changes nothing.
        let applied = scene
            .stack(&[&base])
            .apply(&[Entry::marker("root/.ssh/.wh.nothing")]);
        assert_eq!(scene.raw(&applied.upper).len(), 1);
    });
}

#[test]
fn row_020_an_entry_goes_where_a_link_of_a_lower_layer_leads() {
    each(|scene| {
        let base = [
            Entry::dir("usr").mode(0o751),
            Entry::dir("usr/bin").mode(0o711).owner(3, 4),
            Entry::file("usr/bin/old", b"old"),
            Entry::symlink("bin", "usr/bin"),
            Entry::symlink("sbin", "/bin/"),
            Entry::symlink("usr/up", "../usr/./bin"),
        ];
        // From the layer right below, and through one that does not touch it.
        for between in [&[][..], &[Entry::file("x", b"")][..]] {
            let stack = scene.stack(&[&base, between]);
            for (name, hidden) in [("bin", "bin"), ("sbin", "sbin"), ("usr/up", "usr/up")] {
                let applied = stack.apply(&[
                    Entry::file(format!("{name}/foo"), b"new"),
                    Entry::marker(format!("{hidden}/.wh.old")),
                    Entry::hard_link("link", format!("{name}/foo")),
                ]);
                assert_eq!(applied.names("usr/bin"), ["foo"], "{name}");
                assert_eq!(applied.at(name).kind, FileKind::Symlink);
                assert_eq!(applied.at("usr/bin/foo").linked_to, Path::new("link"));
                let dir = applied.at("usr/bin");
                assert_eq!((dir.mode, dir.owner()), (0o711, (3, 4)));
                let raw = scene.raw(&applied.upper);
                assert!(!raw.contains_key(Path::new(name)), "the link is not copied");
            }
        }
        // A link into nothing makes what it names.
        let applied = scene
            .stack(&[&[Entry::symlink("var/run", "/run")]])
            .apply(&[Entry::file("var/run/pid", b"1")]);
        assert_eq!(applied.at("run/pid").contents, b"1");
    });
}
