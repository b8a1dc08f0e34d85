//! Evasions that the engine must withstand (docs/threats.md, EV rows). Fragments, extension headers, tags and large or
//! jumbo segments (EV-5 to EV-12) concern header parsing and gate, and are tested there.

use std::collections::HashMap;

use smtpwatch_core::{
    Engine, Finding, Settings, Side, TcpFlags, Timestamp,
    engine::{EvictReason, Output, SessionResult},
    finding::{Evidence, Kind, Outcome},
    limits,
    policy::history::History,
};

use crate::scenario::{
    Dialogue, GREETING, MASKED, OFFER, OwnedSegment, Recorded, STRIPPED, citing, client_hello, deliver, engine,
    greeted, hear, hear_after, honest, honest_history, tls,
};

fn plaintext_auth(talk: &Dialogue) {
    let heard = hear(talk, Vec::new());
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext], "{:?}", heard.sessions);
}

fn submission() -> Dialogue {
    Dialogue::new(587).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n")
}

/// Index of the server's EHLO reply in these packets.
fn reply_of(talk: &Dialogue) -> usize {
    talk.packets.iter().position(|packet| packet.payload.starts_with(b"250-mx1")).expect("reply")
}

#[test]
fn ev1_one_octet_per_segment() {
    let heard = hear_after(&honest_history(6), &deliver(greeted().s(STRIPPED)).cut(1), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
}

#[test]
fn ev2_two_copies_before_the_acknowledgment_are_both_kept() {
    let mut talk = deliver(greeted().s(STRIPPED.replace("ETRN", "ABCD")));
    let reply = talk.packets[reply_of(&talk)].clone();
    let other = String::from_utf8(reply.payload.clone()).expect("text").replace("ABCD", "WXYZ").into_bytes();
    talk.packets.insert(reply_of(&talk) + 1, OwnedSegment { payload: other, ..reply });
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert!(heard.kinds().contains(&Kind::StreamTampering) && heard.kinds().contains(&Kind::StarttlsStripped));
    let tampering = heard.findings.iter().find(|finding| finding.kind == Kind::StreamTampering).expect("tampering");
    let [quoted] = citing(tampering, "FO-1")[..] else { panic!("{:?}", tampering.indicators) };
    assert!(quoted.contains("first copy: ABCD; only in the other: WXYZ"), "{quoted}");
}

#[test]
fn ev2_the_copy_that_the_host_took_in_is_the_one_that_is_read() {
    // A greeting with a tail that the host does not acknowledge; the real EHLO reply follows at that sequence number.
    let decoy = format!("{GREETING}{}", "A".repeat(STRIPPED.len()));
    let mut talk = deliver(greeted().s(STRIPPED));
    let greeting = talk.packets.iter().position(|packet| packet.payload.starts_with(b"220 ")).expect("greeting");
    talk.packets[greeting].payload = decoy.into_bytes();
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert!(heard.kinds().contains(&Kind::StarttlsStripped), "{:?} {:?}", heard.findings, heard.sessions);
}

/// The genuine reply arrives after the forged one: it covers the same bytes and differs.
pub fn late_copy() -> Vec<Finding> {
    let mut talk = greeted().s(STRIPPED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n");
    let forged = talk.packets[reply_of(&talk)].clone();
    let genuine = OFFER.as_bytes()[..forged.payload.len()].to_vec();
    talk.packets.push(OwnedSegment { payload: genuine, ..forged });
    hear_after(&honest_history(6), &talk.close(), Vec::new()).findings
}

#[test]
fn ev3_a_late_copy_proves_what_was_taken_away() {
    let findings = late_copy();
    let stripped = findings.iter().find(|finding| finding.kind == Kind::StarttlsStripped).expect("stripped");
    assert_eq!(stripped.evidence, Evidence::Tamper, "{:?}", stripped.indicators);
}

#[test]
fn ev4_a_gap_is_unknown_and_never_no_starttls() {
    let talk = deliver(greeted().s(STRIPPED)).cut(20);
    let mail = talk.packets.iter().position(|packet| packet.payload.starts_with(b"MAIL")).expect("MAIL");
    for at in (0..mail).filter(|at| !talk.packets[*at].payload.is_empty()) {
        let mut cut = talk.clone();
        cut.packets.remove(at);
        let heard = hear_after(&honest_history(6), &cut, Vec::new());
        assert!(heard.findings.is_empty(), "{at}: {:?}", heard.findings);
        assert_eq!((heard.gaps, heard.sessions[0].result), (1, SessionResult::Unknown), "{at}");
    }
}

/// Gives a packet the property for which a host discards it.
type Dress = fn(&mut OwnedSegment);

/// A reply that offers STARTTLS arrives first and is discarded by the host; the reply that the host accepts has no
/// offer.
fn behind_a_decoy(dress: impl Fn(&mut OwnedSegment)) -> Recorded {
    let mut talk = deliver(greeted().s(STRIPPED)).stamped();
    let at = reply_of(&talk);
    let mut decoy = talk.packets[at].clone();
    decoy.payload = OFFER.as_bytes()[..decoy.payload.len()].to_vec();
    dress(&mut decoy);
    talk.packets.insert(at, decoy);
    hear_after(&honest_history(6), &talk, Vec::new())
}

#[test]
fn ev8_ev9_what_the_host_discards_is_not_read() {
    let decoys: [(&str, Dress); 5] = [
        ("a signature that nobody asked for", |decoy| decoy.options = [&[19, 18][..], &[1; 16]].concat()),
        ("no ACK", |decoy| decoy.flags = TcpFlags::PSH),
        ("an acknowledgment of what was never sent", |decoy| decoy.ack = decoy.ack.wrapping_add(5000)),
        ("a timestamp of the past", |decoy| decoy.options[4..8].copy_from_slice(&0_u32.to_be_bytes())),
        ("a low time to live, and a timestamp of the past", |decoy| {
            decoy.ttl = 1;
            decoy.options[4..8].copy_from_slice(&0_u32.to_be_bytes());
        }),
    ];
    // Nothing shows which copy is the decoy; the host's own bytes show that it continued in cleartext.
    let heard = behind_a_decoy(|_| ());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped, Kind::StreamTampering]);
    assert!(
        heard.findings[0].indicators.iter().any(|line| line.contains("did not begin TLS")),
        "{:?}",
        heard.findings[0]
    );
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
    for (name, dress) in decoys {
        let heard = behind_a_decoy(dress);
        assert!(heard.kinds().contains(&Kind::StarttlsStripped), "{name}: {:?} {:?}", heard.kinds(), heard.sessions);
        assert!(heard.kinds().contains(&Kind::StreamTampering), "{name}: {:?}", heard.kinds());
    }
}

#[test]
fn ev9_a_wrong_checksum_is_discarded_and_accuses_nobody() {
    let heard = behind_a_decoy(|decoy| decoy.checksum_right = Some(false));
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "{:?}", heard.sessions);
    assert!(!citing(&heard.findings[0], "EV-9").is_empty(), "{:?}", heard.findings[0].indicators);
    // A link that damages packets: each arrives damaged and then intact.
    let mut talk = honest().stamped();
    let whole = talk.packets.clone();
    talk.packets.clear();
    for packet in whole {
        // Only arriving packets are damaged, never those that leave.
        if !packet.payload.is_empty() && packet.from == Side::Server {
            let payload = packet.payload.iter().map(|octet| octet ^ 0x20).collect();
            talk.packets.push(OwnedSegment { payload, checksum_right: Some(false), ..packet.clone() });
        }
        talk.packets.push(packet);
    }
    let heard = hear(&talk, Vec::new());
    assert_eq!((heard.kinds(), heard.gaps), (vec![], 0));
    assert_eq!(heard.sessions[0].result, SessionResult::Tls);
}

#[test]
fn ev9_checksums_that_mean_nothing_are_not_believed() {
    let mut talk = deliver(greeted().s(STRIPPED));
    talk.packets.iter_mut().for_each(|packet| packet.checksum_right = Some(false));
    assert_eq!(hear_after(&honest_history(6), &talk, Vec::new()).kinds(), [Kind::StarttlsStripped]);
    // A capture with replaced names: the payload has wrong checksums and is acknowledged.
    let mut talk = deliver(greeted().s(STRIPPED)).stamped();
    for packet in talk.packets.iter_mut().filter(|packet| !packet.payload.is_empty()) {
        packet.checksum_right = Some(false);
    }
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert_eq!((heard.kinds(), heard.gaps), (vec![Kind::StarttlsStripped], 0));
    // A capture without checksums; one packet's checksum is right by accident.
    let talk = deliver(greeted().s(STRIPPED));
    for right in 0..talk.packets.len() {
        let mut talk = talk.clone();
        for (at, packet) in talk.packets.iter_mut().enumerate() {
            packet.checksum_right = Some(at == right);
        }
        let heard = hear_after(&honest_history(6), &talk, Vec::new());
        assert_eq!((heard.kinds(), heard.gaps), (vec![Kind::StarttlsStripped], 0), "packet {right} is right");
        assert_eq!(heard.sessions[0].result, SessionResult::Plaintext, "packet {right} is right");
    }
}

#[test]
fn ev22_a_host_that_goes_on_late_is_still_followed() {
    for pause in [1, 3, 60, 120] {
        let talk = deliver(greeted().s(STRIPPED).ack(Side::Client).reset(Side::Server).pause(pause));
        let heard = hear_after(&honest_history(6), &talk, Vec::new());
        let content = heard.findings.iter().any(|finding| finding.outcome == Outcome::Content);
        assert!(
            content && heard.kinds().iter().all(|kind| *kind == Kind::StarttlsStripped),
            "{pause}: {:?}",
            heard.kinds()
        );
        assert_eq!((heard.sessions.len(), heard.gaps), (1, 0), "{pause}");
    }
    // A flow whose host obeyed the reset is judged and counted after two seconds, and removed later.
    let mut engine = engine(Vec::new());
    let mut heard = Recorded::default();
    let talk = greeted().s(OFFER).c("STARTTLS\r\n").ack(Side::Server).reset(Side::Server);
    talk.play(&mut engine, &mut heard);
    let last = talk.packets.last().expect("reset").at;
    engine.tick(Timestamp(last + 3_000_000_000));
    heard.drain(&mut engine);
    assert_eq!((heard.kinds(), heard.sessions.len(), engine.flows()), (vec![Kind::StarttlsRefused], 1, 1));
    engine.tick(Timestamp(last + 140_000_000_000));
    heard.drain(&mut engine);
    assert_eq!((heard.sessions.len(), engine.flows()), (1, 0));
}

#[test]
fn ev22_each_reset_has_its_own_two_seconds() {
    let mut engine = engine(Vec::new());
    let mut heard = Recorded::default();
    let talk = greeted().s(OFFER).ack(Side::Client).reset(Side::Server).pause(1).c("STARTTLS\r\n").ack(Side::Server);
    let talk = talk.reset(Side::Server);
    talk.play(&mut engine, &mut heard);
    let last = talk.packets.last().expect("reset").at;
    for (after, sessions) in [(1_500_000_000, 0), (2_500_000_000, 1)] {
        engine.tick(Timestamp(last + after));
        heard.drain(&mut engine);
        assert_eq!(heard.sessions.len(), sessions, "{after} ns");
    }
}

#[test]
fn ev22_a_reset_with_a_wrong_checksum_is_none() {
    let mut talk = greeted().s(STRIPPED).ack(Side::Client).stamped().reset(Side::Server);
    talk.packets.last_mut().expect("reset").checksum_right = Some(false);
    let talk = deliver(talk.pause(600));
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert_eq!((heard.kinds(), heard.sessions.len()), (vec![Kind::StarttlsStripped], 1));
}

#[test]
fn ev13_ev14_case_and_blanks() {
    plaintext_auth(&submission().c(" \taUtH\t pLaIn  AHVzZXIAcGFzcw== \r\n").s("235 ok\r\n").close());
    let talk = Dialogue::new(25).s(GREETING).c("eHlO gw\r\n").s(OFFER).c(" sTaRtTlS \r\n").s("220 2.0.0 go\r\n");
    assert_eq!(hear(&tls(talk).close(), Vec::new()).sessions[0].result, SessionResult::Tls);
}

#[test]
fn ev15_bare_lf_ends_a_line_and_bare_cr_does_not() {
    plaintext_auth(&submission().c("AUTH PLAIN AHVzZXIAcGFzcw==\n").s("235 ok\n").close());
    let heard = hear(&submission().c("NOOP\rAUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("500 what?\r\n").close(), Vec::new());
    assert!(heard.findings.is_empty());
    let reply = STRIPPED.replace("\r\n", "\n");
    assert_eq!(
        hear_after(&honest_history(6), &deliver(greeted().s(reply)), Vec::new()).kinds(),
        [Kind::StarttlsStripped]
    );
}

#[test]
fn ev16_very_long_lines() {
    let long = format!("NOOP {}\r\n", "x".repeat(40_000));
    plaintext_auth(
        &submission().c(long).s("500 too long\r\n").c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close(),
    );
    let token = "A".repeat(12_000);
    plaintext_auth(&submission().c(format!("AUTH XOAUTH2 {token}\r\n")).s("235 ok\r\n").close());
}

#[test]
fn ev17_lines_behind_the_end_of_the_reply_are_still_of_it() {
    let early = STRIPPED.replace("250-SIZE", "250 SIZE");
    assert_eq!(
        hear_after(&honest_history(6), &deliver(greeted().s(early)), Vec::new()).kinds(),
        [Kind::StarttlsStripped]
    );
}

#[test]
fn ev18_no_reply_code_switches_the_parser_off() {
    for reply in
        ["200 hi\r\n", "299 hi\r\n", "538 hi\r\n", "432 hi\r\n", "25\r\n", "hello\r\n", "999 x\r\n", "000 x\r\n"]
    {
        plaintext_auth(
            &submission().c("NOOP\r\n").s(reply).c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close(),
        );
    }
}

#[test]
fn ev19_nul_8_bit_and_telnet_octets() {
    plaintext_auth(
        &submission()
            .c(b"NO\0OP\xff\xf4\x06\r\n")
            .s("500 what?\r\n")
            .c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
            .s("235 ok\r\n")
            .close(),
    );
}

#[test]
fn ev20_data_in_the_syn() {
    let mut talk = deliver(greeted().s(STRIPPED));
    let ehlo = talk.packets.iter().position(|packet| packet.payload.starts_with(b"EHLO")).expect("EHLO");
    // The client sends data in its SYN, before the greeting (TCP Fast Open and PIPECONNECT together).
    let payload = talk.packets.remove(ehlo).payload;
    talk.packets[0].payload = payload;
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    assert_eq!(heard.gaps, 0);
}

#[test]
fn ev21_keep_alives_and_probes() {
    let mut talk = greeted().s(STRIPPED).ack(Side::Client);
    for from in [Side::Client, Side::Server] {
        let last = talk.packets.iter().rev().find(|packet| packet.from == from).expect("packet").clone();
        let next = last.seq.wrapping_add(u32::try_from(last.payload.len()).expect("small"));
        talk.packets.push(OwnedSegment { seq: next.wrapping_sub(1), payload: vec![0], flags: TcpFlags::ACK, ..last });
    }
    let heard = hear_after(&honest_history(6), &deliver(talk), Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "a keep-alive is neither data nor a conflict");
}

#[test]
fn ev22_a_reset_that_the_host_ignores() {
    let decoy = |talk: Dialogue| talk.reset(Side::Server);
    let talk = deliver(decoy(greeted().s(STRIPPED).ack(Side::Client)));
    let heard = hear_after(&honest_history(6), &talk, Vec::new());
    assert_eq!(heard.kinds(), [Kind::StarttlsStripped]);
    assert_eq!(heard.sessions.len(), 1);
    assert_eq!(heard.sessions[0].messages, 1);
}

#[test]
fn ev23_the_tuple_is_used_again() {
    let mut engine = engine(Vec::new());
    let mut heard = Recorded::default();
    greeted().s(OFFER).play(&mut engine, &mut heard);
    let mut next = submission().c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close().at(100);
    next.flow = greeted().flow;
    for packet in &mut next.packets {
        packet.seq = packet.seq.wrapping_add(55_555_555);
        packet.ack = packet.ack.wrapping_add(55_555_555);
    }
    next.play(&mut engine, &mut heard);
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext]);
}

#[test]
fn ev24_a_flood_is_bounded_and_counted() {
    let mut engine = engine(Vec::new());
    let mut evicted = 0;
    let syn = Dialogue::new(25);
    for number in 0..limits::FLOWS + 100 {
        let mut one = syn.clone();
        one.flow.client =
            ([10, 0, u8::try_from(number >> 16).expect("small"), 1], u16::try_from(number & 0xffff).expect("small"))
                .into();
        engine.handle(&one.segment(&one.packets[0]));
        while let Some(output) = engine.poll() {
            evicted += usize::from(output == Output::Evicted(EvictReason::Capacity));
        }
    }
    assert_eq!((engine.flows(), evicted), (limits::FLOWS, 100));
}

#[test]
fn ev24_the_bounds_are_those_of_the_settings() {
    let settings = Settings { flows: 40, ..Settings::default() };
    let mut engine = Engine::new(settings, Vec::new(), History::new(10));
    let mut evicted = HashMap::new();
    for number in 0..100 {
        let mut one = Dialogue::new(25).seen_by_server().s("220 mx1.example.net\r\n");
        // The first ones are from one network.
        let network = if number < 20 { 1 } else { number };
        one.flow.client = ([203, 0, network, number], 1000 + u16::from(number)).into();
        for packet in &one.packets {
            engine.handle(&one.segment(packet));
            while let Some(output) = engine.poll() {
                if let Output::Evicted(reason) = output {
                    *evicted.entry(reason).or_insert(0) += 1;
                }
            }
        }
    }
    // The clients' share is full; ten flows are reserved for outgoing mail.
    assert_eq!(engine.flows(), 30);
    // Ten of the twenty are one network's share; eighty other flows were added to them.
    assert_eq!(evicted, HashMap::from([(EvictReason::PeerQuota, 10), (EvictReason::Capacity, 60)]));
}

#[test]
fn ev24_a_flood_pushes_out_no_session() {
    let mut engine = engine(vec![]);
    let mut heard = Recorded::default();
    let talk = submission().c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close();
    let (before, after) = talk.packets.split_at(6);
    let play = |engine: &mut Engine, heard: &mut Recorded, packets: &[OwnedSegment]| {
        for packet in packets {
            engine.handle(&talk.segment(packet));
            heard.drain(engine);
        }
    };
    play(&mut engine, &mut heard, before);
    // SYNs with forged source addresses.
    let syn = Dialogue::new(587);
    let mut address = |number: usize, packets: std::ops::Range<usize>| {
        let mut one = syn.clone();
        let [.., a, b, c] = u32::try_from(number).expect("small").to_be_bytes();
        one.flow.client = ([10, a, b, c], 4000).into();
        for packet in &one.packets[packets] {
            engine.handle(&one.segment(packet));
            while engine.poll().is_some() {}
        }
    };
    (0..2 * limits::FLOWS).for_each(|number| address(number, 0..1));
    play(&mut engine, &mut heard, after);
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext]);
}

#[test]
fn ev24_one_peer_has_its_quota() {
    let mut engine = engine(vec![]);
    let mut evicted = 0;
    for number in 0..limits::FLOWS / limits::PEER_SHARE + 10 {
        let mut one = Dialogue::new(25).seen_by_server().s("220 mx1.example.net\r\n");
        one.flow.client = ([203, 0, 113, 7], u16::try_from(1000 + number).expect("small")).into();
        for packet in &one.packets {
            engine.handle(&one.segment(packet));
            while let Some(output) = engine.poll() {
                evicted += usize::from(output == Output::Evicted(EvictReason::PeerQuota));
            }
        }
    }
    assert_eq!((engine.flows(), evicted), (limits::FLOWS / limits::PEER_SHARE, 10));
    let heard = hear(&honest(), Vec::new());
    assert_eq!(heard.sessions[0].result, SessionResult::Tls);
}

#[test]
fn ev24_connections_that_never_open_are_forgotten_early() {
    let mut engine = engine(Vec::new());
    let syn = Dialogue::new(25);
    for port in 1000..2000 {
        let mut one = syn.clone();
        one.flow.client.set_port(port);
        engine.handle(&one.segment(&one.packets[0]));
    }
    // One of them completes the handshake and waits for a slow greeting.
    syn.play(&mut engine, &mut Recorded::default());
    assert_eq!(engine.flows(), 1001);
    engine.tick(Timestamp(syn.packets[0].at + 120_000_000_000));
    assert_eq!(engine.flows(), 1);
}

#[test]
fn ev26_one_direction_is_no_verdict() {
    for side in [Side::Client, Side::Server] {
        let mut talk = deliver(greeted().s(STRIPPED));
        talk.packets.retain(|packet| packet.from == side);
        let heard = hear_after(&honest_history(6), &talk, Vec::new());
        assert!(heard.findings.is_empty());
        assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
    }
}

#[test]
fn ev25_the_ports_are_the_operators() {
    // The engine accepts any port: which ports are watched is the gate's decision.
    let talk = Dialogue::new(2525).s(GREETING).c("EHLO gw\r\n").s("250 mx1.example.net\r\n");
    plaintext_auth(&talk.c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close());
}

#[test]
fn ev27_a_reply_cut_so_that_a_rewriter_misses_it_is_evidence() {
    let mut before = honest_history(40);
    before.push(deliver(greeted().s(STRIPPED)).at(-900 * 3600));
    // The server's stack happened to split the segment within the word: this offer passed the filter.
    let offer = OFFER.split_at(OFFER.find("RTTLS").expect("the offer"));
    before.push(tls(greeted().s(offer.0).s(offer.1).c("STARTTLS\r\n").s("220 2.0.0 go\r\n")).close().at(-800 * 3600));
    let heard = hear_after(&before, &deliver(greeted().s(STRIPPED)), Vec::new());
    assert_eq!((heard.kinds(), &*heard.findings[0].rule), (vec![Kind::StarttlsStripped], "A9"));
    // A retransmission that is split elsewhere passes the filter in the same session.
    let mut talk = greeted().s(MASKED).c("MAIL FROM:<a@example.org>\r\n").s("250 ok\r\n");
    let masked = talk.packets[reply_of(&talk)].clone();
    let at = OFFER.find("STARTTLS").expect("the offer");
    let piece = OFFER.as_bytes()[at - 4..at + 10].to_vec();
    let seq = masked.seq.wrapping_add(u32::try_from(at - 4).expect("small"));
    talk.packets.push(OwnedSegment { seq, payload: piece, ..masked });
    let heard = hear(&talk.close(), Vec::new());
    let tampering = heard.findings.iter().find(|finding| finding.kind == Kind::StreamTampering).expect("tampering");
    assert!(
        citing(tampering, "FO-1").iter().any(|line| line.contains("only in the other: STARTTLS")),
        "{:?}",
        tampering.indicators
    );
}

#[test]
fn ev28_multipath_is_no_verdict() {
    let talk = deliver(greeted().s(STRIPPED));
    let mut engine = engine(Vec::new());
    let mut heard = Recorded::default();
    for before in honest_history(6) {
        before.play(&mut engine, &mut Recorded::default());
    }
    for packet in &talk.packets {
        let mut segment = talk.segment(packet);
        if packet.flags.contains(TcpFlags::SYN) {
            segment.options = &[30, 4, 0x01, 0x00];
        }
        engine.handle(&segment);
        heard.drain(&mut engine);
    }
    assert!(heard.findings.is_empty(), "{:?}", heard.findings);
    assert_eq!(heard.sessions[0].result, SessionResult::Unknown);
}

#[test]
fn tls_octets_without_starttls_do_not_blind() {
    // A client that begins like TLS and continues in cleartext, with a server that speaks SMTP.
    let talk = Dialogue::new(587).c(&client_hello(0x0303)[..6]).c("\r\n").s([GREETING, "500 what?\r\n"].concat());
    plaintext_auth(&talk.c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close());
    plaintext_auth(
        &submission()
            .c(b"\x16\x03\x01\r\n")
            .s("500 what?\r\n")
            .c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
            .s("235 ok\r\n")
            .close(),
    );
}

#[test]
fn time_and_order_of_flows_do_not_mix_them() {
    let mut engine = engine(Vec::new());
    let mut heard = Recorded::default();
    let (one, mut two) = (honest(), submission().c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n").s("235 ok\r\n").close());
    two.flow.client.set_port(50_000);
    let longest = one.packets.len().max(two.packets.len());
    for at in 0..longest {
        for talk in [&one, &two] {
            if let Some(packet) = talk.packets.get(at) {
                engine.handle(&talk.segment(packet));
                heard.drain(&mut engine);
            }
        }
    }
    engine.finish(Timestamp(i64::MAX));
    heard.drain(&mut engine);
    assert_eq!(heard.kinds(), [Kind::AuthPlaintext]);
}
