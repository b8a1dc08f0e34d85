//! Connections between two watched ports. The gate takes the lower one for the server's, because a packet alone does not
//! tell; the SYN does, and a client may choose its port (THREATS EV-25).

use std::collections::HashSet;

use smtpwatch_core::{
    FlowKey, Side, TcpFlags,
    engine::{GateAction, GateOrder},
};

/// Connections held; while there are as many, another one is taken as the gate takes it.
const FLOWS: usize = 4096;

/// The connections of which the gate has the ends the wrong way round, by the gate's own key.
#[derive(Debug, Default)]
pub struct Turned {
    flows: HashSet<FlowKey>,
}

impl Turned {
    /// The ends of a segment that the gate takes for one of `flow`, sent by `from`. `watched` tells which ports are.
    pub fn ends(&mut self, flow: FlowKey, from: Side, flags: TcpFlags, watched: &[u16]) -> (FlowKey, Side) {
        if !watched.contains(&flow.client.port()) {
            return (flow, from);
        }
        if flags.contains(TcpFlags::SYN) {
            let opens = !flags.contains(TcpFlags::ACK);
            if opens == (from == Side::Client) {
                self.flows.remove(&flow);
            } else if self.flows.len() < FLOWS {
                self.flows.insert(flow);
            }
        }
        if self.flows.contains(&flow) { (turn(flow), from.peer()) } else { (flow, from) }
    }

    /// An order as the gate understands it; `None` where it cannot be given: the gate mutes messages of clients only.
    #[must_use]
    pub fn order(&self, order: GateOrder) -> Option<GateOrder> {
        let flow = turn(order.flow);
        if !self.flows.contains(&flow) {
            return Some(order);
        }
        let action = match order.action {
            GateAction::Mute => GateAction::Mute,
            GateAction::MuteBody => return None,
            GateAction::SkipUntil { from, until } => GateAction::SkipUntil { from: from.peer(), until },
        };
        Some(GateOrder { flow, action })
    }
}

const fn turn(flow: FlowKey) -> FlowKey {
    FlowKey { client: flow.server, server: flow.client }
}
