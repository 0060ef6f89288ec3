//! Puts a container's file system together and moves into it.
//!
//! Enter at [`build`], then [`mount_proc`] once the process is in its process namespace. Every mount
//! is made detached and attached by descriptor; what the image holds is looked at only through
//! [`super::inside`]. Sources on the node are opened before the mount namespace is left, so that
//! `Bidirectional` mounts stay peers of the node's.
//!
//! The container's mount namespace is a copy of an empty one ([`enter_empty_root`]), never of the
//! node's: the root is mounted over the empty one and entered. So nothing of the node's is ever in
//! there, nothing has to be unmounted (which would wait for RCU, about a millisecond), and what is
//! reached by climbing out of a `chroot` or by unmounting the root is an empty, read-only directory.
//! Invariant: nothing here is visible outside the container's mount namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::{Fault, inside};
use crate::native::protocol::{CgroupMembership, DeviceSpec, MountSpec, Propagation, RootSpec};
use crate::native::sys;

const ATTR_RDONLY: u64 = 0x1;
const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;

/// What containerd hides from a container by default.
const MASKED_IN_PROC: [&str; 9] = [
    "acpi",
    "asound",
    "kcore",
    "keys",
    "latency_stats",
    "sched_debug",
    "scsi",
    "timer_list",
    "timer_stats",
];
const MASKED_IN_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];
/// What containerd makes read-only.
const READONLY_IN_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Nodes of a fresh `/dev`: name, major, minor.
const DEVICE_NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What [`mount_proc`] needs from [`build`].
pub struct Built {
    /// Our own `/dev/null`, by descriptor: masks files.
    null: OwnedFd,
}

/// Builds the root and makes it `/`. `/proc` is still missing.
///
/// `leave` goes from the node's mount namespace into a new, empty one, and into a new cgroup namespace.
pub fn build(
    spec: &RootSpec,
    cgroup: &CgroupMembership,
    ahead: Option<OwnedFd>,
    can_make_nodes: bool,
    leave: impl FnOnce() -> io::Result<()>,
) -> Result<Built, Fault> {
    let sources = spec
        .mounts
        .iter()
        .map(|m| {
            open_source(&m.source)
                .map_err(|e| Fault::of(format!("open {} for a mount", m.source.display()), e))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let shm = match &spec.shm {
        Some(path) => Some(open_source(path).map_err(|e| Fault::of("open the pod's /dev/shm", e))?),
        None => None,
    };
    let cgroups = open_cgroups(cgroup)?;
    let mut devices = if spec.all_devices {
        node_devices()
    } else {
        Vec::new()
    };
    for device in &spec.devices {
        devices.push(explicit_device(device)?);
    }
    let borrowed = if can_make_nodes {
        None
    } else {
        Some(borrow_devices(&devices)?)
    };
    // Last: where it cannot be detached, this is done in another mount namespace already.
    let root = match ahead {
        Some(root) => root,
        None => root_overlay(spec)?,
    };

    leave().map_err(|e| Fault::of("enter a new mount and cgroup namespace", e))?;
    let bottom = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Fault::of("open the empty root", e.into()))?;
    attach(&root, &bottom).map_err(|e| Fault::of("attach the root", e))?;
    let root = root.as_fd();

    let proc = inside::plain_directory(root, "proc").map_err(|e| Fault::of("prepare /proc", e))?;
    drop(proc);
    let (dev, null) = device_directory(devices, borrowed.is_some())?;
    attach(
        &dev,
        &inside::plain_directory(root, "dev").map_err(|e| Fault::of("prepare /dev", e))?,
    )
    .map_err(|e| Fault::of("mount /dev", e))?;
    let null = match (null, borrowed) {
        (Some(null), _) => null,
        (None, borrowed) => bind_devices(&dev, borrowed.unwrap_or_default())?,
    };
    device_mounts(&dev, shm)?;
    let sys_target =
        inside::plain_directory(root, "sys").map_err(|e| Fault::of("prepare /sys", e))?;
    mount_sys(spec, &sys_target, &cgroups, &null)?;

    for (mount, source) in spec.mounts.iter().zip(sources) {
        attach_volume(root, mount, source).map_err(|e| {
            Fault::of(
                format!(
                    "mount {} at {}",
                    mount.source.display(),
                    mount.target.display()
                ),
                e,
            )
        })?;
    }
    if spec.readonly {
        sys::mount_setattr(root, false, ATTR_RDONLY, 0)
            .map_err(|e| Fault::of("make the root read-only", e))?;
    }
    rustix::process::fchdir(root).map_err(|e| Fault::of("enter the root", e.into()))?;
    rustix::process::chroot(".").map_err(|e| Fault::of("make the root /", e.into()))?;
    Ok(Built { null })
}

/// Mounts `/proc` for the current process namespace, with its masks.
pub fn mount_proc(built: &Built, masked: bool) -> Result<(), Fault> {
    let context = |e: io::Error| Fault::of("mount /proc", e);
    let proc = filesystem(
        "proc",
        &[],
        MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec(),
    )
    .map_err(context)?;
    if rustix::fs::fstatfs(&proc)
        .map_err(|e| context(e.into()))?
        .f_type as i64
        != libc::PROC_SUPER_MAGIC
    {
        return Err(Fault::runtime("what was mounted for /proc is not procfs"));
    }
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| context(e.into()))?;
    attach(
        &proc,
        &inside::plain_directory(root.as_fd(), "proc").map_err(context)?,
    )
    .map_err(context)?;
    if masked {
        for path in READONLY_IN_PROC {
            readonly(proc.as_fd(), path)
                .map_err(|e| Fault::of(format!("make /proc/{path} read-only"), e))?;
        }
        for path in MASKED_IN_PROC {
            mask(proc.as_fd(), path, built)
                .map_err(|e| Fault::of(format!("mask /proc/{path}"), e))?;
        }
    }
    Ok(())
}

/// A new, detached file system.
fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(&context, *key)?;
        } else {
            rustix::mount::fsconfig_set_string(&context, *key, *value)?;
        }
    }
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

fn nodev_noexec() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Hangs a detached mount on an open directory or file.
fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    Ok(rustix::mount::move_mount(
        mount,
        "",
        target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?)
}

/// A detached copy of a file or directory of the node, with what is mounted below it.
fn open_source(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE,
    )?)
}

/// Whether this kernel takes an overlay's layers one by one: Linux 6.5 and later. Older ones would
/// refuse each time, and complain in their log.
fn takes_single_layers() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        let mut numbers = release
            .split(|c: char| !c.is_ascii_digit())
            .map(|text| text.parse::<u32>().unwrap_or(0));
        let (major, minor) = (numbers.next(), numbers.next());
        (major, minor) >= (Some(6), Some(5))
    })
}

/// The root as a detached overlay; an error may mean that the kernel needs [`overlay_by_path`].
pub fn overlay(lowerdirs: &[PathBuf], upperdir: &Path, workdir: &Path) -> io::Result<OwnedFd> {
    if !takes_single_layers() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in lowerdirs {
        rustix::mount::fsconfig_set_string(&context, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(&context, "upperdir", upperdir)?;
    rustix::mount::fsconfig_set_string(&context, "workdir", workdir)?;
    // What a container writes need not outlive a crash of the machine: no sync at the end.
    rustix::mount::fsconfig_set_flag(&context, "volatile")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}

fn root_overlay(spec: &RootSpec) -> Result<OwnedFd, Fault> {
    let context = |e| Fault::of("mount the root overlay", e);
    match overlay(&spec.lowerdirs, &spec.upperdir, &spec.workdir) {
        // Linux before 6.5 takes the layers only in one string, and at a path.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (|| {
            sys::unshare(libc::CLONE_NEWNS)?;
            rustix::mount::mount_change(
                "/",
                MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
            )?;
            overlay_by_path(spec)?;
            open_source(&spec.mount_point)
        })()
        .map_err(context),
        other => other.map_err(context),
    }
}

fn overlay_by_path(spec: &RootSpec) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let mut options = b"lowerdir=".to_vec();
    for (index, layer) in spec.lowerdirs.iter().enumerate() {
        if index > 0 {
            options.push(b':');
        }
        escape(layer, &mut options);
    }
    options.extend_from_slice(b",volatile,upperdir=");
    escape(&spec.upperdir, &mut options);
    options.extend_from_slice(b",workdir=");
    escape(&spec.workdir, &mut options);
    if options.len() > 4095 {
        return Err(io::Error::other(
            "this kernel takes 4 KiB of overlay options, and the image has more layers than that",
        ));
    }
    let options = std::ffi::OsStr::from_bytes(&options);
    let options = rustix::path::Arg::into_c_str(options)?;
    rustix::mount::mount(
        "overlay",
        &spec.mount_point,
        "overlay",
        MountFlags::empty(),
        Some(options.as_ref()),
    )?;
    return Ok(());

    fn escape(path: &Path, out: &mut Vec<u8>) {
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                out.push(b'\\');
            }
            out.push(*byte);
        }
    }
}

/// Detached copies of the container's own cgroup directories.
fn open_cgroups(membership: &CgroupMembership) -> Result<Vec<(String, OwnedFd)>, Fault> {
    let mut out = Vec::new();
    let all = membership
        .v1
        .iter()
        .map(|(name, path)| (name.clone(), path));
    let unified = membership.unified.iter().map(|path| {
        (
            if membership.v1.is_empty() {
                String::new()
            } else {
                "unified".to_owned()
            },
            path,
        )
    });
    for (name, path) in all.chain(unified) {
        let tree = open_source(path)
            .map_err(|e| Fault::of(format!("open cgroup {}", path.display()), e))?;
        sys::mount_setattr(
            tree.as_fd(),
            true,
            ATTR_RDONLY | 0x2 | 0x4 | 0x8,
            MS_PRIVATE,
        )
        .map_err(|e| Fault::of("make the cgroup mount read-only", e))?;
        out.push((name, tree));
    }
    Ok(out)
}

/// `/dev` as a detached tmpfs with its nodes; also our `null` by descriptor, unless `borrowed`: then
/// its nodes are the node's own, bound one by one once `/dev` is in place ([`bind_devices`]).
fn device_directory(
    more: Vec<Device>,
    borrowed: bool,
) -> Result<(OwnedFd, Option<OwnedFd>), Fault> {
    let context = |e: io::Error| Fault::of("make /dev", e);
    let dev = filesystem(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k")],
        MountAttrFlags::MOUNT_ATTR_NOSUID,
    )
    .map_err(context)?;
    for (name, target) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name).map_err(|e| context(e.into()))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
            .map_err(|e| context(e.into()))?;
    }
    if borrowed {
        return Ok((dev, None));
    }
    for (name, major, minor) in DEVICE_NODES {
        rustix::fs::mknodat(
            &dev,
            name,
            FileType::CharacterDevice,
            Mode::from_raw_mode(0o666),
            rustix::fs::makedev(major, minor),
        )
        .map_err(|e| context(e.into()))?;
    }
    let null = rustix::fs::openat(
        &dev,
        "null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| context(e.into()))?;
    for device in more {
        match make_node(dev.as_fd(), &device) {
            // What we made ourselves stays.
            Err(error) if device.required && error.kind() != io::ErrorKind::AlreadyExists => {
                let name = device.below_dev.display();
                return Err(Fault::of(format!("make device /dev/{name}"), error));
            }
            _ => {}
        }
    }
    Ok((dev, Some(null)))
}

/// Devices of the node to bind, where this machine gives no `CAP_MKNOD`: the usual ones and `more`.
fn borrow_devices(more: &[Device]) -> Result<Vec<(PathBuf, OwnedFd)>, Fault> {
    let usual = DEVICE_NODES.iter().map(|(name, ..)| PathBuf::from(name));
    let asked = more.iter().filter(|device| device.required);
    usual
        .chain(asked.map(|device| device.below_dev.clone()))
        .map(|below| {
            let path = Path::new("/dev").join(&below);
            let tree = open_source(&path)
                .map_err(|e| Fault::of(format!("borrow {} of the node", path.display()), e))?;
            Ok((below, tree))
        })
        .collect()
}

/// Binds borrowed devices in a `/dev` that is in place; answers `null`.
fn bind_devices(dev: &OwnedFd, devices: Vec<(PathBuf, OwnedFd)>) -> Result<OwnedFd, Fault> {
    let mut null = None;
    for (below, tree) in devices {
        let context = |e: io::Error| Fault::of(format!("bind device {}", below.display()), e);
        let target = inside::resolve_or_create(dev.as_fd(), &below, false).map_err(context)?;
        sys::mount_setattr(tree.as_fd(), true, 0, MS_PRIVATE).map_err(context)?;
        attach(&tree, &target).map_err(context)?;
        if below == Path::new("null") {
            null = Some(tree);
        }
    }
    null.ok_or_else(|| Fault::runtime("the node's /dev has no null"))
}

/// What is mounted below `/dev`.
fn device_mounts(dev: &OwnedFd, shm: Option<OwnedFd>) -> Result<(), Fault> {
    let target = |name: &str| {
        rustix::fs::openat(
            dev,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| Fault::of(format!("open /dev/{name}"), e.into()))
    };
    let safe = MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec();
    let pts = filesystem(
        "devpts",
        &[
            ("newinstance", ""),
            ("ptmxmode", "0666"),
            ("mode", "0620"),
            ("gid", "5"),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(|e| Fault::of("mount /dev/pts", e))?;
    attach(&pts, &target("pts")?).map_err(|e| Fault::of("mount /dev/pts", e))?;
    let shm = match shm {
        Some(shm) => shm,
        None => filesystem("tmpfs", &[("mode", "1777"), ("size", "65536k")], safe)
            .map_err(|e| Fault::of("mount /dev/shm", e))?,
    };
    attach(&shm, &target("shm")?).map_err(|e| Fault::of("mount /dev/shm", e))?;
    let mqueue = filesystem("mqueue", &[], safe).map_err(|e| Fault::of("mount /dev/mqueue", e))?;
    attach(&mqueue, &target("mqueue")?).map_err(|e| Fault::of("mount /dev/mqueue", e))
}

/// A device node as the node of the cluster has it.
struct Device {
    below_dev: PathBuf,
    mode: u32,
    number: u64,
    /// Asked for by name; else one of all.
    required: bool,
}

fn make_node(dev: BorrowedFd<'_>, device: &Device) -> io::Result<()> {
    let path = &device.below_dev;
    let parent = path.parent().unwrap_or(Path::new(""));
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::other("a device needs a name"))?;
    let directory = inside::resolve_or_create(dev, parent, true)?;
    rustix::fs::mknodat(
        &directory,
        name,
        FileType::from_raw_mode(device.mode),
        Mode::from_raw_mode(device.mode & 0o7777),
        device.number,
    )?;
    Ok(())
}

/// A device that the pod asks for. Only below `/dev`: elsewhere the image could have put links.
fn explicit_device(device: &DeviceSpec) -> Result<Device, Fault> {
    let target = device.target.display();
    let status = rustix::fs::stat(&device.source)
        .map_err(|e| Fault::of(format!("make device {target}"), e.into()))?;
    let below_dev = device
        .target
        .strip_prefix("/dev")
        .map_err(|_| Fault::start(format!("device {target} is not below /dev")))?;
    Ok(Device {
        below_dev: below_dev.to_owned(),
        mode: status.st_mode,
        number: status.st_rdev,
        required: true,
    })
}

/// Every device node of this machine, for privileged containers.
fn node_devices() -> Vec<Device> {
    fn walk(directory: &Path, out: &mut Vec<Device>, depth: u32) {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(status) = rustix::fs::lstat(&path) else {
                continue;
            };
            match FileType::from_raw_mode(status.st_mode) {
                FileType::Directory
                    if depth < 4
                        && !matches!(
                            path.to_str(),
                            Some("/dev/pts" | "/dev/shm" | "/dev/mqueue")
                        ) =>
                {
                    walk(&path, out, depth + 1);
                }
                FileType::CharacterDevice | FileType::BlockDevice => {
                    let below = path.strip_prefix("/dev").unwrap_or(&path).to_owned();
                    if below != Path::new("console") {
                        out.push(Device {
                            below_dev: below,
                            mode: status.st_mode,
                            number: status.st_rdev,
                            required: false,
                        });
                    }
                }
                _ => {}
            }
        }
    }
    let mut out = Vec::new();
    walk(Path::new("/dev"), &mut out, 0);
    out
}

fn mount_sys(
    spec: &RootSpec,
    target: &OwnedFd,
    cgroups: &[(String, OwnedFd)],
    null: &OwnedFd,
) -> Result<(), Fault> {
    let context = |e: io::Error| Fault::of("mount /sys", e);
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec();
    if !spec.sys_writable {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let sysfs = filesystem("sysfs", &[], attributes).map_err(context)?;
    attach(&sysfs, target).map_err(context)?;
    let cgroup_target = beneath(sysfs.as_fd(), "fs/cgroup").map_err(context)?;
    match cgroups {
        [] => {}
        [(name, tree)] if name.is_empty() => attach(tree, &cgroup_target).map_err(context)?,
        several => {
            let directory = filesystem(
                "tmpfs",
                &[("mode", "755")],
                MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec(),
            )
            .map_err(context)?;
            for (name, _) in several {
                rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755))
                    .map_err(|e| context(e.into()))?;
                if name.contains(',') {
                    for alias in name.split(',') {
                        rustix::fs::symlinkat(name, &directory, alias)
                            .map_err(|e| context(e.into()))?;
                    }
                }
            }
            sys::mount_setattr(directory.as_fd(), false, ATTR_RDONLY, 0).map_err(context)?;
            attach(&directory, &cgroup_target).map_err(context)?;
            for (name, tree) in several {
                attach(tree, &beneath(directory.as_fd(), name).map_err(context)?)
                    .map_err(context)?;
            }
        }
    }
    if spec.masked {
        let built = Built {
            null: null.try_clone().map_err(context)?,
        };
        for path in MASKED_IN_SYS {
            mask(sysfs.as_fd(), path, &built)
                .map_err(|e| Fault::of(format!("mask /sys/{path}"), e))?;
        }
    }
    Ok(())
}

/// A real file below a kernel file system: no links, no mounts on the way.
fn beneath(base: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    Ok(crate::confined::openat2(
        base,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV,
    )?)
}

/// Puts something empty over a file or directory; nothing if it is not there.
fn mask(base: BorrowedFd<'_>, path: &str, built: &Built) -> io::Result<()> {
    let target = match beneath(base, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let cover = if inside::is_type(&target, FileType::Directory) {
        filesystem(
            "tmpfs",
            &[("mode", "555"), ("nr_inodes", "2")],
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec(),
        )?
    } else {
        rustix::mount::open_tree(
            &built.null,
            "",
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH,
        )?
    };
    attach(&cover, &target)
}

/// Bind-mounts a part of a kernel file system read-only over itself; nothing if it is not there.
fn readonly(base: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let target = match beneath(base, path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let copy = rustix::mount::open_tree(
        &target,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )?;
    sys::mount_setattr(copy.as_fd(), false, ATTR_RDONLY, 0)?;
    attach(&copy, &target)
}

fn attach_volume(root: BorrowedFd<'_>, mount: &MountSpec, source: OwnedFd) -> io::Result<()> {
    let propagation = match mount.propagation {
        Propagation::Private => MS_PRIVATE,
        Propagation::Slave => MS_SLAVE,
        Propagation::Shared => MS_SHARED,
    };
    sys::mount_setattr(source.as_fd(), true, 0, propagation)?;
    if mount.readonly {
        sys::mount_setattr(source.as_fd(), false, ATTR_RDONLY, 0)?;
    }
    let directory = inside::is_type(&source, FileType::Directory);
    let target = inside::resolve_or_create(root, &mount.target, directory)?;
    let status = rustix::fs::fstatfs(&target)?;
    if status.f_type as i64 == libc::PROC_SUPER_MAGIC {
        return Err(io::Error::other("a mount inside procfs is not allowed"));
    }
    if rustix::fs::statat(&target, "", AtFlags::EMPTY_PATH)?.st_mode & libc::S_IFMT == libc::S_IFLNK
    {
        return Err(io::Error::other("the target is a symbolic link"));
    }
    attach(&source, &target)
}

/// Leaves only an empty, read-only directory in this (private) mount namespace, and stands in it.
pub fn enter_empty_root() -> io::Result<()> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::PRIVATE,
    )?;
    let empty = filesystem(
        "tmpfs",
        &[("mode", "555"), ("nr_inodes", "1"), ("ro", "")],
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID | nodev_noexec(),
    )?;
    // Any directory serves as a mount point; the node's /proc is always there.
    let target = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    attach(&empty, &target)?;
    rustix::process::fchdir(&empty)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root is stacked on the new one.
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}
