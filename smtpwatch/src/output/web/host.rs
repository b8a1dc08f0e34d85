//! Which name the client has for this server.

use axum::{
    extract::Request,
    http::{StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Refuses a request that names another host than this one. A page from elsewhere whose name is made to point at loopback
/// (DNS rebinding) has a browser on this host ask with that name; who has to log in is safe from that anyway.
pub(super) async fn only_local(request: Request, next: Next) -> Response {
    if is_local(&request) {
        return next.run(request).await;
    }
    let why = "without a login these pages answer to localhost and loopback addresses only: use http://localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

fn is_local(request: &Request) -> bool {
    // RFC 9112, section 3.2.2: the host of the request line counts before that of the header.
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => request.headers().get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok()),
    };
    host.is_some_and(|host| is_loopback(host.host()))
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn hosts() {
        for (uri, host, expected) in [
            ("/", Some("localhost"), true),
            ("/", Some("LocalHost:19587"), true),
            ("/", Some("127.0.0.1:8080"), true),
            ("/", Some("127.1.2.3"), true),
            ("/", Some("[::1]:19587"), true),
            ("/", Some("[::ffff:127.0.0.1]"), true),
            ("http://evil.example/", Some("localhost"), false),
            ("/", Some("evil.example"), false),
            ("/", Some("localhost.evil.example"), false),
            ("/", Some("127.0.0.1.evil.example"), false),
            ("/", Some("192.0.2.1"), false),
            ("/", Some("localhost, evil.example"), false),
            ("/", Some(""), false),
            ("/", None, false),
        ] {
            let mut request = Request::builder().uri(uri);
            if let Some(host) = host {
                request = request.header(header::HOST, host);
            }
            assert_eq!(is_local(&request.body(Body::empty()).unwrap()), expected, "{uri} {host:?}");
        }
    }
}
