//! Processes that the tests start and own.
//!
//! Each long-running one leads a process group of its own; the whole group is killed when its owner
//! is dropped, by the group's id and never by a name. Whatever a process prints goes to a file, and
//! the end of that file is part of every error about it.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);

/// Characters of a log, and of what a command printed, that go into an error: `ctr` draws its progress ten times a second,
/// which in front of the reason hides it.
const LOG_TAIL: usize = 3_000;

/// Warnings from before that end which are shown with it: where a log has every step, the reason is long past.
const WARNINGS: usize = 12;

/// A process that runs until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output appended to `log`.
    pub(crate) fn start(name: impl Into<String>, command: &mut Command, log: &Path) -> Result<Self> {
        let name = name.into();
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {} of {name}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name} ({})", command.get_program().display()))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process and everything it started.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // Fails only if the group is gone.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// The most memory that the process itself has had resident, bytes (proc(5), `VmHWM`).
    pub(crate) fn most_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kibibytes.with_context(|| format!("no VmHWM of {}", self.name))? << 10)
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// An error with the end of the log if the process has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(anyhow!("{} ended with {status}\n{}", self.name, tail(&self.log))),
        }
    }

    /// Asks the process to end (SIGTERM) and waits; kills it after `grace`, which is an error.
    pub(crate) fn stop(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.check_running()?;
        if let Some(pid) = self.pid() {
            kill_process(pid, Signal::TERM).with_context(|| format!("cannot signal {}", self.name))?;
        }
        let ended = wait_until(&format!("{} to end", self.name), grace, || Ok(self.child.try_wait()?));
        match ended {
            Ok(status) => Ok(status),
            Err(error) => {
                self.kill();
                Err(error.context(format!("{} did not end within {grace:?} of SIGTERM", self.name)))
            }
        }
    }

    /// Kills the process and everything it started (SIGKILL to the group), as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(pid) = self.pid() {
            // Fails only if the group is gone, which is the aim.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a command that has ended printed.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command to its end, whatever its exit code; an error if it takes longer than `deadline`.
pub(crate) fn finish(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let shown = show(command);
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let ended = wait_until(&format!("`{shown}` to end"), deadline, || Ok(child.try_wait()?));
    if ended.is_err() {
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = child.wait();
    }
    let (stdout, stderr) = (read_back(&mut stdout)?, read_back(&mut stderr)?);
    let status = ended.with_context(|| format!("output so far:\n{}{}", end_of(&stdout), end_of(&stderr)))?;
    Ok(Finished { status, stdout, stderr })
}

/// Runs a command that has to succeed; what it printed on standard output.
pub(crate) fn succeed(command: &mut Command, deadline: Duration) -> Result<String> {
    let finished = finish(command, deadline)?;
    if !finished.status.success() {
        let (stdout, stderr) = (end_of(&finished.stdout), end_of(&finished.stderr));
        bail!("`{}` ended with {}\n{stdout}{stderr}", show(command), finished.status);
    }
    Ok(finished.stdout)
}

/// Looks until there is a value; an error that names what was waited for after `deadline`.
pub(crate) fn wait_until<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(POLL);
    }
}

/// The end of a log file, and the last warnings before it, for an error.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let end = end_of(&text);
    let mut warnings = warnings(&text[..text.len() - end.len()]);
    if !warnings.is_empty() {
        warnings.insert(0, "--- warnings before that ---");
    }
    let before: String = warnings.iter().map(|line| format!("{line}\n")).collect();
    format!("{before}--- end of {} ---\n{end}", log.display())
}

/// The last lines that say of themselves that something went wrong: of Eagle, then of the container runtimes.
fn warnings(text: &str) -> Vec<&str> {
    const GRAVE: [&str; 4] = ["\"level\":\"WARN\"", "\"level\":\"ERROR\"", "level=warn", "level=error"];
    let grave = |line: &&str| GRAVE.iter().any(|level| line.contains(level));
    let mut last: Vec<_> = text.lines().rev().filter(grave).take(WARNINGS).collect();
    last.reverse();
    last
}

/// As much of the end of a text as goes into an error.
fn end_of(text: &str) -> &str {
    let start = text.char_indices().rev().nth(LOG_TAIL).map_or(0, |(index, _)| index);
    &text[start..]
}

fn read_back(file: &mut File) -> Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn show(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|argument| argument.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_shown_by_its_end_and_the_warnings_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("eagle.log");
        let warning = r#"{"level":"WARN","message":"the disk is full"}"#;
        let steps = r#"{"level":"TRACE","message":"a step"}"#.to_owned() + "\n";
        fs::write(&log, format!("{warning}\n{}the end", steps.repeat(LOG_TAIL))).unwrap();
        let shown = tail(&log);
        assert!(shown.contains(warning) && shown.ends_with("the end"), "{shown}");
        assert!(shown.len() < 2 * LOG_TAIL);
        fs::write(&log, format!("{warning}\n")).unwrap();
        assert_eq!(tail(&log).matches(warning).count(), 1, "what the end has is not shown twice");
    }

    #[test]
    fn what_a_command_printed_does_not_hide_why_it_failed() {
        let script = "yes progress | head -c 100000; echo the reason >&2; exit 3";
        let error = succeed(Command::new("sh").args(["-c", script]), Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.ends_with("the reason\n") && error.contains("exit status: 3"), "{error}");
        assert!(error.len() < 3 * LOG_TAIL, "{}", error.len());
    }
}
