//! The parts of the daemon one by one, measured by criterion: `smtpwatch/benches/parts.rs`.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host;

/// One benchmark.
struct Part {
    group: String,
    name: String,
    /// Time per unit of the group, ns.
    ns: f64,
}

/// Runs the benchmarks and returns the table.
pub fn section() -> Result<String> {
    let results = host::workspace().join("target/bench/criterion");
    // Results of earlier runs would be read too.
    let _ = fs::remove_dir_all(&results);
    let out = host::cargo(&["bench", "--quiet", "--package", "smtpwatch", "--bench", "parts"])
        .env("CRITERION_HOME", &results)
        .output()
        .context("cannot start cargo")?;
    ensure!(out.status.success(), "the benchmark `parts` fails: {}", String::from_utf8_lossy(&out.stderr));
    let mut files = Vec::new();
    find(&results, &mut files)?;
    let mut parts = files.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?;
    ensure!(!parts.is_empty(), "criterion has left no results");
    parts.sort_by(|a, b| (&a.group, beside(a), &a.name).cmp(&(&b.group, beside(b), &b.name)));
    let mut table =
        String::from("Medians, by criterion.\n\n| part, unit | | ns | beside the library |\n|---|---|---:|---:|\n");
    for part in &parts {
        let peer = parts.iter().find(|peer| peer.group == part.group && beside(peer));
        let ratio = peer.filter(|_| !beside(part)).map(|peer| format!("{:.2}", part.ns / peer.ns)).unwrap_or_default();
        writeln!(table, "| {} | {} | {:.0} | {ratio} |", part.group, part.name, part.ns)?;
    }
    Ok(table)
}

fn beside(part: &Part) -> bool {
    part.name.starts_with("beside ")
}

/// Every `new/benchmark.json` below `directory`.
fn find(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.ends_with("new/benchmark.json") {
            files.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Part> {
    let json = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    let (about, estimates) = (json(path)?, json(&path.with_file_name("estimates.json"))?);
    let text = |key: &str| about[key].as_str().map(str::to_owned).with_context(|| format!("criterion names no {key}"));
    let units = about["throughput"]["Elements"].as_f64().unwrap_or(1.0);
    let ns = estimates["median"]["point_estimate"].as_f64().context("criterion gives no median")?;
    Ok(Part { group: text("group_id")?, name: text("function_id")?, ns: ns / units })
}
