//! The pages: what is going on, and every incident with its proof.

use std::{fmt::Write as _, sync::Arc};

use axum::{Router, extract::State, response::Html, routing::get};

use super::{desk::Desk, text::printable};

/// The pages of this daemon.
pub fn router(desk: Arc<Desk>) -> Router {
    Router::new().route("/", get(start_page)).with_state(desk)
}

async fn start_page(State(desk): State<Arc<Desk>>) -> Html<String> {
    let status = desk.status().await;
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>smtpwatch</title></head><body>\
         <h1>smtpwatch {}</h1><p>{}</p>",
        escape(status.version),
        if status.not_watching.is_empty() { "Watching." } else { "Not watching." }
    );
    for (title, lines) in [("Attached", &status.attached), ("Missing", &status.missing)] {
        if !lines.is_empty() {
            let _ = write!(page, "<h2>{title}</h2><ul>");
            lines.iter().for_each(|line| _ = write!(page, "<li>{}</li>", escape(line)));
            page.push_str("</ul>");
        }
    }
    page.push_str(
        "<p><a href=\"/metrics\">Metrics</a> <a href=\"/-/healthy\">Healthy</a> <a href=\"/-/ready\">Ready</a></p></body></html>\n",
    );
    Html(page)
}

fn escape(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
