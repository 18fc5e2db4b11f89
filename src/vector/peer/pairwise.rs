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
//!
//! **Time is algorithmic.** A unit lasts so long on the wall, but a node's time stands still while an
//! event is due that compute or a link cannot take yet. So a machine that is too slow makes the run
//! longer, never another one: rates per unit of time are kept, and with them the conditions under
//! which DADAO converges. (With a clock tied to the wall, a loaded machine lost a third of its edge
//! events and a run diverged.) A node that has reached the end goes on until its neighbors have too.

use std::collections::BTreeMap;

use super::frame::{Body, Frame};
use super::{Algorithm, Event, Input, Output, PATIENCE, Precision, Schedule, Settings, Stats};
use crate::clock::PoissonClock;
use crate::id::{NodeId, Origin, RunId};
use crate::manifest::PROTOCOL_VERSION;
use crate::time::Time;
use crate::vector::onebyte::{self, Stream, TrackedLb8};
use crate::vector::{acid, dadao};

/// Events of an edge's clock that are made up for when a link comes back.
const BACKLOG_MAX: u32 = 4;

/// An exchange that takes longer no longer holds up this node's time: a peer that does not answer
/// must not stop the others.
const ANSWER_MAX: Time = Time::from_millis(2_000);

/// Edge events over which the realised rate is judged: a standard deviation of 3.5 %.
const RATE_EVENTS: f64 = 400.0;

/// The realised rate is looked at after every event, so the alarm is seven deviations away; below
/// it DADAO crawls, and below 0.6 it diverges.
const RATE_RATIO_MIN: f64 = 0.75;

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
    /// When it fires next, in algorithm time.
    due: Time,
    connected: bool,
    greeted: bool,
    /// The neighbor has reached the end.
    done: bool,
    /// The neighbor's clocks have stopped.
    left: bool,
    /// Clock events that wait for the exchange under way.
    backlog: u32,
    /// The exchange under way: its number, what this end offered and the frame.
    offered: Option<(u64, Offered, Vec<u8>)>,
    /// When that began.
    offered_at: Time,
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
    /// When the gradient clock fires next, in algorithm time.
    gradient_due: Time,
    /// It has fired, and the gradient has not been asked for yet.
    gradient_waits: bool,
    gradient_number: u64,
    asked: Option<Asked>,
    /// Algorithm time, one second a unit, as of `seen`.
    time: Time,
    seen: Time,
    began: Option<Time>,
    started: Option<Time>,
    /// When the end was reached.
    reached: Option<Time>,
    /// When the clocks stopped.
    stopped: Option<Time>,
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
                left: false,
                backlog: 0,
                offered: None,
                offered_at: Time::ZERO,
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
            gradient_waits: false,
            gradient_number: 0,
            asked: None,
            time: Time::ZERO,
            seen: Time::ZERO,
            began: None,
            started: None,
            reached: None,
            stopped: None,
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
                if let Err(offence) = self.on_frame(from, &bytes, out) {
                    self.stats.offences += 1;
                    out.push(Output::Misbehaved { peer: from, offence });
                }
            }
            Input::Gradient(gradient) => self.on_gradient(gradient, now, out),
        }
        self.start(now, out);
        self.run_clocks(now, out);
        self.send_again(now, out);
        self.finish(now, out);
    }

    /// See [`Peer::deadline`](super::Peer::deadline).
    pub fn deadline(&self) -> Option<Time> {
        let Some(_) = self.started else { return self.began.map(|began| began + PATIENCE) };
        let links = self.links.values();
        let again = links.clone().filter_map(|link| link.again_at);
        let ends = [self.stopped, self.reached].into_iter().flatten().map(|at| at + PATIENCE);
        let clocks =
            (self.stopped.is_none() && !self.diverged).then(|| match self.is_behind(self.seen) {
                // Time stands still: what is waited for wakes this node, or it is waited no longer.
                true => links
                    .filter(|link| link.offered.is_some())
                    .map(|l| l.offered_at + ANSWER_MAX)
                    .min(),
                false => {
                    let span = self.next_due().min(self.end()).since(self.time).as_secs_f64();
                    Some(self.seen + Time::from_secs_f64(span * self.unit.as_secs_f64()))
                }
            });
        again.chain(ends.min()).chain(clocks.flatten()).min()
    }

    /// The algorithm time at which the run is over.
    fn end(&self) -> Time {
        match self.reached {
            None => Time::from_secs_f64(self.duration),
            Some(_) => Time(u64::MAX),
        }
    }

    /// When the next clock fires, in algorithm time.
    fn next_due(&self) -> Time {
        let edges = self.links.values().map(|link| link.due);
        edges.chain([self.gradient_due]).min().expect("there is a gradient clock")
    }

    /// Whether an event is due that cannot be taken yet.
    fn is_behind(&self, now: Time) -> bool {
        let waits = |link: &Link| {
            let fresh = now.since(link.offered_at) < ANSWER_MAX;
            link.greeted && link.backlog > 0 && link.offered.is_some() && fresh
        };
        self.gradient_waits || self.links.values().any(waits)
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
    pub fn time(&self) -> f64 {
        self.time.as_secs_f64().min(self.duration)
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
        let Some(stopped) = self.stopped else { return false };
        self.links.values().all(|link| link.left) || now.since(stopped) >= PATIENCE
    }

    /// Whether a number ceased to be finite.
    pub fn has_diverged(&self) -> bool {
        self.diverged
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
        if self.reached.is_some() {
            self.send(peer, Frame::Done.encode(), out);
        }
        if self.stopped.is_some() {
            self.send(peer, Frame::Left.encode(), out);
        }
    }

    fn on_frame(
        &mut self,
        from: NodeId,
        bytes: &[u8],
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
            Frame::Offer { number, body } => self.on_offer(from, number, body, out),
            Frame::Answer { number, body } => self.on_answer(from, number, body, out),
            Frame::Done => {
                link.done = true;
                Ok(())
            }
            Frame::Left => {
                (link.done, link.left) = (true, true);
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
        let (body, own) = self.message(from, number);
        self.jump(from, number, &own, &offered);
        let answer = Frame::Answer { number, body }.encode();
        let link = self.links.get_mut(&from).expect("the link was there");
        link.answered = (number, answer.clone());
        link.completed += 1;
        self.count_edge(out);
        self.send(from, answer, out);
        Ok(())
    }

    /// The answer to an offer of this end.
    fn on_answer(
        &mut self,
        from: NodeId,
        number: u64,
        body: Body,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        let answered = self.read(body)?;
        let link = self.links.get_mut(&from).expect("the link was there");
        match link.offered.take() {
            Some((awaited, own, _)) if awaited == number => {
                link.completed += 1;
                link.again_at = None;
                self.stats.exchanges += 1;
                self.jump(from, number, &own, &answered);
                self.begin(out);
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
    fn message(&mut self, peer: NodeId, number: u64) -> (Body, Offered) {
        let time = self.time;
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
    fn jump(&mut self, peer: NodeId, number: u64, own: &Offered, other: &Offered) {
        let time = self.time;
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

    fn count_edge(&mut self, out: &mut Vec<Output>) {
        let time = self.time;
        let Some(guard) = &mut self.guard else { return };
        guard.on_edge(time);
        match guard.verdict(time) {
            dadao::RateVerdict::Low(ratio) if ratio < RATE_RATIO_MIN => {
                self.guard = None;
                out.push(Output::Event(Event::RateLow { ratio }));
            }
            _ => {}
        }
    }

    /// Starts the clocks once all neighbors are there, or have been waited for.
    fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        let began = self.began.expect("set by the first input");
        let all = self.links.values().all(|link| link.greeted);
        if self.started.is_some() || !(all || now.since(began) >= PATIENCE) {
            return;
        }
        (self.started, self.seen) = (Some(now), now);
        self.gradient_due = self.clock.wait(self.speed);
        for link in self.links.values_mut().filter(|link| link.owns) {
            link.due = link.clock.wait(link.rate);
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

    /// Lets time pass up to now, event by event, or up to the first event that cannot be taken: what
    /// is left of the time is then not counted.
    fn run_clocks(&mut self, now: Time, out: &mut Vec<Output>) {
        let passed = now.since(self.seen).as_secs_f64() / self.unit.as_secs_f64();
        self.seen = now;
        if self.started.is_none() || self.stopped.is_some() || self.diverged {
            return;
        }
        let target = (self.time + Time::from_secs_f64(passed)).min(self.end());
        self.begin(out);
        while !self.is_behind(now) {
            let due = self.next_due();
            if due > target {
                self.time = self.time.max(target);
                return;
            }
            self.time = self.time.max(due);
            if self.gradient_due <= self.time {
                self.gradient_due = self.gradient_due + self.clock.wait(self.speed);
                self.gradient_waits = true;
            }
            for link in self.links.values_mut().filter(|link| link.due <= self.time) {
                link.due = link.due + link.clock.wait(link.rate);
                link.fired += 1;
                link.backlog = (link.backlog + 1).min(BACKLOG_MAX);
            }
            self.begin(out);
        }
    }

    /// Begins what is due and can be begun.
    fn begin(&mut self, out: &mut Vec<Output>) {
        if self.started.is_none() || self.stopped.is_some() || self.diverged {
            return;
        }
        if self.gradient_waits && self.asked.is_none() {
            self.gradient_waits = false;
            self.ask(out);
        }
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        for peer in peers {
            let link = self.links.get_mut(&peer).expect("a link is never removed");
            if link.backlog == 0 || link.offered.is_some() || !link.greeted {
                continue;
            }
            link.backlog -= 1;
            // Of an edge whose clock runs here, all completed exchanges were offered here.
            let number = link.completed + 1;
            let (body, own) = self.message(peer, number);
            let offer = Frame::Offer { number, body }.encode();
            let link = self.links.get_mut(&peer).expect("a link is never removed");
            link.offered = Some((number, own, offer.clone()));
            link.offered_at = self.seen;
            self.count_edge(out);
            self.send(peer, offer, out);
        }
    }

    /// Offers that could not be handed to their links.
    fn send_again(&mut self, now: Time, out: &mut Vec<Output>) {
        let due = |link: &Link| link.again_at.is_some_and(|at| at <= now);
        let peers: Vec<NodeId> =
            self.links.iter().filter(|(_, link)| due(link)).map(|(node, _)| *node).collect();
        for peer in peers {
            let link = self.links.get_mut(&peer).expect("a link is never removed");
            link.again_at = None;
            if let Some((_, _, offer)) = &link.offered {
                let offer = offer.clone();
                self.send(peer, offer, out);
            }
        }
    }

    fn ask(&mut self, out: &mut Vec<Output>) {
        let time = self.time;
        let mut asked = Asked { at: self.seen, coupling: Vec::new(), direction: Vec::new() };
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
        let (units, time) = (self.time(), self.time);
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

    /// Tells the neighbors that the end is reached, and later that the clocks have stopped.
    fn finish(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(started) = self.started else { return };
        let at_end = self.time >= Time::from_secs_f64(self.duration) || self.diverged;
        if self.reached.is_none() && at_end {
            self.reached = Some(now);
            self.tell(&Frame::Done, out);
        }
        let Some(reached) = self.reached.filter(|_| self.stopped.is_none()) else {
            if self.stopped.is_none() {
                self.stats.running = now.since(started);
            }
            return;
        };
        let waited = now.since(reached) >= PATIENCE;
        let settled =
            |link: &Link| link.done && (link.offered.is_none() || link.left || !link.connected);
        let all = self.asked.is_none() && self.links.values().all(settled);
        if all || waited || self.diverged {
            self.stopped = Some(now);
            self.stats.running = now.since(started);
            out.push(Output::Event(Event::Finished));
            self.tell(&Frame::Left, out);
        }
    }

    fn tell(&mut self, frame: &Frame, out: &mut Vec<Output>) {
        let connected = self.links.iter().filter(|(_, link)| link.connected);
        let peers: Vec<NodeId> = connected.map(|(node, _)| *node).collect();
        for peer in peers {
            self.send(peer, frame.encode(), out);
        }
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.me
    }
}
