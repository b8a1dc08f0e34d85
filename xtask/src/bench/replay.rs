//! Cost of reading a capture file: the whole process, compared with alternative programs.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    captures::{self, Capture},
    peers,
    usage::{self, Usage},
};
use crate::host;

/// Number of rounds; the fastest one counts. The second number is for programs that take seconds.
const ROUNDS: usize = 9;
const ROUNDS_SLOW: usize = 2;

/// Suricata rules for comparable findings. None of them matches in the captures, because an alert has its own cost.
const RULES: &str = r#"alert smtp any any -> any any (msg:"SMTP EHLO reply without STARTTLS"; flow:established,to_client; content:"250-"; startswith; content:!"STARTTLS"; sid:1; rev:1;)
alert smtp any any -> any any (msg:"SMTP masked capability"; flow:established,to_client; content:"250-XXX"; sid:2; rev:1;)
alert smtp any any -> any any (msg:"SMTP AUTH PLAIN in clear"; flow:established,to_server; content:"AUTH PLAIN"; nocase; sid:3; rev:1;)
alert smtp any any -> any any (msg:"SMTP AUTH LOGIN in clear"; flow:established,to_server; content:"AUTH LOGIN"; nocase; sid:4; rev:1;)
"#;

/// The compared programs, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Program {
    /// Reads the file and does nothing else: the minimum for every program.
    Dd,
    Tcpdump,
    Smtpwatch,
    NdpiReader,
    Suricata,
    SuricataWithRules,
    Tshark,
}

impl Program {
    const ALL: [Self; 7] = [
        Self::Dd,
        Self::Tcpdump,
        Self::Smtpwatch,
        Self::NdpiReader,
        Self::Suricata,
        Self::SuricataWithRules,
        Self::Tshark,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Dd => "dd",
            Self::Tcpdump => "tcpdump",
            Self::Smtpwatch => "smtpwatch",
            Self::NdpiReader => "ndpiReader",
            Self::Suricata | Self::SuricataWithRules => "suricata",
            Self::Tshark => "tshark",
        }
    }

    const fn how(self) -> &'static str {
        match self {
            Self::Dd => "`dd bs=64k`: the file is read, nothing else",
            Self::Tcpdump => "`tcpdump -w /dev/null 'tcp port 25 or 587'`",
            Self::Smtpwatch => "**`smtpwatch replay`**",
            Self::NdpiReader => "`ndpiReader`",
            Self::Suricata => "Suricata, without rules",
            Self::SuricataWithRules => "Suricata, four SMTP rules",
            Self::Tshark => "`tshark -Y smtp`",
        }
    }

    const fn rounds(self) -> usize {
        match self {
            Self::Dd | Self::Tcpdump | Self::Smtpwatch | Self::NdpiReader => ROUNDS,
            Self::Suricata | Self::SuricataWithRules => ROUNDS_SLOW,
            Self::Tshark => 1,
        }
    }

    fn command(self, path: &Path, place: &Place) -> Result<Command> {
        let program = match self {
            Self::Smtpwatch => place.smtpwatch.clone(),
            _ => host::find(self.name()).with_context(|| format!("{} is not installed", self.name()))?,
        };
        let mut command = Command::new(program);
        match self {
            Self::Dd => command.arg(format!("if={}", path.display())).args(["of=/dev/null", "bs=64k"]),
            Self::Tcpdump => command.arg("-r").arg(path).args(["-w", "/dev/null", "tcp port 25 or 587"]),
            Self::Smtpwatch => command.arg("replay").arg(path),
            Self::NdpiReader => command.arg("-i").arg(path),
            Self::Suricata | Self::SuricataWithRules => {
                let rules = if self == Self::Suricata { Path::new("/dev/null") } else { &place.rules };
                command
                    .arg("-r")
                    .arg(path)
                    .arg("-S")
                    .arg(rules)
                    .arg("-l")
                    .arg(&place.logs)
                    .args(["--runmode", "single"])
            }
            Self::Tshark => command.arg("-r").arg(path).args(["-Y", "smtp"]),
        };
        Ok(command)
    }
}

struct Place {
    smtpwatch: PathBuf,
    rules: PathBuf,
    logs: PathBuf,
}

/// Runs the measurement and returns the tables.
pub fn section() -> Result<String> {
    let captures = captures::all()?;
    let home = host::workspace().join("target/bench");
    let place = Place {
        smtpwatch: host::dist_binary("smtpwatch")?,
        rules: home.join("smtp.rules"),
        logs: home.join("suricata"),
    };
    fs::write(&place.rules, RULES)?;
    fs::create_dir_all(&place.logs)?;
    let installed = |program: &Program| *program == Program::Smtpwatch || host::find(program.name()).is_some();
    let (present, absent): (Vec<_>, Vec<_>) = Program::ALL.into_iter().partition(installed);
    let mut text = String::from(
        "Processor time (user and system) of the whole process, its start included, the least of interleaved rounds; \
         the files are in the page cache.\n",
    );
    for capture in &captures {
        eprintln!("bench: replay of {}", capture.what);
        let rows = measure(capture, &present, &place)?;
        table(&mut text, capture, &rows)?;
    }
    let versions: Vec<_> = present.iter().filter_map(|program| peers::version(program.name())).collect();
    write!(text, "\nCompared with: {}.", deduplicated(versions).join(", "))?;
    if !absent.is_empty() {
        let names = absent.iter().map(|program| program.name().to_owned()).collect();
        write!(text, " Not installed, and so left out: {}.", deduplicated(names).join(", "))?;
    }
    Ok(text)
}

fn deduplicated(mut names: Vec<String>) -> Vec<String> {
    names.dedup();
    names
}

struct Row {
    program: Program,
    usage: Usage,
}

fn measure(capture: &Capture, programs: &[Program], place: &Place) -> Result<Vec<Row>> {
    let mut rows: Vec<Option<Row>> = programs.iter().map(|_| None).collect();
    for round in 0..ROUNDS {
        for (row, &program) in rows.iter_mut().zip(programs).filter(|(_, program)| round < program.rounds()) {
            let (usage, said) = usage::of(&mut program.command(&capture.path, place)?)?;
            if program == Program::Smtpwatch {
                let whole = said.contains(&format!("sessions {} ", capture.sessions)) && said.contains("gaps 0, ");
                ensure!(whole, "not every session was followed: {said}");
            }
            if row.as_ref().is_none_or(|row| usage.cpu < row.usage.cpu) {
                *row = Some(Row { program, usage });
            }
        }
    }
    Ok(rows.into_iter().flatten().collect())
}

fn table(text: &mut String, capture: &Capture, rows: &[Row]) -> Result<()> {
    let cpu = |program| rows.iter().find(|row| row.program == program).map(|row| row.usage.cpu);
    let tcpdump = cpu(Program::Tcpdump);
    write!(
        text,
        "\n{} sessions, {}, {} MB:\n\n| program | CPU s | beside tcpdump | peak MiB |\n|---|---:|---:|---:|\n",
        capture.sessions,
        capture.what,
        capture.octets() / 1_000_000
    )?;
    for Row { program, usage } in rows {
        let beside = tcpdump.map_or_else(|| "-".to_owned(), |tcpdump| format!("{:.2}", ratio(usage.cpu, tcpdump)));
        writeln!(
            text,
            "| {} | {:.3} | {beside} | {} |",
            program.how(),
            usage.cpu.as_secs_f64(),
            usage.peak.div_ceil(1024)
        )?;
    }
    let Some(ours) = cpu(Program::Smtpwatch) else { return Ok(()) };
    if let Some(suricata) = cpu(Program::SuricataWithRules) {
        writeln!(text, "\nSuricata with rules takes {:.1} times what smtpwatch takes.", ratio(suricata, ours))?;
    }
    Ok(())
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64().max(1e-6)
}
