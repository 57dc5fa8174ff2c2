//! Every backend's operations, one by one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Range;
use std::path::Path;

use ovl_diff::{
    DirEntry, DirHandle, FileHandle, Metadata, Node, NodeKind, RenameMode, Timestamp, TreeBackend,
};
use ovl_driver::{FsType, Identity, Lock, LockKind, ProcessId, SystemBackend};
use ovl_layout::XattrNamespace;
use ovl_mount::{
    Holder, MountBackend, MountError, MountFeatures, MountInfo, MountPlan, UnmountMode,
};
use ovl_quota::{Enforcement, KeepsToLimits, Limits, ProjectId, ProjectRange, QuotaBackend, Usage};

use super::Faulty;

fn text(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}

fn node_text(node: Node<'_>) -> String {
    match node {
        Node::Dir(_) => "an open directory".to_owned(),
        Node::File(_) => "an open file".to_owned(),
        Node::Entry(_, name) => text(name),
    }
}

impl Faulty {
    fn tree_step<T>(
        &self,
        call: &'static str,
        subject: impl Into<String>,
        operation: impl FnOnce(&dyn TreeBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        self.step(
            call,
            subject,
            |error| error,
            || operation(self.inner.tree()),
        )
    }

    fn quota_step<T>(
        &self,
        call: &'static str,
        subject: &Path,
        operation: impl FnOnce(&dyn QuotaBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        let subject = text(subject.as_os_str());
        self.step(
            call,
            subject,
            |error| error,
            || operation(self.inner.quota()),
        )
    }

    fn system_step<T>(
        &self,
        call: &'static str,
        subject: impl Into<String>,
        operation: impl FnOnce(&dyn SystemBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        self.step(
            call,
            subject,
            |error| error,
            || operation(self.inner.system()),
        )
    }

    fn look_at_mounts<T>(
        &self,
        call: &'static str,
        subject: &Path,
        operation: impl FnOnce(&dyn MountBackend) -> io::Result<T>,
    ) -> io::Result<T> {
        let subject = text(subject.as_os_str());
        self.step(
            call,
            subject,
            |error| error,
            || operation(self.inner.mount()),
        )
    }
}

impl TreeBackend for Faulty {
    fn open_root(&self, path: &Path) -> io::Result<DirHandle> {
        self.tree_step("open_root", text(path.as_os_str()), |tree| {
            tree.open_root(path)
        })
    }

    fn open_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<DirHandle> {
        self.tree_step("open_dir", text(name), |tree| tree.open_dir(dir, name))
    }

    fn read_dir(&self, dir: &DirHandle) -> io::Result<Vec<DirEntry>> {
        self.tree_step("read_dir", node_text(Node::Dir(dir)), |tree| {
            tree.read_dir(dir)
        })
    }

    fn metadata(&self, node: Node<'_>) -> io::Result<Metadata> {
        self.tree_step("metadata", node_text(node), |tree| tree.metadata(node))
    }

    fn create_dir(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<()> {
        self.tree_step("create_dir", text(name), |tree| {
            tree.create_dir(dir, name, mode)
        })
    }

    fn create_file(&self, dir: &DirHandle, name: &OsStr, mode: u32) -> io::Result<FileHandle> {
        self.tree_step("create_file", text(name), |tree| {
            tree.create_file(dir, name, mode)
        })
    }

    fn open_file(&self, dir: &DirHandle, name: &OsStr) -> io::Result<FileHandle> {
        self.tree_step("open_file", text(name), |tree| tree.open_file(dir, name))
    }

    fn read_at(&self, file: &FileHandle, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let subject = node_text(Node::File(file));
        self.tree_step("read_at", subject, |tree| {
            tree.read_at(file, offset, buffer)
        })
    }

    fn write_at(&self, file: &FileHandle, offset: u64, data: &[u8]) -> io::Result<()> {
        let subject = node_text(Node::File(file));
        self.tree_step("write_at", subject, |tree| {
            tree.write_at(file, offset, data)
        })
    }

    fn set_len(&self, file: &FileHandle, len: u64) -> io::Result<()> {
        let subject = node_text(Node::File(file));
        self.tree_step("set_len", subject, |tree| tree.set_len(file, len))
    }

    fn next_extent(&self, file: &FileHandle, offset: u64) -> io::Result<Option<Range<u64>>> {
        let subject = node_text(Node::File(file));
        self.tree_step("next_extent", subject, |tree| {
            tree.next_extent(file, offset)
        })
    }

    fn share_data(&self, from: &FileHandle, to: &FileHandle) -> io::Result<()> {
        let subject = node_text(Node::File(to));
        self.tree_step("share_data", subject, |tree| tree.share_data(from, to))
    }

    fn create_symlink(&self, dir: &DirHandle, name: &OsStr, target: &OsStr) -> io::Result<()> {
        self.tree_step("create_symlink", text(name), |tree| {
            tree.create_symlink(dir, name, target)
        })
    }

    fn read_link(&self, dir: &DirHandle, name: &OsStr) -> io::Result<OsString> {
        self.tree_step("read_link", text(name), |tree| tree.read_link(dir, name))
    }

    fn create_node(
        &self,
        dir: &DirHandle,
        name: &OsStr,
        kind: NodeKind,
        mode: u32,
    ) -> io::Result<()> {
        self.tree_step("create_node", text(name), |tree| {
            tree.create_node(dir, name, kind, mode)
        })
    }

    fn hard_link(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
    ) -> io::Result<()> {
        self.tree_step("hard_link", text(to), |tree| {
            tree.hard_link(from_dir, from, to_dir, to)
        })
    }

    fn rename(
        &self,
        from_dir: &DirHandle,
        from: &OsStr,
        to_dir: &DirHandle,
        to: &OsStr,
        mode: RenameMode,
    ) -> io::Result<()> {
        let subject = format!("{} to {}", text(from), text(to));
        self.tree_step("rename", subject, |tree| {
            tree.rename(from_dir, from, to_dir, to, mode)
        })
    }

    fn unlink(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        self.tree_step("unlink", text(name), |tree| tree.unlink(dir, name))
    }

    fn remove_dir(&self, dir: &DirHandle, name: &OsStr) -> io::Result<()> {
        self.tree_step("remove_dir", text(name), |tree| tree.remove_dir(dir, name))
    }

    fn set_owner(&self, node: Node<'_>, uid: u32, gid: u32) -> io::Result<()> {
        self.tree_step("set_owner", node_text(node), |tree| {
            tree.set_owner(node, uid, gid)
        })
    }

    fn set_mode(&self, node: Node<'_>, mode: u32) -> io::Result<()> {
        self.tree_step("set_mode", node_text(node), |tree| {
            tree.set_mode(node, mode)
        })
    }

    fn set_mtime(&self, node: Node<'_>, mtime: Timestamp) -> io::Result<()> {
        self.tree_step("set_mtime", node_text(node), |tree| {
            tree.set_mtime(node, mtime)
        })
    }

    fn list_xattrs(&self, node: Node<'_>) -> io::Result<Vec<OsString>> {
        self.tree_step("list_xattrs", node_text(node), |tree| {
            tree.list_xattrs(node)
        })
    }

    fn xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        self.tree_step("xattr", node_text(node), |tree| tree.xattr(node, name))
    }

    fn set_xattr(&self, node: Node<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.tree_step("set_xattr", node_text(node), |tree| {
            tree.set_xattr(node, name, value)
        })
    }

    fn remove_xattr(&self, node: Node<'_>, name: &OsStr) -> io::Result<()> {
        self.tree_step("remove_xattr", node_text(node), |tree| {
            tree.remove_xattr(node, name)
        })
    }

    fn unprotect(&self, node: Node<'_>) -> io::Result<bool> {
        self.tree_step("unprotect", node_text(node), |tree| tree.unprotect(node))
    }

    fn start_writeback(&self, file: &FileHandle) -> io::Result<()> {
        let subject = node_text(Node::File(file));
        self.tree_step("start_writeback", subject, |tree| {
            tree.start_writeback(file)
        })
    }

    fn sync(&self, node: Node<'_>) -> io::Result<()> {
        self.tree_step("sync", node_text(node), |tree| tree.sync(node))
    }
}

impl MountBackend for Faulty {
    fn features(&self) -> io::Result<MountFeatures> {
        self.look_at_mounts("features", Path::new("/"), |mount| mount.features())
    }

    fn mount(&self, plan: &MountPlan) -> Result<(), MountError> {
        let subject = text(plan.target().as_os_str());
        let failure = |error| MountError::mount(plan, Vec::new(), error);
        self.step("mount", subject, failure, || self.inner.mount().mount(plan))
    }

    fn unmount(&self, target: &Path, mode: UnmountMode) -> Result<(), MountError> {
        let subject = text(target.as_os_str());
        let failure = |error| MountError::unmount(target, error);
        self.step("unmount", subject, failure, || {
            self.inner.mount().unmount(target, mode)
        })
    }

    fn holders(&self, target: &Path) -> io::Result<Vec<Holder>> {
        self.look_at_mounts("holders", target, |mount| mount.holders(target))
    }

    fn mount_at(&self, path: &Path) -> io::Result<Option<MountInfo>> {
        self.look_at_mounts("mount_at", path, |mount| mount.mount_at(path))
    }

    fn mounts_below(&self, path: &Path) -> io::Result<Vec<MountInfo>> {
        self.look_at_mounts("mounts_below", path, |mount| mount.mounts_below(path))
    }

    fn is_upper_in_use(&self, upper: &Path) -> io::Result<bool> {
        self.look_at_mounts("is_upper_in_use", upper, |mount| {
            mount.is_upper_in_use(upper)
        })
    }

    fn is_file_system_alive(&self, device: (u32, u32)) -> io::Result<Option<bool>> {
        let subject = format!("{}:{}", device.0, device.1);
        self.look_at_mounts("is_file_system_alive", Path::new(&subject), |mount| {
            mount.is_file_system_alive(device)
        })
    }
}

impl QuotaBackend for Faulty {
    fn project_of(&self, dir: &Path) -> io::Result<Option<ProjectId>> {
        self.quota_step("project_of", dir, |quota| quota.project_of(dir))
    }

    fn inherits(&self, dir: &Path) -> io::Result<bool> {
        self.quota_step("inherits", dir, |quota| quota.inherits(dir))
    }

    fn assign_project(&self, dir: &Path, project: Option<ProjectId>) -> io::Result<()> {
        self.quota_step("assign_project", dir, |quota| {
            quota.assign_project(dir, project)
        })
    }

    fn enforcement(&self, home: &Path) -> io::Result<Enforcement> {
        self.quota_step("enforcement", home, |quota| quota.enforcement(home))
    }

    fn set_limits(&self, home: &Path, project: ProjectId, limits: &Limits) -> io::Result<()> {
        self.quota_step("set_limits", home, |quota| {
            quota.set_limits(home, project, limits)
        })
    }

    fn usage(&self, home: &Path, project: ProjectId) -> io::Result<Usage> {
        self.quota_step("usage", home, |quota| quota.usage(home, project))
    }

    fn used_ids(&self, home: &Path, range: ProjectRange) -> io::Result<Vec<ProjectId>> {
        self.quota_step("used_ids", home, |quota| quota.used_ids(home, range))
    }

    fn keep_to_limits(&self) -> io::Result<KeepsToLimits> {
        self.quota_step("keep_to_limits", Path::new("/"), |quota| {
            quota.keep_to_limits()
        })
    }
}

impl SystemBackend for Faulty {
    fn fill_random(&self, buffer: &mut [u8]) -> io::Result<()> {
        self.system_step("fill_random", "", |system| system.fill_random(buffer))
    }

    fn boot_id(&self) -> io::Result<String> {
        self.system_step("boot_id", "", |system| system.boot_id())
    }

    fn this_process(&self) -> io::Result<ProcessId> {
        self.system_step("this_process", "", |system| system.this_process())
    }

    fn is_alive(&self, process: ProcessId) -> io::Result<bool> {
        let subject = process.pid.to_string();
        self.system_step("is_alive", subject, |system| system.is_alive(process))
    }

    fn mount_namespace(&self) -> io::Result<u64> {
        self.system_step("mount_namespace", "", |system| system.mount_namespace())
    }

    fn is_namespace_alive(&self, namespace: u64) -> io::Result<bool> {
        self.system_step("is_namespace_alive", namespace.to_string(), |system| {
            system.is_namespace_alive(namespace)
        })
    }

    fn identity(&self) -> io::Result<Identity> {
        self.system_step("identity", "", |system| system.identity())
    }

    fn fs_type(&self, dir: &DirHandle) -> io::Result<FsType> {
        self.system_step("fs_type", node_text(Node::Dir(dir)), |system| {
            system.fs_type(dir)
        })
    }

    fn has_d_type(&self, dir: &DirHandle) -> io::Result<bool> {
        let subject = node_text(Node::Dir(dir));
        self.system_step("has_d_type", subject, |system| system.has_d_type(dir))
    }

    fn keeps_xattrs(&self, dir: &DirHandle, namespace: XattrNamespace) -> io::Result<bool> {
        let subject = node_text(Node::Dir(dir));
        self.system_step("keeps_xattrs", subject, |system| {
            system.keeps_xattrs(dir, namespace)
        })
    }

    fn lock(
        &self,
        dir: &DirHandle,
        name: Option<&OsStr>,
        kind: LockKind,
        wait: bool,
    ) -> io::Result<Option<Lock>> {
        let subject = name.map_or_else(|| node_text(Node::Dir(dir)), text);
        self.system_step("lock", subject, |system| system.lock(dir, name, kind, wait))
    }
}
