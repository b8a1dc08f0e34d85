//! Measures how much bulk-mail throughput the daemon costs.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use smtpwatch_tests::load::{self, Messages, Sink};
use smtpwatch_tests::postfix::{Postfix, SUBMISSION};
use smtpwatch_tests::tls::Identity;

use super::pairs::Pairs;
use super::plan::Plan;
use super::site::{Counts, EXCHANGER, Place, Site};
use super::stream::{self, Until};
use super::table;

/// Greatest allowed loss, as a fraction.
const AIM: f64 = 0.01;
/// Just below Postfix's `message_size_limit` of 10,240,000.
const OCTETS: u64 = 10_000_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Interval at which the end of a delivery is polled; it bounds the error of a run of some seconds.
const POLL: Duration = Duration::from_millis(2);

/// Runs the measurement and returns its table.
pub fn section(site: &Site, plan: &Plan) -> Result<String> {
    let identity = Identity::generate("mx1.example.net")?;
    let mut rows = String::new();
    {
        let _sink = Sink::start(&site.path.exchanger, EXCHANGER)?;
        for place in Place::ALL {
            let pairs = measured(site, plan, place, "10 MB in cleartext", || in_clear(site, plan))?;
            rows.write_str(&table::pairs_row(
                "`smtp-source` to `smtp-sink`, 10 MB in cleartext",
                place.describe(),
                "MB/s",
                &pairs,
                AIM,
            ))?;
        }
    }
    for place in Place::ALL {
        let stream = || Ok(stream::run(&site.path, &identity, Until::Elapsed(plan.stream))? / 1e6);
        let pairs = measured(site, plan, place, "a stream of TLS records", stream)?;
        rows.write_str(&table::pairs_row(
            "one stream of TLS records after STARTTLS",
            place.describe(),
            "MB/s",
            &pairs,
            AIM,
        ))?;
    }
    {
        let _receiver = Postfix::receiver(&site.path.exchanger, &identity)?;
        let sender = Postfix::sender(&site.path.gateway, &[("example.net", EXCHANGER)])?;
        let pairs = measured(site, plan, Place::CLIENT, "Postfix", || postfix(site, plan, &sender))?;
        ensure!(sender.log().contains("TLS connection established"), "Postfix does not use TLS: {}", sender.log());
        let place = Place::CLIENT.describe();
        rows.write_str(&table::pairs_row("Postfix to Postfix, 10 MB under STARTTLS", place, "MB/s", &pairs, AIM))?;
    }
    Ok(format!(
        "**Bulk.** {} pairs of runs, without and with the daemon in turns, over two veth pairs and a router; each ratio is of \
         one pair, and \"two runs without\" is the same of two runs that follow each other without the daemon: the noise. The \
         stream is a dialogue with a real TLS handshake, followed by what looks like records; Postfix takes the mail on a \
         port that is not watched, and its time is until the last message is delivered. XDP on a veth makes the kernel copy \
         every packet, whatever the program does (`skb_pp_cow_data`); what the driver of a network card does instead is not \
         measured here. What is left for the program is the row beside an empty XDP program, which is attached in the runs without the daemon.\n\n{}{rows}",
        plan.pairs,
        table::PAIRS_HEAD
    ))
}

/// Runs pairs of `run`; the starts and stops of the daemon are outside the measured time.
fn measured(site: &Site, plan: &Plan, place: Place, what: &str, mut run: impl FnMut() -> Result<f64>) -> Result<Pairs> {
    Pairs::measure(plan.pairs, &format!("{what}, {}", place.describe()), |watched| {
        let _beside = if watched { None } else { site.beside(place)? };
        let daemon = watched.then(|| site.daemon(place)).transpose()?;
        let figure = run()?;
        if let Some(daemon) = daemon {
            // Do not wait for the sessions: one that ends in a reset is closed only after a delay.
            let counts = Counts::after(&daemon, 0.0)?;
            counts.ensure_muted()?;
            ensure!(counts.dropped == 0.0, "records were lost in bulk: {counts:?}");
        }
        Ok(figure)
    })
}

fn in_clear(site: &Site, plan: &Plan) -> Result<f64> {
    let messages = Messages { count: plan.bulk_messages, octets: OCTETS, parallel: 4 };
    let elapsed = load::source(&site.path.gateway, messages, EXCHANGER, LIMIT)?;
    Ok(megabytes(plan.bulk_messages) / elapsed.as_secs_f64())
}

fn postfix(site: &Site, plan: &Plan, sender: &Postfix) -> Result<f64> {
    let wanted = sender.sent() + usize::try_from(plan.postfix_messages)?;
    let messages = Messages { count: plan.postfix_messages, octets: OCTETS, parallel: 4 };
    let begun = Instant::now();
    load::source(&site.path.gateway, messages, SUBMISSION, LIMIT)?;
    while sender.sent() < wanted {
        ensure!(begun.elapsed() < LIMIT, "mail is not delivered: {}", sender.log());
        std::thread::sleep(POLL);
    }
    Ok(megabytes(plan.postfix_messages) / begun.elapsed().as_secs_f64())
}

#[expect(clippy::cast_precision_loss, reason = "some gigabytes")]
fn megabytes(messages: u64) -> f64 {
    (messages * OCTETS) as f64 / 1e6
}
