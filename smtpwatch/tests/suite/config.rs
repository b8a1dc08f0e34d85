//! The configuration: what is accepted, and the message for each error.

use std::path::Path;

use smtpwatch_config::{Config, Ingress, Limits};
use smtpwatch_core::{
    Role, limits,
    policy::rule::{AuthRule, PeerPattern, StarttlsRule},
};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("smtpwatch.toml")).map_err(|error| error.to_string())
}

/// The complete file of the documentation.
const WHOLE: &str = r#"
ports = [25, 587]
interfaces = ["eth0", "ens*"]
ingress = "tcx"
local = ["192.0.2.0/24", "2001:db8::1"]

[store]
path = "/tmp/x.db"

[baseline]
min_sessions = 7
min_offer_ratio = 0.9

[limits]
flows = 1000000
peers = 1_000_000

[[rule]]
peer = ["198.51.100.0/24", "mx*.example.net"]
port = [25]
role = "client"
starttls = "required"
auth_plaintext = "forbid"
min_tls = "1.2"

[[rule]]
role = "server"
auth_plaintext = "allow"

[policy]
resolver = "127.0.0.1:5353"
trust_anchor = ""
ca_file = ""
allow_private = false
https_port = 443
mta_sts = true
dane = true
starttls_everywhere = ""
domains = ["Example.NET", "bücher.example"]
"#;

#[test]
fn every_key_is_understood() {
    let config = parse(WHOLE).unwrap();
    assert_eq!((config.ports.as_slice(), config.ingress), ([25, 587].as_slice(), Ingress::Tcx));
    assert_eq!(config.interfaces, ["eth0", "ens*"]);
    assert_eq!(config.store, Path::new("/tmp/x.db"));
    assert_eq!((config.baseline.min_sessions, config.baseline.min_offer_ratio), (7, 0.9));
    assert_eq!(config.limits, Limits { flows: 1_000_000, peers: 1_000_000 });
    assert!(config.is_local("192.0.2.9".parse().unwrap()) && config.is_local("2001:db8::1".parse().unwrap()));
    assert!(!config.is_local("198.51.100.1".parse().unwrap()));
    let [first, second] = config.rules.as_slice() else { panic!("two rules") };
    assert_eq!(first.peer[1], PeerPattern::Name("mx*.example.net".to_owned()));
    assert_eq!((first.port.as_slice(), first.role), ([25].as_slice(), Some(Role::Client)));
    assert_eq!((first.starttls, first.auth_plaintext), (Some(StarttlsRule::Required), Some(AuthRule::Forbid)));
    assert_eq!(first.min_tls, Some(0x0303));
    assert_eq!((second.role, second.auth_plaintext), (Some(Role::Server), Some(AuthRule::Allow)));
}

#[test]
fn domains_are_stored_as_requested() {
    let config = parse(WHOLE).unwrap();
    assert_eq!(config.policy.domains, ["example.net", "xn--bcher-kva.example"]);
}

#[test]
fn nothing_is_needed() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.ports.as_slice(), config.ingress), ([25, 587].as_slice(), Ingress::Auto));
    assert!(config.interfaces.is_empty() && config.rules.is_empty());
    assert_eq!(config.limits, Limits { flows: limits::FLOWS, peers: limits::HISTORY_PEERS });
    assert_eq!((config.baseline.min_sessions, config.baseline.min_offer_ratio), (5, 0.95));
}

#[test]
fn each_mistake_names_its_line_and_its_remedy() {
    for (text, expected) in [
        // Unknown keys, at each level.
        ("port = [25]", r#"smtpwatch.toml:1: unknown key "port" at the top level: did you mean "ports"?"#),
        (
            "ports = [25]\n\n[[rule]]\npeer = [\"mx.example.net\"]\n# why\n\nstarttsl = \"required\"",
            r#"smtpwatch.toml:7: unknown key "starttsl" in [[rule]]: did you mean "starttls"?"#,
        ),
        (
            "[baseline]\nmin_session = 3",
            r#"smtpwatch.toml:2: unknown key "min_session" in [baseline]: did you mean "min_sessions"?"#,
        ),
        ("[polcy]\ndane = true", r#"smtpwatch.toml:1: unknown table "polcy": did you mean "policy"?"#),
        ("[limits]\nflow = 9000", r#"smtpwatch.toml:2: unknown key "flow" in [limits]: did you mean "flows"?"#),
        ("[limit]\nflows = 9000", r#"smtpwatch.toml:1: unknown table "limit": did you mean "limits"?"#),
        (
            "[store]\nzzz = 1",
            r#"smtpwatch.toml:2: unknown key "zzz" in [store]: known keys are path, max_age_days, max_findings, max_megabytes"#,
        ),
        ("[store]\nmax_age_days = 0", "smtpwatch.toml:2: max_age_days: 0: expected a number of days from 1 to 3650"),
        (
            "[incidents]\nwindow_minutes = 20000",
            "smtpwatch.toml:2: window_minutes: 20000: expected a number of minutes from 1 to 10080 (a week)",
        ),
        // Bad values.
        ("ports = []", "smtpwatch.toml:1: ports: no port to watch: name at least one, such as [25, 587]"),
        ("ports = [25,\n  0]", "smtpwatch.toml:2: ports: 0: expected a port number from 1 to 65535"),
        ("ports = [25, 70000]", "smtpwatch.toml:1: ports: 70000: expected a port number from 1 to 65535"),
        ("ports = [25.5]", "smtpwatch.toml:1: ports: 25.5: expected a port number from 1 to 65535"),
        ("ports = [\"smtp\"]", "smtpwatch.toml:1: ports: \"smtp\": expected a port number from 1 to 65535"),
        (
            "ingress = \"tc\"",
            r#"smtpwatch.toml:1: ingress: "tc": expected one of "auto", "xdp", "xdp-generic", "tcx", "clsact" (did you mean "tcx"?)"#,
        ),
        (
            "interfaces = [\"a/b\"]",
            "smtpwatch.toml:1: interfaces: \"a/b\": expected an interface name or glob, such as \"eth0\" or \"ens*\"",
        ),
        ("local = [\"192.0.2.0/33\"]", "smtpwatch.toml:1: local: \"192.0.2.0/33\": the prefix length is at most 32"),
        (
            "local = [\"example.net\"]",
            "smtpwatch.toml:1: local: \"example.net\": expected an address or network, such as \"192.0.2.0/24\"",
        ),
        ("[store]\npath = \"\"", "smtpwatch.toml:2: path: empty: expected a path in quotes"),
        (
            "[baseline]\nmin_sessions = 0",
            "smtpwatch.toml:2: min_sessions: 0: expected a number of sessions from 1 to 1000000",
        ),
        ("[limits]\nflows = 0", "smtpwatch.toml:2: flows: 0: expected a number of flows from 4096 to 4000000"),
        (
            "[limits]\nflows = 65536.5",
            "smtpwatch.toml:2: flows: 65536.5: expected a number of flows from 4096 to 4000000",
        ),
        (
            "[limits]\npeers = \"1M\"",
            "smtpwatch.toml:2: peers: \"1M\": expected a number of peers from 1000 to 10000000",
        ),
        (
            "[limits]\npeers = 10000001",
            "smtpwatch.toml:2: peers: 10000001: expected a number of peers from 1000 to 10000000",
        ),
        (
            "[baseline]\nmin_offer_ratio = 95",
            "smtpwatch.toml:2: min_offer_ratio: 95: expected a ratio above 0, at most 1 (0.95: offered in 95 of 100 sessions)",
        ),
        (
            "[[rule]]\npeer = [\n  \"good.example.net\",\n  \"bad name\",\n]",
            r#"smtpwatch.toml:4: peer: "bad name" is neither an address, nor a network (192.0.2.0/24), nor a server name (mx*.example.net)"#,
        ),
        (
            "[[rule]]\nstarttls = \"require\"",
            r#"smtpwatch.toml:2: starttls: "require": expected one of "required", "expected", "ignore" (did you mean "required"?)"#,
        ),
        (
            "[[rule]]\nmin_tls = 1.2",
            "smtpwatch.toml:2: min_tls: 1.2: expected \"1.0\", \"1.1\", \"1.2\" or \"1.3\", in quotes",
        ),
        (
            "[[rule]]\nrole = \"sender\"",
            r#"smtpwatch.toml:2: role: "sender": expected one of "client", "server" (did you mean "server"?)"#,
        ),
        (
            "[policy]\ndomains = [\"example.net\", \"localhost\"]",
            "smtpwatch.toml:2: domains: \"localhost\": expected a mail domain, such as \"example.net\"",
        ),
        ("[policy]\ndane = \"yes\"", "smtpwatch.toml:2: dane: \"yes\": expected true or false, without quotes"),
        (
            "[policy]\nresolver = \"dns.example\"",
            "smtpwatch.toml:2: resolver: \"dns.example\": expected \"system\" or the address of a name server, such as \"127.0.0.1:5353\"",
        ),
    ] {
        assert_eq!(parse(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn what_is_no_toml_names_its_line() {
    for text in ["ports = [25", "a b", "ports = [25]\nports = [26]", "[[rule]\n", "ports = 25", "rule = 1", "[ports]"] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with("smtpwatch.toml:"), "{text}: {error}");
        assert!(!error.contains('\n'), "{text}: {error}");
    }
}

#[test]
fn a_running_daemon_takes_over_what_it_can() {
    let running = parse(WHOLE).unwrap();
    let mut now = running.clone();
    assert_eq!(now.take_over(running.clone()), Vec::<&str>::new());
    let new = "interfaces = [\"eth1\"]\nlocal = [\"203.0.113.0/24\"]\n[baseline]\nmin_sessions = 9\n[[rule]]\nstarttls = \"ignore\"\n";
    let new = parse(new).unwrap();
    assert_eq!(now.take_over(new.clone()), ["ingress", "[store]", "[limits]", "[policy]"]);
    let taken =
        |config: &Config| (config.interfaces.clone(), config.local.clone(), config.baseline, config.rules.clone());
    assert_eq!(taken(&now), taken(&new));
    let kept = |config: &Config| (config.ingress, config.store.clone(), config.limits, config.policy.clone());
    assert_eq!(kept(&now), kept(&running));
    // Without the privilege to attach, the interfaces stay as they are.
    let mut fixed = parse("hot_plug = false\ninterfaces = [\"eth0\"]").unwrap();
    assert_eq!(fixed.take_over(parse("interfaces = [\"eth1\"]").unwrap()), ["interfaces", "hot_plug"]);
    assert_eq!(fixed.interfaces, ["eth0"]);
}
