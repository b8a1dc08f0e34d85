//! Real Postfix, as the mail exchanger and as the gateway's sending server.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::tls::Identity;
use crate::{command, smtp};

/// Address at which the sending server accepts mail from the lab, on the loopback of its namespace. The port is not a
/// watched mail port.
pub const SUBMISSION: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2500);

const READY: Duration = Duration::from_secs(90);

/// A running Postfix.
#[derive(Debug)]
pub struct Postfix {
    instance: Instance,
}

impl Postfix {
    /// A receiving server on port 25 of every address of `namespace`: offers STARTTLS with `identity` and discards
    /// mail.
    ///
    /// # Errors
    /// [`crate::Skip`] when Postfix cannot be installed here; otherwise the error with its log.
    pub fn receiver(namespace: &Namespace, identity: &Identity) -> Result<Self> {
        Self::receiver_as(namespace, identity, &identity.name, "")
    }

    /// As [`Postfix::receiver`], with the host name `name` and further `settings`, each with its line end.
    ///
    /// # Errors
    /// As [`Postfix::receiver`].
    pub fn receiver_as(namespace: &Namespace, identity: &Identity, name: &str, settings: &str) -> Result<Self> {
        let settings = format!(
            "myhostname = {name}\ninet_interfaces = all\nrelay_transport = discard\n\
             smtpd_tls_security_level = may\nsmtpd_tls_cert_file = /lab/cert.pem\nsmtpd_tls_key_file = /lab/key.pem\n{settings}"
        );
        let server = Self::start(namespace, &settings, "smtp inet n - n - - smtpd\n", |lab| {
            std::fs::write(lab.join("cert.pem"), &identity.certificate_pem)?;
            Ok(std::fs::write(lab.join("key.pem"), &identity.key_pem)?)
        })?;
        server.ready(namespace, SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 25))
    }

    /// A sending server that accepts mail at [`SUBMISSION`] and sends mail for each domain of `routes` to its address,
    /// in a session of its own, under TLS if it is offered (`smtp_tls_security_level = may`).
    ///
    /// # Errors
    /// As [`Postfix::receiver`].
    pub fn sender(namespace: &Namespace, routes: &[(&str, SocketAddr)]) -> Result<Self> {
        let mut transport = String::new();
        for (domain, server) in routes {
            writeln!(transport, "{domain} smtp:[{}]:{}", server.ip(), server.port())?;
        }
        let settings = "myhostname = gateway.example.org\ninet_interfaces = all\ntransport_maps = texthash:/lab/transport\n\
             smtp_tls_security_level = may\nsmtp_tls_loglevel = 1\nsmtp_dns_support_level = disabled\n\
             smtp_connection_cache_on_demand = no\nminimal_backoff_time = 1s\nqueue_run_delay = 1s\n";
        let listener = format!("{SUBMISSION} inet n - n - - smtpd\n");
        let server =
            Self::start(namespace, settings, &listener, |lab| Ok(std::fs::write(lab.join("transport"), transport)?))?;
        server.ready(namespace, SUBMISSION)
    }

    /// A sending server of these packages that accepts mail at [`SUBMISSION`] and resolves names through the resolver
    /// at `server`, which it trusts. Its security level is `smtp_tls_security_level = may` with this TLS policy table
    /// and the settings that the table's head lists. A message that cannot be delivered stays deferred.
    ///
    /// # Errors
    /// As [`Postfix::receiver`].
    pub fn enforcing(
        packages: Packages,
        namespace: &Namespace,
        server: IpAddr,
        authority: &str,
        table: &str,
    ) -> Result<Self> {
        let settings = "myhostname = gateway.example.org\ninet_interfaces = all\nsmtp_address_preference = ipv4\n\
             smtp_tls_security_level = may\nsmtp_tls_policy_maps = hash:/lab/tls_policy\n\
             smtp_dns_support_level = dnssec\nsmtp_tls_CAfile = /lab/ca.pem\nsmtp_tls_loglevel = 1\n\
             smtp_connection_cache_on_demand = no\n";
        let listener = format!("{SUBMISSION} inet n - n - - smtpd\n");
        // The C library hides the resolver's AD bit unless `trust-ad` is set.
        let script = format!(
            "printf 'nameserver {server}\\noptions trust-ad edns0\\n' > /etc/resolv.conf\n\
             postmap -c /lab/postfix hash:/lab/tls_policy && exec postfix -c /lab/postfix start-fg\n"
        );
        let server = Self::start_by(packages, namespace, &["sh", "-c", &script], settings, &listener, |lab| {
            std::fs::write(lab.join("ca.pem"), authority)?;
            Ok(std::fs::write(lab.join("tls_policy"), table)?)
        })?;
        server.ready(namespace, SUBMISSION)
    }

    /// Whether the mail for `recipient` was delivered; `None` while the outcome is pending.
    #[must_use]
    pub fn delivered(&self, recipient: &str) -> Option<bool> {
        let log = self.log();
        let to = format!("to=<{recipient}>");
        let line = log.lines().find(|line| line.contains(&to) && line.contains("status="))?;
        Some(line.contains("status=sent"))
    }

    /// The text of its log.
    #[must_use]
    pub fn log(&self) -> String {
        self.instance.read("mail.log")
    }

    /// Number of messages that this sender has delivered.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.log().lines().filter(|line| line.contains("status=sent") && line.contains("/smtp[")).count()
    }

    fn start(
        namespace: &Namespace,
        settings: &str,
        listener: &str,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let program = ["postfix", "-c", "/lab/postfix", "start-fg"];
        Self::start_by(Packages::Postfix, namespace, &program, settings, listener, prepare)
    }

    fn start_by(
        packages: Packages,
        namespace: &Namespace,
        program: &[&str],
        settings: &str,
        listener: &str,
        prepare: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let instance = Root::with(packages)?.start(namespace, program, |lab| {
            let configuration = lab.join("postfix");
            std::fs::create_dir(&configuration)?;
            std::fs::write(configuration.join("main.cf"), format!("{MAIN}{settings}"))?;
            std::fs::write(configuration.join("master.cf"), format!("{listener}{MASTER}"))?;
            prepare(lab)
        })?;
        Ok(Self { instance })
    }

    fn ready(mut self, namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let found = command::eventually(READY, "Postfix's greeting", || {
            anyhow::ensure!(!self.instance.ended(), "Postfix ended");
            let greeting = namespace.run(|| smtp::greeting(address))?;
            Ok(greeting.ok().filter(|line| line.starts_with("220")))
        });
        found.with_context(|| format!("Postfix: {}{}", self.instance.read("output.log"), self.log()))?;
        Ok(self)
    }
}

/// Runs `posttls-finger`: how Postfix itself judges the mail hosts of `domain` with DANE, through a resolver at
/// `server`, port 53. It disconnects after the handshake. Returns its output.
///
/// # Errors
/// [`crate::Skip`] when Postfix cannot be installed here.
pub fn finger(namespace: &Namespace, server: IpAddr, domain: &str) -> Result<String> {
    // The C library hides the resolver's AD bit unless `trust-ad` is set.
    let script = format!(
        "printf 'nameserver {server}\\noptions trust-ad edns0\\n' > /etc/resolv.conf\n\
         exec posttls-finger -c -l dane -L summary -o inet_protocols=ipv4 {domain}\n"
    );
    let out = Root::with(Packages::Postfix)?.output(
        namespace,
        &["sh", "-c", &script],
        Duration::from_secs(60),
        |_| Ok(()),
    )?;
    Ok(out.stdout + &out.stderr)
}

const MAIN: &str = "\
compatibility_level = 3.6
queue_directory = /var/spool/postfix
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
data_directory = /var/lib/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = /lab/mail.log
maillog_file_prefixes = /lab, /dev/stdout
inet_protocols = all
mydestination =
mynetworks = 127.0.0.0/8 [::1]/128
alias_maps =
local_recipient_maps =
smtpd_peername_lookup = no
relay_domains = static:all
smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination
";

/// Debian's master.cf services, none of them in a chroot.
const MASTER: &str = "\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
";
