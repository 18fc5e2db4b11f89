//! A node with a gradient clock and a clock per edge, both Poisson: DADAO, one-byte DADAO, A2CiD2.
//!
//! The end with the smaller identity runs an edge's clock, so that exchanges of one edge never cross
//! (two halves of a Poisson process, one at each end, would be the same process). When it fires,
//!
//! ```text
//! i → j   offer   k, w_i          k counts the exchanges of this edge
//! j       m = w_j − w_i;  jump
//! j → i   answer  k, w_j
//! i       m = w_i − w_j, with the w_i that was sent;  jump
//! ```
//!
//! Both ends jump by the same amount with opposite signs, so what DADAO and A2CiD2 conserve over the
//! network is conserved whatever the delay; a delay only makes `w_i` a little old. Nobody waits: both
//! nodes go on meanwhile. An offer whose answer was lost with the link is sent again and answered
//! from memory, so each exchange is applied exactly once at both ends.
//!
//! A gradient takes time too: the residual belongs to the state when it was asked for, the jump is
//! made when it comes back.

use std::collections::BTreeMap;

use super::frame::{Body, Frame};
use super::{Algorithm, Event, Input, Output, PATIENCE, Precision, Schedule, Settings, Stats};
use crate::clock::PoissonClock;
use crate::id::{NodeId, Origin, RunId};
use crate::manifest::PROTOCOL_VERSION;
use crate::time::Time;
use crate::vector::onebyte::{self, Stream, TrackedLb8};
use crate::vector::{acid, dadao};

/// Events of one clock that may wait because compute or a link is behind. Beyond it they are
/// dropped: the realised rate is then below the planned one, and is reported.
const BACKLOG_MAX: u32 = 16;

/// Edge events over which the realised rate is judged.
const RATE_EVENTS: f64 = 400.0;

/// The expected magnitude of the first scalars of one-byte DADAO is 2 to this power; the scale
/// follows the stream within a few dozen symbols.
const EXPONENT_FIRST: i32 = 0;

/// The state of the algorithm.
enum Machine {
    Dadao(dadao::Node),
    OneByte(onebyte::Node<TrackedLb8>),
    Acid { node: acid::Node, schedule: Schedule, momentum: f64, velocity: Vec<f64> },
}

/// What an offer said, until its answer comes.
enum Offered {
    Vector(Vec<f64>),
    Symbol(u8),
}

struct Link {
    rate: f64,
    origin: Origin,
    /// Whether this end runs the clock.
    owns: bool,
    clock: PoissonClock,
    due: Time,
    connected: bool,
    greeted: bool,
    done: bool,
    /// Clock events that wait for the exchange under way.
    backlog: u32,
    /// The exchange under way: its number, what this end offered and the frame.
    offered: Option<(u64, Offered, Vec<u8>)>,
    /// When the offer is sent again although the link did not break.
    again_at: Option<Time>,
    /// The last exchange that was answered, and the answer.
    answered: (u64, Vec<u8>),
    /// One-byte DADAO's shared estimates.
    track: Option<onebyte::Link<TrackedLb8>>,
    fired: u64,
    completed: u64,
}

/// A gradient that was asked for.
struct Asked {
    at: Time,
    /// DADAO: `νx + y~` at that state, which the gradient is taken from.
    coupling: Vec<f64>,
    /// One-byte DADAO: the direction.
    direction: Vec<f64>,
}

/// A node.
pub struct Pairwise {
    run: RunId,
    me: NodeId,
    origin: Origin,
    precision: Precision,
    unit: Time,
    duration: f64,
    /// How much faster than a dense algorithm's all clocks run.
    speed: f64,
    machine: Machine,
    links: BTreeMap<NodeId, Link>,
    clock: PoissonClock,
    gradient_due: Time,
    gradient_backlog: u32,
    gradient_number: u64,
    asked: Option<Asked>,
    began: Option<Time>,
    started: Option<Time>,
    finished: Option<Time>,
    announced: bool,
    diverged: bool,
    guard: Option<dadao::RateGuard>,
    stats: Stats,
}

impl Pairwise {
    /// A node; the settings have been checked.
    pub(super) fn new(settings: Settings) -> Pairwise {
        let Settings { run, me, members, edges, algorithm, unit, duration, .. } = settings;
        let dim = settings.start.len();
        let origin = |node: &NodeId| {
            let at = members.iter().position(|member| member == node);
            Origin(at.expect("neighbors are members") as u16)
        };
        let codec = TrackedLb8::new(EXPONENT_FIRST);
        let (machine, speed) = match algorithm {
            Algorithm::Dadao(constants) => {
                (Machine::Dadao(dadao::Node::new(&constants, settings.start)), 1.0)
            }
            Algorithm::OneByteDadao(constants) => {
                let node = onebyte::Node::new(&constants, settings.start, codec);
                (Machine::OneByte(node), dim as f64)
            }
            Algorithm::Acid { constants, schedule, momentum } => {
                let node = acid::Node::new(constants, settings.start);
                (Machine::Acid { node, schedule, momentum, velocity: vec![0.0; dim] }, 1.0)
            }
            Algorithm::Monna { .. } => unreachable!("MoNNA has rounds"),
        };
        let one_byte = matches!(machine, Machine::OneByte(_));
        let links = edges.iter().enumerate().map(|(index, (&node, &rate))| {
            let link = Link {
                rate: rate * speed,
                origin: origin(&node),
                owns: me < node,
                clock: PoissonClock::new(&settings.clock_seed, index as u64 + 1),
                due: Time(u64::MAX),
                connected: false,
                greeted: false,
                done: false,
                backlog: 0,
                offered: None,
                again_at: None,
                answered: (0, Vec::new()),
                track: one_byte.then(|| onebyte::Link::new(dim, codec)),
                fired: 0,
                completed: 0,
            };
            (node, link)
        });
        Pairwise {
            run,
            me,
            origin: origin(&me),
            precision: settings.precision,
            unit,
            duration,
            speed,
            machine,
            links: links.collect(),
            clock: PoissonClock::new(&settings.clock_seed, 0),
            gradient_due: Time(u64::MAX),
            gradient_backlog: 0,
            gradient_number: 0,
            asked: None,
            began: None,
            started: None,
            finished: None,
            announced: false,
            diverged: false,
            guard: None,
            stats: Stats::default(),
        }
    }

    /// See [`Peer::handle`](super::Peer::handle).
    pub fn handle(&mut self, input: Input, now: Time, out: &mut Vec<Output>) {
        self.began.get_or_insert(now);
        match input {
            Input::Wake => {}
            Input::Connected(peer) => self.on_connected(peer, out),
            Input::Disconnected(peer) => {
                if let Some(link) = self.links.get_mut(&peer) {
                    (link.connected, link.greeted) = (false, false);
                }
            }
            Input::NotSent(peer) => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.again_at = Some(now + self.unit);
                }
            }
            Input::Frame { from, bytes } => {
                self.stats.bytes_received += bytes.len() as u64;
                if let Err(offence) = self.on_frame(from, &bytes, now, out) {
                    self.stats.offences += 1;
                    out.push(Output::Misbehaved { peer: from, offence });
                }
            }
            Input::Gradient(gradient) => self.on_gradient(gradient, now, out),
        }
        self.start(now, out);
        self.fire(now, out);
        self.ask(now, out);
        self.finish(now, out);
    }

    /// See [`Peer::deadline`](super::Peer::deadline).
    pub fn deadline(&self) -> Option<Time> {
        let Some(started) = self.started else { return self.began.map(|began| began + PATIENCE) };
        if let Some(finished) = self.finished {
            let again = self.links.values().filter_map(|link| link.again_at);
            return again.chain([finished + PATIENCE]).min();
        }
        let links = self.links.values();
        let edges = links.flat_map(|link| [Some(link.due), link.again_at]).flatten();
        let end = Time::from_secs_f64(self.duration * self.unit.as_secs_f64());
        edges.chain([self.gradient_due, started + end]).min()
    }

    /// The parameters as of the last event.
    pub fn x(&self) -> &[f64] {
        match &self.machine {
            Machine::Dadao(node) => &node.state().x,
            Machine::OneByte(node) => &node.dadao().state().x,
            Machine::Acid { node, .. } => node.x(),
        }
    }

    /// Units of time since the start, at most the duration.
    pub fn time(&self, now: Time) -> f64 {
        let Some(started) = self.started else { return 0.0 };
        (now.since(started).as_secs_f64() / self.unit.as_secs_f64()).min(self.duration)
    }

    /// Numbers so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// For every neighbor: how often this end's clock fired, and how many exchanges were completed
    /// that it began; zeros where the clock runs at the other end.
    pub fn edges(&self) -> Vec<(NodeId, u64, u64)> {
        let begun = |link: &Link| if link.owns { link.completed } else { 0 };
        self.links.iter().map(|(node, link)| (*node, link.fired, begun(link))).collect()
    }

    /// Whether this node and its neighbors are through, or have been waited for long enough.
    pub fn is_done(&self, now: Time) -> bool {
        let Some(finished) = self.finished else { return false };
        let all = self.links.values().all(|link| link.done && link.offered.is_none());
        all || now.since(finished) >= PATIENCE
    }

    /// Whether a number ceased to be finite.
    pub fn has_diverged(&self) -> bool {
        self.diverged
    }

    /// The algorithm's time, one second a unit; it stands still after the end.
    fn algorithm_time(&self, now: Time) -> Time {
        Time::from_secs_f64(self.time(now))
    }

    fn send(&mut self, to: NodeId, bytes: Vec<u8>, out: &mut Vec<Output>) {
        self.stats.bytes_sent += bytes.len() as u64;
        out.push(Output::Send { to, bytes });
    }

    fn on_connected(&mut self, peer: NodeId, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.connected = true;
        link.again_at = None;
        let offer = link.offered.as_ref().map(|(_, _, bytes)| bytes.clone());
        let hello = Frame::Hello { version: PROTOCOL_VERSION, run: self.run.0 };
        self.send(peer, hello.encode(), out);
        if let Some(offer) = offer {
            self.send(peer, offer, out);
        }
        if self.announced {
            self.send(peer, Frame::Done.encode(), out);
        }
    }

    fn on_frame(
        &mut self,
        from: NodeId,
        bytes: &[u8],
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let frame = Frame::decode(bytes).map_err(|error| error.to_string())?;
        let Some(link) = self.links.get_mut(&from) else {
            return Err("no neighbor in the graph".into());
        };
        match frame {
            Frame::Hello { version, run } if version == PROTOCOL_VERSION && run == self.run.0 => {
                link.greeted = true;
                Ok(())
            }
            Frame::Hello { version, run } => {
                Err(format!("takes part in run {:?}, version {version}", RunId(run)))
            }
            _ if !link.greeted => Err("speaks before its hello".into()),
            Frame::Offer { .. } | Frame::Answer { .. } if self.diverged => Ok(()),
            Frame::Offer { number, body } => self.on_offer(from, number, body, now, out),
            Frame::Answer { number, body } => self.on_answer(from, number, body, now),
            Frame::Done => {
                link.done = true;
                Ok(())
            }
            Frame::HalfStep { .. } => Err("a half step in an algorithm without rounds".into()),
        }
    }

    /// The other end's clock fired: both parts of the exchange are known here.
    fn on_offer(
        &mut self,
        from: NodeId,
        number: u64,
        body: Body,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let link = &self.links[&from];
        if link.owns {
            return Err("offers on an edge whose clock runs at the other end".into());
        }
        if number == link.answered.0 && number > 0 {
            let answer = link.answered.1.clone();
            self.send(from, answer, out);
            return Ok(());
        }
        if number != link.answered.0 + 1 {
            return Err(format!("exchange {number} after {}", link.answered.0));
        }
        let offered = self.read(body)?;
        // A node that has not started holds its start: its time is zero.
        let (body, own) = self.message(from, number, now);
        self.jump(from, number, &own, &offered, now);
        let answer = Frame::Answer { number, body }.encode();
        let link = self.links.get_mut(&from).expect("the link was there");
        link.answered = (number, answer.clone());
        link.completed += 1;
        self.count_edge(now, out);
        self.send(from, answer, out);
        Ok(())
    }

    /// The answer to an offer of this end.
    fn on_answer(
        &mut self,
        from: NodeId,
        number: u64,
        body: Body,
        now: Time,
    ) -> Result<(), String> {
        let answered = self.read(body)?;
        let link = self.links.get_mut(&from).expect("the link was there");
        match link.offered.take() {
            Some((awaited, own, _)) if awaited == number => {
                link.completed += 1;
                link.again_at = None;
                self.stats.exchanges += 1;
                self.jump(from, number, &own, &answered, now);
                Ok(())
            }
            // The answer to an offer that was sent twice.
            other if number < self.links[&from].completed + 1 => {
                self.links.get_mut(&from).expect("the link was there").offered = other;
                Ok(())
            }
            other => {
                self.links.get_mut(&from).expect("the link was there").offered = other;
                Err(format!("answers exchange {number}, which was not offered"))
            }
        }
    }

    fn read(&self, body: Body) -> Result<Offered, String> {
        match (&self.machine, body) {
            (Machine::OneByte(_), Body::Symbol(symbol)) => Ok(Offered::Symbol(symbol)),
            (Machine::OneByte(_), _) => Err("no symbol".into()),
            (_, body) => body.into_vector(self.precision, self.x().len()).map(Offered::Vector),
        }
    }

    fn edge_direction(&self, peer: NodeId, number: u64) -> Vec<f64> {
        let stream = Stream::Edge(self.origin, self.links[&peer].origin);
        let mut direction = vec![0.0; self.x().len()];
        onebyte::direction(self.run, stream, number, &mut direction);
        direction
    }

    /// This end's part of an exchange: as sent, and as both ends count with it.
    fn message(&mut self, peer: NodeId, number: u64, now: Time) -> (Body, Offered) {
        let time = self.algorithm_time(now);
        if let Machine::OneByte(_) = &self.machine {
            let direction = self.edge_direction(peer, number);
            let Machine::OneByte(node) = &mut self.machine else { unreachable!("just matched") };
            let track = self.links[&peer].track.as_ref().expect("one-byte links have a track");
            let symbol = node.on_edge(time, &direction, track);
            return (Body::Symbol(symbol), Offered::Symbol(symbol));
        }
        let mut vector = vec![0.0; self.x().len()];
        match &mut self.machine {
            Machine::Dadao(node) => node.message(time, &mut vector),
            Machine::Acid { node, .. } => {
                node.advance(time);
                vector.copy_from_slice(node.x());
            }
            Machine::OneByte(_) => unreachable!("handled above"),
        }
        let body = Body::vector(self.precision, &mut vector);
        (body, Offered::Vector(vector))
    }

    /// Applies an exchange at this end.
    fn jump(&mut self, peer: NodeId, number: u64, own: &Offered, other: &Offered, now: Time) {
        let time = self.algorithm_time(now);
        match (own, other) {
            (Offered::Vector(own), Offered::Vector(other)) => {
                let difference: Vec<f64> = own.iter().zip(other).map(|(a, b)| a - b).collect();
                match &mut self.machine {
                    Machine::Dadao(node) => node.on_edge(time, &difference),
                    Machine::Acid { node, .. } => node.on_edge(time, &difference),
                    Machine::OneByte(_) => unreachable!("a one-byte node reads symbols"),
                }
            }
            (&Offered::Symbol(own), &Offered::Symbol(other)) => {
                let direction = self.edge_direction(peer, number);
                let link = self.links.get_mut(&peer).expect("the link was there");
                let track = link.track.as_mut().expect("one-byte links have a track");
                if let Machine::OneByte(node) = &mut self.machine {
                    node.on_symbols(time, &direction, track, own, other);
                }
            }
            _ => unreachable!("both parts of an exchange were read for one algorithm"),
        }
    }

    fn count_edge(&mut self, now: Time, out: &mut Vec<Output>) {
        let time = self.algorithm_time(now);
        let Some(guard) = &mut self.guard else { return };
        guard.on_edge(time);
        if let dadao::RateVerdict::Low(ratio) = guard.verdict(time) {
            self.guard = None;
            out.push(Output::Event(Event::RateLow { ratio }));
        }
    }

    /// Starts the clocks once all neighbors are there, or have been waited for.
    fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        let began = self.began.expect("set by the first input");
        let all = self.links.values().all(|link| link.greeted);
        if self.started.is_some() || !(all || now.since(began) >= PATIENCE) {
            return;
        }
        self.started = Some(now);
        let unit_s = self.unit.as_secs_f64();
        self.gradient_due = now + self.clock.wait(self.speed / unit_s);
        for link in self.links.values_mut().filter(|link| link.owns) {
            link.due = now + link.clock.wait(link.rate / unit_s);
        }
        if matches!(self.machine, Machine::Dadao(_)) {
            let rate: f64 = self.links.values().map(|link| link.rate).sum();
            if rate > 0.0 {
                self.guard = Some(dadao::RateGuard::new(rate, RATE_EVENTS, Time::ZERO));
            }
        }
        let neighbors = self.links.values().filter(|link| link.greeted).count();
        out.push(Output::Event(Event::Started { neighbors }));
    }

    /// Edge clocks that are due, and offers that are sent again.
    fn fire(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.started.is_none() || self.diverged {
            return;
        }
        let unit_s = self.unit.as_secs_f64();
        let over = self.time(now) >= self.duration;
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for peer in peers {
            let link = self.links.get_mut(&peer).expect("a link is never removed");
            while link.due <= now {
                link.due = link.due + link.clock.wait(link.rate / unit_s);
                link.fired += 1;
                link.backlog = (link.backlog + 1).min(BACKLOG_MAX);
            }
            if over {
                (link.due, link.backlog) = (Time(u64::MAX), 0);
            }
            let again = link.again_at.is_some_and(|at| at <= now);
            if again && let Some((_, _, offer)) = &link.offered {
                let offer = offer.clone();
                link.again_at = None;
                self.send(peer, offer, out);
            } else if link.backlog > 0 && link.offered.is_none() && link.greeted {
                link.backlog -= 1;
                // Of an edge whose clock runs here, all completed exchanges were offered here.
                let number = link.completed + 1;
                let (body, own) = self.message(peer, number, now);
                let offer = Frame::Offer { number, body }.encode();
                let link = self.links.get_mut(&peer).expect("a link is never removed");
                link.offered = Some((number, own, offer.clone()));
                self.count_edge(now, out);
                self.send(peer, offer, out);
            }
        }
    }

    /// The gradient clock.
    fn ask(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.started.is_none() || self.diverged || self.finished.is_some() {
            return;
        }
        let rate = self.speed / self.unit.as_secs_f64();
        while self.gradient_due <= now {
            self.gradient_due = self.gradient_due + self.clock.wait(rate);
            self.gradient_backlog = (self.gradient_backlog + 1).min(BACKLOG_MAX);
        }
        if self.time(now) >= self.duration {
            (self.gradient_due, self.gradient_backlog) = (Time(u64::MAX), 0);
        }
        if self.gradient_backlog == 0 || self.asked.is_some() {
            return;
        }
        self.gradient_backlog -= 1;
        let time = self.algorithm_time(now);
        let mut asked = Asked { at: now, coupling: Vec::new(), direction: Vec::new() };
        match &mut self.machine {
            Machine::Dadao(node) => {
                node.advance(time);
                let mut residual = vec![0.0; node.dim()];
                node.residual(&mut residual);
                asked.coupling = residual;
            }
            Machine::OneByte(node) => {
                node.advance(time);
                let mut direction = vec![0.0; node.dadao().dim()];
                let stream = Stream::Gradient(self.origin);
                onebyte::direction(self.run, stream, self.gradient_number, &mut direction);
                asked.direction = direction;
            }
            Machine::Acid { node, .. } => node.advance(time),
        }
        self.asked = Some(asked);
        let (number, x) = (self.gradient_number, self.x().to_vec());
        self.gradient_number += 1;
        out.push(Output::Gradient { number, x });
    }

    fn on_gradient(&mut self, mut gradient: Vec<f64>, now: Time, out: &mut Vec<Output>) {
        let Some(asked) = self.asked.take() else { return };
        assert_eq!(gradient.len(), self.x().len(), "a gradient has the length of x");
        self.stats.gradients += 1;
        self.stats.busy = self.stats.busy + now.since(asked.at);
        let (units, time) = (self.time(now), self.algorithm_time(now));
        match &mut self.machine {
            Machine::Dadao(node) => {
                // `coupling` is −(νx + y~) at the state of the gradient.
                gradient.iter_mut().zip(&asked.coupling).for_each(|(g, c)| *g += c);
                node.advance(time);
                node.jump_gradient(&gradient);
            }
            Machine::OneByte(node) => {
                node.on_gradient(time, &asked.direction, |_, direction| {
                    gradient.iter().zip(direction).map(|(g, u)| g * u).sum()
                });
            }
            Machine::Acid { node, schedule, momentum, velocity } => {
                for (v, g) in velocity.iter_mut().zip(&gradient) {
                    *v = *momentum * *v + g;
                }
                let step = schedule.at(units, self.duration);
                node.on_gradient(time, step, &mut gradient, |_, out| out.copy_from_slice(velocity));
            }
        }
        if !self.x().iter().all(|value| value.is_finite()) && !self.diverged {
            self.diverged = true;
            out.push(Output::Event(Event::Diverged));
        }
    }

    /// Tells the neighbors once that this node is through.
    fn finish(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(started) = self.started else { return };
        let over = self.time(now) >= self.duration && self.asked.is_none();
        if self.finished.is_none() && (over || self.diverged) {
            self.finished = Some(now);
            self.stats.running = now.since(started);
            out.push(Output::Event(Event::Finished));
        }
        let settled = self.links.values().all(|link| link.offered.is_none());
        if self.finished.is_some() && !self.announced && (settled || self.diverged) {
            self.announced = true;
            let peers: Vec<NodeId> =
                self.links.iter().filter(|(_, link)| link.connected).map(|(n, _)| *n).collect();
            for peer in peers {
                self.send(peer, Frame::Done.encode(), out);
            }
            let end = Time::from_secs_f64(self.duration);
            match &mut self.machine {
                Machine::Dadao(node) => node.advance(end),
                Machine::OneByte(node) => node.advance(end),
                Machine::Acid { node, .. } => node.advance(end),
            }
        }
        if self.finished.is_none() {
            self.stats.running = now.since(started);
        }
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.me
    }
}
