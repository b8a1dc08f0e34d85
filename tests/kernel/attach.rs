//! Attaches to interfaces in private namespaces: checks which hooks are used, what stays untouched, and that nothing
//! remains.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    EbpfLoader,
    programs::{
        SchedClassifier, TcAttachType,
        tc::{self, NlOptions, TcAttachOptions},
    },
};
use smtpwatch_capture::{Attachment, Capture, CaptureSettings, Hook, object::LoadSettings};
use smtpwatch_common::{Counter, Direction, Side};
use smtpwatch_config::Ingress;
use smtpwatch_tests::{
    command,
    netns::{Family, GATEWAY_INTERFACE, Namespace, Path},
    scenario,
};

use crate::test_run::{Kind, empty_program};

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../smtpwatch-capture/bpf/smtpwatch.bpf.o");

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn settings(interface: &str, ingress: Ingress) -> CaptureSettings {
    let load = LoadSettings { flows: 1_024, orders: 1_024, ring: 1 << 20, ..LoadSettings::default() };
    CaptureSettings { interfaces: vec![interface.to_owned()], ingress, hot_plug: true, load }
}

pub(crate) fn hooks(capture: &Capture) -> Vec<(String, Direction, Option<Hook>)> {
    capture
        .attachments()
        .map(|Attachment { interface, direction, hook, .. }| (interface.clone(), *direction, *hook))
        .collect()
}

fn both(ingress: Hook, egress: Hook) -> Vec<(String, Direction, Option<Hook>)> {
    [(Direction::Ingress, ingress), (Direction::Egress, egress)]
        .map(|(direction, hook)| (GATEWAY_INTERFACE.to_owned(), direction, Some(hook)))
        .to_vec()
}

/// Everything attached to the interfaces of a namespace: XDP, TCX and tc filters, qdiscs.
pub(crate) fn attached(namespace: &Namespace) -> Result<String> {
    command::run(namespace.command("bpftool").args(["net", "show"]), LIMIT)
}

fn ours_is_gone(namespace: &Namespace) -> Result<()> {
    let attached = attached(namespace)?;
    ensure!(!attached.contains("smtpwatch"), "something of ours is left:\n{attached}");
    Ok(())
}

/// One TCP session of a client in the gateway with a server in the exchanger.
pub(crate) fn session(path: &Path, address: IpAddr) -> Result<()> {
    let address = SocketAddr::new(address, 25);
    let listener = path.exchanger.run(move || TcpListener::bind(address))??;
    std::thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.write_all(b"220 mx ESMTP\r\n")?;
            let mut line = [0; 64];
            let length = stream.read(&mut line)?;
            ensure!(line.get(..length) == Some(b"EHLO gw\r\n"), "the server got {:?}", line.get(..length));
            Ok(stream.write_all(b"250 mx\r\n")?)
        });
        path.gateway.run(|| -> Result<()> {
            let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
            let mut line = [0; 64];
            let length = stream.read(&mut line)?;
            ensure!(length > 0, "no banner");
            stream.write_all(b"EHLO gw\r\n")?;
            ensure!(stream.read(&mut line)? > 0, "no reply");
            Ok(())
        })??;
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?
    })
}

/// The payloads of the session as the delivered records show them.
pub(crate) fn transcript(capture: &mut Capture) -> Result<Vec<(Side, String)>> {
    let mut said: Vec<(Side, String)> = Vec::new();
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        capture.wait(Duration::from_millis(50))?;
        capture.drain(|record, at, _| {
            assert!(at.0 > 1_700_000_000_000_000_000, "the time of day, not of the kernel: {at}");
            let from = record.header.from();
            let way = if from == Side::Client { Direction::Egress } else { Direction::Ingress };
            assert_eq!(record.header.direction(), Some(way), "the gateway is the client");
            if !record.payload.is_empty() {
                said.push((from, String::from_utf8_lossy(record.payload).into_owned()));
            }
        })?;
        if said.len() >= 3 {
            break;
        }
    }
    Ok(said)
}

/// Captures a session through the given hooks, then detaches.
fn watches(path: &Path, ingress: Ingress, expected: &[(String, Direction, Option<Hook>)]) -> Result<()> {
    let settings = settings(GATEWAY_INTERFACE, ingress);
    let mut capture = path.gateway.run(|| Capture::start(&settings))??;
    ensure!(hooks(&capture) == expected, "attached: {:?}", hooks(&capture));
    for family in Family::ALL {
        session(path, family.exchanger())?;
        let said = transcript(&mut capture)?;
        let lines: Vec<(Side, &str)> = said.iter().map(|(from, text)| (*from, text.trim_end())).collect();
        ensure!(
            lines == [(Side::Server, "220 mx ESMTP"), (Side::Client, "EHLO gw"), (Side::Server, "250 mx")],
            "{family:?}: {lines:?}"
        );
    }
    for (counter, total) in capture.counters().read()? {
        let wanted = matches!(counter, Counter::ForwardedIngress | Counter::ForwardedEgress);
        ensure!(!wanted || total > 5, "{counter:?} is {total}");
    }
    path.gateway.run(move || drop(capture))?;
    ours_is_gone(&path.gateway)?;
    session(path, Family::V4.exchanger())
}

#[test]
fn every_hook_watches_and_goes() {
    scenario("every hook watches and goes", || {
        let path = Path::create()?;
        watches(&path, Ingress::Auto, &both(Hook::Tcx, Hook::Tcx))?;
        watches(&path, Ingress::Xdp, &both(Hook::Xdp, Hook::Tcx))?;
        watches(&path, Ingress::XdpGeneric, &both(Hook::XdpGeneric, Hook::Tcx))?;
        watches(&path, Ingress::Tcx, &both(Hook::Tcx, Hook::Tcx))?;
        watches(&path, Ingress::Clsact, &both(Hook::Clsact, Hook::Tcx))?;
        let qdiscs = command::run(path.gateway.command("tc").args(["qdisc", "show"]), LIMIT)?;
        ensure!(!qdiscs.contains("clsact"), "the qdisc that we made is left:\n{qdiscs}");
        Ok(())
    });
}

#[test]
fn a_taken_xdp_slot_is_left_alone() {
    scenario("a taken XDP slot is left alone", || {
        let path = Path::create()?;
        let occupant = empty_program(Kind::Xdp, "cil_xdp_entry").context("cannot load an empty program")?;
        let id = program_id(occupant.as_fd())?;
        let arguments = ["net", "attach", "xdp", "id", &id, "dev", GATEWAY_INTERFACE];
        command::run(path.gateway.command("bpftool").args(arguments), LIMIT)?;
        let before = attached(&path.gateway)?;
        let error = path.gateway.run(|| Capture::start(&settings(GATEWAY_INTERFACE, Ingress::Xdp)).err())?;
        let told = error.context("XDP was attached over another's")?.to_string();
        let expected = format!(
            "cannot attach XDP to {GATEWAY_INTERFACE}: the slot is held by \"cil_xdp_entry\" (program {id}); smtpwatch never \
             replaces it"
        );
        ensure!(told.starts_with(&expected), "{told}");
        ours_is_gone(&path.gateway)?;
        watches(&path, Ingress::Auto, &both(Hook::Tcx, Hook::Tcx))?;
        ensure!(attached(&path.gateway)? == before, "the other program was touched");
        Ok(())
    });
}

#[test]
fn anothers_clsact_filter_is_left_alone() {
    scenario("another's clsact filter is left alone", || {
        let path = Path::create()?;
        let tc = |arguments: &[&str]| command::run(path.gateway.command("tc").args(arguments), LIMIT);
        tc(&["qdisc", "add", "dev", GATEWAY_INTERFACE, "clsact"])?;
        tc(&[
            "filter",
            "add",
            "dev",
            GATEWAY_INTERFACE,
            "ingress",
            "prio",
            "7",
            "protocol",
            "ip",
            "u32",
            "match",
            "u32",
            "0",
            "0",
        ])
        .map_err(|error| smtpwatch_tests::Skip(format!("this kernel has no u32 filters: {error:#}")))?;
        let show = || tc(&["filter", "show", "dev", GATEWAY_INTERFACE, "ingress"]);
        let before = show()?;
        watches(&path, Ingress::Clsact, &both(Hook::Clsact, Hook::Tcx))?;
        ensure!(show()? == before, "the filter was touched");
        Ok(())
    });
}

#[test]
fn a_stale_filter_of_a_killed_process_is_removed() {
    scenario("a stale filter of a killed process is removed", || {
        let path = Path::create()?;
        for (ingress, expected) in [(Ingress::Clsact, 1), (Ingress::Auto, 0)] {
            path.gateway.run(leave_filters)??;
            let before = attached(&path.gateway)?;
            ensure!(before.contains("clsact/ingress") && before.contains("clsact/egress"), "{before}");
            let capture = path.gateway.run(|| Capture::start(&settings(GATEWAY_INTERFACE, ingress)))??;
            let filters = attached(&path.gateway)?.matches("clsact/").count();
            ensure!(filters == expected, "{filters} filters");
            path.gateway.run(move || drop(capture))?;
            ours_is_gone(&path.gateway)?;
            let qdiscs = command::run(path.gateway.command("tc").args(["qdisc", "show"]), LIMIT)?;
            ensure!(!qdiscs.contains("clsact"), "the qdisc of the killed process is left:\n{qdiscs}");
        }
        Ok(())
    });
}

/// Leaves what a killed process leaves: its filters and the clsact qdisc, without the process.
fn leave_filters() -> Result<()> {
    let mut object = EbpfLoader::new().override_global("AYA_LOG_LEVEL", &0_u8, true).load(OBJECT)?;
    tc::qdisc_add_clsact(GATEWAY_INTERFACE)?;
    for (name, side) in [("smtpwatch_tc_ingress", TcAttachType::Ingress), ("smtpwatch_tc_egress", TcAttachType::Egress)]
    {
        let program: &mut SchedClassifier = object.program_mut(name).context("the program")?.try_into()?;
        program.load()?;
        let options = TcAttachOptions::Netlink(NlOptions { priority: 0x5357, ..NlOptions::default() });
        let link = program.attach_with_options(GATEWAY_INTERFACE, side, options)?;
        std::mem::forget(program.take_link(link)?);
    }
    Ok(())
}

#[test]
fn a_second_watcher_of_an_interface_is_refused() {
    scenario("a second watcher of an interface is refused", || {
        let path = Path::create()?;
        for ingress in [Ingress::Clsact, Ingress::Tcx] {
            let settings = settings(GATEWAY_INTERFACE, ingress);
            let mut first = path.gateway.run(|| Capture::start(&settings))??;
            let before = attached(&path.gateway)?;
            for other in [Ingress::Clsact, Ingress::Auto, Ingress::Xdp] {
                let second = CaptureSettings { ingress: other, ..settings.clone() };
                let error = path.gateway.run(|| Capture::start(&second).err())?.context("two watch one interface")?;
                let expected =
                    format!("mail0 is watched by another smtpwatch (process {}, user 0)", std::process::id());
                ensure!(error.to_string().starts_with(&expected), "{error}");
                ensure!(!error.is_permission(), "{error}");
            }
            ensure!(attached(&path.gateway)? == before, "the first one's hooks were touched");
            session(&path, Family::V4.exchanger())?;
            ensure!(transcript(&mut first)?.len() == 3, "the first one is blind");
            // The same index in another namespace is a different interface.
            let elsewhere = self::settings("lo", Ingress::Tcx);
            drop(path.exchanger.run(|| Capture::start(&elsewhere))??);
            path.gateway.run(move || drop(first))?;
            path.gateway.run(|| Capture::start(&settings).map(drop))??;
        }
        Ok(())
    });
}

/// Detaches this program's links from the gateway's interface, as `bpftool link detach` of another process does.
fn detach_links(namespace: &Namespace) -> Result<usize> {
    let shown = attached(namespace)?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let mut programs: Vec<String> =
        words.windows(2).filter(|pair| pair[0].ends_with("id")).map(|pair| pair[1].to_owned()).collect();
    // bpftool of Debian 12 does not support TCX.
    for side in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, found) = namespace.run(|| SchedClassifier::query_tcx(GATEWAY_INTERFACE, side))??;
        programs.extend(found.iter().map(|program| program.id().to_string()));
    }
    let mut links = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        // Other tests open and close descriptors concurrently.
        let Ok(info) = std::fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(link), Some(program)) = (field("link_id:"), field("prog_id:"))
            && programs.iter().any(|found| found == program)
        {
            links.push(link.to_owned());
        }
    }
    for link in &links {
        command::run(namespace.command("bpftool").args(["link", "detach", "id", link]), LIMIT)?;
    }
    Ok(links.len())
}

#[test]
fn what_others_take_away_is_attached_again() {
    scenario("what others take away is attached again", || {
        let path = Path::create()?;
        for (ingress, hook, links) in [
            (Ingress::Clsact, Hook::Clsact, 1),
            (Ingress::Tcx, Hook::Tcx, 2),
            (Ingress::Xdp, Hook::Xdp, 2),
            (Ingress::XdpGeneric, Hook::XdpGeneric, 2),
        ] {
            let settings = settings(GATEWAY_INTERFACE, ingress);
            let mut capture = path.gateway.run(|| Capture::start(&settings))??;
            // Without a removal, no hook is reported as lost.
            std::thread::sleep(Duration::from_millis(1_100));
            path.gateway.run(|| capture.refresh())??;
            ensure!(capture.take_lost().is_empty(), "{ingress:?}");
            let found = detach_links(&path.gateway)?;
            ensure!(found == links, "{ingress:?}: {found} links");
            let mut expected = vec![(Direction::Egress, Hook::Tcx)];
            if ingress == Ingress::Clsact {
                let arguments = ["qdisc", "del", "dev", GATEWAY_INTERFACE, "clsact"];
                command::run(path.gateway.command("tc").args(arguments), LIMIT)?;
            }
            expected.insert(0, (Direction::Ingress, hook));
            let mut lost = Vec::new();
            command::eventually(LIMIT, "what was taken away", || {
                let changed = path.gateway.run(|| capture.refresh())??;
                lost.extend(capture.take_lost());
                Ok(changed.then_some(()))
            })?;
            ensure!(lost == expected, "{ingress:?}: {lost:?}");
            ensure!(hooks(&capture) == both(hook, Hook::Tcx), "{:?}", hooks(&capture));
            session(&path, Family::V4.exchanger())?;
            ensure!(transcript(&mut capture)?.len() == 3, "{ingress:?}: blind after it");
            path.gateway.run(move || drop(capture))?;
            ours_is_gone(&path.gateway)?;
        }
        let qdiscs = command::run(path.gateway.command("tc").args(["qdisc", "show"]), LIMIT)?;
        ensure!(!qdiscs.contains("clsact"), "a qdisc is left:\n{qdiscs}");
        Ok(())
    });
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    scenario("interfaces that come and go are followed", || {
        let path = Path::create()?;
        let settings = settings("mail*", Ingress::Tcx);
        path.gateway.run(|| -> Result<()> {
            let mut capture = Capture::start(&settings)?;
            ensure!(capture.attachments().count() == 2, "{:?}", hooks(&capture));
            path.gateway.ip(&["link", "add", "mail1", "type", "veth", "peer", "name", "other1"])?;
            ensure!(capture.refresh()?, "nothing was noticed");
            let come =
                capture.attachments().filter(|held| held.interface == "mail1" && held.hook == Some(Hook::Tcx)).count();
            ensure!(come == 2, "{:?}", hooks(&capture));
            path.gateway.ip(&["link", "del", "mail1"])?;
            ensure!(capture.refresh()?, "nothing was noticed");
            ensure!(capture.attachments().count() == 2, "{:?}", hooks(&capture));
            ensure!(!capture.refresh()?, "something was noticed where nothing happened");
            Ok(())
        })?
    });
}

#[test]
fn other_interfaces_are_watched_on_request() {
    scenario("other interfaces are watched on request", || {
        let path = Path::create()?;
        path.gateway.ip(&["link", "add", "mail1", "type", "veth"])?;
        let interfaces = |capture: &Capture| -> Vec<_> { hooks(capture).into_iter().map(|(name, ..)| name).collect() };
        path.gateway.run(|| -> Result<()> {
            let mut capture = Capture::start(&settings(GATEWAY_INTERFACE, Ingress::Tcx))?;
            ensure!(!capture.rewatch(&[GATEWAY_INTERFACE.to_owned()])?, "the same is no change");
            ensure!(capture.rewatch(&["mail1".to_owned()])?, "nothing has changed");
            ensure!(interfaces(&capture) == ["mail1", "mail1"], "{:?}", hooks(&capture));
            let error = capture.rewatch(&["mail1".to_owned(), "nonesuch".to_owned()]).err();
            ensure!(error.context("there is no such interface")?.to_string().contains("no interface nonesuch"));
            ensure!(interfaces(&capture) == ["mail1", "mail1"], "{:?}", hooks(&capture));
            // The default hook.
            ensure!(capture.rewatch(&[])?, "nothing has changed");
            ensure!(hooks(&capture) == both(Hook::Tcx, Hook::Tcx), "{:?}", hooks(&capture));
            Ok(())
        })??;
        ours_is_gone(&path.gateway)
    });
}

#[test]
fn interfaces_that_come_later_are_left_alone_without_hot_plug() {
    scenario("interfaces that come later are left alone without hot-plug", || {
        let path = Path::create()?;
        let fixed = CaptureSettings { hot_plug: false, ..settings("mail*", Ingress::Tcx) };
        path.gateway.run(|| -> Result<()> {
            let mut capture = Capture::start(&fixed)?;
            path.gateway.ip(&["link", "add", "mail1", "type", "veth"])?;
            ensure!(!capture.refresh()? && capture.attachments().count() == 2, "{:?}", hooks(&capture));
            // A removed interface is reported.
            path.gateway.ip(&["link", "del", GATEWAY_INTERFACE])?;
            ensure!(capture.refresh()? && capture.attachments().count() == 0, "{:?}", hooks(&capture));
            Ok(())
        })?
    });
}

#[test]
fn the_default_is_what_carries_a_default_route() {
    scenario("the default is what carries a default route", || {
        let path = Path::create()?;
        let none = CaptureSettings { interfaces: Vec::new(), ..settings("", Ingress::Tcx) };
        let capture = path.gateway.run(|| Capture::start(&none))??;
        ensure!(hooks(&capture) == both(Hook::Tcx, Hook::Tcx), "{:?}", hooks(&capture));
        drop(capture);
        // The router has no default route.
        let error = path.router.run(|| Capture::start(&none).err())?.context("something was attached")?;
        ensure!(error.to_string().contains("--interface"), "{error}");
        let error = path.gateway.run(|| Capture::start(&settings("nonesuch", Ingress::Auto)).err())?;
        ensure!(error.context("attached to nothing")?.to_string().contains("no interface nonesuch"), "another error");
        ours_is_gone(&path.gateway)
    });
}

#[test]
fn the_programs_load_with_their_log_on() {
    scenario("the programs load with their log on", || {
        let path = Path::create()?;
        let mut settings = settings(GATEWAY_INTERFACE, Ingress::Auto);
        settings.load.log = true;
        path.gateway.run(|| -> Result<()> {
            let mut capture = Capture::start(&settings)?;
            capture.refresh()?;
            Ok(())
        })??;
        ours_is_gone(&path.gateway)
    });
}

/// The id that the kernel assigned to a program.
pub(crate) fn program_id(program: std::os::fd::BorrowedFd<'_>) -> Result<String> {
    use std::os::fd::AsRawFd as _;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("prog_id:")).context("the kernel names no id")?;
    Ok(id.trim().to_owned())
}
