//! What is no label, no option and no plan.

use std::cell::Cell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use ovl_layout::{LayerId, Layout, LowerChain};
use ovl_mount::{
    Access, DataLimit, LabelError, MountError, MountFeatures, MountLabel, OverlayOptions,
    OverlaySpec, PlanError, RedirectDir, Strategy, Switch, Xino,
};
use proptest::collection::vec;
use proptest::prelude::any;
use proptest::sample::{Index, select};
use proptest::strategy::Strategy as _;
use proptest::test_runner::{Config, TestRunner};
use proptest::{prop_assert_eq, prop_oneof};

use crate::case::{link, lower_id};

fn label(text: &str) -> Result<MountLabel, LabelError> {
    text.parse()
}

#[test]
fn labels_of_selinux_and_others_are_taken_as_they_are() {
    for text in [
        "system_u:object_r:container_file_t:s0:c1,c2",
        "x",
        "a=b,c:d;e'f",
        &"x".repeat(MountLabel::MAX_LEN),
    ] {
        assert_eq!(label(text).unwrap().as_str(), text);
    }
}

#[test]
fn an_empty_label_is_refused() {
    assert_eq!(label(""), Err(LabelError::Empty));
}

#[test]
fn a_label_longer_than_a_setting_is_refused_with_both_lengths() {
    let refused = label(&"x".repeat(256)).unwrap_err();
    assert!(
        matches!(
            refused,
            LabelError::TooLong {
                len: 256,
                max: 255,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        refused.to_string(),
        "a mount label has at most 255 bytes, this one has 256"
    );
}

#[test]
fn a_label_cannot_end_its_option() {
    for (text, byte, offset) in [
        (r#"a",upperdir=/x,"b"#, b'"', 1),
        (r"a\", b'\\', 1),
        ("a b", b' ', 1),
        ("a\n", b'\n', 1),
        ("\0", 0, 0),
        ("ab\x7f", 0x7f, 2),
        ("abcé", 0xc3, 3),
    ] {
        let refused = label(text).unwrap_err();
        let LabelError::ForbiddenByte {
            byte: found,
            offset: at,
            ..
        } = refused
        else {
            panic!("{text:?}: {refused:?}");
        };
        assert_eq!((found, at), (byte, offset), "{text:?}");
    }
}

/// Good labels of any length, also too long, with up to two characters that may be bad.
fn label_text() -> impl proptest::strategy::Strategy<Value = String> {
    let good = prop_oneof![3 => "[a-z_:,=']{0,40}", 1 => "[!#-\\[\\]-~]{240,260}"];
    let other = prop_oneof![
        select(vec!['"', '\\', ' ', '\n', '\0', '\x7f']),
        any::<char>()
    ];
    (good, vec((any::<Index>(), other), 0..3)).prop_map(|(text, others)| {
        let mut text: Vec<char> = text.chars().collect();
        for (at, other) in others {
            text.insert(at.index(text.len() + 1), other);
        }
        text.into_iter().collect()
    })
}

#[test]
fn a_label_is_taken_whole_or_not_at_all() {
    let (taken, refused) = (Cell::new(0), Cell::new(0));
    let config = Config {
        failure_persistence: None,
        ..Config::default()
    };
    let take = |text: String| {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\';
        let is_good = (1..=MountLabel::MAX_LEN).contains(&text.len()) && text.bytes().all(plain);
        let count = if is_good { &taken } else { &refused };
        // Short ones say little.
        count.set(count.get() + u32::from(text.len() > 3));
        let label = label(&text);
        let label = label.as_ref().map(MountLabel::as_str);
        prop_assert_eq!(label.ok(), is_good.then_some(&*text));
        Ok(())
    };
    let input = prop_oneof![9 => label_text(), 1 => any::<String>()];
    TestRunner::new(config).run(&input, take).unwrap();
    let (taken, refused) = (taken.get(), refused.get());

    // Several times as many come by chance.
    assert!(
        taken >= 20 && refused >= 20,
        "{taken} taken, {refused} refused"
    );
}

#[test]
fn every_option_of_the_set_reads_back_as_it_prints() {
    for text in [
        "redirect_dir=on",
        "redirect_dir=follow",
        "redirect_dir=nofollow",
        "metacopy=on",
        "metacopy=off",
        "xino=on",
        "xino=off",
        "xino=auto",
        "nodev",
        "nosuid",
        "noexec",
    ] {
        assert_eq!(
            OverlayOptions::default().with(text).unwrap().to_string(),
            text
        );
    }
    let all = OverlayOptions::default()
        .with("noexec")
        .unwrap()
        .with("xino=auto")
        .unwrap();
    assert_eq!(all.to_string(), "xino=auto,noexec");
    assert_eq!((all.xino, all.noexec), (Some(Xino::Auto), true));
}

#[test]
fn of_two_values_of_an_option_the_later_holds() {
    let options = OverlayOptions::default().with("metacopy=on").unwrap();
    let options = options.with("metacopy=off").unwrap();
    assert_eq!(options.metacopy, Some(Switch::Off));
}

#[test]
fn options_outside_the_set_are_refused_by_name() {
    for text in [
        "",
        "=",
        "lowerdir=/etc",
        "upperdir=/etc",
        "workdir=/etc",
        "context=x",
        "index=on",
        "redirect_dir",
        "redirect_dir=",
        "redirect_dir=off",
        "redirect_dir=on,upperdir=/etc",
        "redirect_dir=on ",
        "REDIRECT_DIR=on",
        "metacopy=yes",
        "metacopy=on=off",
        "xino",
        "nodev=1",
        "nodev,nosuid",
        " nodev",
        "dev",
        "suid",
    ] {
        let refused = OverlayOptions::default().with(text).unwrap_err();
        assert_eq!(refused.option, text);
        assert!(
            refused
                .to_string()
                .starts_with(&format!("{text:?} is not a mount option"))
        );
    }
}

#[test]
fn words_of_options_and_strategies_are_exact() {
    assert_eq!("nofollow".parse(), Ok(RedirectDir::NoFollow));
    assert_eq!("off".parse::<RedirectDir>(), Err(()));
    for strategy in Strategy::ALL {
        assert_eq!(strategy.as_str().parse(), Ok(strategy));
    }
    assert_eq!("lowerdir".parse::<Strategy>(), Err(()));
}

fn features() -> MountFeatures {
    MountFeatures::new(DataLimit::for_page_size(4096))
}

#[test]
fn a_home_with_a_nul_byte_is_refused_whatever_the_strategy() {
    let id: LayerId = "top".parse().unwrap();
    let layout = Layout::new(OsStr::from_bytes(b"/a\0b"));
    for depth in [0, 1] {
        let chain: LowerChain = (0..depth).map(|index| link(1, index)).collect();
        for strategy in [None].into_iter().chain(Strategy::ALL.map(Some)) {
            let spec = OverlaySpec::new(&id, &chain, Access::Writable).strategy(strategy);
            let refused = spec
                .plan(&layout, &features().layers_by_fd(true).lowerdir_plus(true))
                .unwrap_err();
            let PlanError::Nul { path, .. } = refused else {
                panic!("{refused:?}")
            };
            assert_eq!(path, layout.home());
        }
    }
}

#[test]
fn a_strategy_that_the_kernel_lacks_is_refused_even_if_others_would_do() {
    let id: LayerId = "top".parse().unwrap();
    let chain: LowerChain = [link(1, 1)].into_iter().collect();
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let lowers = [lower_id(0)];
    for strategy in [Strategy::LayersByFd, Strategy::LowerdirPlus] {
        let spec = spec.clone().lower_ids(&lowers).strategy(Some(strategy));
        let refused = spec.plan(&Layout::new("/h"), &features()).unwrap_err();
        let PlanError::NoStrategy {
            wanted, offered, ..
        } = &refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(*wanted, Some(strategy));
        let both = [Strategy::MountAbsolute, Strategy::MountRelative];
        assert_eq!(*offered, both);
        assert_eq!(
            refused.to_string(),
            format!(
                "this kernel does not offer the mount strategy {strategy}; it offers \
                 mount-absolute and mount-relative"
            )
        );
    }
}

#[test]
fn a_chain_deeper_than_allowed_is_refused_with_both_numbers() {
    let id: LayerId = "top".parse().unwrap();
    let chain: LowerChain = (0..3).map(|index| link(1, index)).collect();
    for access in [Access::Writable, Access::ReadOnly] {
        let spec = OverlaySpec::new(&id, &chain, access);
        let plan = |max_depth| {
            let spec = spec.clone().max_depth(max_depth);
            spec.plan(&Layout::new("/h"), &features())
        };
        let refused = plan(2).unwrap_err();
        let depths = match &refused {
            PlanError::TooDeep {
                depth, max_depth, ..
            } => (*depth, *max_depth),
            other => panic!("{other:?}"),
        };
        assert_eq!(depths, (3, 2));
        assert!(plan(3).is_ok(), "a layer's own contents do not count");
    }
}

#[test]
fn a_refused_mount_points_to_what_the_kernel_said() {
    let (id, chain): (LayerId, LowerChain) =
        ("top".parse().unwrap(), [link(1, 1)].into_iter().collect());
    let layout = Layout::new("/h");
    let refused = |chain: &LowerChain, messages: &[&str]| {
        let plan = OverlaySpec::new(&id, chain, Access::Writable).plan(&layout, &features());
        let messages = messages.iter().map(ToString::to_string).collect();
        MountError::mount(&plan.unwrap(), messages, std::io::Error::other("no")).to_string()
    };
    let overlay = "cannot mount overlay at /h/top/merged";
    assert_eq!(
        refused(&chain, &[]),
        format!("{overlay}; the kernel log (dmesg) may say why")
    );
    assert_eq!(
        refused(&chain, &["one", "two"]),
        format!("{overlay}; the kernel says: one; the kernel says: two")
    );
    let bind = refused(&LowerChain::default(), &[]);
    assert_eq!(bind, "cannot mount bind of /h/top/diff at /h/top/merged");
}

#[test]
fn layers_by_fd_need_the_id_of_every_layer_below() {
    let id: LayerId = "top".parse().unwrap();
    let chain: LowerChain = (0..2).map(|index| link(1, index)).collect();
    let features = features().layers_by_fd(true);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let plan = |spec: OverlaySpec<'_>| spec.plan(&Layout::new("/h"), &features);
    let by_fd = spec.clone().strategy(Some(Strategy::LayersByFd));
    assert_eq!(plan(by_fd), Err(PlanError::NoLowerIds));
    assert_eq!(
        plan(spec.clone()).unwrap().strategy(),
        Some(Strategy::MountAbsolute)
    );
    let lowers = [lower_id(0), lower_id(1), lower_id(2)];
    for count in [0, 1, 3] {
        let refused = plan(spec.clone().lower_ids(&lowers[..count])).unwrap_err();
        let expected = format!("{count} ids were given for 2 lower layers");
        assert_eq!(refused.to_string(), expected);
    }
}

#[test]
fn the_layer_s_own_diff_counts_as_a_lower_where_it_is_read_only() {
    let id: LayerId = "top".parse().unwrap();
    let features = features().layers_by_fd(true).lowerdir_plus(true);
    for (depth, access, fits) in [
        (500, Access::Writable, true),
        (501, Access::Writable, false),
        (499, Access::ReadOnly, true),
        (500, Access::ReadOnly, false),
    ] {
        let chain: LowerChain = (0..depth).map(|index| link(1, index)).collect();
        let lowers: Vec<_> = (0..depth).map(lower_id).collect();
        for strategy in [Strategy::LayersByFd, Strategy::LowerdirPlus] {
            let spec = OverlaySpec::new(&id, &chain, access).lower_ids(&lowers);
            let plan = spec
                .strategy(Some(strategy))
                .plan(&Layout::new("/h"), &features);
            assert_eq!(plan.is_ok(), fits, "{depth} layers, {access:?}");
            if let Err(refused) = plan {
                let expected = "501 lower layers in one mount, the kernel stacks 500";
                assert_eq!(refused.to_string(), expected);
            }
        }
    }
}

#[test]
fn a_label_on_a_bind_mount_is_refused() {
    let (id, chain) = ("base".parse().unwrap(), LowerChain::default());
    let label = label("x").unwrap();
    let spec = OverlaySpec::new(&id, &chain, Access::Writable).label(Some(&label));
    assert_eq!(
        spec.plan(&Layout::new("/h"), &features()),
        Err(PlanError::LabelOnBind)
    );
}
