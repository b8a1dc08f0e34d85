//! `smtpwatch probe`.

use std::io::Write;

use super::{Exit, Format, ProbeArgs};
use crate::{
    capture::probe::{self, Check, Status},
    config::Config,
    output::text,
};

pub(super) fn run(args: &ProbeArgs) -> anyhow::Result<Exit> {
    let (config, _) = Config::load(None)?;
    let checks = probe::run(args.interface.as_deref(), &config.ports);
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
