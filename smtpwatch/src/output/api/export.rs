//! Where the forms of others are made.

use smtpwatch_core::Finding;

use super::{hand_over::Form, problem::Problem};

/// The findings of an incident in this form.
pub(super) fn write(_form: Form, _incident: &str, _findings: &[Finding]) -> Result<Vec<u8>, Problem> {
    Err(Problem::not_implemented())
}
