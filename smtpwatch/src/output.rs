//! Outputs of the process: metrics, findings, pages and API. Nothing here makes decisions about findings.

pub mod alertmanager;
pub mod api;
pub mod desk;
pub mod export;
pub mod journal;
pub mod metrics;
pub mod pages;
pub mod policy;
pub mod text;
pub mod web;
