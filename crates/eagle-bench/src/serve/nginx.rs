//! nginx, with the files of a proxy's cache.
//!
//! As many processes as there are cores, each with one port, and the clients spread evenly over them: what its
//! workers are at best. Apart, and without a master, because the kernel ends only direct children of a benchmark
//! that is killed.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::Process;

/// From the start of a process to its first connection; nginx takes milliseconds.
const START: Duration = Duration::from_secs(10);
/// Between two tries to connect.
const POLL: Duration = Duration::from_millis(10);
/// Where distributions put it, besides the directories of `PATH`.
const ELSEWHERE: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// A file under a name.
pub(super) struct Served<'a> {
    pub(super) path: &'a str,
    pub(super) file: &'a Path,
}

/// Running processes of nginx.
#[derive(Debug)]
pub(super) struct Nginx {
    pub(super) version: String,
    pub(super) processes: Vec<Process>,
    pub(super) addresses: Vec<SocketAddr>,
}

/// The nginx program: as given, or where it usually is.
pub(super) fn find(given: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = given {
        ensure!(path.is_file(), "there is no nginx program at {}", path.display());
        return Ok(Some(path.to_owned()));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(ELSEWHERE.iter().map(PathBuf::from));
    Ok(directories.map(|directory| directory.join("nginx")).find(|program| program.is_file()))
}

impl Nginx {
    /// Starts `count` processes that serve these files, and waits until they answer.
    ///
    /// # Errors
    /// What did not start, with the end of its log.
    pub(super) async fn start(program: &Path, count: usize, files: &[Served<'_>], directory: &Path) -> Result<Self> {
        let version = std::process::Command::new(program).arg("-v").output();
        let version = version.with_context(|| format!("{} cannot be run", program.display()))?;
        let version = String::from_utf8_lossy(&version.stderr).trim().trim_start_matches("nginx version: ").to_owned();
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for number in 1..=count {
            let own = directory.join(format!("nginx-{number}"));
            fs::create_dir(&own)?;
            let address = free_address()?;
            let config = own.join("nginx.conf");
            fs::write(&config, configuration(&own, address, files))?;
            let arguments: Vec<OsString> = vec!["-p".into(), own.clone().into(), "-c".into(), config.into()];
            let mut process = Process::start(
                &format!("nginx {number}"),
                program,
                &arguments,
                directory.join(format!("nginx-{number}.log")),
            )?;
            wait_for(&mut process, address).await?;
            processes.push(process);
            addresses.push(address);
        }
        Ok(Self { version, processes, addresses })
    }
}

/// A port that is free now. nginx cannot pick one itself; another process could take it in between, and then it
/// says so.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

async fn wait_for(process: &mut Process, address: SocketAddr) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(address).is_err() {
        process.check_running()?;
        if started.elapsed() > START {
            bail!("nginx does not answer at {address}\n{}", process.tail());
        }
        tokio::time::sleep(POLL).await;
    }
    // Somebody else may have answered, and nginx found its port taken.
    process.check_running()
}

/// `sendfile` and `tcp_nopush` are what distributions ship; connections are not to end in mid-measurement, and
/// nothing is logged, as Eagle does not either.
fn configuration(own: &Path, address: SocketAddr, files: &[Served<'_>]) -> String {
    let own = own.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("  {name}_temp_path \"{own}/{name}\";\n"))
        .collect();
    let locations: String = files
        .iter()
        .map(|Served { path, file }| format!("    location = {path} {{ alias \"{}\"; }}\n", file.display()))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid \"{own}/pid\";\nerror_log stderr;\n\
         events {{ worker_connections 2048; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n  keepalive_requests 1000000000;\n  \
         default_type application/octet-stream;\n{temporary}  server {{\n    listen {address};\n{locations}  }}\n}}\n"
    )
}
