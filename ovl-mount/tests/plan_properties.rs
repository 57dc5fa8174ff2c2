//! A plan fits its strategy's limit exactly or is refused with the numbers, and says to the kernel
//! what was meant.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use ovl_layout::Layout;
use ovl_mount::{MountAction, OverlayCall, PlanError, Setting, Strategy};
use proptest::test_runner::TestCaseResult;
use proptest::{prop_assert, prop_assert_eq, proptest};

use crate::case::{Case, case};

proptest! {
    #[test]
    fn a_plan_fits_its_limit_or_is_refused_with_the_numbers(case in case()) {
        let plan = case.plan();
        let outcome = plan.as_ref().map(|plan| plan.strategy()).map_err(Refusal::from);
        prop_assert_eq!(outcome, expected(&case));
        let Ok(plan) = plan else { return Ok(()) };
        match plan.action() {
            MountAction::Bind { .. } => {}
            MountAction::Overlay(OverlayCall::Data { data, .. }) => {
                prop_assert_eq!(data.as_bytes().len(), case.data_len(plan.strategy().unwrap()));
                prop_assert!(data.as_c_str().to_bytes_with_nul().len() <= case.page_size);
            }
            MountAction::Overlay(
                OverlayCall::Settings { settings, .. } | OverlayCall::Layers { settings, .. },
            ) => {
                for setting in settings {
                    if let Setting::Text(_, value) = setting {
                        prop_assert!(value.len() <= 255, "{} has {} bytes", setting, value.len());
                        prop_assert!(!value.as_bytes().contains(&0));
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernel_reads_back_the_paths_that_were_meant(case in case()) {
        let Ok(plan) = case.plan() else { return Ok(()) };
        let layout = Layout::new(OsStr::from_bytes(&case.home));
        let paths = layout.layer(&case.id);
        prop_assert_eq!(plan.target(), paths.merged());
        prop_assert_eq!(plan.access(), case.access);
        match plan.action() {
            MountAction::Bind { source } => prop_assert_eq!(source, paths.diff()),
            MountAction::Overlay(OverlayCall::Data { data, working_dir }) => {
                check_data(&case, data.as_bytes(), working_dir.as_deref())?;
            }
            MountAction::Overlay(OverlayCall::Settings { settings, working_dir }) => {
                check_settings(&case, settings, working_dir.as_deref())?;
            }
            MountAction::Overlay(OverlayCall::Layers { home, settings }) => {
                prop_assert_eq!(home.as_os_str().as_bytes(), &case.home);
                prop_assert_eq!(read(settings), meant_directories(&case));
            }
        }
    }
}

/// Why a case is refused, with every number.
#[derive(Debug, PartialEq)]
enum Refusal {
    DataTooLong {
        strategy: Strategy,
        len: usize,
        limit: usize,
        lowers: usize,
    },
    TooManyLowers {
        lowers: usize,
        limit: usize,
    },
    NoStrategy,
    NoLowerIds,
    LabelOnBind,
    Other(String),
}

impl From<&PlanError> for Refusal {
    fn from(error: &PlanError) -> Self {
        match *error {
            PlanError::DataTooLong {
                strategy,
                len,
                limit,
                lowers,
                ..
            } => Self::DataTooLong {
                strategy,
                len,
                limit,
                lowers,
            },
            PlanError::TooManyLowers { lowers, limit, .. } => Self::TooManyLowers { lowers, limit },
            PlanError::NoStrategy => Self::NoStrategy,
            PlanError::NoLowerIds => Self::NoLowerIds,
            PlanError::LabelOnBind => Self::LabelOnBind,
            ref other => Self::Other(other.to_string()),
        }
    }
}

/// The outcome, worked out from the case alone. No strategy means a bind mount.
fn expected(case: &Case) -> Result<Option<Strategy>, Refusal> {
    if case.links.is_empty() {
        return match case.label {
            Some(_) => Err(Refusal::LabelOnBind),
            None => Ok(None),
        };
    }
    let lowers = case.lowers().len();
    if lowers > 500 {
        return Err(Refusal::TooManyLowers { lowers, limit: 500 });
    }
    let data = |strategy| {
        let (len, limit) = (case.data_len(strategy), case.page_size - 1);
        if len <= limit {
            return Ok(Some(strategy));
        }
        Err(Refusal::DataTooLong {
            strategy,
            len,
            limit,
            lowers,
        })
    };
    match (case.strategy, case.features.layers_by_fd, &case.ids) {
        (None | Some(Strategy::LayersByFd), true, Some(_)) => {
            return Ok(Some(Strategy::LayersByFd));
        }
        (Some(Strategy::LayersByFd), false, _) => return Err(Refusal::NoStrategy),
        (Some(Strategy::LayersByFd), true, None) => return Err(Refusal::NoLowerIds),
        _ => {}
    }
    match (case.strategy, case.features.lowerdir_plus) {
        // Relative to the home no value has more than 133 bytes, and no label more than 255.
        (None | Some(Strategy::LowerdirPlus), true) => Ok(Some(Strategy::LowerdirPlus)),
        (Some(Strategy::LowerdirPlus), false) => Err(Refusal::NoStrategy),
        (None, false) => data(Strategy::MountAbsolute).or_else(|_| data(Strategy::MountRelative)),
        (Some(strategy), _) => data(strategy),
    }
}

/// Reads a `mount(2)` string as the kernel does, and compares it with what was meant.
fn check_data(case: &Case, data: &[u8], working_dir: Option<&Path>) -> TestCaseResult {
    let meant = |relative: &String| match working_dir {
        None => case.in_home(relative),
        Some(_) => relative.clone().into_bytes(),
    };
    check_working_dir(case, working_dir)?;
    // The security module takes its option out first, quotation marks and all.
    let label = case.label.as_ref();
    let context = label.map_or_else(String::new, |label| format!(r#",context="{label}""#));
    let data = data.strip_suffix(context.as_bytes());
    prop_assert!(data.is_some(), "the label is not at the end as given");

    let options = split_unescaped(data.unwrap_or_default(), b',');
    let words = case.words();
    prop_assert!(options.len() > words.len());
    let (front, paths) = options.split_at(words.len());
    prop_assert_eq!(
        front,
        words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>()
    );

    let mut paths = paths.iter().map(|option| key_and_value(option));
    let Some((b"lowerdir", lowers)) = paths.next() else {
        return Err(proptest::test_runner::TestCaseError::fail("no lowerdir"));
    };
    let lowers: Vec<_> = split_unescaped(lowers, b':')
        .into_iter()
        .map(unescape)
        .collect();
    prop_assert_eq!(lowers, case.lowers().iter().map(meant).collect::<Vec<_>>());

    let rest: Vec<_> = paths.map(|(key, value)| (key, unescape(value))).collect();
    let meant: Vec<_> = case
        .upper_and_work()
        .map_or_else(Vec::new, |[upper, work]| {
            vec![
                (b"upperdir".as_slice(), meant(&upper)),
                (b"workdir".as_slice(), meant(&work)),
            ]
        });
    prop_assert_eq!(rest, meant);
    Ok(())
}

/// Reads `fsconfig(2)` settings as the kernel does, and compares them with what was meant.
fn check_settings(case: &Case, settings: &[Setting], working_dir: Option<&Path>) -> TestCaseResult {
    check_working_dir(case, working_dir)?;
    let doubled = |path: &[u8]| path.len() + path.iter().filter(|&&byte| byte == b'\\').count();
    let fits = case
        .lowers()
        .iter()
        .all(|lower| case.in_home(lower).len() <= 255)
        && case
            .upper_and_work()
            .iter()
            .flatten()
            .all(|dir| doubled(&case.in_home(dir)) <= 255);
    prop_assert_eq!(
        working_dir.is_none(),
        fits,
        "absolute exactly where every value fits"
    );

    let meant = |relative: &String| match working_dir {
        None => case.in_home(relative),
        Some(_) => relative.clone().into_bytes(),
    };
    let layers = case.lowers().into_iter().map(|lower| ("lowerdir+", lower));
    let upper = case.upper_and_work().into_iter();
    let upper = upper.flat_map(|[upper, work]| [("upperdir", upper), ("workdir", work)]);
    let layers = layers.chain(upper).map(|(key, path)| (key, meant(&path)));
    prop_assert_eq!(read(settings), around(case, layers));
    Ok(())
}

/// What the layers are opened as, relative to the home.
fn meant_directories(case: &Case) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let layers = case
        .lower_dirs()
        .into_iter()
        .map(|lower| ("lowerdir+", lower));
    let upper = case.upper_and_work().into_iter();
    let upper = upper.flat_map(|[upper, work]| [("upperdir", upper), ("workdir", work)]);
    around(
        case,
        layers
            .chain(upper)
            .map(|(key, path)| (key, path.into_bytes())),
    )
}

/// The options in front of the layers and the label behind them.
fn around(
    case: &Case,
    layers: impl Iterator<Item = (&'static str, Vec<u8>)>,
) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let words = case
        .words()
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((key, value)) => (key, Some(value.into())),
            None => (word, None),
        });
    let label = case.label.iter();
    let label = label.map(|label| ("context", Some(label.as_str().into())));
    words
        .chain(layers.map(|(key, value)| (key, Some(value))))
        .chain(label)
        .collect()
}

/// The settings as the kernel reads them.
fn read(settings: &[Setting]) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let one = |setting: &Setting| match setting {
        Setting::Flag(key) => (*key, None),
        Setting::Text(key @ ("upperdir" | "workdir"), value) => {
            (*key, Some(unescape(value.as_bytes())))
        }
        Setting::Text(key, value) => (*key, Some(value.as_bytes().to_vec())),
        Setting::Directory(key, path) => (*key, Some(path.as_os_str().as_bytes().to_vec())),
        _ => ("a kind of setting that this test does not know", None),
    };
    settings.iter().map(one).collect()
}

fn check_working_dir(case: &Case, working_dir: Option<&Path>) -> TestCaseResult {
    if let Some(working_dir) = working_dir {
        prop_assert_eq!(working_dir.as_os_str().as_bytes(), &case.home);
    }
    Ok(())
}

/// `ovl_next_opt` and `ovl_parse_param_split_lowerdirs` of `fs/overlayfs/params.c`: a backslash
/// keeps the next byte from separating.
fn split_unescaped(bytes: &[u8], separator: u8) -> Vec<&[u8]> {
    let (mut parts, mut start, mut index) = (Vec::new(), 0, 0);
    while index < bytes.len() {
        if bytes[index] == b'\\' {
            index += 1;
        } else if bytes[index] == separator {
            parts.push(&bytes[start..index]);
            start = index + 1;
        }
        index += 1;
    }
    parts.push(&bytes[start..]);
    parts
}

/// `ovl_unescape`: a backslash is dropped and the next byte taken as it is.
fn unescape(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.iter();
    std::iter::from_fn(|| match bytes.next() {
        Some(b'\\') => bytes.next().copied(),
        byte => byte.copied(),
    })
    .collect()
}

/// `vfs_parse_monolithic_sep`: the first `=` ends the key.
fn key_and_value(option: &[u8]) -> (&[u8], &[u8]) {
    match option.iter().position(|&byte| byte == b'=') {
        Some(at) => (&option[..at], &option[at + 1..]),
        None => (option, b""),
    }
}
