//! DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization, one node's state.
//!
//! A. Nabli, E. Oyallon, "DADAO", ICML 2023 (arXiv 2208.00779), for the minimum of `Σ f_i(x)`
//! where node `i` of `n` holds a `μ`-strongly convex, `L`-smooth `f_i`. A node keeps six vectors.
//! Between events they follow a linear flow, each coordinate alike:
//!
//! ```text
//! dx = η(x~ − x)      dy  = α(y~ − y)               dz  = α(z~ − z)
//! dx~ = η(x − x~)     dy~ = −θ(ν x~ + y + z)        dz~ = α~(z − z~)
//!
//! gradient event:  g = ∇f(x) − ν x − y~;   x −= γ g;  x~ −= γ~ g;  y~ += (δ + δ~) g
//! edge event i–j:  m = w_i − w_j, w = y + z;   z_i −= β m,  z~_i −= β~ m;   z_j, z~_j the opposite
//! ```
//!
//! One vector, `w`, crosses the edge; `x` is never sent. The flow needs no message, so each node
//! remembers when it was last advanced and catches up when an event concerns it.
//!
//! | symbol | here | value, with s = √(ν/L) | role |
//! |---|---|---|---|
//! | μ, L | `mu`, `smoothness` | | strong convexity and smoothness of every f_i |
//! | ν | `nu` | μ/2 | strong convexity moved into the coupling |
//! | η | `eta` | s/8 | mixing of x and x~ |
//! | α, α~ | `alpha`, `alpha_tilde` | s/4, s/8 | mixing of y, z and of z~ |
//! | θ | `theta` | 1/(2s) | drive of y~ |
//! | γ, γ~ | `gamma`, `gamma_tilde` | 1/(4L), 1/(4√(νL)) | gradient jumps of x, x~ |
//! | δ, δ~ | `delta`, `delta_tilde` | s/4, 1 | gradient jump of y~ (their sum) |
//! | β, β~ | `beta`, `beta_tilde` | 1/2, 2χ₁/s | edge jumps of z, z~ |
//! | χ₁ | `chi_1` | 1/λ₂ | of the Laplacian weighted by edge rates |
//! | χ₂ | `chi_2` | half the largest edge resistance | of the same Laplacian; χ₁χ₂ ≤ ½ is required |
//!
//! The flow is evaluated in closed form: the generator has eigenvalues 0, 0, −2η, −(α + α~) and
//! the pair (−α ± √(α² − 4αθ))/2, always complex since αθ = 1/8 > α²/4. A numeric
//! eigendecomposition is ill-posed here (the double zero) and is not used.
//!
//! Departures: `β~` may be divided by a margin (see [`Rates::margin`]), outside the paper's proof;
//! constants are `f64` throughout, where the published program rounds the flow to `f32` and stalls.

use thiserror::Error;

use crate::time::Time;

/// One node of DADAO: its six vectors of length `dim` and the time they hold at.
#[derive(Clone, Debug)]
pub struct Node {
    flow: Flow,
    /// The time of the last event; an earlier event advances nothing.
    time: Time,
    state: State,
}

/// The six vectors of a node, each of length `dim`.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The estimate of the minimizer.
    pub x: Vec<f64>,
    /// Its accelerated companion.
    pub x_tilde: Vec<f64>,
    /// The dual variable of the coupling `∇f(x) − νx = y`.
    pub y: Vec<f64>,
    /// Its accelerated companion.
    pub y_tilde: Vec<f64>,
    /// The consensus variable; over all nodes it sums to zero.
    pub z: Vec<f64>,
    /// Its accelerated companion; over all nodes it sums to zero.
    pub z_tilde: Vec<f64>,
}

impl State {
    /// The start: `x` as given, everything else zero.
    pub fn new(x: Vec<f64>) -> State {
        let zero = vec![0.0; x.len()];
        State {
            x,
            x_tilde: zero.clone(),
            y: zero.clone(),
            y_tilde: zero.clone(),
            z: zero.clone(),
            z_tilde: zero,
        }
    }

    /// Whether every number is finite; a run that diverged is not.
    pub fn is_finite(&self) -> bool {
        [&self.x, &self.x_tilde, &self.y, &self.y_tilde, &self.z, &self.z_tilde]
            .iter()
            .all(|vector| vector.iter().all(|value| value.is_finite()))
    }
}

impl Node {
    /// A node at time zero that starts from `x`.
    pub fn new(constants: &Constants, x: Vec<f64>) -> Node {
        Node { flow: Flow::new(constants), time: Time::ZERO, state: State::new(x) }
    }

    /// The length of each vector.
    pub fn dim(&self) -> usize {
        self.state.x.len()
    }

    /// The constants the node runs with.
    pub fn constants(&self) -> &Constants {
        &self.flow.constants
    }

    /// The state as of [`time`](Node::time).
    pub fn state(&self) -> &State {
        &self.state
    }

    /// When the node was last advanced.
    pub fn time(&self) -> Time {
        self.time
    }

    /// Advances the node along the flow. A `time` before the last event changes nothing.
    pub fn advance(&mut self, time: Time) {
        if time > self.time {
            self.flow.apply(time.since(self.time).as_secs_f64(), &mut self.state);
            self.time = time;
        }
    }

    /// The gradient clock fired: advances to `time` and jumps along the gradient.
    ///
    /// `gradient` is called once, with `x` at `time`, and writes `∇f(x)` into its second argument,
    /// `scratch` (length `dim`, contents ignored).
    ///
    /// # Panics
    /// If `scratch` has another length than `x`.
    pub fn on_gradient(
        &mut self,
        time: Time,
        scratch: &mut [f64],
        gradient: impl FnOnce(&[f64], &mut [f64]),
    ) {
        self.advance(time);
        gradient(&self.state.x, scratch);
        self.residual(scratch);
        self.jump_gradient(scratch);
    }

    /// Turns `∇f(x)` into the residual `g = ∇f(x) − νx − y~`, in place. The residual is the
    /// gradient of `f(x) − ν|x|²/2 − y~·x` and vanishes at the optimum.
    ///
    /// # Panics
    /// If `gradient` has another length than `x`.
    pub fn residual(&self, gradient: &mut [f64]) {
        assert_eq!(gradient.len(), self.dim(), "a gradient has the length of x");
        let nu = self.flow.constants.nu;
        for ((g, x), y_tilde) in gradient.iter_mut().zip(&self.state.x).zip(&self.state.y_tilde) {
            *g -= nu * x + y_tilde;
        }
    }

    /// The jump of a gradient event along a residual `g` computed at the present state.
    ///
    /// # Panics
    /// If `residual` has another length than `x`.
    pub fn jump_gradient(&mut self, residual: &[f64]) {
        assert_eq!(residual.len(), self.dim(), "a residual has the length of x");
        let Constants { gamma, gamma_tilde, delta, delta_tilde, .. } = self.flow.constants;
        let State { x, x_tilde, y_tilde, .. } = &mut self.state;
        for (((g, x), x_tilde), y_tilde) in residual.iter().zip(x).zip(x_tilde).zip(y_tilde) {
            *x -= gamma * g;
            *x_tilde -= gamma_tilde * g;
            *y_tilde += (delta + delta_tilde) * g;
        }
    }

    /// An edge clock fired: advances to `time` and writes the message `w = y + z`.
    ///
    /// # Panics
    /// If `message` has another length than `x`.
    pub fn message(&mut self, time: Time, message: &mut [f64]) {
        assert_eq!(message.len(), self.dim(), "a message has the length of x");
        self.advance(time);
        for ((w, y), z) in message.iter_mut().zip(&self.state.y).zip(&self.state.z) {
            *w = y + z;
        }
    }

    /// The edge event at one end: `difference` is `w_own − w_neighbor`. The other end calls this
    /// with the opposite sign, which keeps the sums of `z` and of `z~`.
    ///
    /// # Panics
    /// If `difference` has another length than `x`.
    pub fn on_edge(&mut self, time: Time, difference: &[f64]) {
        assert_eq!(difference.len(), self.dim(), "a difference has the length of x");
        self.advance(time);
        let Constants { beta, beta_tilde, .. } = self.flow.constants;
        let State { z, z_tilde, .. } = &mut self.state;
        for ((m, z), z_tilde) in difference.iter().zip(z).zip(z_tilde) {
            *z -= beta * m;
            *z_tilde -= beta_tilde * m;
        }
    }
}

/// An edge event with both ends at hand, as in a simulator; `scratch` has length `dim`.
///
/// # Panics
/// If the lengths differ.
pub fn exchange(time: Time, a: &mut Node, b: &mut Node, scratch: &mut [f64]) {
    a.message(time, scratch);
    b.advance(time);
    for ((m, y), z) in scratch.iter_mut().zip(&b.state.y).zip(&b.state.z) {
        *m -= y + z;
    }
    a.on_edge(time, scratch);
    for m in &mut *scratch {
        *m = -*m;
    }
    b.on_edge(time, scratch);
}

/// The graph's two numbers under given edge rates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chi {
    /// 1/λ₂ of the Laplacian `Σ λ_ij (e_i − e_j)(e_i − e_j)ᵀ`.
    pub chi_1: f64,
    /// Half the largest effective resistance of an edge; never above `chi_1`.
    pub chi_2: f64,
}

impl Chi {
    /// The same graph with all rates multiplied by `factor`: both numbers scale inversely.
    pub fn scaled(self, factor: f64) -> Chi {
        Chi { chi_1: self.chi_1 / factor, chi_2: self.chi_2 / factor }
    }

    /// The factor by which the rates must at least be multiplied so that χ₁χ₂ ≤ ½. For rates that
    /// sum to one it is the least total rate `R = √(2χ₁χ₂)`, in edge events per unit time.
    pub fn rate_min(self) -> f64 {
        (2.0 * self.chi_1 * self.chi_2).sqrt()
    }
}

/// What the constants are computed from, beside the objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// The graph's numbers under the rates the network runs with.
    pub chi: Chi,
    /// `β~` is divided by this, at least 1: `β~` then has the value of rates higher by the factor.
    /// 1 is the paper's. More tolerates lost or rarer exchanges (measured on a cycle of 16: with
    /// margin 2 half the rate suffices), at a few more gradients, outside the proof.
    pub margin: f64,
}

/// DADAO's constants; the module's table says what each is.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constants {
    pub nu: f64,
    pub eta: f64,
    pub alpha: f64,
    pub alpha_tilde: f64,
    pub theta: f64,
    pub gamma: f64,
    pub gamma_tilde: f64,
    pub delta: f64,
    pub delta_tilde: f64,
    pub beta: f64,
    pub beta_tilde: f64,
}

/// Why there are no constants for these numbers. Nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
pub enum ConstantsError {
    /// μ and L are not those of a strongly convex, smooth function.
    #[error("needs finite 0 < mu <= smoothness, got mu {mu} and smoothness {smoothness}")]
    Curvature {
        /// μ as given.
        mu: f64,
        /// L as given.
        smoothness: f64,
    },
    /// χ₁ or χ₂ is not positive: the graph is disconnected or a rate is not a number.
    #[error("needs finite 0 < chi_2 <= chi_1, got chi_1 {chi_1} and chi_2 {chi_2}")]
    Graph {
        /// χ₁ as given.
        chi_1: f64,
        /// χ₂ as given.
        chi_2: f64,
    },
    /// The margin is below 1: a larger β~ than the paper's diverges.
    #[error("the margin must be finite and at least 1, got {margin}")]
    Margin {
        /// The margin as given.
        margin: f64,
    },
    /// The rates are too low for χ₁χ₂ ≤ ½ even with the margin: the iteration diverges.
    #[error("chi_1 * chi_2 = {product} must be at most {bound}: raise the edge rates")]
    RateTooLow {
        /// χ₁χ₂ at the rates given.
        product: f64,
        /// The most that the margin allows.
        bound: f64,
    },
}

impl Constants {
    /// The constants for `μ`-strongly convex, `L`-smooth objectives at the given edge rates.
    ///
    /// With a margin `c` the value of `β~` is that of `c` times higher rates, so the check is
    /// χ₁χ₂ ≤ c²/2: for margin 2 half the paper's rate passes.
    ///
    /// # Errors
    /// When the numbers are outside their ranges; see [`ConstantsError`].
    pub fn new(mu: f64, smoothness: f64, rates: Rates) -> Result<Constants, ConstantsError> {
        let Rates { chi: Chi { chi_1, chi_2 }, margin } = rates;
        if !(mu > 0.0 && mu <= smoothness && smoothness.is_finite()) {
            return Err(ConstantsError::Curvature { mu, smoothness });
        }
        // A relative slack for the equality chi_1 = chi_2 of the complete graph.
        if !(chi_2 > 0.0 && chi_2 <= chi_1 * (1.0 + 1e-9) && chi_1.is_finite()) {
            return Err(ConstantsError::Graph { chi_1, chi_2 });
        }
        if !(margin >= 1.0 && margin.is_finite()) {
            return Err(ConstantsError::Margin { margin });
        }
        let (product, bound) = (chi_1 * chi_2, 0.5 * margin * margin);
        if product > bound * (1.0 + 1e-9) {
            return Err(ConstantsError::RateTooLow { product, bound });
        }
        let nu = mu / 2.0;
        let s = (nu / smoothness).sqrt();
        Ok(Constants {
            nu,
            eta: s / 8.0,
            alpha: s / 4.0,
            alpha_tilde: s / 8.0,
            theta: 1.0 / (2.0 * s),
            gamma: 1.0 / (4.0 * smoothness),
            gamma_tilde: 1.0 / (4.0 * (nu * smoothness).sqrt()),
            delta: s / 4.0,
            delta_tilde: 1.0,
            beta: 0.5,
            beta_tilde: 2.0 * chi_1 / (s * margin),
        })
    }
}

/// The flow between events, in closed form.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    constants: Constants,
    /// (y, y~) entries of the eigenvector (1, −1, ·, ·, 0, 0) of −2η.
    of_x: (f64, f64),
    /// (y, y~) entries of the eigenvector (0, 0, ·, ·, α, −α~) of −(α + α~).
    of_z: (f64, f64),
    /// Frequency of the oscillation of (y, y~): √(αθ − α²/4), positive.
    frequency: f64,
}

impl Flow {
    /// Prepares the flow of these constants.
    ///
    /// # Panics
    /// If α ≥ 4θ, which no constants from [`Constants::new`] have: (y, y~) would not oscillate.
    pub fn new(constants: &Constants) -> Flow {
        let Constants { nu, eta, alpha, alpha_tilde, theta, .. } = *constants;
        assert!(alpha < 4.0 * theta, "the flow of (y, y~) oscillates");
        // Row y gives y~ = (1 + l/α) y; row y~ then gives y. The denominator is the characteristic
        // polynomial of the oscillating pair over α, without real zeros.
        let entries = |eigenvalue: f64, drive: f64| {
            let y = drive / (theta + eigenvalue * (eigenvalue + alpha) / alpha);
            (y, (1.0 + eigenvalue / alpha) * y)
        };
        Flow {
            constants: *constants,
            of_x: entries(-2.0 * eta, theta * nu),
            of_z: entries(-(alpha + alpha_tilde), -theta * alpha),
            frequency: (alpha * theta - alpha * alpha / 4.0).sqrt(),
        }
    }

    /// Advances a state by `span` units of time, O(dim).
    pub fn apply(&self, span: f64, state: &mut State) {
        let Constants { nu, eta, alpha, alpha_tilde, theta, .. } = self.constants;
        let decay_x = (-2.0 * eta * span).exp();
        let decay_z = (-(alpha + alpha_tilde) * span).exp();
        // exp of the 2×2 block [[−α, α], [−θ, 0]] = e^(−αt/2) (cos ωt + (block + α/2) sin ωt / ω).
        let (sin, cos) = (self.frequency * span).sin_cos();
        let decay_y = (-0.5 * alpha * span).exp();
        let (sin, cos) = (decay_y * sin / self.frequency, decay_y * cos);
        let [[a, b], [c, d]] =
            [[cos - 0.5 * alpha * sin, alpha * sin], [-theta * sin, cos + 0.5 * alpha * sin]];

        for k in 0..state.x.len() {
            let (x, x_tilde) = (state.x[k], state.x_tilde[k]);
            let (z, z_tilde) = (state.z[k], state.z_tilde[k]);
            // Coordinates along the four real eigenvectors: mean and half difference of (x, x~),
            // conserved combination and difference of (z, z~).
            let x_mean = 0.5 * (x + x_tilde);
            let x_half = 0.5 * (x - x_tilde);
            let z_part = (z - z_tilde) / (alpha + alpha_tilde);
            let z_mean = z - alpha * z_part;

            let rest = -nu * x_mean - z_mean;
            let y = state.y[k] - (rest + self.of_x.0 * x_half + self.of_z.0 * z_part);
            let y_tilde = state.y_tilde[k] - (rest + self.of_x.1 * x_half + self.of_z.1 * z_part);

            let x_half = decay_x * x_half;
            let z_part = decay_z * z_part;
            state.x[k] = x_mean + x_half;
            state.x_tilde[k] = x_mean - x_half;
            state.y[k] = a * y + b * y_tilde + rest + self.of_x.0 * x_half + self.of_z.0 * z_part;
            state.y_tilde[k] =
                c * y + d * y_tilde + rest + self.of_x.1 * x_half + self.of_z.1 * z_part;
            state.z[k] = z_mean + alpha * z_part;
            state.z_tilde[k] = z_mean - alpha_tilde * z_part;
        }
    }

    /// The 6×6 matrix `exp(span · M)` in the order x, x~, y, y~, z, z~.
    pub fn matrix(&self, span: f64) -> [[f64; 6]; 6] {
        // Coordinate k starts as the k-th unit vector; what comes out is column k.
        let unit = |row: usize| (0..6).map(|k| f64::from(u8::from(k == row))).collect();
        let mut state = State {
            x: unit(0),
            x_tilde: unit(1),
            y: unit(2),
            y_tilde: unit(3),
            z: unit(4),
            z_tilde: unit(5),
        };
        self.apply(span, &mut state);
        let State { x, x_tilde, y, y_tilde, z, z_tilde } = state;
        let mut matrix = [[0.0; 6]; 6];
        for (row, vector) in matrix.iter_mut().zip([x, x_tilde, y, y_tilde, z, z_tilde]) {
            row.copy_from_slice(&vector);
        }
        matrix
    }

    /// The generator `M` of the flow, 6×6, in the order x, x~, y, y~, z, z~.
    pub fn generator(&self) -> [[f64; 6]; 6] {
        let Constants { nu, eta, alpha, alpha_tilde, theta, .. } = self.constants;
        [
            [-eta, eta, 0.0, 0.0, 0.0, 0.0],
            [eta, -eta, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, -alpha, alpha, 0.0, 0.0],
            [0.0, -theta * nu, -theta, 0.0, -theta, 0.0],
            [0.0, 0.0, 0.0, 0.0, -alpha, alpha],
            [0.0, 0.0, 0.0, 0.0, alpha_tilde, -alpha_tilde],
        ]
    }
}

/// Watches whether edges fire as often as the constants assume. Below about 0.7 of the rate DADAO
/// crawls, below 0.6 it diverges (measured, margin 1), so a node must know.
///
/// The realised rate is an exponentially weighted count over `events` expected events; it speaks
/// once twice that span has passed, when its relative standard deviation is `1/√(2·events)`.
#[derive(Clone, Debug)]
pub struct RateGuard {
    rate_expected: f64,
    span: f64,
    start: Time,
    time: Time,
    /// Events, each discounted by its age over `span`, as of `time`.
    weight: f64,
}

/// What the guard says of the realised rate, as a ratio to the expected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RateVerdict {
    /// Too early to tell.
    Starting,
    /// At least [`RATE_RATIO_MIN`].
    Fine(f64),
    /// Below [`RATE_RATIO_MIN`]: lower the gradient rate, raise the margin or recompute χ₁.
    Low(f64),
}

/// The least ratio of realised to assumed edge rate that raises no alarm (measured on a cycle of
/// 16, margin 1: 0.9 and 0.8 cost 1–5 % more events, 0.7 crawls, 0.6 diverges).
pub const RATE_RATIO_MIN: f64 = 0.85;

impl RateGuard {
    /// A guard for clocks that should fire `rate_expected` times a unit of time together, judging
    /// over `events` expected events. 200 gives 5 % standard deviation, so a full rate is called
    /// low about once in 700 looks; fewer react faster.
    ///
    /// # Panics
    /// If either is not positive and finite.
    pub fn new(rate_expected: f64, events: f64, start: Time) -> RateGuard {
        assert!(rate_expected > 0.0 && rate_expected.is_finite(), "an expected rate is positive");
        assert!(events > 0.0 && events.is_finite(), "a window holds some events");
        RateGuard { rate_expected, span: events / rate_expected, start, time: start, weight: 0.0 }
    }

    /// An edge event happened.
    pub fn on_edge(&mut self, time: Time) {
        self.weight = self.weight_at(time) + 1.0;
        self.time = self.time.max(time);
    }

    /// The realised rate as of `time`.
    pub fn verdict(&self, time: Time) -> RateVerdict {
        let age = time.since(self.start).as_secs_f64();
        if age < 2.0 * self.span {
            return RateVerdict::Starting;
        }
        // Corrects for what the window misses before the start.
        let expected = self.rate_expected * self.span * -(-age / self.span).exp_m1();
        let ratio = self.weight_at(time) / expected;
        if ratio < RATE_RATIO_MIN { RateVerdict::Low(ratio) } else { RateVerdict::Fine(ratio) }
    }

    fn weight_at(&self, time: Time) -> f64 {
        self.weight * (-time.since(self.time).as_secs_f64() / self.span).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn constants() -> Constants {
        let chi = Chi { chi_1: 2.0, chi_2: 1.5 };
        let rates = Rates { chi: chi.scaled(chi.rate_min()), margin: 1.0 };
        Constants::new(0.75, 7.25, rates).unwrap()
    }

    type Matrix = [[f64; 6]; 6];

    fn multiply(a: &Matrix, b: &Matrix) -> Matrix {
        let mut product = [[0.0; 6]; 6];
        for (i, row) in product.iter_mut().enumerate() {
            for (j, entry) in row.iter_mut().enumerate() {
                *entry = (0..6).map(|k| a[i][k] * b[k][j]).sum();
            }
        }
        product
    }

    /// The slow, obvious exponential: Taylor series of M/2^k, squared k times.
    fn exponential(matrix: &Matrix, span: f64) -> Matrix {
        let squarings = 12;
        let scaled = matrix.map(|row| row.map(|v| v * span / f64::from(1 << squarings)));
        let mut sum = [[0.0; 6]; 6];
        for (i, row) in sum.iter_mut().enumerate() {
            row[i] = 1.0;
        }
        let mut term = sum;
        for order in 1..20 {
            term = multiply(&term, &scaled).map(|row| row.map(|v| v / f64::from(order)));
            for (row, add) in sum.iter_mut().zip(&term) {
                for (entry, value) in row.iter_mut().zip(add) {
                    *entry += value;
                }
            }
        }
        for _ in 0..squarings {
            sum = multiply(&sum, &sum);
        }
        sum
    }

    #[test]
    fn closed_form_equals_the_matrix_exponential() {
        for (mu, smoothness) in [(0.75, 7.25), (1.0, 1.0), (1e-4, 5.0)] {
            let rates = Rates { chi: Chi { chi_1: 0.8, chi_2: 0.6 }, margin: 1.0 };
            let flow = Flow::new(&Constants::new(mu, smoothness, rates).unwrap());
            for span in [0.0, 1e-9, 0.1, 1.0, 17.0] {
                let slow = exponential(&flow.generator(), span);
                let fast = flow.matrix(span);
                for (slow, fast) in slow.iter().flatten().zip(fast.iter().flatten()) {
                    // Entries reach θ = 1/(2s); squaring loses about 2^12 ulps.
                    let scale = 1.0f64.max(flow.constants.theta);
                    assert!((slow - fast).abs() < 1e-11 * scale, "{mu} {span}: {slow} {fast}");
                }
            }
        }
    }

    #[test]
    fn one_gradient_event_by_hand() {
        // ν = 1 and L = 4, so s = 1/2; at time 0 the flow does nothing.
        let rates = Rates { chi: Chi { chi_1: 0.5, chi_2: 0.5 }, margin: 1.0 };
        let constants = Constants::new(2.0, 4.0, rates).unwrap();
        let mut node = Node::new(&constants, vec![3.0]);
        node.on_gradient(Time::ZERO, &mut [0.0], |x, out| out[0] = 4.0 * x[0]);
        // g = 12 − 3 = 9; γ = 1/16, γ~ = 1/8, δ + δ~ = 1/8 + 1.
        assert_eq!(node.state().x, [3.0 - 9.0 / 16.0]);
        assert_eq!(node.state().x_tilde, [-9.0 / 8.0]);
        assert_eq!(node.state().y_tilde, [9.0 * 1.125]);
        assert_eq!(constants.beta_tilde, 2.0);
    }

    #[test]
    fn exchanges_keep_the_sums_of_z_and_z_tilde_at_zero() {
        let constants = constants();
        let mut nodes: Vec<Node> =
            (0..4).map(|i| Node::new(&constants, vec![f64::from(i), 1.0])).collect();
        let mut scratch = [0.0; 2];
        for k in 0..400u64 {
            let time = Time::from_millis(100 * k);
            let i = (k % 3) as usize;
            nodes[i].on_gradient(time, &mut scratch, |x, out| {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = 2.0 * x - i as f64;
                }
            });
            let (left, right) = nodes.split_at_mut(i + 1);
            exchange(time, &mut left[i], &mut right[0], &mut scratch);
        }
        // Lazy nodes hold at different times; the sums are kept once all are advanced alike.
        nodes.iter_mut().for_each(|node| node.advance(Time::from_millis(50_000)));
        for k in 0..2 {
            let sum: f64 = nodes.iter().map(|node| node.state().z[k]).sum();
            let sum_tilde: f64 = nodes.iter().map(|node| node.state().z_tilde[k]).sum();
            assert!(sum.abs() < 1e-12 && sum_tilde.abs() < 1e-12, "{sum} {sum_tilde}");
        }
        assert!(nodes[0].state().z[0].abs() > 1e-3, "the exchanges did something");
    }

    #[test]
    fn an_event_from_the_past_does_not_turn_time_back() {
        let mut node = Node::new(&constants(), vec![1.0]);
        node.advance(Time::from_millis(2_000));
        let before = node.clone();
        node.advance(Time::from_millis(1_000));
        assert_eq!((node.state(), node.time()), (before.state(), before.time()));
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        let chi = Chi { chi_1: 1.0, chi_2: 0.5 };
        let with = |mu, smoothness, chi, margin| {
            Constants::new(mu, smoothness, Rates { chi, margin }).unwrap_err()
        };
        assert!(matches!(with(0.0, 1.0, chi, 1.0), ConstantsError::Curvature { .. }));
        assert!(matches!(with(f64::NAN, 1.0, chi, 1.0), ConstantsError::Curvature { .. }));
        assert!(matches!(with(2.0, 1.0, chi, 1.0), ConstantsError::Curvature { .. }));
        let disconnected = Chi { chi_1: f64::INFINITY, chi_2: 0.5 };
        assert!(matches!(with(1.0, 2.0, disconnected, 1.0), ConstantsError::Graph { .. }));
        assert!(matches!(with(1.0, 2.0, chi, 0.5), ConstantsError::Margin { .. }));
        let slow = chi.scaled(0.9);
        assert!(matches!(with(1.0, 2.0, slow, 1.0), ConstantsError::RateTooLow { .. }));
        assert!(Constants::new(1.0, 2.0, Rates { chi: slow, margin: 2.0 }).is_ok());
    }

    #[test]
    fn the_guard_reports_a_low_rate_and_only_that() {
        // Events at a regular pace: no noise, so the ratio is the true one.
        for (spacing_ms, expect_low) in [(100, false), (110, false), (130, true), (200, true)] {
            let mut guard = RateGuard::new(10.0, 200.0, Time::ZERO);
            assert_eq!(guard.verdict(Time::from_millis(1_000)), RateVerdict::Starting);
            for k in 1..2_000 {
                guard.on_edge(Time::from_millis(spacing_ms * k));
            }
            let verdict = guard.verdict(Time::from_millis(spacing_ms * 2_000));
            assert_eq!(matches!(verdict, RateVerdict::Low(_)), expect_low, "{verdict:?}");
        }
    }
}
