//! The engine over files, as a library.

use smtpwatch::{
    config::Config,
    replay::{Event, Replay},
};
use smtpwatch_core::{
    engine::{SessionResult, SessionSummary},
    finding::StarttlsState,
    policy::history::History,
};

use crate::traffic::{self, CLIENT, START_NS};

fn sessions(files: &[Vec<u8>]) -> (Vec<SessionSummary>, smtpwatch::replay::Summary) {
    let directory = tempfile::tempdir().unwrap();
    let mut replay = Replay::new(&Config::default(), History::new(100));
    let mut sessions = Vec::new();
    for (index, octets) in files.iter().enumerate() {
        let path = directory.path().join(index.to_string());
        std::fs::write(&path, octets).unwrap();
        replay.file(&path, |event| sessions.extend(session(event))).unwrap();
    }
    let summary = replay.finish(|event| sessions.extend(session(event)));
    (sessions, summary)
}

fn session(event: Event) -> Option<SessionSummary> {
    if let Event::Session(session) = event { Some(session) } else { None }
}

#[test]
fn a_session_is_told_whole() {
    let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let (found, summary) = sessions(&[traffic::pcap(&mail, 1, false, false)]);
    let [session] = found.as_slice() else { panic!("one session: {found:?}") };
    assert_eq!((session.result, session.starttls), (SessionResult::Plaintext, StarttlsState::Offered));
    assert_eq!((session.messages, session.gaps, session.starttls_sent), (1, 0, false));
    assert_eq!((summary.files, summary.packets, summary.unread), (1, mail.len() as u64, 0));
    assert_eq!(summary.sessions, [0, 1, 0, 0]);
}

/// A connection that goes on in the next file is one session: files are one timeline.
#[test]
fn a_session_goes_on_in_the_next_file() {
    let mut first = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
    let second = first.split_off(9);
    let files = [traffic::pcap(&first, 1, false, false), traffic::pcapng(&second, &[("eth0", 101, 9)], true)];
    let (found, summary) = sessions(&files);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].messages, found[0].gaps, summary.files), (1, 0, 2));
}
