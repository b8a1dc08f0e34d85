//! Translates the engine's orders into the format of the gate, for the kernel and for the userspace gate.

use smtpwatch_common::{
    FlowKey, Order, Record, Side,
    gate::order_kind,
    headers::tcp_flag::{FIN, SYN},
};
use smtpwatch_core::engine::{GateAction, GateOrder};

/// The gate's key for a flow of the engine.
#[must_use]
pub fn key(flow: &smtpwatch_core::FlowKey) -> FlowKey {
    FlowKey::new(flow.client, flow.server)
}

/// State of a flow when the engine issued an order: the order is valid for this state only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// Instance number of the flow: a reused 4-tuple gets another one.
    pub flow: u64,
    /// The next expected sequence number of the server.
    pub server_next: u32,
}

impl Position {
    /// The position of the flow of `record` after that record.
    pub(crate) fn after(record: &Record<'_>) -> Self {
        let header = &record.header;
        let server_next = match header.from() {
            Side::Client => header.ack,
            Side::Server => {
                let numbers = header.tcp_flags & (SYN | FIN);
                header.seq.wrapping_add(header.length).wrapping_add(numbers.count_ones())
            }
        };
        Self { flow: header.flow, server_next }
    }
}

/// Translates an order into the gate's format. `serial` must be nonzero and differ from the flow's previous order.
pub(crate) fn translate(order: &GateOrder, at: Position, serial: u32) -> (FlowKey, Order) {
    let (kind, position) = match order.action {
        GateAction::Mute => (order_kind::MUTE, 0),
        GateAction::MuteBody => (order_kind::MUTE_BODY, at.server_next),
        GateAction::SkipUntil { from: smtpwatch_core::Side::Client, until } => (order_kind::SKIP_CLIENT, until),
        GateAction::SkipUntil { from: smtpwatch_core::Side::Server, until } => (order_kind::SKIP_SERVER, until),
    };
    (key(&order.flow), Order { flow: at.flow, serial, kind, position, reserved: 0 })
}
