//! Style sheet, script and icon, embedded in the program. Their addresses change with their content, so that browsers
//! can cache them.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use smtpwatch_core::hash;

pub(super) static STYLE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("style.css", "text/css; charset=utf-8", include_str!("assets/style.css")));
pub(super) static LIVE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("live.js", "text/javascript; charset=utf-8", include_str!("assets/live.js")));
pub(super) static ICON: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")));

/// Number of hash digits in an address.
const DIGITS: usize = 12;

/// An embedded file.
pub(super) struct Asset {
    /// The path of the file, with its hash.
    pub(super) address: String,
    media: &'static str,
    content: &'static str,
}

impl Asset {
    fn new(name: &str, media: &'static str, content: &'static str) -> Self {
        let hash = hash::sha256(content.as_bytes());
        Self { address: format!("/assets/{}-{name}", hash.get(..DIGITS).unwrap_or(&hash)), media, content }
    }
}

/// The file at an address below `/assets/`.
pub(super) fn find(name: &str) -> Option<&'static Asset> {
    let all = [&*STYLE, &*LIVE, &*ICON];
    all.into_iter().find(|asset| asset.address.strip_prefix("/assets/") == Some(name))
}

impl IntoResponse for &'static Asset {
    fn into_response(self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.media)),
            (header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=31536000, immutable")),
        ];
        (headers, self.content).into_response()
    }
}
