//! What comes into the protocol.

use super::{Passed, Probe};
use crate::id::NodeId;
use crate::message::Response;

/// An event from outside.
#[derive(Clone, Debug)]
pub enum Input {
    /// The time returned by `deadline` has come; harmless at any other time.
    Wake,
    /// A link to a neighbor is usable.
    Connected(NodeId),
    /// The link to a neighbor is gone.
    Disconnected(NodeId),
    /// A neighbor's frame.
    Frame {
        /// The neighbor, as authenticated by the transport.
        from: NodeId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
    /// A neighbor's frame that never left the process; see [`Protocol::pass_frames`].
    ///
    /// [`Protocol::pass_frames`]: super::Protocol::pass_frames
    Passed {
        /// The neighbor.
        from: NodeId,
        /// The frame.
        frame: Passed,
    },
    /// A frame that could not be handed to the link.
    NotSent(NodeId),
    /// The two losses of a probe that was asked for.
    Losses {
        /// The probe.
        probe: Probe,
        /// Loss at θ + ε·direction.
        plus: f32,
        /// Loss at θ − ε·direction.
        minus: f32,
    },
    /// A neighbor's answer to a request; `None` when none came.
    Response {
        /// The neighbor.
        from: NodeId,
        /// The answer.
        response: Option<Response>,
    },
    /// Make no more probes; keep exchanging what there is.
    StopProbing,
}
