//! Mail over an interface other than that of the default route: VPN routes, policy routing, a route to one exchanger,
//! an interface that is added later. Without configured interfaces the daemon captures on it; if `interfaces` omits it,
//! the daemon reports it.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt::Mark,
};
use smtpwatch_tests::daemon::{Daemon, Options, Privileges, smtpwatch_in};
use smtpwatch_tests::netns::{EXCHANGER_V4, EXCHANGER_V6, Family, GATEWAY_INTERFACE, Path, join};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::lifecycle::{THREE, home};
use crate::set_up::{FINDING, Home, script};

/// The gateway's second interface.
const OTHER: &str = "vpn0";
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 0x10);
/// A cleartext password; the server offers AUTH and no TLS.
const PLAIN: &str = "AUTH PLAIN AGFubmEAbm90LWEtc2VjcmV0LTdLcQ==";
/// Longer than the interval of the daemon's housekeeping.
const SETTLE: Duration = Duration::from_millis(700);
/// Routes of table 100 over the second interface with the source address of the first: the exchanger's answers arrive
/// at the first, and the source address does not identify the interface.
const TABLE: [&str; 2] = [
    "route add default via 203.0.113.1 dev vpn0 src 192.0.2.10 table 100",
    "-6 route add default via 2001:db8:3::1 dev vpn0 src 2001:db8:1::10 table 100",
];

/// Socket settings of a client, apart from its family.
#[derive(Clone, Copy, Default)]
struct Client {
    mark: u32,
    source: bool,
}

/// The path of the lab with a second link from the gateway to the router, and a server without TLS at the exchanger.
struct Site {
    _servers: Vec<Server>,
    path: Path,
}

impl Site {
    fn create() -> Result<Self> {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let ehlo = script("220 mx1.example.net ESMTP", &["mx1.example.net", "AUTH PLAIN"]);
        let start = |family: Family| {
            Server::start(&path.exchanger, SocketAddr::new(family.exchanger(), 25), &identity, ehlo.clone())
        };
        let servers = Family::ALL.into_iter().map(start).collect::<Result<_>>()?;
        Ok(Self { _servers: servers, path })
    }

    /// Adds the second link, which no route uses yet.
    fn with_other() -> Result<Self> {
        let site = Self::create()?;
        site.plug()?;
        Ok(site)
    }

    fn plug(&self) -> Result<()> {
        let Path { gateway, router, .. } = &self.path;
        join((gateway, OTHER), (router, "vpn"))?;
        gateway.sysctl("ipv4/conf/all/rp_filter", "0")?;
        gateway.sysctl("ipv4/conf/vpn0/rp_filter", "0")?;
        let own = (OTHER_V4.to_string(), OTHER_V6.to_string());
        let far = ("203.0.113.1".to_owned(), "2001:db8:3::1".to_owned());
        for (namespace, interface, (v4, v6)) in [(gateway, OTHER, own), (router, "vpn", far)] {
            namespace.ip(&["addr", "add", &format!("{v4}/24"), "dev", interface])?;
            namespace.ip(&["addr", "add", &format!("{v6}/64"), "dev", interface, "nodad"])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    fn ip(&self, commands: &[&str]) -> Result<()> {
        for command in commands {
            self.path.gateway.ip(&command.split(' ').collect::<Vec<_>>()).with_context(|| (*command).to_owned())?;
        }
        Ok(())
    }

    /// Connects to the exchanger and reads its greeting.
    fn open(&self, family: Family, client: Client) -> Result<BufReader<TcpStream>> {
        self.path.gateway.run(|| dial(family, client))?
    }

    /// Sends a password in cleartext to the exchanger, in a connection of its own.
    fn send(&self, family: Family, client: Client) -> Result<()> {
        let mut stream = self.open(family, client)?;
        for line in ["EHLO gateway.example.org", PLAIN, "QUIT"] {
            smtp::ask(&mut stream, line)?;
        }
        Ok(())
    }

    /// Checks that a session of each family raises a finding.
    fn is_found(&self, daemon: &Daemon<'_>, client: Client) -> Result<()> {
        for family in Family::ALL {
            self.send(family, client)?;
            let server = SocketAddr::new(family.exchanger(), 25).to_string();
            daemon.finding("auth-plaintext", FINDING, |finding| finding["flow"]["server"] == server.as_str())?;
        }
        Ok(())
    }

    /// Checks that a daemon without configured interfaces captures the very first session.
    fn is_seen_by_default(&self, name: &str, client: Client) -> Result<()> {
        let home = Home::create(name)?;
        let daemon = Daemon::start(&self.path.gateway, "", &home.0, Options::default())?;
        self.is_found(&daemon, client)
    }

    /// Checks that with `interfaces` that omit the second interface nothing is captured, and the daemon reports it.
    fn is_told(&self, name: &str, client: Client) -> Result<()> {
        let home = Home::create(name)?;
        let open = Family::ALL.into_iter().map(|family| self.open(family, client)).collect::<Result<Vec<_>>>()?;
        let daemon = Daemon::start(&self.path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
        ensure!(daemon.metric("smtpwatch_probe_attached", &[("interface", OTHER)])? == 0.0, "{}", daemon.log());
        daemon.metric_reaches("smtpwatch_unwatched_connections", &[("role", "client")], 2.0, FINDING)?;
        ensure!(daemon.metric("smtpwatch_unwatched_connections", &[("role", "server")])? == 0.0, "a server's");
        ensure!(daemon.metric("smtpwatch_route_lookups_dropped_total", &[])? == 0.0, "{}", daemon.log());
        let log = daemon.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("goes by vpn0, which is not watched")).collect();
        ensure!(lines.len() == 1, "not once: {log}");
        drop(open);
        Ok(())
    }
}

fn dial(family: Family, client: Client) -> Result<BufReader<TcpStream>> {
    let domain = if family == Family::V4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, Mark, &client.mark)?;
    if client.source {
        let own = if family == Family::V4 { IpAddr::V4(OTHER_V4) } else { IpAddr::V6(OTHER_V6) };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(own, 0)))?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(family.exchanger(), 25)))?;
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(FINDING))?;
    let mut stream = BufReader::new(stream);
    let mut greeting = String::new();
    stream.read_line(&mut greeting)?;
    ensure!(greeting.starts_with("220 "), "{greeting}");
    Ok(stream)
}

/// Defines tests per route: captured by default, reported if omitted.
macro_rules! ways {
    ($($name:ident: $commands:expr, $client:expr;)+) => {
        $(#[test]
        fn $name() {
            scenario(stringify!($name), || {
                let site = Site::with_other()?;
                site.ip(&$commands)?;
                site.is_seen_by_default(stringify!($name), $client)?;
                site.is_told(stringify!($name), $client)
            });
        })+
    };
}

ways! {
    halves_of_the_address_space: [
        "route add 0.0.0.0/1 via 203.0.113.1",
        "route add 128.0.0.0/1 via 203.0.113.1",
        "-6 route add ::/1 via 2001:db8:3::1",
        "-6 route add 8000::/1 via 2001:db8:3::1",
    ], Client::default();
    a_route_to_one_exchanger: [
        "route add 198.51.100.25/32 via 203.0.113.1",
        "-6 route add 2001:db8:2::25/128 via 2001:db8:3::1",
    ], Client::default();
    a_rule_by_source: [
        TABLE[0], TABLE[1],
        "rule add from 203.0.113.10 table 100",
        "-6 rule add from 2001:db8:3::10 table 100",
    ], Client { source: true, ..Client::default() };
    a_rule_by_mark: [
        TABLE[0], TABLE[1],
        "rule add fwmark 7 table 100",
        "-6 rule add fwmark 7 table 100",
    ], Client { mark: 7, ..Client::default() };
    a_rule_by_user: [
        TABLE[0], TABLE[1],
        "rule add uidrange 0-0 table 100",
        "-6 rule add uidrange 0-0 table 100",
    ], Client::default();
    a_rule_by_port: [
        TABLE[0], TABLE[1],
        "rule add ipproto tcp dport 25 table 100",
        "-6 rule add ipproto tcp dport 25 table 100",
    ], Client::default();
}

#[test]
fn an_interface_that_comes_with_its_routes() {
    scenario("an_interface_that_comes_with_its_routes", || {
        let (site, home) = (Site::create()?, home("plugged")?);
        let options = Options { privileges: Privileges::Service(THREE), ..Options::default() };
        let daemon = Daemon::start(&site.path.gateway, "", &home.0, options)?;
        site.plug()?;
        site.ip(&["route add 128.0.0.0/1 via 203.0.113.1", "-6 route add 2000::/3 via 2001:db8:3::1"])?;
        daemon.metric_reaches("smtpwatch_probe_attached", &[("interface", OTHER)], 2.0, FINDING)?;
        site.is_found(&daemon, Client::default())
    });
}

#[test]
fn a_connection_tells_of_a_route_without_a_gateway() {
    scenario("a_connection_tells_of_a_route_without_a_gateway", || {
        let (site, home) = (Site::with_other()?, Home::create("on-link")?);
        let router = &site.path.router;
        router.sysctl("ipv4/conf/vpn/proxy_arp", "1")?;
        router.sysctl("ipv6/conf/vpn/proxy_ndp", "1")?;
        router.ip(&["-6", "neigh", "add", "proxy", &EXCHANGER_V6.to_string(), "dev", "vpn"])?;
        // Routes as a CNI plug-in makes them for each container: none of them alone is a reason to attach.
        site.ip(&["route add 198.51.100.25/32 dev vpn0", "-6 route add 2001:db8:2::25/128 dev vpn0"])?;
        let daemon = Daemon::start(&site.path.gateway, "", &home.0, Options::default())?;
        ensure!(daemon.metric("smtpwatch_probe_attached", &[("interface", OTHER)])? == 0.0, "{}", daemon.log());
        let open = site.open(Family::V6, Client::default())?;
        // Any change of routes makes the daemon look up its connections before the minute has passed.
        site.ip(&["rule add from 192.0.2.99 table 100"])?;
        daemon.metric_reaches("smtpwatch_probe_attached", &[("interface", OTHER)], 2.0, FINDING)?;
        let why = format!("mail to [{EXCHANGER_V6}]:25 goes by vpn0: it is watched from here on");
        ensure!(daemon.log().contains(&why), "{}", daemon.log());
        ensure!(daemon.metric("smtpwatch_unwatched_connections", &[])? == 0.0, "{}", daemon.log());
        drop(open);
        // The interface stays attached after the connection has ended and the rule is deleted.
        site.ip(&["rule del from 192.0.2.99 table 100"])?;
        site.is_found(&daemon, Client::default())
    });
}

#[test]
fn mail_that_arrives_elsewhere_than_its_answers_leave() {
    scenario("mail_that_arrives_elsewhere_than_its_answers_leave", || {
        let site = Site::with_other()?;
        let address = SocketAddr::new(IpAddr::V4(OTHER_V4), 25);
        let identity = Identity::generate("mail.example.org")?;
        let ehlo = script("220 mail.example.org ESMTP", &["mail.example.org", "AUTH PLAIN"]);
        let _server = Server::start(&site.path.gateway, address, &identity, ehlo)?;
        let peer = || site.path.exchanger.run(|| smtp::connect(address))?;
        let open = peer()?;
        let home = Home::create("arrives")?;
        {
            let daemon = Daemon::start(&site.path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;
            daemon.metric_reaches("smtpwatch_unwatched_connections", &[("role", "server")], 1.0, FINDING)?;
            let log = daemon.log();
            ensure!(log.contains("mail to 203.0.113.10:25 of this host comes by vpn0, which is not watched"), "{log}");
            let config = home.0.join("smtpwatch.toml");
            let config = config.to_str().context("a path in UTF-8")?;
            let arguments = ["probe", "--format", "text", "--config", config];
            let told = smtpwatch_in(&site.path.gateway, &arguments, FINDING)?.stdout;
            ensure!(told.contains("WARN connections: mail to 203.0.113.10:25 of this host comes by vpn0"), "{told}");
        }
        let daemon = Daemon::start(&site.path.gateway, "", &home.0, Options::default())?;
        ensure!(daemon.metric("smtpwatch_probe_attached", &[("interface", OTHER)])? == 2.0, "{}", daemon.log());
        drop(open);
        let mut stream = peer()?;
        for line in ["EHLO client.example", PLAIN, "QUIT"] {
            smtp::ask(&mut stream, line)?;
        }
        let found = daemon.finding("auth-plaintext", FINDING, |finding| finding["role"] == "server")?;
        ensure!(found["outcome"] == "credential", "{found}");
        Ok(())
    });
}

#[test]
fn routes_that_lead_nowhere_and_rules_that_go_disturb_nothing() {
    scenario("routes_that_lead_nowhere_and_rules_that_go_disturb_nothing", || {
        let (site, home) = (Site::with_other()?, Home::create("nowhere")?);
        let open = site.open(Family::V4, Client::default())?;
        let mut daemon = Daemon::start(&site.path.gateway, "", &home.0, Options::default())?;
        // While a connection is open, remove every route to its peer.
        for kind in ["blackhole", "unreachable", "prohibit", "throw"] {
            let to = EXCHANGER_V4.to_string();
            site.path.gateway.ip(&["route", "add", kind, &to])?;
            std::thread::sleep(SETTLE);
            site.path.gateway.ip(&["route", "del", kind, &to])?;
        }
        // The rule of the main table is deleted and added again.
        site.ip(&["rule del table main", "rule add table main", TABLE[0], "rule add fwmark 9 table 100"])?;
        daemon.metric_reaches("smtpwatch_probe_attached", &[("interface", OTHER)], 2.0, FINDING)?;
        daemon.metric_reaches("smtpwatch_probe_attached", &[("interface", GATEWAY_INTERFACE)], 2.0, FINDING)?;
        site.ip(&["link del vpn0"])?;
        drop(open);
        site.send(Family::V6, Client::default())?;
        daemon.finding("auth-plaintext", FINDING, |finding| finding["flow"]["interface"] == GATEWAY_INTERFACE)?;
        ensure!(daemon.metric("smtpwatch_route_lookups_dropped_total", &[])? == 0.0, "{}", daemon.log());
        ensure!(daemon.metric("smtpwatch_unwatched_connections", &[])? == 0.0, "{}", daemon.log());
        ensure!(daemon.terminate()?, "{}", daemon.log());
        Ok(())
    });
}
