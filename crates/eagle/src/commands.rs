//! From the command line to loaded configuration, and the `config` commands.

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    cli::{
        ConfigArgs, ConfigCommand, ListenArgs, LogArgs, NodeArgs, PeerListenArgs, ProxyArgs, RoleArg, SeederArgs,
        SeederUrlArgs, SourceArgs, StandaloneArgs, TrackerArgs, TrackerUrlArgs,
    },
    config::{ConfigErrors, Flags, Loaded, Sources, check, example},
    exit::Exit,
};

/// What a role starts with.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) loaded: Loaded,
    /// What it was loaded from, to be loaded again.
    pub(crate) sources: Sources,
    pub(crate) ready_file: Option<PathBuf>,
}

pub(crate) fn tracker(args: TrackerArgs, log: &LogArgs) -> Result<Launch> {
    let mut flags = log_flags(log);
    listen(&mut flags, "tracker", &args.listen);
    launch(args.source, flags, RoleArg::Tracker, args.run.ready_file)
}

pub(crate) fn seeder(args: SeederArgs, log: &LogArgs) -> Result<Launch> {
    let mut flags = log_flags(log);
    listen(&mut flags, "seeder", &args.listen);
    peer_listen(&mut flags, "seeder", &args.peers);
    node(&mut flags, &["seeder"], &args.node);
    trackers(&mut flags, "seeder", &args.trackers);
    launch(args.source, flags, RoleArg::Seeder, args.run.ready_file)
}

pub(crate) fn proxy(args: ProxyArgs, log: &LogArgs) -> Result<Launch> {
    let mut flags = log_flags(log);
    listen(&mut flags, "proxy", &args.listen);
    peer_listen(&mut flags, "proxy", &args.peers);
    node(&mut flags, &["proxy"], &args.node);
    trackers(&mut flags, "proxy", &args.trackers);
    seeders(&mut flags, &args.seeders);
    launch(args.source, flags, RoleArg::Proxy, args.run.ready_file)
}

pub(crate) fn standalone(args: StandaloneArgs, log: &LogArgs) -> Result<Launch> {
    let mut flags = log_flags(log);
    listen(&mut flags, "proxy", &args.listen);
    node(&mut flags, &["seeder", "proxy"], &args.node);
    launch(args.source, flags, RoleArg::Standalone, args.run.ready_file)
}

/// `config check`, `config show`, `config example`.
pub(crate) fn config(command: ConfigCommand, log: &LogArgs) -> Result<()> {
    match command {
        ConfigCommand::Check(args) => {
            let file = args.source.config.clone();
            let role = args.role;
            let loaded = load(args.source.clone(), config_flags(&args, log)?, role)?;
            match file {
                Some(file) => println!("{}: fine", file.display()),
                None => println!("fine (no file was given; defaults and environment only)"),
            }
            if let Some(notice) = loaded.exposure_notice(check::roles(role)) {
                println!("note: {notice}");
            }
            Ok(())
        }
        ConfigCommand::Show(args) => {
            let role = args.config.role;
            let loaded = load(args.config.source.clone(), config_flags(&args.config, log)?, role)?;
            let sections = example::sections(role);
            if args.json {
                println!("{:#}", loaded.show_json(&sections));
            } else {
                print!("{}", loaded.show(&sections));
            }
            Ok(())
        }
        ConfigCommand::Example(args) => {
            print!("{}", example::example(args.role));
            Ok(())
        }
    }
}

fn launch(source: SourceArgs, flags: Flags, role: RoleArg, ready_file: Option<PathBuf>) -> Result<Launch> {
    let sources = sources(source, flags);
    let loaded = load_from(sources.clone(), role).map_err(Exit::config)?;
    Ok(Launch { loaded, sources, ready_file })
}

fn load(source: SourceArgs, flags: Flags, role: RoleArg) -> Result<Loaded> {
    Ok(load_from(sources(source, flags), role).map_err(Exit::config)?)
}

/// Reads and checks a configuration for a role.
///
/// # Errors
/// Everything that is wrong with it.
pub(crate) fn load_from(sources: Sources, role: RoleArg) -> Result<Loaded, ConfigErrors> {
    let loaded = Loaded::from(sources)?;
    check::check(&loaded, role)?;
    Ok(loaded)
}

/// What a configuration is made of.
pub(crate) fn sources(source: SourceArgs, mut flags: Flags) -> Sources {
    let key_file = source.cluster_key_file.as_ref();
    flags.value("--cluster-key-file", &["cluster", "key_file"], key_file.map(|file| file.display().to_string()));
    Sources { file: source.config, environment: std::env::vars_os().collect(), flags }
}

fn config_flags(args: &ConfigArgs, log: &LogArgs) -> Result<Flags> {
    let mut flags = log_flags(log);
    let role = match args.role {
        RoleArg::Tracker => Some("tracker"),
        RoleArg::Seeder => Some("seeder"),
        RoleArg::Proxy | RoleArg::Standalone => Some("proxy"),
        RoleArg::All => None,
    };
    // These keys exist once per role.
    let of_a_role = args.listen.listen.is_some()
        || args.listen.admin_listen.is_some()
        || args.peers.p2p_listen.is_some()
        || args.peers.data_listen.is_some()
        || args.peers.advertise.is_some()
        || args.node.data_dir.is_some();
    match role {
        Some(role) => {
            listen(&mut flags, role, &args.listen);
            if role != "tracker" {
                peer_listen(&mut flags, role, &args.peers);
                trackers(&mut flags, role, &args.trackers);
            }
        }
        None if of_a_role => {
            return Err(Exit::usage("addresses and --data-dir differ by role; say which with --role").into());
        }
        None => {
            trackers(&mut flags, "seeder", &args.trackers);
            trackers(&mut flags, "proxy", &args.trackers);
        }
    }
    match args.role {
        RoleArg::Tracker => {}
        RoleArg::Seeder => node(&mut flags, &["seeder"], &args.node),
        RoleArg::Proxy => node(&mut flags, &["proxy"], &args.node),
        RoleArg::Standalone | RoleArg::All => node(&mut flags, &["seeder", "proxy"], &args.node),
    }
    if matches!(args.role, RoleArg::Proxy | RoleArg::Standalone | RoleArg::All) {
        seeders(&mut flags, &args.seeders);
    }
    Ok(flags)
}

pub(crate) fn log_flags(args: &LogArgs) -> Flags {
    let mut flags = Flags::default();
    flags.value("--log-level", &["log", "level"], args.log_level.as_ref());
    let format = args.log_format.and_then(|format| clap::ValueEnum::to_possible_value(&format));
    flags.value("--log-format", &["log", "format"], format.map(|format| format.get_name().to_owned()));
    flags
}

fn listen(flags: &mut Flags, role: &str, args: &ListenArgs) {
    flags.value("--listen", &[role, "listen"], args.listen);
    flags.value("--admin-listen", &[role, "admin"], args.admin_listen);
}

fn peer_listen(flags: &mut Flags, role: &str, args: &PeerListenArgs) {
    flags.value("--p2p-listen", &[role, "p2p_listen"], args.p2p_listen);
    flags.value("--data-listen", &[role, "data_listen"], args.data_listen);
    flags.value("--advertise", &[role, "advertise"], args.advertise);
}

fn node(flags: &mut Flags, roles: &[&str], args: &NodeArgs) {
    for role in roles {
        // Two roles in one process need a directory each.
        let data_dir = args.data_dir.as_ref().map(|dir| if roles.len() > 1 { dir.join(role) } else { dir.clone() });
        flags.value("--data-dir", &[role, "data_dir"], data_dir.map(|dir| dir.display().to_string()));
        flags.value("--cache-limit", &[role, "cache_limit"], args.cache_limit);
        flags.value("--download-rate", &[role, "download_rate"], args.download_rate);
        flags.value("--upload-rate", &[role, "upload_rate"], args.upload_rate);
    }
    flags.value("--encryption", &["p2p", "encryption"], args.encryption.map(|mode| mode.as_str()));
    for (name, url) in &args.registries {
        flags.registry(name, url);
    }
}

fn trackers(flags: &mut Flags, role: &str, args: &TrackerUrlArgs) {
    flags.list("--tracker", &[role, "trackers"], &args.trackers);
}

fn seeders(flags: &mut Flags, args: &SeederUrlArgs) {
    flags.list("--seeder", &["proxy", "seeders"], &args.seeders);
}
