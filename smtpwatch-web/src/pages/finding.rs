//! The page of a finding, in parts; the page of an incident shows those of its strongest finding.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use smtpwatch_core::Finding;
use smtpwatch_render::words;
use smtpwatch_store::incidents::Kept;

use super::{
    dialogue, difference, known,
    layout::{Failure, Page},
    packets,
    said::{moment, said, severity},
};
use crate::desk::Desk;

pub(super) async fn show(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Response, Failure> {
    let kept = desk.ask(move |store| store.finding(&id)).await?;
    let f = &kept.finding;
    let title = format!("{} at {}", f.kind, f.time);
    let body = html! {
        h1 { (f.kind) " " (severity(f.severity)) }
        p.lead { "At " (moment(f.time)) ", " (words::happened(f.kind)) "." }
        p.buttons {
            a.button href={ "/incidents/" (kept.incident) } { "Its incident" }
            a.button href={ "/api/v1/findings/" (f.id) } { "JSON" }
        }
        (parts(&kept))
    };
    Ok(Page { title: &title, under: "/incidents", incident: None, body }.into_response())
}

/// The parts of the page, in this order: difference, indicators, dialogue, known data, packets, record.
pub(super) fn parts(kept: &Kept) -> Markup {
    let f = &kept.finding;
    html! {
        (difference::section(f))
        (signs(f))
        (dialogue::section(f))
        (known::section(f))
        @if let Some(exhibit) = &f.exhibit {
            (packets::section(exhibit))
        } @else {
            p { "This finding has no further evidence: the first findings of its incident have it." }
        }
        (record(kept))
    }
}

fn signs(f: &Finding) -> Markup {
    html! {
        section aria-labelledby="signs" {
            h2 #signs { "Why" }
            dl.facts {
                dt { "Rule" } dd { (said(&f.rule)) }
                dt { "Expected" }
                dd {
                    @if f.expected.starttls { "STARTTLS" } @else { "no statement about STARTTLS" }
                    ", according to " (said(&f.expected.source))
                    @if let Some(mode) = &f.expected.mode { " (" (said(mode)) ")" }
                    ": " (said(&f.expected.detail))
                }
                dt { "Seen" }
                dd {
                    "STARTTLS " (f.observed.starttls)
                    @if let Some(mechanism) = &f.observed.mechanism { ", login mechanism " (said(mechanism)) }
                    @if let Some(reply) = f.observed.reply { ", reply " (reply) }
                }
                @if f.gaps > 0 { dt { "Gaps" } dd { (f.gaps) " in the observed session" } }
            }
            @if !f.indicators.is_empty() {
                h3 { "Further indicators" }
                ul { @for sign in &f.indicators { li { (said(sign)) } } }
            }
        }
    }
}

fn record(kept: &Kept) -> Markup {
    let f = &kept.finding;
    html! {
        section aria-labelledby="record" {
            h2 #record { "Record" }
            dl.facts {
                dt { "Finding" } dd { a href={ "/findings/" (f.id) } { code { (f.id) } } }
                dt { "Connection" }
                dd {
                    code { (said(&f.flow.client)) } " to " code { (said(&f.flow.server)) }
                    @if !f.flow.interface.is_empty() { " at " (said(&f.flow.interface)) }
                    ", Community ID " code { (said(&f.flow.community_id)) }
                }
                dt { "Position in the chain" } dd { (kept.number) ", SHA-256 " code.hash { (kept.chain) } }
                dt { "Judged by" } dd { "smtpwatch " (said(&f.provenance.version)) }
                dt { "Configuration" } dd { "SHA-256 " code.hash { (said(&f.provenance.config_sha256)) } }
                dt { "Policies" } dd { "SHA-256 " code.hash { (said(&f.provenance.policy_sha256)) } }
            }
        }
    }
}
