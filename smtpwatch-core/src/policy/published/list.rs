//! The STARTTLS-Everywhere list (schema 0.1 of its publisher): domains, modes, and the names of their mail hosts.

use crate::{Timestamp, hash::HashMap};

/// The list.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct StarttlsList {
    /// When it was made.
    pub timestamp: Timestamp,
    /// Behind this it speaks for nobody any more.
    pub expires: Timestamp,
    /// By domain, in lower case, A-labels; aliases resolved.
    pub policies: HashMap<String, ListPolicy>,
}

/// What the list says of one domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListPolicy {
    /// True: `enforce`; false: `testing`.
    pub enforce: bool,
    /// Names of mail hosts, or `.` and a suffix that one label stands before.
    pub mxs: Vec<String>,
}
