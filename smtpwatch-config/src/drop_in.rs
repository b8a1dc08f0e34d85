//! Drop-in files: rules in files of their own, in a directory beside the configuration file.
//!
//! `/etc/smtpwatch/smtpwatch.toml` has the directory `/etc/smtpwatch/smtpwatch.d`. Its files `*.toml` are read in the
//! order of their names. They contain only `[[rule]]` tables, and their rules come before those of the configuration
//! file. Symbolic links are followed: a volume of Kubernetes reaches each file through the link `..data`.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use smtpwatch_core::{
    Timestamp,
    policy::rule::{Rule, Suppressing},
};
use toml::Spanned;

use super::{ConfigError, RuleTable, read_file, reference::RULE};

/// Maximum number of drop-in files.
pub const MAX_FILES: usize = 1_000;
/// Beginning of the names of files that `smtpwatch silence` writes.
const PREFIX: &str = "silence-";
/// End of the names of drop-in files.
const SUFFIX: &str = ".toml";
/// Maximum length of the peer in the name of a file; with a longer one, the name has its hash.
const MAX_PEER: usize = 100;

/// The place of a rule in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RulePlace {
    /// The file.
    pub file: PathBuf,
    /// The line of its heading, starting at 1.
    pub line: usize,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The structure of a drop-in file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a table")]
struct DropIn {
    rule: Vec<Spanned<RuleTable>>,
}

/// The directory of the drop-in files of a configuration file: `smtpwatch.d` for `smtpwatch.toml`.
#[must_use]
pub fn directory(config: &Path) -> PathBuf {
    config.with_extension("d")
}

/// The drop-in files of a configuration file, in the order in which they are read. There are none without the directory.
///
/// # Errors
///
/// The directory cannot be read, or has more than [`MAX_FILES`] files.
pub fn files(config: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let path = directory(config);
    if path == config {
        return Ok(Vec::new());
    }
    let unreadable = |source| ConfigError::Read { path: path.clone(), source };
    let entries = match path.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        // Hidden names are unfinished files, and the versions of a volume of Kubernetes.
        let bytes = name.as_encoded_bytes();
        if bytes.ends_with(SUFFIX.as_bytes()) && !bytes.starts_with(b".") {
            names.push(name);
        }
    }
    if names.len() > MAX_FILES {
        return Err(ConfigError::DropIns { path, files: names.len(), most: MAX_FILES });
    }
    names.sort_unstable();
    Ok(names.into_iter().map(|name| path.join(name)).collect())
}

/// The rules of all drop-in files of a configuration file, in order of precedence, with their places.
///
/// # Errors
///
/// A file cannot be read, is not TOML, or contains an unknown key or an invalid value.
pub fn rules(config: &Path) -> Result<(Vec<Rule>, Vec<RulePlace>), ConfigError> {
    let (mut rules, mut places) = (Vec::new(), Vec::new());
    for file in files(config)? {
        let (more, at) = parse(&read_file(&file)?, &file)?;
        rules.extend(more);
        places.extend(at);
    }
    Ok((rules, places))
}

/// Parses the text of a drop-in file; `path` is its name in errors and places.
///
/// # Errors
///
/// The text is not TOML, or contains anything but `[[rule]]` tables with valid values.
pub fn parse(text: &str, path: &Path) -> Result<(Vec<Rule>, Vec<RulePlace>), ConfigError> {
    let file = toml::from_str::<DropIn>(text).map_err(|error| ConfigError::invalid(path, text, &error))?;
    let places = places(path, text, &file.rule);
    Ok((file.rule.into_iter().map(|rule| rule.into_inner().into()).collect(), places))
}

/// The places of the rules of one file.
pub(super) fn places(path: &Path, text: &str, rules: &[Spanned<RuleTable>]) -> Vec<RulePlace> {
    let line = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count();
    rules.iter().map(|rule| RulePlace { file: path.to_owned(), line: line(rule.span().start) }).collect()
}

/// An exception for one peer, as `smtpwatch silence` writes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    /// An address, a network or a server name ([`smtpwatch_core::policy::rule::PeerPattern`]).
    pub peer: String,
    /// What the exception suppresses.
    pub suppressing: Vec<Suppressing>,
    /// Its end.
    pub until: Timestamp,
    /// Why it exists.
    pub reason: String,
}

impl Exception {
    /// The path of its file. Each peer has one.
    #[must_use]
    pub fn path(config: &Path, peer: &str) -> PathBuf {
        let peer = peer.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
        let mut name: String = peer.chars().map(|c| if plain(c) { c } else { '_' }).take(MAX_PEER).collect();
        if name != peer {
            // Two peers must not share a file.
            let digest = smtpwatch_core::hash::sha256(peer.as_bytes());
            name.push('-');
            name.extend(digest.chars().take(8));
        }
        directory(config).join(format!("{PREFIX}{name}{SUFFIX}"))
    }

    /// The text of its file.
    #[must_use]
    pub fn text(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut text = format!(
            "# Written by smtpwatch silence; removed by: smtpwatch silence --end {}\n[[{RULE}]]\npeer = [{}]\n",
            self.peer,
            quoted(&self.peer)
        );
        for key in &self.suppressing {
            text.push_str(match key {
                Suppressing::Starttls => "starttls = \"ignore\"\n",
                Suppressing::Auth => "auth_plaintext = \"allow\"\n",
            });
        }
        text.push_str(&format!("until = {}\nreason = {}\n", quoted(&self.until.to_string()), quoted(&self.reason)));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use smtpwatch_core::policy::rule::{AuthRule, PeerPattern, StarttlsRule};

    use super::*;
    use crate::Config;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new() -> Self {
            let home = Self(tempfile::tempdir().expect("a directory"));
            fs::create_dir(home.drop_ins()).expect("made");
            home
        }

        fn config(&self) -> PathBuf {
            self.0.path().join("smtpwatch.toml")
        }

        fn drop_ins(&self) -> PathBuf {
            self.0.path().join("smtpwatch.d")
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).expect("written");
        }

        fn load(&self) -> Result<Config, String> {
            Config::load(Some(&self.config())).map(|(config, _)| config).map_err(|error| error.to_string())
        }

        fn places(&self) -> Vec<String> {
            let places = self.load().expect("good").places;
            let inside = |place: RulePlace| {
                let file = place.file.strip_prefix(self.0.path()).expect("inside").display().to_string();
                format!("{file}:{}", place.line)
            };
            places.into_iter().map(inside).collect()
        }
    }

    fn rule(peer: &str) -> String {
        format!("# a comment\n[[rule]]\npeer = [\"{peer}\"]\nstarttls = \"ignore\"\n")
    }

    #[test]
    fn drop_ins_come_first_in_the_order_of_their_names() {
        let home = Home::new();
        home.write("smtpwatch.toml", &format!("ports = [25]\n{}", rule("main.example.net")));
        home.write("smtpwatch.d/20-b.toml", &format!("{}{}", rule("b1.example.net"), rule("b2.example.net")));
        home.write("smtpwatch.d/10-a.toml", &rule("a.example.net"));
        home.write("smtpwatch.d/10-a.toml.dpkg-old", "no TOML");
        home.write("smtpwatch.d/.unfinished.toml", "no TOML");
        home.write("smtpwatch.d/README", "no TOML");
        let config = home.load().expect("good");
        let peers: Vec<_> = config.rules.iter().map(|rule| rule.peer.clone()).collect();
        let name = |name: &str| vec![PeerPattern::Name(format!("{name}.example.net"))];
        assert_eq!(peers, ["a", "b1", "b2", "main"].map(name));
        assert_eq!(
            home.places(),
            ["smtpwatch.d/10-a.toml:2", "smtpwatch.d/20-b.toml:2", "smtpwatch.d/20-b.toml:6", "smtpwatch.toml:3"]
        );
        assert_eq!(config.ports, [25]);
        // The hash depends on the rules, not on their files.
        let before = config.hash();
        fs::rename(home.drop_ins().join("10-a.toml"), home.drop_ins().join("11-a.toml")).expect("renamed");
        assert_eq!(home.load().expect("good").hash(), before);
        fs::remove_file(home.drop_ins().join("11-a.toml")).expect("removed");
        assert_ne!(home.load().expect("good").hash(), before);
    }

    #[test]
    fn a_bad_drop_in_is_an_error_that_names_file_and_line() {
        let home = Home::new();
        home.write("smtpwatch.toml", "");
        let path = home.drop_ins().join("x.toml").display().to_string();
        for (text, expected) in [
            ("\nports = [25]", ":2: unknown key \"ports\" at the top level: a drop-in file has only [[rule]] tables"),
            ("[store]\npath = \"/x\"", ":1: unknown table \"store\": a drop-in file has only [[rule]] tables"),
            ("[[rule]]\nstarttsl = \"ignore\"", ":2: unknown key \"starttsl\" in [[rule]]: did you mean \"starttls\"?"),
            (
                "[[rule]]\n\nuntil = \"tomorrow\"",
                ":3: until: \"tomorrow\": expected a day, whose end in UTC it is (\"2026-12-31\"), or a time \
                 (\"2026-12-31T18:00:00Z\"), in quotes",
            ),
            ("[[rule]]\nreason = \"\"", ":2: reason: \"\": expected one line of at most 255 bytes, in quotes"),
        ] {
            home.write("smtpwatch.d/x.toml", text);
            assert_eq!(home.load().expect_err(text), format!("{path}{expected}"));
        }
        fs::remove_file(home.drop_ins().join("x.toml")).expect("removed");
        fs::create_dir(home.drop_ins().join("x.toml")).expect("made");
        let error = home.load().expect_err("a directory");
        assert_eq!(error, format!("cannot read the configuration {path}: it is a directory: name a regular file"));
    }

    #[test]
    fn a_volume_of_kubernetes_is_read_through_its_links() {
        let home = Home::new();
        home.write("smtpwatch.toml", "");
        let drop_ins = home.drop_ins();
        let publish = |version: &str, peer: &str| {
            let data = drop_ins.join(version);
            fs::create_dir(&data).expect("made");
            fs::write(data.join("rules.toml"), rule(peer)).expect("written");
            // As kubelet does: a link is made and renamed over the one in use.
            symlink(version, drop_ins.join("..data_tmp")).expect("linked");
            fs::rename(drop_ins.join("..data_tmp"), drop_ins.join("..data")).expect("renamed");
        };
        publish("..2026_11_30_1", "old.example.net");
        symlink("..data/rules.toml", drop_ins.join("rules.toml")).expect("linked");
        let peer = || home.load().expect("good").rules.into_iter().map(|rule| rule.peer).collect::<Vec<_>>();
        assert_eq!(peer(), [[PeerPattern::Name("old.example.net".to_owned())]]);
        publish("..2026_11_30_2", "new.example.net");
        fs::remove_dir_all(drop_ins.join("..2026_11_30_1")).expect("removed");
        assert_eq!(peer(), [[PeerPattern::Name("new.example.net".to_owned())]]);
    }

    #[test]
    fn too_many_drop_ins_are_refused() {
        let home = Home::new();
        home.write("smtpwatch.toml", "");
        for number in 0..=MAX_FILES {
            home.write(&format!("smtpwatch.d/{number}.toml"), "");
        }
        assert!(home.load().expect_err("too many").contains("1001 drop-in files: at most 1000 are read"));
        fs::remove_file(home.drop_ins().join("0.toml")).expect("removed");
        assert!(home.load().is_ok());
    }

    #[test]
    fn an_exception_is_read_as_it_is_written() {
        let exception = Exception {
            peer: "mx*.example.net".to_owned(),
            suppressing: vec![Suppressing::Starttls, Suppressing::Auth],
            until: Timestamp::from_secs(1_795_446_245),
            reason: "a \"quoted\" reason, with \\ and é".to_owned(),
        };
        let (rules, _) = parse(&exception.text(), Path::new("x.toml")).expect("good");
        let expected = Rule {
            peer: vec![PeerPattern::Name("mx*.example.net".to_owned())],
            starttls: Some(StarttlsRule::Ignore),
            auth_plaintext: Some(AuthRule::Allow),
            until: Some(exception.until),
            reason: exception.reason.clone(),
            ..Rule::default()
        };
        assert_eq!(rules, [expected]);
    }

    #[test]
    fn each_peer_has_a_file_of_its_own() {
        let path = |peer: &str| Exception::path(Path::new("/etc/smtpwatch/smtpwatch.toml"), peer);
        assert_eq!(path("198.51.100.7"), Path::new("/etc/smtpwatch/smtpwatch.d/silence-198.51.100.7.toml"));
        assert_eq!(path("MX.example.net"), path("mx.example.net"));
        let long = ["a".repeat(60), "b".repeat(60), "c".repeat(60)].join(".");
        let peers = ["mx*.example.net", "mx_.example.net", "192.0.2.0/24", "2001:db8::/32", &long];
        let paths: std::collections::BTreeSet<_> = peers.iter().map(|peer| path(peer)).collect();
        assert_eq!(paths.len(), peers.len());
        for path in paths {
            assert_eq!(path.parent(), Some(Path::new("/etc/smtpwatch/smtpwatch.d")), "{}", path.display());
            assert!(path.file_name().is_some_and(|name| name.len() < 255), "{}", path.display());
        }
    }
}
