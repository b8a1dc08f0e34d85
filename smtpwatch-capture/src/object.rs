//! Loads the embedded kernel object with the settings of this run; `load` returns the programs ready to be
//! attached.

use std::{
    fs::File,
    io::{self, Read as _},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use smtpwatch_common::{PortSet, fast_path::SEEDS};

use super::CaptureError;

/// The compiled kernel programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/smtpwatch.bpf.o");

/// Settings that are fixed when the programs are loaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadSettings {
    /// Watched ports.
    pub ports: PortSet,
    /// Maximum number of flows with state in the kernel.
    pub flows: u32,
    /// Maximum number of pending orders in the kernel.
    pub orders: u32,
    /// Size of the ring in bytes: a power of two, and a multiple of the page size.
    pub ring: u32,
    /// Whether the kernel programs log packets that they cannot parse.
    pub log: bool,
}

impl Default for LoadSettings {
    fn default() -> Self {
        Self { ports: PortSet::default(), flows: 262_144, orders: 65_536, ring: 8 * 1024 * 1024, log: false }
    }
}

/// SHA-256 of the sources of the embedded object, in hexadecimal.
#[must_use]
pub fn object_digest() -> &'static str {
    include_str!("../bpf/smtpwatch.bpf.o.sources").trim_ascii()
}

/// The names of the programs, by hook, direction and link layer.
pub(crate) mod program {
    pub(crate) const XDP: &str = "smtpwatch_xdp";
    pub(crate) const TC_INGRESS: &str = "smtpwatch_tc_ingress";
    pub(crate) const TC_EGRESS: &str = "smtpwatch_tc_egress";
    pub(crate) const TC_INGRESS_IP: &str = "smtpwatch_tc_ingress_ip";
    pub(crate) const TC_EGRESS_IP: &str = "smtpwatch_tc_egress_ip";
    /// The programs that capture cannot do without.
    pub(crate) const TC: [&str; 4] = [TC_INGRESS, TC_EGRESS, TC_INGRESS_IP, TC_EGRESS_IP];
}

/// The loaded object, and the features that this kernel lacks.
pub(crate) struct Loaded {
    pub(crate) object: Ebpf,
    /// Why XDP cannot be used: see [`xdp_refusal`].
    pub(crate) no_xdp: Option<String>,
    /// Why the owner of a socket is not reported.
    pub(crate) no_attribution: Option<String>,
}

/// Creates the maps and has the verifier check every program.
///
/// # Errors
///
/// The kernel rejects the maps or a TC program.
pub(crate) fn load(settings: &LoadSettings) -> Result<Loaded, CaptureError> {
    raise_memlock();
    let no_attribution = match load_with(settings, true) {
        Err(CaptureError::Program { name, cause, log }) if !super::is_permission(&cause) => {
            tracing::debug!(program = name, verifier = log, "retrying without the owner of sockets");
            format!("{name}: {cause}")
        }
        other => return other,
    };
    load_with(settings, false).map(|loaded| Loaded { no_attribution: Some(no_attribution), ..loaded })
}

fn load_with(settings: &LoadSettings, attribution: bool) -> Result<Loaded, CaptureError> {
    let attribution = u8::from(attribution);
    // Levels of aya-log: 0 is off, and the verifier eliminates the calls; 4 is debug.
    let log = if settings.log { 4_u8 } else { 0 };
    let seeds = seeds()?;
    let mut object = EbpfLoader::new()
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global("PORTS", settings.ports.as_words().as_slice(), true)
        .override_global("SEEDS", seeds.as_slice(), true)
        .override_global("ATTRIBUTION", &attribution, true)
        .override_global(aya_log::LEVEL, &log, true)
        .map_max_entries("FLOWS", settings.flows)
        .map_max_entries("ORDERS", settings.orders)
        .map_max_entries("RING", settings.ring)
        .load(OBJECT)
        .map_err(maps_error)?;
    for name in program::TC {
        load_program(&mut object, name)?;
    }
    let no_xdp = match load_program(&mut object, program::XDP) {
        Ok(()) => None,
        Err(CaptureError::Program { cause, log, .. }) => Some(xdp_refusal(&cause, &log)),
        Err(other) => return Err(other),
    };
    Ok(Loaded { object, no_xdp, no_attribution: None })
}

/// Why the kernel rejects the XDP program. Kernels before 5.18 support neither its flag (EINVAL, with an empty
/// verifier log) nor its helpers (commits c2f2cdbeffda, 3f364222d032); any other cause needs a remedy other than
/// another kernel.
fn xdp_refusal(cause: &io::Error, log: &str) -> String {
    let message = log.lines().map(str::trim).rfind(|line| !line.is_empty() && !is_statistics(line));
    let old = match message {
        None => cause.raw_os_error() == Some(libc::EINVAL),
        Some(message) => message.starts_with("unknown func") || message.starts_with("invalid func"),
    };
    match (old, message) {
        (true, _) => format!("it needs what came with kernel 5.18 ({cause})"),
        (false, _) if super::is_permission(cause) => format!("{cause}{}", super::hint(cause)),
        (false, Some(message)) => format!("{cause}: {message}"),
        (false, None) => cause.to_string(),
    }
}

/// Whether a line is one of the statistics that the verifier prints for every program.
fn is_statistics(line: &str) -> bool {
    ["verification time", "stack depth", "processed "].iter().any(|start| line.starts_with(start))
}

/// Secret numbers: with known seeds an attacker could construct a muted flow whose tag hides another flow.
fn seeds() -> Result<[u64; SEEDS], CaptureError> {
    let failed = |error| CaptureError::Object(format!("cannot read random numbers from /dev/urandom: {error}"));
    let mut bytes = [0; SEEDS * 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).map_err(failed)?;
    let mut seeds = [0; SEEDS];
    for (seed, bytes) in seeds.iter_mut().zip(bytes.as_chunks().0) {
        *seed = u64::from_ne_bytes(*bytes);
    }
    Ok(seeds)
}

fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), CaptureError> {
    let loaded = match object.program_mut(name) {
        Some(Program::Xdp(program)) => program.load(),
        Some(Program::SchedClassifier(program)) => program.load(),
        _ => return Err(CaptureError::Object(format!("the kernel object has no program {name}"))),
    };
    loaded.map_err(|error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            CaptureError::Program { name, cause: io_error, log: verifier_log.to_string() }
        }
        other => CaptureError::Object(format!("{name}: {other}")),
    })
}

fn maps_error(error: EbpfError) -> CaptureError {
    use std::error::Error as _;
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            let cause = io.raw_os_error().map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error);
            return CaptureError::Maps { cause };
        }
        cause = inner.source();
    }
    CaptureError::Object(error.to_string())
}

/// Before kernel 5.11 maps count against this limit; later kernels ignore it.
fn raise_memlock() {
    use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY) {
        tracing::debug!(%error, "cannot raise the limit of locked memory; only kernels before 5.11 need it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_random() {
        let (one, other) = (seeds().unwrap(), seeds().unwrap());
        assert!(one.iter().zip(&other).all(|(one, other)| one != other));
        assert!(one.iter().all(|seed| *seed != 0));
    }

    #[test]
    fn only_an_old_kernel_is_reported_as_old() {
        let error = io::Error::from_raw_os_error;
        let statistics = "verification time 12 usec\nstack depth 320\nprocessed 9 insns (limit 1000000)";
        for (cause, log, expected) in [
            (libc::EINVAL, "", "it needs what came with kernel 5.18 (Invalid argument (os error 22))"),
            (
                libc::EINVAL,
                "unknown func bpf_xdp_load_bytes#189\nprocessed 9 insns",
                "it needs what came with kernel 5.18",
            ),
            (libc::EINVAL, "invalid func unknown#189\nprocessed 9 insns", "it needs what came with kernel 5.18"),
            (libc::EACCES, "R1 pointer comparison prohibited\nprocessed 9 insns", "R1 pointer comparison prohibited"),
            (libc::E2BIG, statistics, "Argument list too long (os error 7)"),
            (libc::EPERM, "", "Operation not permitted (os error 1)"),
            (libc::ENOMEM, "", "Cannot allocate memory (os error 12)"),
        ] {
            let message = xdp_refusal(&error(cause), log);
            assert!(message.contains(expected), "{cause} {log:?}: {message}");
            assert_eq!(message.contains("5.18"), expected.contains("5.18"), "{cause} {log:?}: {message}");
        }
    }

    #[test]
    fn the_committed_object_is_built_from_these_sources() {
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(
            smtpwatch_testkit::object_digest::of_sources(workspace).unwrap(),
            object_digest(),
            "the kernel object is stale: run `cargo xtask build-ebpf` and commit smtpwatch-capture/bpf"
        );
    }
}
