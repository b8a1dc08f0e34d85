//! Live events of the API. One thread runs server and listener, so events sent without a pause are all sent before
//! either proceeds.

use std::{sync::Arc, time::Duration};

use smtpwatch::output::metrics::Metrics;
use smtpwatch_core::Finding;
use smtpwatch_store::StoredAs;
use smtpwatch_web::{
    api,
    app_state::{AppState, EventBus},
    server::Health,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::incidents::{credential, later};

/// Maximum number of listeners served at once.
const LISTENERS: usize = 32;
/// More events than the buffer of a listener holds.
const TOO_MANY: usize = 300;

/// Runs `test` with a running server.
fn with_server<F: Future<Output = ()>>(test: impl FnOnce(EventBus, std::net::SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, events) = (listener.local_addr().unwrap(), EventBus::new());
        let metrics = Metrics::new(&[25]).unwrap().web;
        let app = AppState::new("/nonexistent".into(), metrics, Arc::new(Health::default()), events.clone());
        let server = tokio::spawn(async move { axum::serve(listener, api::router(Arc::new(app))).await });
        tokio::time::timeout(Duration::from_secs(60), test(events, address)).await.unwrap();
        server.abort();
    });
}

/// An open connection, and the bytes received on it.
struct Listener {
    stream: TcpStream,
    text: String,
}

impl Listener {
    async fn open(address: std::net::SocketAddr, headers: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /api/v1/events HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut listener = Self { stream, text: String::new() };
        listener.until("\r\n\r\n").await;
        listener
    }

    async fn until(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.text.contains(text) {
            let count = self.stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "{text:?} did not come: {}", self.text);
            self.text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
    }
}

fn publish(events: &EventBus, finding: &Finding) {
    let stored = StoredAs { incident: "an-incident".to_owned(), findings: 7, addresses: 1, is_announced: true };
    events.publish(finding, &stored);
}

#[test]
fn a_finding_is_sent_to_every_listener() {
    let finding = later(&credential(), "198.51.100.25:587", 0);
    with_server(async |events, address| {
        let mut listeners = [Listener::open(address, "").await, Listener::open(address, "").await];
        publish(&events, &finding);
        for listener in &mut listeners {
            listener.until("\n\n").await;
            let text = &listener.text;
            assert!(text.starts_with("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"), "{text}");
            assert!(text.contains("cache-control: no-store\r\n"), "{text}");
            let event: Vec<_> = text.lines().filter_map(|line| line.split_once(": ")).collect();
            assert!(event.contains(&("event", "finding")) && event.contains(&("id", &finding.id)), "{text}");
            let data = event.iter().find(|(name, _)| *name == "data").unwrap().1;
            let data: serde_json::Value = serde_json::from_str(data).unwrap();
            assert_eq!((&data["finding"], &data["incident"]), (&finding.id.clone().into(), &"an-incident".into()));
            assert_eq!((&data["findings"], &data["kind"]), (&7.into(), &"auth-plaintext".into()));
            assert!(!text.contains("lagged"), "{text}");
        }
    });
}

#[test]
fn a_lagging_listener_is_notified() {
    let finding = later(&credential(), "198.51.100.25:587", 0);
    with_server(async |events, address| {
        let mut slow = Listener::open(address, "").await;
        (0..TOO_MANY).for_each(|_| publish(&events, &finding));
        slow.until("event: lagged").await;
        slow.until("event: finding").await;
        assert_eq!(slow.text.matches("event: lagged").count(), 1, "{}", slow.text);
        let mut again = Listener::open(address, &format!("Last-Event-ID: {}\r\n", finding.id)).await;
        again.until("event: lagged").await;
    });
}

#[test]
fn listeners_are_bounded_and_places_are_given_back() {
    with_server(async |_, address| {
        let mut listeners = Vec::new();
        for _ in 0..LISTENERS {
            listeners.push(Listener::open(address, "").await);
        }
        let refused = Listener::open(address, "").await.text;
        assert!(refused.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{refused}");
        assert!(refused.contains("retry-after: 30\r\n") && refused.contains("application/problem+json"), "{refused}");
        listeners.pop();
        // The server detects the end of the connection at its next write.
        loop {
            if Listener::open(address, "").await.text.starts_with("HTTP/1.1 200") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
