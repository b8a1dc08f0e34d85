//! `smtpwatch silence`: writes, lists and removes exceptions, and refuses what the daemon would refuse.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    cli::Files,
    traffic::{self, CLIENT, START_NS},
};

/// No daemon listens on this port (tcpmux).
const NOBODY: &str = "127.0.0.1:1";
const REQUIRED: &str = "[[rule]]\nstarttls = \"required\"\n";

/// A configuration with its drop-in directory, which does not exist yet.
struct Site {
    files: Files,
    config: String,
}

impl Site {
    fn new(config: &str) -> Self {
        let files = Files::new();
        let config = files.write("smtpwatch.toml", config);
        Self { files, config }
    }

    fn run(&self, verb: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smtpwatch"));
        command.env_clear().args([verb, "--config", &self.config]).args(arguments).output().unwrap()
    }

    fn silence(&self, arguments: &[&str]) -> Output {
        self.run("silence", &[&["--web.listen-address", NOBODY], arguments].concat())
    }

    /// The list as JSON.
    fn list(&self) -> Vec<Value> {
        let out = self.silence(&["--list", "--format", "json"]);
        assert_eq!(code(&out), 0, "{out:?}");
        stdout(&out).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Names of the files in the drop-in directory.
    fn drop_ins(&self) -> Vec<String> {
        let Ok(entries) = self.files.path("smtpwatch.d").read_dir() else { return Vec::new() };
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// The configuration's hash.
    fn hash(&self) -> String {
        let out = stdout(&self.run("check-config", &[]));
        out.lines().find(|line| line.starts_with("sha256 ")).unwrap().to_owned()
    }
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

#[test]
fn an_exception_is_written_listed_and_ended() {
    let site = Site::new(REQUIRED);
    let before = site.hash();
    let out = site.silence(&["198.51.100.25", "--for", "7d", "--reason", "TICKET-4711: it renews"]);
    assert_eq!(code(&out), 0, "{out:?}");
    let path = site.files.text("smtpwatch.d/silence-198.51.100.25.toml");
    let said = stdout(&out);
    assert!(
        said.starts_with(&format!("{path}: written\n198.51.100.25: no findings about STARTTLS until 20")),
        "{said}"
    );
    // No daemon is there: the user learns how to reload.
    assert!(said.contains("127.0.0.1:1 was not reached") && said.contains("systemctl reload smtpwatch"), "{said}");
    assert_eq!(site.drop_ins(), ["silence-198.51.100.25.toml"], "unfinished files are left");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "the daemon's user must be able to read it");
    assert_ne!(site.hash(), before);

    let [row] = site.list().try_into().unwrap();
    assert_eq!(
        (&row["peer"][0], &row["starttls"], &row["auth_plaintext"]),
        (&"198.51.100.25".into(), &"ignore".into(), &Value::Null)
    );
    assert_eq!((&row["reason"], &row["state"]), (&"TICKET-4711: it renews".into(), &"expiring".into()));
    assert_eq!((&row["file"], &row["line"]), (&path.clone().into(), &2.into()));
    let text = stdout(&site.silence(&["--list", "--format", "text"]));
    assert!(text.starts_with("198.51.100.25, starttls ignore, until 20") && text.contains(": TICKET-4711"), "{text}");
    let checked = stdout(&site.run("check-config", &[]));
    assert!(checked.contains("smtpwatch.toml: good, 2 rules\n"), "{checked}");
    assert!(
        checked.contains(&format!("\nrule 1 ({path}:2) ends 20")) && checked.contains(": TICKET-4711"),
        "{checked}"
    );
    let effective = stdout(&site.run("check-config", &["--effective"]));
    let lines: Vec<_> = effective.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(lines.contains(&format!("starttls = \"ignore\" # {path} line 4")), "{effective}");
    assert!(lines.contains(&"starttls = \"required\" # line 2".to_owned()), "{effective}");

    // The same peer again: its file is replaced.
    let kinds = ["--kind", "auth-plaintext", "--kind", "starttls-stripped", "--kind", "auth-offered-plaintext"];
    let out = site.silence(&[&["198.51.100.25", "--for", "4w", "--reason", "longer"][..], &kinds].concat());
    assert!(
        stdout(&out)
            .contains(": replaced\n198.51.100.25: no findings about credentials in cleartext and about STARTTLS")
    );
    let [row] = site.list().try_into().unwrap();
    assert_eq!((&row["starttls"], &row["auth_plaintext"]), (&"ignore".into(), &"allow".into()));
    assert_eq!((&row["reason"], &row["state"]), (&"longer".into(), &"active".into()));

    let out = site.silence(&["--end", "198.51.100.25"]);
    assert_eq!(code(&out), 0, "{out:?}");
    assert!(stdout(&out).starts_with(&format!("{path}: removed\n")), "{out:?}");
    assert!(site.list().is_empty() && site.drop_ins().is_empty());
    assert_eq!(site.hash(), before);
    let out = site.silence(&["--end", "198.51.100.25"]);
    assert_eq!(code(&out), 1);
    assert!(stderr(&out).contains("no exception was written for it"), "{out:?}");
}

#[test]
fn the_list_has_every_rule_with_an_end() {
    let site = Site::new(
        "[[rule]]\npeer = [\"mx.example.net\"]\nstarttls = \"ignore\"\nuntil = \"2020-02-29\"\n[[rule]]\nstarttls = \"required\"\n",
    );
    let [row] = site.list().try_into().unwrap();
    assert_eq!((&row["state"], &row["until"]), (&"expired".into(), &"2020-03-01T00:00:00.000000Z".into()));
    let checked = stdout(&site.run("check-config", &[]));
    assert!(checked.contains("smtpwatch.toml:1) ended 2020-03-01T00:00:00.000000Z\n"), "{checked}");
    for peer in ["mx*.example.net", "2001:db8::/32", "MX.Example.net."] {
        assert_eq!(code(&site.silence(&[peer, "--for", "90d", "--reason", "x"])), 0, "{peer}");
    }
    let peers: Vec<_> = site.list().iter().map(|row| row["peer"][0].as_str().unwrap().to_owned()).collect();
    assert_eq!(peers, ["2001:db8::/32", "mx.example.net", "mx*.example.net", "mx.example.net"]);
    // However the peer is written, it is the same one.
    assert_eq!(code(&site.silence(&["--end", "mx.EXAMPLE.net"])), 0);
    assert_eq!(site.drop_ins().len(), 2);
}

/// The time of the session decides, not that of the replay.
#[test]
fn a_replay_applies_an_exception_to_the_sessions_before_its_end() {
    let site = Site::new(REQUIRED);
    let capture = site
        .files
        .write("stripped.pcap", traffic::pcap(&traffic::mail(CLIENT, START_NS, "250 8BITMIME\r\n"), 1, false, false));
    let kinds = || {
        let out = site.run("replay", &["--format", "json", &capture]);
        assert_eq!(code(&out), 0, "{out:?}");
        let findings = stdout(&out);
        findings
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].to_string())
            .collect::<Vec<_>>()
    };
    let violations = ["\"starttls-stripped\"", "\"policy-violation\""];
    assert_eq!(kinds(), violations);
    // The session begins at 2026-11-23T15:00:00Z.
    for (until, expected) in [
        ("2026-11-23T15:00:00Z", &violations[..]),
        ("2026-11-23T15:00:01Z", &[]),
        ("2026-11-22", &violations),
        ("2026-11-23", &[]),
    ] {
        std::fs::create_dir_all(site.files.path("smtpwatch.d")).unwrap();
        let rule = format!("[[rule]]\npeer = [\"198.51.100.25\"]\nstarttls = \"ignore\"\nuntil = \"{until}\"\n");
        site.files.write("smtpwatch.d/exception.toml", rule);
        assert_eq!(kinds(), expected, "{until}");
    }
}

#[test]
fn what_is_no_exception_is_refused() {
    let site = Site::new(REQUIRED);
    for arguments in [
        &[][..],
        &["192.0.2.1"],
        &["192.0.2.1", "--for", "7d"],
        &["192.0.2.1", "--reason", "x"],
        &["192.0.2.0/33", "--for", "7d", "--reason", "x"],
        &["not a name", "--for", "7d", "--reason", "x"],
        &["192.0.2.1", "--for", "7", "--reason", "x"],
        &["192.0.2.1", "--for", "1s", "--reason", "x"],
        &["192.0.2.1", "--for", "9999w", "--reason", "x"],
        &["192.0.2.1", "--for", "7d", "--reason", ""],
        &["192.0.2.1", "--for", "7d", "--reason", "two\nlines"],
        &["192.0.2.1", "--for", "7d", "--reason", "x", "--kind", "command-injection"],
        &["192.0.2.1", "--for", "7d", "--reason", "x", "--kind", "no-kind"],
        &["192.0.2.1", "--for", "7d", "--reason", "x", "--list"],
        &["--list", "--end", "192.0.2.1"],
        &["--end", "192.0.2.1", "--for", "7d"],
    ] {
        let out = site.silence(arguments);
        assert_eq!(code(&out), 2, "{arguments:?}: {out:?}");
        assert!(stdout(&out).is_empty() && !stderr(&out).is_empty());
    }
    assert!(site.drop_ins().is_empty());
}

#[test]
fn nothing_is_written_beside_a_bad_configuration() {
    let exception = ["192.0.2.1", "--for", "7d", "--reason", "x"];
    let site = Site::new("port = 25\n");
    let out = site.silence(&exception);
    assert_eq!(code(&out), 78, "{out:?}");
    assert!(stderr(&out).contains("smtpwatch.toml:1: unknown key \"port\""), "{out:?}");
    assert!(site.drop_ins().is_empty());

    // A drop-in file that is bad stops every verb that reads the configuration, with its file and line.
    let site = Site::new(REQUIRED);
    std::fs::create_dir(site.files.path("smtpwatch.d")).unwrap();
    let bad = site.files.write("smtpwatch.d/10-bad.toml", "\n[journal]\nformat = \"ecs\"\n");
    let expected = format!("smtpwatch: {bad}:2: unknown table \"journal\": a drop-in file has only [[rule]] tables\n");
    for out in
        [site.silence(&exception), site.silence(&["--list"]), site.run("check-config", &[]), site.run("run", &[])]
    {
        assert_eq!((code(&out), stderr(&out)), (78, expected.clone()));
    }
    assert_eq!(site.drop_ins(), ["10-bad.toml"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_a_lack_of_permission() {
    let site = Site::new(REQUIRED);
    // Not even root creates files there.
    symlink("/sys/kernel", site.files.path("smtpwatch.d")).unwrap();
    let out = site.silence(&["192.0.2.1", "--for", "7d", "--reason", "x"]);
    assert_eq!(code(&out), 77, "{out:?}");
    assert!(stderr(&out).contains("cannot write") && stderr(&out).contains("silence-192.0.2.1.toml"), "{out:?}");
    assert!(stdout(&out).is_empty());
}
