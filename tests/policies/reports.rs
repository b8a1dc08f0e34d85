//! From sessions in the store to the report that a receiver reads.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use smtpwatch_config::{Config, TlsrptSettings};
use smtpwatch_core::engine::{Delivery, PolicyType, ResultType};
use smtpwatch_core::{Timestamp, day::Day};
use smtpwatch_store::{Writer, WriterSettings};
use smtpwatch_tests::netns::Namespace;
use smtpwatch_tests::postfix::Postfix;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{command, python, scenario};
use smtpwatch_tlsrpt::{file::Packed, inbound, mail::Letter, outbound::Reporter, report_sender::ReportSender};

use crate::dns::NameServer;
use crate::https::WebServer;
use crate::mail::MailServer;

/// 2026-11-23, midnight.
const DAY: i64 = 1_795_392_000;
/// Two minutes after its end.
const DUE: i64 = DAY + 86_400 + 120;
const LIMIT: Duration = Duration::from_secs(90);

fn deliveries() -> Vec<Delivery> {
    let delivery = |failure, policy, host: &str| Delivery {
        at: Timestamp::from_secs(DAY + 3600),
        domain: "example.net".to_owned(),
        policy,
        policy_strings: match policy {
            PolicyType::Sts => ["version: STSv1", "mode: enforce", "mx: *.example.net"].map(str::to_owned).to_vec(),
            PolicyType::Tlsa | PolicyType::NoPolicyFound => Vec::new(),
        },
        mx_hosts: if policy == PolicyType::Sts { vec!["*.example.net".to_owned()] } else { Vec::new() },
        failure,
        reason: failure.filter(|result| *result == ResultType::ValidationFailure).map(|_| "tls-alert-40".to_owned()),
        sending: "192.0.2.10".parse().expect("an address"),
        receiving: "2001:db8::25".parse().expect("an address"),
        receiving_host: host.to_owned(),
        receiving_helo: String::new(),
    };
    let failures = [
        None,
        None,
        Some(ResultType::StarttlsNotSupported),
        Some(ResultType::StarttlsNotSupported),
        Some(ResultType::ValidationFailure),
    ];
    let mut all: Vec<_> =
        failures.into_iter().map(|failure| delivery(failure, PolicyType::Sts, "mx1.example.net")).collect();
    all.push(delivery(None, PolicyType::NoPolicyFound, "mx2.example.net"));
    all
}

/// What the third-party parser must read in [`deliveries`]. It ignores mx-host.
fn expected_policies() -> Value {
    json!([
        {"policy_domain": "example.net", "policy_type": "no-policy-found",
         "successful_session_count": 1, "failed_session_count": 0},
        {"policy_domain": "example.net", "policy_type": "sts",
         "policy_strings": ["version: STSv1", "mode: enforce", "mx: *.example.net"],
         "successful_session_count": 2, "failed_session_count": 3,
         "failure_details": [
            {"result_type": "starttls-not-supported", "failed_session_count": 2, "sending_mta_ip": "192.0.2.10",
             "receiving_ip": "2001:db8::25", "receiving_mx_hostname": "mx1.example.net"},
            {"result_type": "validation-failure", "failed_session_count": 1, "sending_mta_ip": "192.0.2.10",
             "receiving_ip": "2001:db8::25", "receiving_mx_hostname": "mx1.example.net",
             "failure_reason_code": "tls-alert-40"}]},
    ])
}

struct Home {
    directory: tempfile::TempDir,
}

impl Home {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        for part in ["mail", "reports"] {
            std::fs::create_dir(directory.path().join(part))?;
        }
        Ok(Self { directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, table: &str) -> Result<Config> {
        let text = format!(
            "[store]\npath = {:?}\n[tlsrpt]\norganization = \"Example Corp\"\ncontact = \"tlsrpt@example.org\"\n\
             delay_seconds = 0\ndirectory = {:?}\n{table}",
            self.path("smtpwatch.db"),
            self.path("reports"),
        );
        Ok(Config::parse(&text, Path::new("smtpwatch.toml"))?)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(self.path("reports"))?.collect::<Result<Vec<_>, _>>()?;
        let paths = entries.into_iter().map(|entry| entry.path());
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == "gz")).collect())
    }
}

/// What the third-party parser reads in a file.
fn read_by_another(path: &Path) -> Result<Value> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/read_report.py");
    let text = command::run(Command::new(python::interpreter()?).arg(script).arg(path), LIMIT)?;
    let found: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(found["type"] == "smtp_tls", "{found}");
    Ok(found["report"].clone())
}

fn is_ours(report: &Value) -> Result<()> {
    ensure!(report["organization_name"] == "Example Corp", "{report}");
    ensure!(report["contact_info"] == "tlsrpt@example.org", "{report}");
    ensure!(report["begin_date"] == "2026-11-23T00:00:00Z" && report["end_date"] == "2026-11-23T23:59:59Z", "{report}");
    ensure!(report["report_id"].as_str().is_some_and(|id| id.ends_with("@example.org")), "{report}");
    ensure!(report["policies"] == expected_policies(), "{:#}\nis not\n{:#}", report["policies"], expected_policies());
    Ok(())
}

#[test]
fn files_are_read_by_another_parser() {
    scenario("files_are_read_by_another_parser", || {
        python::interpreter()?;
        let home = Home::new()?;
        let config = home.config("")?;
        let (writer, _) = Writer::start(&config.store, WriterSettings::default())?;
        let handle = writer.handle().context("a handle")?;
        deliveries().into_iter().for_each(|delivery| handle.delivery(Box::new(delivery)));
        command::eventually(LIMIT, "the sessions in the store", || Ok((writer.counts().0 > 0).then_some(())))?;
        let sender = ReportSender::start(&config, handle, || Timestamp::from_secs(DUE))?;
        let file = command::eventually(LIMIT, "the report", || Ok(home.files()?.pop()))?;
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        ensure!(name.starts_with("example.org!example.net!1795392000!1795478399!"), "{name}");
        is_ours(&read_by_another(&file)?)?;
        drop(sender);
        Ok(())
    });
}

#[test]
fn mail_and_https_deliver_what_the_record_asks_for() {
    scenario("mail_and_https_deliver_what_the_record_asks_for", || {
        let home = Home::new()?;
        let identity = Identity::generate("reports.example.net")?;
        let mail = MailServer::start(&home.path("mail"))?;
        let web = WebServer::start(&identity, &["503 Service Unavailable", "201 Created"])?;
        let targets =
            format!("mailto:reports@example.net,https://reports.example.net:{}/v1/tlsrpt", web.address.port());
        let names = NameServer::start(format!("v=TLSRPTv1; rua={targets}"))?;
        std::fs::write(home.path("ca.pem"), &identity.certificate_pem)?;
        let config = home.config(&format!(
            "send = true\nsmtp = \"{}\"\n[policy]\nresolver = \"{}\"\nca_file = {:?}\nallow_private = true\n\
             dane = false\n",
            mail.address,
            names.address,
            home.path("ca.pem"),
        ))?;
        let (writer, _) = Writer::start(&config.store, WriterSettings::default())?;
        let handle = writer.handle().context("a handle")?;
        deliveries().into_iter().for_each(|delivery| handle.delivery(Box::new(delivery)));
        command::eventually(LIMIT, "the sessions in the store", || Ok((writer.counts().0 > 0).then_some(())))?;
        let clock = Arc::new(AtomicI64::new(DUE));
        let start = || {
            let clock = clock.clone();
            ReportSender::start(&config, handle.clone(), move || Timestamp::from_secs(clock.load(Ordering::Relaxed)))
        };
        let sender = start()?;

        let message = command::eventually(LIMIT, "the message", || Ok(mail.messages()?.pop()))?;
        is_ours(&read_by_another(&message)?)?;
        let text = std::fs::read_to_string(&message)?.replace("\r\n ", " ");
        for line in ["TLS-Report-Domain: example.net", "TLS-Report-Submitter: example.org", "TLS-Required: No"] {
            ensure!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        let envelope = std::fs::read_to_string(message.with_extension("envelope"))?;
        ensure!(envelope == "tlsrpt@example.org reports@example.net", "{envelope}");
        ensure!(inbound::read(&message, Timestamp::from_secs(DUE))?.iter().all(Result::is_ok), "read by ourselves");

        command::eventually(LIMIT, "the first POST", || Ok((web.posts().len() == 1).then_some(())))?;
        // The delivery was rejected; the second attempt follows after the back-off.
        clock.fetch_add(301, Ordering::Relaxed);
        let posts =
            command::eventually(LIMIT, "the second POST", || Ok(Some(web.posts()).filter(|posts| posts.len() == 2)))?;
        let file = home.files()?.pop().context("the file")?;
        for post in &posts {
            ensure!(post.path == "/v1/tlsrpt" && post.kind == "application/tlsrpt+gzip", "{post:?}");
            ensure!(post.body == std::fs::read(&file)?, "the body is the file");
        }

        // A finished report is not sent again, also after a restart.
        let done = |store: &mut smtpwatch_store::Store| store.reported(Day::of(Timestamp::from_secs(DAY)));
        command::eventually(LIMIT, "three marks in the store", || {
            let mut store = smtpwatch_store::Store::open_existing(&config.store)?;
            Ok((done(&mut store)?.len() == 3).then_some(()))
        })?;
        drop(sender);
        let asked = names.asked();
        let again = start()?;
        command::eventually(LIMIT, "another question", || Ok((names.asked() > asked).then_some(())))?;
        std::thread::sleep(Duration::from_secs(2));
        drop(again);
        ensure!(mail.messages()?.len() == 1 && web.posts().len() == 2, "nothing goes out twice");
        Ok(())
    });
}

#[test]
fn nothing_is_posted_to_a_private_address() {
    scenario("nothing_is_posted_to_a_private_address", || {
        let home = Home::new()?;
        let identity = Identity::generate("reports.example.net")?;
        let web = WebServer::start(&identity, &["201 Created"])?;
        let port = web.address.port();
        let names = NameServer::start(format!(
            "v=TLSRPTv1; rua=https://reports.example.net:{port}/,https://127.0.0.1:{port}/"
        ))?;
        std::fs::write(home.path("ca.pem"), &identity.certificate_pem)?;
        let config = home.config(&format!(
            "send = true\n[policy]\nresolver = \"{}\"\nca_file = {:?}\ndane = false\n",
            names.address,
            home.path("ca.pem"),
        ))?;
        let (writer, _) = Writer::start(&config.store, WriterSettings::default())?;
        let handle = writer.handle().context("a handle")?;
        deliveries().into_iter().for_each(|delivery| handle.delivery(Box::new(delivery)));
        command::eventually(LIMIT, "the sessions in the store", || Ok((writer.counts().0 > 0).then_some(())))?;
        let sender = ReportSender::start(&config, handle, || Timestamp::from_secs(DUE))?;
        command::eventually(LIMIT, "the question", || Ok((names.asked() > 0).then_some(())))?;
        std::thread::sleep(Duration::from_secs(2));
        drop(sender);
        ensure!(web.posts().is_empty(), "{:?}", web.posts());
        Ok(())
    });
}

/// A real Postfix accepts the message and forwards it.
#[test]
fn postfix_takes_a_report() {
    scenario("postfix_takes_a_report", || {
        let namespace = Namespace::create("report")?;
        let postfix = Postfix::receiver(&namespace, &Identity::generate("mail.example.org")?)?;
        let settings = TlsrptSettings { contact: Some("tlsrpt@example.org".to_owned()), ..TlsrptSettings::default() };
        let reporter = Reporter::new(&settings, "mail.example.org");
        let report = reporter.report(Day::of(Timestamp::from_secs(DAY)), "example.net", Vec::new());
        let packed = Packed::new(&report, &reporter.submitter, "example.net", "001");
        let letter = Letter {
            reporter: &reporter,
            from: "tlsrpt@example.org",
            to: "reports@example.net",
            domain: "example.net",
            id: "001",
            report: &packed,
        };
        namespace.run(|| -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let server = SocketAddr::from(([127, 0, 0, 1], 25));
            Ok(runtime.block_on(letter.send(server, Timestamp::from_secs(DUE)))?)
        })??;
        command::eventually(LIMIT, "the report on its way", || {
            let log = postfix.log();
            let passed =
                log.lines().any(|line| line.contains("to=<reports@example.net>") && line.contains("status=sent"));
            Ok(passed.then_some(()))
        })
        .with_context(|| postfix.log())
    });
}
