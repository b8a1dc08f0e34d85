//! What was known when the finding was raised: history, policies, and the sending program on this host; part of the
//! page of a finding.

use maud::{Markup, html};
use smtpwatch_core::{Finding, evidence::Known, finding::Sender};

use super::format::{escaped, moment};

pub(super) fn section(finding: &Finding) -> Markup {
    let exhibit = finding.exhibit.as_deref();
    let history = exhibit.and_then(|exhibit| exhibit.history.as_ref());
    let policies = exhibit.map(|exhibit| &exhibit.policies[..]).unwrap_or_default();
    let losses = exhibit.map(|exhibit| &exhibit.losses).filter(|losses| !losses.is_empty());
    if history.is_none() && policies.is_empty() && losses.is_none() && finding.sender.is_none() {
        return html! {};
    }
    html! {
        section aria-labelledby="known" {
            h2 #known { "Known at the time" }
            dl.facts {
                @if let Some(sender) = &finding.sender { (self::sender(sender)) }
                @if let Some(history) = history { (self::history(history)) }
                @for policy in policies {
                    dt { "Policy: " (escaped(&policy.source)) " (" (escaped(&policy.mode)) ")" }
                    dd { @if !policy.subject.is_empty() { (escaped(&policy.subject)) ": " } (escaped(&policy.detail)) }
                }
                @if let Some(losses) = losses {
                    dt { "Lost by the kernel before" }
                    dd { @for (reason, number) in losses { (escaped(reason)) " " (number) " " } }
                }
            }
        }
    }
}

fn sender(sender: &Sender) -> Markup {
    let named = [("unit", &sender.unit), ("pod", &sender.pod), ("container", &sender.container)];
    html! {
        dt { "Sent by" }
        dd {
            @match sender.uid { Some(uid) => { "user id " (uid) }, None => "an unknown user" }
            @for (what, name) in named {
                @if let Some(name) = name { ", " (what) " " (escaped(name)) }
            }
            @if !sender.cgroup.is_empty() { ", cgroup " code { (escaped(&sender.cgroup)) } }
        }
    }
}

fn history(known: &Known) -> Markup {
    let record = &known.record;
    html! {
        dt { "History of " (escaped(&known.peer)) }
        dd {
            (record.sessions) " sessions from " (moment(record.first_seen)) " to " (moment(record.last_seen)) "; STARTTLS "
            (escaped(&record.offers())) ", " (escaped(&record.uses()))
        }
    }
}
