//! A real Exim: receives on ports 25 and 587 with TLS, offers AUTH, and sends.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::tls::Identity;
use crate::{command, smtp};

/// Address at which it accepts mail to send, on the loopback of its namespace. The port is not a watched mail port.
pub const SUBMISSION: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 2600);
/// The account that AUTH accepts.
pub const USER: &str = "anna";
/// Its password.
pub const PASSWORD: &str = "not-a-secret-7Kq";

const READY: Duration = Duration::from_secs(90);

/// When the server offers AUTH.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Auth {
    /// Before TLS too: the misconfiguration that the daemon reports.
    Always,
    /// Under TLS only, as RFC 4954 §4 requires.
    UnderTls,
}

/// A running Exim.
#[derive(Debug)]
pub struct Exim {
    instance: Instance,
}

impl Exim {
    /// Starts a server on ports 25 and 587 and at [`SUBMISSION`]. Mail for the domains of `routes` is sent to their
    /// addresses, one session per message, under TLS if it is offered; all other mail is discarded.
    ///
    /// # Errors
    /// [`crate::Skip`] when Exim cannot be installed here; otherwise the error with its log.
    pub fn start(
        namespace: &Namespace,
        identity: &Identity,
        auth: Auth,
        routes: &[(&str, SocketAddr)],
    ) -> Result<Self> {
        let program = [
            "sh",
            "-c",
            "install -o root -g root -m 644 /lab/exim.conf /etc/exim4/exim4.conf && \
             install -d -o Debian-exim /lab/log && chown Debian-exim /lab/key.pem && exec exim4 -bdf -q5s",
        ];
        let instance = Root::with(Packages::Exim)?.start(namespace, &program, |lab| {
            std::fs::write(lab.join("cert.pem"), &identity.certificate_pem)?;
            std::fs::write(lab.join("key.pem"), &identity.key_pem)?;
            Ok(std::fs::write(lab.join("exim.conf"), configuration(&identity.name, auth, routes)?)?)
        })?;
        Self { instance }.ready(namespace, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 25))
    }

    fn ready(mut self, namespace: &Namespace, address: SocketAddr) -> Result<Self> {
        let found = command::eventually(READY, "Exim's greeting", || {
            anyhow::ensure!(!self.instance.ended(), "Exim ended");
            Ok(namespace.run(|| smtp::greeting(address))?.ok().filter(|line| line.starts_with("220")))
        });
        found.with_context(|| format!("Exim: {}{}", self.instance.read("output.log"), self.log()))?;
        Ok(self)
    }

    /// A sending server that accepts mail at [`SUBMISSION`], resolves names through the resolver at `server`, and
    /// requires TLS of the hosts in `list`. A message that cannot be delivered stays deferred.
    ///
    /// # Errors
    /// As [`Exim::start`].
    pub fn enforcing(namespace: &Namespace, server: IpAddr, list: &str) -> Result<Self> {
        let script = format!(
            "printf 'nameserver {server}\\n' > /etc/resolv.conf\n\
             install -o root -g root -m 644 /lab/exim.conf /etc/exim4/exim4.conf && \
             install -d -o Debian-exim /lab/log && exec exim4 -bdf -q60m\n"
        );
        let configuration = format!(
            "primary_hostname = gateway.example.org\ndaemon_smtp_ports = {}\nlog_file_path = /lab/log/%s\n\
             acl_smtp_rcpt = accept\nacl_smtp_data = accept\nhost_lookup =\nhelo_lookup_domains =\n\
             rfc1413_query_timeout = 0s\nkeep_environment =\ndisable_ipv6 = true\n\
             begin acl\naccept:\n  accept\n\
             begin routers\ndns:\n  driver = dnslookup\n  transport = remote\n\
             begin transports\nremote:\n  driver = smtp\n  connection_max_messages = 1\n  hosts_try_dane =\n  \
             hosts_require_tls = /lab/hosts\n\
             begin retry\n* * F,1h,1h\n",
            SUBMISSION.port()
        );
        let instance = Root::with(Packages::Exim)?.start(namespace, &["sh", "-c", &script], |lab| {
            std::fs::write(lab.join("hosts"), list)?;
            Ok(std::fs::write(lab.join("exim.conf"), configuration)?)
        })?;
        Self { instance }.ready(namespace, SUBMISSION)
    }

    /// Whether the mail for `recipient` was delivered; `None` while the outcome is pending.
    #[must_use]
    pub fn delivered(&self, recipient: &str) -> Option<bool> {
        let log = self.log();
        let is_of = |mark: &str| log.contains(&format!(" {mark} {recipient} "));
        if is_of("=>") { Some(true) } else { (is_of("==") || is_of("**")).then_some(false) }
    }

    /// The text of its main and panic logs.
    #[must_use]
    pub fn log(&self) -> String {
        self.instance.read("log/main") + &self.instance.read("log/panic")
    }

    /// Number of messages that it has delivered to another server.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.log().lines().filter(|line| line.contains(" => ") && line.contains("T=remote")).count()
    }
}

fn configuration(name: &str, auth: Auth, routes: &[(&str, SocketAddr)]) -> Result<String> {
    let (advertise, condition) = match auth {
        Auth::Always => ("*", "1"),
        Auth::UnderTls => ("*", "${if def:tls_in_cipher}"),
    };
    let mut text = format!(
        "primary_hostname = {name}\n\
         daemon_smtp_ports = 25 : 587 : {}\n\
         log_file_path = /lab/log/%s\nlog_selector = +pipelining\nhelo_lookup_domains =\n\
         tls_advertise_hosts = *\ntls_certificate = /lab/cert.pem\ntls_privatekey = /lab/key.pem\n\
         auth_advertise_hosts = {advertise}\n\
         acl_smtp_rcpt = accept\nacl_smtp_data = accept\nhost_lookup =\nrfc1413_query_timeout = 0s\n\
         smtp_accept_max = 100\nsmtp_accept_queue_per_connection = 0\nkeep_environment =\n\
         begin acl\naccept:\n  accept\n\
         begin routers\n",
        SUBMISSION.port()
    );
    for (index, (domain, server)) in routes.iter().enumerate() {
        writeln!(
            text,
            "route{index}:\n  driver = manualroute\n  domains = {domain}\n  transport = remote{index}\n  \
             route_list = <; {domain} \"<+ {}\"\n  self = send",
            server.ip()
        )?;
    }
    text.push_str("rest:\n  driver = accept\n  transport = discard\nbegin transports\n");
    for (index, (_, server)) in routes.iter().enumerate() {
        writeln!(
            text,
            "remote{index}:\n  driver = smtp\n  port = {}\n  connection_max_messages = 1\n  hosts_try_dane =\n  hosts_pipe_connect = *",
            server.port()
        )?;
    }
    write!(
        text,
        "discard:\n  driver = appendfile\n  file = /dev/null\n  user = Debian-exim\n\
         begin retry\n* * F,1h,1s\n\
         begin authenticators\n\
         plain:\n  driver = plaintext\n  public_name = PLAIN\n  server_prompts = :\n  \
         server_advertise_condition = {condition}\n  \
         server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}{{eq{{$auth3}}{{{PASSWORD}}}}}}}}}\n  \
         server_set_id = $auth2\n\
         login:\n  driver = plaintext\n  public_name = LOGIN\n  server_prompts = Username:: : Password::\n  \
         server_advertise_condition = {condition}\n  \
         server_condition = ${{if and{{{{eq{{$auth1}}{{{USER}}}}}{{eq{{$auth2}}{{{PASSWORD}}}}}}}}}\n  \
         server_set_id = $auth1\n"
    )?;
    Ok(text)
}
