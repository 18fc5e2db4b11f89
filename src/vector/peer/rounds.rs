//! MoNNA over links: a half step goes to all others, and a round closes on `n − f` half steps.
//!
//! A node waits for nobody beyond these: faster nodes run ahead, and one that falls behind joins the
//! newest round it can close, without a gradient of its own in the rounds between. (The paper counts
//! such a node among the faulty; nothing is lost by letting it catch up.) Half steps of more than
//! [`ROUNDS_AHEAD`] rounds ahead are kept for the newest rounds only, so memory is bounded by that
//! many vectors a peer.

use std::collections::BTreeMap;

use super::frame::{Body, Frame};
use super::{Event, Input, Output, PATIENCE, Precision, Schedule, Settings, SettingsError, Stats};
use crate::id::{NodeId, Origin, RunId};
use crate::manifest::PROTOCOL_VERSION;
use crate::time::Time;
use crate::vector::monna::{self, Received};

/// Half steps of one peer that are kept.
const ROUNDS_AHEAD: usize = 4;

struct Link {
    origin: Origin,
    connected: bool,
    greeted: bool,
    done: bool,
    /// Half steps of this and later rounds.
    half_steps: BTreeMap<u64, Vec<f64>>,
}

/// A node.
pub struct Rounds {
    run: RunId,
    config: monna::Config,
    schedule: Schedule,
    precision: Precision,
    rounds: u64,
    node: monna::Node,
    links: BTreeMap<NodeId, Link>,
    /// The round that is under way, from 0.
    round: u64,
    asked: Option<Time>,
    /// The half step of this round has been made; its frame.
    sent: Option<Vec<u8>>,
    began: Option<Time>,
    started: Option<Time>,
    finished: Option<Time>,
    diverged: bool,
    stats: Stats,
}

impl Rounds {
    /// A node; the settings have been checked but for MoNNA's own.
    pub(super) fn new(
        settings: Settings,
        config: monna::Config,
        schedule: Schedule,
    ) -> Result<Rounds, SettingsError> {
        let Settings { run, me, members, edges, start, .. } = settings;
        let others = members.len() - 1;
        if edges.len() != others {
            return Err(SettingsError::Incomplete { neighbors: edges.len(), others });
        }
        let at = |node: &NodeId| members.iter().position(|member| member == node);
        let origin = |node: &NodeId| Origin(at(node).expect("neighbors are members") as u16);
        let links = edges.keys().map(|node| {
            let link = Link {
                origin: origin(node),
                connected: false,
                greeted: false,
                done: false,
                half_steps: BTreeMap::new(),
            };
            (*node, link)
        });
        Ok(Rounds {
            run,
            config,
            schedule,
            precision: settings.precision,
            rounds: settings.duration.ceil() as u64,
            node: monna::Node::new(config, origin(&me), start)?,
            links: links.collect(),
            round: 0,
            asked: None,
            sent: None,
            began: None,
            started: None,
            finished: None,
            diverged: false,
            stats: Stats::default(),
        })
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
            // What was lost is one half step of many: the round closes on others.
            Input::NotSent(_) => {}
            Input::Frame { from, bytes } => {
                self.stats.bytes_received += bytes.len() as u64;
                if let Err(offence) = self.on_frame(from, &bytes) {
                    self.stats.offences += 1;
                    out.push(Output::Misbehaved { peer: from, offence });
                }
            }
            Input::Gradient(gradient) => self.on_gradient(&gradient, now, out),
        }
        self.start(now, out);
        self.close(now, out);
        self.ask(now, out);
    }

    /// See [`Peer::deadline`](super::Peer::deadline).
    pub fn deadline(&self) -> Option<Time> {
        match (self.started, self.finished) {
            (None, _) => self.began.map(|began| began + PATIENCE),
            (_, Some(finished)) => Some(finished + PATIENCE),
            _ => None,
        }
    }

    /// The parameters; in a round, the half step.
    pub fn x(&self) -> &[f64] {
        self.node.x()
    }

    /// Rounds closed.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Numbers so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether this node and the others are through, or have been waited for long enough.
    pub fn is_done(&self, now: Time) -> bool {
        let Some(finished) = self.finished else { return false };
        self.links.values().all(|link| link.done) || now.since(finished) >= PATIENCE
    }

    /// Whether a number ceased to be finite.
    pub fn has_diverged(&self) -> bool {
        self.diverged
    }

    fn send(&mut self, to: NodeId, bytes: Vec<u8>, out: &mut Vec<Output>) {
        self.stats.bytes_sent += bytes.len() as u64;
        out.push(Output::Send { to, bytes });
    }

    fn broadcast(&mut self, bytes: &[u8], out: &mut Vec<Output>) {
        let connected = self.links.iter().filter(|(_, link)| link.connected);
        let peers: Vec<NodeId> = connected.map(|(node, _)| *node).collect();
        for peer in peers {
            self.send(peer, bytes.to_vec(), out);
        }
    }

    fn on_connected(&mut self, peer: NodeId, out: &mut Vec<Output>) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.connected = true;
        let hello = Frame::Hello { version: PROTOCOL_VERSION, run: self.run.0 };
        self.send(peer, hello.encode(), out);
        if let Some(half_step) = self.sent.clone() {
            self.send(peer, half_step, out);
        }
        if self.finished.is_some() {
            self.send(peer, Frame::Done.encode(), out);
        }
    }

    fn on_frame(&mut self, from: NodeId, bytes: &[u8]) -> Result<(), String> {
        let frame = Frame::decode(bytes).map_err(|error| error.to_string())?;
        let (dim, round, precision) = (self.node.x().len(), self.round, self.precision);
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
            Frame::HalfStep { round: of, .. } if of >= self.rounds => {
                Err(format!("a half step of round {of}, the run has {}", self.rounds))
            }
            Frame::HalfStep { round: of, body } => {
                let vector = body.into_vector(precision, dim)?;
                // The first statement counts: a second one of a round changes nothing.
                if of >= round {
                    link.half_steps.entry(of).or_insert(vector);
                }
                while link.half_steps.len() > ROUNDS_AHEAD {
                    // The round under way is kept, and the newest ones.
                    let later = link.half_steps.keys().copied().find(|&held| held > round);
                    link.half_steps.remove(&later.expect("more than one round is held"));
                }
                Ok(())
            }
            Frame::Done | Frame::Left => {
                link.done = true;
                Ok(())
            }
            Frame::Offer { .. } | Frame::Answer { .. } => Err("no exchanges in MoNNA".into()),
        }
    }

    fn start(&mut self, now: Time, out: &mut Vec<Output>) {
        let began = self.began.expect("set by the first input");
        let greeted = self.links.values().filter(|link| link.greeted).count();
        let all = greeted == self.links.len();
        if self.started.is_none() && (all || now.since(began) >= PATIENCE) {
            self.started = Some(now);
            out.push(Output::Event(Event::Started { neighbors: greeted }));
        }
    }

    fn ask(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(started) = self.started.filter(|_| self.finished.is_none()) else { return };
        self.stats.running = now.since(started);
        if self.asked.is_none() && self.sent.is_none() {
            self.asked = Some(now);
            out.push(Output::Gradient { number: self.round, x: self.node.x().to_vec() });
        }
    }

    fn on_gradient(&mut self, gradient: &[f64], now: Time, out: &mut Vec<Output>) {
        let Some(at) = self.asked.take() else { return };
        self.stats.gradients += 1;
        self.stats.busy = self.stats.busy + now.since(at);
        let step = self.schedule.at(self.round as f64, self.rounds as f64);
        let finite = self.node.on_gradient(gradient, step).is_ok();
        if !finite || !self.node.x().iter().all(|value| value.is_finite()) {
            self.diverged = true;
            out.push(Output::Event(Event::Diverged));
            return self.finish(now, out);
        }
        let mut half_step = self.node.x().to_vec();
        let body = Body::vector(self.precision, &mut half_step);
        self.node.replace(&half_step);
        let frame = Frame::HalfStep { round: self.round, body }.encode();
        self.broadcast(&frame, out);
        self.sent = Some(frame);
    }

    /// Closes the round, or the newest round for which enough half steps are here.
    fn close(&mut self, now: Time, out: &mut Vec<Output>) {
        if self.sent.is_none() || self.finished.is_some() {
            return;
        }
        let needed = self.config.nodes - self.config.faulty - 1;
        let mut counts = BTreeMap::<u64, usize>::new();
        for round in self.links.values().flat_map(|link| link.half_steps.keys()) {
            *counts.entry(*round).or_default() += 1;
        }
        let complete = |round: &u64| counts.get(round).copied().unwrap_or(0) >= needed;
        let newest = counts.keys().copied().rfind(|round| complete(round));
        let Some(round) =
            Some(self.round).filter(complete).or(newest).or((needed == 0).then_some(self.round))
        else {
            return;
        };
        // In order of origin: which ones come first must not decide, so the own choice is fixed.
        let mut held: Vec<(Origin, &Vec<f64>)> = self
            .links
            .values()
            .filter_map(|link| Some((link.origin, link.half_steps.get(&round)?)))
            .collect();
        held.sort_by_key(|(origin, _)| *origin);
        let received: Vec<Received<'_>> = held
            .iter()
            .take(needed)
            .map(|(origin, vector)| Received { origin: *origin, vector })
            .collect();
        self.node.mix(&received).expect("length, finiteness and origins were checked on arrival");
        self.stats.exchanges += received.len() as u64;
        self.round = round + 1;
        self.sent = None;
        for link in self.links.values_mut() {
            link.half_steps = link.half_steps.split_off(&self.round);
        }
        if self.round >= self.rounds {
            self.finish(now, out);
        }
    }

    fn finish(&mut self, now: Time, out: &mut Vec<Output>) {
        self.finished = Some(now);
        self.stats.running = self.started.map_or(Time::ZERO, |started| now.since(started));
        out.push(Output::Event(Event::Finished));
        self.broadcast(&Frame::Done.encode(), out);
    }
}
