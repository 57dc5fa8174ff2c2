//! Homes: how they are made, and which are refused.

use ovl_driver::blocking::Overlay2;
use ovl_driver::{Durability, Error, ErrorKind, InitOptions, MountRequest, OpenOptions};
use ovl_layout::{IdMap, IdMaps, names};

use super::support::{chain, create, id, layer};
use super::{Subject, list};

list! {
    a_home_keeps_the_settings_that_it_was_made_with,
    a_home_takes_no_other_settings_later,
    settings_that_were_made_meanwhile_are_never_written_over,
    settings_that_cannot_be_make_no_home,
    a_home_of_docker_takes_settings_that_docker_can_live_with,
    row_151_a_home_of_a_newer_format_is_refused_with_the_reason,
    row_152_a_home_that_others_may_write_to_is_refused,
    row_153_a_home_that_is_a_symbolic_link_is_refused,
    row_153_a_home_that_was_replaced_is_never_mounted_from,
    row_168_a_relative_home_is_refused,
}

fn options() -> InitOptions {
    let map: IdMap = "0:100000:65536".parse().expect("a map");
    let (uids, gids) = (map.clone(), map);
    InitOptions::new()
        .max_depth(300)
        .durability(Durability::Full)
        .id_maps(IdMaps { uids, gids })
}

fn init(subject: &Subject, options: &InitOptions) -> Result<Overlay2, Error> {
    Overlay2::init(
        subject.kernel().clone(),
        &subject.dir().join("home"),
        options,
    )
}

fn assert_refused(result: Result<Overlay2, Error>, kind: ErrorKind, words: &str) {
    let error = result.expect_err("the home is refused");
    assert_eq!(error.kind(), kind, "{}", chain(&error));
    assert!(chain(&error).contains(words), "{}", chain(&error));
}

fn a_home_keeps_the_settings_that_it_was_made_with(subject: &Subject) {
    let options = InitOptions::new()
        .max_depth(300)
        .durability(Durability::Full);
    let made = init(subject, &options).expect("a home can be made");
    assert_eq!(made.settings().max_depth, 300);
    let opened = subject.open("home").expect("it opens");
    assert_eq!(opened.settings(), made.settings());
    assert_eq!(opened.settings().durability, Durability::Full);
    init(subject, &options).expect("the same settings again are fine");
}

fn a_home_takes_no_other_settings_later(subject: &Subject) {
    init(subject, &InitOptions::new()).expect("a home can be made");
    let again = init(subject, &options());
    assert_refused(again, ErrorKind::AlreadyExists, "other settings");
    assert_eq!(subject.store().settings().max_depth, 128);
}

fn settings_that_were_made_meanwhile_are_never_written_over(subject: &Subject) {
    let store = subject.store();
    subject.remove_tree(&store.layout().store_dir());
    let early = subject.open("home").expect("a home of Docker");
    let options = InitOptions::new().max_depth(7);
    init(subject, &options).expect("it has no settings yet");
    let error = early.create(&layer("x", None));
    let error = error.expect_err("the home has other settings now");
    assert!(matches!(error, Error::HomeReplaced { .. }), "{error}");
    let opened = subject.open("home").expect("it opens");
    assert_eq!(opened.settings().max_depth, 7);
    assert!(opened.layers().expect("layers").layers.is_empty());
}

fn settings_that_cannot_be_make_no_home(subject: &Subject) {
    for depth in [0, 500, usize::MAX] {
        let made = init(subject, &InitOptions::new().max_depth(depth));
        assert_refused(made, ErrorKind::InvalidInput, "depth");
    }
    assert_eq!(subject.names(subject.dir()), [""; 0]);
}

fn a_home_of_docker_takes_settings_that_docker_can_live_with(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    subject.remove_tree(&store.layout().store_dir());
    let deep = init(subject, &InitOptions::new().max_depth(129));
    assert_refused(deep, ErrorKind::InvalidInput, "Docker");
    let store = init(subject, &InitOptions::new().durability(Durability::None));
    let store = store.expect("Docker does not know of durability");
    assert_eq!(store.settings().durability, Durability::None);
    assert_eq!(store.layers().expect("layers").layers.len(), 1);
}

fn row_151_a_home_of_a_newer_format_is_refused_with_the_reason(subject: &Subject) {
    let store = subject.store();
    let path = store.layout().store_dir().join(names::SETTINGS);
    let newer = b"ovl-home 2\nsomething new\nend\n";
    subject.rewrite(&path, newer);
    assert_refused(subject.open("home"), ErrorKind::Unsupported, "version 2");
    assert_eq!(subject.read(&path), newer);
    subject.rewrite(&path, b"");
    assert_refused(subject.open("home"), ErrorKind::Damaged, "settings");
}

fn row_152_a_home_that_others_may_write_to_is_refused(subject: &Subject) {
    let store = subject.store();
    for mode in [0o720, 0o712, 0o777] {
        subject.chmod(store.home(), mode);
        assert_refused(subject.open("home"), ErrorKind::Unsupported, "chmod go-w");
    }
    // The modes that Docker's versions have given.
    for mode in [0o700, 0o701, 0o710] {
        subject.chmod(store.home(), mode);
        subject.open("home").expect("a home of Docker's mode opens");
    }
}

fn row_153_a_home_that_is_a_symbolic_link_is_refused(subject: &Subject) {
    let store = subject.store();
    subject.symlink(&subject.dir().join("other"), "home");
    assert_refused(
        subject.open("other"),
        ErrorKind::Unsupported,
        "symbolic link",
    );
    drop(store);
}

fn row_153_a_home_that_was_replaced_is_never_mounted_from(subject: &Subject) {
    let store = subject.store();
    create(&store, "base", None);
    let home = store.home().to_owned();
    subject.rename(&home, &subject.dir().join("moved"));
    let other = subject.store();
    create(&other, "base", None);
    let error = store.mount(&id("base"), &MountRequest::new());
    let error = error.expect_err("it is another home");
    assert!(matches!(error, Error::HomeReplaced { .. }), "{error}");
    assert!(chain(&error).contains("open the store again"));
    subject.assert_clean(&other);
}

fn row_168_a_relative_home_is_refused(subject: &Subject) {
    let options = OpenOptions::new().create(true);
    let opened = Overlay2::open(subject.kernel().clone(), "home".as_ref(), options);
    assert_refused(opened, ErrorKind::Unsupported, "absolute");
}
