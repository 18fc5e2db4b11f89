//! One-byte DADAO: every jump restricted to a shared direction, one symbol each way an exchange.
//!
//! Each jump of [DADAO](super::dadao) is linear in one vector, the residual `g` or the edge
//! difference `m`. With a Rademacher direction `u` (signs ±1, so `|u|² = d`) it may be replaced by
//!
//! ```text
//! g → (u·g / d) u        gradient clocks d times faster
//! m → (u·m / d) u        edge clocks d times faster
//! ```
//!
//! whose first and second moments over time are those of the dense jump; constants are untouched.
//! The scalar must be that of the *residual* `∇f(x) − νx − y~` (its noise vanishes at the optimum);
//! projecting `∇f` alone does not converge.
//!
//! On an edge the difference of two *quantized* `u·w` would leave a floor, since `w` does not
//! vanish at the optimum. So each end of a [`Link`] keeps what the neighbor can know of its `w`,
//! an estimate `ŵ` built from the symbols sent so far, and sends the *innovation*
//!
//! ```text
//! symbol = code(u·(w − ŵ));   ŵ += decode(symbol)/d · u   at both ends
//! m = (u·(ŵ_i − ŵ_j) / d) u                                equal at both ends, bit for bit
//! ```
//!
//! which vanishes with the error: the run converges linearly, one byte each way an exchange, and
//! the sums of `z` and `z~` are kept exactly as in DADAO. Both ends must apply the same symbols in
//! the same order, so a lost exchange is retried or undone, never applied at one end only.
//!
//! Directions are ChaCha8 keyed by BLAKE3 of (run, stream, counter), so both ends draw the same.
//! The code is a [`ScalarCodec`]: [`TrackedLb8`], one byte whose scale follows the stream, or
//! [`Exact`] for comparison.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::dadao;
use crate::id::{Origin, RunId};
use crate::lb8;
use crate::time::Time;

/// A code for a stream of scalars. Both ends of a link hold a copy per stream; decoding the same
/// symbols leaves the copies equal, so the scale can follow the stream without being sent.
pub trait ScalarCodec {
    /// What travels.
    type Symbol: Copy;

    /// The symbol for a scalar; a non-finite scalar has one too, meaning "no value".
    fn encode(&self, scalar: f64) -> Self::Symbol;

    /// The value of a symbol, and the adaptation it causes; `None` for "no value".
    fn decode(&mut self, symbol: Self::Symbol) -> Option<f64>;
}

/// The code that loses nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exact;

impl ScalarCodec for Exact {
    type Symbol = f64;

    fn encode(&self, scalar: f64) -> f64 {
        scalar
    }

    fn decode(&mut self, symbol: f64) -> Option<f64> {
        symbol.is_finite().then_some(symbol)
    }
}

/// LB8 whose exponent follows the stream, for two-party links: sender and receiver see the same
/// bytes and so keep the same exponent. After each byte a fixed-point mean of the log magnitude
/// moves an eighth of the way to it, and the exponent puts that mean at two octaves below the
/// scale's unit; a saturated byte lifts the exponent by four octaves at once, a zero lowers it by
/// one. (Gains are a guess that worked at once; many-party scales use a median instead.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackedLb8 {
    /// Mean of 8·log₂ of the magnitude, in 1/8 of these units (64ths of an octave). Bounded, so
    /// that the exponent is one of [`lb8`]'s.
    mean: i32,
}

impl TrackedLb8 {
    /// A stream whose first values are expected near `2^exponent`.
    pub fn new(exponent: i32) -> TrackedLb8 {
        TrackedLb8 { mean: exponent.clamp(lb8::EXPONENT_MIN, lb8::EXPONENT_MAX) * OCTAVE }
    }

    fn exponent(self) -> i32 {
        // Range of a byte: 12 octaves below the unit, 3.9 above; the mean sits inside with room.
        let exponent = (self.mean + OCTAVE / 2).div_euclid(OCTAVE) + 2;
        exponent.clamp(lb8::EXPONENT_MIN, lb8::EXPONENT_MAX)
    }
}

impl ScalarCodec for TrackedLb8 {
    type Symbol = u8;

    fn encode(&self, scalar: f64) -> u8 {
        lb8::encode(scalar, self.exponent())
    }

    fn decode(&mut self, byte: u8) -> Option<f64> {
        let exponent = self.exponent();
        let value = f64::from(lb8::decode(byte, exponent)?);
        match byte & 0x7f {
            0 => self.mean -= OCTAVE,
            127 => self.mean += 4 * OCTAVE,
            code => {
                let log = 8 * (8 * exponent + i32::from(code) - 96);
                self.mean += (log - self.mean) / 8;
            }
        }
        self.mean = self.mean.clamp(lb8::EXPONENT_MIN * OCTAVE, lb8::EXPONENT_MAX * OCTAVE);
        Some(value)
    }
}

/// An octave in the units of a tracked mean.
const OCTAVE: i32 = 64;

/// Which sequence of directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Of a node's gradient events.
    Gradient(Origin),
    /// Of an edge; the order of its ends does not matter.
    Edge(Origin, Origin),
}

/// Writes the `counter`-th direction of a stream: ±1 in each coordinate.
pub fn direction(run: RunId, stream: Stream, counter: u64, out: &mut [f64]) {
    let (tag, a, b) = match stream {
        Stream::Gradient(node) => (0u8, node, node),
        Stream::Edge(i, j) => (1u8, i.min(j), i.max(j)),
    };
    let mut hasher = blake3::Hasher::new_derive_key("rumormill 2026 one-byte DADAO direction");
    hasher.update(&run.0).update(&[tag]);
    hasher.update(&a.0.to_le_bytes()).update(&b.0.to_le_bytes()).update(&counter.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(*hasher.finalize().as_bytes());
    for block in out.chunks_mut(64) {
        let mut bits = rng.next_u64();
        for sign in block {
            *sign = if bits & 1 == 1 { 1.0 } else { -1.0 };
            bits >>= 1;
        }
    }
}

/// One node of one-byte DADAO, with the code of its own gradient scalars.
#[derive(Clone, Debug)]
pub struct Node<C> {
    dadao: dadao::Node,
    codec: C,
    jump: Vec<f64>,
}

impl<C: ScalarCodec> Node<C> {
    /// A node at time zero that starts from `x`.
    pub fn new(constants: &dadao::Constants, x: Vec<f64>, codec: C) -> Node<C> {
        let jump = vec![0.0; x.len()];
        Node { dadao: dadao::Node::new(constants, x), codec, jump }
    }

    /// The dense state machine beneath.
    pub fn dadao(&self) -> &dadao::Node {
        &self.dadao
    }

    /// Advances the node along the flow. A `time` before the last event changes nothing.
    pub fn advance(&mut self, time: Time) {
        self.dadao.advance(time);
    }

    /// A gradient event along `direction`; `derivative` is called with `x` at `time` and the
    /// direction and gives `u·∇f(x)`, exactly or by two loss probes. Returns the symbol applied; a
    /// derivative that is not finite moves nothing.
    ///
    /// # Panics
    /// If `direction` has another length than `x`.
    pub fn on_gradient(
        &mut self,
        time: Time,
        direction: &[f64],
        derivative: impl FnOnce(&[f64], &[f64]) -> f64,
    ) -> C::Symbol {
        self.dadao.advance(time);
        let state = self.dadao.state();
        let nu = self.dadao.constants().nu;
        let coupling: f64 = direction
            .iter()
            .zip(state.x.iter().zip(&state.y_tilde))
            .map(|(u, (x, y_tilde))| u * (nu * x + y_tilde))
            .sum();
        let symbol = self.codec.encode(derivative(&state.x, direction) - coupling);
        if let Some(scalar) = self.codec.decode(symbol) {
            scale(direction, scalar, &mut self.jump);
            self.dadao.jump_gradient(&self.jump);
        }
        symbol
    }

    /// An edge clock fired, first half: the symbol to send over this link.
    pub fn on_edge(&mut self, time: Time, direction: &[f64], link: &Link<C>) -> C::Symbol {
        self.dadao.message(time, &mut self.jump);
        link.own.encode(direction, &self.jump)
    }

    /// The edge event, second half, at the same `time`: both symbols are known to both ends, and
    /// the jump is the same at both up to its sign. When a symbol means "no value" nothing moves.
    pub fn on_symbols(
        &mut self,
        time: Time,
        direction: &[f64],
        link: &mut Link<C>,
        sent: C::Symbol,
        received: C::Symbol,
    ) {
        let known = link.own.learn(direction, sent) & link.peer.learn(direction, received);
        if known {
            let difference: f64 = direction
                .iter()
                .zip(link.own.estimate.iter().zip(&link.peer.estimate))
                .map(|(u, (own, peer))| u * (own - peer))
                .sum();
            scale(direction, difference, &mut self.jump);
            self.dadao.on_edge(time, &self.jump);
        }
    }
}

/// `out = (scalar / d) · direction`.
fn scale(direction: &[f64], scalar: f64, out: &mut [f64]) {
    let factor = scalar / direction.len() as f64;
    for (out, u) in out.iter_mut().zip(direction) {
        *out = factor * u;
    }
}

/// One end of an edge: what each side knows of the other's `w`, two vectors of length `dim`.
#[derive(Clone, Debug)]
pub struct Link<C> {
    own: Track<C>,
    peer: Track<C>,
}

/// What the symbols of one side have told so far.
#[derive(Clone, Debug)]
struct Track<C> {
    codec: C,
    /// Equal at both ends of the edge, bit for bit.
    estimate: Vec<f64>,
}

impl<C: ScalarCodec + Clone> Link<C> {
    /// A link nothing has crossed yet; both ends start from the same `codec`.
    pub fn new(dim: usize, codec: C) -> Link<C> {
        let track = Track { codec, estimate: vec![0.0; dim] };
        Link { own: track.clone(), peer: track }
    }
}

impl<C: ScalarCodec> Track<C> {
    fn encode(&self, direction: &[f64], message: &[f64]) -> C::Symbol {
        let innovation = direction
            .iter()
            .zip(message.iter().zip(&self.estimate))
            .map(|(u, (w, known))| u * (w - known))
            .sum();
        self.codec.encode(innovation)
    }

    fn learn(&mut self, direction: &[f64], symbol: C::Symbol) -> bool {
        let Some(innovation) = self.codec.decode(symbol) else { return false };
        let factor = innovation / direction.len() as f64;
        for (known, u) in self.estimate.iter_mut().zip(direction) {
            *known += factor * u;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::dadao::{Chi, Constants, Rates};

    fn constants() -> Constants {
        let rates = Rates { chi: Chi { chi_1: 0.5, chi_2: 0.5 }, margin: 1.0 };
        Constants::new(1.0, 2.0, rates).unwrap()
    }

    #[test]
    fn directions_repeat_differ_and_are_signs() {
        let run = RunId([7; 32]);
        let draw = |stream, counter| {
            let mut out = vec![0.0; 130];
            direction(run, stream, counter, &mut out);
            out
        };
        let edge = draw(Stream::Edge(Origin(1), Origin(2)), 5);
        assert_eq!(edge, draw(Stream::Edge(Origin(2), Origin(1)), 5));
        assert_ne!(edge, draw(Stream::Edge(Origin(1), Origin(2)), 6));
        assert_ne!(edge, draw(Stream::Gradient(Origin(1)), 5));
        assert!(edge.iter().all(|u| u.abs() == 1.0));
        assert!(edge.iter().sum::<f64>().abs() < 60.0, "balanced within five deviations");
    }

    #[test]
    fn in_one_dimension_exact_symbols_are_dense_dadao() {
        let mut dense = dadao::Node::new(&constants(), vec![3.0]);
        let mut byte = Node::new(&constants(), vec![3.0], Exact);
        for k in 1..50u64 {
            let time = Time::from_millis(100 * k);
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            dense.on_gradient(time, &mut [0.0], |x, out| out[0] = 1.5 * x[0] - 1.0);
            byte.on_gradient(time, &[sign], |x, u| u[0] * (1.5 * x[0] - 1.0));
        }
        let (dense, byte) = (dense.state(), byte.dadao().state());
        assert!((dense.x[0] - byte.x[0]).abs() < 1e-13);
        assert!((dense.y_tilde[0] - byte.y_tilde[0]).abs() < 1e-13);
    }

    #[test]
    fn both_ends_of_a_link_jump_by_opposite_amounts() {
        let run = RunId([1; 32]);
        let mut a = Node::new(&constants(), vec![1.0, -2.0, 0.5], Exact);
        let mut b = Node::new(&constants(), vec![0.0, 4.0, 2.5], Exact);
        let (mut at_a, mut at_b) = (Link::new(3, Exact), Link::new(3, Exact));
        let mut u = [0.0; 3];
        for k in 1..40u64 {
            let time = Time::from_millis(50 * k);
            direction(run, Stream::Edge(Origin(0), Origin(1)), k, &mut u);
            a.on_gradient(time, &u, |x, u| x.iter().zip(u).map(|(x, u)| u * 2.0 * x).sum());
            let from_a = a.on_edge(time, &u, &at_a);
            let from_b = b.on_edge(time, &u, &at_b);
            a.on_symbols(time, &u, &mut at_a, from_a, from_b);
            b.on_symbols(time, &u, &mut at_b, from_b, from_a);
            assert_eq!(at_a.own.estimate, at_b.peer.estimate);
        }
        for (z_a, z_b) in a.dadao().state().z.iter().zip(&b.dadao().state().z) {
            assert!((z_a + z_b).abs() < 1e-12 && z_a.abs() > 1e-3, "{z_a} {z_b}");
        }
    }

    #[test]
    fn a_derivative_that_is_not_finite_moves_nothing() {
        let mut node = Node::new(&constants(), vec![3.0], Exact);
        let before = node.dadao().state().clone();
        node.on_gradient(Time::ZERO, &[1.0], |_, _| f64::NAN);
        assert_eq!(node.dadao().state(), &before);
    }

    #[test]
    fn a_tracked_scale_follows_a_stream_down_thirty_octaves() {
        let mut codec = TrackedLb8::new(10);
        let mut worst: f64 = 0.0;
        for k in 0..3000 {
            let value =
                1e3 * 2f64.powf(-f64::from(k) / 100.0) * if k % 2 == 0 { 1.0 } else { -0.3 };
            let decoded = codec.decode(codec.encode(value)).unwrap();
            worst = worst.max(((decoded - value) / value).abs());
        }
        assert!(worst < 0.0434, "{worst}");
    }

    #[test]
    fn a_tracked_scale_recovers_from_zeros_and_from_saturation() {
        let mut codec = TrackedLb8::new(0);
        for _ in 0..500 {
            codec.decode(codec.encode(0.0));
        }
        let errors: Vec<f64> =
            (0..60).map(|_| (codec.decode(codec.encode(1e6)).unwrap() - 1e6).abs() / 1e6).collect();
        assert!(errors[0] > 0.9 && errors[59] < 0.0434, "{errors:?}");
    }
}
