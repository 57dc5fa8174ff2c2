//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// A layer store for overlayfs, in the format of Docker's overlay2 driver.
#[derive(Debug, Parser)]
#[command(name = "ovl", version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// The store's home [default: /var/lib/ovl for root, ovl in the XDG data directory otherwise]
    #[arg(
        long,
        value_name = "DIR",
        global = true,
        env = "OVL_HOME",
        hide_env_values = true
    )]
    pub(crate) home: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell the whole story in a throw-away home, and check it
    Demo(Demo),
    /// Make a home with settings of its own
    Init(Init),
    /// Show what this home and this kernel can do
    Status,
    /// Make an empty layer
    Create(Create),
    /// Make a layer from an archive, in one step
    Import(Import),
    /// Apply an archive to an open layer that is not mounted
    Apply(Apply),
    /// Write what a layer changes as an archive
    Diff(Diff),
    /// List what a layer changes: A, C or D and the path
    Changes(Changes),
    /// Print how many bytes a layer adds
    Size(Compared),
    /// Mount a layer and print where
    Mount(Mount),
    /// Release a mount; the last one unmounts
    Unmount(Unmount),
    /// Unmount all layers, whoever holds them
    ///
    /// In a home that a running Docker uses too, that takes the roots of its containers away.
    UnmountAll(UnmountAll),
    /// Remove layers
    Rm(Rm),
    /// List the layers
    Ls,
    /// Show one layer: paths, chain, mount and who holds it
    Inspect(One),
    /// Find what is wrong in the home
    Check(Check),
    /// Take away what nobody needs any more
    Gc(Gc),
    /// Show how a layer would be mounted; needs no privileges
    Plan(Plan),
    /// Show what a layer takes and may take, or change its limits
    Quota(Quota),
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man,
    /// Live in a namespace until nothing is mounted there
    #[command(hide = true)]
    KeepMounts {
        /// The directory in which it is noted; it is in its namespace already
        #[arg(long)]
        inside: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// An archive to use as the base layer, instead of files of this machine
    #[arg(long, value_name = "FILE")]
    pub(crate) rootfs: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Layers that may stand below a layer; Docker cannot use more than 128
    #[arg(long, value_name = "N", default_value_t = ovl_layout::DOCKER_MAX_DEPTH)]
    pub(crate) max_depth: usize,
    /// What is on disk when a command is done [default: layer]
    #[arg(long, value_name = "none|layer|full")]
    pub(crate) durability: Option<String>,
    /// User ids: N from C inside containers are those from H on disk; several with commas between
    #[arg(long, value_name = "C:H:N")]
    pub(crate) uid_map: Option<String>,
    /// The same for group ids [default: the map of user ids]
    #[arg(long, value_name = "C:H:N")]
    pub(crate) gid_map: Option<String>,
    /// Bytes that a writable layer may take, where its maker does not say
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// The project id after which the home's own begin
    #[arg(long, value_name = "N")]
    pub(crate) project_base: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct One {
    /// The layer
    pub(crate) id: String,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The new layer
    pub(crate) id: String,
    /// The layer to stand on
    #[arg(long, value_name = "ID")]
    pub(crate) parent: Option<String>,
    /// A layer that a container will write to
    #[arg(long)]
    pub(crate) writable: bool,
    /// Bytes that it may take, such as 10G; needs --writable [default: the home's]
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<String>,
    /// Files, directories and other inodes that it may take; needs --writable
    #[arg(long, value_name = "N")]
    pub(crate) inodes: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// The layer
    pub(crate) id: String,
    /// Bytes that it may take from now on
    #[arg(long, value_name = "SIZE|none")]
    pub(crate) size: Option<String>,
    /// Files, directories and other inodes that it may take from now on
    #[arg(long, value_name = "N|none")]
    pub(crate) inodes: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Foreign {
    /// Give what belongs to users that do not exist here to root
    #[arg(long)]
    pub(crate) squash: bool,
    /// Leave out device nodes that this user cannot make
    #[arg(long)]
    pub(crate) skip_devices: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The new layer
    pub(crate) id: String,
    /// The archive: tar, gzip or zstd; - is standard input
    pub(crate) file: PathBuf,
    /// The layer to stand on
    #[arg(long, value_name = "ID")]
    pub(crate) parent: Option<String>,
    /// What is on disk when the command is done
    #[arg(long, value_name = "none|layer|full")]
    pub(crate) durability: Option<String>,
    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The layer
    pub(crate) id: String,
    /// The archive: tar, gzip or zstd; - is standard input
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) foreign: Foreign,
}

#[derive(Debug, Args)]
pub(crate) struct Compared {
    /// The layer
    pub(crate) id: String,
    /// What to compare with: a layer, or `none` for nothing [default: its parent]
    #[arg(long, value_name = "ID")]
    pub(crate) parent: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    pub(crate) compared: Compared,
    /// Where to write the archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// What to write: all that applying it can bring back, or what Docker writes
    #[arg(long, value_name = "POLICY", default_value = "all")]
    pub(crate) policy: Policy,
    /// Replace later times of modification by this one, in seconds since 1970
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    pub(crate) clamp_time: Option<i64>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Policy {
    /// Times to the nanosecond, user attributes, access control lists, the root
    All,
    /// Whole seconds, capabilities alone, no root
    Docker,
}

#[derive(Debug, Args)]
pub(crate) struct Changes {
    #[command(flatten)]
    pub(crate) compared: Compared,
    /// Print paths raw and end each line with NUL
    #[arg(short = '0', long = "null")]
    pub(crate) null: bool,
}

#[derive(Debug, Args)]
pub(crate) struct How {
    /// The SELinux context of everything in the mount
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// A mount option: nodev, nosuid, noexec, volatile, redirect_dir=, metacopy=, xino=
    #[arg(long = "option", short = 'O', value_name = "O")]
    pub(crate) options: Vec<String>,
    /// Insist on layers-by-fd, lowerdir-plus, mount-absolute or mount-relative
    #[arg(long)]
    pub(crate) strategy: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The layer
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) how: How,
    /// Take what is there for the layer's contents, though it was mounted volatile when the machine
    /// stopped
    #[arg(long, conflicts_with = "discard_dirty")]
    pub(crate) accept_dirty: bool,
    /// Empty the layer if it was mounted volatile when the machine stopped
    #[arg(long)]
    pub(crate) discard_dirty: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// The layer
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) how: How,
}

#[derive(Debug, Args)]
pub(crate) struct Unmount {
    /// The layer
    pub(crate) id: String,
    /// Take the mount away even while it is in use
    #[arg(long)]
    pub(crate) lazy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UnmountAll {
    /// Take mounts away even while they are in use
    #[arg(long)]
    pub(crate) lazy: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// Mend what has one right answer
    #[arg(long)]
    pub(crate) repair: bool,
    /// No other program works on the home: what others left may be touched
    #[arg(long)]
    pub(crate) docker_stopped: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    /// Only say what would go
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// No other program works on the home: what others left may be touched
    #[arg(long)]
    pub(crate) docker_stopped: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The layers
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Unmount first, and ignore layers that do not exist
    ///
    /// In a home that a running Docker uses too, that takes the root of a container away.
    #[arg(long, short)]
    pub(crate) force: bool,
    /// Leave freeing the space to the next `rm`
    #[arg(long)]
    pub(crate) defer: bool,
}
