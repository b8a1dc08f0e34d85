//! States of DNS answers: secure, insecure, bogus, absent, and no answer.

use std::time::Duration;

use smtpwatch_config::Config;
use smtpwatch_core::{
    Timestamp,
    policy::{
        memory::Memory,
        published::{HostFacts, State},
    },
};
use smtpwatch_policy::{
    lookup::{Sources, Timeouts, Trust},
    resolver::Dnssec,
};

use crate::dns::{Delegation, NameServer, Zone};

/// The current time of this host. Time is an argument of the functions under test; signatures are compared with it.
pub fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp(i64::try_from(now.as_nanos()).unwrap())
}

pub const PATIENCE: Timeouts = Timeouts { dns: Duration::from_millis(500), fetch: Duration::from_secs(2) };

pub async fn sources(config: &Config) -> Sources {
    let trust = Trust::load(&config.policy).unwrap();
    Sources::start(&config.policy, &trust, PATIENCE, now()).await.unwrap()
}

/// `_x._tcp` at each host: this DNS server proves the absence of a name only one label below an existing one.
fn zones() -> Vec<Zone> {
    let digest = "ab".repeat(32);
    let hosts = format!(
        "mx A 127.0.0.1\nmx AAAA ::1\n_25._tcp.mx TLSA 3 1 1 {digest}\n\
         bare A 127.0.0.1\n_x._tcp.bare TXT x\n\
         odd A 127.0.0.1\n_25._tcp.odd TLSA 1 1 1 {digest}\n"
    );
    let domain = "@ MX 20 bare\n@ MX 10 mx\nnull MX 0 .\nnone A 127.0.0.1\nliteral MX 10 127.0.0.1.\n";
    let zone = |origin, delegation, more: &str| Zone { origin, delegation, records: format!("{domain}{hosts}{more}") };
    vec![
        zone(
            "good.test.",
            Delegation::Secure,
            "alias CNAME mx\nout CNAME mx.plain.test.\n_25._tcp.out TLSA 3 1 1 00\n\
             far CNAME bare\n_25._tcp.far TLSA 2 0 1 00\n",
        ),
        zone("plain.test.", Delegation::Plain, "in CNAME mx.good.test.\n"),
        zone("broken.test.", Delegation::Broken, ""),
        zone("refused.test.", Delegation::Broken, ""),
    ]
}

fn tlsa(facts: &HostFacts) -> Vec<String> {
    facts.dane.value.iter().flatten().map(ToString::to_string).collect()
}

#[tokio::test]
async fn dane_secure_insecure_bogus_absent() {
    let server = NameServer::start(zones(), false).await;
    let sources = sources(&server.config()).await;
    assert_eq!(*sources.dnssec(), Dnssec::On);
    let good = sources.host("mx.good.test", now()).await;
    assert_eq!((good.dane.state, good.base.as_str()), (State::Valid, "mx.good.test"), "{}", good.dane.detail);
    assert_eq!(tlsa(&good), [format!("3 1 1 {}", "ab".repeat(32))]);
    assert_eq!(good.addresses.valid().unwrap().len(), 2);
    for (host, state, words) in [
        ("odd.good.test", State::Valid, "none of the TLSA records is usable"),
        ("bare.good.test", State::Absent, "proved by DNSSEC"),
        ("nobody.good.test", State::Absent, "the host has no address"),
        ("mx.plain.test", State::Insecure, "TLSA records are not queried"),
        ("mx.broken.test", State::Bogus, "forged or broken"),
        ("mx.refused.test", State::Bogus, "the name server reports"),
    ] {
        let facts = sources.host(host, now()).await;
        assert_eq!(facts.dane.state, state, "{host}: {}", facts.dane.detail);
        assert!(facts.dane.detail.contains(words), "{host}: {}", facts.dane.detail);
    }
}

/// A DS digest is equivalent to a key, and a zone's anchor to the root's; an answer without a chain to an anchor proves
/// nothing.
#[tokio::test]
async fn anchors_of_either_form_and_of_any_zone() {
    let server = NameServer::start(zones(), false).await;
    let [root, good, ..] = server.digests.as_slice() else { panic!("digests") };
    let wrong = format!("{}00", &root[..root.len() - 2]);
    for (anchor, dnssec, state) in
        [(root, true, State::Valid), (good, true, State::Valid), (&wrong, false, State::Error)]
    {
        let mut config = server.config();
        config.policy.trust_anchor.0.clone_from(anchor);
        let sources = sources(&config).await;
        assert_eq!(*sources.dnssec() == Dnssec::On, dnssec, "{anchor}: {:?}", sources.dnssec());
        assert_eq!(sources.host("mx.good.test", now()).await.dane.state, state, "{anchor}");
    }
}

/// RFC 7672 §2.2.2: first the expanded name, then the name itself; only the latter if the alias is not proved.
#[tokio::test]
async fn dane_of_an_alias() {
    let server = NameServer::start(zones(), false).await;
    let sources = sources(&server.config()).await;
    for (host, state, base) in [
        ("alias.good.test", State::Valid, "mx.good.test"),
        ("far.good.test", State::Valid, "far.good.test"),
        ("out.good.test", State::Valid, "out.good.test"),
        ("in.plain.test", State::Insecure, "in.plain.test"),
    ] {
        let facts = sources.host(host, now()).await;
        assert_eq!((facts.dane.state, facts.base.as_str()), (state, base), "{host}: {}", facts.dane.detail);
    }
}

#[tokio::test]
async fn mail_hosts_of_domains() {
    let server = NameServer::start(zones(), false).await;
    let sources = sources(&server.config()).await;
    for (domain, state, hosts, secure) in [
        ("good.test", State::Valid, &["mx.good.test", "bare.good.test"][..], true),
        ("plain.test", State::Valid, &["mx.plain.test", "bare.plain.test"], false),
        ("null.good.test", State::Valid, &[], true),
        ("none.good.test", State::Valid, &["none.good.test"], true),
        ("literal.good.test", State::Invalid, &[], false),
        ("nobody.good.test", State::Absent, &[], false),
        ("broken.test", State::Bogus, &[], false),
    ] {
        let mx = sources.domain(domain, Memory::default(), now()).await.facts.mx;
        assert_eq!(mx.state, state, "{domain}: {}", mx.detail);
        let found = mx.value.unwrap_or_default();
        assert_eq!(
            (found.hosts.iter().map(String::as_str).collect::<Vec<_>>(), found.secure),
            (hosts.to_vec(), secure)
        );
    }
}

/// Without an answer or without signatures, DANE is off, with the reason, and whatever needs no DNSSEC continues.
#[tokio::test]
async fn a_resolver_without_dnssec_switches_dane_off() {
    let server = NameServer::start(zones(), true).await;
    let sources = sources(&server.config()).await;
    let Dnssec::Broken(why) = sources.dnssec() else { panic!("{:?}", sources.dnssec()) };
    assert!(why.contains("cannot be validated"), "{why}");
    let facts = sources.host("mx.good.test", now()).await;
    assert_eq!(facts.dane.state, State::Error);
    for words in ["switched off", "[policy] resolver", "dane = false"] {
        assert!(facts.dane.detail.contains(words), "{}", facts.dane.detail);
    }
    assert_eq!(facts.addresses.state, State::Valid);
    assert!(!sources.domain("good.test", Memory::default(), now()).await.facts.mx.valid().unwrap().secure);
}

#[tokio::test]
async fn a_resolver_that_is_silent_is_no_absence() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let text = format!("[policy]\nresolver = \"{}\"\n", silent.local_addr().unwrap());
    let config = Config::parse(&text, std::path::Path::new("test.toml")).unwrap();
    let sources = sources(&config).await;
    assert!(matches!(sources.dnssec(), Dnssec::Broken(_)));
    let look = sources.domain("good.test", Memory::default(), now()).await;
    assert_eq!((look.facts.mx.state, look.facts.sts.state), (State::Error, State::Error));
    assert!(look.failed);
}

#[tokio::test]
async fn disabled_sources_are_not_queried() {
    let server = NameServer::start(zones(), false).await;
    let sources = sources(&server.config_with("dane = false\nmta_sts = false")).await;
    assert_eq!(*sources.dnssec(), Dnssec::Off);
    let facts = sources.host("mx.good.test", now()).await;
    let look = sources.domain("good.test", Memory::default(), now()).await;
    for (state, detail) in [(facts.dane.state, facts.dane.detail), (look.facts.sts.state, look.facts.sts.detail)] {
        assert_eq!(state, State::Absent);
        assert!(detail.contains("switched off"), "{detail}");
    }
    assert!(!look.failed);
}
