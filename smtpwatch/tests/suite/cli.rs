//! The command line: help, version, exit codes, and messages about invalid input.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::traffic::{self, CLIENT, START_NS, wrap};

const OFFERED: &str = "250-STARTTLS\r\n250 8BITMIME\r\n";
const STRIPPED: &str = "250 8BITMIME\r\n";

fn smtpwatch() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smtpwatch"));
    // The environment of the test run must not configure the program.
    command.env_clear();
    command
}

fn run(arguments: &[&str]) -> Output {
    smtpwatch().args(arguments).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A temporary directory with the test's files.
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn pcap(&self, name: &str, packets: &[traffic::Packet]) -> String {
        self.write(name, traffic::pcap(packets, 1, false, false))
    }
}

#[test]
fn help_and_version() {
    let help = run(&["--help"]);
    assert_eq!(code(&help), 0);
    for verb in
        ["run", "replay", "probe", "baseline", "peers", "tlsrpt", "policy", "silence", "check-config", "generate"]
    {
        assert!(stdout(&help).lines().any(|line| line.trim_start().starts_with(verb)), "{verb}");
        assert_eq!(code(&run(&[verb, "--help"])), 0, "{verb}");
    }
    let version = stdout(&run(&["--version"]));
    let lines: Vec<_> = version.lines().map(|line| line.split_once(": ").map_or(line, |(name, _)| name)).collect();
    assert_eq!(lines, [concat!("smtpwatch ", env!("CARGO_PKG_VERSION")), "revision", "rustc", "kernel object"]);
}

#[test]
fn the_page_on_detection_is_what_the_program_prints() {
    let page = include_str!("../../../docs/detection.md");
    assert_eq!(
        stdout(&run(&["generate", "rules"])),
        page,
        "print it again: smtpwatch generate rules > docs/detection.md"
    );
    let json = stdout(&run(&["generate", "rules", "--format", "json"]));
    let rows: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().any(|row| row["id"] == "A1" && row["kind"] == "starttls-stripped"));
    assert_eq!(rows.len(), page.lines().filter(|line| line.starts_with("| ")).count() - 1);
}

#[test]
fn what_is_no_command_line_is_usage() {
    for arguments in [
        ["frobnicate"].as_slice(),
        &["replay"],
        &["replay", "--port", "0", "x"],
        &["replay", "--port", "smtp", "x"],
        &["replay", "--local", "example.net", "x"],
        &["replay", "--fail-on", "loud", "x"],
        &["run", "--web.listen-address", "localhost"],
        &["run", "--interface", "eth0/x"],
        &["run", "--port", "70000"],
        &["baseline"],
        &["peers", "--sort", "name"],
        &["peers", "--limit", "0"],
        &["peers", "--format", "xml"],
        &["--log.level", "loud", "check-config"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty());
    }
}

#[test]
fn configuration_is_checked() {
    let files = Files::new();
    let good = files.write("good.toml", "ports = [25]\n[[rule]]\nstarttls = \"required\"\n");
    let output = run(&["check-config", "--config", &good]);
    let answer = stdout(&output);
    assert_eq!((code(&output), answer.lines().next()), (0, Some(format!("{good}: good, 1 rule").as_str())));
    let hash = answer.lines().nth(1).unwrap().strip_prefix("sha256 ").unwrap().split(' ').next().unwrap();
    assert!(hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit()), "{answer}");
    let bad = files.write("bad.toml", "\n\nport = 1\n");
    let missing = files.text("missing.toml");
    for verb in [["check-config"].as_slice(), &["run"], &["replay", "x"], &["baseline", "list"]] {
        let output = smtpwatch().args(verb).args(["--config", &bad]).output().unwrap();
        assert_eq!(code(&output), 78, "{verb:?}");
        assert_eq!(
            stderr(&output),
            format!("smtpwatch: {bad}:3: unknown key \"port\" at the top level: did you mean \"ports\"?\n")
        );
        let output = smtpwatch().args(verb).args(["--config", &missing]).output().unwrap();
        assert_eq!(code(&output), 78, "{verb:?}");
        assert!(stderr(&output).contains("cannot read the configuration"), "{}", stderr(&output));
    }
    // The environment names it too; a flag takes precedence.
    assert_eq!(code(&smtpwatch().arg("check-config").env("SMTPWATCH_CONFIG", &bad).output().unwrap()), 78);
    let both = smtpwatch().args(["check-config", "--config", &good]).env("SMTPWATCH_CONFIG", &bad).output().unwrap();
    assert_eq!(code(&both), 0);
}

/// The list applies to recipients, also of a host that was never seen before.
#[test]
fn replay_judges_by_the_list_of_the_configuration() {
    let files = Files::new();
    let list = files.write(
        "list.json",
        r#"{"version":"0.1","timestamp":1700000000,"expires":4000000000,"policy-aliases":{},
            "policies":{"example.net":{"mode":"enforce","mxs":[".example.net"]}}}"#,
    );
    let config = files.write("list.toml", format!("[policy]\nstarttls_everywhere = {list:?}\n"));
    let stripped = files.pcap("stripped.pcap", &traffic::mail(CLIENT, START_NS, STRIPPED));
    let output = run(&["replay", "--format", "json", "--config", &config, &stripped]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let findings: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_list = |finding: &&serde_json::Value| finding["expected"]["source"] == "list";
    assert!(findings.iter().filter(by_list).any(|finding| finding["evidence"] == "policy"), "{findings:?}");
    // A file that is not a list is rejected.
    files.write("list.json", "{}");
    let output = run(&["replay", "--config", &config, &stripped]);
    assert_eq!((code(&output), stdout(&output).as_str()), (1, ""));
    assert!(stderr(&output).contains("STARTTLS-Everywhere list cannot be used"), "{}", stderr(&output));
}

#[test]
fn replay_finds_a_password_and_never_shows_it() {
    let files = Files::new();
    let capture = files.pcap("password.pcap", &traffic::password());
    let output = run(&["replay", &capture]);
    assert_eq!(code(&output), 0);
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let finding = lines.iter().find(|line| line["kind"] == "auth-plaintext").unwrap();
    assert_eq!((&finding["severity"], &finding["role"]), (&"critical".into(), &"client".into()));
    assert_eq!(finding["flow"]["client"], CLIENT);
    assert_eq!(finding["observed"]["mechanism"], "PLAIN");
    assert!(finding["flow"]["community_id"].as_str().unwrap().starts_with("1:"));
    assert_eq!(finding["id"].as_str().unwrap().len(), 36);
    assert!(finding["time"].as_str().unwrap().starts_with("2026-11-23T15:00:00."));
    for format in ["json", "text"] {
        let output = run(&["replay", "--format", format, "--log.level", "trace", &capture]);
        for secret in ["AGFsaWNlAGh1bnRlcjI", "hunter2"] {
            assert!(!(stdout(&output) + &stderr(&output)).contains(secret), "{format}");
        }
    }
    assert!(stderr(&output).starts_with("files 1, packets "), "{}", stderr(&output));
    // Which end is local, by flag and by configuration.
    let server = run(&["replay", "--local", "198.51.100.0/24", &capture]);
    assert!(stdout(&server).contains("\"role\":\"server\""));
    let config = files.write("local.toml", "local = [\"198.51.100.0/24\"]");
    assert!(stdout(&run(&["replay", "--config", &config, &capture])).contains("\"role\":\"server\""));
    // A port that is not watched is not examined.
    assert_eq!(stdout(&run(&["replay", "--port", "25", &capture])), "");
}

#[test]
fn fail_on_is_a_threshold() {
    let files = Files::new();
    let capture = files.pcap("password.pcap", &traffic::password());
    let quiet = files.pcap("quiet.pcap", &traffic::mail(CLIENT, START_NS, OFFERED));
    for (file, severity, expected) in [(&capture, "critical", 3), (&capture, "info", 3), (&quiet, "info", 0)] {
        assert_eq!(code(&run(&["replay", "--fail-on", severity, file])), expected, "{file} {severity}");
    }
}

#[test]
fn history_of_one_file_judges_the_next_and_the_store_keeps_it() {
    let files = Files::new();
    let mut honest = Vec::new();
    for session in 0..6_u64 {
        let client = format!("192.0.2.10:{}", 41_000 + session);
        honest.extend(traffic::mail(&client, START_NS + session * 1_000_000_000, OFFERED));
    }
    let honest = files.pcap("honest.pcap", &honest);
    let stripped = files.pcap("stripped.pcap", &traffic::mail(CLIENT, START_NS + 3_600_000_000_000, STRIPPED));
    let strip = |output: &Output| {
        let line = stdout(output).lines().find(|line| line.contains("starttls-stripped")).map(str::to_owned)?;
        Some(serde_json::from_str::<serde_json::Value>(&line).unwrap())
    };
    assert!(strip(&run(&["replay", &stripped])).is_none(), "nothing is known of the peer");
    let one_timeline = strip(&run(&["replay", &honest, &stripped])).expect("one timeline");
    assert_eq!(one_timeline["evidence"], "regression");
    let detail =
        "offered in 6 of 6 sessions on 1 day since 2026-11-23: fewer than 1 in 20 sessions of such a peer lacks it";
    assert_eq!(one_timeline["expected"]["detail"], detail);
    assert_eq!((&one_timeline["outcome"], &one_timeline["severity"]), (&"content".into(), &"low".into()));
    // The same over two runs with a store; without --store nothing is stored.
    let store = files.text("history.db");
    assert_eq!(code(&run(&["replay", "--store", &store, &honest])), 0);
    let kept = strip(&run(&["replay", "--store", &store, &stripped])).expect("two runs");
    assert_eq!(kept["expected"]["detail"], one_timeline["expected"]["detail"]);

    let baseline =
        |arguments: &[&str]| smtpwatch().arg("baseline").args(arguments).args(["--store", &store]).output().unwrap();
    let list = baseline(&["list"]);
    let rows: Vec<serde_json::Value> = stdout(&list).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        rows.iter().any(|row| row["peer"] == "198.51.100.25" && row["peer_kind"] == "address" && row["offered"] == 6)
    );
    assert!(
        rows.iter().any(|row| row["peer"] == "mx1.example.net" && row["peer_kind"] == "name" && row["sessions"] == 7)
    );
    assert!(stdout(&baseline(&["list", "--format", "text"])).starts_with("PEER "));
    assert_eq!(stdout(&baseline(&["show", "MX1.example.net."])).lines().count(), 1);
    assert_eq!(code(&baseline(&["show", "192.0.2.99"])), 1);
    history_moves_to_another_store(&files, &store);
    for peer in ["mx1.example.net", "198.51.100.25"] {
        assert_eq!(code(&baseline(&["forget", peer])), 0);
        assert_eq!(code(&baseline(&["forget", peer])), 1, "forgotten already");
    }
    assert_eq!(stdout(&baseline(&["list"])), "");
    assert!(strip(&run(&["replay", "--store", &store, &stripped])).is_none(), "forgotten");
}

#[test]
fn a_rule_judges_the_first_contact() {
    let files = Files::new();
    let config = files.write("rule.toml", "[[rule]]\npeer = [\"198.51.100.0/24\"]\nstarttls = \"required\"\n");
    let stripped = files.pcap("stripped.pcap", &traffic::mail(CLIENT, START_NS, STRIPPED));
    let output = run(&["replay", "--config", &config, "--fail-on", "critical", &stripped]);
    assert_eq!(code(&output), 3);
    let kinds: Vec<_> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| (line["kind"].clone(), line["evidence"].clone()))
        .collect();
    assert!(kinds.contains(&("starttls-stripped".into(), "policy".into())), "{kinds:?}");
}

#[test]
fn a_damaged_capture_is_judged_up_to_the_damage() {
    let files = Files::new();
    let mut whole = traffic::pcap(&traffic::password(), 1, false, false);
    whole.extend(traffic::pcap(&traffic::mail(CLIENT, START_NS, OFFERED), 1, false, false).split_off(24));
    whole.truncate(whole.len() - 3);
    let cut = files.write("cut.pcap", &whole);
    let output = run(&["replay", "--fail-on", "critical", &cut]);
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("auth-plaintext"), "findings are printed");
    assert!(stderr(&output).contains("truncated at byte "), "{}", stderr(&output));
    // The other files are read all the same.
    let none = files.write("none.pcap", "no capture");
    let good = files.pcap("good.pcap", &traffic::password());
    let output = run(&["replay", &none, "/nonexistent", &good]);
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("auth-plaintext"));
    assert!(
        stderr(&output).contains("none.pcap is not a capture file")
            && stderr(&output).contains("cannot read /nonexistent")
    );
}

/// What a capture hides is said, with the remedy.
#[test]
fn what_a_capture_hides_is_said() {
    let files = Files::new();
    let mail = traffic::mail(CLIENT, START_NS, OFFERED);
    let frames = |wrapped: fn(&[u8]) -> Vec<u8>| -> Vec<_> {
        mail.iter().map(|packet| (packet.at_ns, wrap::ethernet(0x0800, &wrapped(&packet.ip)))).collect()
    };
    let vxlan = files.write("vxlan.pcap", traffic::pcap_of_frames(&frames(wrap::vxlan), (1, usize::MAX), false, false));
    let cut = files.write("cut.pcap", traffic::pcap_of_frames(&frames(<[u8]>::to_vec), (1, 60), false, false));
    let short = files.write("short.pcap", traffic::pcap_of_frames(&frames(<[u8]>::to_vec), (1, 40), false, false));
    let output = run(&["replay", &vxlan, &cut, &short]);
    assert_eq!((code(&output), stdout(&output)), (0, String::new()));
    let text = stderr(&output);
    let hidden = mail.len() - 1;
    for expected in [
        format!("mail in VXLAN, packets {hidden}, is not analysed: capture where the encapsulation ends"),
        " mail packets are cut by the snap length of the capture, and their sessions are unknown: capture whole packets \
         (tcpdump -s 0)"
            .to_owned(),
        format!("{} packets are cut within their headers", mail.len()),
    ] {
        assert!(text.contains(&expected), "{text}");
    }
    let whole = files.pcap("whole.pcap", &mail);
    let text = stderr(&run(&["replay", &whole]));
    assert!(!text.contains("cut") && !text.contains("not analysed"), "{text}");
}

#[test]
fn a_store_that_is_not_ours_ends_it() {
    let files = Files::new();
    let capture = files.pcap("password.pcap", &traffic::password());
    let foreign =
        files.write("foreign.db", "not a database, but a text that is long enough to be read as one. ".repeat(9));
    for arguments in [
        ["replay", "--store", &foreign, &capture].as_slice(),
        &["baseline", "list", "--store", &foreign],
        &["baseline", "forget", "x", "--store", &foreign],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains("is not a smtpwatch store and is left untouched"), "{}", stderr(&output));
    }
    let output = run(&["baseline", "list", "--store", &files.text("none.db")]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("no store at "), "{}", stderr(&output));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let files = Files::new();
    let capture = files.pcap("password.pcap", &traffic::password());
    let mut child =
        smtpwatch().args(["replay", &capture]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn logs_have_the_configured_format() {
    let files = Files::new();
    let mut capture = traffic::pcap(&traffic::password(), 1, false, false);
    capture[20..24].copy_from_slice(&147_u32.to_le_bytes());
    let capture = files.write("user0.pcap", capture);
    let first = |format: &str, journald: bool| {
        let mut command = smtpwatch();
        if journald {
            command.env("JOURNAL_STREAM", "8:1");
        }
        let output = command.args(["replay", "--log.format", format, &capture]).output().unwrap();
        stderr(&output).lines().next().unwrap().to_owned()
    };
    let json: serde_json::Value = serde_json::from_str(&first("json", false)).unwrap();
    assert_eq!((&json["level"], &json["linktype"]), (&"WARN".into(), &147.into()));
    assert!(first("logfmt", true).starts_with("ts="), "{}", first("logfmt", true));
    assert!(first("auto", false).starts_with("ts="));
    assert!(first("auto", true).starts_with("level=warn "), "{}", first("auto", true));
    assert!(first("auto", true).contains("linktype=147"));
    assert!(Path::new(&capture).exists());
}

/// `run`: how it ends, also when it fails before the start.
mod run {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        os::unix::{fs::chown, process::CommandExt},
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    use super::{Files, code, smtpwatch, stderr};

    const NOBODY: u32 = 65_534;

    fn is_root() -> bool {
        nix::unistd::geteuid().is_root()
    }

    fn config(files: &Files) -> String {
        files.write("run.toml", format!("[store]\npath = \"{}\"\n", files.text("smtpwatch.db")))
    }

    #[test]
    fn a_port_in_use_is_reported_before_anything_is_attached() {
        let files = Files::new();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let arguments = ["run", "--config", &config(&files), "--interface", "lo", "--web.listen-address", &address];
        let output = smtpwatch().args(arguments).output().unwrap();
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains(&format!("cannot listen on {address}")), "{}", stderr(&output));
        assert!(!stderr(&output).contains("attached"));
    }

    #[test]
    fn a_foreign_store_ends_it() {
        let files = Files::new();
        let config = config(&files);
        files.write("smtpwatch.db", "not a database, but a text that is long enough to be read as one. ".repeat(9));
        let output = smtpwatch().args(["run", "--config", &config, "--interface", "lo"]).output().unwrap();
        assert_eq!(code(&output), 1);
        assert!(stderr(&output).contains("is not a smtpwatch store"), "{}", stderr(&output));
    }

    #[test]
    fn without_permission_it_is_77_with_the_remedy() {
        let files = Files::new();
        let config = config(&files);
        let mut command = smtpwatch();
        command.args(["run", "--config", &config, "--interface", "lo", "--web.listen-address", "127.0.0.1:0"]);
        if is_root() {
            chown(files.0.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => return println!("SKIPPED: an unprivileged user cannot start the program here: {error}"),
        };
        assert_eq!(code(&output), 77, "{}", stderr(&output));
        assert!(stderr(&output).contains("CAP_"), "{}", stderr(&output));
    }

    /// In a network namespace of its own, so that attaching affects no other interface.
    #[test]
    fn sigterm_ends_it_in_order() {
        if !is_root() {
            return println!("SKIPPED: needs root for a network namespace");
        }
        let files = Files::new();
        let mut child = Command::new("unshare")
            .args(["--net", env!("CARGO_BIN_EXE_smtpwatch"), "run", "--config", &config(&files), "--interface", "lo"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.by_ref() {
            log = log + &line + "\n";
            if line.contains("serving /metrics") {
                break;
            }
        }
        assert_eq!(log.matches("message=attached interface=lo").count(), 2, "{log}");
        let start = Instant::now();
        // `unshare` executes the program: the process id stays.
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let rest: Vec<_> = lines.collect();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{log}{rest:?}");
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(rest.iter().any(|line| line.contains("detached")), "{rest:?}");
    }

    #[test]
    fn a_missing_interface_is_reported() {
        if !is_root() {
            return println!("SKIPPED: needs root to get that far");
        }
        let files = Files::new();
        let arguments =
            ["run", "--config", &config(&files), "--interface", "nosuch0", "--web.listen-address", "127.0.0.1:0"];
        let output = smtpwatch().args(arguments).output().unwrap();
        assert_eq!(code(&output), 1, "{}", stderr(&output));
        assert!(stderr(&output).contains("nosuch0"), "{}", stderr(&output));
    }
}

#[test]
fn every_value_in_force_has_its_origin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.toml");
    let text = "ports = [25]\ninterfaces = [\"eth0\"]\n[[rule]]\nstarttls = \"ignore\"\n[[rule]]\npeer = [\n  \"mx.example\", # one\n]\n\
                [store]\npath = \"/tmp/x.db\"\n[journal]\nformat = \"ecs\"\n";
    std::fs::write(&path, text).unwrap();
    let mut command = smtpwatch();
    command
        .args(["check-config", "--effective", "--port", "2525", "--config"])
        .arg(&path)
        .env("SMTPWATCH_INTERFACE", "ens3,lo");
    let out = command.output().unwrap();
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{shown}");
    let lines: Vec<_> = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "ports = [2525] # --port",
        "interfaces = [\"ens3\", \"lo\"] # SMTPWATCH_INTERFACE",
        "ingress = \"auto\" # default",
        "path = \"/tmp/x.db\" # line 10",
        "format = \"ecs\" # line 12",
        "starttls = \"ignore\" # line 4",
        "peer = [ \"mx.example\", ] # line 6",
    ] {
        assert!(lines.iter().any(|shown| shown == line), "{line}: {shown}");
    }
    // The shown configuration has the same meaning when it is read again.
    let again = directory.path().join("again.toml");
    std::fs::write(&again, &shown).unwrap();
    let hash = |arguments: &[&str], path| {
        let out = smtpwatch().arg("check-config").args(arguments).arg("--config").arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap().lines().find(|line| line.starts_with("sha256 ")).unwrap().to_owned()
    };
    assert_eq!(hash(&["--port", "2525", "--interface", "ens3,lo"], &path), hash(&[], &again));
    assert_eq!(shown.matches("[[rule]]").count(), 2);
}

#[test]
fn generated_files_match_the_committed_ones() {
    for (arguments, page) in [
        (&["generate", "metrics"][..], include_str!("../../../docs/metrics.md")),
        (&["generate", "config", "--format", "markdown"], include_str!("../../../docs/configuration.md")),
        (&["generate", "config"], include_str!("../../../deploy/config/smtpwatch.toml")),
    ] {
        let out = smtpwatch().args(arguments).output().unwrap();
        assert!(String::from_utf8(out.stdout).unwrap() == page, "print it again: smtpwatch {}", arguments.join(" "));
    }
}

#[test]
fn manuals_and_completions_know_every_verb() {
    let directory = tempfile::tempdir().unwrap();
    let status = smtpwatch().args(["generate", "man", "--directory"]).arg(directory.path()).status().unwrap();
    assert!(status.success());
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    for verb in
        ["run", "replay", "probe", "incidents", "baseline", "peers", "policy", "tlsrpt", "check\\-config", "generate"]
    {
        assert!(page("smtpwatch.8").contains(&format!("smtpwatch\\-{verb}(8)")), "{verb}");
    }
    assert!(page("smtpwatch-run.8").contains("SMTPWATCH_CONFIG") && page("smtpwatch-incidents-show.8").contains("ID"));
    for shell in ["bash", "zsh", "fish"] {
        let out = smtpwatch().args(["generate", "completions", shell]).output().unwrap();
        assert!(String::from_utf8(out.stdout).unwrap().contains("check-config"), "{shell}");
    }
}

/// An exported history is imported into another store; a second import changes nothing, and a file that is not an
/// export is rejected.
fn history_moves_to_another_store(files: &Files, store: &str) {
    let exported = stdout(&run(&["baseline", "export", "--store", store]));
    assert!(
        exported.lines().count() > 1 && exported.lines().all(|line| line.contains("\"schema_version\":1")),
        "{exported}"
    );
    let (file, other) = (files.write("history.json", &exported), files.text("other.db"));
    let import = |file: &str| run(&["baseline", "import", file, "--store", &other]);
    let rows = exported.lines().count();
    assert_eq!(stdout(&import(&file)), format!("{rows} rows read, {rows} taken over\n"));
    assert_eq!(stdout(&import(&file)), format!("{rows} rows read, 0 taken over\n"));
    assert_eq!(stdout(&run(&["baseline", "export", "--store", &other])), exported);
    for bad in [
        format!("{exported}no row\n"),
        exported.replace("\"schema_version\":1", "\"schema_version\":2"),
        "{}\n".to_owned(),
    ] {
        let output = import(&files.write("bad.json", &bad));
        assert!(code(&output) == 1 && stderr(&output).contains("bad.json:"), "{}", stderr(&output));
    }
    assert_eq!(stdout(&run(&["baseline", "export", "--store", &other])), exported);
}

/// As [`run`], for a program that must end by itself: it is killed after a time limit in which nothing reads its
/// output.
fn run_to_its_end(arguments: &[&str]) -> Output {
    let mut child = smtpwatch().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{arguments:?} does not end");
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_configuration_is_a_regular_file_of_bounded_length() {
    let files = Files::new();
    nix::unistd::mkfifo(&files.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::File::create(files.path("long")).unwrap().set_len((1 << 20) + 1).unwrap();
    let (fifo, long, directory) = (files.text("fifo"), files.text("long"), files.text(""));
    for (path, what) in [
        (fifo.as_str(), "it is a named pipe (FIFO): name a regular file"),
        ("/dev/zero", "it is a device: name a regular file"),
        (&directory, "it is a directory: name a regular file"),
        (&long, "it is longer than 1048576 bytes"),
    ] {
        for arguments in [
            ["check-config", "--config", path],
            ["check-config", "--web.config.file", path],
            ["run", "--config", path],
            ["run", "--web.config.file", path],
        ] {
            let output = run_to_its_end(&arguments);
            assert_eq!(code(&output), 78, "{arguments:?}: {output:?}");
            assert!(stderr(&output).contains(&format!("{path}: {what}")), "{arguments:?}: {}", stderr(&output));
        }
    }
    for key in ["ca_file", "trust_anchor"] {
        let config = files.write("policy.toml", format!("[policy]\n{key} = {fifo:?}\n"));
        let output = run_to_its_end(&["policy", "check", "--config", &config, "example.net"]);
        assert!(code(&output) != 0 && stderr(&output).contains("named pipe"), "{key}: {output:?}");
    }
    let output = run_to_its_end(&["tlsrpt", "import", &fifo]);
    assert!(code(&output) != 0 && stderr(&output).contains("named pipe"), "{output:?}");
}

#[test]
fn paths_that_cannot_be_written_are_refused_before_anything_starts() {
    let files = Files::new();
    nix::unistd::mkfifo(&files.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::create_dir(files.path("logs")).unwrap();
    files.write("elsewhere", "");
    std::os::unix::fs::symlink("../elsewhere", files.path("logs/out.json")).unwrap();
    files.write("logs/real.json", "");
    std::os::unix::fs::symlink("real.json", files.path("logs/in.json")).unwrap();
    let link = "is a symbolic link: name the file that it leads to";
    for (table, path, what) in [
        ("store", "/".to_owned(), "is a directory: name a file"),
        ("store", files.text("logs"), "is a directory: name a file"),
        ("store", files.text("absent/"), "is a directory: name a file"),
        ("store", files.text(".."), "is a directory: name a file"),
        ("store", files.text("fifo"), "is a named pipe (FIFO): name a file"),
        ("journal", "/".to_owned(), "is a directory: name a file"),
        ("journal", files.text("logs"), "is a directory: name a file"),
        ("journal", files.text("fifo"), "is a named pipe (FIFO): name a regular file"),
        ("journal", files.text("logs/out.json"), link),
        ("journal", files.text("logs/in.json"), link),
    ] {
        let config = files.write("smtpwatch.toml", format!("[{table}]\npath = {path:?}\n"));
        for verb in ["check-config", "run"] {
            let output = run_to_its_end(&[verb, "--config", &config]);
            assert_eq!(code(&output), 78, "{verb} {table} {path}: {output:?}");
            let expected = format!("[{table}] path: {path} {what}");
            assert!(stderr(&output).contains(&expected), "{verb}: {expected}: {}", stderr(&output));
        }
    }
    let config = files.write("smtpwatch.toml", format!("[store]\npath = {:?}\n", files.text("absent.db")));
    assert_eq!(code(&run(&["check-config", "--config", &config])), 0);
}
