//! Irregularities of the server's side that change nothing in the dialogue. Each has a stable identifier and is
//! counted, so that no branch of the parser is silent.

/// A reply or a line that the session drops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Oddity {
    /// The first line of the server has no code: it is the greeting if the client accepts it (docs/threats.md EV-18).
    GreetingWithoutCode,
    /// Commands before the greeting are no SMTP: another host answered them, such as a web proxy (FP-12).
    CommandsBeforeGreeting,
    /// A line without a code while a command was pending.
    LineWithoutCode,
    /// A line without a code while no command was pending.
    UnsolicitedLineWithoutCode,
    /// The server skipped a client line that is not a command.
    SkippedLine,
    /// The reply to a command that a line without a code seemed to answer.
    LateReply,
    /// Lines without a code were the replies to several commands.
    Resynchronised,
    /// A reply that follows such lines and answers no command.
    SurplusReply,
    /// An error, or a code outside 2yz to 5yz, that answers no command.
    UnsolicitedError,
    /// A 2yz or 3yz that answers no command, in a session that is unknown for another reason.
    UnsolicitedInDoubt,
    /// The reply to a command that was left out with a message and that it does not identify.
    UnseenCommand,
    /// A refusal before the end of the message was seen: the message continues until the next reply.
    RefusalWithinMessage,
}

impl Oddity {
    /// Every value, in order.
    pub const ALL: [Self; 12] = [
        Self::GreetingWithoutCode,
        Self::CommandsBeforeGreeting,
        Self::LineWithoutCode,
        Self::UnsolicitedLineWithoutCode,
        Self::SkippedLine,
        Self::LateReply,
        Self::Resynchronised,
        Self::SurplusReply,
        Self::UnsolicitedError,
        Self::UnsolicitedInDoubt,
        Self::UnseenCommand,
        Self::RefusalWithinMessage,
    ];

    /// Stable identifier.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::GreetingWithoutCode => "greeting_without_code",
            Self::CommandsBeforeGreeting => "commands_before_greeting",
            Self::LineWithoutCode => "line_without_code",
            Self::UnsolicitedLineWithoutCode => "unsolicited_line_without_code",
            Self::SkippedLine => "skipped_line",
            Self::LateReply => "late_reply",
            Self::Resynchronised => "resynchronised",
            Self::SurplusReply => "surplus_reply",
            Self::UnsolicitedError => "unsolicited_error",
            Self::UnsolicitedInDoubt => "unsolicited_in_doubt",
            Self::UnseenCommand => "unseen_command",
            Self::RefusalWithinMessage => "refusal_within_message",
        }
    }
}

/// Number of oddities of one session, by kind. A count stops at 255.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Oddities([u8; Oddity::ALL.len()]);

impl Oddities {
    pub(super) fn note(&mut self, oddity: Oddity) {
        if let Some(count) = self.0.get_mut(oddity as usize) {
            *count = count.saturating_add(1);
        }
    }

    /// Number of oddities of this kind.
    #[must_use]
    pub fn count(&self, oddity: Oddity) -> u8 {
        self.0.get(oddity as usize).copied().unwrap_or(0)
    }

    /// The kinds that occurred, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (Oddity, u8)> {
        Oddity::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}
