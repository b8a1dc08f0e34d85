//! The filter form of the incident list, and errors about its input.

use maud::{Markup, html};
use smtpwatch_core::{
    Role,
    finding::{Evidence, Kind, Severity},
};
use smtpwatch_store::incidents::{Cursor, Filter};

use crate::api::{self, Problem};

/// The submitted form, unchanged; empty fields are not filtered.
pub(super) struct FilterQuery(Vec<(String, String)>);

impl FilterQuery {
    pub(super) fn read(query: &str) -> Self {
        let filled = form_urlencoded::parse(query.as_bytes())
            .map(|(name, value)| (name.into_owned(), value.trim().to_owned()))
            .filter(|(_, value)| !value.is_empty());
        Self(filled.collect())
    }

    /// The filter that the API makes of the same query.
    pub(super) fn filter(&self, limit: usize) -> Result<Filter, Problem> {
        Ok(Filter { limit, ..api::filter(self.pairs())? })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The names and values of the filled fields.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (String, String)> {
        self.0.iter().cloned()
    }

    /// The address of the page after this position.
    pub(super) fn further(&self, cursor: &Cursor) -> String {
        self.address("/incidents", &[("cursor", &cursor.to_string())])
    }

    /// The address of a path with the values of this form, without its position, and with further values.
    pub(super) fn address(&self, path: &str, further: &[(&str, &str)]) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.0.iter().filter(|(name, _)| name != "cursor"));
        format!("{path}?{}", query.extend_pairs(further).finish())
    }

    pub(super) fn has(&self, name: &str, value: &str) -> bool {
        self.0.iter().any(|(key, text)| key == name && text == value)
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

pub(super) fn form(query: &FilterQuery) -> Markup {
    let ranks = |name: &'static str, label, any, values: Vec<(&'static str, String)>| {
        html! {
            label { (label)
                select name=(name) {
                    option value="" { (any) }
                    @for (value, shown) in values { option value=(value) selected[query.has(name, value)] { (shown) } }
                }
            }
        }
    };
    let at_least = |name: &'static str| (name, format!("{name} or higher"));
    let text = |name: &str, label: &str, example: &str| {
        html! {
            label { (label)
                input type="text" name=(name) value=(query.text(name)) placeholder=(example) autocomplete="off"
                    spellcheck="false" maxlength="255";
            }
        }
    };
    let kinds = Kind::ALL.iter().filter(|kind| query.has("kind", kind.as_str())).count();
    html! {
        form.filter method="get" action="/incidents" role="search" aria-label="Incidents" {
            (ranks("severity", "Severity", "any", Severity::ALL.iter().map(|one| at_least(one.as_str())).collect()))
            (ranks("evidence", "Evidence", "any", Evidence::ALL.iter().map(|one| at_least(one.as_str())).collect()))
            (ranks("role", "This host is the", "client or server", Role::ALL.iter().map(|one| (one.as_str(), one.as_str().to_owned())).collect()))
            (text("peer", "Peer", "198.51.100.0/24, *.example.net"))
            (text("since", "Last seen after", "24h, 7d, 2026-11-23T15:00:00Z"))
            (text("until", "Begun before", "2026-11-23T15:00:00Z"))
            label { "Order"
                select name="sort" {
                    option value="" { "newest first" }
                    option value="worth" selected[query.has("sort", "worth")] { "most severe first" }
                }
            }
            details.kinds open[kinds > 0] {
                summary { "Kinds: " (if kinds == 0 { "any".to_owned() } else { kinds.to_string() }) }
                fieldset {
                    legend { "Any of these" }
                    @for kind in Kind::ALL {
                        label { input type="checkbox" name="kind" value=(kind) checked[query.has("kind", kind.as_str())]; (kind) }
                    }
                }
            }
            div.do {
                button type="submit" { "Filter" }
                @if !query.is_everything() { a href="/incidents" { "Show all" } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use smtpwatch_store::incidents::Sort;

    use super::*;

    #[test]
    fn what_is_empty_is_not_wanted_and_the_next_page_keeps_the_rest() {
        let query =
            FilterQuery::read("severity=&peer=+*.example.net+&kind=starttls-stripped&kind=auth-plaintext&cursor=1-2");
        let filter = query.filter(9).unwrap_or_else(|problem| panic!("{}", problem.detail));
        assert_eq!((filter.severity, filter.kinds.len(), filter.limit), (None, 2, 9));
        let next = query.further(&"3-4".parse().expect("a place"));
        assert_eq!(next, "/incidents?peer=*.example.net&kind=starttls-stripped&kind=auth-plaintext&cursor=3-4");
        let filter = FilterQuery::read("sort=worth&cursor=3-4-2").filter(9);
        assert_eq!(filter.map(|filter| filter.sort).ok(), Some(Sort::Worth));
        assert!(FilterQuery::read("sort=worth&cursor=3-4").filter(9).is_ok(), "a position of the other order");
        assert!(FilterQuery::read("sort=worth&cursor=3-4-5").filter(9).is_err(), "no such severity");
        assert!(FilterQuery::read("severity=loud").filter(9).is_err() && FilterQuery::read("&&=").is_everything());
    }

    #[test]
    fn typed_values_are_printed_as_text() {
        let page = form(&FilterQuery::read("peer=%22%3E%3Cscript%3E")).into_string();
        assert!(page.contains("value=\"&quot;&gt;&lt;script&gt;\"") && !page.contains("<script"), "{page}");
    }
}
