//! SMTP: turns the ordered bytes of a connection into one session's [`Observation`].
//!
//! [`Session`] is the state machine; [`crate::engine`] feeds it with reassembled bytes. The other modules are its
//! parsers. The grammar is wider than RFC 5321, because real peers send all of this, and a strict parser would miss
//! their sessions:
//!
//! | accepted | why |
//! |---|---|
//! | LF alone ends a line | servers accept it (docs/threats.md EV-15) |
//! | verbs and keywords in any case, leading blanks, tabs | EV-13, EV-14 |
//! | lines of any length; more than [`crate::limits::LINE`] bytes are cut and marked | EV-16 |
//! | reply codes of any class, lines without a code | EV-18: no reply switches the parser off |
//! | unknown verbs wait for their reply like known ones | FP-11 |
//! | commands before the greeting | PIPECONNECT, FP-12 |
//! | more `250` lines after the last one of an EHLO reply | EV-17, A6 |

mod auth;
mod body;
mod command;
mod ehlo;
mod line;
mod ntlm;
mod observation;
mod quoted_command;
mod redaction;
mod reply;
mod retained;
mod secret;
mod session;
mod tls;
mod transcript;
mod verb;

pub use auth::{AuthExchange, MechanismClass};
pub(crate) use ehlo::plain_keyword;
pub use ehlo::{Capabilities, Capability, Offer};
pub use observation::{Doubt, HandshakeEnd, Injection, Observation, Rewritten, Starttls};
pub(crate) use session::nul_bytes;
pub use session::{Oddities, Oddity, Session, SessionEvent};
pub use tls::{ClientHello, ServerHello, TlsPhase, TlsVersion, version_name};
