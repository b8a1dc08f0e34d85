//! TLS reports (RFC 8460) with foreign programs: another project's parser, a mail server, a web server, a name
//! server, all on loopback.

mod dns;
mod https;
mod mail;
mod reports;
