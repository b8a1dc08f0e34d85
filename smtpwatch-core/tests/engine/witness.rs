//! Forged frames against the engine: it trusts packets that leave this host, and treats arriving packets as claims.
//! `tests/lab/adversary` does the same against kernel, stack and daemon.

use smtpwatch_core::{Role, Side, TcpFlags, engine::SessionResult, finding::Kind};

use crate::scenario::{
    Dialogue, GREETING, OFFER, OwnedSegment, Recorded, STRIPPED, deliver, engine, greeted, hear, hear_after, honest,
    honest_history, tls,
};

/// A forged dialogue: the packets of both ends arrive.
fn forged(mut talk: Dialogue) -> Dialogue {
    talk.packets.iter_mut().for_each(|packet| packet.arrives = true);
    talk
}

/// A strip with these packets inserted before the one at `at`.
fn strip_with(at: usize, decoys: Vec<OwnedSegment>) -> Dialogue {
    let mut talk = deliver(greeted().s(STRIPPED)).close();
    talk.packets.splice(at..at, decoys);
    talk
}

/// A packet of a real dialogue with other content.
fn like(talk: &Dialogue, at: usize, change: impl FnOnce(&mut OwnedSegment)) -> OwnedSegment {
    let mut packet = talk.packets[at].clone();
    change(&mut packet);
    packet
}

fn plain() -> Dialogue {
    deliver(greeted().s(STRIPPED)).close()
}

#[test]
fn a_session_that_only_arrives_is_none() {
    for talk in [
        deliver(greeted().s(STRIPPED)).close(),
        honest(),
        tls(greeted().s(STRIPPED).c("STARTTLS\r\n").s("220 go\r\n")).close(),
    ] {
        for role in [Role::Client, Role::Server] {
            let mut engine = engine(Vec::new());
            let mut heard = Recorded::default();
            let mut talk = forged(talk.clone());
            talk.role = role;
            talk.play(&mut engine, &mut heard);
            engine.finish(smtpwatch_core::Timestamp(i64::MAX / 2));
            heard.drain(&mut engine);
            assert_eq!(heard.kinds(), [], "{role:?}");
            assert_eq!(engine.history().len(), 0, "{role:?}");
            let results: Vec<_> = heard.sessions.iter().map(|session| session.result).collect();
            assert_eq!(results, [SessionResult::Unknown], "{role:?}");
        }
    }
}

#[test]
fn forged_sessions_wear_no_history_down() {
    let mut before = honest_history(6);
    for hour in 0..16 {
        let offer = if hour % 2 == 0 { OFFER } else { STRIPPED };
        let talk = tls(greeted().s(offer).c("STARTTLS\r\n").s("220 go\r\n")).close();
        before.push(forged(talk.at((hour - 900) * 3600)));
    }
    assert_eq!(hear_after(&before, &plain(), Vec::new()).kinds(), [Kind::StarttlsStripped]);
}

#[test]
fn a_syn_ack_counts_once_this_host_has_acknowledged_it() {
    let real = plain();
    let other = |isn: u32| like(&real, 1, |packet| packet.seq = packet.seq.wrapping_add(isn));
    for decoys in [vec![other(77_777)], (1..9).map(|number| other(number * 1000)).collect()] {
        let count = decoys.len();
        let heard = hear_after(&honest_history(6), &strip_with(1, decoys), Vec::new());
        assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "{count} decoys: {:?}", heard.sessions);
        assert_eq!((heard.gaps, heard.sessions[0].result), (0, SessionResult::Plaintext));
    }
    // After the real one as well, and with the host's own source address.
    for at in [2, 3, 4, 6] {
        for arrives in [false, true] {
            let decoy = like(&real, 1, |packet| (packet.seq, packet.arrives) = (9, arrives));
            let heard = hear_after(&honest_history(6), &strip_with(at, vec![decoy]), Vec::new());
            assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "before packet {at}: {:?}", heard.sessions);
        }
    }
}

#[test]
fn what_comes_before_the_connection_changes_nothing() {
    let real = plain();
    let data = |at: usize, arrives: bool| like(&real, at, |packet| packet.arrives = arrives);
    let own_syn = like(&real, 0, |packet| (packet.seq, packet.arrives) = (4711, true));
    for (at, decoys) in [
        (0, vec![data(3, false)]),
        (0, vec![data(4, true), data(5, false)]),
        (1, vec![data(3, false)]),
        (0, vec![own_syn.clone()]),
        (0, vec![own_syn, data(1, false), data(3, false)]),
    ] {
        let heard = hear_after(&honest_history(6), &strip_with(at, decoys), Vec::new());
        assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "before packet {at}: {:?}", heard.sessions);
    }
}

#[test]
fn ends_that_arrive_end_nothing() {
    let real = plain();
    for at in 3..real.packets.len() - 4 {
        for from in [Side::Client, Side::Server] {
            for flags in [TcpFlags::FIN | TcpFlags::ACK, TcpFlags::RST | TcpFlags::ACK] {
                // At the sender's sequence number as its peer expects it.
                let next = real.packets[at..].iter().find(|packet| packet.from == from).expect("a later one").seq;
                let decoy = like(&real, at, |packet| {
                    *packet =
                        OwnedSegment { from, flags, seq: next, payload: Vec::new(), arrives: true, ..packet.clone() };
                });
                let heard = hear_after(&honest_history(6), &strip_with(at, vec![decoy]), Vec::new());
                assert_eq!(heard.kinds(), [Kind::StarttlsStripped], "{from:?} {flags:?} before packet {at}");
                assert_eq!(heard.sessions.len(), 1, "{from:?} {flags:?} before packet {at}: {:?}", heard.sessions);
            }
        }
    }
}

#[test]
fn the_same_four_numbers_are_another_connection_when_this_host_says_so() {
    for role in [Role::Client, Role::Server] {
        let mut first = honest();
        let mut second = Dialogue::new(25)
            .s(GREETING)
            .c("EHLO x\r\n")
            .s("250 mx1.example.net\r\n")
            .c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
            .s("235 ok\r\n")
            .close()
            .at(30);
        (first.role, second.role) = (role, role);
        // A connection that this host has not closed, as far as its packets show.
        first.packets.truncate(first.packets.len() - 4);
        let mut both = second;
        both.packets.splice(0..0, first.packets);
        let heard = hear(&both, Vec::new());
        assert_eq!(heard.kinds(), [Kind::AuthPlaintext], "{role:?}: {:?}", heard.sessions);
        assert_eq!(heard.sessions.len(), 2, "{role:?}");
    }
}

#[test]
fn a_password_is_found_whatever_the_server_seems_to_say() {
    let real = Dialogue::new(587)
        .s(GREETING)
        .c("EHLO x\r\n")
        .s(OFFER)
        .c("AUTH PLAIN AHVzZXIAcGFzcw==\r\n")
        .s("235 ok\r\n")
        .close();
    for at in (0..real.packets.len())
        .filter(|at| real.packets[*at].from == Side::Server && !real.packets[*at].payload.is_empty())
    {
        for after in [0, 1] {
            let mut talk = real.clone();
            let decoy = like(&real, at, |packet| {
                packet.payload =
                    b"220 2.0.0 Ready to start TLS, or so it seems to you\r\n"[..packet.payload.len().min(48)].to_vec();
            });
            talk.packets.insert(at + after, decoy);
            let heard = hear(&talk, Vec::new());
            assert!(
                heard.kinds().contains(&Kind::AuthPlaintext),
                "{at} {after}: {:?} {:?}",
                heard.kinds(),
                heard.sessions
            );
            let [session] = &heard.sessions[..] else { panic!("{at} {after}: {:?}", heard.sessions) };
            assert_ne!(session.result, SessionResult::Tls, "{at} {after}");
        }
    }
}

#[test]
fn frames_in_this_hosts_own_name_begin_no_tls() {
    let real = plain();
    let said = tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 go\r\n"));
    // The whole false dialogue, at the place of the real EHLO reply.
    let mut decoys: Vec<OwnedSegment> = said.packets[5..].to_vec();
    decoys.iter_mut().for_each(|packet| packet.arrives = true);
    let heard = hear_after(&honest_history(6), &strip_with(5, decoys), Vec::new());
    assert!(heard.kinds().contains(&Kind::StarttlsStripped), "{:?} {:?}", heard.kinds(), heard.sessions);
    let [session] = &heard.sessions[..] else { panic!("{:?}", heard.sessions) };
    assert_ne!(session.result, SessionResult::Tls);
    assert_eq!(real.packets[5].payload, STRIPPED.as_bytes());
}

#[test]
fn a_capture_without_directions_is_taken_as_it_is() {
    let without = |talk: Dialogue| talk.without_directions();
    let before: Vec<Dialogue> = honest_history(6).into_iter().map(without).collect();
    assert_eq!(hear_after(&before, &plain().without_directions(), Vec::new()).kinds(), [Kind::StarttlsStripped]);
    assert_eq!(hear(&honest().without_directions(), Vec::new()).sessions[0].result, SessionResult::Tls);
}

#[test]
fn an_urgent_byte_is_left_out_as_the_host_leaves_it_out() {
    let line = "AUTH PLAIN AHVzZXIAcGFzcw==\r\n";
    for place in 0..line.len() {
        let (before, after) = line.split_at(place);
        let said = format!("{before}X{after}");
        let mut talk = Dialogue::new(587)
            .seen_by_server()
            .s(GREETING)
            .c("EHLO x\r\n")
            .s("250 mx1.example.net\r\n")
            .c(&said)
            .s("235 ok\r\n")
            .close();
        let at = talk.packets.iter().position(|packet| packet.payload == said.as_bytes()).expect("the line");
        let packet = &mut talk.packets[at];
        packet.flags = packet.flags | TcpFlags::URG;
        packet.urgent = u16::try_from(place + 1).expect("small");
        let heard = hear(&talk, Vec::new());
        assert_eq!((heard.kinds(), heard.gaps), (vec![Kind::AuthPlaintext], 0), "{place}: {:?}", heard.sessions);
        // A byte in a segment of its own.
        let mut talk = talk.clone();
        let whole = talk.packets.remove(at);
        for (offset, byte) in (0_u32..).zip(&whole.payload) {
            let urgent = u16::from(usize::try_from(offset).expect("small") == place);
            let flags = if urgent > 0 { whole.flags } else { TcpFlags::ACK | TcpFlags::PSH };
            let seq = whole.seq.wrapping_add(offset);
            let packet = OwnedSegment { seq, flags, urgent, payload: vec![*byte], ..whole.clone() };
            talk.packets.insert(at + usize::try_from(offset).expect("small"), packet);
        }
        assert_eq!(hear(&talk, Vec::new()).kinds(), [Kind::AuthPlaintext], "{place}, byte by byte");
    }
}
