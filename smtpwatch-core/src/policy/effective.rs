//! Statements of all sources about one subject, and which source wins: [`effective`] decides.

use serde::Serialize;

use super::{
    precedence::{self, Authority},
    published::{State, demand::Weight},
};

/// Sources, in order of precedence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// `[[rule]]` of the configuration.
    Rule,
    /// TLSA records of the mail hosts (RFC 7672).
    Dane,
    /// MTA-STS policy of the domain (RFC 8461).
    MtaSts,
    /// The STARTTLS-Everywhere list.
    List,
    /// History of this host's own sessions.
    History,
}

impl Source {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Dane => "dane",
            Self::MtaSts => "mta-sts",
            Self::List => "list",
            Self::History => "history",
        }
    }
}

/// What a source demands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Mail must not be sent in cleartext.
    Enforce,
    /// Mail should not be sent in cleartext; if it is, that is reported.
    Testing,
    /// No demand.
    None,
}

impl Mode {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Testing => "testing",
            Self::None => "none",
        }
    }
}

/// Statement of one source.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Statement {
    /// Source of the statement.
    pub source: Source,
    /// State of the source's answer.
    pub state: State,
    /// What the source demands; [`Mode::None`] unless the state is [`State::Valid`].
    pub mode: Mode,
    /// The content, or the reason why there is none, in words.
    pub detail: String,
    /// Age of the answer, in seconds.
    pub age_seconds: u64,
}

/// Resulting behaviour for a sender.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Starttls {
    /// Mail may be sent with or without TLS.
    Opportunistic,
    /// TLS is expected; a session without it is reported.
    Expected,
    /// Mail must not be sent without TLS.
    Required,
}

impl Starttls {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opportunistic => "opportunistic",
            Self::Expected => "expected",
            Self::Required => "required",
        }
    }
}

/// The resulting behaviour and the source that decides it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Effective {
    /// Resulting behaviour for a sender.
    pub starttls: Starttls,
    /// Name of the source that wins; `none` if no source demands anything.
    pub source: &'static str,
}

/// Decides which statement wins. Order: local rules, then enforced DANE, MTA-STS and list, then history, then policies
/// in testing. MTA-STS does not override DANE (RFC 8461 §2), and the list yields to both.
#[must_use]
pub fn effective(statements: &[Statement]) -> Effective {
    let of = |source: Source| {
        statements.iter().find(|statement| statement.source == source && statement.state == State::Valid)
    };
    let published = |mode: Mode| {
        let mut sources = [Source::Dane, Source::MtaSts, Source::List].into_iter();
        sources.find(|source| of(*source).is_some_and(|statement| statement.mode == mode))
    };
    let winner = precedence::first(|authority| match authority {
        Authority::Rule => of(Source::Rule).map(|rule| {
            let starttls = match rule.mode {
                Mode::Enforce => Starttls::Required,
                Mode::Testing => Starttls::Expected,
                Mode::None => Starttls::Opportunistic,
            };
            (starttls, Source::Rule)
        }),
        Authority::Published(Weight::Enforce) => published(Mode::Enforce).map(|source| (Starttls::Required, source)),
        Authority::Published(Weight::Testing) => published(Mode::Testing).map(|source| (Starttls::Expected, source)),
        // A hint demands nothing.
        Authority::Published(Weight::Hint) => None,
        Authority::History => of(Source::History).map(|_| (Starttls::Expected, Source::History)),
    });
    match winner {
        Some((starttls, source)) => Effective { starttls, source: source.as_str() },
        None => Effective { starttls: Starttls::Opportunistic, source: "none" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(source: Source, state: State, mode: Mode) -> Statement {
        Statement { source, state, mode, detail: String::new(), age_seconds: 0 }
    }

    #[test]
    fn the_order_of_sources() {
        let rule = says(Source::Rule, State::Valid, Mode::None);
        let dane = says(Source::Dane, State::Valid, Mode::Enforce);
        let sts = says(Source::MtaSts, State::Valid, Mode::Enforce);
        let list = says(Source::List, State::Valid, Mode::Enforce);
        let history = says(Source::History, State::Valid, Mode::None);
        let testing = says(Source::MtaSts, State::Valid, Mode::Testing);
        let list_testing = says(Source::List, State::Valid, Mode::Testing);
        for (statements, starttls, source) in [
            (vec![&rule, &dane, &sts], Starttls::Opportunistic, "rule"),
            (vec![&sts, &dane, &list], Starttls::Required, "dane"),
            (vec![&list, &sts], Starttls::Required, "mta-sts"),
            (vec![&testing, &list, &history], Starttls::Required, "list"),
            (vec![&testing, &history], Starttls::Expected, "history"),
            (vec![&list_testing, &testing], Starttls::Expected, "mta-sts"),
            (vec![&list_testing], Starttls::Expected, "list"),
            (vec![], Starttls::Opportunistic, "none"),
        ] {
            let statements: Vec<_> = statements.into_iter().cloned().collect();
            assert_eq!(effective(&statements), Effective { starttls, source });
        }
        let in_order = [
            (Source::Rule, Mode::Enforce, Starttls::Required),
            (Source::Dane, Mode::Enforce, Starttls::Required),
            (Source::MtaSts, Mode::Enforce, Starttls::Required),
            (Source::List, Mode::Enforce, Starttls::Required),
            (Source::History, Mode::None, Starttls::Expected),
            (Source::MtaSts, Mode::Testing, Starttls::Expected),
            (Source::List, Mode::Testing, Starttls::Expected),
        ];
        for (index, (winner, mode, starttls)) in in_order.into_iter().enumerate() {
            for (other, other_mode, _) in in_order.into_iter().skip(index).filter(|(other, ..)| *other != winner) {
                let pair = [says(other, State::Valid, other_mode), says(winner, State::Valid, mode)];
                assert_eq!(effective(&pair), Effective { starttls, source: winner.as_str() }, "{winner:?}, {other:?}");
            }
        }
        for state in State::ALL.into_iter().filter(|state| *state != State::Valid) {
            let statements = [says(Source::Dane, state, Mode::Enforce), says(Source::MtaSts, state, Mode::Enforce)];
            assert_eq!(effective(&statements).starttls, Starttls::Opportunistic, "{state:?} demands nothing");
        }
    }
}
