//! The listen address of `--web.listen-address`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// The default listen address: loopback only.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:19587";

/// `--web.listen-address`: `address:port`, `[address]:port`, or `:port` for every address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = match text.strip_prefix(':') {
            Some(port) => port.parse().map(|port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)).ok(),
            None => text.parse().ok(),
        };
        address.map(Self).ok_or_else(|| "expected address:port, such as 127.0.0.1:19587, or :19587".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        for (text, expected) in [
            ("127.0.0.1:19587", Some("127.0.0.1:19587")),
            ("[::1]:1", Some("[::1]:1")),
            (":9000", Some("[::]:9000")),
            ("localhost:1", None),
            ("127.0.0.1", None),
            (":99999", None),
        ] {
            let address = text.parse::<ListenAddress>().ok().map(|address| address.0.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }
}
