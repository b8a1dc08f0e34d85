//! The name under which a client addresses this server: middleware that checks the Host field of each request.

use axum::{
    extract::Request,
    http::{HeaderValue, StatusCode, Version, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Refuses a request whose Host is not this machine, for a server on loopback without a login. With DNS rebinding, a
/// foreign web page makes a browser on this machine send requests here under the page's own name. A login protects from
/// this anyway.
pub(super) async fn only_local(request: Request, next: Next) -> Response {
    if is_local(&request) {
        return next.run(request).await;
    }
    let why = "without a login these pages answer to localhost and loopback addresses only: use http://localhost\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

/// Refuses a request without an unambiguous host (RFC 9112, section 3.2): more than one Host field, none in HTTP/1.1,
/// or an invalid value. A proxy and this server might otherwise interpret the host differently.
pub(super) async fn one_host(request: Request, next: Next) -> Response {
    if has_one_host(&request) {
        return next.run(request).await;
    }
    let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
    (StatusCode::BAD_REQUEST, close, "a request needs exactly one valid Host header\n").into_response()
}

fn has_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        // HTTP/1.0 does not require a Host field.
        (None, _) => request.version() < Version::HTTP_11,
        // An empty Host is valid: the target has no authority.
        (Some(host), None) => host.is_empty() || is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    }
}

/// `uri-host [ ":" port ]` (RFC 9110, section 7.2): an authority without user information.
fn is_host(value: &[u8]) -> bool {
    !value.contains(&b'@') && Authority::try_from(value).is_ok()
}

fn is_local(request: &Request) -> bool {
    // RFC 9112, section 3.2.2: the host of the request line takes precedence over the header.
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
    fn one_valid_host() {
        for (version, hosts, expected) in [
            (Version::HTTP_11, &["localhost"][..], true),
            (Version::HTTP_11, &["[::1]:19587"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_11, &["localhost", "localhost"], false),
            (Version::HTTP_10, &["localhost", "evil.example"], false),
            (Version::HTTP_11, &["localhost, evil.example"], false),
            (Version::HTTP_11, &["user@localhost"], false),
            (Version::HTTP_11, &["local host"], false),
            (Version::HTTP_11, &["localhost/path"], false),
        ] {
            let mut request = Request::builder().version(version);
            for host in hosts {
                request = request.header(header::HOST, *host);
            }
            assert_eq!(has_one_host(&request.body(Body::empty()).unwrap()), expected, "{version:?} {hosts:?}");
        }
    }

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
