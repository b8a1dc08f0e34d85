//! The shipped alert rules, checked and unit-tested by promtool.

use smtpwatch_tests::netns::Namespace;
use smtpwatch_tests::prometheus::promtool;
use smtpwatch_tests::scenario;

#[test]
fn rules_are_valid() {
    scenario("rules_are_valid", || {
        promtool(&Namespace::create("promtool")?, &["check", "rules", "/lab/alerts.yaml", "/lab/recording.yaml"])
            .map(drop)
    });
}

#[test]
fn rules_pass_their_unit_tests() {
    scenario("rules_pass_their_unit_tests", || {
        promtool(&Namespace::create("promtool")?, &["test", "rules", "/lab/alerts_test.yaml"]).map(drop)
    });
}
