//! `eagle install-service`: a role as a service of systemd.

mod unit;

use std::{env, fs, io, path::PathBuf};

use anyhow::{Context, Result};

use self::unit::Unit;
use crate::{
    cli::{InstallServiceArgs, ServiceRole},
    exit::Exit,
};

impl ServiceRole {
    const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Standalone => "standalone",
            Self::Seeder => "seeder",
            Self::Tracker => "tracker",
        }
    }

    /// Directories below `/var/lib` that the role writes to.
    const fn state(self) -> &'static [&'static str] {
        match self {
            Self::Proxy => &["eagle/proxy"],
            Self::Standalone => &["eagle/seeder", "eagle/proxy"],
            Self::Seeder => &["eagle/seeder"],
            Self::Tracker => &[],
        }
    }
}

/// Prints the unit or puts it in its place.
///
/// # Errors
/// When a name cannot stand in a unit, another unit of this name is there, or the file cannot be written.
pub(crate) fn run(args: &InstallServiceArgs) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => env::current_exe().context("it cannot be told where this program is; name it with --program")?,
    };
    let unit = Unit { role: args.role, program: &program, config: &args.config, user: &args.user }.text()?;
    if args.print {
        print!("{unit}");
        return Ok(());
    }
    let name = format!("eagle-{}.service", args.role.name());
    let path = args.directory.join(&name);
    let shown = path.display();
    match fs::read_to_string(&path) {
        Ok(found) if found == unit => println!("{shown}: is there already"),
        Ok(_) => {
            return Err(Exit::failed(format!(
                "{shown} is there and differs, so it is left as it is; compare it with `eagle install-service --print`, \
                 delete it, and run this again"
            ))
            .into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(&path, &unit).with_context(|| format!("cannot write {shown}"))?;
            println!("{shown}: written");
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
    }
    println!("now run: systemctl daemon-reload && systemctl enable --now {name}");
    Ok(())
}

/// Whole or not at all.
fn write(path: &PathBuf, unit: &str) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().prefix(".eagle-").tempfile_in(directory)?;
    io::Write::write_all(&mut file, unit.as_bytes())?;
    // Units are for everybody to read.
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|error| error.error)
}
