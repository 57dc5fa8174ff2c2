//! Opening a home, and our own directory in it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use ovl_diff::{DirHandle, EscapedPath, FileKind, Node, RenameMode, TreeBackend};
use ovl_layout::{
    DOCKER_MAX_DEPTH, HomeSettings, IdMap, IdMaps, Layout, MAX_DEPTH, RecordError, XattrNamespace,
    names,
};
use ovl_quota::{Bytes, ProjectId, ProjectRange};

use super::Overlay2;
use super::known::KnownLowers;
use super::owners::Owners;
use super::quota::check_default_size;
use super::status::{refuse_without_d_type, refuse_without_xattrs};
use crate::error::Error;
use crate::files;
use crate::kernel::Kernel;
use crate::system::{Identity, Lock, LockKind};
use crate::types::{InitOptions, OpenOptions};

/// Begins the names of settings that are still being written.
pub(super) const NEW_SETTINGS: &str = ".tmp-settings-";

/// How often settings are written again when they go meanwhile.
const TRIES: usize = 16;

/// The directories under `.ovl`.
#[derive(Clone, Debug)]
pub(super) struct OwnDirs {
    pub(super) staging: DirHandle,
    pub(super) trash: DirHandle,
    pub(super) holds: DirHandle,
    pub(super) children: DirHandle,
}

impl Overlay2 {
    /// Opens the store at `home`, an absolute path.
    ///
    /// Nothing is written, unless there is no home and `options` ask for one. Layers are not
    /// listed, so the cost does not grow with the store.
    ///
    /// # Errors
    ///
    /// [`Error::HomeNotFound`]; [`Error::NotAHome`] for a directory with something else in it;
    /// [`Error::Damaged`] for settings that cannot be read or are of a newer version;
    /// [`Error::Settings`] for other id maps than those asked for, and for a default size that cannot
    /// be a limit; [`Error::Unsupported`] for a relative path, for a home whose layers carry
    /// attributes that this user namespace cannot see, for id maps whose root it does not have, and
    /// for a default size where quotas are not enforced; [`Error::NoDType`]; [`Error::NoXattrs`];
    /// [`Error::MapsUnknown`];
    /// [`Error::Io`].
    ///
    /// # Compatibility
    ///
    /// Homes written by Docker 20.10 and newer open as they are.
    #[doc(alias = "Init")]
    pub fn open(kernel: Kernel, home: &Path, options: OpenOptions) -> Result<Self, Error> {
        let store = Self::open_any(kernel, home, options)?;
        store.refuse_unknown_maps()?;
        Ok(store)
    }

    /// Opens a home whose id maps may still have to be said.
    fn open_any(kernel: Kernel, home: &Path, options: OpenOptions) -> Result<Self, Error> {
        if !home.is_absolute() {
            return Err(Error::Unsupported {
                what: "a relative home path",
                reason: format!(
                    "{} would change its meaning; give an absolute path",
                    home.display()
                ),
            });
        }
        let tree = kernel.tree();
        let identity = identity(&kernel, home)?;
        let own_xattrs = own_xattrs(&identity);
        // Before a home is made that could not be used.
        let wanted = options.id_maps.clone().unwrap_or_default();
        let owners = Owners::new(&identity, &wanted)?;
        if let Some(size) = options.size.filter(|_| options.create) {
            check_size_before(&kernel, home, &HomeSettings::new(own_xattrs), size)?;
        }
        refuse_symlink(tree, home)?;
        let home_dir = match tree.open_root(home) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !options.create {
                    return Err(Error::HomeNotFound {
                        home: home.to_owned(),
                    });
                }
                make_home_dir(&kernel, home, own_xattrs)?;
                tree.open_root(home)
                    .map_err(|error| Error::io("open", home, error))?
            }
            result => result.map_err(|error| Error::io("open", home, error))?,
        };
        refuse_without_d_type(&kernel, home, &home_dir)?;
        let links = match files::open_dir(tree, &home_dir, names::LINK_DIR) {
            Ok(Some(links)) => links,
            Ok(None) => {
                let entries = tree
                    .read_dir(&home_dir)
                    .map_err(|error| Error::io("list", home, error))?;
                // An interrupted creation may have left our own directory behind.
                let is_empty = entries
                    .iter()
                    .all(|entry| entry.name == names::STORE_DIR || entry.name == "lost+found");
                match (is_empty, options.create) {
                    // Another process may have finished making it meanwhile.
                    (false, _) => match files::open_dir(tree, &home_dir, names::LINK_DIR) {
                        Ok(Some(links)) => links,
                        Ok(None) => {
                            return Err(Error::NotAHome {
                                home: home.to_owned(),
                            });
                        }
                        Err(error) => {
                            return Err(Error::io("open", home.join(names::LINK_DIR), error));
                        }
                    },
                    (true, false) => {
                        return Err(Error::HomeNotFound {
                            home: home.to_owned(),
                        });
                    }
                    (true, true) => {
                        refuse_without_xattrs(&kernel, home, &home_dir, own_xattrs)?;
                        let settings = InitOptions::new().id_maps(wanted).settings(own_xattrs);
                        make_home(&kernel, home, &home_dir, &settings, owners)?
                    }
                }
            }
            Err(error) => return Err(Error::io("open", home.join(names::LINK_DIR), error)),
        };
        refuse_writable_by_others(tree, home, &home_dir)?;
        let settings =
            read_settings(tree, home, &home_dir)?.unwrap_or_else(|| HomeSettings::new(own_xattrs));
        if settings.xattrs == XattrNamespace::Trusted && identity.user_namespace {
            return Err(Error::Unsupported {
                what: "this home in a user namespace",
                reason: format!(
                    "its layers mark deletions with {}*, which only root outside can see",
                    XattrNamespace::Trusted.prefix()
                ),
            });
        }
        refuse_without_xattrs(&kernel, home, &home_dir, settings.xattrs)?;
        refuse_other_maps(home, &settings.id_maps, options.id_maps.as_ref())?;
        let size = options.size.or(settings.size.map(Bytes::new));
        let quotas = match size {
            // Better now than at the first container.
            Some(size) => Ok(check_default_size(&kernel, home, &settings, size)?).into(),
            None => OnceLock::new(),
        };
        let store = Self {
            owners: Owners::new(&identity, &settings.id_maps)?,
            layout: Layout::new(home),
            home: home_dir,
            links,
            durability: options.durability.unwrap_or(settings.durability),
            size,
            quotas,
            settings,
            own: Mutex::new(None),
            known_lowers: KnownLowers::default(),
            kernel,
        };
        Ok(store)
    }

    /// Makes a home with settings of its own, or gives settings to one that Docker made.
    ///
    /// A home that has these settings already is fine.
    ///
    /// # Errors
    ///
    /// [`Error::HomeExists`] for a home with other settings; [`Error::Settings`] for a
    /// depth of 0, of more than 499, or of more than 128 in a home that holds layers of Docker, which
    /// could not use it any more, for id maps other than those that such layers were made with, and
    /// for a project that leaves no ids after it; those of [`open`](Self::open).
    pub fn init(kernel: Kernel, home: &Path, options: &InitOptions) -> Result<Self, Error> {
        let store = match Self::open_any(kernel.clone(), home, OpenOptions::new()) {
            Err(Error::HomeNotFound { .. }) => {
                let tree = kernel.tree();
                let identity = identity(&kernel, home)?;
                let settings = options.settings(own_xattrs(&identity));
                check_settings(&kernel, home, &settings)?;
                let owners = Owners::new(&identity, &settings.id_maps)?;
                let dir = match tree.open_root(home) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        make_home_dir(&kernel, home, settings.xattrs)?;
                        tree.open_root(home)
                    }
                    result => result,
                };
                let dir = dir.map_err(|error| Error::io("open", home, error))?;
                refuse_without_xattrs(&kernel, home, &dir, settings.xattrs)?;
                make_home(&kernel, home, &dir, &settings, owners)?;
                Self::open(kernel, home, OpenOptions::new())?
            }
            result => result?,
        };
        let kernel = store.kernel.clone();
        let settings = options.settings(store.settings.xattrs);
        check_settings(&kernel, home, &settings)?;
        if store.settings == settings && store.own_dirs_if_any()?.is_some() {
            return Ok(store);
        }
        if read_settings(kernel.tree(), home, &store.home)?.is_some() {
            if store.settings == settings {
                return Ok(store);
            }
            return Err(Error::HomeExists {
                home: home.to_owned(),
            });
        }
        // A home of Docker.
        if settings.max_depth > DOCKER_MAX_DEPTH && !store.layer_ids()?.is_empty() {
            return Err(Error::Settings {
                home: home.to_owned(),
                problem: format!(
                    "it holds layers of Docker, which could not use one with more than {DOCKER_MAX_DEPTH} below it"
                ),
            });
        }
        let owners = Owners::new(&identity(&kernel, home)?, &settings.id_maps)?;
        store.adopt_group(owners)?;
        let failed = |error| Error::io("write the settings of", home, error);
        let own = files::ensure_dir(kernel.tree(), &store.home, names::STORE_DIR, 0o700);
        write_settings(&kernel, &own.map_err(failed)?, &settings).map_err(failed)?;
        let synced = kernel.tree().sync(Node::Dir(&store.home));
        synced.map_err(|error| Error::io("sync", home, error))?;
        let made = Self::open(kernel, home, OpenOptions::new())?;
        match made.settings == settings {
            true => Ok(made),
            // Another process has set it up meanwhile.
            false => Err(Error::HomeExists {
                home: home.to_owned(),
            }),
        }
    }

    /// Docker gives a home to the group that stands for the containers' root. Without our settings
    /// nobody says which ids that map has.
    fn refuse_unknown_maps(&self) -> Result<(), Error> {
        let (tree, home) = (self.kernel.tree(), self.home());
        if read_settings(tree, home, &self.home)?.is_some() {
            return Ok(());
        }
        let found = tree.metadata(Node::Dir(&self.home));
        match found
            .map_err(|error| Error::io("look at", home, error))?
            .gid
        {
            0 => Ok(()),
            group => Err(Error::MapsUnknown {
                home: home.to_owned(),
                group,
            }),
        }
    }

    /// Gives the directory of a home of Docker to the group of new id maps. Layers that are there
    /// already must have been made with them.
    fn adopt_group(&self, owners: Owners) -> Result<(), Error> {
        let (tree, home, node) = (self.kernel.tree(), self.home(), Node::Dir(&self.home));
        let found = tree.metadata(node);
        let found = found.map_err(|error| Error::io("look at", home, error))?;
        let Some(group) = owners.group().filter(|&group| group != found.gid) else {
            return Ok(());
        };
        if !self.layer_ids()?.is_empty() {
            return Err(Error::Settings {
                home: home.to_owned(),
                problem: format!(
                    "its layers were made with other id maps: the home's group is {}, the root of the gid map is {group}",
                    found.gid
                ),
            });
        }
        owners
            .let_root_in(tree, node)
            .map_err(|error| Error::io("set the owner of", home, error))
    }

    /// Our own directories, made where they are missing: only operations that write call this.
    pub(super) fn own_dirs(&self) -> Result<OwnDirs, Error> {
        let mut cached = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = &*cached {
            return Ok(own.clone());
        }
        let (tree, path) = (self.kernel.tree(), self.layout.store_dir());
        let failed = |error| Error::io("create", &path, error);
        let store = files::ensure_dir(tree, &self.home, names::STORE_DIR, 0o700).map_err(failed)?;
        // In a home of another driver, these are fixed from now on.
        write_settings(&self.kernel, &store, &self.settings).map_err(failed)?;
        if read_settings(tree, self.home(), &self.home)?.as_ref() != Some(&self.settings) {
            // Somebody has set the home up since it was opened here.
            return Err(Error::HomeReplaced {
                home: self.home().to_owned(),
            });
        }
        let mut is_new = false;
        let mut open = |name| {
            is_new |= files::make_dir(tree, &store, name, 0o700).map_err(failed)?;
            tree.open_dir(&store, OsStr::new(name)).map_err(failed)
        };
        let own = OwnDirs {
            staging: open(names::STAGING)?,
            trash: open(names::TRASH)?,
            holds: open(names::HOLDS)?,
            children: open(names::CHILDREN)?,
        };
        // Or what is renamed into them is nowhere after a power cut.
        if is_new && self.durable() {
            tree.sync(Node::Dir(&store)).map_err(failed)?;
        }
        // Who may not do so cannot use quotas, and gets along without.
        let _ = self.leave_inherited_project();
        *cached = Some(own.clone());
        drop(cached);
        // What cannot be taken away is in nobody's way: `check` tells of it, and `gc` why it stays.
        let _ = self.recover(&own);
        Ok(own)
    }

    /// Locks one of our own directories, which stays where it is.
    pub(super) fn lock_own(
        &self,
        dir: &DirHandle,
        name: &str,
        kind: LockKind,
    ) -> Result<Lock, Error> {
        let path = self.layout.store_dir().join(name);
        loop {
            let lock = self.kernel.system().lock(dir, None, kind, true);
            if let Some(lock) = lock.map_err(|error| Error::io("lock", &path, error))? {
                return Ok(lock);
            }
        }
    }

    /// Whether there is anything of ours.
    pub(super) fn has_own_dir(&self) -> Result<bool, Error> {
        let exists = files::exists(self.kernel.tree(), &self.home, names::STORE_DIR);
        exists.map_err(|error| Error::io("look at", self.layout.store_dir(), error))
    }

    /// Our own directories where they exist: for operations that only read.
    pub(super) fn own_dirs_if_any(&self) -> Result<Option<OwnDirs>, Error> {
        let cached = self
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if cached.is_some() {
            return Ok(cached);
        }
        let (tree, path) = (self.kernel.tree(), self.layout.store_dir());
        let failed = |error| Error::io("open", &path, error);
        let Some(store) = files::open_dir(tree, &self.home, names::STORE_DIR).map_err(failed)?
        else {
            return Ok(None);
        };
        let open = |name| files::open_dir(tree, &store, name).map_err(failed);
        match (
            open(names::STAGING)?,
            open(names::TRASH)?,
            open(names::HOLDS)?,
            open(names::CHILDREN)?,
        ) {
            (Some(staging), Some(trash), Some(holds), Some(children)) => Ok(Some(OwnDirs {
                staging,
                trash,
                holds,
                children,
            })),
            _ => Ok(None),
        }
    }
}

fn identity(kernel: &Kernel, home: &Path) -> Result<Identity, Error> {
    let identity = kernel.system().identity();
    identity.map_err(|error| Error::io("read the ids of", home, error))
}

/// Where the caller can keep overlay's private attributes.
pub(super) fn own_xattrs(identity: &Identity) -> XattrNamespace {
    match identity.user_namespace {
        true => XattrNamespace::User,
        false => XattrNamespace::Trusted,
    }
}

fn check_settings(kernel: &Kernel, home: &Path, settings: &HomeSettings) -> Result<(), Error> {
    let refused = |problem| {
        Err(Error::Settings {
            home: home.to_owned(),
            problem,
        })
    };
    let depth = settings.max_depth;
    if !(1..=MAX_DEPTH).contains(&depth) {
        return refused(format!(
            "a depth of {depth} is not possible: 1 to {MAX_DEPTH} is"
        ));
    }
    if let Some(base) = settings.project_base.and_then(ProjectId::new)
        && ProjectRange::after_base(Some(base)).is_none()
    {
        return refused(format!("the project {base} leaves no ids after it"));
    }
    match settings.size {
        Some(size) => check_size_before(kernel, home, settings, Bytes::new(size)),
        None => Ok(()),
    }
}

/// Whether a home that may not be there yet could keep a default size.
fn check_size_before(
    kernel: &Kernel,
    home: &Path,
    settings: &HomeSettings,
    size: Bytes,
) -> Result<(), Error> {
    let exists = kernel.tree().open_root(home).is_ok();
    let parent = home.parent().filter(|_| !exists);
    check_default_size(kernel, parent.unwrap_or(home), settings, size).map(drop)
}

fn refuse_other_maps(home: &Path, found: &IdMaps, wanted: Option<&IdMaps>) -> Result<(), Error> {
    let Some(wanted) = wanted.filter(|&wanted| wanted != found) else {
        return Ok(());
    };
    let maps = |maps: &IdMaps| {
        let map = |map: &IdMap| match map.is_identity() {
            true => "none".to_owned(),
            false => map.to_string(),
        };
        format!(
            "uid map {} and gid map {}",
            map(&maps.uids),
            map(&maps.gids)
        )
    };
    Err(Error::Settings {
        home: home.to_owned(),
        problem: format!("it has {}, not {}", maps(found), maps(wanted)),
    })
}

/// Whoever can change the link could show other layers under the same path.
fn refuse_symlink(tree: &dyn TreeBackend, home: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
        return Ok(());
    };
    // What is wrong with the parent is told by opening the home.
    let Ok(parent) = tree.open_root(parent) else {
        return Ok(());
    };
    match tree.metadata(Node::Entry(&parent, name)) {
        Ok(found) if found.kind == FileKind::Symlink => {
            let target = tree.read_link(&parent, name);
            let target = target.map_err(|error| Error::io("read", home, error))?;
            Err(Error::Unsupported {
                what: "a home that is a symbolic link",
                reason: format!(
                    "{} could lead elsewhere tomorrow; give what it leads to, {}",
                    EscapedPath(home),
                    EscapedPath(Path::new(&target))
                ),
            })
        }
        _ => Ok(()),
    }
}

/// Others could put anything into the layers.
fn refuse_writable_by_others(
    tree: &dyn TreeBackend,
    home: &Path,
    dir: &DirHandle,
) -> Result<(), Error> {
    let found = tree.metadata(Node::Dir(dir));
    let found = found.map_err(|error| Error::io("look at", home, error))?;
    let refused = |reason| {
        Err(Error::Unsupported {
            what: "this home",
            reason,
        })
    };
    let shown = EscapedPath(home);
    if found.mode & 0o022 != 0 {
        let mode = found.mode & 0o7777;
        return refused(format!(
            "others may write to {shown} (mode {mode:04o}) and swap layers; chmod go-w takes that away"
        ));
    }
    Ok(())
}

/// Docker makes the home's directory and nothing above it.
fn make_home_dir(kernel: &Kernel, home: &Path, xattrs: XattrNamespace) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (home.parent(), home.file_name()) else {
        return Err(Error::HomeNotFound {
            home: home.to_owned(),
        });
    };
    let tree = kernel.tree();
    let parent_dir = tree
        .open_root(parent)
        .map_err(|error| Error::io("open", parent, error))?;
    refuse_without_d_type(kernel, parent, &parent_dir)?;
    refuse_without_xattrs(kernel, parent, &parent_dir, xattrs)?;
    match tree.create_dir(&parent_dir, name, 0o710) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create", home, error)),
        Ok(()) => tree
            .sync(Node::Dir(&parent_dir))
            .map_err(|error| Error::io("sync", parent, error)),
    }
}

/// Fills an empty directory; `l` comes last, since it is what makes a home.
fn make_home(
    kernel: &Kernel,
    home: &Path,
    dir: &DirHandle,
    settings: &HomeSettings,
    owners: Owners,
) -> Result<DirHandle, Error> {
    let failed = |error| Error::io("create the layer store at", home, error);
    let tree = kernel.tree();
    owners.let_root_in(tree, Node::Dir(dir)).map_err(failed)?;
    tree.set_mode(Node::Dir(dir), 0o710).map_err(failed)?;
    let store = files::ensure_dir(tree, dir, names::STORE_DIR, 0o700).map_err(failed)?;
    write_settings(kernel, &store, settings).map_err(failed)?;
    let links = files::ensure_dir(tree, dir, names::LINK_DIR, 0o700).map_err(failed)?;
    tree.sync(Node::Dir(&store)).map_err(failed)?;
    tree.sync(Node::Dir(dir)).map_err(failed)?;
    Ok(links)
}

/// Writes the settings of a home that has none; those that are there stay.
fn write_settings(kernel: &Kernel, store: &DirHandle, settings: &HomeSettings) -> io::Result<()> {
    let tree = kernel.tree();
    let mut tries = 0;
    loop {
        if files::exists(tree, store, names::SETTINGS)? {
            return Ok(());
        }
        let mut random = [0; 8];
        kernel.system().fill_random(&mut random)?;
        let name = format!("{NEW_SETTINGS}{:016x}", u64::from_ne_bytes(random));
        let text = settings.to_string();
        files::create(tree, store, &name, 0o600, text.as_bytes(), true)?;
        let (from, to) = (OsStr::new(&name), OsStr::new(names::SETTINGS));
        tries += 1;
        match tree.rename(store, from, store, to, RenameMode::NoReplace) {
            // Whoever reclaims has taken it for that of a process that is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            // Another process was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return files::remove(tree, store, &name);
            }
            Err(error) => return Err(error),
            Ok(()) => return tree.sync(Node::Dir(store)),
        }
    }
}

fn read_settings(
    tree: &dyn TreeBackend,
    home: &Path,
    dir: &DirHandle,
) -> Result<Option<HomeSettings>, Error> {
    let path = Layout::new(home).store_dir().join(names::SETTINGS);
    let failed = |error| Error::io("read", &path, error);
    let Some(store) = files::open_dir(tree, dir, names::STORE_DIR).map_err(failed)? else {
        return Ok(None);
    };
    match files::read(tree, &store, names::SETTINGS).map_err(failed)? {
        None => Ok(None),
        Some(contents) => {
            HomeSettings::parse_file(&contents)
                .map(Some)
                .map_err(|error| match error {
                    RecordError::Newer { .. } => Error::Unsupported {
                        what: "this home",
                        reason: format!("{} is {error}", path.display()),
                    },
                    error => Error::Damaged {
                        id: None,
                        file: path.clone(),
                        problem: error.to_string(),
                    },
                })
        }
    }
}
