//! Strings that must be what Docker writes, and the lengths at which its forms change over.

use std::ffi::CString;
use std::path::Path;

use ovl_layout::{LayerId, Layout, LinkId, LowerChain};
use ovl_mount::{
    Access, Call, DataLimit, Lack, MountAction, MountFeatures, MountLabel, MountPlan, OverlayCall,
    OverlayOptions, OverlaySpec, PlanError, Setting, Strategy,
};

use crate::case::{link, lower_id};

const DOCKER_HOME: &str = "/var/lib/docker/overlay2";
const ID: &str = "5a5f3c9e1d2b4a6870c9d8e7f6a5b4c3d2e1f00918273645546372819abcdef0";

fn features() -> MountFeatures {
    MountFeatures::new(DataLimit::for_page_size(4096))
}

fn chain(depth: usize) -> LowerChain {
    (0..depth).map(|index| link(1, index)).collect()
}

fn two_layers() -> LowerChain {
    ["A".repeat(26), "B".repeat(26)]
        .iter()
        .map(|link| link.parse::<LinkId>().unwrap())
        .collect()
}

fn id() -> LayerId {
    ID.parse().unwrap()
}

fn data(plan: &MountPlan) -> (CString, Option<&Path>) {
    match plan.action() {
        MountAction::Overlay(OverlayCall::Data { data, working_dir }) => {
            (data.as_c_str().to_owned(), working_dir.as_deref())
        }
        other => panic!("{other:?} is not a mount data string"),
    }
}

fn text(plan: &MountPlan) -> String {
    data(plan).0.into_string().unwrap()
}

#[test]
fn a_writable_layer_has_docker_s_string() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let plan = spec.plan(&Layout::new(DOCKER_HOME), &features()).unwrap();
    assert_eq!(
        text(&plan),
        "lowerdir=/var/lib/docker/overlay2/l/AAAAAAAAAAAAAAAAAAAAAAAAAA\
         :/var/lib/docker/overlay2/l/BBBBBBBBBBBBBBBBBBBBBBBBBB,\
         upperdir=/var/lib/docker/overlay2/top/diff,\
         workdir=/var/lib/docker/overlay2/top/work",
    );
    assert_eq!(
        plan.target(),
        Path::new("/var/lib/docker/overlay2/top/merged")
    );
}

#[test]
fn a_read_only_layer_has_docker_s_string() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let spec = OverlaySpec::new(&id, &chain, Access::ReadOnly);
    let plan = spec.plan(&Layout::new(DOCKER_HOME), &features()).unwrap();
    assert_eq!(
        text(&plan),
        "lowerdir=/var/lib/docker/overlay2/top/diff\
         :/var/lib/docker/overlay2/l/AAAAAAAAAAAAAAAAAAAAAAAAAA\
         :/var/lib/docker/overlay2/l/BBBBBBBBBBBBBBBBBBBBBBBBBB",
    );
}

#[test]
fn index_userxattr_and_label_stand_where_docker_has_them() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let label: MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
        .parse()
        .unwrap();
    let features = features().index(true).user_namespace(true);
    let spec = OverlaySpec::new(&id, &chain, Access::ReadOnly).label(Some(&label));
    let plan = spec.plan(&Layout::new("/h"), &features).unwrap();
    assert_eq!(
        text(&plan),
        "index=off,userxattr,\
         lowerdir=/h/top/diff:/h/l/AAAAAAAAAAAAAAAAAAAAAAAAAA:/h/l/BBBBBBBBBBBBBBBBBBBBBBBBBB,\
         context=\"system_u:object_r:container_file_t:s0:c1,c2\"",
    );
}

#[test]
fn the_relative_form_is_docker_s_after_a_change_to_the_home() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let layout = Layout::new(DOCKER_HOME);
    let relative = Some(Strategy::MountRelative);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable).strategy(relative);
    let plan = spec.plan(&layout, &features().index(true)).unwrap();
    let (data, working_dir) = data(&plan);
    assert_eq!(
        data.as_c_str(),
        c"index=off,lowerdir=l/AAAAAAAAAAAAAAAAAAAAAAAAAA:l/BBBBBBBBBBBBBBBBBBBBBBBBBB,upperdir=top/diff,workdir=top/work",
    );
    assert_eq!(working_dir, Some(layout.home()));
}

#[test]
fn explicit_options_follow_docker_s_two() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let options = OverlayOptions::default().with("nodev").unwrap().explicit();
    let features = features().index(true).user_namespace(true);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable).options(options);
    let plan = spec.plan(&Layout::new("/h"), &features).unwrap();
    let start = "index=off,userxattr,redirect_dir=nofollow,metacopy=off,lowerdir=/h/l/A";
    assert!(text(&plan).starts_with(start), "{plan}");
    assert!(!text(&plan).contains("nodev"), "{plan}");
}

#[test]
fn a_kernel_that_does_not_know_them_is_not_given_options_that_ask_for_nothing() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let start = |options: OverlayOptions, features| {
        let spec = OverlaySpec::new(&id, &chain, Access::Writable).options(options);
        let plan = spec.plan(&Layout::new("/h"), &features).unwrap();
        text(&plan)
            .split_once("lowerdir=")
            .unwrap()
            .0
            .trim_end_matches(',')
            .to_owned()
    };
    let ours = OverlayOptions::default().explicit();
    let of_4_0 = features().redirect_dir(false).metacopy(false);
    assert_eq!(start(ours, of_4_0), "");
    assert_eq!(
        start(ours, features().metacopy(false)),
        "redirect_dir=nofollow"
    );
    // What was asked for is the kernel's to refuse, not ours to forget.
    let asked = OverlayOptions::default().with("metacopy=on").unwrap();
    assert_eq!(
        start(asked.explicit(), of_4_0),
        "redirect_dir=on,metacopy=on"
    );
}

#[test]
fn what_is_missing_has_a_reason() {
    let features = features().without(Strategy::LayersByFd, Lack::NoCall(Call::Openat2));
    let features = features.lowerdir_plus(true);
    let lacks = Strategy::ALL.map(|strategy| features.lack(strategy));
    assert_eq!(lacks, [Some(Lack::NoCall(Call::Openat2)), None, None, None]);
    assert_eq!(
        Lack::Forbidden(Call::Fsmount).to_string(),
        "a filter of system calls forbids fsmount(2)"
    );
    let features = features.without(Strategy::LowerdirPlus, Lack::LowerdirPlus);
    assert_eq!(
        features.lack(Strategy::LowerdirPlus),
        Some(Lack::LowerdirPlus)
    );
    assert!(!features.lowerdir_plus && !features.layers_by_fd);
}

#[test]
fn explicit_options_keep_what_was_asked_for() {
    let asked = OverlayOptions::default().with("redirect_dir=on").unwrap();
    assert_eq!(asked.explicit().to_string(), "redirect_dir=on,metacopy=off");
}

#[test]
fn backslash_comma_and_colon_of_a_home_are_escaped() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let plan = spec.plan(&Layout::new(r"/a\b,c:d"), &features()).unwrap();
    assert_eq!(
        text(&plan),
        r"lowerdir=/a\\b\,c\:d/l/AAAAAAAAAAAAAAAAAAAAAAAAAA:/a\\b\,c\:d/l/BBBBBBBBBBBBBBBBBBBBBBBBBB,upperdir=/a\\b\,c\:d/top/diff,workdir=/a\\b\,c\:d/top/work",
    );
}

#[test]
fn settings_are_verbatim_but_for_backslashes_of_upper_and_work() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let features = features()
        .index(true)
        .user_namespace(true)
        .lowerdir_plus(true);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let plan = spec.plan(&Layout::new(r"/a\b,c:d"), &features).unwrap();
    let text = |key, value: &str| Setting::Text(key, value.into());
    assert_eq!(
        plan.action(),
        &MountAction::Overlay(OverlayCall::Settings {
            settings: vec![
                text("index", "off"),
                Setting::Flag("userxattr"),
                text("lowerdir+", r"/a\b,c:d/l/AAAAAAAAAAAAAAAAAAAAAAAAAA"),
                text("lowerdir+", r"/a\b,c:d/l/BBBBBBBBBBBBBBBBBBBBBBBBBB"),
                text("upperdir", r"/a\\b,c:d/top/diff"),
                text("workdir", r"/a\\b,c:d/top/work"),
            ],
            working_dir: None,
        }),
    );
}

#[test]
fn layers_by_fd_are_named_below_the_home_and_never_by_their_links() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let lowers = [lower_id(1), lower_id(0)];
    let features = features()
        .index(true)
        .layers_by_fd(true)
        .lowerdir_plus(true);
    let layout = Layout::new("/a\\b,c:d \"e\"\n%");
    let directory = |key, path: &str| Setting::Directory(key, path.into());
    let own = directory("lowerdir+", "top/diff");
    let below = [
        directory("lowerdir+", "lower-1/diff"),
        directory("lowerdir+", "lower-0/diff"),
    ];
    let upper = [
        directory("upperdir", "top/diff"),
        directory("workdir", "top/work"),
    ];
    for (access, layers) in [
        (Access::Writable, [&below[..], &upper].concat()),
        (Access::ReadOnly, [&[own], &below[..]].concat()),
    ] {
        let spec = OverlaySpec::new(&id, &chain, access).lower_ids(&lowers);
        let plan = spec.plan(&layout, &features).unwrap();
        assert_eq!(plan.strategy(), Some(Strategy::LayersByFd));
        let mut settings = vec![Setting::Text("index", "off".into())];
        settings.extend(layers);
        let home = layout.home().to_owned();
        assert_eq!(
            plan.action(),
            &MountAction::Overlay(OverlayCall::Layers { home, settings })
        );
    }
}

#[test]
fn a_plan_by_fd_prints_what_is_opened() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let lowers = [lower_id(1), lower_id(0)];
    let spec = OverlaySpec::new(&id, &chain, Access::ReadOnly).lower_ids(&lowers);
    let plan = spec.plan(&Layout::new("/h"), &features().layers_by_fd(true));
    assert_eq!(
        plan.unwrap().to_string(),
        "overlay lowerdir+=<fd of top/diff> lowerdir+=<fd of lower-1/diff> \
         lowerdir+=<fd of lower-0/diff>"
    );
}

#[test]
fn volatile_is_said_of_writable_overlays_only() {
    let (id, chain) = ("top".parse().unwrap(), two_layers());
    let options = OverlayOptions::default().with("volatile").unwrap();
    let plan = |chain: &LowerChain, access| {
        let spec = OverlaySpec::new(&id, chain, access).options(options);
        let plan = spec.plan(&Layout::new("/h"), &features()).unwrap();
        plan.to_string()
    };
    assert!(plan(&chain, Access::Writable).starts_with("overlay volatile,lowerdir=/h/l/"));
    assert!(plan(&chain, Access::ReadOnly).starts_with("overlay lowerdir=/h/top/diff:"));
    assert_eq!(
        plan(&LowerChain::default(), Access::Writable),
        "bind /h/top/diff"
    );
}

#[test]
fn a_layer_without_a_parent_is_a_bind_mount_of_its_diff() {
    let (id, chain) = ("base".parse().unwrap(), LowerChain::default());
    for access in [Access::Writable, Access::ReadOnly] {
        let plan = OverlaySpec::new(&id, &chain, access).plan(&Layout::new("/h"), &features());
        let plan = plan.unwrap();
        let source = "/h/base/diff".into();
        assert_eq!(plan.action(), &MountAction::Bind { source });
        assert_eq!(
            (plan.strategy(), plan.to_string()),
            (None, "bind /h/base/diff".to_owned())
        );
    }
}

/// 128 entries of 28 bytes with 127 separators are 3,711 bytes; `index=off,userxattr,lowerdir=` is
/// 29, `,upperdir=<64>/diff,workdir=<64>/work` 157.
#[test]
fn docker_s_deepest_writable_layer_takes_3897_bytes_relative_to_the_home() {
    let (id, chain) = (id(), chain(128));
    let features = features().index(true).user_namespace(true);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    let plan = spec.plan(&Layout::new(DOCKER_HOME), &features).unwrap();
    assert_eq!(plan.strategy(), Some(Strategy::MountRelative));
    assert_eq!(text(&plan).len(), 3_897);

    // What is left of 4,095 is 198: a label of 187 bytes in its frame of 11.
    for (len, fits) in [(187, true), (188, false)] {
        let label: MountLabel = "x".repeat(len).parse().unwrap();
        let plan = spec
            .clone()
            .label(Some(&label))
            .plan(&Layout::new(DOCKER_HOME), &features);
        assert_eq!(plan.is_ok(), fits, "a label of {len} bytes");
        if let Ok(plan) = plan {
            assert_eq!(text(&plan).len(), 4_095);
        }
    }
}

#[test]
fn in_docker_s_home_71_layers_fit_the_absolute_form_and_72_do_not() {
    let (id, layout) = (id(), Layout::new(DOCKER_HOME));
    let plan = |depth, strategy| {
        let chain = chain(depth);
        OverlaySpec::new(&id, &chain, Access::Writable)
            .strategy(strategy)
            .plan(&layout, &features().index(true))
    };
    let deepest = plan(71, None).unwrap();
    assert_eq!(deepest.strategy(), Some(Strategy::MountAbsolute));
    assert_eq!(text(&deepest).len(), 4_059);

    assert_eq!(
        plan(72, None).unwrap().strategy(),
        Some(Strategy::MountRelative)
    );
    let absolute = Some(Strategy::MountAbsolute);
    let refused = plan(72, absolute).unwrap_err();
    assert!(
        matches!(
            refused,
            PlanError::DataTooLong {
                strategy: Strategy::MountAbsolute,
                len: 4_113,
                limit: 4_095,
                lowers: 72,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        refused.to_string(),
        "the mount data for 72 lower layers has 4113 bytes, mount-absolute takes 4095; \
         use a shorter home path, fewer layers or another strategy",
    );
}

#[test]
fn a_string_of_one_page_minus_the_nul_fits_and_one_byte_more_does_not() {
    let (id, chain) = (id(), chain(3));
    let spec =
        OverlaySpec::new(&id, &chain, Access::ReadOnly).strategy(Some(Strategy::MountRelative));
    let layout = Layout::new("/h");
    // lowerdir=<64>/diff:<28>:<28>:<28>
    let len = 9 + 69 + 3 * 29;
    let with_page = |size| MountFeatures::new(DataLimit::for_page_size(size));
    assert_eq!(
        text(&spec.plan(&layout, &with_page(len + 1)).unwrap()).len(),
        len
    );
    let refused = spec.plan(&layout, &with_page(len)).unwrap_err();
    let PlanError::DataTooLong {
        len: told,
        limit,
        lowers,
        ..
    } = refused
    else {
        panic!("{refused:?}");
    };
    assert_eq!((told, limit, lowers), (len, len - 1, 4));
}

#[test]
fn settings_are_absolute_up_to_255_bytes_and_relative_to_the_home_beyond() {
    let id: LayerId = "top".parse().unwrap();
    let chain = two_layers();
    let features = features().lowerdir_plus(true);
    let spec = OverlaySpec::new(&id, &chain, Access::Writable);
    // A link's path has 29 bytes more than the home.
    for (home_len, absolute) in [(226, true), (227, false), (4000, false)] {
        let layout = Layout::new(format!("/{}", "h".repeat(home_len - 1)));
        let plan = spec.plan(&layout, &features).unwrap();
        let MountAction::Overlay(OverlayCall::Settings {
            settings,
            working_dir,
        }) = plan.action()
        else {
            panic!("{plan:?}");
        };
        let link = if absolute {
            layout.link(chain.links()[0])
        } else {
            format!("l/{}", "A".repeat(26)).into()
        };
        assert_eq!(
            settings[0],
            Setting::Text("lowerdir+", link.into()),
            "{home_len}"
        );
        assert_eq!(working_dir.as_deref(), (!absolute).then(|| layout.home()));
    }
}
