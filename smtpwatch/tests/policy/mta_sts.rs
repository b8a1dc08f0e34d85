//! MTA-STS policies: fetched according to RFC 8461, rejected with a reason, and retained while later look-ups fail.

use std::time::Duration;

use smtpwatch_core::{
    Timestamp,
    policy::{
        memory::Memory,
        published::{State, sts::StsMode},
    },
};
use smtpwatch_policy::lookup::{DomainLookup, Sources};

use crate::{
    dns::{Delegation, NameServer, Zone},
    https::{PolicyHost, response},
    states::{now, sources},
};

const POLICY: &str = "version: STSv1\nmode: enforce\nmx: mx.example.test\nmax_age: 604800\n";
const HOST: &str = "mta-sts.example.test";

/// A DNS server for a domain with this TXT record.
async fn name_server(txt: &str) -> NameServer {
    name_server_with(txt, "A 127.0.0.1").await
}

/// As [`name_server`], with another address of the policy host.
async fn name_server_with(txt: &str, address: &str) -> NameServer {
    let txt = if txt.is_empty() { String::new() } else { format!("_mta-sts TXT \"{txt}\"\n") };
    let records = format!("@ MX 10 mx\nmx A 127.0.0.1\nmta-sts {address}\n{txt}");
    NameServer::start(vec![Zone { origin: "example.test.", delegation: Delegation::Plain, records }], false).await
}

async fn asking(dns: &NameServer, host: &PolicyHost) -> Sources {
    asking_with(dns, host, "").await
}

async fn asking_with(dns: &NameServer, host: &PolicyHost, keys: &str) -> Sources {
    let ca = host.ca();
    let keys = format!("https_port = {}\nca_file = \"{}\"\n{keys}", host.address.port(), ca.display());
    sources(&dns.config_with(&keys)).await
}

async fn look(sources: &Sources, memory: &Memory, at: Timestamp) -> DomainLookup {
    sources.domain("example.test", memory.clone(), at).await
}

fn after(at: Timestamp, secs: u64) -> Timestamp {
    at + Duration::from_secs(secs)
}

#[tokio::test]
async fn a_policy_is_fetched_once_for_its_id() {
    let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
    host.policy(HOST, POLICY);
    let (sources, begin) = (asking(&dns, &host).await, now());
    let first = look(&sources, &Memory::default(), begin).await;
    assert_eq!(first.facts.sts.state, State::Valid, "{}", first.facts.sts.detail);
    let policy = first.facts.sts.valid().unwrap();
    assert_eq!(
        (policy.id.as_str(), policy.mode, policy.mx.as_slice()),
        ("1", StsMode::Enforce, &["mx.example.test".to_owned()][..])
    );
    assert_eq!(first.facts.sts.until, after(begin, 604_800), "max_age counts from the fetch");
    let second = look(&sources, &first.memory, after(begin, 86_400)).await;
    assert_eq!(
        (second.facts.sts.state, second.facts.sts.until, host.requests()),
        (State::Valid, first.facts.sts.until, 1)
    );
    // In the second half of its lifetime the policy is fetched again.
    let third = look(&sources, &second.memory, after(begin, 400_000)).await;
    assert_eq!((third.facts.sts.until, host.requests()), (after(begin, 1_004_800), 2));
    assert!(!first.failed && !second.failed && !third.failed);
}

#[tokio::test]
async fn what_cannot_be_fetched_says_why() {
    let long = "a".repeat(65_537);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n10001\r\n{long}\r\n0\r\n\r\n"
    );
    for (answer, state, words) in [
        (response("404 Not Found", "text/plain", POLICY), State::Error, "fetch error: HTTP status 404"),
        (
            response("301 Moved Permanently\r\nLocation: https://mta-sts.example.test/else", "text/plain", POLICY),
            State::Error,
            "redirects must not be followed",
        ),
        (response("200 OK", "text/html", POLICY), State::Invalid, "media type \"text/html\""),
        (response("200 OK", "text/plain", &long), State::Invalid, "longer than 65536 bytes"),
        (chunked, State::Invalid, "longer than 65536 bytes"),
        (response("200 OK", "text/plain", "version: STSv1\n"), State::Invalid, "policy invalid"),
        (String::new(), State::Error, "fetch error"),
    ] {
        let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
        host.answer(HOST, answer);
        let sources = asking(&dns, &host).await;
        let look = look(&sources, &Memory::default(), now()).await;
        assert_eq!(look.facts.sts.state, state, "{words}: {}", look.facts.sts.detail);
        assert!(look.facts.sts.detail.contains(words) && look.failed, "{words}: {}", look.facts.sts.detail);
        assert!(look.facts.sts.valid().is_none() && look.memory.kept.is_none());
    }
}

#[tokio::test]
async fn a_slow_host_is_not_waited_for() {
    let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
    let sources = asking(&dns, &host).await;
    let start = std::time::Instant::now();
    let look = look(&sources, &Memory::default(), now()).await;
    assert_eq!((look.facts.sts.state, host.requests()), (State::Error, 1));
    assert!(look.facts.sts.detail.contains("it took too long"), "{}", look.facts.sts.detail);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_certificate_with_another_name_or_issuer_is_distinguished() {
    let dns = name_server("v=STSv1; id=1;").await;
    let (wrong, right) = (PolicyHost::start(&["mta-sts.other.test"]).await, PolicyHost::start(&[HOST]).await);
    for host in [&wrong, &right] {
        host.policy(HOST, POLICY);
    }
    let named = asking(&dns, &wrong).await;
    let keys = format!("https_port = {}", right.address.port());
    let signed = sources(&dns.config_with(&keys)).await;
    for sources in [named, signed] {
        let look = look(&sources, &Memory::default(), now()).await;
        assert_eq!(look.facts.sts.state, State::Error);
        assert!(look.facts.sts.detail.starts_with("certificate of the policy host"), "{}", look.facts.sts.detail);
    }
    assert_eq!((wrong.requests(), right.requests()), (0, 0));
}

#[tokio::test]
async fn nothing_is_fetched_from_private_addresses() {
    let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
    host.policy(HOST, POLICY);
    let mut config =
        dns.config_with(&format!("https_port = {}\nca_file = \"{}\"", host.address.port(), host.ca().display()));
    config.policy.allow_private.0 = false;
    let sources = sources(&config).await;
    let look = look(&sources, &Memory::default(), now()).await;
    assert_eq!((look.facts.sts.state, host.requests()), (State::Error, 0));
    assert!(look.facts.sts.detail.contains("no public address (127.0.0.1)"), "{}", look.facts.sts.detail);
}

/// In a network namespace in which this host has public addresses: a third party's name leads to a service of this
/// host.
#[tokio::test]
async fn nothing_is_fetched_from_this_hosts_own_public_addresses() {
    const NAME: &str = "mta_sts::nothing_is_fetched_from_this_hosts_own_public_addresses";
    const INSIDE: &str = "SMTPWATCH_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let mut unshare = tokio::process::Command::new("unshare");
        // In a user namespace an unprivileged user may create the network namespace.
        unshare.args(["--user", "--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
        let out = unshare.args([NAME, "--exact", "--nocapture"]).env(INSIDE, "1").output().await.unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&out.stderr));
        return;
    }
    for command in [
        "link set lo up",
        "address add 8.8.4.4/32 dev lo",
        "address add 2a00:1450::7/128 dev lo nodad",
        // No interface has one of these addresses, and yet they are local.
        "route add local 9.9.9.0/24 dev lo",
    ] {
        let status = tokio::process::Command::new("ip").args(command.split(' ')).status().await.unwrap();
        assert!(status.success(), "{command}");
    }
    let host = PolicyHost::start_at(std::net::Ipv6Addr::UNSPECIFIED.into(), &[HOST]).await;
    host.policy(HOST, POLICY);
    let sources_of = async |address: &str, allow_private| {
        let dns = name_server_with("v=STSv1; id=1;", address).await;
        let keys = format!("https_port = {}\nca_file = \"{}\"", host.address.port(), host.ca().display());
        let mut config = dns.config_with(&keys);
        config.policy.allow_private.0 = allow_private;
        let sts = look(&sources(&config).await, &Memory::default(), now()).await.facts.sts;
        (sts.state, sts.detail)
    };
    let own = ["A 8.8.4.4", "A 9.9.9.9", "AAAA 2a00:1450::7", "AAAA 2002:808:404::1", "AAAA 64:ff9b::808:404"];
    for address in own {
        let (state, detail) = sources_of(address, false).await;
        assert!(state == State::Error && detail.contains("has an address of this host"), "{address}: {detail}");
    }
    assert_eq!(host.requests(), 0);
    // The address of another host is tried: no route leads to it from here.
    let (state, detail) = sources_of("A 8.8.8.8", false).await;
    assert!(state == State::Error && !detail.contains("of this host"), "{detail}");
    for (place, address) in ["A 8.8.4.4", "A 9.9.9.9", "AAAA 2a00:1450::7"].into_iter().enumerate() {
        let (state, detail) = sources_of(address, true).await;
        assert_eq!((state, host.requests()), (State::Valid, place + 1), "{address}, as configured: {detail}");
    }
}

/// Trust on first use: an attacker who blocks DNS or HTTPS cannot remove the policy (RFC 8461 §10.2).
#[tokio::test]
async fn the_policy_stays_while_others_fail() {
    let host = PolicyHost::start(&[HOST]).await;
    host.policy(HOST, POLICY);
    let dns = name_server("v=STSv1; id=1;").await;
    let begin = now();
    let first = look(&asking(&dns, &host).await, &Memory::default(), begin).await;
    assert_eq!(first.facts.sts.state, State::Valid, "{}", first.facts.sts.detail);
    let later = after(begin, 1_000);
    // The TXT record is gone; it is malformed; the DNS server does not answer.
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut mute = dns.config();
    mute.policy.resolver.0 = smtpwatch_config::Resolver::Address(silent.local_addr().unwrap());
    for failing in [
        asking(&name_server("").await, &host).await,
        asking(&name_server("v=STSv1; id=;").await, &host).await,
        sources(&mute).await,
    ] {
        let look = look(&failing, &first.memory, later).await;
        assert_eq!((look.facts.sts.state, look.facts.sts.until), (State::Valid, first.facts.sts.until));
        assert!(look.facts.sts.detail.contains("kept, although") && look.failed, "{}", look.facts.sts.detail);
        // Until it expires.
        let expired = self::look(&failing, &first.memory, after(begin, 604_800)).await;
        assert_ne!(expired.facts.sts.state, State::Valid);
    }
    // A new id whose policy cannot be fetched; the next attempt is at least five minutes later.
    let changed = name_server("v=STSv1; id=2;").await;
    host.answer(HOST, response("503 Service Unavailable", "text/plain", ""));
    let sources = asking(&changed, &host).await;
    let second = look(&sources, &first.memory, later).await;
    assert_eq!((second.facts.sts.state, second.facts.sts.valid().unwrap().id.as_str()), (State::Valid, "1"));
    assert!(second.failed);
    let requests = host.requests();
    let third = look(&sources, &second.memory, after(later, 299)).await;
    assert_eq!((third.facts.sts.state, third.failed, host.requests()), (State::Valid, false, requests));
    // The new policy replaces the old one.
    host.policy(HOST, &POLICY.replace("enforce", "none"));
    let fourth = look(&sources, &third.memory, after(later, 300)).await;
    let policy = fourth.facts.sts.valid().unwrap();
    assert_eq!((policy.id.as_str(), policy.mode, host.requests()), ("2", StsMode::None, requests + 1));
    assert!(!fourth.memory.protects(after(later, 301)));
}

#[tokio::test]
async fn a_policy_that_allows_none_of_its_own_hosts_is_invalid() {
    let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
    host.policy(HOST, &POLICY.replace("mx.example.test", "mail.example.test"));
    let look = look(&asking(&dns, &host).await, &Memory::default(), now()).await;
    assert_eq!(look.facts.sts.state, State::Invalid);
    assert!(
        look.facts.sts.detail.starts_with("policy invalid: it allows mail.example.test"),
        "{}",
        look.facts.sts.detail
    );
}

/// RFC 8461 §4.1, §5: MX records that change under a cached policy do not revoke it, whatever they name, until the
/// policy expires. Changing them is an attacker's first step.
#[tokio::test]
async fn a_cached_policy_holds_against_other_mx_records() {
    let host = PolicyHost::start(&[HOST]).await;
    host.policy(HOST, POLICY);
    let begin = now();
    let first = look(&asking(&name_server("v=STSv1; id=1;").await, &host).await, &Memory::default(), begin).await;
    assert_eq!(first.facts.sts.state, State::Valid, "{}", first.facts.sts.detail);
    for (mx, txt) in [
        ("@ MX 10 mx.evil.test.\n", "v=STSv1; id=1;"),
        ("@ MX 10 mx.evil.test.\n", ""),
        // The new policy is authentic, even if the MX records are forged.
        ("@ MX 10 mx.evil.test.\n", "v=STSv1; id=2;"),
        // Without an MX record, the domain itself is the mail host.
        ("", "v=STSv1; id=1;"),
    ] {
        let txt = if txt.is_empty() { String::new() } else { format!("_mta-sts TXT \"{txt}\"\n") };
        let records = format!("{mx}@ A 127.0.0.2\nmta-sts A 127.0.0.1\n{txt}");
        let zone = Zone { origin: "example.test.", delegation: Delegation::Plain, records };
        let dns = NameServer::start(vec![zone], false).await;
        let forged = look(&asking(&dns, &host).await, &first.memory, after(begin, 600)).await;
        let sts = &forged.facts.sts;
        assert_eq!(sts.state, State::Valid, "{mx}{txt}{}", sts.detail);
        assert_eq!(sts.valid().unwrap().mx, ["mx.example.test"]);
        assert!(sts.detail.contains("none of the domain's own mail hosts"), "{}", sts.detail);
        assert!(forged.memory.protects(after(begin, 601)), "it stays cached");
        // An expired policy is not retained.
        let expired = look(&asking(&dns, &host).await, &first.memory, after(begin, 604_800)).await;
        assert_ne!(expired.facts.sts.state, State::Valid, "{}", expired.facts.sts.detail);
    }
}

/// A policy that never matched its domain's MX records is the owner's mistake, and is not cached.
#[tokio::test]
async fn a_policy_that_never_fitted_is_not_cached() {
    let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
    host.policy(HOST, &POLICY.replace("mx.example.test", "mail.example.test"));
    let (sources, begin) = (asking(&dns, &host).await, now());
    let first = look(&sources, &Memory::default(), begin).await;
    let second = look(&sources, &first.memory, after(begin, 10)).await;
    assert_eq!((first.facts.sts.state, second.facts.sts.state), (State::Invalid, State::Invalid));
    assert_eq!(host.requests(), 1, "not again for five minutes");
    let third = look(&sources, &second.memory, after(begin, 301)).await;
    assert_eq!((third.facts.sts.state, host.requests()), (State::Invalid, 2));
    host.policy(HOST, POLICY);
    let mended = look(&sources, &third.memory, after(begin, 602)).await;
    assert_eq!(mended.facts.sts.state, State::Valid, "{}", mended.facts.sts.detail);
}

/// `max_age` 0 is legal (RFC 8461 §3.2): the policy applies to the delivery that it was fetched for.
#[tokio::test]
async fn a_policy_that_may_not_be_cached_holds_for_this_delivery() {
    for age in [0, 1, 59] {
        let (dns, host) = (name_server("v=STSv1; id=1;").await, PolicyHost::start(&[HOST]).await);
        host.policy(HOST, &POLICY.replace("604800", &age.to_string()));
        let (sources, begin) = (asking(&dns, &host).await, now());
        let first = look(&sources, &Memory::default(), begin).await;
        let sts = &first.facts.sts;
        assert_eq!((sts.state, sts.valid().unwrap().mode), (State::Valid, StsMode::Enforce), "{age}: {}", sts.detail);
        assert_eq!(sts.until, after(begin, 60), "long enough to judge the delivery");
        assert!(age > 0 || sts.detail.contains("max_age 0: it holds for this delivery"), "{age}: {}", sts.detail);
        let second = look(&sources, &first.memory, after(begin, 61)).await;
        assert_eq!((second.facts.sts.state, host.requests()), (State::Valid, 2), "{age}: it is fetched for each");
        let silent = name_server("").await;
        let gone = look(&asking(&silent, &host).await, &second.memory, after(begin, 200)).await;
        assert_eq!(gone.facts.sts.state, State::Absent, "{age}: {}", gone.facts.sts.detail);
    }
}
