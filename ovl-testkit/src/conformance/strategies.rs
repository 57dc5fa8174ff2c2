//! How the kernel is told about layers, and what comes of it.

use std::io;
use std::path::{Path, PathBuf};

use ovl_driver::blocking::Overlay2;
use ovl_driver::{Durability, Error, ErrorKind, Finding, FindingKind, InitOptions, MountRequest};
use ovl_layout::{DOCKER_MAX_DEPTH, LayerId, LinkId, LowerChain, MAX_DEPTH, names};
use ovl_mount::{
    Access, KERNEL_MAX_LOWERS, MountError, MountPlan, OverlayOptions, OverlaySpec, PlanError,
    Strategy,
};

use super::support::{chain, create, id, layer, unmount};
use super::{Skip, Subject, list};

list! {
    stacks_of_few_and_many_layers_show_every_layer_by_every_strategy,
    a_stack_of_499_layers_mounts_by_every_strategy_without_a_length,
    a_501st_layer_is_refused_with_the_numbers,
    homes_of_any_bytes_mount_by_every_strategy,
    a_layer_by_fd_is_not_reached_through_a_link,
    what_the_kernel_says_is_part_of_the_error,
    an_overlay_that_comes_up_read_only_is_taken_away,
    row_170_a_mount_point_that_is_a_link_is_refused,
    a_mount_is_private,
    status_says_what_works_and_why_the_rest_does_not,
}

/// A base and `depth` layers on it; each adds a file.
fn stack(subject: &Subject, store: &Overlay2, depth: usize) {
    create(store, "s0", None);
    for level in 0..=depth {
        let name = format!("s{level}");
        if level > 0 {
            create(store, &name, Some(&format!("s{}", level - 1)));
        }
        let diff = store.layout().layer(&id(&name)).diff().to_owned();
        subject.write(&diff.join(format!("layer-{level}")), name.as_bytes());
    }
}

fn assert_shows(subject: &Subject, path: &Path, depth: usize, how: Strategy) {
    for level in 0..=depth {
        let found = subject.read(&path.join(format!("layer-{level}")));
        assert_eq!(found, format!("s{level}").as_bytes(), "{how}");
    }
}

/// Those that the kernel has; that others are left out is told.
fn strategies(subject: &Subject, store: &Overlay2) -> Vec<Strategy> {
    let known = store.status().expect("status").strategies;
    for how in Strategy::ALL {
        if !known.contains(&how) {
            subject.skip(Skip::part(how.as_str(), NOT_SO));
        }
    }
    known
}

const NOT_SO: &str = "this kernel does not mount so";

/// Mounts a layer in one way; `None` when its names are too long for that.
fn mount_by(store: &Overlay2, layer: &str, how: Strategy) -> Option<PathBuf> {
    let request = MountRequest::new().strategy(Some(how));
    match store.mount(&id(layer), &request) {
        Ok(path) => Some(path),
        Err(Error::Plan {
            source: PlanError::DataTooLong { len, limit, .. },
            ..
        }) => {
            assert!(len > limit, "{how}: {len} bytes fit {limit}");
            None
        }
        Err(error) => panic!("{how}: {}", chain(&error)),
    }
}

fn stacks_of_few_and_many_layers_show_every_layer_by_every_strategy(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 127);
    for how in strategies(subject, &store) {
        // Those with children are read-only and show their own contents as one more lower.
        for depth in [0, 1, 2, 63, 64, 126, 127] {
            let top = format!("s{depth}");
            match mount_by(&store, &top, how) {
                Some(path) => {
                    assert_shows(subject, &path, depth, how);
                    unmount(&store, &top);
                }
                None => assert!(
                    depth > 2 && how == Strategy::MountAbsolute,
                    "{how}, {depth}"
                ),
            }
        }
    }
    subject.assert_clean(&store);
}

fn a_stack_of_499_layers_mounts_by_every_strategy_without_a_length(subject: &Subject) {
    let options = InitOptions::new()
        .max_depth(MAX_DEPTH)
        .durability(Durability::None);
    let home = subject.dir().join("home");
    let store = Overlay2::init(subject.kernel().clone(), &home, &options);
    let store = store.expect("a home for deep stacks can be made");
    stack(subject, &store, MAX_DEPTH);
    let top = format!("s{MAX_DEPTH}");
    let error = store.create(&layer("over", Some(&top)));
    let error = error.expect_err("one more could not be mounted read-only");
    assert!(
        matches!(&error, Error::Depth { source, .. } if source.depth == MAX_DEPTH + 1),
        "{error}"
    );
    for (depth, usable) in [(DOCKER_MAX_DEPTH, true), (DOCKER_MAX_DEPTH + 1, false)] {
        let found = store.inspect(&id(&format!("s{depth}")));
        assert_eq!(found.expect("inspect").docker.yes, usable, "{depth}");
    }
    assert!(!store.status().expect("status").docker.yes);
    let findings = store.check().expect("check").findings;
    let deep = |finding: &&Finding| finding.kind == FindingKind::TooDeepForDocker;
    assert_eq!(
        findings.iter().filter(deep).count(),
        MAX_DEPTH - DOCKER_MAX_DEPTH
    );
    let mut mounted = 0;
    for how in strategies(subject, &store) {
        let Some(path) = mount_by(&store, &top, how) else {
            assert!(
                matches!(how, Strategy::MountAbsolute | Strategy::MountRelative),
                "{how}"
            );
            continue;
        };
        mounted += 1;
        for level in [0, 1, 250, MAX_DEPTH - 1, MAX_DEPTH] {
            let found = subject.read(&path.join(format!("layer-{level}")));
            assert_eq!(found, format!("s{level}").as_bytes(), "{how}");
        }
        subject.write(&path.join(format!("by-{how}")), b"writable");
        unmount(&store, &top);
    }
    if mounted == 0 {
        // No strategy here takes so many.
        let error = store.mount(&id(&top), &MountRequest::new());
        assert_eq!(error.expect_err("too long").kind(), ErrorKind::InvalidInput);
    }

    // With its own contents that makes 500, which is the kernel's limit.
    let store_layer = store.inspect(&id(&top)).expect("inspect");
    for how in [Strategy::LayersByFd, Strategy::LowerdirPlus] {
        if !strategies(subject, &store).contains(&how) {
            continue;
        }
        let plan = read_only_plan(subject, &store, &id(&top), &store_layer.chain, how);
        let plan = plan.unwrap_or_else(|error| panic!("{how}: {error}"));
        subject.mkdir(plan.target(), 0o700);
        let backend = subject.kernel().mount();
        backend
            .mount(&plan)
            .unwrap_or_else(|error| panic!("{how}: {}", chain(&error)));
        let found = subject.read(&plan.target().join("layer-0"));
        assert_eq!(found, b"s0", "{how}");
        backend
            .unmount(plan.target(), ovl_mount::UnmountMode::Now)
            .expect("unmount");
        subject.rmdir(plan.target());
    }
    subject.assert_clean(&store);
}

/// The plan of a layer as if it were sealed.
fn read_only_plan(
    subject: &Subject,
    store: &Overlay2,
    top: &LayerId,
    below: &[LayerId],
    how: Strategy,
) -> Result<MountPlan, PlanError> {
    let link = |id: &LayerId| {
        let contents = subject.read(&store.layout().layer(id).dir().join(names::LINK));
        LinkId::parse_file(&contents).expect("a link id")
    };
    let links: LowerChain = below.iter().map(link).collect();
    let features = subject.kernel().mount().features().expect("features");
    OverlaySpec::new(top, &links, Access::ReadOnly)
        .lower_ids(below)
        .strategy(Some(how))
        .plan(store.layout(), &features)
}

fn a_501st_layer_is_refused_with_the_numbers(subject: &Subject) {
    let store = subject.store();
    let features = subject.kernel().mount().features().expect("features");
    let (top, access) = (id("top"), Access::Writable);
    let link = |index: usize| {
        let mut entropy = [0; ovl_layout::LINK_ID_ENTROPY];
        entropy[..8].copy_from_slice(&(index as u64).to_be_bytes());
        LinkId::from_entropy(entropy)
    };
    let links: LowerChain = (0..=KERNEL_MAX_LOWERS).map(link).collect();
    for how in strategies(subject, &store) {
        let spec = OverlaySpec::new(&top, &links, access).strategy(Some(how));
        let refused = spec.plan(store.layout(), &features).expect_err("too many");
        assert!(
            matches!(
                refused,
                PlanError::TooManyLowers {
                    lowers: 501,
                    limit: 500,
                    ..
                }
            ),
            "{how}: {refused}"
        );
    }
}

fn homes_of_any_bytes_mount_by_every_strategy(subject: &Subject) {
    let long = "long-".repeat(40);
    for name in [
        "a:b",
        "a,b=c",
        "a\\b",
        "a\\,b\\:c\\\\",
        "a\"b\"",
        "a b",
        "a\nb",
        "%41%s",
        "l\u{e4}nge",
        &long,
    ] {
        let store = subject.open(name).expect("a home of this name");
        stack(subject, &store, 2);
        for how in strategies(subject, &store) {
            for depth in [1, 2] {
                let top = format!("s{depth}");
                let path = mount_by(&store, &top, how).expect("short enough");
                assert_shows(subject, &path, depth, how);
                if depth == 2 {
                    let file = path.join(how.as_str());
                    subject.write(&file, b"x");
                }
                unmount(&store, &top);
            }
            let written = store.layout().layer(&id("s2")).diff().join(how.as_str());
            assert_eq!(subject.read(&written), b"x", "{name:?}, {how}");
        }
        subject.assert_clean(&store);
    }
}

fn a_layer_by_fd_is_not_reached_through_a_link(subject: &Subject) {
    let store = subject.store();
    let features = subject.kernel().mount().features().expect("features");
    if !features.layers_by_fd {
        subject.skip(Skip::whole(
            "this kernel does not take layers as open directories",
        ));
        return;
    }
    stack(subject, &store, 1);
    let plan = store.plan(&id("s1"), &MountRequest::new()).expect("plan");
    assert_eq!(plan.strategy(), Some(Strategy::LayersByFd));
    subject.mkdir(plan.target(), 0o700);
    let elsewhere = subject.dir().join("elsewhere");
    subject.mkdir(&elsewhere, 0o755);
    // After all that the store checks: the last moment before the kernel is told.
    for part in ["s0", "s0/diff", "s1/diff", "s1/work"] {
        let path = store.home().join(part);
        let aside = subject.dir().join("aside");
        subject.rename(&path, &aside);
        subject.symlink(&path, aside.to_str().expect("the case uses UTF-8"));
        let error = subject.kernel().mount().mount(&plan);
        let error = error.expect_err("a link is in the place of a directory");
        assert!(
            matches!(&error, MountError::Layer { layer, .. } if layer.starts_with(&path)),
            "{part}: {}",
            chain(&error)
        );
        subject.unlink(&path);
        subject.rename(&aside, &path);
    }
    subject.rmdir(plan.target());
    subject.assert_clean(&store);
}

fn what_the_kernel_says_is_part_of_the_error(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 1);
    for how in strategies(subject, &store) {
        let label = "a-label".parse().expect("a label");
        let request = MountRequest::new().label(Some(label)).strategy(Some(how));
        let Err(error) = store.mount(&id("s1"), &request) else {
            // Here is a security module that takes any label.
            unmount(&store, "s1");
            continue;
        };
        let Error::Mount {
            source: MountError::Mount { messages, .. },
            ..
        } = &error
        else {
            panic!("{how}: {}", chain(&error));
        };
        match how {
            // There is nobody to say it.
            Strategy::MountAbsolute | Strategy::MountRelative => assert_eq!(messages, &[""; 0]),
            _ => {
                let said = messages.iter().any(|message| message.contains("context"));
                assert!(said, "{how}: {messages:?}");
                assert!(chain(&error).contains(&messages[0]), "{}", chain(&error));
            }
        }
    }
    subject.assert_clean(&store);
}

fn an_overlay_that_comes_up_read_only_is_taken_away(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 1);
    for how in strategies(subject, &store) {
        let request = MountRequest::new().strategy(Some(how));
        let plan = store.plan(&id("s1"), &request).expect("plan");
        subject.mkdir(plan.target(), 0o700);
        // More than the kernel removes; the store would have, but the plan is carried out alone.
        let mut path = store.layout().layer(&id("s1")).work().join("work");
        if !subject.exists(&path) {
            subject.mkdir(&path, 0o700);
        }
        for name in ["a", "b", "c"] {
            path.push(name);
            subject.mkdir(&path, 0o700);
        }
        let error = subject.kernel().mount().mount(&plan);
        let error = error.expect_err("a writable mount was planned");
        assert!(
            matches!(&error, MountError::NotWritable { target, .. } if target == plan.target()),
            "{how}: {}",
            chain(&error)
        );
        let left = subject.kernel().mount().mount_at(plan.target());
        assert_eq!(left.expect("the table can be read"), None, "{how}");
        subject.rmdir(plan.target());
        // The store clears the way.
        let path = mount_by(&store, "s1", how).expect("short enough");
        subject.write(&path.join(how.as_str()), b"x");
        unmount(&store, "s1");
    }
    subject.assert_clean(&store);
}

fn row_170_a_mount_point_that_is_a_link_is_refused(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 1);
    let elsewhere = subject.dir().join("elsewhere");
    subject.mkdir(&elsewhere, 0o755);
    for name in ["s0", "s1"] {
        for how in strategies(subject, &store) {
            let request = MountRequest::new().strategy(Some(how));
            let plan = store.plan(&id(name), &request).expect("plan");
            subject.symlink(plan.target(), elsewhere.to_str().expect("UTF-8"));
            let error = subject.kernel().mount().mount(&plan);
            let error = error.expect_err("the mount point is a link");
            let MountError::Mount { source, .. } = &error else {
                panic!("{how}: {}", chain(&error));
            };
            assert_eq!(source.kind(), io::ErrorKind::NotADirectory, "{how}");
            let left = subject.kernel().mount().mount_at(&elsewhere);
            assert_eq!(left.expect("the table can be read"), None, "{how}");
            subject.unlink(plan.target());
        }
    }
    subject.assert_clean(&store);
}

fn a_mount_is_private(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 1);
    for name in ["s0", "s1"] {
        for how in strategies(subject, &store) {
            let path = mount_by(&store, name, how).expect("short enough");
            let found = subject.kernel().mount().mount_at(&path);
            let found = found.expect("the table can be read").expect("mounted");
            assert!(!found.shared, "{name}, {how}");
            unmount(&store, name);
        }
    }
    subject.assert_clean(&store);
}

fn status_says_what_works_and_why_the_rest_does_not(subject: &Subject) {
    let store = subject.store();
    stack(subject, &store, 1);
    let status = store.status().expect("status");
    let named: Vec<Strategy> = status.mounting.iter().map(|(how, _)| *how).collect();
    assert_eq!(named, Strategy::ALL);
    for (how, answer) in &status.mounting {
        assert_eq!(status.strategies.contains(how), answer.yes, "{how}");
        assert!(!answer.reason.is_empty(), "{how}");
        let request = MountRequest::new().strategy(Some(*how));
        match store.mount(&id("s1"), &request) {
            Ok(_) => {
                assert!(answer.yes, "{how}: {}", answer.reason);
                unmount(&store, "s1");
            }
            Err(error) => assert!(!answer.yes, "{how}: {}", chain(&error)),
        }
    }
    let options = OverlayOptions::default().with("redirect_dir=on");
    let options = options.and_then(|options| options.with("metacopy=on"));
    let request = MountRequest::new().options(options.expect("options"));
    match store.mount(&id("s1"), &request) {
        Ok(_) => {
            assert!(status.redirects.yes, "{}", status.redirects.reason);
            unmount(&store, "s1");
        }
        Err(error) => assert!(!status.redirects.yes, "{}", chain(&error)),
    }
    let identity = subject.kernel().system().identity().expect("identity");
    assert_eq!(status.devices.yes, !identity.user_namespace);
    let single =
        |ids: &[std::ops::Range<u64>]| ids.iter().map(|ids| ids.end - ids.start).sum::<u64>() == 1;
    let single = single(&identity.uids) || single(&identity.gids);
    assert_eq!(status.owners.yes, !single, "{}", status.owners.reason);
    let shared = subject.kernel().mount().mount_of(store.home());
    let shared = shared
        .expect("mount of the home")
        .is_some_and(|mount| mount.shared);
    assert_eq!(status.private_mounts.yes, !shared);
}
