//! A plan fits its strategy's limit exactly or is refused with the numbers, and says to the kernel
//! what was meant. That these properties find a fault is shown with builders that have one.

use std::env;
use std::ffi::OsStr;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ovl_layout::Layout;
use ovl_mount::{Access, MountAction, MountPlan, OverlayCall, PlanError, Setting, Strategy};
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use proptest::{prop_assert, prop_assert_eq};

use crate::case::{Case, case};

/// Cases of each run of `cargo test`.
const CASES: u32 = 10_000;
/// How long to go on instead, in seconds, and with it that this is a run of `cargo xtask fuzz`.
const SECONDS: &str = "OVL_FUZZ_SECONDS";

#[test]
fn a_plan_fits_its_limit_or_is_refused_with_the_numbers() {
    hold("limits", &|case| fits_or_is_refused(case, &build(case)));
}

#[test]
fn the_kernel_reads_back_the_paths_that_were_meant() {
    hold("meaning", &|case| means_what_was_meant(case, &build(case)));
}

/// `cargo xtask fuzz mount-length`: both of each case, which is drawn once, on every core.
#[test]
fn a_plan_keeps_to_its_limit_and_to_its_meaning() {
    hold("mount plans", &|case| {
        let answer = build(case);
        fits_or_is_refused(case, &answer)?;
        means_what_was_meant(case, &answer)
    });
}

/// Every case, or as many as there is time for on all cores.
fn hold(what: &str, property: &(dyn Fn(&Case) -> TestCaseResult + Sync)) {
    let Some(seconds) = env::var(SECONDS).ok() else {
        return hold_once(what, property);
    };
    let time = Duration::from_secs(seconds.parse().unwrap());
    let (start, runs) = (Instant::now(), AtomicU64::new(0));
    let work = || {
        while start.elapsed() < time {
            hold_once(what, property);
            runs.fetch_add(1, Ordering::Relaxed);
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        for _ in 1..cores {
            scope.spawn(work);
        }
        work();
    });
    let (cases, seconds) = (
        runs.into_inner() * u64::from(CASES),
        start.elapsed().as_secs(),
    );
    let line = format!("fuzz {what}: {cases} cases in {seconds} s, no failure\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

fn hold_once(what: &str, property: &dyn Fn(&Case) -> TestCaseResult) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    // Every runner has a seed of its own.
    if let Err(error) = TestRunner::new(config).run(&case(), |case| property(&case)) {
        panic!("{what}: {error}");
    }
}

/// What a builder answers, open to whoever wants to spoil it.
type Answer = Result<Built, Refusal>;

#[derive(Clone, Debug)]
struct Built {
    target: PathBuf,
    access: Access,
    strategy: Option<Strategy>,
    call: Call,
}

#[derive(Clone, Debug)]
enum Call {
    Bind(PathBuf),
    Data(Vec<u8>, Option<PathBuf>),
    Settings(Vec<Setting>, Option<PathBuf>),
    Layers(PathBuf, Vec<Setting>),
}

/// The builder under test.
fn build(case: &Case) -> Answer {
    let plan = case.plan().map_err(|error| Refusal::from(&error))?;
    Ok(Built::from(&plan))
}

impl From<&MountPlan> for Built {
    fn from(plan: &MountPlan) -> Self {
        let call = match plan.action().clone() {
            MountAction::Bind { source } => Call::Bind(source),
            MountAction::Overlay(OverlayCall::Data { data, working_dir }) => {
                let len = data.as_c_str().to_bytes_with_nul().len();
                assert_eq!(len, data.as_bytes().len() + 1);
                Call::Data(data.as_bytes().to_vec(), working_dir)
            }
            MountAction::Overlay(OverlayCall::Settings {
                settings,
                working_dir,
            }) => Call::Settings(settings, working_dir),
            MountAction::Overlay(OverlayCall::Layers { home, settings }) => {
                Call::Layers(home, settings)
            }
        };
        Self {
            target: plan.target().to_owned(),
            access: plan.access(),
            strategy: plan.strategy(),
            call,
        }
    }
}

fn fits_or_is_refused(case: &Case, answer: &Answer) -> TestCaseResult {
    let outcome = answer.as_ref().map(|built| built.strategy);
    let expected = expected(case);
    prop_assert_eq!(outcome, expected.as_ref().copied());
    let Ok(built) = answer else { return Ok(()) };
    match &built.call {
        Call::Bind(_) => {}
        Call::Data(data, _) => {
            prop_assert_eq!(data.len(), case.data_len(built.strategy.unwrap()));
            // With the NUL at the end.
            prop_assert!(data.len() < case.page_size);
            prop_assert!(!data.contains(&0));
        }
        Call::Settings(settings, _) | Call::Layers(_, settings) => {
            for setting in settings {
                if let Setting::Text(_, value) = setting {
                    prop_assert!(value.len() <= 255, "{} has {} bytes", setting, value.len());
                    prop_assert!(!value.as_bytes().contains(&0));
                }
            }
        }
    }
    Ok(())
}

fn means_what_was_meant(case: &Case, answer: &Answer) -> TestCaseResult {
    let Ok(built) = answer else { return Ok(()) };
    let layout = Layout::new(OsStr::from_bytes(&case.home));
    let paths = layout.layer(&case.id);
    prop_assert_eq!(&*built.target, paths.merged());
    prop_assert_eq!(built.access, case.access);
    match &built.call {
        Call::Bind(source) => prop_assert_eq!(&**source, paths.diff()),
        Call::Data(data, working_dir) => check_data(case, data, working_dir.as_deref())?,
        Call::Settings(settings, working_dir) => {
            check_settings(case, settings, working_dir.as_deref())?;
        }
        Call::Layers(home, settings) => {
            prop_assert_eq!(home.as_os_str().as_bytes(), &case.home);
            prop_assert_eq!(read(settings), meant_directories(case));
        }
    }
    Ok(())
}

/// A builder with a fault, and what must find it.
type Broken = (&'static str, fn(&Case) -> Answer);

/// Changes the data string of the true builder's answer.
fn respelt(case: &Case, respell: impl FnOnce(&[u8]) -> Vec<u8>) -> Answer {
    let mut built = build(case)?;
    if let Call::Data(data, _) = &mut built.call {
        *data = respell(data);
    }
    Ok(built)
}

fn without(data: &[u8], unwanted: &[u8], kept: &[u8]) -> Vec<u8> {
    let mut rest = data;
    let mut spelt = Vec::new();
    while let Some((&first, tail)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(unwanted) {
            spelt.extend_from_slice(kept);
            rest = behind;
        } else {
            spelt.push(first);
            rest = tail;
        }
    }
    spelt
}

/// The true builder, asked for something else.
fn asked_otherwise(case: &Case, change: impl FnOnce(&mut Case)) -> Answer {
    let mut other = case.clone();
    change(&mut other);
    build(&other)
}

#[test]
fn builders_that_count_wrongly_are_found_by_the_limits() {
    let broken: [Broken; 3] = [
        ("takes one byte too many", |case| {
            build(&case.clone().with_page_size(case.page_size + 1))
        }),
        ("takes one byte too few", |case| {
            build(&case.clone().with_page_size(case.page_size - 1))
        }),
        ("forgets the escapes in the length", |case| {
            respelt(case, |data| without(data, br"\,", b","))
        }),
    ];
    assert_found(&broken, fits_or_is_refused);
}

#[test]
fn builders_that_spell_wrongly_are_found_by_the_meaning() {
    let broken: [Broken; 10] = [
        ("doubles no backslash in a setting", |case| {
            let mut built = build(case)?;
            if let Call::Settings(settings, _) = &mut built.call {
                for setting in settings {
                    if let Setting::Text("upperdir", value) = setting {
                        let single = without(value.as_bytes(), br"\\", br"\");
                        *value = OsStr::from_bytes(&single).to_owned();
                    }
                }
            }
            Ok(built)
        }),
        ("leaves a comma as it is", |case| {
            respelt(case, |data| without(data, br"\,", b","))
        }),
        ("leaves a colon as it is", |case| {
            respelt(case, |data| without(data, br"\:", b":"))
        }),
        ("leaves a backslash as it is", |case| {
            respelt(case, |data| without(data, br"\\", br"\"))
        }),
        ("leaves the quotes off the label", |case| {
            respelt(case, |data| without(data, b"\"", b""))
        }),
        ("forgets an option", |case| {
            respelt(case, |data| without(data, b"index=off,", b""))
        }),
        ("forgets the work directory", |case| {
            respelt(case, |data| without(data, b"workdir=", b"upperdir="))
        }),
        ("drops the lowest layer", |case| {
            asked_otherwise(case, |case| {
                case.links.pop();
                case.ids.as_mut().map(Vec::pop);
            })
        }),
        ("swaps two layers", |case| {
            asked_otherwise(case, |case| {
                if case.links.len() > 1 {
                    case.links.swap(0, 1);
                    if let Some(ids) = &mut case.ids {
                        ids.swap(0, 1);
                    }
                }
            })
        }),
        ("mounts writable what is sealed", |case| {
            asked_otherwise(case, |case| case.access = Access::Writable)
        }),
    ];
    assert_found(&broken, means_what_was_meant);
}

/// Every fault is found with the cases of one run.
fn assert_found(broken: &[Broken], property: fn(&Case, &Answer) -> TestCaseResult) {
    for (fault, builder) in broken {
        let config = Config {
            cases: CASES,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..Config::default()
        };
        let mut runner = TestRunner::new(config);
        let found = runner.run(&case(), |case| property(&case, &builder(&case)));
        assert!(found.is_err(), "a builder that {fault} goes unnoticed");
    }
}

/// Why a case is refused, with every number.
#[derive(Clone, Debug, PartialEq)]
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
            PlanError::NoStrategy { .. } => Self::NoStrategy,
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
    let lowers = case.stacked();
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
        .all(|lower| case.len_in_home(lower) <= 255)
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
