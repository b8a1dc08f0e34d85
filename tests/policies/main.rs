//! TLS reports (RFC 8460) and the world around them: somebody else's parser, a mail server, a web server, a name
//! server. All on the loopback.

mod dns;
mod https;
mod mail;
mod reports;
