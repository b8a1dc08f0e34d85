//! The pages, over a real connection.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use smtpwatch::output::{
    desk::{Desk, Live},
    http::{Health, Watch, serve},
    metrics::Metrics,
    pages,
};

/// A server on `address`; stopped when the runtime is dropped.
fn start(address: &str, health: Arc<Health>) -> (tokio::runtime::Runtime, SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
    let address = listener.local_addr().unwrap();
    let metrics = Arc::new(Metrics::new(&[25]).unwrap());
    let desk = Arc::new(Desk::new("/nonexistent".into(), metrics.clone(), health.clone(), Live::new()));
    runtime.spawn(serve(listener, metrics, health, pages::router(desk), std::future::pending()));
    (runtime, address)
}

fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", address.port())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn health_is_told_with_reasons() {
    let health = Arc::new(Health::default());
    let (_runtime, address) = start("127.0.0.1:0", health.clone());
    let (status, head, body) = get(address, "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("\nsmtpwatch_flows 0\n"));
    assert_eq!(get(address, "/-/healthy").0, 200);
    let (status, _, body) = get(address, "/-/ready");
    assert_eq!(status, 503);
    let reasons: Vec<String> = serde_json::from_str(&body).unwrap();
    assert_eq!(reasons, ["the pipeline has not started", "nothing is attached"]);
    health.beat();
    health.set(Watch { attached: vec!["eth<0> egress tcx".to_owned()], missing: Vec::new() });
    let (status, _, body) = get(address, "/-/ready");
    assert_eq!((status, body.as_str()), (200, "[]"));
    let (status, _, page) = get(address, "/");
    assert_eq!(status, 200);
    assert!(page.contains("eth&lt;0&gt; egress tcx") && page.contains("Watching."), "{page}");
    assert_eq!(get(address, "/nothing").0, 404);
}

#[test]
fn off_loopback_there_are_metrics_and_health_only() {
    let (_runtime, address) = start("0.0.0.0:0", Arc::new(Health::default()));
    for (path, status) in [("/metrics", 200), ("/-/healthy", 200), ("/-/ready", 503), ("/", 404)] {
        assert_eq!(get(address, path).0, status, "{path}");
    }
}
