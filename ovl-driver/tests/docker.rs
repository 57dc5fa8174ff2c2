//! Docker's storage options and names.

use std::cell::Cell;
use std::path::Path;

use ovl_driver::blocking::Overlay2;
use ovl_driver::{CreateLayer, Error, ErrorKind, FsType, OpenOptions, OptionError, OptionNote};
use ovl_quota::{Bytes, SizeError};
use ovl_testkit::{KernelProfile, MockKernel};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, subsequence};
use proptest::test_runner::{Config, TestRunner};

fn home_size(option: &str) -> Result<Option<u64>, OptionError> {
    let parsed = OpenOptions::from_docker([option])?;
    Ok(parsed.open.size.map(Bytes::get))
}

fn layer_size(key: &str, value: &str) -> Result<Option<u64>, OptionError> {
    let layer = CreateLayer::new("layer".parse().unwrap()).docker_options([(key, value)])?;
    Ok(layer.limits.bytes.map(Bytes::get))
}

fn without_dtype(fs_type: FsType) -> MockKernel {
    let mut profile = KernelProfile::modern();
    (profile.fs_type, profile.d_type) = (fs_type, false);
    let kernel = MockKernel::new(profile);
    kernel.mkdir_all("/scratch".as_ref()).unwrap();
    kernel
}

#[test]
fn row_161_sizes_that_docker_takes_as_no_limit_or_guesses_at_are_refused() {
    for value in ["0", "-1", "1e30", "10GB!", "", "G", "9223372036854775808"] {
        let home = home_size(&format!("overlay2.size={value}"));
        let key = "overlay2.size";
        assert!(
            matches!(home, Err(OptionError::Size { key: found, .. }) if found == key),
            "{value}: {home:?}"
        );
        let layer = layer_size("size", value);
        assert!(
            matches!(layer, Err(OptionError::Size { key: "size", .. })),
            "{value}: {layer:?}"
        );
    }
    // Rounded up to a whole block, it would be one byte more than a kernel keeps.
    let huge = layer_size("size", "9223372036854775807");
    assert!(matches!(huge, Err(OptionError::Limit { key: "size", .. })));
    for (value, bytes) in [("1", 1), ("511", 511), ("10G", 10 << 30)] {
        assert_eq!(layer_size("size", value), Ok(Some(bytes)));
        assert_eq!(
            home_size(&format!("overlay2.size={value}")),
            Ok(Some(bytes))
        );
    }
    // Docker's daemon trims, its `create` does not.
    assert_eq!(home_size("overlay2.size= 10G"), Ok(Some(10 << 30)));
    let padded = layer_size("size", " 10G");
    let Err(OptionError::Size { source, .. }) = padded else {
        panic!("{padded:?}");
    };
    assert!(matches!(source, SizeError::NotANumber { .. }), "{source:?}");
}

#[test]
fn row_161_keys_given_twice_in_any_case_are_refused() {
    let twice = OpenOptions::from_docker(["overlay2.size=1G", "Overlay2.SIZE=2G"]);
    assert!(
        matches!(
            twice,
            Err(OptionError::Duplicate {
                key: "overlay2.size",
                ..
            })
        ),
        "{twice:?}"
    );
    let layer = CreateLayer::new("layer".parse().unwrap());
    let twice = layer.docker_options([("Size", "1G"), ("size", "1G")]);
    assert!(
        matches!(twice, Err(OptionError::Duplicate { key: "size", .. })),
        "{twice:?}"
    );
}

#[test]
fn row_161_unknown_keys_are_refused_and_the_known_ones_named() {
    let check = |error: OptionError, unknown: &str, known: &str| {
        assert!(
            matches!(&error, OptionError::Unknown { key, .. } if key == unknown),
            "{error:?}"
        );
        let words = error.to_string();
        assert!(words.contains(unknown) && words.contains(known), "{words}");
    };
    let home = home_size("overlay2.skip_mount_home=true").unwrap_err();
    check(home, "overlay2.skip_mount_home", "overlay2.size");
    check(home_size("size=1G").unwrap_err(), "size", "overlay2.size");
    let layer = layer_size("overlay2.size", "1G").unwrap_err();
    check(layer, "overlay2.size", "known are size");
    check(home_size("=1G").unwrap_err(), "", "overlay2.size");
}

#[test]
fn an_option_without_an_equals_sign_is_refused() {
    for option in ["overlay2.size", "", "overlay2.size 10G"] {
        let refused = home_size(option);
        assert!(
            matches!(refused, Err(OptionError::NoValue { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn keys_are_read_in_any_case_and_split_at_the_first_equals_sign() {
    assert_eq!(home_size("\tOVERLAY2.Size =\t20 MiB "), Ok(Some(20 << 20)));
    assert_eq!(layer_size("SIZE", "1.5g"), Ok(Some(3 << 29)));
    assert!(matches!(
        home_size("overlay2.size=1G=1"),
        Err(OptionError::Size { .. })
    ));
    let none: [&str; 0] = [];
    let parsed = OpenOptions::from_docker(none).unwrap();
    assert_eq!(parsed.open, OpenOptions::new());
}

#[test]
fn the_kernel_check_option_takes_the_truth_values_of_go_and_does_nothing() {
    let texts = [
        "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False",
    ];
    for text in texts {
        let option = format!("overlay2.override_kernel_check={text}");
        let parsed = OpenOptions::from_docker([option]).unwrap();
        assert_eq!(parsed.open, OpenOptions::new());
        let [note] = &parsed.notes[..] else {
            panic!("{:?}", parsed.notes);
        };
        assert!(matches!(note, OptionNote::WithoutEffect { .. }));
        assert!(note.to_string().contains("overlay2.override_kernel_check"));
    }
    for text in ["", "yes", "tRUE", "2", "on"] {
        let option = format!("overlay2.override_kernel_check={text}");
        let refused = OpenOptions::from_docker([option]);
        assert!(
            matches!(refused, Err(OptionError::TruthValue { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn file_systems_have_the_names_that_docker_gives_them() {
    let names = [
        (0xef53, "extfs"),
        (0x5846_5342, "xfs"),
        (0x9123_683e, "btrfs"),
        (0x0102_1994, "tmpfs"),
        (0x2fc1_2fc1, "zfs"),
        (0x794c_7630, "overlayfs"),
        (0x6573_5546, "fuse"),
        (0x6969, "nfs"),
        (0xf2f5_2010, "f2fs"),
        (0xf15f, "ecryptfs"),
        (0x7371_7368, "squashfs"),
        (0x8584_58f6, "ramfs"),
        (0x3153_464a, "jfs"),
        (0x72b6, "jffs2"),
        (0x5265_4973, "reiserfs"),
        (0x28cd_3d45, "cramfs"),
        (0x4750_4653, "gpfs"),
        (0x517b, "smb"),
        (0xa501_fcf5, "vxfs"),
        (0x6175_6673, "aufs"),
        (0xca45_1a4e, "<unknown>"),
    ];
    for (magic, name) in names {
        assert_eq!(FsType(magic).name(), name);
    }
}

#[test]
fn a_file_system_without_entry_types_holds_no_home() {
    for (fs_type, advice) in [
        (FsType::XFS, "ftype=1"),
        (FsType::EXT, "filetype"),
        (FsType::TMPFS, "another file system"),
    ] {
        let kernel = without_dtype(fs_type);
        let home = Path::new("/scratch/home");
        let options = OpenOptions::new().create(true);
        let error = Overlay2::open(kernel.kernel(), home, options).unwrap_err();
        assert!(matches!(error, Error::NoDType { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(advice), "{error}");
        assert!(error.to_string().contains(fs_type.name()), "{error}");
        kernel.mkdir_all(home).unwrap();
        let error = Overlay2::open(kernel.kernel(), home, OpenOptions::new()).unwrap_err();
        assert!(matches!(error, Error::NoDType { .. }), "{error:?}");
        let status = Overlay2::probe(kernel.kernel(), home).unwrap();
        assert_eq!(status.docker_pairs()[1], ("Supports d_type", "false"));
        assert!(status.d_type.reason.contains(advice));
    }
}

/// An option that is understood where it does not stand twice, of one key or the other.
fn good_option(is_size: bool) -> BoxedStrategy<String> {
    let (key, value) = match is_size {
        true => ("overlay2.size", r"[1-9][0-9]{0,5}( ?[kKmMgG](i?[bB])?)?"),
        false => ("overlay2.override_kernel_check", "1|t|TRUE|true|0|F|False"),
    };
    let key = vec(any::<bool>(), key.len()).prop_map(move |upper| {
        let letters = key.chars().zip(upper);
        let letters = letters.map(|(letter, upper)| match upper {
            true => letter.to_ascii_uppercase(),
            false => letter,
        });
        letters.collect::<String>()
    });
    let option = ("[ \t]?", key, "[ \t]?", value, " ?");
    option
        .prop_map(|(before, key, space, value, after)| {
            format!("{before}{key}{space}={space}{value}{after}")
        })
        .boxed()
}

fn option_text() -> impl Strategy<Value = String> {
    let key = prop_oneof![
        Just("overlay2.size".to_owned()),
        Just(" Overlay2.Override_Kernel_Check ".to_owned()),
        Just("size".to_owned()),
        any::<String>(),
    ];
    let value = prop_oneof![
        "[0-9]{0,20}",
        "[ 0-9.]{0,6} ?[a-zA-Z]{0,4}",
        any::<String>()
    ];
    let both = (key, value).prop_map(|(key, value)| format!("{key}={value}"));
    prop_oneof![both, any::<String>()]
}

/// Each key at most once, and perhaps something else among them.
fn option_list() -> impl Strategy<Value = Vec<String>> {
    let keys = subsequence(vec![true, false], 0..=2).prop_shuffle();
    let good = keys.prop_flat_map(|keys| keys.into_iter().map(good_option).collect::<Vec<_>>());
    let any_key = any::<bool>().prop_flat_map(good_option);
    let other = prop_oneof![2 => option_text(), 1 => any_key];
    let others = prop_oneof![
        Just(Vec::new()).boxed(),
        vec((any::<Index>(), other), 1..3).boxed()
    ];
    (good, others).prop_map(|(mut options, others)| {
        for (at, other) in others {
            options.insert(at.index(options.len() + 1), other);
        }
        options
    })
}

#[test]
fn any_options_give_limits_that_hold_or_an_error_that_names_the_option() {
    // Accepted with one option and with two, and refused.
    let counts = [const { Cell::new(0) }; 3];
    let [one, two, refused] = &counts;
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let read = |options: Vec<String>| {
        match OpenOptions::from_docker(&options) {
            Ok(parsed) => {
                let key = |option: &str| option.to_lowercase().contains("size");
                let sizes = options.iter().filter(|option| key(option)).count();
                prop_assert!(sizes < 2, "a key twice");
                prop_assert_eq!(parsed.open.size.is_some(), sizes == 1);
                prop_assert_eq!(sizes + parsed.notes.len(), options.len());
                prop_assert!(parsed.open.size.is_none_or(|size| size > Bytes::ZERO));
                match options.len() {
                    0 => {}
                    1 => one.set(one.get() + 1),
                    _ => two.set(two.get() + 1),
                }
            }
            Err(error) => {
                prop_assert!(error.to_string().contains("storage option"), "{error}");
                refused.set(refused.get() + 1);
            }
        }
        for option in &options {
            let Some((key, value)) = option.split_once('=') else {
                continue;
            };
            match layer_size(key, value) {
                Ok(size) => prop_assert!(size.is_some_and(|size| size > 0)),
                Err(error) => {
                    prop_assert!(error.to_string().contains("storage option"), "{error}");
                }
            }
        }
        Ok(())
    };
    TestRunner::new(config).run(&option_list(), read).unwrap();
    let counts = counts.map(Cell::into_inner);

    // Several times as many come by chance.
    assert!(counts.iter().all(|&count| count >= 8), "{counts:?}");
}
