//! The image in a container with exactly the privileges of the DaemonSet reports a strip.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use smtpwatch_tests::command::eventually;
use smtpwatch_tests::kubernetes::Pod;
use smtpwatch_tests::netns::{Family, Path};
use smtpwatch_tests::prometheus::deploy;
use smtpwatch_tests::scripted::Server;
use smtpwatch_tests::tls::Identity;
use smtpwatch_tests::{scenario, smtp};

use crate::set_up::{FINDING, Home, SENDER, script};

#[test]
fn a_pod_with_a_read_only_root_and_three_capabilities_sees_the_strip() {
    scenario("a_pod_with_a_read_only_root_and_three_capabilities_sees_the_strip", || {
        let manifest = std::fs::read_to_string(deploy().join("kubernetes/base/daemonset.yaml"))?;
        let daemonset: Value = serde_saphyr::from_str(&manifest).context("the manifest")?;
        let path = Path::create()?;
        let identity = Identity::generate("mx1.example.net")?;
        let address = SocketAddr::new(Family::V4.exchanger(), 25);
        let stripped = script("220 mx1.example.net ESMTP", &["mx1.example.net", "SIZE 1000"]);
        let _server = Server::start(&path.exchanger, address, &identity, stripped)?;
        let home = Home::create("pod")?;
        std::fs::create_dir(home.0.join("config"))?;
        std::fs::write(home.0.join("config/smtpwatch.toml"), "[[rule]]\nstarttls = \"required\"\n")?;
        let mut pod = Pod::start(&path.gateway, &daemonset, &home.0)?;
        let status = std::fs::read_to_string(format!("/proc/{}/status", pod.pid()?))?;
        for line in ["CapBnd:\t000000c000001000", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
            ensure!(status.contains(line), "{line}: {status}");
        }
        path.gateway.run(|| smtp::send(address, None, SENDER, "bob@example.net"))??;
        eventually(FINDING, "a finding", || {
            Ok(pod.findings().iter().any(|finding| finding["kind"] == "starttls-stripped").then_some(()))
        })
        .with_context(|| pod.log())?;
        let found = pod.findings();
        ensure!(found.iter().all(|finding| finding["sender"]["cgroup"].is_string()), "{found:?}");
        ensure!(home.0.join("state/smtpwatch.db").exists(), "no store");
        let ending = Instant::now();
        ensure!(pod.terminate()?, "{}", pod.log());
        ensure!(ending.elapsed() < Duration::from_secs(4), "it took {:?}", ending.elapsed());
        Ok(())
    });
}
