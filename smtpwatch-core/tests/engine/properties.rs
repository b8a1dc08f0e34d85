//! Properties that hold for any segmentation, order and duplication of the same bytes, and for arbitrary bytes.

use crate::scenario::{
    self, Dialogue, MASKED, OFFER, OwnedSegment, Recorded, STRIPPED, deliver, engine, greeted, hear,
};
use proptest::prelude::*;
use smtpwatch_core::{
    Finding, Side, Timestamp,
    evidence::EvidenceBundle,
    policy::rule::{Rule, StarttlsRule},
};

fn dialogues() -> Vec<Dialogue> {
    let submission = || Dialogue::new(587).s(scenario::GREETING).c("EHLO gw\r\n");
    vec![
        deliver(greeted().s(STRIPPED)),
        deliver(greeted().s(MASKED)),
        deliver(greeted().s(OFFER).c("STARTTLS\r\n").s("454 not now\r\n")),
        submission()
            .s(OFFER)
            .c("AUTH LOGIN\r\n")
            .s("334 x\r\n")
            .c("dXNlcg==\r\n")
            .s("334 x\r\n")
            .c("cGFzcw==\r\n")
            .s("235 ok\r\n")
            .close(),
        scenario::tls(greeted().s(OFFER).c("STARTTLS\r\n").s("220 go\r\n")).close(),
    ]
}

fn rules() -> Vec<Rule> {
    vec![Rule { starttls: Some(StarttlsRule::Required), ..Rule::default() }]
}

/// The claims of a finding, without the time, which depends on the segmentation.
fn claims(findings: Vec<Finding>) -> Vec<Finding> {
    findings.into_iter().map(claim).collect()
}

/// The same bytes yield the same claim however they arrive.
fn claim(finding: Finding) -> Finding {
    let octets = finding.exhibit.map(|exhibit| exhibit.octets).unwrap_or_default();
    let exhibit = Some(Box::new(EvidenceBundle { octets, ..EvidenceBundle::default() }));
    Finding { time: Timestamp::default(), indicators: Vec::new(), exhibit, ..finding }
}

/// Splits every payload at random offsets, and shuffles and repeats the pieces within a run of one side's segments.
fn mangle(talk: &Dialogue, seeds: &[u16]) -> Dialogue {
    let mut seeds = seeds.iter().copied().cycle();
    let mut next = move |below: usize| usize::from(seeds.next().unwrap_or(0)) % below.max(1);
    let mut mangled = talk.clone();
    mangled.packets.clear();
    for packet in &talk.packets {
        if packet.payload.is_empty() {
            mangled.packets.push(packet.clone());
            continue;
        }
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < packet.payload.len() {
            let size = 1 + next(packet.payload.len() - at);
            let seq = packet.seq.wrapping_add(u32::try_from(at).expect("small"));
            pieces.push(OwnedSegment { seq, payload: packet.payload[at..at + size].to_vec(), ..packet.clone() });
            at += size;
        }
        for _ in 0..next(3) {
            pieces.push(pieces[next(pieces.len())].clone());
        }
        for place in (1..pieces.len()).rev() {
            pieces.swap(place, next(place + 1));
        }
        mangled.packets.extend(pieces);
    }
    mangled
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_order_and_duplication_gives_the_same_findings(seeds in prop::collection::vec(any::<u16>(), 1..200)) {
        for talk in dialogues() {
            let whole = hear(&talk, rules());
            let mangled = hear(&mangle(&talk, &seeds), rules());
            prop_assert_eq!(mangled.gaps, 0);
            prop_assert_eq!(claims(mangled.findings), claims(whole.findings));
            prop_assert_eq!(mangled.sessions, whole.sessions);
        }
    }

    #[test]
    fn a_lost_packet_never_makes_an_accusation(at in any::<prop::sample::Index>()) {
        for talk in dialogues() {
            let honest = hear(&talk, Vec::new()).kinds();
            let mut cut = talk.clone();
            cut.packets.remove(at.index(talk.packets.len()));
            for kind in hear(&cut, Vec::new()).kinds() {
                prop_assert!(honest.contains(&kind), "{kind}");
            }
        }
    }

    #[test]
    fn octets_of_any_kind_are_borne(lines in prop::collection::vec(line(), 0..60), size in 1_usize..40) {
        let mut talk = greeted();
        for (from, line) in lines {
            talk = match from {
                Side::Client => talk.c(line),
                Side::Server => talk.s(line),
            };
        }
        let mut engine = engine(rules());
        let mut heard = Recorded::default();
        talk.cut(size).play(&mut engine, &mut heard);
        engine.finish(Timestamp(i64::MAX));
        heard.drain(&mut engine);
        prop_assert_eq!(engine.flows(), 0);
        prop_assert_eq!(heard.sessions.len(), 1);
        for finding in heard.findings {
            let json = serde_json::to_string(&finding).expect("serialises");
            prop_assert!(!json.contains("c2VjcmV0LXdvcmQ"), "{json}");
        }
    }
}

/// Parts of SMTP dialogues, so that deep states are reached, with a secret wherever a client may send one.
fn line() -> impl Strategy<Value = (Side, Vec<u8>)> {
    const CLIENT: &[&str] = &[
        "EHLO x\r\n",
        "HELO x\r\n",
        "STARTTLS\r\n",
        "AUTH PLAIN c2VjcmV0LXdvcmQ=\r\n",
        "AUTH c2VjcmV0LXdvcmQ=\r\n",
        "AUTH LOGIN\r\n",
        "c2VjcmV0LXdvcmQ=\r\n",
        "FROB c2VjcmV0LXdvcmQ=\r\n",
        "*\r\n",
        "MAIL FROM:<a@b.example>\r\n",
        "RCPT TO:<a@b.example>\r\n",
        "DATA\r\n",
        ".\r\n",
        "BDAT 3\r\nabc",
        "BDAT 7 LAST\r\n",
        "BDAT x\r\n",
        "RSET\r\n",
        "QUIT\r\n",
        "\r\n",
        "\r",
    ];
    const SERVER: &[&str] = &[
        "220 go\r\n",
        "250 ok\r\n",
        "250-a\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n",
        "250-XXXXXXXA\r\n",
        "334 \r\n",
        "354 go\r\n",
        "235 ok\r\n",
        "454 no\r\n",
        "535 no\r\n",
        "200 x\r\n",
        "99\r\n",
        "\0\u{7f}",
    ];
    let said = |from, pieces: &'static [&'static str]| {
        prop::sample::select(pieces).prop_map(move |piece| (from, piece.as_bytes().to_vec()))
    };
    let side = || prop::sample::select(&[Side::Client, Side::Server][..]);
    prop_oneof![
        4 => said(Side::Client, CLIENT),
        4 => said(Side::Server, SERVER),
        1 => (side(), prop::collection::vec(any::<u8>(), 0..30)),
        1 => side().prop_map(|side| (side, vec![0x16, 3, 1, 0, 2, 1, 0])),
    ]
}

#[test]
fn a_session_of_either_side_survives_without_the_other() {
    for talk in dialogues() {
        for side in [Side::Client, Side::Server] {
            let mut half = talk.clone();
            half.packets.retain(|packet| packet.from == side);
            assert_eq!(hear(&half, rules()).kinds(), []);
        }
    }
}

/// The order of packets in a recording from several receive queues.
#[test]
fn neighbours_swapped_across_directions_change_nothing() {
    for talk in dialogues() {
        let whole = hear(&talk, rules());
        for at in 0..talk.packets.len() - 1 {
            let mut swapped = talk.clone();
            swapped.packets.swap(at, at + 1);
            let heard = hear(&swapped, rules());
            assert_eq!((heard.kinds(), heard.gaps), (whole.kinds(), 0), "{at}");
            assert_eq!(heard.sessions, whole.sessions, "{at}");
        }
    }
}
