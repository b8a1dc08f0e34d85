//! The table of what is known, and the index from addresses to mail hosts to domains.

/// Everything that is known of published policies, bounded.
#[derive(Debug, Default)]
pub struct Published {}
