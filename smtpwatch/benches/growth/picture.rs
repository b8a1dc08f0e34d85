//! The figure as SVG: two panels, readable on light and dark backgrounds.

use std::fmt::Write as _;

use crate::{flows::Flows, history::Known, per};

const WIDTH: f64 = 880.0;
const HEIGHT: f64 = 380.0;
/// Left, top, width and height of a panel's plot area, from the panel's corner.
const PLOT: (f64, f64, f64, f64) = (52.0, 62.0, 250.0, 250.0);
const PANEL: f64 = WIDTH / 2.0;

const STYLE: &str = "
    text { font: 12px system-ui, sans-serif; fill: #333 }
    .title { font-weight: 600; font-size: 14px }
    .grid { stroke: #ddd } .goal { stroke: #888; stroke-dasharray: 4 4 } .quiet { fill: #666 }
    .line { fill: none; stroke-width: 2 }
    .line.a { stroke: #0b62a8 } .line.b { stroke: #b4500a } .line.c { stroke: #23782f }
    .dot.a, .name.a { fill: #0b62a8 } .dot.b, .name.b { fill: #b4500a } .dot.c, .name.c { fill: #23782f }
    @media (prefers-color-scheme: dark) {
        text { fill: #ddd } .grid { stroke: #3a3f45 } .goal { stroke: #999 } .quiet { fill: #aaa }
        .line.a { stroke: #6cb6ff } .line.b { stroke: #f0a35e } .line.c { stroke: #7fcf8a }
        .dot.a, .name.a { fill: #6cb6ff } .dot.b, .name.b { fill: #f0a35e } .dot.c, .name.c { fill: #7fcf8a }
    }
";

/// A curve: its CSS class, its label, and its points by the number of flows or peers.
struct Curve {
    class: char,
    name: &'static str,
    points: Vec<(usize, f64)>,
}

struct Panel {
    title: &'static str,
    below: &'static str,
    /// Ticks of the vertical axis, from bottom to top.
    marks: Vec<f64>,
    /// Logarithmic scale.
    log: bool,
    unit: &'static str,
    goal: Option<f64>,
    curves: Vec<Curve>,
}

pub fn draw(flows: &[Flows], history: &[Known]) -> String {
    let ratio = |values: Vec<(usize, f64)>| {
        let first = values.first().map_or(1.0, |(_, value)| *value);
        values.into_iter().map(|(count, value)| (count, value / first)).collect()
    };
    let cost = Panel {
        title: "Time, beside that with 1,000",
        below: "flows open at once, or peers known",
        marks: vec![1.0, 2.0, 4.0, 8.0, 16.0],
        log: true,
        unit: " ×",
        goal: None,
        curves: vec![
            Curve {
                class: 'b',
                name: "history: look-up",
                points: ratio(history.iter().map(|known| (known.peers, known.look_up.as_secs_f64())).collect()),
            },
            Curve {
                class: 'c',
                name: "history: note",
                points: ratio(history.iter().map(|known| (known.peers, known.note.as_secs_f64())).collect()),
            },
            Curve {
                class: 'a',
                name: "a whole session",
                points: ratio(flows.iter().map(|flows| (flows.flows, flows.session.as_secs_f64())).collect()),
            },
        ],
    };
    let memory = Panel {
        title: "Memory for a flow",
        below: "flows open at once",
        marks: vec![0.0, 1.0, 2.0, 3.0, 4.0],
        log: false,
        unit: " KiB",
        goal: Some(1.0),
        curves: vec![
            Curve {
                class: 'b',
                name: "after its handshake",
                points: flows.iter().map(|flows| (flows.flows, flows.rest.sum() / 1024.0)).collect(),
            },
            Curve {
                class: 'a',
                name: "in its dialogue",
                points: flows.iter().map(|flows| (flows.flows, flows.dialogue.sum() / 1024.0)).collect(),
            },
            Curve {
                class: 'c',
                name: "of it the gate",
                points: flows.iter().map(|flows| (flows.flows, flows.dialogue.gate / 1024.0)).collect(),
            },
        ],
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Time for a session and memory for a flow, as flows and peers grow\">\n<style>{STYLE}</style>\n"
    );
    cost.draw(0.0, &mut svg);
    memory.draw(PANEL, &mut svg);
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, left: f64, svg: &mut String) {
        let (x, y, width, height) = (left + PLOT.0, PLOT.1, PLOT.2, PLOT.3);
        let mut text = |class: &str, x: f64, y: f64, anchor: &str, words: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(
                svg,
                "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
            );
        };
        text("title", left + 16.0, 28.0, "start", self.title);
        text("quiet", x + width / 2.0, y + height + 44.0, "middle", self.below);
        for &mark in &self.marks {
            text("quiet", x - 8.0, self.y(mark) + 4.0, "end", &format!("{mark}{}", self.unit));
        }
        let decades = ["1,000", "10,000", "100,000", "1,000,000"];
        for (index, words) in decades.into_iter().enumerate() {
            text("quiet", x + width * per(index, 3), y + height + 20.0, "middle", words);
        }
        let mut names: Vec<(f64, &Curve)> =
            self.curves.iter().filter_map(|curve| Some((self.y(curve.points.last()?.1), curve))).collect();
        names.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        // Labels that would overlap are moved down.
        let mut free = f64::MIN;
        for (at, _) in &mut names {
            *at = at.max(free);
            free = *at + 32.0;
        }
        for (at, curve) in names {
            let value = curve.points.last().map_or(0.0, |(_, value)| *value);
            let class = format!("{} name", curve.class);
            text(&class, x + width + 10.0, at, "start", curve.name);
            text(&class, x + width + 10.0, at + 14.0, "start", &format!("{value:.1}{}", self.unit));
        }
        if let Some(goal) = self.goal {
            text("quiet", x + 6.0, self.y(goal) - 5.0, "start", "the aim");
        }
        for &mark in &self.marks {
            let y = self.y(mark);
            let _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {y:.1}h{width:.1}\"/>");
        }
        if let Some(goal) = self.goal {
            let y = self.y(goal);
            let _ = writeln!(svg, "<path class=\"goal\" d=\"M{x:.1} {y:.1}h{width:.1}\"/>");
        }
        for curve in &self.curves {
            let at = |(count, value): &(usize, f64)| (x + width * (per(*count, 1_000).log10() / 3.0), self.y(*value));
            let points: Vec<_> = curve.points.iter().map(at).collect();
            let path = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<_>>().join(" ");
            let _ = writeln!(svg, "<polyline class=\"{} line\" points=\"{path}\"/>", curve.class);
            for (x, y) in points {
                let _ = writeln!(svg, "<circle class=\"{} dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>", curve.class);
            }
        }
    }

    fn y(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.log { value.max(f64::MIN_POSITIVE).log2() } else { value };
        let (foot, head) = (self.marks.first().copied().unwrap_or(0.0), self.marks.last().copied().unwrap_or(1.0));
        let share = (scale(value) - scale(foot)) / (scale(head) - scale(foot));
        PLOT.1 + PLOT.3 * (1.0 - share.clamp(-0.05, 1.05))
    }
}
