//! Who is let in by which means, and what a connection may use up.

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
use smtpwatch::output::web::{ConfigFile, Health};

use crate::web::{Files, Server, TLS, basic, client, hash, replace, request, tls};

/// Connections that are open at once.
const CONNECTIONS: usize = 256;
/// `rate_limit`, too little for a second request within a test.
const ONE_REQUEST: &str = "rate_limit: {interval: 1h, burst: 1}\n";

fn serve(address: &str, file: &std::path::Path) -> Server {
    Server::start(address, Arc::new(Health::default()), Some(ConfigFile::load(file).unwrap()))
}

/// A connection from another address of this host.
fn connect_from(server: &Server, address: &str) -> TcpStream {
    let (from, to) =
        (SocketAddr::new(address.parse().unwrap(), 0), SocketAddr::from(([127, 0, 0, 1], server.address.port())));
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
fn who_guesses_shuts_out_nobody_else() {
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
    // With a login, the name by which it is asked does not matter.
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
    let (mut text, mut octets) = (String::new(), [0; 4096]);
    // Later than a connection without a request may live.
    while !text.contains("nothing happened") {
        let count = listener.read(&mut octets).unwrap();
        assert!(count > 0, "it was cut off: {text}");
        text.push_str(std::str::from_utf8(&octets[..count]).unwrap());
    }
    replace(&path, &format!("basic_auth_users:\n  berta: {}\n", hash("new")));
    let replaced = Instant::now();
    let _ = listener.read_to_string(&mut text);
    assert!(replaced.elapsed() < Duration::from_secs(12), "one who may not listen any more still does");
}

#[test]
fn requests_and_connections_have_bounds() {
    let server = Server::start("127.0.0.1:0", Arc::new(Health::default()), None);
    let body = request(server.connect(), "/metrics", "Host: x\r\nContent-Length: 1000000\r\n").unwrap();
    assert_eq!(body.status, 413, "{body:?}");
    let long = format!("Host: x\r\nX-Long: {}\r\n", "x".repeat(64 * 1024));
    assert!(request(server.connect(), "/metrics", &long).map_or(true, |answer| answer.status == 431));

    let open: Vec<_> = (0..CONNECTIONS).map(|_| server.connect()).collect();
    assert!(request(server.connect(), "/metrics", "Host: x\r\n").is_err(), "one too many");
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(10);
    let metrics = loop {
        match request(server.connect(), "/metrics", "Host: x\r\n") {
            Ok(answer) => break answer.body,
            Err(_) => assert!(Instant::now() < deadline, "no place is given back"),
        }
    };
    let refused = metrics.lines().find_map(|line| line.strip_prefix("smtpwatch_web_connections_refused_total "));
    assert!(refused.unwrap().parse::<u32>().unwrap() > 0, "{metrics}");
}
