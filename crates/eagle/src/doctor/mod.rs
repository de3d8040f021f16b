//! `eagle doctor`: looks for what is wrong with this machine's part of a cluster, and says what to do.
//!
//! Nothing is changed, and nothing is asked that a role would not ask. Checks that need others run at the same time, each with a
//! deadline.

mod machine;
mod network;
mod runtimes;

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;
use serde_json::json;

use crate::{
    cli::{DoctorArgs, LogArgs},
    cluster::Cluster,
    commands::{load_from, log_flags, sources},
    config::{Loaded, check},
    exit::Exit,
};

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// It does not work, or soon will not.
    Problem,
}

/// What one check found of one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was checked: configuration, ports, disk, clock, tracker, seeder, peers, registry, runtime.
    check: &'static str,
    level: Level,
    /// Of what, and what was found.
    message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn fine(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, level: Level::Fine, message: message.into(), advice: None }
    }

    fn note(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Note, message: message.into(), advice: Some(advice.into()) }
    }

    fn problem(check: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Problem, message: message.into(), advice: Some(advice.into()) }
    }
}

/// Looks, and prints what was found.
///
/// # Errors
/// When there is a problem.
pub(crate) async fn run(args: DoctorArgs, log: &LogArgs) -> Result<()> {
    let DoctorArgs { source, role, root, json } = args;
    let findings = match load_from(sources(source, log_flags(log)), role) {
        Ok(loaded) => look(&loaded, check::roles(role), &root).await,
        Err(errors) => errors
            .0
            .iter()
            .map(|error| {
                Finding::problem(
                    "configuration",
                    error.to_string(),
                    "correct the key; `eagle config example` has every key at its default",
                )
            })
            .collect(),
    };
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    if json {
        println!("{:#}", json!({ "problems": problems, "findings": findings }));
    } else {
        print!("{}", page(&findings));
    }
    match problems {
        0 => Ok(()),
        // The page has said it all.
        _ => Err(Exit::failed(String::new()).into()),
    }
}

async fn look(loaded: &Loaded, roles: &[&'static str], root: &std::path::Path) -> Vec<Finding> {
    let mut findings = vec![match loaded.exposure_notice(roles) {
        Some(notice) => Finding::note("configuration", notice, "see docs/membership.md"),
        None => Finding::fine("configuration", "makes sense"),
    }];
    let cluster = match Cluster::start(&loaded.settings.cluster).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let message = loaded.error(&["cluster", error.key()], &error).to_string();
            findings.push(Finding::problem("configuration", message, "without it nobody takes this node for a member"));
            return findings;
        }
    };
    let (ports, running) = machine::ports(loaded, roles).await;
    findings.extend(ports);
    findings.extend(machine::disk(loaded, roles, &running));
    findings.extend(network::look(loaded, &cluster, roles).await);
    if roles.contains(&"proxy") {
        findings.extend(runtimes::look(loaded, root));
    }
    findings
}

/// A line for each finding, and one below it that says what to do.
fn page(findings: &[Finding]) -> String {
    let mut page = String::new();
    for Finding { check, level, message, advice } in findings {
        let mark = match level {
            Level::Fine => "ok",
            Level::Note => "note",
            Level::Problem => "PROBLEM",
        };
        // Writing to a string does not fail.
        let _ = writeln!(page, "{mark:<8} {check:<14} {message}");
        if let Some(advice) = advice {
            let _ = writeln!(page, "{:<23} -> {advice}", "");
        }
    }
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    let _ = match problems {
        0 => writeln!(page, "\nNothing is wrong."),
        1 => writeln!(page, "\n1 problem."),
        many => writeln!(page, "\n{many} problems."),
    };
    page
}

#[cfg(test)]
mod tests;
