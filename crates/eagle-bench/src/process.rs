//! Processes that a benchmark starts and owns.
//!
//! Each leads a process group of its own, which is killed by its id when the owner is dropped. When the
//! benchmark itself is killed and can drop nothing, the kernel ends them: they are started through
//! `eagle-bench owned`, which asks for that and then becomes the program.

use std::{
    ffi::OsString,
    fs::File,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::de::DeserializeOwned;

use crate::{cli::OwnedArgs, host::ProcessUse};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(10);
/// Lines at the end of a log that go into an error.
const TAIL_LINES: usize = 20;
/// Roles start in under a second and the origin hashes 1.5 GB a second and core; this is for a busy machine.
const START_DEADLINE: Duration = Duration::from_secs(120);
/// Roles let requests end for some seconds; this is for a busy machine, too.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A process that runs until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program in its own process group, with its output in `log`.
    ///
    /// # Errors
    /// When the log cannot be written or the program not be started.
    pub(crate) fn start(name: &str, program: &Path, arguments: &[OsString], log: PathBuf) -> Result<Self> {
        Self::start_on(name, None, &[], program, arguments, log)
    }

    /// The same on one core, with these variables beside those of this process.
    ///
    /// # Errors
    /// As [`Process::start`]; the core is looked for by the process itself, whose log has the error.
    pub(crate) fn start_on(
        name: &str,
        core: Option<usize>,
        variables: &[(&str, &str)],
        program: &Path,
        arguments: &[OsString],
        log: PathBuf,
    ) -> Result<Self> {
        let output =
            File::create(&log).with_context(|| format!("cannot write {}, the log of {name}", log.display()))?;
        let own = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(own);
        command.arg("owned");
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        command.arg("--").arg(program).args(arguments);
        for (key, _) in std::env::vars_os() {
            // Settings of whoever starts the benchmark are not part of it.
            if key.to_string_lossy().starts_with("EAGLE_") {
                command.env_remove(key);
            }
        }
        let child = command
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Waits until the process has written its ready file, and reads it.
    ///
    /// # Errors
    /// When it ends before, or takes too long; with the end of its log.
    pub(crate) async fn ready<T: DeserializeOwned>(&mut self, file: &Path) -> Result<T> {
        let started = Instant::now();
        loop {
            self.check_running()?;
            // Half a file is as good as none.
            if let Some(ready) = std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()) {
                return Ok(ready);
            }
            if started.elapsed() > START_DEADLINE {
                bail!("{} was not ready within {} s\n{}", self.name, START_DEADLINE.as_secs(), self.tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// An error with the end of the log if the process has ended.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}\n{}", self.name, self.tail())),
        }
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) fn usage(&self) -> Result<ProcessUse> {
        ProcessUse::of(&self.child.id().to_string()).with_context(|| format!("{} cannot be measured", self.name))
    }

    /// Asks it to end (SIGTERM), without waiting.
    pub(crate) fn ask_to_end(&self) {
        if let Some(pid) = self.pid() {
            // Fails only if it is gone, which is the aim.
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Errors
    /// When it takes too long.
    pub(crate) async fn end(&mut self) -> Result<()> {
        self.ask_to_end();
        let started = Instant::now();
        while !self.has_ended() {
            ensure!(started.elapsed() < STOP_DEADLINE, "{} does not end\n{}", self.name, self.tail());
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("cannot look at {}", self.name))
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its log, for an error.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let end = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("--- end of {} ---\n{end}", self.log.display())
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that was waited for is gone, and its id may be another's by now.
        if self.has_ended() {
            return;
        }
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// `eagle-bench owned PROGRAM ...`: becomes a program that the kernel kills when its parent is gone.
///
/// # Errors
/// When the program cannot be started; otherwise it does not return.
pub(crate) fn become_owned(args: &OwnedArgs) -> Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("the signal for the parent's end cannot be set")?;
    if let Some(core) = args.core {
        let mut set = CpuSet::new();
        ensure!(core < CpuSet::MAX_CPU, "there is no core {core}");
        set.set(core);
        sched_setaffinity(None, &set).with_context(|| format!("core {core} cannot be had"))?;
    }
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("no program given") };
    // Gives back only if it failed.
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!(error).context(format!("cannot start {}", program.to_string_lossy())))
}
