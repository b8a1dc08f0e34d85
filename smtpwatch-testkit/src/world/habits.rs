//! What honest and noisy peers do: one row for each habit, with the rows of docs/threats.md that it brings about.

use smtpwatch_core::{Role, Side};

use super::scene::{
    IPV6, OWN_EHLO, OWN_GREETING, OWN_OFFER, OWN_OFFER_AUTH, Scene, bye, delivered, envelope, handshake, secure, typed,
};
use crate::scenario::{Dialogue, client_hello, deliver, sealed, server_hello};

/// What a session is, whatever the engine takes it for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Truth {
    /// An honest peer. A finding is a false accusation.
    Honest,
    /// Bots, scanners, testers, and servers whose TLS is broken. No mail of this host is attacked.
    Noise,
    /// A real loss of encryption, or a real edit, without an attacker: a firewall of an operator, an owner who switches
    /// TLS off, a password that a user sends in cleartext. A finding is right.
    Change,
    /// A device on the path.
    Attack,
}

impl Truth {
    pub const ALL: [Self; 4] = [Self::Honest, Self::Noise, Self::Change, Self::Attack];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Honest => "honest",
            Self::Noise => "noise",
            Self::Change => "change",
            Self::Attack => "attack",
        }
    }
}

/// One way to behave.
pub struct Habit {
    pub name: &'static str,
    /// Rows of docs/threats.md.
    pub rows: &'static [&'static str],
    pub truth: Truth,
    /// Role of this host.
    pub role: Role,
    /// Share of the peers, in relation to those of the other rows.
    pub weight: u32,
    /// What happens, for docs/truth.md.
    pub about: &'static str,
    /// One session.
    pub play: fn(&mut Scene<'_>) -> Dialogue,
}

use Role::{Client, Server};

const fn honest(
    name: &'static str,
    rows: &'static [&'static str],
    role: Role,
    weight: u32,
    about: &'static str,
    play: fn(&mut Scene<'_>) -> Dialogue,
) -> Habit {
    Habit { name, rows, truth: Truth::Honest, role, weight, about, play }
}

const fn other(
    truth: Truth,
    name: &'static str,
    rows: &'static [&'static str],
    role: Role,
    weight: u32,
    about: &'static str,
    play: fn(&mut Scene<'_>) -> Dialogue,
) -> Habit {
    Habit { name, rows, truth, role, weight, about, play }
}

/// Every habit. The honest world has the honest ones, the noisy world has all.
#[rustfmt::skip]
pub const HABITS: &[Habit] = &[
    // This host sends mail.
    honest("tls", &[], Client, 220, "offers STARTTLS in every session, and TLS begins", |scene| scene.opportunistic(true)),
    honest("cleartext", &["FP-9"], Client, 24, "never offers STARTTLS; the message is about AUTH and STARTTLS", |scene| deliver(scene.offered(false))),
    honest("farm-one-in-four", &["FP-1"], Client, 4, "four machines behind one address, one of which does not offer STARTTLS", |scene| { let offers = scene.in_some(3, 4); scene.opportunistic(offers) }),
    honest("farm-one-in-forty", &["FP-1"], Client, 4, "forty machines behind one address, one of which does not offer STARTTLS", |scene| { let offers = scene.in_some(39, 40); scene.opportunistic(offers) }),
    honest("farm-by-day", &["FP-1"], Client, 3, "the address leads to one of three machines, another one each day; one does not offer STARTTLS", farm_by_day),
    honest("farm-by-name", &["FP-1"], Client, 4, "several addresses under one name; the machine at one of them does not offer STARTTLS", farm_by_name),
    honest("two-of-three", &["FP-1"], Client, 4, "offers STARTTLS in two of three sessions", |scene| { let offers = scene.in_some(2, 3); scene.opportunistic(offers) }),
    honest("round-robin", &["FP-1"], Client, 3, "three machines in turn, one of which does not offer STARTTLS", |scene| { let offers = scene.nth % 3 != 2; scene.opportunistic(offers) }),
    honest("offer-by-load", &["FP-1", "FP-2", "FP-23"], Client, 6, "in a busy quarter of an hour the offer is missing, or the reply is 421 or 450", offer_by_load),
    honest("refused-by-load", &["FP-2"], Client, 5, "in a busy quarter of an hour STARTTLS gets 454 or 421", refused_by_load),
    honest("rate-limit", &["FP-2", "FP-23"], Client, 5, "one session in thirty is refused with 421 or 451, and in one in sixty the offer is missing", rate_limit),
    honest("by-own-address", &["FP-3"], Client, 6, "offers STARTTLS to one of this host's two addresses only", by_own_address),
    honest("by-family", &["FP-21"], Client, 6, "offers STARTTLS over IPv4, not over IPv6", by_family),
    honest("two-programs", &["FP-4"], Client, 8, "two programs share the address and list other keywords, as postscreen and smtpd do", two_programs),
    honest("second-ehlo", &["FP-6"], Client, 4, "the first EHLO reply lacks STARTTLS, and the client asks a second time", second_ehlo),
    honest("capture-starts-late", &["FP-7"], Client, 3, "one session in three is captured from its middle on", capture_starts_late),
    honest("retransmits", &["FP-8"], Client, 4, "every segment is captured twice", retransmits),
    honest("data-refused", &["FP-10"], Client, 3, "never offers STARTTLS; DATA is refused and commands follow", data_refused),
    honest("pipelines", &["FP-11"], Client, 6, "this host sends commands in one segment, an unknown one among them", pipelines),
    honest("pipeconnect", &["FP-12"], Client, 4, "this host sends EHLO before the greeting", pipeconnect),
    honest("names-of-x", &["FP-15"], Client, 2, "the host name consists of X; STARTTLS is never offered", names_of_x),
    honest("own-exception", &["FP-20", "FP-28"], Client, 4, "offers STARTTLS; this host's mail server is configured not to use it for this peer", |scene| delivered(scene.offered(true))),
    honest("own-two-programs", &["FP-20", "FP-28"], Client, 4, "two programs on this host send to the peer: the mail server uses TLS, a script in one session of five does not", own_two_programs),
    honest("certificate", &["FP-22"], Client, 8, "renews its certificate in the month, in TLS 1.2", |scene| { let identity = if scene.has_changed() { 9 } else { 7 }; secure(scene.offered(true), 0x0303, identity) }),
    honest("refuses", &["FP-23"], Client, 6, "one session in ten gets 421 or 554 for a greeting, 550 to EHLO, or 421 after the EHLO reply", refuses),
    honest("long-replies", &["FP-24", "FP-27"], Client, 5, "long first line, UTF-8, trailing blanks, bare codes; one segment for each line", long_replies),
    honest("greylisting", &["FP-23"], Client, 8, "never offers STARTTLS, and defers the first attempts with 450", greylisting),
    honest("replaced", &[], Client, 5, "the owner replaces the server by another product, which offers STARTTLS too", replaced),
    honest("mx-moves", &["FP-1"], Client, 5, "the name moves to another address in the month", mx_moves),
    honest("tls-up-down", &[], Client, 6, "TLS 1.2, in the month TLS 1.3, and back after some days", tls_up_down),
    honest("tls-mixed", &["FP-1"], Client, 4, "machines behind one address choose TLS 1.2 or TLS 1.3", |scene| { let version = *scene.dice.pick(&[0x0303, 0x0304]); secure(scene.offered(true), version, 1) }),
    honest("starts-tls", &[], Client, 4, "the owner switches TLS on in the month", |scene| { let offers = scene.has_changed(); scene.opportunistic(offers) }),
    honest("idle-or-reset", &["FP-6"], Client, 6, "one session in ten is reset or falls silent, after the greeting, the EHLO reply or the go-ahead", idle_or_reset),
    honest("probes-out", &["FP-17"], Client, 3, "a check on this host sends EHLO and QUIT; the reply lacks STARTTLS in half of them", probes_out),
    // This host receives mail.
    honest("sender-tls", &[], Server, 150, "uses TLS in every session", |scene| { let name = scene.peer.name(); scene.inbound(&name, true) }),
    honest("sender-cleartext", &["FP-28", "FP-18"], Server, 24, "never uses TLS; AUTH appears as a parameter of MAIL", sender_cleartext),
    honest("one-name-half", &["FP-21"], Server, 6, "several programs behind one address and one EHLO name; half of the sessions use TLS", |scene| { let (name, tls) = (scene.peer.name(), scene.in_some(1, 2)); scene.inbound(&name, tls) }),
    honest("one-name-most", &["FP-21"], Server, 5, "the same; nine sessions in ten use TLS", |scene| { let (name, tls) = (scene.peer.name(), scene.in_some(9, 10)); scene.inbound(&name, tls) }),
    honest("one-name-nearly-all", &["FP-21"], Server, 4, "the same; fifty-nine sessions in sixty use TLS", |scene| { let (name, tls) = (scene.peer.name(), scene.in_some(59, 60)); scene.inbound(&name, tls) }),
    honest("many-names", &["FP-21"], Server, 6, "clients with different names behind one address; one of four does not use TLS", many_names),
    honest("next-tenant", &["FP-21"], Server, 4, "the address gets another tenant in the month, who never uses TLS", next_tenant),
    honest("sender-starts-tls", &[], Server, 4, "the sender begins to use TLS in the month", |scene| { let (name, tls) = (scene.peer.name(), scene.has_changed()); scene.inbound(&name, tls) }),
    honest("old-device", &["FP-5"], Server, 6, "an old device says HELO", old_device),
    honest("falls-back-to-helo", &["FP-5", "FP-21"], Server, 3, "a sender that uses TLS, and a script beside it, under the same name, that says HELO", falls_back_to_helo),
    honest("proxied", &["FP-13"], Server, 4, "a PROXY header, XCLIENT, LHLO or TURN", proxied),
    honest("typing", &["FP-25", "FP-18"], Server, 3, "a person types into a terminal", typing),
    honest("health-checks", &["FP-17"], Server, 5, "a load balancer connects, or sends EHLO and QUIT", health_checks),
    honest("sender-idle", &["FP-6"], Server, 4, "one session in ten is reset or falls silent", sender_idle),
    honest("own-greylisting", &["FP-23"], Server, 6, "this host defers the first attempts of a sender that does not use TLS", own_greylisting),
    honest("users", &[], Server, 40, "submission on port 587 under TLS", users),
    // What a public host sees besides.
    other(Truth::Noise, "guess-offered", &[], Server, 120, "a bot guesses passwords on the listener that offers AUTH before TLS: 535", |scene| guess(scene, OWN_OFFER_AUTH, "535 5.7.8 authentication failed\r\n", 25)),
    other(Truth::Noise, "guess-not-offered", &[], Server, 120, "the same on the listener that does not offer AUTH: 503", |scene| guess(scene, OWN_OFFER, "503 5.5.1 authentication not enabled\r\n", 25)),
    other(Truth::Noise, "guess-tls-first", &[], Server, 60, "the same on port 587: 530", |scene| guess(scene, OWN_OFFER, "530 5.7.0 must issue a STARTTLS command first\r\n", 587)),
    other(Truth::Noise, "guess-plain", &[], Server, 60, "AUTH PLAIN on the listener that offers AUTH before TLS, three tries in a session: 535", guess_plain),
    other(Truth::Noise, "guess-challenge", &[], Server, 10, "AUTH CRAM-MD5: 535", guess_challenge),
    other(Truth::Noise, "injection-tester", &[], Server, 6, "a tester sends a command in one segment with STARTTLS", injection_tester),
    other(Truth::Noise, "handshake-scanner", &[], Server, 30, "a scanner gets the go-ahead, and sends an alert, a reset, other bytes, or nothing", handshake_scanner),
    other(Truth::Noise, "old-tls-scanner", &[], Server, 10, "a scanner offers TLS 1.0 only", |scene| { let talk = scene.hello_from("scan.example").c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n"); talk.c(client_hello(0x0301)).s(server_hello(0x0301, 0x002f, b"")).close() }),
    other(Truth::Noise, "port-scanner", &[], Server, 40, "connects and closes, resets, or speaks HTTP", port_scanner),
    other(Truth::Noise, "relay-tester", &[], Server, 30, "tries to relay; RCPT is refused", |scene| { let talk = scene.hello_from("win10.local"); bye(talk.c("MAIL FROM:<x@example.com>\r\n").s("250 2.1.0 Ok\r\n").c("RCPT TO:<y@example.com>\r\n").s("554 5.7.1 Relay access denied\r\n")) }),
    other(Truth::Noise, "spam-in-cleartext", &[], Server, 60, "a bot delivers in cleartext", |scene| { let name = format!("host-{}.example", scene.dice.below(1000)); scene.inbound(&name, false) }),
    other(Truth::Noise, "tls-broken", &[], Client, 5, "offers STARTTLS; every handshake fails, and this host delivers in cleartext afterwards", |scene| if scene.nth.is_multiple_of(2) { failed_handshake(scene) } else { delivered(scene.offered(true)) }),
    other(Truth::Noise, "tls-broken-for-a-day", &[], Client, 5, "TLS works, except on one day on which every handshake fails", |scene| if scene.day() == 20 { if scene.nth.is_multiple_of(2) { failed_handshake(scene) } else { delivered(scene.offered(true)) } } else { scene.opportunistic(true) }),
    other(Truth::Noise, "typing-through-a-mask", &["FP-25"], Server, 2, "a person types, and a firewall masks every one-byte segment", |scene| typed(&bye(scene.connect(0).s(OWN_GREETING).c("XXXX mail.example.org\r\n").s("500 5.5.2 what?\r\n")))),
    other(Truth::Noise, "security-layer", &["FP-19"], Server, 2, "GSSAPI in cleartext on port 587, and a security layer after it", security_layer),
    other(Truth::Change, "mask-beside-offer", &["FP-14"], Client, 3, "a firewall of the peer masks one keyword, and STARTTLS stays", |scene| { let reply = scene.reply(0, true).replace("CHUNKING", "XXXXXXXB"); secure(scene.hello(&reply), 0x0304, 1) }),
    other(Truth::Change, "mask-of-eight", &["FP-26"], Client, 3, "a firewall of the peer masks CHUNKING; STARTTLS was never offered", |scene| { let reply = scene.reply(0, false).replace("CHUNKING", "XXXXXXXB"); delivered(scene.hello(&reply)) }),
    other(Truth::Change, "own-firewall", &["FP-16"], Client, 5, "the operator's own firewall inspects SMTP for two days, and masks STARTTLS", |scene| if (12..14).contains(&scene.day()) { let reply = scene.reply(scene.product(), true).replace("STARTTLS", "XXXXXXXA"); delivered(scene.hello(&reply)) } else { scene.opportunistic(true) }),
    other(Truth::Change, "tls-switched-off", &[], Client, 3, "the owner replaces the server by one without TLS", |scene| { let offers = !scene.has_changed(); scene.opportunistic(offers) }),
    other(Truth::Change, "own-configuration", &["FP-20"], Client, 3, "this host's mail server stops to use TLS for this peer in the month", |scene| if scene.has_changed() { delivered(scene.offered(true)) } else { scene.opportunistic(true) }),
    other(Truth::Change, "password", &[], Server, 2, "an old printer sends its password in cleartext, and it is accepted", |scene| { let talk = scene.connect_as(0, 0, 587).s(OWN_GREETING).c("EHLO printer.lan\r\n").s(OWN_OFFER_AUTH); bye(envelope(talk.c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 2.7.0 ok\r\n"))) }),
];

fn farm_by_day(scene: &mut Scene<'_>) -> Dialogue {
    let day = u64::try_from(scene.day()).unwrap_or(0);
    let offers = scene.peer.constant(day + 100, 3) != 0;
    scene.opportunistic(offers)
}

fn farm_by_name(scene: &mut Scene<'_>) -> Dialogue {
    let machine = *scene.dice.pick(&[0, 1, 2, 3]);
    let product = scene.product();
    let (greeting, reply) = (scene.greeting(product), scene.reply(product, machine != 3));
    let talk = scene.connect(machine).s(greeting).c(OWN_EHLO).s(reply);
    if machine == 3 { delivered(talk) } else { secure(talk, scene.version(), 1) }
}

fn offer_by_load(scene: &mut Scene<'_>) -> Dialogue {
    if !scene.is_busy() {
        return scene.opportunistic(true);
    }
    match scene.dice.below(4) {
        0 => scene.connect(0).s("421 4.7.0 too many connections, try again later\r\n").close(),
        1 => bye(scene.offered(false).c("MAIL FROM:<alice@example.org>\r\n").s("450 4.3.2 system busy\r\n")),
        _ => scene.opportunistic(false),
    }
}

fn refused_by_load(scene: &mut Scene<'_>) -> Dialogue {
    if !scene.is_busy() {
        return scene.opportunistic(true);
    }
    let asked = scene.offered(true).c("STARTTLS\r\n");
    match scene.dice.below(3) {
        0 => asked.s("421 4.3.2 system busy\r\n").close(),
        1 => bye(asked.s("454 4.7.0 TLS not available due to temporary reason\r\n")),
        _ => delivered(asked.s("454 4.7.0 TLS not available due to temporary reason\r\n")),
    }
}

fn rate_limit(scene: &mut Scene<'_>) -> Dialogue {
    match scene.dice.below(60) {
        0 => scene.opportunistic(false),
        1 | 2 => match scene.dice.below(3) {
            0 => scene.connect(0).s("421 4.7.0 rate limit\r\n").close(),
            1 => scene.offered(true).c("STARTTLS\r\n").s("421 4.7.0 rate limit\r\n").close(),
            _ => bye(scene.offered(false).c("MAIL FROM:<alice@example.org>\r\n").s("451 4.7.1 rate limit\r\n")),
        },
        _ => scene.opportunistic(true),
    }
}

fn by_own_address(scene: &mut Scene<'_>) -> Dialogue {
    let own = scene.dice.below(2);
    let product = scene.product();
    let (greeting, reply) = (scene.greeting(product), scene.reply(product, own == 0));
    let talk = scene.connect_as(own, 0, 25).s(greeting).c(OWN_EHLO).s(reply);
    if own == 0 { secure(talk, scene.version(), 1) } else { delivered(talk) }
}

fn by_family(scene: &mut Scene<'_>) -> Dialogue {
    let machine = *scene.dice.pick(&[0, IPV6]);
    let product = scene.product();
    let (greeting, reply) = (scene.greeting(product), scene.reply(product, machine == 0));
    let talk = scene.connect(machine).s(greeting).c(OWN_EHLO).s(reply);
    if machine == 0 { secure(talk, scene.version(), 1) } else { delivered(talk) }
}

fn two_programs(scene: &mut Scene<'_>) -> Dialogue {
    let product = *scene.dice.pick(&[0, 4]);
    let reply = scene.reply(product, true);
    let greeting = scene.greeting(product);
    secure(scene.connect(0).s(greeting).c(OWN_EHLO).s(reply), scene.version(), 1)
}

fn second_ehlo(scene: &mut Scene<'_>) -> Dialogue {
    let reply = scene.reply(scene.product(), true);
    secure(scene.offered(false).c(OWN_EHLO).s(reply), scene.version(), 1)
}

fn capture_starts_late(scene: &mut Scene<'_>) -> Dialogue {
    let offers = scene.in_some(1, 2);
    let mut talk = scene.opportunistic(offers);
    if scene.in_some(1, 3) {
        let missed = 3 + scene.dice.below(talk.packets.len() - 4);
        talk.packets.drain(..missed);
    } else if !offers {
        return scene.opportunistic(true);
    }
    talk
}

fn retransmits(scene: &mut Scene<'_>) -> Dialogue {
    let mut talk = scene.opportunistic(true);
    talk.packets = talk.packets.iter().flat_map(|packet| [packet.clone(), packet.clone()]).collect();
    talk
}

fn data_refused(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.offered(false).c("MAIL FROM:<alice@example.org>\r\n").s("250 2.1.0 Ok\r\n");
    let talk = talk.c("DATA\r\n").s("503 5.5.1 need RCPT\r\n").c("RCPT TO:<bob@example.net>\r\n").s("250 2.1.5 Ok\r\n");
    bye(talk)
}

fn pipelines(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.offered(true).c("FROB\r\nNOOP\r\nSTARTTLS\r\n").s("500 5.5.2 what?\r\n250 ok\r\n220 2.0.0 go\r\n");
    handshake(talk, scene.version(), 1).close()
}

fn pipeconnect(scene: &mut Scene<'_>) -> Dialogue {
    let product = scene.product();
    let said = [scene.greeting(product), scene.reply(product, true)].concat();
    secure(scene.connect(0).c(OWN_EHLO).s(said), scene.version(), 1)
}

fn names_of_x(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.connect(0).s("220 XXXXXXXX.com ESMTP\r\n").c(OWN_EHLO);
    delivered(talk.s("250-XXXXXXXX.com Hello\r\n250 SIZE\r\n"))
}

fn own_two_programs(scene: &mut Scene<'_>) -> Dialogue {
    if scene.in_some(1, 5) { delivered(scene.offered(true)) } else { scene.opportunistic(true) }
}

fn refuses(scene: &mut Scene<'_>) -> Dialogue {
    match scene.dice.below(40) {
        0 => scene.connect(0).s("421 4.7.0 too many connections\r\n").close(),
        1 => scene.connect(0).s("554 5.7.1 go away\r\n").c("QUIT\r\n").s("221 Bye\r\n").close(),
        2 => {
            let greeting = scene.greeting(scene.product());
            bye(scene.connect(0).s(greeting).c(OWN_EHLO).s("550 5.7.1 bad name\r\n"))
        }
        3 => scene.offered(true).s("421 4.3.2 closing\r\n").close(),
        _ => scene.opportunistic(true),
    }
}

fn long_replies(scene: &mut Scene<'_>) -> Dialogue {
    let long = format!("250-{} Grüße {}\r\n250-SIZE \r\n250-STARTTLS \r\n250\r\n", scene.peer.name(), "x".repeat(400));
    secure(scene.hello(&long), scene.version(), 1).cut(60)
}

fn greylisting(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.offered(false);
    if scene.in_some(3, 10) {
        let talk = talk.c("MAIL FROM:<alice@example.org>\r\n").s("250 2.1.0 Ok\r\n");
        bye(talk.c("RCPT TO:<bob@example.net>\r\n").s("450 4.2.0 Greylisted\r\n"))
    } else {
        delivered(talk)
    }
}

fn replaced(scene: &mut Scene<'_>) -> Dialogue {
    let product = if scene.has_changed() { (scene.product() + 1) % 5 } else { scene.product() };
    let (greeting, reply) = (scene.greeting(product), scene.reply(product, true));
    let identity = u8::from(scene.has_changed());
    secure(scene.connect(0).s(greeting).c(OWN_EHLO).s(reply), scene.version(), identity)
}

fn mx_moves(scene: &mut Scene<'_>) -> Dialogue {
    let product = scene.product();
    let (greeting, reply) = (scene.greeting(product), scene.reply(product, true));
    let machine = u8::from(scene.has_changed());
    secure(scene.connect(machine).s(greeting).c(OWN_EHLO).s(reply), scene.version(), 1)
}

fn tls_up_down(scene: &mut Scene<'_>) -> Dialogue {
    let back = scene.day() >= 22 + i64::try_from(scene.peer.constant(5, 6)).expect("small");
    let version = if scene.has_changed() && !back { 0x0304 } else { 0x0303 };
    secure(scene.offered(true), version, 1)
}

fn idle_or_reset(scene: &mut Scene<'_>) -> Dialogue {
    if !scene.in_some(1, 10) {
        return scene.opportunistic(true);
    }
    let greeting = scene.greeting(scene.product());
    let talk = match scene.dice.below(3) {
        0 => scene.connect(0).s(greeting).ack(Side::Client),
        1 => scene.offered(true).ack(Side::Client),
        _ => scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 go\r\n").ack(Side::Client),
    };
    ended(scene, talk)
}

/// A reset from either side, a client that closes, or nothing more.
fn ended(scene: &mut Scene<'_>, talk: Dialogue) -> Dialogue {
    match scene.dice.below(4) {
        0 => talk.reset(Side::Client),
        1 => talk.reset(Side::Server),
        2 => talk.pause(30).leave(),
        _ => talk,
    }
}

fn probes_out(scene: &mut Scene<'_>) -> Dialogue {
    let offers = scene.in_some(1, 2);
    bye(scene.offered(offers))
}

fn sender_cleartext(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    let talk = scene.hello_from(&name).c("MAIL FROM:<a@example.net> AUTH=<u@example.net>\r\n").s("250 2.1.0 Ok\r\n");
    let talk = talk.c("RCPT TO:<b@example.org>\r\n").s("250 2.1.5 Ok\r\n").c("DATA\r\n").s("354 go\r\n");
    bye(talk.c("Subject: x\r\n\r\nx\r\n.\r\n").s("250 2.0.0 Ok: queued\r\n"))
}

fn many_names(scene: &mut Scene<'_>) -> Dialogue {
    let client = scene.dice.below(4);
    let name = format!("client{client}.{}", scene.peer.name());
    scene.inbound(&name, client != 3)
}

fn next_tenant(scene: &mut Scene<'_>) -> Dialogue {
    if scene.has_changed() {
        let name = format!("tenant.{}", scene.peer.name());
        scene.inbound(&name, false)
    } else {
        let name = scene.peer.name();
        scene.inbound(&name, true)
    }
}

fn old_device(scene: &mut Scene<'_>) -> Dialogue {
    delivered(scene.connect(0).s(OWN_GREETING).c("HELO printer.lan\r\n").s("250 mx.example.org\r\n"))
}

fn falls_back_to_helo(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    if scene.in_some(1, 5) {
        delivered(scene.connect(0).s(OWN_GREETING).c(format!("HELO {name}\r\n")).s("250 mx.example.org\r\n"))
    } else {
        scene.inbound(&name, true)
    }
}

fn proxied(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    let uses_tls = scene.in_some(1, 2);
    let talk = match scene.peer.constant(6, 4) {
        0 => scene.connect(0).c("PROXY TCP4 203.0.113.7 192.0.2.1 50000 25\r\n").s(OWN_GREETING),
        1 => scene
            .connect(0)
            .s(OWN_GREETING)
            .c(format!("EHLO {name}\r\n"))
            .s(OWN_OFFER)
            .c("XCLIENT ADDR=203.0.113.7\r\n")
            .s("220 mx.example.org ESMTP Postfix\r\n"),
        2 => return bye(scene.connect(0).s(OWN_GREETING).c(format!("LHLO {name}\r\n")).s(OWN_OFFER)),
        _ => return bye(scene.hello_from(&name).c("TURN\r\n").s("502 5.5.1 no\r\n")),
    };
    let talk = talk.c(format!("EHLO {name}\r\n")).s(OWN_OFFER);
    if uses_tls { secure(talk, 0x0304, 1) } else { delivered(talk) }
}

fn typing(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.connect(0).s(OWN_GREETING).c("HELO me\r\n").s("250 mx.example.org\r\n").c("HELP AUTH LOGIN\r\n");
    typed(&delivered(talk.s("500 5.5.2 what?\r\n")))
}

fn health_checks(scene: &mut Scene<'_>) -> Dialogue {
    match scene.dice.below(3) {
        0 => scene.connect(0).s(OWN_GREETING).leave(),
        1 => scene.connect(0).reset(Side::Client),
        _ => bye(scene.hello_from("balancer.example.org")),
    }
}

fn sender_idle(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    if !scene.in_some(1, 10) {
        return scene.inbound(&name, true);
    }
    let talk = scene.hello_from(&name).ack(Side::Client);
    let talk = if scene.in_some(1, 2) { talk } else { talk.c("STARTTLS\r\n").s("220 2.0.0 go\r\n").ack(Side::Client) };
    ended(scene, talk)
}

fn own_greylisting(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    let talk = scene.hello_from(&name);
    if !scene.nth.is_multiple_of(4) {
        return delivered(talk);
    }
    let talk = talk.c("MAIL FROM:<a@example.net>\r\n").s("250 2.1.0 Ok\r\n");
    bye(talk.c("RCPT TO:<b@example.org>\r\n").s("450 4.2.0 Greylisted\r\n"))
}

fn users(scene: &mut Scene<'_>) -> Dialogue {
    let name = scene.peer.name();
    let talk = scene.connect_as(0, 0, 587).s(OWN_GREETING).c(format!("EHLO {name}\r\n")).s(OWN_OFFER);
    secure(talk, scene.version(), 1)
}

fn guess(scene: &mut Scene<'_>, offer: &str, refusal: &str, port: u16) -> Dialogue {
    let name = format!("{}.local", scene.dice.below(50));
    let talk = scene.connect_as(0, 0, port).s(OWN_GREETING).c(format!("EHLO {name}\r\n")).s(offer);
    let talk = talk.c("AUTH LOGIN\r\n");
    // A server without AUTH refuses the command; the bot sends the secret anyway, as they do.
    if refusal.starts_with("503") {
        return bye(talk.s(refusal).c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s(refusal));
    }
    if refusal.starts_with("530") {
        return bye(talk
            .s(refusal)
            .c("AUTH LOGIN dXNlcg==\r\n")
            .s(refusal)
            .c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
            .s(refusal));
    }
    let talk = talk.s("334 VXNlcm5hbWU6\r\n").c("dXNlcg==\r\n").s("334 UGFzc3dvcmQ6\r\n").c("cGFzcw==\r\n");
    bye(talk.s(refusal))
}

fn guess_plain(scene: &mut Scene<'_>) -> Dialogue {
    let mut talk = scene.connect(0).s(OWN_GREETING).c("EHLO ylmf-pc\r\n").s(OWN_OFFER_AUTH);
    for _ in 0..3 {
        talk = talk.c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("535 5.7.8 authentication failed\r\n");
    }
    talk.c("QUIT\r\n").s("221 2.0.0 Bye\r\n").close()
}

fn guess_challenge(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.hello_from("ylmf-pc").c("AUTH CRAM-MD5\r\n").s("334 PDEyMz4=\r\n");
    bye(talk.c("dXNlciAwMTIzNDU2Nzg5YWJjZGVm\r\n").s("535 5.7.8 authentication failed\r\n"))
}

fn injection_tester(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.hello_from("tester.example").c("STARTTLS\r\nNOOP\r\n").s("220 2.0.0 Ready to start TLS\r\n");
    handshake(talk, 0x0304, 1).close()
}

fn handshake_scanner(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.hello_from("scan.example").c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n");
    match scene.dice.below(5) {
        0 => talk.c(client_hello(0x0304)).s(ALERT).close(),
        1 => talk.c(client_hello(0x0303)).s(server_hello(0x0303, 0xc02f, b"")).c(ALERT).leave(),
        2 => talk.c(client_hello(0x0304)).reset(Side::Client),
        3 => talk.c("GET / HTTP/1.0\r\n\r\n").leave(),
        _ => talk.ack(Side::Client).leave(),
    }
}

/// A fatal alert, handshake_failure (RFC 8446 §6).
const ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];

fn port_scanner(scene: &mut Scene<'_>) -> Dialogue {
    match scene.dice.below(4) {
        0 => scene.connect(0).s(OWN_GREETING).leave(),
        1 => scene.connect(0).reset(Side::Client),
        2 => {
            let talk = scene.connect(0).s(OWN_GREETING).c("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
            talk.s("500 5.5.2 what?\r\n500 5.5.2 what?\r\n500 5.5.2 what?\r\n").close()
        }
        _ => scene.connect(0).s(OWN_GREETING).c(client_hello(0x0304)).s("500 5.5.2 what?\r\n").close(),
    }
}

fn failed_handshake(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.offered(true).c("STARTTLS\r\n").s("220 2.0.0 Ready to start TLS\r\n");
    talk.c(client_hello(0x0304)).s(ALERT).close()
}

fn security_layer(scene: &mut Scene<'_>) -> Dialogue {
    let talk = scene.connect_as(0, 0, 587).s(OWN_GREETING).c("EHLO desk.lan\r\n").s("250 mx.example.org\r\n");
    let talk = talk.c("AUTH GSSAPI YIIC\r\n").s("235 ok\r\n").c(sealed(40));
    talk.s(b"\0\0\0\x20\x16\x03\x01").close()
}
