//! The image that the scenarios pull: real Debian packages and real libraries, not zeros.
//!
//! Four layers: a root file system that can run a shell, more Debian tools, a container tool, and one
//! layer of well over 100 MiB (the compiler's own libraries, which every machine that builds Eagle
//! has). Behind an image index, as images on Docker Hub are. Nothing is downloaded. The same machine
//! makes the same bytes: file times, owners and order are fixed.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    process::{finish, succeed},
    workspace,
};

/// Counts up when the making of the image changes, so that an old one is not taken from the cache.
const RECIPE: u32 = 3;

/// The packages of the first layer: enough to run a shell in.
const BASE: &[&str] = &[
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "libc6",
    "libtinfo6",
    "libselinux1",
    "libacl1",
    "libattr1",
    "libpcre2-8-0",
    "libgmp10",
];
/// The packages of the second layer.
const TOOLS: &[&str] = &["apt", "dpkg", "findutils", "grep", "gzip", "perl-base", "sed", "tar", "tzdata", "util-linux"];
/// The packages of the third layer.
const CONTAINERS: &[&str] = &["skopeo", "iproute2"];

/// The least size of the largest layer: an image like those that Eagle is for.
const BIG_AT_LEAST: u64 = 100 << 20;

/// Packing a few hundred MB on a busy machine.
const DEADLINE: Duration = Duration::from_secs(300);

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Repository and tag of the image. Runtimes know it as `docker.io/library/debian:e2e`.
pub(crate) const REPOSITORY: &str = "library/debian";
pub(crate) const TAG: &str = "e2e";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Blob {
    /// `sha256:` and 64 hexadecimal digits.
    pub(crate) digest: String,
    pub(crate) size: u64,
}

/// A made image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Image {
    /// The directory that holds all of it.
    pub(crate) directory: PathBuf,
    pub(crate) index: Blob,
    pub(crate) manifest: Blob,
    pub(crate) config: Blob,
    pub(crate) layers: Vec<Blob>,
    /// Digests of the layers before compression, in the same order.
    pub(crate) diff_ids: Vec<String>,
}

impl Image {
    /// The OCI layout, for `skopeo copy oci:...`.
    pub(crate) fn layout(&self) -> PathBuf {
        self.directory.join("layout")
    }

    /// The layers unpacked over each other: what a runtime has to show.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.directory.join("rootfs")
    }

    /// Configuration and layers: what is fetched as blobs.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    pub(crate) fn blob_bytes(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }

    pub(crate) fn largest(&self) -> &Blob {
        self.layers.iter().max_by_key(|layer| layer.size).unwrap_or(&self.config)
    }

    /// Makes the image, or takes the one that an earlier run made from the same files.
    pub(crate) fn make() -> Result<Self> {
        let cache = workspace::cache()?;
        let directory = cache.join(format!("image-{}", key()?));
        let description = directory.join("image.json");
        if let Ok(text) = fs::read(&description)
            && let Ok(image) = serde_json::from_slice::<Self>(&text)
            && image.directory == directory
        {
            return Ok(image);
        }
        println!("making the image (once for each state of this machine's packages)");
        for old in fs::read_dir(&cache)?.flatten() {
            if old.file_name().to_string_lossy().starts_with("image-") {
                fs::remove_dir_all(old.path())?;
            }
        }
        fs::create_dir_all(directory.join("layout/blobs/sha256"))?;
        let image = build(&directory)?;
        // Written last: an image without it is not finished.
        fs::write(&description, serde_json::to_vec_pretty(&image)?)?;
        Ok(image)
    }
}

/// Changes when any of the files that go into the image may have changed.
fn key() -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(RECIPE.to_le_bytes());
    for packages in [BASE, TOOLS, CONTAINERS] {
        for (package, version) in installed(packages)? {
            hasher.update(format!("{package} {version}\n"));
        }
    }
    hasher.update(sysroot()?.as_os_str().as_encoded_bytes());
    hasher.update(succeed(Command::new("rustc").arg("-vV"), DEADLINE)?);
    Ok(hex::encode(&hasher.finalize()[..8]))
}

/// Those of the packages that this machine has, with their versions. Releases of Debian differ in what is essential.
fn installed(packages: &[&str]) -> Result<Vec<(String, String)>> {
    let format = "${Package} ${Version} ${db:Status-Status}\n";
    // Its exit code tells only that some are not there.
    let listed = finish(Command::new("dpkg-query").args(["-W", "-f", format]).args(packages), DEADLINE)?;
    let lines = listed.stdout.lines().filter_map(|line| line.strip_suffix(" installed")?.split_once(' '));
    Ok(lines.map(|(package, version)| (package.to_owned(), version.to_owned())).collect())
}

fn sysroot() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = succeed(Command::new(rustc).args(["--print", "sysroot"]), DEADLINE)?;
    Ok(PathBuf::from(printed.trim()))
}

fn build(directory: &Path) -> Result<Image> {
    let rootfs = directory.join("rootfs");
    fs::create_dir_all(&rootfs)?;
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    let mut add = |tar: &Path| -> Result<()> {
        let unpack = ["--extract", "--preserve-permissions", "--numeric-owner"];
        succeed(Command::new("tar").args(unpack).arg("-C").arg(&rootfs).arg("-f").arg(tar), DEADLINE)?;
        diff_ids.push(digest_of(tar)?.digest);
        // -n leaves name and time out of the header; -1 because the bytes matter here, not their number.
        succeed(Command::new("gzip").args(["-1", "-n", "-f"]).arg(tar), DEADLINE)?;
        layers.push(adopt(directory, &tar.with_extension("tar.gz"))?);
        Ok(())
    };

    let skeleton = directory.join("skeleton");
    merged_usr(&skeleton)?;
    let tar = directory.join("base.tar");
    pack(&tar, &skeleton, &MERGED_USR.map(PathBuf::from))?;
    append(&tar, Path::new("/"), &package_files(BASE)?)?;
    add(&tar)?;
    fs::remove_dir_all(&skeleton)?;
    for (name, packages) in [("tools.tar", TOOLS), ("containers.tar", CONTAINERS)] {
        let tar = directory.join(name);
        pack(&tar, Path::new("/"), &package_files(packages)?)?;
        add(&tar)?;
    }
    let tar = directory.join("big.tar");
    pack(&tar, &sysroot()?, &compiler_libraries()?)?;
    add(&tar)?;
    let big = layers.last().map_or(0, |layer| layer.size);
    if big < BIG_AT_LEAST {
        bail!("the compiler's libraries make a layer of {big} bytes only; the scenarios want {BIG_AT_LEAST}");
    }

    let architecture = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = put(
        directory,
        &json!({
            "architecture": architecture, "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": { "Env": ["PATH=/usr/sbin:/usr/bin"], "Cmd": ["/bin/bash"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|_| json!({ "created": "2024-01-01T00:00:00Z" })).collect::<Vec<_>>(),
        }),
    )?;
    let layer_descriptors: Vec<_> = layers.iter().map(|layer| descriptor(LAYER, layer)).collect();
    let manifest = put(
        directory,
        &json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": layer_descriptors,
        }),
    )?;
    let mut platform = descriptor(MANIFEST, &manifest);
    platform["platform"] = json!({ "architecture": architecture, "os": "linux" });
    let index = put(directory, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [platform] }))?;
    let mut entry = descriptor(INDEX, &index);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": TAG });
    let layout = directory.join("layout");
    fs::write(layout.join("index.json"), json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())?;
    fs::write(layout.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    Ok(Image { directory: directory.to_owned(), index, manifest, config, layers, diff_ids })
}

/// Links at the top of a root file system with a merged `/usr`, which no package ships.
const MERGED_USR: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

fn merged_usr(skeleton: &Path) -> Result<()> {
    fs::create_dir_all(skeleton)?;
    for link in MERGED_USR {
        std::os::unix::fs::symlink(format!("usr/{link}"), skeleton.join(link))?;
    }
    Ok(())
}

/// Files, links and directories of installed packages, relative to `/`, each by the path that it really has.
///
/// Packages may name `/bin/bash` where `/bin` is a link to `usr/bin`; a layer must not write through a link.
fn package_files(packages: &[&str]) -> Result<Vec<PathBuf>> {
    let packages = installed(packages)?.into_iter().map(|(package, _)| package);
    let listed = succeed(Command::new("dpkg-query").arg("-L").args(packages), DEADLINE)?;
    let mut files = BTreeSet::new();
    for line in listed.lines() {
        let path = Path::new(line);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let Ok(parent) = parent.canonicalize() else { continue };
        let real = parent.join(name);
        let Ok(metadata) = real.symlink_metadata() else { continue };
        let relative = real.strip_prefix("/")?.to_owned();
        let top_level_link = metadata.is_symlink() && relative.components().count() == 1;
        if !top_level_link {
            files.insert(relative);
        }
    }
    Ok(files.into_iter().collect())
}

/// The shared libraries of the compiler that builds this workspace, relative to its root.
fn compiler_libraries() -> Result<Vec<PathBuf>> {
    let sysroot = sysroot()?;
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(sysroot.join("lib"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name().to_string_lossy().contains(".so") {
            files.insert(Path::new("lib").join(entry.file_name()));
        }
    }
    Ok(files.into_iter().collect())
}

fn pack(tar: &Path, from: &Path, files: &[PathBuf]) -> Result<()> {
    run_tar("--create", tar, from, files)
}

fn append(tar: &Path, from: &Path, files: &[PathBuf]) -> Result<()> {
    run_tar("--append", tar, from, files)
}

fn run_tar(how: &str, tar: &Path, from: &Path, files: &[PathBuf]) -> Result<()> {
    let mut list = tempfile::NamedTempFile::new()?;
    for file in files {
        list.write_all(file.as_os_str().as_encoded_bytes())?;
        list.write_all(b"\0")?;
    }
    list.flush()?;
    let mut command = Command::new("tar");
    // The compiler's libraries go to the top of the image as lib/..., where a link stands: they are moved away.
    if from != Path::new("/") && how == "--create" && files.iter().all(|file| file.starts_with("lib/")) {
        command.arg("--transform=s,^lib/,opt/compiler/lib/,");
    }
    command.args([how, "--format=gnu", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@1700000000"]);
    command.args(["--no-recursion", "--null", "--verbatim-files-from"]);
    command.arg("-C").arg(from).arg("-f").arg(tar).arg("-T").arg(list.path());
    succeed(&mut command, DEADLINE)?;
    Ok(())
}

fn descriptor(media_type: &str, blob: &Blob) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

/// Moves a file into the layout.
fn adopt(directory: &Path, file: &Path) -> Result<Blob> {
    let blob = digest_of(file)?;
    fs::rename(file, blob_path(directory, &blob))?;
    Ok(blob)
}

/// Writes a document into the layout.
fn put(directory: &Path, document: &serde_json::Value) -> Result<Blob> {
    let bytes = document.to_string();
    let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    let blob = Blob { digest, size: u64::try_from(bytes.len())? };
    fs::write(blob_path(directory, &blob), bytes)?;
    Ok(blob)
}

fn blob_path(directory: &Path, blob: &Blob) -> PathBuf {
    directory.join("layout/blobs/sha256").join(blob.digest.trim_start_matches("sha256:"))
}

fn digest_of(file: &Path) -> Result<Blob> {
    let mut reader = File::open(file)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        hasher.update(&buffer[..count]);
        size += u64::try_from(count)?;
    }
    Ok(Blob { digest: format!("sha256:{}", hex::encode(hasher.finalize())), size })
}
