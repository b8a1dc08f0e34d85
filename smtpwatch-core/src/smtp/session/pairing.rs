//! Pairing of replies with commands. SMTP does not number its commands: commands wait in a queue, and a reply answers
//! the oldest one. docs/pairing.md lists what can shift this count, and what smtpwatch concludes in each case.
//!
//! The rules of [`Pairing`]:
//!
//! - Consecutive equal commands share one entry; the number of entries is bounded by [`limits::PIPELINE`].
//! - A line that servers may skip ([`Pending::Uncertain`]) accepts one kind of reply. Any other reply removes the line
//!   from the queue and answers a later command.
//! - A line without a code while a command is pending is a [`TentativeReply`]: the client's next line shows whether the
//!   client accepted it as the reply. If it did, the true reply may still arrive, and is then late.
//! - A 3yz reply that fits only the newest of several pending commands is out of step. Lines without a code may have
//!   answered the earlier commands; if there are too few of them, the session is ambiguous.

use std::collections::VecDeque;

use crate::{Timestamp, limits, smtp::verb::Verb};

/// Commands that wait for their replies, and what is known about lines that may have been replies.
#[derive(Debug, Default)]
pub(super) struct Pairing {
    queue: VecDeque<Waiting>,
    /// The line that may have answered the oldest pending commands.
    pub(super) tentative: Option<TentativeReply>,
    /// A line without a code arrived while a command was pending: a later surplus reply is no sign of an injection.
    pub(super) unparsed_line_seen: bool,
    /// Number of commands that the client regards as answered by a line without a code: their replies may still
    /// arrive.
    pub(super) answered_by_unparsed_line: u32,
    /// The end of a message was not seen: replies may follow to commands that were left out after it.
    pub(super) unseen_commands: bool,
    /// The newest reply answered EHLO, and the client has not sent anything since: more capability lines may follow
    /// (docs/threats.md EV-17).
    pub(super) ehlo_reply_open: bool,
}

/// A command that waits for its reply, with its verb in upper case; empty if the word does not have the form of a
/// verb.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiting {
    pub(super) what: Pending,
    pub(super) verb: Verb,
    /// Time of the command; of several equal ones, of the first.
    pub(super) sent_at: Timestamp,
    /// Number of consecutive equal commands.
    count: u32,
}

/// The effect of the pending reply, by kind of command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pending {
    /// A line that is not a command: some servers skip it, others answer it as a command. A blank line, a PROXY
    /// header that the server does not support, a SASL response without a prompt, text of a refused chunk.
    Uncertain(ExpectedReply),
    Ehlo,
    Helo,
    Starttls,
    Auth,
    Data,
    EndOfData,
    Bdat {
        last: bool,
    },
    UnofferedBdat {
        size: u64,
        last: bool,
    },
    Turn,
    /// XCLIENT (Postfix): the client asks to act on behalf of another client.
    Xclient,
    Other,
}

/// The kind of reply that a server may give to a line that many servers skip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ExpectedReply {
    /// Any 5yz.
    Error,
    /// The reply to QUIT.
    Quit,
}

impl ExpectedReply {
    pub(super) const fn matches(self, code: u16) -> bool {
        match self {
            Self::Error => code / 100 == 5,
            Self::Quit => code == 221,
        }
    }
}

/// Lines that may have been replies: the client has not shown yet whether it accepted them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TentativeReply {
    /// Code of the newest line; zero if it has none.
    pub(super) code: u16,
    /// Number of such lines.
    pub(super) lines: u32,
    /// Number of client bytes buffered when the newest line arrived: later bytes were sent after it.
    pub(super) buffered: usize,
}

/// [`limits::PIPELINE`] entries are pending, and the new command equals none of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueFull;

impl Pairing {
    /// Queues a command that was sent at `sent_at`.
    pub(super) fn push(&mut self, what: Pending, verb: Verb, sent_at: Timestamp) -> Result<(), QueueFull> {
        let crowded = self.queue.len() >= limits::PIPELINE / 2;
        if let Some(newest) = self.queue.back_mut()
            && newest.what == what
            && (newest.verb == verb || crowded)
        {
            newest.count = newest.count.saturating_add(1);
            if newest.verb != verb {
                newest.verb = Verb::default();
            }
            return Ok(());
        }
        if self.queue.len() >= limits::PIPELINE {
            return Err(QueueFull);
        }
        if self.queue.capacity() == 0 {
            self.queue.reserve_exact(1);
        }
        self.queue.push_back(Waiting { what, verb, sent_at, count: 1 });
        Ok(())
    }

    /// Takes the oldest pending command off the queue.
    pub(super) fn answered(&mut self) -> Option<Waiting> {
        let oldest = self.queue.front_mut()?;
        if oldest.count == 1 {
            return self.queue.pop_front();
        }
        oldest.count -= 1;
        Some(*oldest)
    }

    pub(super) fn oldest(&self) -> Option<Pending> {
        self.queue.front().map(|waiting| waiting.what)
    }

    pub(super) fn newest(&self) -> Option<Waiting> {
        self.queue.back().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Number of pending commands.
    pub(super) fn pending(&self) -> u32 {
        self.queue.iter().map(|waiting| waiting.count).sum()
    }

    /// A reply to EHLO is pending.
    pub(super) fn awaits_ehlo(&self) -> bool {
        self.queue.iter().any(|waiting| waiting.what == Pending::Ehlo)
    }

    /// The command that a reply with this code answers.
    pub(super) fn answered_by(&self, code: u16) -> Option<&Waiting> {
        self.queue.iter().find(|waiting| match waiting.what {
            Pending::Uncertain(expected) => expected.matches(code),
            Pending::Ehlo
            | Pending::Helo
            | Pending::Starttls
            | Pending::Auth
            | Pending::Data
            | Pending::EndOfData
            | Pending::Bdat { .. }
            | Pending::UnofferedBdat { .. }
            | Pending::Turn
            | Pending::Xclient
            | Pending::Other => true,
        })
    }

    /// Removes all pending commands. The facts about earlier lines remain.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
    }

    /// [`Self::clear`] that frees the memory too.
    pub(super) fn release(&mut self) {
        self.queue = VecDeque::new();
    }

    /// Frees the capacity of an idle session's queue: usually one command is pending.
    pub(super) fn shrink_idle(&mut self) {
        if self.queue.is_empty() && self.queue.capacity() > 1 {
            self.release();
        }
    }

    /// Removes the oldest commands that are of no known kind. Returns whether there were any.
    pub(super) fn skip_other(&mut self) -> bool {
        let before = self.queue.len();
        while self.oldest() == Some(Pending::Other) {
            self.queue.pop_front();
        }
        self.queue.len() < before
    }

    /// Removes pending lines that the server has skipped: a reply with this code answers a later command. Returns
    /// whether there were any.
    pub(super) fn skip_uncertain(&mut self, code: u16) -> bool {
        let before = self.queue.len();
        while let Some(Pending::Uncertain(expected)) = self.oldest()
            && !expected.matches(code)
            && code != 0
        {
            self.queue.pop_front();
        }
        self.queue.len() < before
    }

    /// Records a line that may have been a reply, while `buffered` bytes of the client wait for one.
    pub(super) fn note_tentative(&mut self, code: u16, buffered: usize) {
        let lines = self.tentative.map_or(0, |tentative| tentative.lines);
        self.tentative = Some(TentativeReply { code, lines: lines.saturating_add(1), buffered });
    }

    /// Number of the `buffered` bytes that the client sent before it can have seen the tentative reply.
    pub(super) fn sent_before_tentative(&self, buffered: usize) -> usize {
        self.tentative.map_or(buffered, |tentative| tentative.buffered).min(buffered)
    }

    /// The first `count` of the buffered bytes were removed.
    pub(super) const fn buffer_shortened(&mut self, count: usize) {
        if let Some(tentative) = &mut self.tentative {
            tentative.buffered = tentative.buffered.saturating_sub(count);
        }
    }

    /// Whether a reply fits only the newest command while others are pending: then replies cannot be matched to
    /// commands, and continuing would read a message as commands.
    pub(super) fn is_out_of_step(&self, code: u16) -> bool {
        let newest = self.newest().filter(|_| self.queue.len() > 1).map(|waiting| waiting.what);
        code / 100 == 3 && matches!(newest, Some(Pending::Data | Pending::Auth))
    }

    /// Restores the order of the queue: lines without a code were the replies to all commands before the newest one,
    /// if there are enough such lines. Returns whether the order is restored.
    pub(super) fn resynchronise(&mut self) -> bool {
        let before: u32 = self.queue.iter().rev().skip(1).map(|waiting| waiting.count).sum();
        let explained = self.tentative.is_some_and(|tentative| tentative.code == 0 && tentative.lines >= before);
        if explained && let Some(newest) = self.queue.pop_back() {
            self.queue.clear();
            self.queue.push_back(newest);
        }
        explained
    }
}
