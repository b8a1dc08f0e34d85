//! Mail within encapsulation: a real VXLAN, and frames of other encapsulations on the wire.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use smtpwatch_capture::{Capture, CaptureSettings};
use smtpwatch_common::{Counter, Encapsulation};
use smtpwatch_config::Ingress;
use smtpwatch_testkit::traffic::{self, CLIENT, START_NS, wrap};
use smtpwatch_tests::{
    Skip, command,
    netns::{GATEWAY_INTERFACE, Path},
    scenario,
    wire::Wire,
};

use crate::attach::{LIMIT, session, settings, transcript};

/// Addresses of gateway and exchanger within the VXLAN (RFC 1918).
const GATEWAY: &str = "10.77.0.1";
const EXCHANGER: &str = "10.77.0.2";

/// The counters of encapsulated mail, in the order of [`Encapsulation::ALL`].
fn counted(capture: &Capture) -> Result<[u64; Encapsulation::ALL.len()]> {
    let counters = capture.counters().read()?;
    Ok(Encapsulation::ALL.map(|one| {
        let wanted = Counter::encapsulated(one);
        counters.iter().filter(|(counter, _)| *counter == wanted).map(|(_, total)| total).sum()
    }))
}

/// Joins gateway and exchanger by a VXLAN over the path.
fn vxlan(path: &Path) -> Result<()> {
    for (namespace, own, remote, inner) in [
        (&path.gateway, "192.0.2.10", "198.51.100.25", GATEWAY),
        (&path.exchanger, "198.51.100.25", "192.0.2.10", EXCHANGER),
    ] {
        let device = ["link", "add", "vxlan0", "type", "vxlan", "id", "7", "dstport", "4789"];
        namespace
            .ip(&[&device[..], &["local", own, "remote", remote]].concat())
            .map_err(|error| Skip(format!("this kernel has no VXLAN: {error:#}")))?;
        namespace.ip(&["addr", "add", &format!("{inner}/24"), "dev", "vxlan0"])?;
        namespace.ip(&["link", "set", "vxlan0", "up"])?;
    }
    Ok(())
}

#[test]
fn mail_in_a_vxlan_is_counted_unless_its_inner_interface_is_watched() {
    scenario("mail in a VXLAN is counted unless its inner interface is watched", || {
        let path = Path::create()?;
        vxlan(&path)?;
        let exchanger: IpAddr = EXCHANGER.parse()?;
        for ingress in [Ingress::Tcx, Ingress::Xdp] {
            let outer = settings(GATEWAY_INTERFACE, ingress);
            let mut capture = path.gateway.run(|| Capture::start(&outer))??;
            session(&path, exchanger)?;
            let [vxlan, others @ ..] = counted(&capture)?;
            ensure!(vxlan >= 6 && others == [0; 5], "{ingress:?}: {vxlan} {others:?}");
            let lines = path.gateway.run(|| capture.encapsulated())??;
            let expected = format!(
                "mail in VXLAN passes {GATEWAY_INTERFACE}, and is not checked: watch the inner interface vxlan0 (add it to `interfaces`)"
            );
            ensure!(lines == [expected], "{lines:?}");
            path.gateway.run(move || drop(capture))?;

            let interfaces = vec![GATEWAY_INTERFACE.to_owned(), "vxlan0".to_owned()];
            let both = CaptureSettings { interfaces, ingress: Ingress::Tcx, ..outer };
            let mut capture = path.gateway.run(|| Capture::start(&both))??;
            session(&path, exchanger)?;
            ensure!(transcript(&mut capture)?.len() == 3, "the session is seen on vxlan0");
            ensure!(counted(&capture)? == [0; 6], "{:?}", counted(&capture)?);
            let lines = path.gateway.run(|| capture.encapsulated())??;
            ensure!(lines.is_empty(), "{lines:?}");
            path.gateway.run(move || drop(capture))?;
        }
        Ok(())
    });
}

#[test]
fn mail_in_frames_of_every_encapsulation_is_counted() {
    scenario("mail in frames of every encapsulation is counted", || {
        let path = Path::create()?;
        let wire = Wire::open((&path.router, "left"), (&path.gateway, GATEWAY_INTERFACE))?;
        let mail = traffic::mail(CLIENT, START_NS, "250-STARTTLS\r\n250 8BITMIME\r\n");
        let hidden = u64::try_from(mail.len())?.checked_sub(1).context("a SYN")?;
        let addressed = |frame: Vec<u8>| [&wire.host[..], &wire.mac, frame.get(12..).unwrap_or_default()].concat();
        let tagged = |ip: &[u8]| wrap::ethernet(0x8100, &[&[0, 7, 8, 0], wrap::gre(ip).as_slice()].concat());
        type Form<'a> = (Encapsulation, &'a dyn Fn(&[u8]) -> Vec<u8>);
        let forms: [Form<'_>; 5] = [
            (Encapsulation::Vxlan, &|ip| wrap::ethernet(0x0800, &wrap::vxlan(ip))),
            (Encapsulation::Gre, &|ip| wrap::ethernet(0x0800, &wrap::gre(ip))),
            (Encapsulation::Gre, &tagged),
            (Encapsulation::Ipip, &|ip| wrap::ethernet(0x0800, &wrap::ipv4(4, ip))),
            (Encapsulation::Pppoe, &|ip| wrap::ethernet(0x8864, &wrap::pppoe(ip))),
        ];
        for ingress in [Ingress::Tcx, Ingress::Xdp, Ingress::XdpGeneric] {
            for (encapsulation, form) in &forms {
                let settings = settings(GATEWAY_INTERFACE, ingress);
                let mut capture = path.gateway.run(|| Capture::start(&settings))??;
                for packet in &mail {
                    wire.send_bytes(&addressed(form(&packet.ip)))?;
                }
                let expected = Encapsulation::ALL.map(|one| if one == *encapsulation { hidden } else { 0 });
                let what = format!("{hidden} packets in {}", encapsulation.name());
                command::eventually(LIMIT, &what, || Ok((counted(&capture)? == expected).then_some(())))
                    .with_context(|| format!("{ingress:?}: {:?}", counted(&capture)))?;
                let lines = path.gateway.run(|| capture.encapsulated())??;
                let start =
                    format!("mail in {} passes {GATEWAY_INTERFACE}, and is not checked: ", encapsulation.name());
                ensure!(lines.len() == 1 && lines.iter().all(|line| line.starts_with(&start)), "{lines:?}");
                let mut records = 0;
                capture.wait(Duration::from_millis(1))?;
                capture.drain(|_, _, _| {
                    records += 1;
                    Vec::new()
                })?;
                ensure!(records == 0, "{records} records of mail that is not followed");
                path.gateway.run(move || drop(capture))?;
            }
        }
        Ok(())
    });
}
