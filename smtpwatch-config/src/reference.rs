//! Every key of the configuration file, with its default and its purpose ([`KEYS`]). The shipped file, the manual page,
//! and the output of `check-config --effective` are generated from this table.

use std::fmt::Write as _;

/// One key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Table of the key; empty for a key at the top level.
    pub table: &'static str,
    /// Name of the key within its table.
    pub name: &'static str,
    /// Default in TOML syntax. `None`: there is no default, and `example` shows the syntax.
    pub default: Option<&'static str>,
    /// Example in TOML syntax; empty if the default shows the syntax.
    pub example: &'static str,
    /// Purpose of the key, as a sentence for the shipped file and the manual.
    pub about: &'static str,
    /// Whether a reload applies it (SIGHUP, `POST /-/reload`); otherwise it needs a restart.
    pub reload: bool,
}

const fn key(table: &'static str, name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { table, name, default: Some(default), example: "", about, reload: false }
}

impl Key {
    const fn such_as(self, example: &'static str) -> Self {
        Self { example, ..self }
    }

    const fn reloaded(self) -> Self {
        Self { reload: true, ..self }
    }

    const fn without_default(self, example: &'static str) -> Self {
        Self { default: None, example, ..self }
    }
}

/// The table of local policy: there may be many.
pub const RULE: &str = "rule";

/// Every key, in the order of the file.
pub const KEYS: &[Key] = &[
    key("", "ports", "[25, 587]", "Watched server ports."),
    key("", "cluster", "\"\"", "Name of the group of hosts that this host belongs to, a label of pushed alerts; empty: none.")
        .such_as("\"mail-eu\""),
    key(
        "",
        "interfaces",
        "[]",
        "Interfaces, by name or glob; empty: every interface whose routes lead out of this host, or that carries mail.",
    )
    .such_as("[\"eth0\", \"ens*\"]")
    .reloaded(),
    key(
        "",
        "ingress",
        "\"auto\"",
        "Hook for arriving packets: auto (TCX, else clsact; no XDP, which copies every packet on some drivers), xdp, xdp-generic, tcx, clsact.",
    ),
    key(
        "",
        "hot_plug",
        "true",
        "Whether interfaces that appear later are watched too. Without it the daemon drops its last capabilities.",
    ),
    key(
        "",
        "local",
        "[]",
        "Own networks, if the interface does not show which end this host is (containers, replay).",
    )
    .such_as("[\"192.0.2.0/24\"]")
    .reloaded(),
    key(
        "",
        "trusted_proxies",
        "[]",
        "Load balancers and filters whose PROXY header is trusted; for all others the client is the connecting address.",
    )
    .such_as("[\"192.0.2.10\"]")
    .reloaded(),
    key(
        "",
        "trusted_clients",
        "[]",
        "Networks of this site's own clients, besides `local`: a password that they send in cleartext is a real one, also if it is refused.",
    )
    .such_as("[\"10.0.0.0/8\"]")
    .reloaded(),
    key("store", "path", "\"/var/lib/smtpwatch/smtpwatch.db\"", "History, findings and their evidence (SQLite)."),
    key("store", "max_age_days", "90", "Findings are kept for at most this many days,"),
    key("store", "max_findings", "100000", "at most this many findings,"),
    key(
        "store",
        "max_megabytes",
        "1024",
        "and at most this many MiB of findings and evidence: the bound that is reached first applies.",
    ),
    key(
        "incidents",
        "window_minutes",
        "60",
        "Findings of one kind about one peer within this many minutes are one incident.",
    ),
    key("baseline", "min_sessions", "5", "History raises findings after this many sessions with a peer,").reloaded(),
    key("baseline", "min_offer_ratio", "0.95", "if at least this part of them offered STARTTLS.").reloaded(),
    key(
        "limits",
        "flows",
        "65536",
        "Connections followed at once: about 4.5 KiB each while open, and 0.7 KiB of kernel memory from the start.",
    ),
    key(
        "limits",
        "peers",
        "200000",
        "Peers in the history: about 0.9 KiB each in memory, 0.7 KiB in the store.",
    ),
    key(RULE, "peer", "[]", "Servers, by name, address or network; empty: all. The first rule that matches wins.")
        .such_as("[\"mx*.example.net\", \"198.51.100.0/24\"]")
        .reloaded(),
    key(RULE, "port", "[]", "Server ports; empty: all.").such_as("[25]").reloaded(),
    key(RULE, "role", "", "Which end this host is: client (it sends) or server (it receives); without it: both.")
        .without_default("\"client\"")
        .reloaded(),
    key(RULE, "starttls", "", "required (cleartext is a violation), expected (a missing offer is suspicious) or ignore.")
        .without_default("\"required\"")
        .reloaded(),
    key(RULE, "auth_plaintext", "", "forbid or allow credentials in cleartext.").without_default("\"forbid\"").reloaded(),
    key(RULE, "min_tls", "", "The oldest acceptable TLS version: 1.0, 1.1, 1.2 or 1.3.")
        .without_default("\"1.2\"")
        .reloaded(),
    key(
        RULE,
        "until",
        "",
        "End of the rule: a day of UTC, to its end, or a time. A session that begins later is judged without the rule.",
    )
    .without_default("\"2026-12-31\"")
    .reloaded(),
    key(RULE, "reason", "", "Why the rule exists: shown wherever the rule is announced.")
        .without_default("\"TICKET-4711: the peer renews its certificate\"")
        .reloaded(),
    key("policy", "resolver", "\"system\"", "Name server for published policies.").such_as("\"127.0.0.1:5353\""),
    key(
        "policy",
        "trust_anchor",
        "\"\"",
        "DNSSEC trust anchors in zone-file format, or a file with them; empty: the root's.",
    ),
    key("policy", "ca_file", "\"\"", "Extra certificate authorities for hosts of MTA-STS policies (PEM)."),
    key(
        "policy",
        "allow_private",
        "false",
        "Whether policies may be fetched from private, loopback and own addresses.",
    ),
    key("policy", "https_port", "443", "Port of policy hosts; another one is for tests."),
    key("policy", "mta_sts", "true", "Look up MTA-STS policies (RFC 8461)."),
    key("policy", "dane", "true", "Look up TLSA records (RFC 7672)."),
    key("policy", "starttls_everywhere", "\"\"", "Path or URL of a STARTTLS-Everywhere list; empty: none."),
    key("policy", "domains", "[]", "Recipient domains that are looked up at the start.").such_as("[\"example.net\"]"),
    key("tlsrpt", "directory", "\"\"", "Directory for written TLS reports (RFC 8460); empty: none are written.")
        .such_as("\"/var/lib/smtpwatch/reports\""),
    key("tlsrpt", "organization", "", "The reporting organization.").without_default("\"Example Corp\""),
    key("tlsrpt", "contact", "", "Mail address for questions about a report.").without_default("\"tlsrpt@example.org\""),
    key("tlsrpt", "send", "false", "Whether reports are sent to the domains that request them; needs organization and contact."),
    key("tlsrpt", "smtp", "\"127.0.0.1:25\"", "The mail server for reports that are sent by mail."),
    key("tlsrpt", "from", "", "Sender address of these messages; without it: the contact.").without_default("\"tlsrpt@example.org\""),
    key("tlsrpt", "delay_seconds", "14400", "Each report is sent at a random time up to this long after midnight."),
    key(
        "journal",
        "path",
        "\"\"",
        "File for findings, one per line; empty: standard output. SIGUSR1 reopens it. A symbolic link is refused.",
    )
    .such_as("\"/var/log/smtpwatch/findings.json\""),
    key(
        "journal",
        "format",
        "\"json\"",
        "json (smtpwatch generate schema), ecs (Elastic Common Schema) or eve (Suricata).",
    ),
    key(
        "alertmanager",
        "urls",
        "[]",
        "Alertmanagers that incidents are sent to; list all members of a cluster; empty: none.",
    )
    .such_as("[\"http://127.0.0.1:9093\"]"),
    key("alertmanager", "resend_seconds", "60", "An ongoing incident is sent again after this many seconds."),
    key("alertmanager", "hold_minutes", "15", "An incident ends when nothing of it was seen for this many minutes."),
];

/// The tables in the order of the file, each with its keys.
pub fn tables() -> impl Iterator<Item = (&'static str, &'static [Key])> {
    KEYS.chunk_by(|one, other| one.table == other.table).map(|keys| (keys.first().map_or("", |key| key.table), keys))
}

/// The heading of a table.
fn heading(table: &str) -> String {
    match table {
        "" => String::new(),
        RULE => format!("[[{RULE}]]"),
        table => format!("[{table}]"),
    }
}

/// The shipped configuration file: every key, commented out.
#[must_use]
pub fn file() -> String {
    let mut text = "# Configuration of smtpwatch. None is needed: commented lines show the default or an example.\n\
                    # Check: smtpwatch check-config. Reload: systemctl reload smtpwatch (*: a reload is enough).\n"
        .to_owned();
    for (table, keys) in tables() {
        if table.is_empty() {
            text.push('\n');
        } else {
            let _ = writeln!(text, "\n#{}", heading(table));
        }
        for key in keys {
            let value = key.default.filter(|_| key.example.is_empty()).unwrap_or(key.example);
            let default = match key.default {
                Some(default) if !key.example.is_empty() => format!(" Default: {default}."),
                _ => String::new(),
            };
            let star = if key.reload { "* " } else { "" };
            let _ = writeln!(text, "# {star}{}{default}\n#{} = {value}", key.about, key.name);
        }
    }
    text
}

/// The page `docs/configuration.md`.
#[must_use]
pub fn page() -> String {
    let mut text = "# Configuration\n\n\
        Generated by `smtpwatch generate config --format markdown`; do not edit. The file is `/etc/smtpwatch/smtpwatch.toml` \
        (`--config`, `SMTPWATCH_CONFIG`); none is needed.\nOrder of precedence: flag, environment variable (`SMTPWATCH_…`), file, \
        default. An unknown key is an error that names the line and the most similar key.\n\n\
        ```console\n$ smtpwatch check-config               # report errors before a restart\n\
        $ smtpwatch check-config --effective   # every value in force and its source\n\
        $ systemctl reload smtpwatch           # or: kill -HUP, or: curl -X POST localhost:19587/-/reload\n```\n\n\
        A reload parses the file first. If it has an error, the previous configuration stays in force, the log has the reason, and \
        `smtpwatch_config_last_reload_successful` is 0.\nThe log and the response to the reload name settings that need \
        a restart.\n\n\
        ## Drop-in files\n\n\
        The files `*.toml` in the directory `smtpwatch.d` beside the configuration file (for `--config NAME.toml`: `NAME.d`) are read \
        after it, in the order of their names. Names that begin with a dot are skipped; symbolic links are followed. A drop-in file has \
        only `[[rule]]` tables. Its rules come before those of the configuration file, so they win. A reload reads the files again, and \
        `config_sha256` covers them.\n\n\
        `smtpwatch silence` writes such files: an exception for one peer, with an end and a reason.\n\n\
        ```console\n$ smtpwatch silence mx1.example.net --for 7d --reason TICKET-4711\n\
        $ smtpwatch silence --list             # every rule that has an end\n\
        $ smtpwatch silence --end mx1.example.net\n```\n\n\
        A rule with `until` is announced a week before its end: by a line in the log once a day, by `smtpwatch check-config`, by \
        `smtpwatch_rules{state=\"expiring\"}` and by the alert SmtpwatchExceptionEnds. Sessions in which it suppressed a finding are \
        counted (`smtpwatch_rule_exceptions_total`).\n"
        .to_owned();
    for (table, keys) in tables() {
        let title = if table.is_empty() { "Top level".to_owned() } else { format!("`{}`", heading(table)) };
        let _ = writeln!(text, "\n## {title}\n\n| key | default | in force after | meaning |\n|---|---|---|---|");
        for key in keys {
            let default =
                key.default.map_or_else(|| format!("none (`{}`)", key.example), |default| format!("`{default}`"));
            let after = if key.reload { "reload" } else { "restart" };
            let example = match key.default {
                Some(_) if !key.example.is_empty() => format!(" Example: `{}`.", key.example),
                _ => String::new(),
            };
            let _ = writeln!(text, "| `{}` | {default} | {after} | {}{example} |", key.name, key.about);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;
    use crate::{Config, File};

    /// The keys of a table that the TOML reader lists in its error.
    fn known(table: &str) -> BTreeSet<String> {
        let text = format!("{}\nno_such_key = 1\n", heading(table));
        let error = toml::from_str::<File>(&text).err().expect("an unknown key").to_string();
        let expected = error.split("expected ").last().expect("the keys").split('`').skip(1).step_by(2);
        expected.map(str::to_owned).collect()
    }

    #[test]
    fn every_key_has_its_row() {
        for (table, keys) in tables() {
            let rows: BTreeSet<String> = keys.iter().map(|key| key.name.to_owned()).collect();
            assert_eq!(rows.len(), keys.len(), "twice in [{table}]");
            let mut wanted = known(table);
            if table.is_empty() {
                let others: BTreeSet<_> = tables().map(|(table, _)| table.to_owned()).collect();
                wanted.retain(|name| !others.contains(name));
                let missing: Vec<_> =
                    known("").into_iter().filter(|name| !others.contains(name) && !rows.contains(name)).collect();
                assert!(missing.is_empty(), "{missing:?}");
            }
            assert_eq!(rows, wanted, "[{table}]");
        }
    }

    #[test]
    fn defaults_are_those_of_the_program() {
        let mut text = String::new();
        for (table, keys) in tables().filter(|(table, _)| *table != RULE) {
            let _ = writeln!(text, "{}", heading(table));
            for key in keys {
                if let Some(default) = key.default {
                    let _ = writeln!(text, "{} = {default}", key.name);
                }
            }
        }
        assert_eq!(Config::parse(&text, Path::new("defaults")).expect("good"), Config::default());
        assert_eq!(Config::parse(&file(), Path::new("shipped")).expect("good"), Config::default());
    }

    #[test]
    fn the_shipped_file_is_good_with_every_line_in_force() {
        let lines = file();
        let open = lines.lines().filter_map(|line| line.strip_prefix('#').filter(|line| !line.starts_with(' ')));
        let text: String = open.map(|line| format!("{line}\n")).collect();
        let config = Config::parse(&text, Path::new("shipped")).expect("good");
        assert_eq!(config.rules.len(), 1);
        assert_eq!(config.interfaces, ["eth0", "ens*"]);
    }

    /// A value that is not the default.
    fn other(key: &Key) -> String {
        let text = match (key.name, key.default.unwrap_or_default()) {
            ("ports", _) => "[2525]",
            ("ingress", _) => "\"tcx\"",
            ("format", _) => "\"eve\"",
            ("smtp", _) => "\"127.0.0.1:2525\"",
            ("min_offer_ratio", _) => "0.5",
            (_, "true") => "false",
            (_, "false") => "true",
            (_, number) if number.parse::<u32>().is_ok() => return (number.parse::<u32>().unwrap() - 1).to_string(),
            _ if key.example.is_empty() => "\"/srv/other\"",
            _ => key.example,
        };
        text.to_owned()
    }

    #[test]
    fn a_reload_puts_in_force_what_the_table_says() {
        for key in KEYS {
            // Keys that the table requires.
            let beside = match (key.table, key.name) {
                (RULE, name) if name != "starttls" => "starttls = \"ignore\"\n",
                ("tlsrpt", "send") => "organization = \"Example Corp\"\ncontact = \"tlsrpt@example.org\"\n",
                _ => "",
            };
            let text = format!("{}\n{beside}{} = {}\n", heading(key.table), key.name, other(key));
            let new = Config::parse(&text, Path::new("new")).expect(&text);
            assert_ne!(new, Config::default(), "{text}");
            let mut running = Config::default();
            let restart = running.take_over(new.clone());
            let named = if key.table.is_empty() { key.name.to_owned() } else { heading(key.table) };
            assert_eq!(restart.contains(&named.as_str()), !key.reload, "{text}");
            assert_eq!(running == new, key.reload, "{text}");
        }
    }
}
