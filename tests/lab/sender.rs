//! The sending program: a web application sends its password in cleartext, and the finding names its user and systemd
//! unit.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use smtpwatch_tests::command::{self, Guard};
use smtpwatch_tests::daemon::{self, Daemon, Options};
use smtpwatch_tests::netns::{Family, GATEWAY_INTERFACE, Path};
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{Skip, scenario};

use crate::set_up::{FINDING, Home, check, script, text};

/// `www-data` of Debian.
const UID: u32 = 33;
/// The unit that the program appears to run in.
const UNIT: &str = "php-fpm.service";
/// Enters the cgroup `$1`, drops its privileges, connects to `$2`, port `$3`, and sends the password on request.
const CLIENT: &str = r#"
echo $$ >"$1/cgroup.procs"
exec setpriv --reuid 33 --regid 33 --clear-groups bash -c '
    exec 3<>"/dev/tcp/$0/$1"
    read -r -u 3 greeting
    echo connected
    read -r go
    for line in "EHLO web.example.org" "AUTH PLAIN AGFubmEAbm90LWEtc2VjcmV0" QUIT; do
        printf "%s\r\n" "$line" >&3
        read -r -u 3 reply
    done
' "$2" "$3"
"#;
const LIMIT: Duration = Duration::from_secs(60);

/// A cgroup of its own, removed on drop.
struct Service {
    root: PathBuf,
    directory: PathBuf,
}

impl Service {
    fn create() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let root = PathBuf::from(mount.ok_or_else(|| Skip("no cgroup2 is mounted".to_owned()))?);
        let directory = root.join(format!("smtpwatch-test-{}.slice", std::process::id())).join(UNIT);
        let service = Self { root, directory };
        std::fs::create_dir_all(&service.directory).map_err(|error| Skip(format!("cannot make a cgroup: {error}")))?;
        Ok(service)
    }

    fn remove(&self) -> Result<()> {
        for place in self.directory.ancestors().take(2).filter(|place| place.exists()) {
            // A process that has just ended may still be in it.
            command::eventually(LIMIT, "a cgroup without processes", || Ok(std::fs::remove_dir(place).ok()))?;
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

#[test]
fn a_finding_names_who_sent() {
    scenario("a_finding_names_who_sent", || {
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 587);
        let ehlo = script("220 mx1.example.net ESMTP", &["AUTH PLAIN"]);
        let _server = Server::start(&path.exchanger, address, &identity, ehlo)?;
        let home = Home::create("sender")?;
        let daemon = Daemon::start(&path.gateway, GATEWAY_INTERFACE, &home.0, Options::default())?;

        let service = Service::create()?;
        let directory = service.directory.to_str().context("a path in UTF-8")?;
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut client = path.gateway.command_with_cgroups("sh");
        client.args(["-ec", CLIENT, "sh", directory, &ip, &port]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut client = Guard(client.spawn()?);
        let mut said = String::new();
        BufReader::new(client.0.stdout.take().context("a pipe")?).read_line(&mut said)?;
        ensure!(said == "connected\n", "{said}");
        daemon.metric_reaches("smtpwatch_flows", &[], 1.0, FINDING)?;
        // The cgroup is removed before the finding is made: the socket keeps its cgroup id, which has no path then.
        std::fs::write(service.root.join("cgroup.procs"), client.0.id().to_string())?;
        service.remove()?;
        client.0.stdin.take().context("a pipe")?.write_all(b"go\n")?;

        let found = daemon.finding("auth-plaintext", FINDING, |_| true)?;
        check(&found, &[("/sender/uid", json!(UID)), ("/sender/unit", json!(UNIT)), ("/role", json!("client"))])?;
        ensure!(text(&found, "/sender/cgroup")?.ends_with(&format!(".slice/{UNIT}")), "{found}");
        let store = home.0.join("smtpwatch.db");
        let (store, id) = (store.to_str().context("a path in UTF-8")?, text(&found, "/id")?);
        let shown = daemon::smtpwatch(&["incidents", "show", id, "--store", store, "--format", "text"])?;
        ensure!(shown.contains(&format!("sender uid {UID}, {UNIT}\n")), "{shown}");
        let exported = |form| daemon::smtpwatch(&["incidents", "export", id, "--store", store, "--format", form]);
        let ecs: Value = serde_json::from_str(exported("ecs")?.lines().next().context("a document")?)?;
        ensure!(ecs["user"]["id"] == "33" && ecs["service"]["name"] == UNIT, "{ecs}");
        let letter = exported("text")?;
        ensure!(!letter.contains(UNIT), "what is inside goes outside: {letter}");
        Ok(())
    });
}
