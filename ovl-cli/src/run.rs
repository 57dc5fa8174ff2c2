//! Carries out one command.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::CommandFactory as _;
use ovl_diff::{DiffPolicy, Timestamp};
use ovl_driver::blocking::Overlay2;
use ovl_driver::{
    Base, CreateLayer, Dirty, Durability, Error, ExportOptions, ImportOptions, InitOptions, Kernel,
    MountRequest, OpenOptions, Repaired, Severity, UpkeepOptions,
};
use ovl_layout::{IdMap, IdMaps, LayerId, XattrNamespace};
use ovl_mount::{OverlayOptions, UnmountMode};
use ovl_quota::{Limits, ProjectId};

use crate::args::{self, Cli, Command};
use crate::demo;
use crate::fail::{Failure, Kind};
use crate::input::Input;
use crate::keeper::{self, Keeper};
use crate::namespace::{self, Entered};
use crate::report::Report;

pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    match &cli.command {
        Command::KeepMounts { inside } => return keeper::run(inside.as_deref()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ovl", &mut script);
            let written = io::stdout().lock().write_all(&script);
            return written.map_err(|error| Failure::output(&error));
        }
        Command::Man => {
            let page = clap_mangen::Man::new(Cli::command());
            return page
                .render(&mut io::stdout().lock())
                .map_err(|error| Failure::output(&error));
        }
        _ => {}
    }
    // The namespace's root is not the user, so the home is worked out before.
    let home = home(cli.home.as_deref());
    let entered = match rustix::process::geteuid().is_root() {
        true => Entered::No,
        false => Entered::Own,
    };
    let (keeper, refused) = match entered {
        Entered::No => (None, None),
        Entered::Own => enter(&cli.command)?,
    };
    if let Command::Demo(demo) = &cli.command {
        return demo::run(demo.rootfs.as_deref(), entered);
    }
    let program = Program {
        home: home?,
        report: Report {
            json: cli.json,
            root: keeper.as_ref().map(Keeper::root),
            namespace: refused.map(|failure| failure.to_string()),
        },
    };
    program.run(&cli.command)
}

/// Enters a user namespace, that of the user's keeper where there is one. Only `mount` starts a
/// keeper. What only reads goes on without a namespace where there can be none; then the reason is
/// given back.
fn enter(command: &Command) -> Result<(Option<Keeper>, Option<Failure>), Failure> {
    let keeper = match command {
        Command::Demo(_) => None,
        Command::Mount(_) => Some(Keeper::find_or_start()?),
        _ => Keeper::find()?,
    };
    let Some(keeper) = keeper else {
        return match namespace::enter() {
            Err(failure) if only_reads(command) => Ok((None, Some(failure))),
            result => result.map(|()| (None, None)),
        };
    };
    keeper.join()?;
    Ok((Some(keeper), None))
}

fn only_reads(command: &Command) -> bool {
    match command {
        Command::Status
        | Command::Ls
        | Command::Inspect(_)
        | Command::Plan(_)
        | Command::Changes(_)
        | Command::Diff(_)
        | Command::Size(_) => true,
        Command::Check(check) => !check.repair,
        Command::Gc(gc) => gc.dry_run,
        Command::Quota(quota) => quota.size.is_none() && quota.inodes.is_none(),
        _ => false,
    }
}

struct Program {
    home: PathBuf,
    report: Report,
}

impl Program {
    fn run(&self, command: &Command) -> Result<(), Failure> {
        match command {
            Command::Init(args) => self.init(args),
            Command::Status => self.report.status(&self.open()?.status()?),
            Command::Create(args) => self.create(args),
            Command::Import(args) => self.import(args),
            Command::Apply(args) => self.apply(args),
            Command::Diff(args) => self.diff(args),
            Command::Changes(args) => {
                let (id, base) = compared(&args.compared)?;
                self.report
                    .changes(&self.open_layers()?.changes(&id, &base)?, args.null)
            }
            Command::Size(args) => {
                let (id, base) = compared(args)?;
                self.report.size(&self.open_layers()?.size(&id, &base)?)
            }
            Command::Mount(args) => {
                let (id, request) = (layer_id(&args.id)?, request(&args.how)?);
                let request = request.dirty(match (args.accept_dirty, args.discard_dirty) {
                    (true, _) => Some(Dirty::Accept),
                    (false, true) => Some(Dirty::Discard),
                    (false, false) => None,
                });
                let path = self.open()?.mount(&id, &request)?;
                let told = self.report.mounted(id.as_str(), &path);
                told.inspect_err(|_| {
                    let path = self.report.reachable(&path);
                    eprintln!("ovl: {id} is mounted at {path}");
                })
            }
            Command::Unmount(args) => {
                let id = layer_id(&args.id)?;
                let holds = self.open()?.unmount(&id, unmount_mode(args.lazy))?;
                self.report.unmounted(id.as_str(), holds)
            }
            Command::UnmountAll(args) => {
                let ids = self.open()?.unmount_all(unmount_mode(args.lazy))?;
                self.report.ids("unmounted", &ids)
            }
            Command::Rm(args) => self.rm(args),
            Command::Ls => self.report.list(&self.open()?.layers()?),
            Command::Inspect(args) => {
                let id = layer_id(&args.id)?;
                self.report.layer(&self.open()?.inspect(&id)?)
            }
            Command::Check(args) => self.check(args),
            Command::Gc(args) => {
                let options = UpkeepOptions::new()
                    .docker_stopped(args.docker_stopped)
                    .dry_run(args.dry_run);
                self.report
                    .garbage(&self.open()?.gc(options)?, args.dry_run)
            }
            Command::Plan(args) => {
                let (id, request) = (layer_id(&args.id)?, request(&args.how)?);
                let store = self.open()?;
                self.report
                    .plan(&store.plan(&id, &request)?, &store.status()?.features)
            }
            Command::Quota(args) => self.quota(args),
            // Done before a home is looked for.
            Command::Demo(_)
            | Command::Completions { .. }
            | Command::Man
            | Command::KeepMounts { .. } => Ok(()),
        }
    }

    fn open(&self) -> Result<Overlay2, Failure> {
        Ok(Overlay2::open(
            Kernel::host(),
            &self.home,
            OpenOptions::new(),
        )?)
    }

    /// For commands that look into layers: what marks there what is deleted or opaque must be seen.
    fn open_layers(&self) -> Result<Overlay2, Failure> {
        let store = self.open()?;
        let Some(refused) = &self.report.namespace else {
            return Ok(store);
        };
        let prefix = match store.settings().xattrs {
            XattrNamespace::User => return Ok(store),
            namespace => namespace.prefix(),
        };
        let message = format!(
            "the layers of {} mark deletions with {prefix}*, which only root sees: {refused}",
            self.home.display()
        );
        Err(Failure::new(Kind::Unsupported, message))
    }

    /// For commands that make a home where there is none, in a directory of its own.
    fn open_or_make(
        &self,
        layer: &CreateLayer,
        durability: Option<Durability>,
    ) -> Result<Overlay2, Failure> {
        if layer.parent.is_some() {
            // It stands on nothing in a new home.
            let options = OpenOptions::new().durability(durability);
            return Ok(Overlay2::open(Kernel::host(), &self.home, options)?);
        }
        self.make_parents()?;
        let options = OpenOptions::new().create(true).durability(durability);
        Ok(Overlay2::open(Kernel::host(), &self.home, options)?)
    }

    fn make_parents(&self) -> Result<(), Failure> {
        match self.home.parent() {
            Some(parent) => std::fs::create_dir_all(parent)
                .map_err(|error| Failure::io("create", parent, &error)),
            None => Ok(()),
        }
    }

    fn init(&self, args: &args::Init) -> Result<(), Failure> {
        let mut options = InitOptions::new().max_depth(args.max_depth);
        if let Some(durability) = &args.durability {
            options = options.durability(parse(durability)?);
        }
        let uids = args.uid_map.as_deref().map(parse::<IdMap>).transpose()?;
        let gids = args.gid_map.as_deref().map(parse::<IdMap>).transpose()?;
        let gids = gids.or_else(|| uids.clone()).unwrap_or_default();
        let uids = uids.unwrap_or_default();
        let size = args.size.as_deref().map(ovl_quota::parse_size);
        let base = args.project_base.map(|number| {
            ProjectId::new(number).ok_or_else(|| {
                let message = format!("{number} is not a project id: 0 means none");
                Failure::new(Kind::InvalidInput, message)
            })
        });
        let options = options
            .id_maps(IdMaps { uids, gids })
            .size(size.transpose().map_err(Failure::input)?)
            .project_base(base.transpose()?);
        self.make_parents()?;
        Overlay2::init(Kernel::host(), &self.home, &options)?;
        Ok(())
    }

    fn create(&self, args: &args::Create) -> Result<(), Failure> {
        let size = args.size.as_deref().map(ovl_quota::parse_size);
        let inodes = args.inodes.as_deref().map(count).transpose()?;
        let layer = new_layer(&args.id, args.parent.as_deref())?
            .size(size.transpose().map_err(Failure::input)?)
            .inodes(inodes);
        let store = self.open_or_make(&layer, None)?;
        match args.writable {
            true => store.create_writable(&layer)?,
            false => store.create(&layer)?,
        }
        Ok(())
    }

    fn quota(&self, args: &args::Quota) -> Result<(), Failure> {
        let id = layer_id(&args.id)?;
        let size = args.size.as_deref().map(or_none(|text| {
            ovl_quota::parse_size(text).map_err(Failure::input)
        }));
        let inodes = args.inodes.as_deref().map(or_none(count));
        let (size, inodes) = (size.transpose()?, inodes.transpose()?);
        let store = self.open()?;
        if size.is_some() || inodes.is_some() {
            let named = Limits::new(size.flatten(), inodes.flatten());
            named.rounded().map_err(Failure::input)?;
            // What is not named stays.
            let change =
                |now: Limits| Limits::new(size.unwrap_or(now.bytes), inodes.unwrap_or(now.inodes));
            return Ok(store.change_limits(&id, change)?);
        }
        self.report.quota(id.as_str(), store.quota(&id)?.as_ref())
    }

    fn import(&self, args: &args::Import) -> Result<(), Failure> {
        let layer = new_layer(&args.id, args.parent.as_deref())?;
        let durability = args.durability.as_deref().map(parse).transpose()?;
        let input = Input::open(&args.file)?;
        let store = self.open_or_make(&layer, durability)?;
        let applied = input.with_progress(|archive, progress| {
            store.import(&layer, archive, foreign(&args.foreign), progress)
        })?;
        let told = self.report.applied(&args.id, &applied);
        told.inspect_err(|_| eprintln!("ovl: {} is imported", layer.id))
    }

    fn check(&self, args: &args::Check) -> Result<(), Failure> {
        let store = self.open()?;
        let repaired = match args.repair {
            true => store.repair(UpkeepOptions::new().docker_stopped(args.docker_stopped))?,
            false => {
                let mut nothing = Repaired::default();
                nothing.left = store.check()?;
                nothing
            }
        };
        self.report.check(&repaired)?;
        let damage = repaired.left.of(Severity::Damage).count();
        match damage {
            0 => Ok(()),
            _ => {
                let advice = match args.repair {
                    true => "what is left has no single right answer",
                    false => "check --repair mends what has one right answer",
                };
                let message = format!("{damage} findings of damage; {advice}");
                Err(Failure::new(Kind::Damaged, message))
            }
        }
    }

    fn apply(&self, args: &args::Apply) -> Result<(), Failure> {
        let id = layer_id(&args.id)?;
        let input = Input::open(&args.file)?;
        let store = self.open()?;
        let applied = input.with_progress(|archive, progress| {
            store.apply(&id, archive, foreign(&args.foreign), progress)
        })?;
        self.report.applied(&args.id, &applied)
    }

    fn diff(&self, args: &args::Diff) -> Result<(), Failure> {
        let (id, base) = compared(&args.compared)?;
        let options = exported(args);
        let file = args
            .output
            .as_deref()
            .filter(|path| *path != Path::new("-"));
        let Some(path) = file else {
            if io::stdout().is_terminal() {
                let message = "an archive would garble the terminal; give a file with -o, or redirect the output";
                return Err(Failure::new(Kind::Usage, message));
            }
            let store = self.open_layers()?;
            // Whole buffers come; the standard library's would look for ends of lines in them.
            let output = io::stdout().as_fd().try_clone_to_owned();
            let output = File::from(output.map_err(|error| Failure::output(&error))?);
            store.diff_with(&id, &base, options, output)?;
            return Ok(());
        };
        let store = self.open_layers()?;
        if !store.contains(&id)? {
            // Said by the store, before a file is made.
            store.inspect(&id)?;
        }
        let failed = |error| Failure::io("write", path, &error);
        let replaced = match std::fs::metadata(path) {
            Ok(found) => found.is_file(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if !replaced {
            // A device or pipe takes what comes, and stays.
            let output = File::options().write(true).open(path).map_err(failed)?;
            let mut output = BufWriter::with_capacity(1 << 17, output);
            store.diff_with(&id, &base, options, &mut output)?;
            return output.flush().map_err(failed);
        }
        // Whatever goes wrong, what was there before stays.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(name);
        let written = self.diff_to(&store, &id, &base, options, &partial);
        let done = written.and_then(|()| std::fs::rename(&partial, path).map_err(failed));
        if done.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&partial);
        }
        done
    }

    fn diff_to(
        &self,
        store: &Overlay2,
        id: &LayerId,
        base: &Base,
        options: ExportOptions,
        path: &Path,
    ) -> Result<(), Failure> {
        let failed = |error| Failure::io("write", path, &error);
        let file = File::options().write(true).create_new(true).open(path);
        let mut output = BufWriter::with_capacity(1 << 17, file.map_err(failed)?);
        store.diff_with(id, base, options, &mut output)?;
        output.flush().map_err(failed)
    }

    fn rm(&self, args: &args::Rm) -> Result<(), Failure> {
        let ids = args
            .ids
            .iter()
            .map(|id| layer_id(id))
            .collect::<Result<Vec<_>, _>>()?;
        let store = self.open()?;
        let mut first: Option<Failure> = None;
        let mut fail = |failure: Failure| match &first {
            None => first = Some(failure),
            // Only one can be the program's own; none is kept quiet.
            Some(_) => failure.report(self.report.json),
        };
        // Whatever order they are given in, children go before their parents: what cannot go yet is
        // tried again as long as others go.
        let mut pending = ids;
        pending.sort();
        pending.dedup();
        while !pending.is_empty() {
            let (mut kept, before) = (Vec::new(), pending.len());
            for id in pending {
                match store.remove(&id, args.force) {
                    Err(error @ Error::HasChildren { .. }) => kept.push((id, error)),
                    Err(Error::LayerNotFound { .. }) if args.force => {}
                    Err(error) => fail(error.into()),
                    Ok(()) => {}
                }
            }
            if kept.len() == before {
                kept.drain(..).for_each(|(_, error)| fail(error.into()));
            }
            pending = kept.into_iter().map(|(id, _)| id).collect();
        }
        if !args.defer
            && let Err(error) = store.reclaim()
        {
            fail(error.into());
        }
        first.map_or(Ok(()), Err)
    }
}

/// `--home`, or the default of the user who runs the program.
fn home(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let home = match given {
        Some(home) => home.to_owned(),
        None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/ovl"),
        None => {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
            let data = set("XDG_DATA_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute());
            let data = data.or_else(|| Some(Path::new(&set("HOME")?).join(".local/share")));
            let message = "neither HOME nor XDG_DATA_HOME says where the store is; give --home";
            data.ok_or_else(|| Failure::new(Kind::Usage, message))?
                .join("ovl")
        }
    };
    std::path::absolute(&home).map_err(|error| Failure::io("find", &home, &error))
}

fn parse<T>(text: &str) -> Result<T, Failure>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(Failure::input)
}

/// A limit, or `none`.
fn or_none<T>(
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> impl Fn(&str) -> Result<Option<T>, Failure> {
    move |text| match text {
        "none" => Ok(None),
        text => parse(text).map(Some),
    }
}

fn count(text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| {
        let message = format!("{text:?} is not a number of inodes, 1 to {}", i64::MAX);
        Failure::new(Kind::InvalidInput, message)
    })
}

fn layer_id(text: &str) -> Result<LayerId, Failure> {
    parse(text)
}

fn new_layer(id: &str, parent: Option<&str>) -> Result<CreateLayer, Failure> {
    let parent = parent.map(layer_id).transpose()?;
    Ok(CreateLayer::new(layer_id(id)?).parent(parent))
}

fn unmount_mode(lazy: bool) -> UnmountMode {
    match lazy {
        true => UnmountMode::Lazy,
        false => UnmountMode::Now,
    }
}

fn compared(args: &args::Compared) -> Result<(LayerId, Base), Failure> {
    let base = match args.parent.as_deref() {
        None => Base::Parent,
        Some("none") => Base::Empty,
        Some(id) => Base::Layer(layer_id(id)?),
    };
    Ok((layer_id(&args.id)?, base))
}

fn exported(args: &args::Diff) -> ExportOptions {
    let policy = match args.policy {
        args::Policy::All => DiffPolicy::All,
        args::Policy::Docker => DiffPolicy::Docker,
    };
    let last = args.clamp_time.map(|secs| Timestamp { secs, nanos: 0 });
    ExportOptions::new().policy(policy).clamp_mtime(last)
}

fn foreign(args: &args::Foreign) -> ImportOptions {
    ImportOptions::new()
        .squash(args.squash)
        .skip_devices(args.skip_devices)
}

fn request(args: &args::How) -> Result<MountRequest, Failure> {
    let label = args.label.as_deref().map(parse).transpose()?;
    let mut options = OverlayOptions::default();
    for option in &args.options {
        options = options.with(option).map_err(Failure::input)?;
    }
    let strategy = match args.strategy.as_deref() {
        None => None,
        Some(text) => Some(text.parse().map_err(|()| {
            let known: Vec<&str> = ovl_mount::Strategy::ALL
                .iter()
                .map(|one| one.as_str())
                .collect();
            let message = format!(
                "{text:?} is not a mount strategy; there are {}",
                known.join(", ")
            );
            Failure::new(Kind::InvalidInput, message)
        })?),
    };
    Ok(MountRequest::new()
        .label(label)
        .options(options)
        .strategy(strategy))
}
