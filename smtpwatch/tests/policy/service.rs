//! The look-up service: requests and results, bounded and counted, and its state after a restart.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use smtpwatch::output::metrics::Metrics;
use smtpwatch_config::Config;
use smtpwatch_core::policy::{
    known::{Kept, KnownList},
    published::{LookupRequest, LookupResult, State, sts::StsMode},
};
use smtpwatch_policy::{
    lookup::Trust,
    service::{QUEUE, Service, Setup},
};
use smtpwatch_store::{Store, Writer, WriterSettings};

use crate::{
    dns::{Delegation, NameServer, Zone},
    https::PolicyHost,
    states::PATIENCE,
};

const LIST: &str = r#"{"version":"0.1","timestamp":1700000000,"expires":4000000000,"policy-aliases":{},
    "policies":{"listed.example":{"mode":"enforce","mxs":["mx.listed.example"]}}}"#;

/// A DNS server for a domain with MTA-STS and a mail host with DANE.
async fn name_server() -> NameServer {
    let digest = "ab".repeat(32);
    let records = format!(
        "@ MX 10 mx\nmx A 127.0.0.1\n_25._tcp.mx TLSA 3 1 1 {digest}\n\
         mta-sts A 127.0.0.1\n_mta-sts TXT \"v=STSv1; id=1;\"\n"
    );
    NameServer::start(vec![Zone { origin: "example.test.", delegation: Delegation::Secure, records }], false).await
}

fn setup(config: &Config, metrics: &Arc<Metrics>) -> Setup {
    Setup {
        settings: config.policy.clone(),
        trust: Trust::load(&config.policy).unwrap(),
        timeouts: PATIENCE,
        kept: Kept::default(),
        list: None,
        metrics: metrics.policy.clone(),
        store: Box::new(|_| {}),
    }
}

fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(&[25]).unwrap())
}

async fn result(service: &Service, mut predicate: impl FnMut(&LookupResult) -> bool) -> LookupResult {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match service.next_result() {
            Some(result) if predicate(&result) => return result,
            Some(_) => {}
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        assert!(Instant::now() < end, "no answer");
    }
}

fn is_host(result: &LookupResult) -> bool {
    matches!(result, LookupResult::Host(..))
}

fn is_domain(result: &LookupResult) -> bool {
    matches!(result, LookupResult::Domain(..))
}

/// Waits until a line is in the metrics.
async fn counted(metrics: &Metrics, line: &str) {
    let end = Instant::now() + Duration::from_secs(20);
    while !metrics.render().lines().any(|found| found == line) {
        assert!(Instant::now() < end, "missing: {line}\n{}", metrics.render());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The DNS servers of these tests run in the same runtime.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_brings_its_mail_hosts_and_a_restart_forgets_nothing() {
    let (dns, host) = (name_server().await, PolicyHost::start(&["mta-sts.example.test"]).await);
    host.policy("mta-sts.example.test", "version: STSv1\nmode: enforce\nmx: mx.example.test\nmax_age: 604800\n");
    let keys = format!(
        "https_port = {}\nca_file = \"{}\"\ndomains = [\"example.test\"]",
        host.address.port(),
        host.ca().display()
    );
    let (config, metrics) = (dns.config_with(&keys), metrics());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("smtpwatch.db");
    let (writer, _) = Writer::start(&path, WriterSettings::default()).unwrap();
    let handle = writer.handle().unwrap();
    let store = Box::new(move |known| handle.policy(known));
    let (service, known) = Service::start(Setup { store, ..setup(&config, &metrics) }).unwrap();
    assert!(known.is_empty());
    // The configuration names the domain: it is looked up without a request.
    let LookupResult::Domain(name, domain) = result(&service, is_domain).await else { panic!() };
    assert_eq!((name.as_str(), domain.sts.state), ("example.test", State::Valid), "{}", domain.sts.detail);
    assert!(domain.mx.valid().unwrap().secure);
    let LookupResult::Host(name, mx) = result(&service, is_host).await else { panic!() };
    assert_eq!((name.as_str(), mx.dane.state), ("mx.example.test", State::Valid), "{}", mx.dane.detail);
    // A repeated request is answered again from the cache.
    service.request(LookupRequest::Host("mx.example.test".to_owned()));
    assert_eq!(result(&service, is_host).await, LookupResult::Host(name, mx.clone()));
    counted(&metrics, "smtpwatch_policy_subjects 2").await;
    counted(&metrics, "smtpwatch_policy_dnssec 1").await;
    for source in ["dane", "mta-sts"] {
        let failures = format!("smtpwatch_policy_refresh_failures_total{{source=\"{source}\"}} 0");
        counted(&metrics, &failures).await;
        let never = format!("smtpwatch_policy_last_refresh_timestamp_seconds{{source=\"{source}\"}} 0");
        assert!(!metrics.render().contains(&(never + "\n")));
    }
    drop(service);
    assert_eq!(writer.finish(), 0);

    // Another process reads the store, and so does the next run, whose DNS server does not answer.
    let kept = Store::open_existing(&path).unwrap().policies().unwrap();
    assert_eq!((kept.domains.len(), kept.hosts.len()), (1, 1));
    assert_eq!((&kept.domains[0].facts, &kept.hosts[0].facts), (&domain, &mx));
    let policy = &kept.domains[0].memory.kept.as_ref().unwrap().policy;
    assert_eq!((policy.id.as_str(), policy.mode), ("1", StsMode::Enforce));
    let mut off = config.clone();
    (off.policy.dane.0, off.policy.mta_sts.0) = (false, false);
    let (service, known) = Service::start(Setup { kept: kept.clone(), ..setup(&off, &self::metrics()) }).unwrap();
    assert!(known.is_empty(), "what is switched off says nothing");
    drop(service);
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut config = config;
    config.policy.resolver.0 = smtpwatch_config::Resolver::Address(silent.local_addr().unwrap());
    let metrics = self::metrics();
    let (service, known) = Service::start(Setup { kept, ..setup(&config, &metrics) }).unwrap();
    assert_eq!(
        known,
        [
            LookupResult::Domain("example.test".to_owned(), domain.clone()),
            LookupResult::Host("mx.example.test".to_owned(), mx)
        ]
    );
    let LookupResult::Domain(_, again) = result(&service, is_domain).await else { panic!() };
    assert_eq!((again.sts.state, again.sts.until), (State::Valid, domain.sts.until), "{}", again.sts.detail);
    assert_eq!(again.mx, domain.mx, "records hold for their time to live");
    counted(&metrics, "smtpwatch_policy_refresh_failures_total{source=\"mta-sts\"} 1").await;
    counted(&metrics, "smtpwatch_policy_dnssec 0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_bounded_and_never_blocks() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let text = format!("[policy]\nresolver = \"{}\"\n", silent.local_addr().unwrap());
    let config = Config::parse(&text, Path::new("test.toml")).unwrap();
    let metrics = metrics();
    let (service, _) = Service::start(setup(&config, &metrics)).unwrap();
    let start = Instant::now();
    for number in 0..20 * QUEUE {
        service.request(LookupRequest::Domain(format!("d{number}.example.net")));
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    let dropped = || {
        let text = metrics.render();
        let lines = text.lines().filter(|line| line.starts_with("smtpwatch_policy_lookups_dropped_total"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum::<usize>()
    };
    // At most the queue and the requests that wait for their first look-up were accepted.
    let end = Instant::now() + Duration::from_secs(10);
    while dropped() < 20 * QUEUE - QUEUE - 1_000 - 16 {
        assert!(Instant::now() < end, "{}", metrics.render());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The shutdown does not wait for a look-up either.
    let start = Instant::now();
    drop(service);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_read_and_the_last_good_one_stays() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), LIST).unwrap();
    let dns = name_server().await;
    let config = dns.config_with(&format!("starttls_everywhere = \"{}\"", file.path().display()));
    let metrics = metrics();
    let (service, _) = Service::start(setup(&config, &metrics)).unwrap();
    let LookupResult::List(list) = result(&service, |result| matches!(result, LookupResult::List(_))).await else {
        panic!()
    };
    assert!(list.get("listed.example").unwrap().enforce);
    drop(service);
    // A list that is fetched, and whose host is unreachable: the cached copy is used.
    let config = dns.config_with("starttls_everywhere = \"https://lists.example.test/list.json\"\nhttps_port = 1");
    let list = KnownList {
        url: "https://lists.example.test/list.json".to_owned(),
        text: LIST.as_bytes().to_vec(),
        fetched_at: smtpwatch_core::Timestamp::from_secs(1_700_000_000),
    };
    let (_service, known) = Service::start(Setup { list: Some(list), ..setup(&config, &metrics) }).unwrap();
    assert!(matches!(known.as_slice(), [LookupResult::List(_)]));
    counted(&metrics, "smtpwatch_policy_refresh_failures_total{source=\"list\"} 1").await;
}
