//! The cleartext dialogue of a session; part of the page of a finding.

use maud::{Markup, html};
use smtpwatch_core::Finding;

use super::format::escaped;

pub(super) fn section(finding: &Finding) -> Markup {
    if finding.transcript.is_empty() {
        return html! {};
    }
    html! {
        section aria-labelledby="dialogue" {
            h2 #dialogue { "Cleartext dialogue" }
            p.note { "Passwords, user names and addresses are overwritten by " code { "*" } " or left out; their lengths remain." }
            ol.dialogue {
                @for line in &finding.transcript {
                    li class=(line.from.as_str()) {
                        span.from { (line.from.as_str()) ": " }
                        code { (escaped(&line.text)) }
                    }
                }
            }
        }
    }
}
