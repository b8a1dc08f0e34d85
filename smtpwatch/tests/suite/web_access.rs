//! Logins and client certificates, and the bounds of a connection.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use smtpwatch_web::server::{ConfigFile, Health};

use crate::web::{Files, Server, TLS, basic, client, hash, replace, request, tls};

/// `rate_limit` that is too low for a second request within a test.
const ONE_REQUEST: &str = "rate_limit: {interval: 1h, burst: 1}\n";

fn serve(address: &str, file: &std::path::Path) -> Server {
    Server::start(address, Arc::new(Health::default()), Some(ConfigFile::load(file).unwrap()))
}

/// A connection from another loopback address of this host.
fn connect_from(server: &Server, address: &str) -> TcpStream {
    connect_between(server, address, "127.0.0.1")
}

fn connect_between(server: &Server, from: &str, to: &str) -> TcpStream {
    let (from, to) =
        (SocketAddr::new(from.parse().unwrap(), 0), SocketAddr::new(to.parse().unwrap(), server.address.port()));
    let stream = server.runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(from).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

#[test]
fn guessing_does_not_lock_out_others() {
    let files = Files::new();
    let trust = client(&files.certificate());
    let server = serve("0.0.0.0:0", &files.users(&[("anna", "right")], TLS));
    let status = |from: &str, login: &str| {
        let headers = format!("Host: mail.example\r\n{}", basic(login));
        request(tls(trust.clone(), connect_from(&server, from)), "/", &headers).unwrap().status
    };
    assert_eq!(status("127.0.0.3", "anna:right"), 200);
    assert_eq!((0..12).filter(|_| status("127.0.0.2", "anna:wrong") == 401).count(), 10);
    assert_eq!(status("127.0.0.2", "anna:right"), 429);
    assert_eq!((status("127.0.0.3", "anna:right"), status("127.0.0.4", "anna:right")), (200, 200));
}

#[test]
fn a_client_certificate_opens_the_pages() {
    let files = Files::new();
    let trust = files.certificate();
    let authority = || {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (ours, other) = (authority(), authority());
    replace(&files.path("ca.pem"), &ours.pem());
    let wanted = format!("{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n");
    let server = serve("0.0.0.0:0", &files.users(&[], &wanted));

    let signed_by = |authority: &CertifiedIssuer<'_, KeyPair>| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new([]).unwrap().signed_by(&key, authority).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(trust.clone())).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            );
        Arc::new(client.unwrap())
    };
    let status = |client| request(tls(client, server.connect()), "/", "Host: x\r\n").ok().map(|answer| answer.status);
    assert_eq!(status(signed_by(&ours)), Some(200));
    assert_eq!((status(signed_by(&other)), status(client(&trust))), (None, None));
}

#[test]
fn probes_can_be_let_in_without_a_login() {
    let files = Files::new();
    let path = files.users(&[("anna", "right")], "auth_excluded_paths: [/-/healthy]\n");
    let server = serve("127.0.0.1:0", &path);
    let paths = ["/-/healthy", "/-/healthy/", "/-//healthy", "/-/ready", "/metrics", "/", "/api/v1/status", "/nothing"];
    let open: Vec<_> = paths.into_iter().filter(|path| server.get(path).status != 401).collect();
    assert_eq!(open, ["/-/healthy"]);
    // With a login, the host name of the request does not matter.
    let headers = format!("Host: mail.example\r\n{}", basic("anna:right"));
    assert_eq!(request(server.connect(), "/", &headers).unwrap().status, 200);
}

#[test]
fn headers_and_rate_of_the_file() {
    let files = Files::new();
    let headers =
        "http_server_config: {headers: {X-Frame-Options: sameorigin, Strict-Transport-Security: max-age=9}}\n";
    let server = serve("127.0.0.1:0", &files.users(&[], &format!("{headers}{ONE_REQUEST}")));
    let first = server.get("/metrics");
    assert_eq!(first.status, 200);
    for header in ["x-frame-options: sameorigin", "strict-transport-security: max-age=9", "cache-control: no-store"] {
        assert!(first.head.contains(header), "{header}: {first:?}");
    }
    let second = server.get("/metrics");
    assert!(second.status == 429 && second.head.contains("retry-after: 3"), "{second:?}");
}

#[test]
fn sections_may_be_empty() {
    let files = Files::new();
    let path = files.path("web.yml");
    for text in
        ["", "# nothing yet\n", "{}\n", "basic_auth_users:\n", "http_server_config:\n", "auth_excluded_paths:\n"]
    {
        replace(&path, text);
        assert_eq!(ConfigFile::load(&path).err().map(|error| error.to_string()), None, "{text:?}");
    }
}

#[test]
fn who_listens_is_cut_off_by_a_new_file_only() {
    let files = Files::new();
    let path = files.users(&[("anna", "right")], "");
    let server = serve("127.0.0.1:0", &path);
    let mut listener = server.connect();
    write!(listener, "GET /api/v1/events HTTP/1.1\r\nHost: x\r\n{}\r\n", basic("anna:right")).unwrap();
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    // Later than the time limit of a connection without a request.
    while !text.contains("no events") {
        let count = listener.read(&mut bytes).unwrap();
        assert!(count > 0, "it was cut off: {text}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    replace(&path, &format!("basic_auth_users:\n  berta: {}\n", hash("new")));
    let replaced = Instant::now();
    let _ = listener.read_to_string(&mut text);
    assert!(replaced.elapsed() < Duration::from_secs(12), "one who may not listen any more still does");
}

/// Status of a request whose head has this many bytes.
fn head_of(server: &Server, bytes: usize) -> u16 {
    let frame = "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: \r\nConnection: close\r\n\r\n".len();
    let headers = format!("Host: x\r\nX-Long: {}\r\n", "x".repeat(bytes - frame));
    request(server.connect(), "/metrics", &headers).unwrap().status
}

#[test]
fn requests_have_the_bounds_that_the_manual_names() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    let body = request(server.connect(), "/metrics", "Host: x\r\nContent-Length: 1000000\r\n").unwrap();
    assert_eq!(body.status, 413, "{body:?}");
    let manual = include_str!("../../../docs/web.md");
    assert!(manual.contains("32,768 bytes") && manual.contains("100 header fields"));
    assert_eq!((head_of(&server, 32_768), head_of(&server, 32_769)), (200, 431));
    // Host and Connection are two of them.
    let fields = |count: usize| {
        let headers: String = (2..count).map(|n| format!("X-{n}: x\r\n")).collect();
        request(server.connect(), "/metrics", &format!("Host: x\r\n{headers}")).unwrap().status
    };
    assert_eq!((fields(100), fields(101)), (200, 431));
    // The size limit applies to a head that arrives in pieces too.
    let mut pieces = server.connect();
    write!(pieces, "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Long: ").unwrap();
    let mut answer = [0; 12];
    for _ in 0..40 {
        // The server may have answered and closed before the last piece.
        let _ = pieces.write_all(&[b'x'; 1000]);
    }
    assert!(pieces.read_exact(&mut answer).is_err() || answer == *b"HTTP/1.1 431");
}

#[test]
fn a_request_has_one_host() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    for path in ["/", "/metrics", "/-/healthy", "/api/v1/status", "/nothing"] {
        for headers in
            ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nhost: evil.example\r\n", "Host: a b\r\n"]
        {
            let answer = request(server.connect(), path, headers).unwrap();
            assert!(
                answer.status == 400 && answer.head.contains("connection: close"),
                "{path} {headers:?}: {answer:?}"
            );
        }
    }
    for (path, status) in [("/", 421), ("/metrics", 200), ("/-/healthy", 200), ("/api/v1/status", 421)] {
        assert_eq!(request(server.connect(), path, "Host: evil.example\r\n").unwrap().status, status, "{path}");
    }
    let mut old = server.connect();
    write!(old, "GET /-/healthy HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    old.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

/// Idle connections of each kind: without a request, with half a head, after an answer.
fn idle(streams: impl Iterator<Item = TcpStream>) -> Vec<TcpStream> {
    streams
        .enumerate()
        .map(|(number, mut stream)| {
            match number % 3 {
                0 => {}
                1 => write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: x").unwrap(),
                _ => {
                    write!(stream, "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                    // Wait for the answer: afterwards the connection is idle.
                    stream.read_exact(&mut [0; 12]).unwrap();
                }
            }
            stream
        })
        .collect()
}

fn counted(metrics: &str, series: &str) -> u32 {
    metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap()
}

#[test]
fn idle_connections_do_not_shut_out_scrapes_and_health() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    let open = idle((0..320).map(|_| server.connect()));
    for _ in 0..5 {
        assert_eq!((server.get("/metrics").status, server.get("/-/healthy").status), (200, 200));
    }
    let metrics = server.get("/metrics").body;
    assert!(counted(&metrics, "smtpwatch_web_connections_closed_total{reason=\"idle_address\"}") >= 280, "{metrics}");
    assert_eq!(counted(&metrics, "smtpwatch_web_connections_refused_total"), 0);
    // The newest idle connections remain: here, one whose head is slow.
    let mut newest = open.into_iter().next_back().unwrap();
    write!(newest, "\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    newest.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("HTTP/1.1 200"), "{answer}");
}

/// Runs in a network namespace of its own, with the addresses 10.9.0.0/16 in addition to loopback; returns false if
/// this process may not create one.
fn in_own_network(run: impl FnOnce() + Send + 'static) -> bool {
    let thread = std::thread::spawn(|| {
        if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
            return false;
        }
        for arguments in ["link set lo up", "route add local 10.9.0.0/16 dev lo"] {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
        run();
        true
    });
    thread.join().unwrap()
}

#[test]
fn strangers_do_not_shut_out_a_scraper_of_another_host() {
    let made = in_own_network(|| {
        let server = Server::start("0.0.0.0:0", Arc::new(Health::default()), None);
        let connect = |from: &str| connect_between(&server, from, "10.9.0.1");
        let answered = |from: &str| {
            let paths = ["/metrics", "/-/healthy"];
            paths.map(|path| request(connect(from), path, "Host: x\r\n").unwrap().status) == [200, 200]
        };
        let all_answered = || answered("10.9.1.1") && answered("10.9.250.1") && server.get("/metrics").status == 200;
        let closed = |reason: &str| {
            let series = format!("smtpwatch_web_connections_closed_total{{reason=\"{reason}\"}}");
            counted(&server.get("/metrics").body, &series)
        };
        assert!(all_answered());
        let one_address = idle((0..150).map(|_| connect("10.9.2.1")));
        assert!(all_answered());
        assert!(closed("idle_address") >= 110);
        let one_network = idle((1..150).map(|host| connect(&format!("10.9.3.{host}"))));
        assert!(all_answered());
        assert!(closed("idle_network") >= 80);
        drop((one_address, one_network));
        let many_networks = idle((4..200).map(|network| connect(&format!("10.9.{network}.1"))));
        assert!(all_answered());
        assert!(closed("idle_full") > 0);
        assert_eq!(counted(&server.get("/metrics").body, "smtpwatch_web_connections_refused_total"), 0);
        drop(many_networks);

        // The rate limit of unknown clients applies to them alone.
        let files = Files::new();
        let server = serve("0.0.0.0:0", &files.users(&[], "rate_limit: {interval: 1h, burst: 2}\n"));
        let status =
            |from: &str| request(connect_between(&server, from, "10.9.0.1"), "/metrics", "Host: x\r\n").unwrap().status;
        assert_eq!(status("10.9.1.1"), 200);
        assert_eq!((status("10.9.2.1"), status("10.9.2.2")), (200, 429));
        assert_eq!((status("10.9.1.1"), server.get("/metrics").status), (200, 200));
    });
    if !made {
        eprintln!("skipped: a network namespace needs CAP_SYS_ADMIN");
    }
}

#[test]
fn a_remembered_login_is_not_locked_out_by_others() {
    let files = Files::new();
    let server = serve("127.0.0.1:0", &files.users(&[("anna", "right"), ("berta", "right")], ""));
    let status = |from: &str, login: &str| {
        let headers = format!("Host: x\r\n{}", basic(login));
        request(connect_from(&server, from), "/", &headers).unwrap().status
    };
    assert_eq!(status("127.0.0.2", "anna:right"), 200);
    // Another user at the same address, and many addresses: the whole budget of unknown clients is used up.
    assert_eq!((0..12).filter(|_| status("127.0.0.2", "berta:wrong") == 401).count(), 10);
    for n in 3..13 {
        (0..10).for_each(|_| assert_ne!(status(&format!("127.0.0.{n}"), "anna:wrong"), 200));
    }
    assert_eq!(status("127.0.0.2", "berta:right"), 429);
    assert_eq!(status("127.0.0.2", "anna:right"), 200);
    // The same when another client at that address guesses the password of this very user.
    assert_eq!((0..20).filter(|_| status("127.0.0.2", "anna:wrong") == 401).count(), 10);
    assert_eq!(status("127.0.0.2", "anna:right"), 200);
}
