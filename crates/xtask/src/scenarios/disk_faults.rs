//! Disks that fail under running processes.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    Scene,
    cache::{content, owners},
    pulls::pull,
};
use crate::{
    cluster::{Cluster, Role, Settings},
    image::Blob,
    process::{Process, wait_until},
};

/// The scrub reads a few hundred MB in a debug build; trackers hear of what is dropped within a second or so.
const DEADLINE: Duration = Duration::from_secs(60);
/// From the start of `strace` until it holds every thread.
const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn damaged(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let settings = Settings { nodes: 2, keyed: false, ..Settings::default() };
    let mut cluster = Cluster::start(scene, registry.address(), settings)?;
    pull(cluster.proxy(0), scene.image)?;
    let mut layers: Vec<&Blob> = scene.image.layers.iter().collect();
    layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
    // Not the largest: what is damaged is fetched again.
    let [_, flipped, cut, removed, ..] = layers[..] else { anyhow::bail!("the image has fewer than four layers") };

    // Under the running process: the runtime gets what the registry has, and the registry is asked no more.
    flip(&cluster.nodes[0], flipped)?;
    file(&cluster.nodes[0], cut)?.set_len(cut.size / 2)?;
    fs::remove_file(path(&cluster.nodes[0], removed)?)?;
    pull(cluster.proxy(0), scene.image).context("with damaged files under the running proxy")?;
    ensure!(damage(&cluster.nodes[0], "proxy")? == 3.0, "{} were counted", damage(&cluster.nodes[0], "proxy")?);
    registry.expect_each_once(scene.image.blobs())?;

    // After a restart nothing is known of what the files hold.
    cluster.nodes[0].stop()?;
    flip(&cluster.nodes[0], flipped)?;
    cluster.nodes[0].start_again()?;
    pull(cluster.proxy(0), scene.image).context("with a file that was damaged while nothing ran")?;
    ensure!(damage(&cluster.nodes[0], "proxy")? == 1.0);

    // Peers do not get it either: the other node has it from the seeder, where it is damaged too, or from the registry.
    for role in [&cluster.nodes[0], &cluster.seeder] {
        flip(role, flipped)?;
    }
    pull(cluster.proxy(1), scene.image).context("with damaged files at all that have the image")?;

    // Nobody asks for it: the scrub finds it, and the tracker hears of it. The scrub goes on where it was, in the order of the digests,
    // so the end of the last one is still before it.
    let last = layers.iter().max_by_key(|layer| &layer.digest).copied().context("no layers")?;
    let swarm = format!("/v1/swarms/{}", last.digest);
    let of = |cluster: &Cluster| owners(cluster, &swarm);
    wait_until("the tracker to know three owners", DEADLINE, || Ok((of(&cluster)? == 3).then_some(())))?;
    flip_at(&cluster.nodes[1], last, last.size - 1)?;
    cluster.configure_node(1, "  scrub_rate: unlimited\n")?;
    wait_until("the scrub to find the damage", DEADLINE, || {
        Ok((damage(&cluster.nodes[1], "proxy")? >= 1.0).then_some(()))
    })?;
    wait_until("the tracker to know two owners", DEADLINE, || Ok((of(&cluster)? == 2).then_some(())))?;
    pull(cluster.proxy(1), scene.image).context("after the scrub")
}

pub(super) fn unreadable(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let settings = Settings { encryption: "none", keyed: false, ..Settings::default() };
    let mut cluster = Cluster::start(scene, registry.address(), settings)?;
    pull(cluster.proxy(0), scene.image)?;
    let largest = scene.image.largest();
    let swarm = format!("/v1/swarms/{}", largest.digest);
    let knows = |cluster: &Cluster, count: u64| {
        wait_until(&format!("the tracker to know {count} owners"), DEADLINE, || {
            Ok((owners(cluster, &swarm)? == count).then_some(()))
        })
    };
    knows(&cluster, 2)?;

    // A peer that is given nothing gets it elsewhere, and so does the runtime of this node.
    let mut strace = fail_reads(scene, &cluster.nodes[0], &path(&cluster.nodes[0], largest)?)?;
    let peer = cluster.add_node()?;
    pull(cluster.proxy(peer), scene.image).context("beside a peer whose disk fails")?;
    pull(cluster.proxy(0), scene.image).context("with a disk that fails")?;
    cluster.nodes[0].check_running()?;
    strace.check_running()?;
    knows(&cluster, 2).context("the seeder and the peer")?;
    ensure!(damage(&cluster.nodes[0], "proxy")? >= 1.0, "no damage was counted");
    strace.stop(ATTACH_DEADLINE).context("strace")?;

    pull(cluster.proxy(0), scene.image).context("with a disk that is well again")?;
    knows(&cluster, 3)?;
    registry.expect_each_once(scene.image.blobs())
}

pub(super) fn unwritable(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { keyed: false, ..Settings::default() })?;
    let swarm = format!("/v1/swarms/{}", scene.image.largest().digest);
    let disks = [cluster.seeder.data_dir(), cluster.nodes[0].data_dir()];

    // What has open files to write stays writable, as in `failing`; nothing is open yet.
    disks.iter().try_for_each(|disk| make_read_only(disk))?;
    pull(cluster.proxy(0), scene.image).context("with read-only disks")?;
    expect_nothing_kept(&mut cluster, &swarm, "Read-only file system")?;
    disks.iter().try_for_each(|disk| unmount(disk))?;

    // Writing and syncing by position is what the storage does, and nothing else in these processes.
    let calls = "pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range";
    let mut faults = Vec::new();
    for role in [&cluster.seeder, &cluster.nodes[0]] {
        faults.push(fail_calls(scene, role, calls, None)?);
    }
    pull(cluster.proxy(0), scene.image).context("with disks that take nothing")?;
    expect_nothing_kept(&mut cluster, &swarm, "Input/output error")?;
    for mut strace in faults {
        strace.check_running()?;
        strace.stop(ATTACH_DEADLINE).context("strace")?;
    }

    pull(cluster.proxy(0), scene.image).context("with disks that are well again")?;
    for disk in &disks {
        wait_until(&format!("all blobs in {}", disk.display()), DEADLINE, || {
            let kept: Result<Vec<_>> = scene.image.blobs().map(|blob| content(disk, &blob.digest)).collect();
            Ok(kept?.iter().all(Option::is_some).then_some(()))
        })?;
    }
    wait_until("the tracker to know two owners", DEADLINE, || Ok((owners(&cluster, &swarm)? == 2).then_some(())))?;
    let other = cluster.add_node()?;
    pull(cluster.proxy(other), scene.image).context("of what was kept")?;
    let asked = cluster.nodes[other].metric("eagle_proxy_bytes_total", "origin")?;
    ensure!(asked == 0.0, "{asked} bytes came from the registry");
    Ok(())
}

/// Neither the seeder nor the first node has kept anything or says that it has; both say why, and run on.
fn expect_nothing_kept(cluster: &mut Cluster, swarm: &str, reason: &str) -> Result<()> {
    for (role, name) in [(&mut cluster.seeder, "seeder"), (&mut cluster.nodes[0], "proxy")] {
        role.check_running()?;
        let kept = role.metric(&format!("eagle_{name}_cache_blobs"), "")?;
        ensure!(kept == 0.0, "the {name} says that it keeps {kept} blobs");
        let log = fs::read_to_string(role.log())?;
        ensure!(log.contains(reason), "the log of the {name} does not say: {reason}");
    }
    ensure!(owners(cluster, swarm)? == 0, "the tracker knows owners of what nobody keeps");
    Ok(())
}

pub(super) fn failing(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { nodes: 0, ..Settings::default() })?;
    let disk = scene.directory.join("eagle/node-0/data");
    fs::create_dir_all(&disk)?;
    // A layer or two fit, the largest not with the others.
    let size = scene.image.largest().size + (scene.image.blob_bytes() - scene.image.largest().size) / 2;
    mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &disk)?;
    let node = cluster.add_node()?;
    pull(cluster.proxy(node), scene.image).context("with a disk that is too small")?;
    ensure!(cluster.nodes[node].metric("eagle_proxy_cache_blobs", "")? > 0.0, "nothing was kept");
    let filler = disk.join("filler");
    fill(&filler)?;
    pull(cluster.proxy(node), scene.image).context("with a disk that others have filled")?;
    fs::remove_file(&filler)?;

    make_read_only(&disk)?;
    pull(cluster.proxy(node), scene.image).context("with a read-only disk")?;
    cluster.nodes[node].check_running()?;

    unmount(&disk)?;
    pull(cluster.proxy(node), scene.image).context("with a disk that is well again")?;
    let mut kept = 0;
    for blob in scene.image.blobs() {
        kept += usize::from(content(&disk, &blob.digest)?.is_some());
    }
    ensure!(kept > 0, "nothing is kept any more");
    cluster.nodes[node].stop()
}

pub(super) fn full_at_start(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { nodes: 0, ..Settings::default() })?;
    let disk = scene.directory.join("eagle/node-0/data");
    fs::create_dir_all(&disk)?;
    // The whole image fits, and little more.
    let size = scene.image.blob_bytes() + (32 << 20);
    mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], &disk)?;
    let filler = disk.join("filler");
    fill(&filler)?;
    // A node that has no identity yet, and no room for one.
    let problem = format!("{:#}", cluster.add_node().err().context("a node without an identity is ready")?);
    for part in ["No space left on device", "data/identity"] {
        ensure!(problem.contains(part), "not told of {part}: {problem}");
    }
    fs::remove_file(&filler)?;
    let node = cluster.add_node().context("with room again")?;
    let identity = fs::read(disk.join("identity"))?;
    pull(cluster.proxy(node), scene.image)?;
    cluster.nodes[node].stop()?;

    // One that has a cache: it starts, and gives what it has.
    fill(&filler)?;
    cluster.nodes[node].start_again().context("on a full disk")?;
    pull(cluster.proxy(node), scene.image).context("from the cache on a full disk")?;
    cluster.nodes[node].stop()?;
    fs::remove_file(&filler)?;
    cluster.nodes[node].start_again()?;
    pull(cluster.proxy(node), scene.image).context("with room again")?;
    ensure!(fs::read(disk.join("identity"))? == identity, "the node has become another one");
    for blob in scene.image.blobs() {
        ensure!(content(&disk, &blob.digest)?.is_some(), "{} is lost", blob.digest);
    }
    registry.expect_each_once(scene.image.blobs())?;
    cluster.nodes[node].stop()
}

fn damage(role: &Role, name: &str) -> Result<f64> {
    role.metric(&format!("eagle_{name}_cache_damaged_total"), "")
}

fn path(role: &Role, blob: &Blob) -> Result<PathBuf> {
    content(&role.data_dir(), &blob.digest)?.with_context(|| format!("{} is not on the disk", blob.digest))
}

fn file(role: &Role, blob: &Blob) -> Result<fs::File> {
    Ok(OpenOptions::new().read(true).write(true).open(path(role, blob)?)?)
}

/// Changes one bit in the middle of a blob.
fn flip(role: &Role, blob: &Blob) -> Result<()> {
    flip_at(role, blob, blob.size / 2)
}

fn flip_at(role: &Role, blob: &Blob, at: u64) -> Result<()> {
    let file = file(role, blob)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(())
}

/// Has whatever reads a file of a process fail with EIO, as a disk does whose sectors are gone, until it is stopped.
fn fail_reads(scene: &Scene<'_>, role: &Role, path: &Path) -> Result<Process> {
    fail_calls(scene, role, "read,pread64,preadv,preadv2,sendfile,copy_file_range,splice", Some(path))
}

/// Has these calls of a process, all or those for one file, fail with EIO until it is stopped.
fn fail_calls(scene: &Scene<'_>, role: &Role, calls: &str, path: Option<&Path>) -> Result<Process> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:error=EIO")]);
    if let Some(path) = path {
        strace.arg("-P").arg(path);
    }
    strace.args(["-p", &role.id().to_string()]);
    let mut strace = Process::start("strace", &mut strace, &scene.directory.join("strace.log"))?;
    let threads = PathBuf::from(format!("/proc/{}/task", role.id()));
    wait_until("strace to hold every thread", ATTACH_DEADLINE, || {
        strace.check_running()?;
        for thread in fs::read_dir(&threads)? {
            // A thread may have ended in this moment.
            let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
            if status.contains("TracerPid:\t0\n") {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })?;
    Ok(strace)
}

/// Has everything in a directory read-only, for whatever is opened, made, renamed or removed from now on. A remount of the file system
/// itself is refused while a process has files open to write, so the directory is mounted over itself.
fn make_read_only(directory: &Path) -> Result<()> {
    let path = directory.to_str().context("a directory with an odd name")?;
    mount(&["--bind", path], directory)?;
    mount(&["-o", "remount,bind,ro"], directory)?;
    ensure!(fs::write(directory.join("probe"), b"x").is_err(), "{path} is not read-only");
    Ok(())
}

fn unmount(directory: &Path) -> Result<()> {
    let status = Command::new("umount").arg("--lazy").arg(directory).status().context("cannot run umount")?;
    ensure!(status.success(), "umount {} ended with {status}", directory.display());
    Ok(())
}

pub(super) fn mount(options: &[&str], target: &Path) -> Result<()> {
    let status = Command::new("mount").args(options).arg(target).status().context("cannot run mount")?;
    ensure!(status.success(), "mount {options:?} {} ended with {status}", target.display());
    Ok(())
}

/// Takes all the space that is left.
fn fill(path: &Path) -> Result<()> {
    let file = fs::File::create(path)?;
    let block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        match file.write_at(&block, at) {
            Ok(written) => at += u64::try_from(written)?,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
