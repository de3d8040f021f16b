//! One target under libFuzzer: started, ended by its processor time, and what it says read.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::process::{tail, wait_until};

/// What tells the program which target it is.
const TARGET: &str = "EAGLE_FUZZ_TARGET";
/// How long a target may take to end when it is asked to: the last input, and writing down what it found.
const GRACE: Duration = Duration::from_secs(60);
/// Of an hour of the clock a target gets at least a few minutes of the processor; beyond that something is wrong with the machine.
const SLOWEST: u32 = 20;
/// Seconds of the clock for one input. The largest takes milliseconds, and on a busy machine a target may get no processor for a while.
const SECONDS_PER_INPUT: u32 = 30;
/// Memory of a target, MiB. They take about 100.
const MEMORY: u32 = 1024;
/// Longest input, bytes: some are as long as a metainfo frame, and longer ones only cost time.
const LONGEST_INPUT: u32 = 4096;
/// Ticks of a second in /proc/PID/stat: `USER_HZ`, which is 100 on every architecture that Linux tells user space about.
const TICKS: f64 = 100.0;

/// Where everything is.
#[derive(Debug)]
pub(super) struct Places {
    /// The crate of the targets, with seeds and dictionaries.
    pub(super) sources: PathBuf,
    /// What runs keep: inputs that reached something new, logs, inputs that broke something.
    pub(super) cache: PathBuf,
    /// The program of all targets.
    pub(super) program: PathBuf,
}

/// What came out of a target.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) target: String,
    /// Processor time, seconds.
    pub(super) processor_seconds: f64,
    /// Time on the clock, seconds.
    pub(super) seconds: f64,
    pub(super) inputs: u64,
    /// Inputs in a second of processor time.
    pub(super) inputs_per_second: f64,
    /// Branches of Eagle's own crates that were reached.
    pub(super) branches: u64,
    /// Inputs that reached something that no other did.
    pub(super) kept: u64,
    pub(super) finding: Option<Finding>,
}

/// An input that broke something.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What happened.
    pub(super) what: String,
    /// The file with the input.
    pub(super) input: Option<PathBuf>,
    /// How to see it again.
    pub(super) command: String,
}

/// Runs a target until it has had so many seconds of the processor, or found something.
///
/// # Errors
/// When it cannot be started or stopped, or says nothing of what it did.
pub(super) fn run(target: &str, places: &Places, seconds: u64) -> Result<Outcome> {
    let corpus = places.cache.join("corpus").join(target);
    let artifacts = places.cache.join("artifacts").join(target);
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let log = places.cache.join(format!("{target}.log"));
    let output = File::create(&log)?;
    let mut command = Command::new(&places.program);
    // What the targets read has no business with the environment, and a panic is enough without its backtrace.
    command.env_clear().env(TARGET, target).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    command
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .arg(format!("-rss_limit_mb={MEMORY}"))
        .arg(format!("-max_len={LONGEST_INPUT}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1");
    let dictionary = places.sources.join("dictionaries").join(target);
    if dictionary.is_file() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.arg(&corpus).arg(places.sources.join("seeds").join(target));
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start the fuzz target {target}"))?;
    let ended = watch(&mut child, target, seconds);
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (success, processor_seconds) = ended?;
    let text = fs::read_to_string(&log)?;
    let finding = (!success).then(|| finding(&text, target, &places.program));
    let figures = Figures::read(&text);
    if figures.is_none() && finding.is_none() {
        bail!("it says nothing of what it did\n{}", tail(&log));
    }
    let Figures { inputs, branches, kept } = figures.unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let inputs_per_second = inputs as f64 / processor_seconds.max(1.0 / TICKS);
    let seconds = began.elapsed().as_secs_f64();
    let target = target.to_owned();
    Ok(Outcome { target, processor_seconds, seconds, inputs, inputs_per_second, branches, kept, finding })
}

/// Waits for the end of a target, and brings it about; whether it went well, and the processor time that it took.
fn watch(child: &mut Child, target: &str, seconds: u64) -> Result<(bool, f64)> {
    let enough = Duration::from_secs(seconds);
    let (mut used, mut asked) = (0.0, false);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let deadline = enough * SLOWEST + GRACE;
    let status = wait_until(&format!("the fuzz target {target} to end"), deadline, || {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        used = processor_seconds(child.id()).unwrap_or(used);
        if used >= enough.as_secs_f64() && !asked {
            asked = true;
            // libFuzzer's word for: finish this input, print the figures, end. Fails only if it has ended.
            let _ = pid.map(|pid| kill_process(pid, Signal::USR1));
        }
        Ok(None)
    })?;
    Ok((status.success(), used))
}

/// Processor time of a process and its threads so far, seconds (proc(5), `utime` and `stime`).
fn processor_seconds(id: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name before it may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / TICKS)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Figures {
    inputs: u64,
    branches: u64,
    kept: u64,
}

impl Figures {
    /// From what libFuzzer prints.
    fn read(log: &str) -> Option<Self> {
        let number_after = |line: &str, key: &str| -> Option<u64> {
            let word = line.split_whitespace().skip_while(|word| *word != key).nth(1)?;
            word.split('/').next()?.parse().ok()
        };
        let inputs = log.lines().find_map(|line| number_after(line, "stat::number_of_executed_units:"))?;
        let last = log.lines().rev().find(|line| line.contains(" cov: "))?;
        Some(Self { inputs, branches: number_after(last, "cov:")?, kept: number_after(last, "corp:")? })
    }
}

/// What broke, from what libFuzzer and the panic print.
fn finding(log: &str, target: &str, program: &Path) -> Finding {
    let mut lines = log.lines().skip_while(|line| !line.contains(" panicked at "));
    let panic = lines.next().map(|place| {
        let place = place.split(" panicked at ").nth(1).unwrap_or_default();
        format!("{place} {}", lines.next().unwrap_or_default())
    });
    let summary = log.lines().find_map(|line| line.strip_prefix("SUMMARY: libFuzzer: "));
    let what = panic.or_else(|| summary.map(str::to_owned)).unwrap_or_else(|| "it broke off".to_owned());
    let input = log.lines().find_map(|line| line.split("Test unit written to ").nth(1)).map(PathBuf::from);
    let mut command = format!("{TARGET}={target} {}", program.display());
    if let Some(input) = &input {
        let _ = write!(command, " {}", input.display());
    }
    Finding { what, input, command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_libfuzzer_prints() {
        let log = "#2\tINITED cov: 120 ft: 130 corp: 2/9b exec/s: 0 rss: 40Mb\n\
                   #9000\tDONE   cov: 812 ft: 2011 corp: 190/21Kb lim: 4096 exec/s: 300 rss: 90Mb\n\
                   stat::number_of_executed_units: 9000\nstat::average_exec_per_sec:     300\n";
        assert_eq!(Figures::read(log), Some(Figures { inputs: 9000, branches: 812, kept: 190 }));
        assert_eq!(Figures::read("nothing"), None);
    }

    #[test]
    fn a_finding_says_how_to_see_it_again() {
        let log = "\nthread '<unnamed>' (7) panicked at src/names.rs:5:9:\nassertion failed: a\nnote: run with\n\
                   SUMMARY: libFuzzer: deadly signal\n\
                   artifact_prefix='/c/'; Test unit written to /c/crash-1\n";
        let found = finding(log, "names", Path::new("/p/fuzz"));
        assert_eq!(found.what, "src/names.rs:5:9: assertion failed: a");
        assert_eq!(found.command, "EAGLE_FUZZ_TARGET=names /p/fuzz /c/crash-1");
        let slow = finding("SUMMARY: libFuzzer: timeout\n", "names", Path::new("/p/fuzz"));
        assert_eq!(
            (slow.what.as_str(), slow.input, slow.command.as_str()),
            ("timeout", None, "EAGLE_FUZZ_TARGET=names /p/fuzz")
        );
    }

    #[test]
    fn processor_time_is_counted() {
        let began = Instant::now();
        let before = processor_seconds(std::process::id()).unwrap();
        // As long as it takes on a busy machine, within reason.
        while processor_seconds(std::process::id()).unwrap() <= before {
            assert!(began.elapsed() < Duration::from_secs(60), "no time passes");
        }
    }
}
