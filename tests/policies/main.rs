//! TLS reports (RFC 8460) tested with third-party programs: a parser, a mail server, a web server, a name server, all
//! on loopback.

mod dns;
mod https;
mod mail;
mod reports;
