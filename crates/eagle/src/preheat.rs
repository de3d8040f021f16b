//! `eagle preheat`: has a seeder fetch images before anybody pulls them.

use std::{io::Read as _, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use eagle_seeder::preheat::{BlobKind, BlobState, Job, JobState, PreheatRequest, Totals};
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    api_client::ApiClient,
    cli::PreheatArgs,
    cluster::{Cluster, ClusterConfig},
    exit::{Exit, Failure},
};

/// How long the seeder may take for an answer; it only looks into its memory.
const DEADLINE: Duration = Duration::from_secs(15);
/// How often a job is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(500);
/// How many looks in a row may fail: a seeder that restarts goes on with its jobs.
const MAX_FAILED_LOOKS: u32 = 60;
/// Largest list of images, bytes.
const MAX_LIST: u64 = 1 << 20;

/// Asks for a job, and waits for its end when told to.
///
/// # Errors
/// When nothing can be asked for, the seeder refuses, or something could not be fetched.
pub(crate) async fn run(args: &PreheatArgs) -> Result<()> {
    let mut images = args.images.clone();
    if let Some(file) = &args.file {
        images.extend(read_list(file)?);
    }
    if images.is_empty() {
        return Err(Exit::usage("no image is named; give some, or a list with --file").into());
    }
    let membership = ClusterConfig::of_command(args.cluster_key_file.clone());
    let cluster = Cluster::start(&membership).await.map_err(|error| Exit::usage(format!("cluster key: {error}")))?;
    let client = ApiClient::new("--seeder", &args.seeder, args.token.as_deref(), DEADLINE)?.member(cluster.members());
    let request = PreheatRequest { images, platforms: args.platform.clone(), nodes: args.nodes };
    let mut job: Job = client.send(Method::POST, "/v1/preheat", Some(&request)).await?;
    if args.wait {
        job = wait(&client, job, args.json).await?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&job)?);
    } else if args.wait {
        print!("{}", readable(&job));
    } else {
        println!("{}", job.id);
    }
    match job.state {
        JobState::Failed => Err(Exit { failure: Failure::Failed, message: failure(&job) }.into()),
        JobState::Cancelled => bail!("job {} was cancelled", job.id),
        JobState::Queued | JobState::Running | JobState::Succeeded => Ok(()),
    }
}

/// The images of a list: one on a line, `#` begins a comment.
fn read_list(file: &Path) -> Result<Vec<String>> {
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        let input: Box<dyn std::io::Read> =
            if file == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(file)?) };
        input.take(MAX_LIST + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_LIST {
            return Err(std::io::Error::other("is larger than any list of images"));
        }
        Ok(text)
    };
    let text = read().with_context(|| format!("--file {} cannot be read", file.display()))?;
    Ok(eagle_seeder::preheat::image_list(&text))
}

async fn wait(client: &ApiClient, mut job: Job, quiet: bool) -> Result<Job> {
    let path = format!("/v1/preheat/{}", job.id);
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let template = "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {msg}";
    bar.set_style(ProgressStyle::with_template(template).context("the progress bar")?);
    let mut failed = 0;
    while !job.state.is_over() {
        tokio::time::sleep(LOOK).await;
        match client.send::<Job>(Method::GET, &path, None::<&()>).await {
            Ok(now) => {
                failed = 0;
                job = now;
            }
            Err(error) if error.is::<crate::api_client::Refused>() || failed >= MAX_FAILED_LOOKS => return Err(error),
            Err(_) => failed += 1,
        }
        let Totals { blobs, stored, bytes, received_bytes, .. } = job.totals();
        bar.set_length(bytes);
        bar.set_position(received_bytes);
        let over = job.node_reports.iter().filter(|node| node.state.is_over()).count();
        bar.set_message(match job.node_reports.len() {
            0 => format!("{stored}/{blobs} blobs"),
            nodes => format!("{stored}/{blobs} blobs, {over}/{nodes} nodes"),
        });
    }
    bar.finish_and_clear();
    Ok(job)
}

/// A table of every blob, and of the nodes that were warmed.
fn readable(job: &Job) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["IMAGE", "KIND", "DIGEST", "BYTES", "STATE", "SOURCE"]);
    for image in &job.images {
        let name = image.image.to_string();
        if let Some(error) = &image.error {
            table.add_row([&name, "", "", "", "failed", error]);
        }
        for blob in &image.blobs {
            let kind = match blob.kind {
                BlobKind::Index => "index",
                BlobKind::Manifest => "manifest",
                BlobKind::Config => "config",
                BlobKind::Layer => "layer",
            };
            let state = match blob.state {
                BlobState::Waiting => "waiting",
                BlobState::Fetching => "fetching",
                BlobState::Stored => "stored",
                BlobState::Skipped => "skipped",
                BlobState::Failed => "failed",
            };
            let source = blob.error.as_deref().or(blob.source.as_deref()).unwrap_or_default();
            table.add_row([&name, kind, &blob.digest.to_string(), &blob.size.to_string(), state, source]);
        }
    }
    if let Some(column) = table.column_mut(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = format!("{}\n", table.trim_fmt());
    if !job.node_reports.is_empty() {
        let mut table = Table::new();
        table.load_preset(NOTHING).set_header(["NODE", "ADDRESS", "BLOBS", "STATE", "ERROR"]);
        for node in &job.node_reports {
            let blobs = format!("{}/{}", node.stored, node.blobs);
            let error = node.error.clone().unwrap_or_default();
            table.add_row([
                node.node.to_string(),
                node.address.to_string(),
                blobs,
                node.state.name().to_owned(),
                error,
            ]);
        }
        text.push_str(&format!("\n{}\n", table.trim_fmt()));
    }
    text
}

/// What went wrong, on one line.
fn failure(job: &Job) -> String {
    let blobs = job.totals().failed;
    let images = job.images.iter().filter(|image| image.state == JobState::Failed).count();
    let nodes = job.node_reports.iter().filter(|node| node.state == JobState::Failed).count();
    let mut parts = Vec::new();
    for (count, what) in [(images, "images"), (usize::try_from(blobs).unwrap_or(usize::MAX), "blobs"), (nodes, "nodes")]
    {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
    let first = job.images.iter().find_map(|image| {
        image.error.clone().or_else(|| {
            image.blobs.iter().find_map(|blob| blob.error.clone().filter(|_| blob.state == BlobState::Failed))
        })
    });
    let first =
        first.or_else(|| job.node_reports.iter().find_map(|node| node.error.clone())).or_else(|| job.error.clone());
    format!(
        "not warmed: {}; {}",
        if parts.is_empty() { "nodes".to_owned() } else { parts.join(", ") },
        first.unwrap_or_default()
    )
}
