//! `smtpwatch probe`: reports what this kernel and host support.

use std::{fs::File, io::Write, path::Path};

use smtpwatch_capture::probe::{self, Check, Status, pass, warn};
use smtpwatch_config::{Config, PolicySettings};
use smtpwatch_policy::{
    lookup::{Sources, Timeouts, Trust},
    resolver::{Dnssec, REMEDY},
};
use smtpwatch_render::text;
use smtpwatch_system::clock::now;

use super::{Exit, Format, ProbeArgs};
use crate::confine::{self, Privileges};

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(args.config.config.as_deref())?;
    let mut checks = probe::run(args.interface.as_deref(), &config, confinement());
    checks.push(store(&config.store));
    checks.push(dnssec(&config.policy));
    let format = Format::or_default(args.format);
    super::out(|out| {
        for check in &checks {
            match format {
                Format::Json => out.write_all(text::json_line(&row(check)).as_bytes())?,
                Format::Text => {
                    writeln!(out, "{:<4} {}: {}", label(check.status), check.name, text::printable(&check.detail))?;
                    if !check.remedy.is_empty() {
                        writeln!(out, "     -> {}", text::printable(&check.remedy))?;
                    }
                }
            }
        }
        Ok(())
    })?;
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    Ok(if failed { Exit::Failure } else { Exit::Fine })
}

/// Whether the daemon could confine itself as at its start; tested in a thread that then ends, because it is
/// irreversible.
fn confinement() -> Check {
    let tried = std::thread::spawn(|| confine::thread(&Privileges::default())).join();
    let unsupported = match tried {
        Ok(Ok(unsupported)) if unsupported.is_empty() => {
            return pass("confinement", "capabilities, Landlock and system calls can be restricted".to_owned());
        }
        Ok(Ok(unsupported)) => unsupported.join("; "),
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "the trial failed".to_owned(),
    };
    warn(
        "confinement",
        unsupported,
        "it runs with the available restrictions; kernel 5.13 with CONFIG_SECURITY_LANDLOCK has all of them".to_owned(),
    )
}

/// Whether this user could create the store at this path; tested with a temporary file in its directory.
fn store(path: &Path) -> Check {
    let name = "store".to_owned();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The daemon creates a missing directory if its parent allows it.
    let place = directory.ancestors().find(|place| place.exists()).unwrap_or(directory);
    let trial = place.join(format!(".smtpwatch-probe-{}", std::process::id()));
    let made = File::create_new(&trial);
    _ = std::fs::remove_file(&trial);
    match made {
        Ok(_) => Check {
            name,
            status: Status::Pass,
            detail: format!("{} can be written", place.display()),
            remedy: String::new(),
        },
        Err(error) => Check {
            name,
            status: Status::Fail,
            detail: format!("{} cannot be written: {error}", place.display()),
            remedy: "make it writable for this user, or set [store] path".to_owned(),
        },
    }
}

/// Whether the name servers return DNSSEC data, which DANE requires. Without DANE in the configuration, none is needed.
fn dnssec(settings: &PolicySettings) -> Check {
    let check = |status, detail: String, remedy: &str| Check {
        name: "dnssec".to_owned(),
        status,
        detail,
        remedy: remedy.to_owned(),
    };
    if !*settings.dane {
        return check(Status::Pass, "DANE is switched off by the configuration".to_owned(), "");
    }
    let tried = Trust::load(settings).map_err(anyhow::Error::from).and_then(|trust| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sources = runtime.block_on(Sources::start(settings, &trust, Timeouts::default(), now()))?;
        Ok(sources.dnssec().clone())
    });
    match tried {
        Ok(Dnssec::On) => check(Status::Pass, "it is validated through the name servers".to_owned(), ""),
        Ok(Dnssec::Off) => check(Status::Pass, "DANE is switched off by the configuration".to_owned(), ""),
        Ok(Dnssec::Broken(why)) => check(Status::Warn, format!("DANE is off: {why}"), REMEDY),
        Err(error) => check(Status::Warn, format!("DANE is off: {error:#}"), ""),
    }
}

const fn label(status: Status) -> &'static str {
    match status {
        Status::Pass => "PASS",
        Status::Warn => "WARN",
        Status::Fail => "FAIL",
    }
}

fn row(check: &Check) -> serde_json::Value {
    serde_json::json!({
        "status": label(check.status),
        "name": check.name,
        "detail": check.detail,
        "remedy": check.remedy,
    })
}
