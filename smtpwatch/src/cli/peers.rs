//! `smtpwatch peers`: who still talks in cleartext, and what would have waited if TLS had been required.

use std::io::{self, IsTerminal, Write};

use smtpwatch_config::Config;
use smtpwatch_core::day::Day;
use smtpwatch_render::{
    csv,
    text::{json_line, printable},
};
use smtpwatch_store::{
    Store,
    peers::{DAYS, PeerPage, PeerQuery, PeerSort, PeerUse},
};
use smtpwatch_system::clock::now;

use super::{Exit, PeersArgs, PeersFormat};

pub(super) fn parse_sort(text: &str) -> Result<PeerSort, String> {
    let known = PeerSort::ALL.map(PeerSort::as_str).join(", ");
    PeerSort::ALL.into_iter().find(|sort| sort.as_str() == text).ok_or_else(|| format!("expected one of {known}"))
}

pub(super) fn run(args: &PeersArgs) -> anyhow::Result<Exit> {
    let path = match &args.store {
        Some(path) => path.clone(),
        None => Config::load(args.config.config.as_deref())?.0.store,
    };
    let query = PeerQuery {
        role: args.role,
        port: args.port,
        sort: args.sort,
        after: None,
        limit: usize::from(args.limit),
        today: Day::of(now()),
    };
    let page = Store::open_existing(&path)?.peers(&query)?;
    let default = if io::stdout().is_terminal() { PeersFormat::Text } else { PeersFormat::Json };
    super::out(|out| match args.format.unwrap_or(default) {
        PeersFormat::Json => page.peers.iter().try_for_each(|peer| out.write_all(json_line(peer).as_bytes())),
        PeersFormat::Csv => {
            out.write_all(csv::line(&PeerUse::COLUMNS).as_bytes())?;
            page.peers.iter().try_for_each(|peer| out.write_all(csv::line(&peer.cells()).as_bytes()))
        }
        PeersFormat::Text => in_words(out, &page),
    })?;
    Ok(Exit::Fine)
}

fn in_words(out: &mut impl Write, page: &PeerPage) -> io::Result<()> {
    let (peers, total) = (&page.peers, &page.total);
    if peers.is_empty() {
        return writeln!(out, "no sessions in the last {DAYS} days");
    }
    let below = peers.iter().fold(0_u64, |sum, peer| sum.saturating_add(peer.cleartext_messages));
    let deliveries = if below == 1 { "delivery" } else { "deliveries" };
    writeln!(
        out,
        "If TLS were required of the peers below, {below} {deliveries} of the last {DAYS} days would have waited."
    )?;
    if peers.len() as u64 != total.peers {
        writeln!(out, "Of all {} peers together: {}.", total.peers, total.affected_messages)?;
    }
    writeln!(
        out,
        "{:>8} {:>9} {:>9} {:>9} {:>9} {:<8} {:<20} {:<6} PEER",
        "WAITING", "CLEARTEXT", "SESSIONS", "OFFERED", "TLS", "TREND", "LAST IN CLEARTEXT", "ROLE"
    )?;
    for peer in peers {
        let last =
            peer.last_cleartext.map_or_else(|| "never".to_owned(), |at| at.to_string().chars().take(19).collect());
        let name = peer.names.first().map(|name| format!(" ({name})")).unwrap_or_default();
        let address = std::net::SocketAddr::new(peer.peer, peer.port);
        writeln!(
            out,
            "{:>8} {:>9} {:>9} {:>9} {:>9} {:<8} {last:<20} {:<6} {address}{}",
            peer.cleartext_messages,
            peer.cleartext_sessions,
            peer.sessions,
            peer.offered,
            peer.used,
            peer.trend.as_str(),
            peer.role.as_str(),
            printable(&name)
        )?;
    }
    Ok(())
}
