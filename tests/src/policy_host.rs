//! A real nginx that serves MTA-STS policies, correctly and incorrectly.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::netns::Namespace;
use crate::root::{Instance, Packages, Root};
use crate::tls::Identity;

/// The port of the policy host. It is not 443, so that the configured port is shown to be used.
pub const PORT: u16 = 8443;

const READY: Duration = Duration::from_secs(90);

/// A policy, and how it is served.
#[derive(Debug)]
pub struct Hosted<'a> {
    /// The domain; the policy host is `mta-sts.` followed by the domain.
    pub domain: &'a str,
    /// What is served.
    pub body: String,
    /// The certificate that the server presents.
    pub identity: &'a Identity,
    /// How the policy is served.
    pub manner: Manner,
}

/// How a policy is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// As RFC 8461 requires.
    Good,
    /// With status 301, a Location header, and the policy as its body.
    Redirect,
    /// One byte per second.
    Slow,
    /// In chunks, without a length.
    Chunked,
    /// As `text/html`.
    Html,
    /// With status 404.
    Missing,
}

impl Manner {
    const fn settings(self) -> &'static str {
        match self {
            Self::Good => "",
            Self::Redirect => {
                "location = /.well-known/mta-sts.txt {\n\
                 add_header Location https://mta-sts.example.net/elsewhere.txt always;\n\
                 error_page 403 =301 /moved;\nreturn 403;\n}\n\
                 location = /moved { internal; try_files /.well-known/mta-sts.txt =404; }\n"
            }
            Self::Slow => "limit_rate 1;\n",
            Self::Chunked => "sub_filter version version;\nsub_filter_types text/plain;\n",
            Self::Html => "types { text/html txt; }\n",
            Self::Missing => "location = /.well-known/mta-sts.txt { return 404; }\n",
        }
    }
}

/// A running nginx.
#[derive(Debug)]
pub struct PolicyHost {
    instance: Instance,
    address: SocketAddr,
}

impl PolicyHost {
    /// Serves `policies` on [`PORT`] of `addresses` of `namespace`.
    ///
    /// # Errors
    /// [`crate::Skip`] when nginx cannot be installed here; otherwise the error with its log.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], policies: &[Hosted<'_>]) -> Result<Self> {
        let mut listen = String::new();
        for address in addresses {
            writeln!(listen, "listen {} ssl;", SocketAddr::new(*address, PORT))?;
        }
        let mut instance =
            Root::with(Packages::Nginx)?.start(namespace, &["nginx", "-c", "/lab/nginx.conf"], |lab| {
                let mut configuration = HEAD.to_owned();
                for Hosted { domain, body, identity, manner } in policies {
                    let directory = lab.join("www").join(domain).join(".well-known");
                    std::fs::create_dir_all(&directory)?;
                    std::fs::write(directory.join("mta-sts.txt"), body)?;
                    std::fs::write(lab.join(format!("{domain}.pem")), &identity.certificate_pem)?;
                    std::fs::write(lab.join(format!("{domain}.key")), &identity.key_pem)?;
                    writeln!(
                        configuration,
                        "server {{\n{listen}server_name mta-sts.{domain};\nroot /lab/www/{domain};\n\
                     ssl_certificate /lab/{domain}.pem;\nssl_certificate_key /lab/{domain}.key;\n{}}}",
                        manner.settings()
                    )?;
                }
                configuration.push_str("}\n");
                Ok(std::fs::write(lab.join("nginx.conf"), configuration)?)
            })?;
        let address = SocketAddr::new(*addresses.first().context("no address")?, PORT);
        let ready = command::eventually(READY, "the policy host", || {
            ensure!(!instance.ended(), "nginx ended");
            let connect = || std::net::TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok();
            Ok(namespace.run(connect)?.then_some(()))
        });
        ready.with_context(|| instance.read("output.log"))?;
        Ok(Self { instance, address })
    }

    /// Fetches the policy of `domain` with `curl` from `namespace`, trusting `authority`. Returns the exit code of
    /// curl, the status and media type, and the bytes of the body.
    ///
    /// # Errors
    /// When curl cannot be started.
    pub fn curl(&self, namespace: &Namespace, domain: &str, authority: &str) -> Result<String> {
        let (host, path) = (format!("mta-sts.{domain}"), ".well-known/mta-sts.txt");
        let (url, resolve) = (format!("https://{host}:{PORT}/{path}"), format!("{host}:{PORT}:{}", self.address.ip()));
        let form = "%{exitcode} %{http_code} %{content_type} %{size_download}";
        let program =
            ["curl", "-s", "-o", "/dev/null", "-m", "3", "--cacert", "/lab/ca", "--resolve", &resolve, "-w", form];
        let program: Vec<&str> = program.iter().chain([&url.as_str()]).copied().collect();
        let out = Root::with(Packages::Nginx)?.output(namespace, &program, Duration::from_secs(30), |lab| {
            Ok(std::fs::write(lab.join("ca"), authority)?)
        })?;
        Ok(out.stdout)
    }

    /// Log of all requests so far: host, path, status, user agent.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.instance.read("access.log").lines().map(str::to_owned).collect()
    }
}

const HEAD: &str = "\
daemon off;
pid /tmp/nginx.pid;
error_log stderr;
worker_processes 1;
events {}
http {
types { text/plain txt; }
log_format requests '$host $request_uri $status $http_user_agent';
access_log /lab/access.log requests;
";
