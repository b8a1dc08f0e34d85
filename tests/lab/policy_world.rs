//! A small DNS hierarchy with its own root, in which every domain publishes a different policy; third-party tools check
//! that it is as described.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use smtpwatch_tests::names::{Names, Signing, Zone};
use smtpwatch_tests::netns::Path;
use smtpwatch_tests::policy_host::{Hosted, Manner, PORT, PolicyHost};
use smtpwatch_tests::postfix::{self, Postfix};
use smtpwatch_tests::resolver::{Dnssec, Resolver};
use smtpwatch_tests::scenario;
use smtpwatch_tests::tls::{Authority, Identity};

use crate::set_up::Home;

/// DNSSEC-secure, TLSA 3 1 1 of the real certificate, and a matching MTA-STS policy.
pub const DANE: &str = "dane.example";
/// DNSSEC-secure, TLSA 3 1 1 of another key.
pub const OTHER_KEY: &str = "other.example";
/// DNSSEC-secure, with only TLSA records that SMTP cannot use.
pub const UNUSABLE: &str = "unusable.example";
/// DNSSEC-secure, with a proof that nothing is published.
pub const NOTHING: &str = "nothing.example";
/// TLSA records in an unsigned zone.
pub const INSECURE: &str = "insecure.example";
/// DNSSEC signatures have expired.
pub const BOGUS: &str = "bogus.example";
/// DNSSEC-secure, but the signatures of its TLSA records have expired, as when an attacker forges or suppresses them.
pub const TORN: &str = "torn.example";
/// Its name server does not answer.
pub const SILENT: &str = "silent.example";
/// MTA-STS, `enforce`.
pub const ENFORCE: &str = "enforce.example.net";
/// MTA-STS, `testing`.
pub const TESTING: &str = "testing.example.net";
/// MTA-STS, `none`.
pub const NONE: &str = "none.example.net";
/// Its MTA-STS policy names other mail hosts than its MX record.
pub const CONTRADICTION: &str = "contradiction.example.net";
/// Publishes nothing; a STARTTLS-Everywhere list has an entry for it.
pub const LISTED: &str = "listed.example.net";

/// MTA-STS, `enforce`; unsigned MX records that name the mail host of [`DANE`].
pub const DUAL: &str = "dual.example.net";

/// MTA-STS record; the certificate of the policy host is for another name.
pub const WRONG_NAME: &str = "wrong-name.example.net";
/// MTA-STS record; the policy is served with status 301.
pub const REDIRECT: &str = "redirect.example.net";
/// MTA-STS record; the policy is longer than 64 KiB.
pub const OVERSIZED: &str = "oversized.example.net";
/// As [`OVERSIZED`], without a Content-Length.
pub const ENDLESS: &str = "endless.example.net";
/// MTA-STS record; the policy is sent at one byte per second.
pub const SLOW: &str = "slow.example.net";
/// MTA-STS record; the policy has the media type `text/html`.
pub const HTML: &str = "html.example.net";
/// MTA-STS record; the certificate of the policy host has expired.
pub const EXPIRED: &str = "expired.example.net";
/// MTA-STS record; the certificate of the policy host is from an untrusted authority.
pub const UNTRUSTED: &str = "untrusted.example.net";
/// MTA-STS record without a policy file.
pub const MISSING: &str = "missing.example.net";

/// Domains with a mail host. Each host has addresses of its own, so that an address identifies one policy.
pub const MAIL: [&str; 21] = [
    DANE,
    OTHER_KEY,
    UNUSABLE,
    NOTHING,
    INSECURE,
    BOGUS,
    TORN,
    ENFORCE,
    TESTING,
    NONE,
    CONTRADICTION,
    LISTED,
    WRONG_NAME,
    REDIRECT,
    OVERSIZED,
    ENDLESS,
    SLOW,
    HTML,
    EXPIRED,
    UNTRUSTED,
    MISSING,
];

/// Domains whose policy host is queried, and how it serves the policy.
const POLICIES: [(&str, Manner); 15] = [
    (DANE, Manner::Good),
    (DUAL, Manner::Good),
    (ENFORCE, Manner::Good),
    (TESTING, Manner::Good),
    (NONE, Manner::Good),
    (CONTRADICTION, Manner::Good),
    (WRONG_NAME, Manner::Good),
    (REDIRECT, Manner::Redirect),
    (OVERSIZED, Manner::Good),
    (ENDLESS, Manner::Chunked),
    (SLOW, Manner::Slow),
    (HTML, Manner::Html),
    (EXPIRED, Manner::Good),
    (UNTRUSTED, Manner::Good),
    (MISSING, Manner::Missing),
];

/// Policy hosts at addresses to which a third party must not be able to direct the daemon: domain and address.
pub const PRIVATE: [(&str, &str); 6] = [
    ("loopback.example.net", "127.0.0.1"),
    ("ten.example.net", "10.9.9.9"),
    ("link-local.example.net", "169.254.9.9"),
    ("unique-local.example.net", "fd00:9::9"),
    ("mapped.example.net", "::ffff:10.9.9.9"),
    ("loopback6.example.net", "::1"),
];

/// Address of the authoritative name server.
const NAMES: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 53));
/// An address that accepts packets and never answers.
const SILENCE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 99));
/// Addresses of the policy host.
const WEB: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 80)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x80))];
/// Maximum age of the policies: one week, seconds.
const MAX_AGE: u32 = 604_800;

/// The servers that publish the policies: name server and policy host on the exchanger, both resolvers on the gateway.
pub struct World<'a> {
    /// Issuer of the certificates of mail and policy hosts.
    pub authority: Authority,
    /// Certificate of every mail host.
    pub mail: Identity,
    /// The name server; `None` once switched off.
    pub names: Option<Names>,
    /// The policy host; `None` once switched off.
    pub web: Option<PolicyHost>,
    /// The validating and the stripping resolver; empty once switched off.
    pub resolvers: Vec<Resolver<'a>>,
}

impl<'a> World<'a> {
    /// Starts every server.
    pub fn create(path: &'a Path) -> Result<Self> {
        for (v4, v6) in [(53, None), (99, None), (80, Some(0x80))].into_iter().chain(hosts().map(|(_, n)| (n, Some(n))))
        {
            path.exchanger.ip(&["addr", "add", &format!("198.51.100.{v4}/24"), "dev", "mx0"])?;
            if let Some(v6) = v6 {
                path.exchanger.ip(&["addr", "add", &format!("2001:db8:2::{v6:x}/64"), "dev", "mx0", "nodad"])?;
            }
        }
        path.exchanger.nft(&format!(
            "table inet silence {{ chain input {{ type filter hook input priority 0; ip daddr {SILENCE} drop\n}}\n}}"
        ))?;
        let authority = Authority::generate("Authority of the lab")?;
        let exchangers: Vec<String> = MAIL.iter().map(|domain| format!("mx.{domain}")).collect();
        let mail = authority.issue(&exchangers.iter().map(String::as_str).collect::<Vec<_>>())?;
        let web = serve(path, &authority)?;
        let names = Names::start(&path.exchanger, NAMES, &zones(&mail), &[(SILENT, SILENCE)])?;
        let resolvers = [Dnssec::Validates, Dnssec::Stripped];
        let resolvers = resolvers.map(|dnssec| Resolver::start(&path.gateway, &names, dnssec));
        let resolvers = resolvers.into_iter().collect::<Result<_>>()?;
        Ok(Self { authority, mail, names: Some(names), web: Some(web), resolvers })
    }

    /// The resolver of this kind.
    pub fn resolver(&self, dnssec: Dnssec) -> Result<&Resolver<'a>> {
        self.resolvers.iter().find(|resolver| resolver.dnssec == dnssec).context("the resolver is switched off")
    }

    /// The `[policy]` table of a daemon that uses `resolver`; its files are in `home`.
    pub fn table(&self, home: &Home, resolver: SocketAddr, further: &str) -> Result<String> {
        let (anchor, authority) = (home.0.join("anchor"), home.0.join("ca.pem"));
        std::fs::write(&anchor, &self.names()?.anchor)?;
        std::fs::write(&authority, &self.authority.certificate_pem)?;
        Ok(format!(
            "[policy]\nresolver = \"{resolver}\"\ntrust_anchor = \"{}\"\nca_file = \"{}\"\nhttps_port = {PORT}\n{further}\n",
            anchor.display(),
            authority.display(),
        ))
    }

    fn names(&self) -> Result<&Names> {
        self.names.as_ref().context("the name server is switched off")
    }

    fn web(&self) -> Result<&PolicyHost> {
        self.web.as_ref().context("the policy host is switched off")
    }
}

/// Domains with the last byte of their mail host's addresses.
fn hosts() -> impl Iterator<Item = (&'static str, u8)> {
    MAIL.into_iter().zip(100..)
}

/// The address to which mail for `domain` is sent: its mail host, or a host that is not in DNS.
pub fn exchanger(domain: &str) -> IpAddr {
    let last = hosts().find(|(name, _)| *name == domain).map_or(25, |(_, last)| last);
    Ipv4Addr::new(198, 51, 100, last).into()
}

fn policy(domain: &str) -> String {
    let (mode, mx) = match domain {
        TESTING => ("testing", format!("mx.{domain}")),
        NONE => ("none", format!("mx.{domain}")),
        DUAL => ("enforce", format!("mx.{DANE}")),
        CONTRADICTION => ("enforce", "mail.elsewhere.example.org".to_owned()),
        _ => ("enforce", format!("*.{domain}")),
    };
    let filler =
        if [OVERSIZED, ENDLESS].contains(&domain) { "filler: of no meaning\r\n".repeat(4000) } else { String::new() };
    format!("version: STSv1\r\nmode: {mode}\r\nmx: {mx}\r\n{filler}max_age: {MAX_AGE}\r\n")
}

fn serve(path: &Path, authority: &Authority) -> Result<PolicyHost> {
    let hosts: Vec<String> = POLICIES.iter().map(|(domain, _)| format!("mta-sts.{domain}")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let right: Vec<&str> = hosts.iter().copied().filter(|host| *host != format!("mta-sts.{WRONG_NAME}")).collect();
    let (right, expired, untrusted) = (
        authority.issue(&right)?,
        authority.issue_expired(&hosts)?,
        Authority::generate("Nobody knows it")?.issue(&hosts)?,
    );
    let identity = |domain: &str| match domain {
        EXPIRED => &expired,
        UNTRUSTED => &untrusted,
        _ => &right,
    };
    let hosted: Vec<Hosted<'_>> = POLICIES
        .iter()
        .map(|&(domain, manner)| Hosted { domain, body: policy(domain), identity: identity(domain), manner })
        .collect();
    PolicyHost::start(&path.exchanger, &WEB, &hosted)
}

fn zones(mail: &Identity) -> Vec<Zone> {
    let zone = |name: &str, signing, records: String| Zone { name: name.to_owned(), records, signing };
    let tlsa = |data: &str| format!("_25._tcp.mx TLSA {data}\n");
    let wrong = "00".repeat(32);
    let mut plain = format!("{DUAL}. MX 10 mx.{DANE}.\n");
    for (domain, _) in POLICIES.iter().filter(|(domain, _)| domain.ends_with("example.net")) {
        plain += &sts(domain, &WEB.map(|address| address.to_string()));
    }
    for (domain, address) in PRIVATE {
        plain += &sts(domain, &[address.to_owned()]);
    }
    for (domain, last) in hosts().filter(|(domain, _)| domain.ends_with("example.net")) {
        plain += &exchange(domain, last);
    }
    let mut zones = vec![
        zone("", Signing::Nsec, String::new()),
        zone("example", Signing::Nsec3, String::new()),
        zone("example.net", Signing::Unsigned, plain),
        zone(&format!("_tcp.mx.{TORN}"), Signing::Expired, format!("_25 TLSA {}\n", mail.tlsa)),
    ];
    for (domain, signing, records) in [
        (DANE, Signing::Nsec, tlsa(&mail.tlsa) + &sts(DANE, &WEB.map(|address| address.to_string()))),
        (OTHER_KEY, Signing::Nsec3, tlsa(&format!("3 1 1 {wrong}"))),
        (UNUSABLE, Signing::Nsec, tlsa(&format!("0 0 1 {wrong}")) + &tlsa(&format!("1 1 1 {wrong}"))),
        (NOTHING, Signing::Nsec3, String::new()),
        (INSECURE, Signing::Unsigned, tlsa(&mail.tlsa)),
        (BOGUS, Signing::Expired, tlsa(&mail.tlsa)),
        (TORN, Signing::Nsec, String::new()),
    ] {
        let last = hosts().find(|(name, _)| *name == domain).map_or(0, |(_, last)| last);
        zones.push(zone(domain, signing, exchange(domain, last) + &records));
    }
    zones
}

/// The mail host of a domain.
fn exchange(domain: &str, last: u8) -> String {
    format!("{domain}. MX 10 mx.{domain}.\nmx.{domain}. A 198.51.100.{last}\nmx.{domain}. AAAA 2001:db8:2::{last:x}\n")
}

/// The MTA-STS record of a domain and the address records of its policy host.
fn sts(domain: &str, addresses: &[String]) -> String {
    let mut records = format!("_mta-sts.{domain}. TXT \"v=STSv1; id=20261126;\"\n");
    for address in addresses {
        let kind = if address.contains(':') { "AAAA" } else { "A" };
        records += &format!("mta-sts.{domain}. {kind} {address}\n");
    }
    records
}

/// `dig` and `delv` check the names, Postfix the mail hosts, `curl` the policies: the servers publish what the
/// scenarios assume.
#[test]
fn the_world_of_policies_is_as_it_says() {
    scenario("the_world_of_policies_is_as_it_says", || {
        let path = Path::create()?;
        let world = World::create(&path)?;
        let (names, validating) = (world.names()?, world.resolver(Dnssec::Validates)?);
        let tlsa = |domain: &str| format!("_25._tcp.mx.{domain}");
        for (domain, kind, verdict) in [
            (DANE, "MX", "; fully validated"),
            (&tlsa(DANE), "TLSA", "; fully validated"),
            (&tlsa(OTHER_KEY), "TLSA", "; fully validated"),
            (&tlsa(UNUSABLE), "TLSA", "; fully validated"),
            (&tlsa(NOTHING), "TLSA", "; negative response, fully validated"),
            (&tlsa(INSECURE), "TLSA", "; unsigned answer"),
            (ENFORCE, "MX", "; unsigned answer"),
        ] {
            let found = validating.delv(names, &[domain, kind])?;
            ensure!(found.contains(verdict), "{domain} {kind}: {found}");
        }
        for domain in [tlsa(BOGUS), tlsa(TORN)] {
            let found = validating.delv(names, &["+cd", &domain, "TLSA"])?;
            ensure!(found.contains("expired") && !found.contains("validated"), "{domain}: {found}");
        }
        let found = validating.dig(&["+dnssec", &tlsa(DANE), "TLSA"])?;
        ensure!(found.contains("RRSIG") && found.contains(" ad;"), "the validating resolver: {found}");
        for (domain, status) in [(tlsa(BOGUS), "SERVFAIL"), (tlsa(INSECURE), "NOERROR")] {
            let found = validating.dig(&["+dnssec", &domain, "TLSA"])?;
            ensure!(found.contains(&format!("status: {status}")) && !found.contains(" ad;"), "{domain}: {found}");
        }

        let stripping = world.resolver(Dnssec::Stripped)?;
        for domain in [tlsa(DANE), tlsa(BOGUS)] {
            let found = stripping.dig(&["+dnssec", "+cd", &domain, "TLSA"])?;
            ensure!(found.contains("status: NOERROR") && found.contains("\tTLSA\t"), "{domain}: {found}");
            ensure!(!found.contains("RRSIG") && !found.contains(" ad;"), "{domain}: DNSSEC comes through: {found}");
        }

        let _receiver = Postfix::receiver(&path.exchanger, &world.mail)?;
        for (domain, verdict) in [
            (DANE, "Verified TLS connection"),
            (OTHER_KEY, "no matching DANE TLSA records"),
            (UNUSABLE, "unsupported TLSA certificate usage"),
            (INSECURE, "untrusted issuer"),
            (BOGUS, "Destination address lookup failed"),
            (TORN, "TLSA lookup error"),
        ] {
            let found = postfix::finger(&path.gateway, Dnssec::Validates.address().ip(), domain)?;
            ensure!(found.contains(verdict), "Postfix on {domain}: {found}");
        }

        let web = world.web()?;
        for (domain, wanted) in [
            (ENFORCE, "0 200 text/plain "),
            (DANE, "0 200 text/plain "),
            (REDIRECT, "0 301 text/plain "),
            (OVERSIZED, "0 200 text/plain 92"),
            (ENDLESS, "0 200 text/plain 92"),
            (HTML, "0 200 text/html "),
            (MISSING, "0 404 "),
            (SLOW, "28 "),
            (WRONG_NAME, "60 000 "),
            (EXPIRED, "60 000 "),
            (UNTRUSTED, "60 000 "),
        ] {
            let found = web.curl(&path.gateway, domain, &world.authority.certificate_pem)?;
            ensure!(found.starts_with(wanted), "{domain}: {found}, not {wanted}");
        }
        let requests = web.requests();
        ensure!(
            requests.iter().any(|line| line.contains("mta-sts.enforce.example.net") && line.contains(" 200 curl")),
            "{requests:?}"
        );
        Ok(())
    });
}
