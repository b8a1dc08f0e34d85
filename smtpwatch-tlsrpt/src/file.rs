//! A report as a file: its name (RFC 8460 §5.1), gzip, and an atomic write. [`Packed`] is what the sender writes, mails
//! or posts.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};

use super::report::Report;

/// A report, ready to be written or sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packed {
    /// The file name.
    pub name: String,
    /// The JSON, compressed with gzip.
    pub gzip: Vec<u8>,
}

impl Packed {
    /// Packs a report about `domain`; `id` is the unique part of the file name.
    #[must_use]
    pub fn new(report: &Report, submitter: &str, domain: &str, id: &str) -> Self {
        let range = report.date_range;
        let (begin, end) = (range.start_datetime.as_secs(), range.end_datetime.as_secs());
        let named = |domain: &str| format!("{}!{domain}!{begin}!{end}!{id}.json.gz", plain(submitter));
        let domain = plain(domain);
        // For a domain whose name is cut off, the unique part identifies the report.
        let room = NAME.saturating_sub(named("").len());
        let name = named(&domain.chars().take(room).collect::<String>());
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        // Writing to memory cannot fail.
        let gzip = encoder.write_all(report.json().as_bytes()).and_then(|()| encoder.finish()).unwrap_or_default();
        Self { name, gzip }
    }

    /// Writes the file into a directory, which is created if it is missing. A reader finds the whole file or none.
    ///
    /// # Errors
    ///
    /// The file or directory cannot be written.
    pub fn write(&self, directory: &Path) -> io::Result<PathBuf> {
        DirBuilder::new().recursive(true).mode(0o750).create(directory)?;
        let (path, unfinished) = (directory.join(&self.name), directory.join(format!(".{}.tmp", self.name)));
        let written = self.write_to(&unfinished).and_then(|()| std::fs::rename(&unfinished, &path));
        if let Err(error) = written {
            // The unfinished file is useless.
            let _ = std::fs::remove_file(&unfinished);
            return Err(error);
        }
        Ok(path)
    }

    fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
        file.write_all(&self.gzip)?;
        file.sync_all()
    }
}

/// Maximum length of a file name, in bytes, with room for the suffix of an unfinished file (NAME_MAX is 255).
const NAME: usize = 248;

/// A domain as part of a file name; characters that no domain has are removed.
fn plain(domain: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    domain.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::outbound::Reporter;
    use smtpwatch_config::TlsrptSettings;

    #[test]
    fn a_file_has_the_name_of_the_rfc_and_is_there_at_once() {
        let reporter = Reporter::new(&TlsrptSettings::default(), "mail.example.org");
        let report = reporter.report("2026-11-23".parse().expect("a day"), "example.net", Vec::new());
        let packed = Packed::new(&report, &reporter.submitter, "example.net", "001");
        assert_eq!(packed.name, "mail.example.org!example.net!1795392000!1795478399!001.json.gz");
        let directory = tempfile::tempdir().expect("a directory");
        let path = packed.write(&directory.path().join("a/b")).expect("written");
        packed.write(&directory.path().join("a/b")).expect("written again");
        let mut json = String::new();
        let bytes = std::fs::read(&path).expect("read");
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut json).expect("gzip");
        assert_eq!(json, report.json());
        let files: Vec<_> = std::fs::read_dir(path.parent().expect("its directory")).expect("read").collect();
        assert_eq!(files.len(), 1, "{files:?}");
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        assert_eq!(plain("../../etc/x!y"), ".._.._etc_x_y");
        let blocked = tempfile::NamedTempFile::new().expect("a file");
        assert!(Packed { name: "x".to_owned(), gzip: Vec::new() }.write(blocked.path()).is_err());
    }
}
