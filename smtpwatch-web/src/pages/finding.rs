//! The page of a finding, in parts; the page of an incident shows those of its strongest finding.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use smtpwatch_core::{
    Finding,
    cause::{About, Cause},
};
use smtpwatch_render::words;
use smtpwatch_store::incidents::StoredFinding;

use super::{
    dialogue, difference,
    format::{escaped, moment, severity},
    history,
    layout::{Failure, Page},
    packets,
};
use crate::app_state::AppState;

pub(super) async fn show(State(app): State<Arc<AppState>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let stored = app.with_store(move |store| store.finding(&id)).await?;
    let f = &stored.finding;
    let title = format!("{} at {}", f.kind, f.time);
    let body = html! {
        h1 { (f.kind) " " (severity(f.severity)) }
        p.lead { "At " (moment(f.time)) ", " (words::happened(f.kind, about(f))) "." }
        p.buttons {
            a.button href={ "/incidents/" (stored.incident) } { "Its incident" }
            a.button href={ "/api/v1/findings/" (f.id) } { "JSON" }
        }
        (parts(&stored))
    };
    Ok(Page { title: &title, under: "/incidents", incident: None, body }.into_response())
}

fn about(finding: &Finding) -> About {
    Cause::of(finding).map_or(About::Peer, |cause| cause.about)
}

/// The parts of the page, in this order: difference, indicators, dialogue, known data, packets, record.
pub(super) fn parts(stored: &StoredFinding) -> Markup {
    let f = &stored.finding;
    html! {
        (difference::section(f))
        (signs(f))
        (dialogue::section(f))
        (history::section(f))
        @if let Some(exhibit) = &f.exhibit {
            (packets::section(exhibit))
        } @else {
            p { "This finding has no further evidence: the first findings of its incident have it." }
        }
        (record(stored))
    }
}

fn signs(f: &Finding) -> Markup {
    html! {
        section aria-labelledby="signs" {
            h2 #signs { "Why" }
            dl.facts {
                dt { "Rule" } dd { (escaped(&f.rule)) }
                dt { "Expected" }
                dd {
                    @if f.expected.starttls { "STARTTLS" } @else { "no statement about STARTTLS" }
                    ", according to " (escaped(&f.expected.source))
                    @if let Some(mode) = &f.expected.mode { " (" (escaped(mode)) ")" }
                    ": " (escaped(&f.expected.detail))
                }
                dt { "Seen" }
                dd {
                    "STARTTLS " (f.observed.starttls)
                    @if let Some(mechanism) = &f.observed.mechanism { ", login mechanism " (escaped(mechanism)) }
                    @if let Some(reply) = f.observed.reply { ", reply " (reply) }
                }
                @if f.gaps > 0 { dt { "Gaps" } dd { (f.gaps) " in the observed session" } }
            }
            @if !f.indicators.is_empty() {
                h3 { "Further indicators" }
                ul { @for sign in &f.indicators { li { (escaped(sign)) } } }
            }
        }
    }
}

fn record(stored: &StoredFinding) -> Markup {
    let f = &stored.finding;
    html! {
        section aria-labelledby="record" {
            h2 #record { "Record" }
            dl.facts {
                dt { "Finding" } dd { a href={ "/findings/" (f.id) } { code { (f.id) } } }
                dt { "Connection" }
                dd {
                    code { (escaped(&f.flow.client)) } " to " code { (escaped(&f.flow.server)) }
                    @if !f.flow.interface.is_empty() { " at " (escaped(&f.flow.interface)) }
                    ", Community ID " code { (escaped(&f.flow.community_id)) }
                }
                dt { "Position in the chain" } dd { (stored.number) ", SHA-256 " code.hash { (stored.chain) } }
                dt { "Judged by" } dd { "smtpwatch " (escaped(&f.provenance.version)) }
                dt { "Configuration" } dd { "SHA-256 " code.hash { (escaped(&f.provenance.config_sha256)) } }
                dt { "Policies" } dd { "SHA-256 " code.hash { (escaped(&f.provenance.policy_sha256)) } }
            }
        }
    }
}
