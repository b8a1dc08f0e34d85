//! The HTTP server over real connections: what it serves at which address.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, ServerName},
};
use smtpwatch::output::metrics::Metrics;
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    pages,
    server::{CaptureStatus, ConfigFile, Health, serve},
};

/// Time limit for a file change to be detected: files are checked every second.
const SEEN: Duration = Duration::from_secs(10);

/// A running server; dropping it stops it.
pub(crate) struct Server {
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) address: SocketAddr,
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Server {
    pub(crate) fn start(address: &str, health: Arc<Health>, web: Option<ConfigFile>) -> Self {
        // Its threads log to the subscriber of this thread.
        let log = tracing::dispatcher::get_default(Clone::clone);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(move || std::mem::forget(tracing::dispatcher::set_default(&log)))
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new(&[25]).unwrap().web;
        let app = Arc::new(AppState::new("/nonexistent".into(), metrics.clone(), health.clone(), EventBus::new()));
        let guarded = pages::router(app.clone()).merge(api::router(app));
        runtime.spawn(serve(listener, metrics, health, guarded, web, std::future::pending()));
        Self { runtime, address }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.address.port())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        request(self.connect(), path, "Host: localhost\r\n").unwrap()
    }

    /// Requests `path` over TLS with a login.
    fn log_in(&self, trust: &[u8], path: &str, login: &str) -> std::io::Result<Answer> {
        let headers = format!("Host: mail.example\r\n{}", basic(login));
        request(tls(client(trust), self.connect()), path, &headers)
    }
}

/// The Authorization header of a login.
pub(crate) fn basic(login: &str) -> String {
    format!("Authorization: Basic {}\r\n", BASE64_STANDARD.encode(login))
}

pub(crate) fn tls(client: Arc<ClientConfig>, stream: TcpStream) -> impl Read + Write {
    let name = ServerName::try_from("mail.example").unwrap();
    StreamOwned::new(ClientConnection::new(client, name).unwrap(), stream)
}

pub(crate) fn request(mut stream: impl Read + Write, path: &str, headers: &str) -> std::io::Result<Answer> {
    write!(stream, "GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer)
        && answer.is_empty()
    {
        return Err(error);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() })
}

pub(crate) fn client(trust: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trust.to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

/// A web configuration file, with the certificate that it names.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The certificate that clients trust.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(["mail.example".to_owned()]).unwrap();
        replace(&self.path("cert.pem"), &made.cert.pem());
        replace(&self.path("key.pem"), &made.signing_key.serialize_pem());
        made.cert.der().to_vec()
    }

    pub(crate) fn users(&self, users: &[(&str, &str)], further: &str) -> PathBuf {
        let path = self.path("web.yml");
        let users: String = users.iter().map(|(name, password)| format!("  {name}: {}\n", hash(password))).collect();
        let users = if users.is_empty() { users } else { format!("basic_auth_users:\n{users}") };
        replace(&path, &format!("{users}{further}"));
        path
    }
}

pub(crate) const TLS: &str = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n";

/// A hash with the lowest cost, so that tests do not wait.
pub(crate) fn hash(password: &str) -> String {
    bcrypt::hash(password, 4).unwrap()
}

/// Replaces the file atomically, as administrators do.
pub(crate) fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SEEN;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        // Each failed check is a failed login, and ten of them are allowed.
        std::thread::sleep(Duration::from_millis(1_500));
    }
}

#[test]
fn health_is_told_with_reasons() {
    let health = Arc::new(Health::default());
    let server = Server::start("127.0.0.1:0", health.clone(), None);
    let metrics = server.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4"), "{metrics:?}");
    assert!(metrics.body.contains("\nsmtpwatch_flows 0\n"));
    assert_eq!(server.get("/-/healthy").status, 200);
    let ready = server.get("/-/ready");
    assert_eq!(ready.status, 503);
    let reasons: Vec<String> = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(reasons, ["the pipeline has not started", "nothing is attached"]);
    health.heartbeat();
    health.set(CaptureStatus { attached: vec!["eth<0> egress tcx".to_owned()], ..CaptureStatus::default() });
    let ready = server.get("/-/ready");
    assert_eq!((ready.status, ready.body.as_str()), (200, "[]"));
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert!(page.body.contains("eth&lt;0&gt; egress tcx") && page.body.contains("<strong>Watching</strong>"));
    assert!(page.head.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{page:?}");
    for header in ["x-content-type-options: nosniff", "x-frame-options: deny", "referrer-policy: no-referrer"] {
        assert!(page.head.contains(header), "{header}: {page:?}");
    }
    assert_eq!(server.get("/nothing").status, 404);
}

#[test]
fn off_loopback_there_are_metrics_and_health_only() {
    let (only_users, files) = (Files::new(), Files::new());
    let password = ConfigFile::load(&only_users.users(&[("anna", "right")], "")).unwrap();
    drop(files.certificate());
    let tls = ConfigFile::load(&files.users(&[], TLS)).unwrap();
    let open = Server::start("0.0.0.0:0", Arc::new(Health::default()), None);
    for (path, status) in [("/metrics", 200), ("/-/healthy", 200), ("/-/ready", 503), ("/", 404)] {
        assert_eq!(open.get(path).status, status, "{path}");
    }
    // A password that an attacker on the path can read gives no access.
    let server = Server::start("0.0.0.0:0", Arc::new(Health::default()), Some(password));
    let login = format!("Host: x\r\n{}", basic("anna:right"));
    assert_eq!(request(server.connect(), "/metrics", &login).unwrap().status, 200);
    assert_eq!(request(server.connect(), "/", &login).unwrap().status, 404);
    assert_eq!(request(server.connect(), "/metrics", "Host: x\r\n").unwrap().status, 401);
    // A client without TLS on a TLS port gets an answer, also when its request arrives in pieces.
    let server = Server::start("0.0.0.0:0", Arc::new(Health::default()), Some(tls));
    assert_eq!(server.get("/").status, 400);
    let mut slow = server.connect();
    slow.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).unwrap();
    slow.write_all(b"Host: localhost\r\n\r\n").unwrap();
    slow.write_all(b"and more").expect("a connection that was reset");
    let mut rest = String::new();
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    slow.read_to_string(&mut rest).expect("the rest of the answer");
    assert!(answer == *b"HTTP/1.1 400" && rest.ends_with("use https://\n"), "{rest}");
}

#[test]
fn a_name_that_was_made_to_point_here_opens_nothing() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    for (host, status) in [("localhost:19587", 200), ("[::1]", 200), ("rebound.example", 421), ("", 421)] {
        let headers = format!("Host: {host}\r\n");
        assert_eq!(request(server.connect(), "/", &headers).unwrap().status, status, "{host}");
        assert_eq!(request(server.connect(), "/-/healthy", &headers).unwrap().status, 200, "{host}");
    }
}

#[test]
fn with_tls_and_a_password_the_pages_are_open_and_files_are_read_again() {
    let files = Files::new();
    let first = files.certificate();
    let path = files.users(&[("anna", "right")], TLS);
    let server = Server::start("0.0.0.0:0", Arc::new(Health::default()), Some(ConfigFile::load(&path).unwrap()));
    let status = |trust: &[u8], login: &str| server.log_in(trust, "/", login).ok().map(|answer| answer.status);
    assert_eq!(status(&first, "anna:right"), Some(200));
    assert_eq!((status(&first, "anna:wrong"), status(&first, "berta:right")), (Some(401), Some(401)));
    let refused = server.log_in(&first, "/metrics", "anna:").unwrap();
    assert!(
        refused.status == 401 && refused.head.contains("www-authenticate: basic realm=\"smtpwatch\""),
        "{refused:?}"
    );

    files.users(&[("berta", "new")], TLS);
    eventually("the new user", || status(&first, "berta:new") == Some(200));
    assert_eq!(status(&first, "anna:right"), Some(401), "a login that was remembered");

    let second = files.certificate();
    eventually("the new certificate", || status(&second, "berta:new") == Some(200));
    assert_eq!(status(&first, "berta:new"), None, "the old certificate");

    // The previous configuration stays in effect while the new one is invalid.
    replace(&path, "basic_auth_users:\n  berta: new\n");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(status(&second, "berta:new"), Some(200));
    let metrics = server.log_in(&second, "/metrics", "berta:new").unwrap().body;
    assert!(metrics.contains("\nsmtpwatch_web_config_reload_failures_total 1\n"), "{metrics}");

    // An empty file and the first half of a valid one are invalid too: they would remove the login.
    for (failures, text) in [(2, ""), (3, TLS)] {
        replace(&path, text);
        let line = format!("\nsmtpwatch_web_config_reload_failures_total {failures}\n");
        eventually("the bad file is counted", || {
            server.log_in(&second, "/metrics", "berta:new").unwrap().body.contains(&line)
        });
        assert_eq!(server.log_in(&second, "/metrics", "berta:").unwrap().status, 401);
    }
}

#[test]
fn guesses_are_slowed_down_and_secrets_are_in_no_log() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone()).finish(),
    );
    let files = Files::new();
    let trust = files.certificate();
    let path = files.users(&[("anna", "right")], TLS);
    let config = ConfigFile::load(&path).unwrap();
    let server = Server::start("0.0.0.0:0", Arc::new(Health::default()), Some(config));
    let answers: Vec<Answer> =
        (0..15).map(|n| server.log_in(&trust, "/", &format!("anna:canary-guess-{n}")).unwrap()).collect();
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert!(count(401) == 10 && count(429) == 5, "{answers:?}");
    assert!(answers.last().unwrap().head.contains("retry-after: "), "{answers:?}");
    // Not even the right password is checked while the limit is reached: otherwise the guessing could continue.
    assert_eq!(server.log_in(&trust, "/", "anna:right").unwrap().status, 429);
    for bad in ["anna: plain-canary\n", "anna: $2y$99$canary\n", "anna: [canary]\n"] {
        replace(&path, &format!("basic_auth_users:\n  {bad}"));
        let error = ConfigFile::load(&path).err().unwrap().to_string();
        assert!(error.contains("web.yml:2: ") && !error.contains("canary"), "{error}");
    }
    let log = log.text();
    assert!(log.contains("a login failed") && log.contains("127.0.0.1"), "{log}");
    assert!(!log.contains("canary"), "{log}");
}

#[test]
fn a_slow_client_is_given_up() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    let mut stream = server.connect();
    write!(stream, "GET / HTTP/1.1\r\nHost: loc").unwrap();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(began.elapsed() < Duration::from_secs(25), "it is still open");
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn mistakes_in_the_file_name_key_line_and_remedy() {
    let files = Files::new();
    drop(files.certificate());
    let path = files.path("web.yml");
    for (text, expected) in [
        ("basic_auth_user: {}\n", "web.yml:1: unknown key \"basic_auth_user\": known keys are"),
        (
            "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  cipher_suites: []\n",
            "web.yml:4: cipher_suites: the exporter-toolkit has this, smtpwatch has not",
        ),
        ("tls_server_config:\n  cert_file: nothing.pem\n  key_file: key.pem\n", "nothing.pem"),
        (
            "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n  min_version: TLS10\n",
            "web.yml:4: min_version: expected TLS12 or TLS13",
        ),
        ("auth_excluded_paths: [\"/api\"]\n", "web.yml:1: auth_excluded_paths: only these can be"),
        ("rate_limit:\n  interval: 1y\n  burst: 3\n", "rate_limit: expected an interval"),
        ("a: b: c\n", "web.yml:1: "),
    ] {
        replace(&path, text);
        let error = ConfigFile::load(&path).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let path = files.users(&[], "");
    // The daemon does not start with an invalid file, and checks it before anything that needs a privilege.
    for verb in ["check-config", "run"] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_smtpwatch"))
            .args([verb, "--web.config.file"])
            .arg(files.path("absent.yml"))
            .output()
            .unwrap();
        assert_eq!(out.status.code(), Some(78), "{verb}: {out:?}");
    }
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_smtpwatch"))
        .args(["check-config", "--web.config.file"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("web.yml: good"), "{out:?}");
}

/// Collects log output.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
