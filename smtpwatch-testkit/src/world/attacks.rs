//! What a device on the path does to a session: one row for each attack of the catalogue that needs no published policy.

use smtpwatch_core::Role;

use super::scene::{OWN_EHLO, OWN_GREETING, OWN_OFFER, Scene, bye, delivered, envelope, handshake, listed, secure};
use crate::scenario::{Dialogue, client_hello, server_hello};

/// One attack.
pub struct Attack {
    /// Row of docs/threats.md.
    pub rule: &'static str,
    pub role: Role,
    pub port: u16,
    /// What the device does, for docs/truth.md.
    pub about: &'static str,
    /// One session under attack.
    pub play: fn(&mut Scene<'_>) -> Dialogue,
}

const fn attack(
    rule: &'static str,
    role: Role,
    port: u16,
    about: &'static str,
    play: fn(&mut Scene<'_>) -> Dialogue,
) -> Attack {
    Attack { rule, role, port, about, play }
}

use Role::{Client, Server};

/// The attack of most scenarios with many peers.
pub const STRIP: usize = 0;

/// Every attack. A session delivers its mail if the attack lets it.
#[rustfmt::skip]
pub const ATTACKS: &[Attack] = &[
    attack("A1", Client, 25, "STARTTLS deleted from the EHLO reply", |scene| scene.opportunistic(false)),
    attack("A2", Client, 25, "STARTTLS masked as XXXXXXXA", |scene| edited(scene, "STARTTLS", "XXXXXXXA")),
    attack("A3", Client, 25, "STARTTLS overwritten with X", |scene| edited(scene, "STARTTLS", "XXXXXXXX")),
    attack("A3", Client, 25, "one letter of STARTTLS changed", |scene| edited(scene, "STARTTLS", "STARTTLX")),
    attack("A4", Client, 25, "greeting and EHLO reply replaced", |scene| { let reply = listed("relay at your service", ["SIZE 1000"].into_iter()); delivered(scene.connect(0).s("220 relay ESMTP ready\r\n").c(OWN_EHLO).s(reply)) }),
    attack("A5", Client, 25, "STARTTLS moved to the first line", |scene| { let reply = scene.reply(scene.product(), false); let moved = reply.replacen(&scene.peer.name(), "STARTTLS", 1); delivered(scene.hello(&moved)) }),
    attack("A6", Client, 25, "an earlier line turned into the last one", |scene| { let reply = scene.reply(scene.product(), true); let cut = reply.find("250-STARTTLS").or_else(|| reply.find("250 STARTTLS")).expect("an offer"); let last = reply[..cut].rfind("250-").expect("a line"); delivered(scene.hello(&[&reply[..last], "250 ", &reply[last + 4..cut]].concat())) }),
    attack("A7", Client, 25, "STARTTLS written twice", |scene| { let reply = scene.reply(scene.product(), true).replacen("\r\n", "\r\n250-STARTTLS\r\n", 1); secure(scene.hello(&reply), scene.version(), 1) }),
    attack("A10", Client, 25, "AUTH PLAIN added to the reply, the offer kept", |scene| { let added = scene.reply(scene.product(), true).replacen("\r\n", "\r\n250-AUTH PLAIN LOGIN\r\n", 1); delivered(scene.hello(&added)) }),
    attack("B1", Client, 25, "EHLO refused, then HELO", |scene| { let greeting = scene.greeting(scene.product()); let bare = format!("250 {}\r\n", scene.peer.name()); delivered(scene.connect(0).s(greeting).c(OWN_EHLO).s("502 5.5.1 not implemented\r\n").c("HELO gw.example.org\r\n").s(bare)) }),
    attack("B2", Client, 25, "EHLO rewritten, which the server's reply quotes", |scene| { let greeting = scene.greeting(scene.product()); let bare = format!("250 {}\r\n", scene.peer.name()); delivered(scene.connect(0).s(greeting).c(OWN_EHLO).s("500 5.5.1 Command unrecognized: \"XXXX gw.example.org\"\r\n").c("HELO gw.example.org\r\n").s(bare)) }),
    attack("B3", Client, 25, "greeting masked, then HELO", |scene| { let bare = format!("250 {}\r\n", scene.peer.name()); delivered(scene.connect(0).s("220 ********************************\r\n").c("HELO gw.example.org\r\n").s(bare)) }),
    attack("C1", Client, 25, "STARTTLS answered with 454", |scene| refused(scene, "454 4.7.0 TLS not available\r\n")),
    attack("C2", Client, 25, "STARTTLS answered with 502", |scene| refused(scene, "502 5.5.1 not implemented\r\n")),
    attack("C3", Client, 25, "STARTTLS answered by an attack tool", |scene| { let talk = scene.offered(true).c("STARTTLS\r\n").s("200 STRIPTLS\r\n"); delivered(talk) }),
    attack("C4", Client, 25, "STARTTLS rewritten, which the server's reply quotes", |scene| refused(scene, "500 5.5.1 Command unrecognized: \"XXXXXXXX\"\r\n")),
    attack("C5", Client, 25, "the connection is cut after STARTTLS", |scene| scene.offered(true).c("STARTTLS\r\n").ack(smtpwatch_core::Side::Server).reset(smtpwatch_core::Side::Server)),
    attack("C6", Client, 25, "go-ahead, then cleartext", |scene| delivered(scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n"))),
    attack("D1", Client, 25, "handshakes sabotaged, delivery in cleartext in every second session", |scene| if scene.nth.is_multiple_of(2) { let talk = scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n"); talk.c(client_hello(0x0304)).reset(smtpwatch_core::Side::Server) } else { delivered(scene.offered(true)) }),
    attack("D4", Client, 25, "TLS 1.3 downgraded; the server's random says so", |scene| { let talk = scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n"); talk.c(client_hello(0x0304)).s(server_hello(0x0303, 0xc02f, b"DOWNGRD\x01")).close() }),
    attack("E2", Client, 25, "a reply injected after the go-ahead", |scene| { let talk = scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 Ready\r\n250-example.org\r\n250 AUTH LOGIN\r\n"); handshake(talk, 0x0304, 1).close() }),
    attack("E4", Client, 25, "a reply injected before STARTTLS", |scene| { let reply = [scene.reply(scene.product(), true), "250 ok\r\n".to_owned()].concat(); secure(scene.hello(&reply), scene.version(), 1) }),
    attack("F8", Client, 25, "STARTTLS deleted and AUTH added", |scene| { let reply = scene.reply(scene.product(), false).replacen("\r\n", "\r\n250-AUTH PLAIN LOGIN\r\n", 1); delivered(scene.hello(&reply)) }),
    attack("F1", Client, 587, "STARTTLS deleted on port 587; this host sends AUTH PLAIN", |scene| submitted(scene, &["AUTH PLAIN AHVzZXIAcGFzcw==\r\n"])),
    attack("F2", Client, 587, "the same with AUTH PLAIN in two steps", |scene| submitted(scene, &["AUTH PLAIN\r\n", "AHVzZXIAcGFzcw==\r\n"])),
    attack("F4", Client, 587, "the same with a bearer token", |scene| submitted(scene, &["AUTH XOAUTH2 dXNlcj11AWF1dGg9QmVhcmVyIHQBAQ==\r\n"])),
    attack("F9", Client, 587, "the same with X-EXPS LOGIN", |scene| submitted(scene, &["X-EXPS LOGIN\r\n", "dXNlcg==\r\n", "cGFzcw==\r\n"])),
    attack("F3", Client, 587, "the same with AUTH LOGIN", |scene| submitted(scene, &["AUTH LOGIN\r\n", "dXNlcg==\r\n", "cGFzcw==\r\n"])),
    attack("F5", Client, 587, "the same with AUTH CRAM-MD5", |scene| submitted(scene, &["AUTH CRAM-MD5\r\n", "dXNlciAwMTIzNDU2Nzg5YWJjZGVm\r\n"])),
    attack("A8", Server, 25, "STARTTLS deleted from this host's own reply: a known client stops using TLS", |scene| { let name = scene.peer.name(); scene.inbound(&name, false) }),
    attack("B2", Server, 25, "EHLO arrives as XXXX, then HELO", |scene| { let name = scene.peer.name(); delivered(scene.connect(0).s(OWN_GREETING).c(format!("XXXX {name}\r\n")).s("500 5.5.2 what?\r\n").c(format!("HELO {name}\r\n")).s("250 mx.example.org\r\n")) }),
    attack("C4", Server, 25, "STARTTLS arrives as XXXXXXXX", |scene| { let name = scene.peer.name(); delivered(scene.hello_from(&name).c("XXXXXXXX\r\n").s("500 5.5.2 what?\r\n")) }),
    attack("E1", Server, 25, "a command injected after STARTTLS", |scene| { let name = scene.peer.name(); let talk = scene.hello_from(&name).c("STARTTLS\r\nNOOP\r\n").s("220 2.0.0 Ready to start TLS\r\n"); handshake(talk, 0x0304, 1).close() }),
    attack("E3", Server, 25, "a whole message injected after STARTTLS", |scene| { let name = scene.peer.name(); let talk = scene.hello_from(&name).c("STARTTLS\r\nMAIL FROM:<a@example.net>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n").s("220 2.0.0 Ready to start TLS\r\n"); handshake(talk, 0x0304, 1).close() }),
];

/// The honest session of the same peer, for its history.
pub fn before(attack: &Attack, scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    match (attack.role, attack.port) {
        (Client, 25) => scene.opportunistic(true),
        (Client, port) => {
            let product = scene.product();
            let (greeting, reply) = (scene.greeting(product), scene.reply(product, true));
            secure(scene.connect_as(0, 0, port).s(greeting).c(OWN_EHLO).s(reply), scene.version(), 1)
        }
        (Server, _) => {
            let talk = scene.connect(0).s(OWN_GREETING).c(format!("EHLO {name}\r\n")).s(OWN_OFFER);
            secure(talk, scene.version(), 1)
        }
    }
}

fn edited(scene: &mut Scene<'_>, from: &str, to: &str) -> Dialogue {
    let reply = scene.reply(scene.product(), true).replace(from, to);
    delivered(scene.hello(&reply))
}

fn refused(scene: &mut Scene<'_>, reply: &str) -> Dialogue {
    delivered(scene.offered(true).c("STARTTLS\r\n").s(reply))
}

fn submitted(scene: &mut Scene<'_>, commands: &[&str]) -> Dialogue {
    let product = scene.product();
    let reply = scene.reply(product, false).replacen("\r\n", "\r\n250-AUTH PLAIN LOGIN CRAM-MD5\r\n", 1);
    let mut talk = scene.connect_as(0, 0, 587).s(scene.greeting(product)).c(OWN_EHLO).s(reply);
    let (last, others) = commands.split_last().expect("a command");
    for command in others {
        talk = talk.c(command).s("334 VXNlcm5hbWU6\r\n");
    }
    bye(envelope(talk.c(last).s("235 2.7.0 ok\r\n")))
}
