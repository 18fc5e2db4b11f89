//! Small networks of peers on quadratic objectives, with latency, broken links and hostile frames.

use std::collections::{BTreeMap, VecDeque};

use super::frame::{Body, Frame};
use super::*;
use crate::keys::Keys;
use crate::vector::dadao::{Chi, Constants, Rates};

/// Each node's objective is `curvature/2 · |x − center|²`; all curvatures are 2, so the minimizer of
/// the sum is the mean of the centers.
struct Network {
    ids: Vec<NodeId>,
    peers: Vec<Peer>,
    centers: Vec<Vec<f64>>,
    /// In flight: when it arrives, where, and what.
    queue: VecDeque<(Time, usize, Input)>,
    now: Time,
    latency: Time,
    events: Vec<(usize, Event)>,
    offences: Vec<String>,
    /// Frames to drop, by their number; the link breaks and comes back.
    breaks: Vec<u64>,
    frames: u64,
    silent: Option<usize>,
}

const UNIT: Time = Time::from_millis(10);

fn edge_rates(n: usize, complete: bool, rate: f64) -> Vec<(usize, usize, f64)> {
    let ring = |i: usize, j: usize| complete || j == i + 1 || (i == 0 && j == n - 1);
    let pairs = (0..n).flat_map(|i| (i + 1..n).map(move |j| (i, j)));
    pairs.filter(|&(i, j)| ring(i, j)).map(|(i, j)| (i, j, rate)).collect()
}

impl Network {
    fn new(
        n: usize,
        edges: &[(usize, usize, f64)],
        algorithm: Algorithm,
        duration: f64,
    ) -> Network {
        let ids: Vec<NodeId> = (0..n as u64).map(|i| Keys::simulated(i).id()).collect();
        let settings = |i: usize| Settings {
            run: RunId([9; 32]),
            me: ids[i],
            members: ids.clone(),
            edges: edges
                .iter()
                .filter(|e| e.0 == i || e.1 == i)
                .map(|&(a, b, rate)| (ids[if a == i { b } else { a }], rate))
                .collect(),
            algorithm,
            unit: UNIT,
            duration,
            precision: Precision::F64,
            clock_seed: [i as u8 + 1; 32],
            start: vec![0.0; 3],
        };
        let peers = (0..n).map(|i| Peer::new(settings(i)).unwrap()).collect();
        let centers = (0..n).map(|i| vec![i as f64, (i * i) as f64, 1.0]).collect();
        let mut network = Network {
            ids,
            peers,
            centers,
            queue: VecDeque::new(),
            now: Time::ZERO,
            latency: Time(20_000),
            events: Vec::new(),
            offences: Vec::new(),
            breaks: Vec::new(),
            frames: 0,
            silent: None,
        };
        for &(a, b, _) in edges {
            network.connect(a, b);
        }
        network
    }

    fn connect(&mut self, a: usize, b: usize) {
        let (id_a, id_b) = (self.ids[a], self.ids[b]);
        self.push(a, Input::Connected(id_b));
        self.push(b, Input::Connected(id_a));
    }

    fn push(&mut self, to: usize, input: Input) {
        let at = self.now + self.latency;
        let behind = self.queue.partition_point(|queued| queued.0 <= at);
        self.queue.insert(behind, (at, to, input));
    }

    fn handle(&mut self, node: usize, input: Input) {
        let mut outputs = Vec::new();
        self.peers[node].handle(input, self.now, &mut outputs);
        for output in outputs {
            match output {
                Output::Send { to, bytes } => self.send(node, to, bytes),
                Output::Gradient { x, .. } => {
                    let pairs = x.iter().zip(&self.centers[node]);
                    let gradient = pairs.map(|(x, c)| 2.0 * (x - c)).collect();
                    self.push(node, Input::Gradient(gradient));
                }
                Output::Misbehaved { offence, .. } => self.offences.push(offence),
                Output::Event(event) => self.events.push((node, event)),
            }
        }
    }

    fn send(&mut self, node: usize, to: NodeId, bytes: Vec<u8>) {
        let to = self.ids.iter().position(|id| *id == to).unwrap();
        if self.silent == Some(node) {
            return;
        }
        self.frames += 1;
        if !self.breaks.contains(&self.frames) {
            return self.push(to, Input::Frame { from: self.ids[node], bytes });
        }
        // Everything under way between the two is lost with the link.
        let (a, b) = (self.ids[node], self.ids[to]);
        self.queue.retain(|(_, at, input)| {
            let Input::Frame { from, .. } = input else { return true };
            !((*at == to && *from == a) || (*at == node && *from == b))
        });
        self.push(node, Input::Disconnected(b));
        self.push(to, Input::Disconnected(a));
        self.connect(node, to);
    }

    /// Runs to the end; the largest distance of a coordinate from the mean of the centers.
    fn run(&mut self) -> f64 {
        let limit = Time::from_millis(3_600_000);
        while self.now < limit {
            let mut active = (0..self.peers.len()).filter(|&i| Some(i) != self.silent);
            if active.all(|i| self.peers[i].is_done(self.now)) {
                break;
            }
            let wake = (0..self.peers.len()).filter_map(|i| Some((self.peers[i].deadline()?, i)));
            let wake = wake.min();
            let arrival = self.queue.front().map(|queued| queued.0);
            match (arrival, wake) {
                (Some(at), wake) if wake.is_none_or(|(due, _)| at <= due) => {
                    let (at, node, input) = self.queue.pop_front().unwrap();
                    self.now = self.now.max(at);
                    self.handle(node, input);
                }
                (_, Some((due, node))) => {
                    self.now = self.now.max(due) + Time(1);
                    self.handle(node, Input::Wake);
                }
                (_, None) => break,
            }
        }
        let honest: Vec<usize> =
            (0..self.peers.len()).filter(|&i| Some(i) != self.silent).collect();
        let mean = |k: usize| {
            honest.iter().map(|&i| self.centers[i][k]).sum::<f64>() / honest.len() as f64
        };
        let errors = honest.iter().flat_map(|&i| {
            self.peers[i].x().iter().enumerate().map(move |(k, x)| (x - mean(k)).abs())
        });
        errors.fold(0.0, f64::max)
    }
}

/// The cycle of `n` with equal rates that sum to `R = √(2χ₁χ₂)`.
fn cycle(n: usize) -> (f64, Constants) {
    let (n_f, angle) = (n as f64, std::f64::consts::TAU / n as f64);
    let chi = Chi { chi_1: n_f / (2.0 - 2.0 * angle.cos()), chi_2: (n_f - 1.0) / 2.0 };
    let rate = chi.rate_min();
    let rates = Rates { chi: chi.scaled(rate), margin: 1.5 };
    (rate / n_f, Constants::new(2.0, 2.0, rates).unwrap())
}

#[test]
fn dadao_reaches_the_optimum_over_links() {
    let (rate, constants) = cycle(6);
    let edges = edge_rates(6, false, rate);
    let mut network = Network::new(6, &edges, Algorithm::Dadao(constants), 300.0);
    let error = network.run();
    assert!(error < 1e-6, "{error}");
    assert_eq!(network.offences, Vec::<String>::new());
    let gradients: u64 = network.peers.iter().map(|peer| peer.stats().gradients).sum();
    let exchanges: u64 = network.peers.iter().map(|peer| peer.stats().exchanges).sum();
    // The last node's end is waited for. Poisson counts of mean 1,800 and 6 · rate · 300, five deviations.
    assert!((gradients as f64 - 1800.0).abs() < 5.0 * 1800f64.sqrt(), "{gradients}");
    let expected = 6.0 * rate * 300.0;
    assert!((exchanges as f64 - expected).abs() < 5.0 * expected.sqrt(), "{exchanges} {expected}");
}

/// The sum of z would drift with every exchange applied at one end only, and the limit with it.
#[test]
fn links_that_break_in_the_middle_of_exchanges_do_not_move_the_limit() {
    let (rate, constants) = cycle(5);
    let edges = edge_rates(5, false, rate);
    for algorithm in [Algorithm::Dadao(constants), Algorithm::OneByteDadao(constants)] {
        let mut network = Network::new(5, &edges, algorithm, 350.0);
        network.breaks = (0..60).map(|k| 40 + 37 * k).collect();
        let error = network.run();
        assert!(error < 1e-5, "{error}");
        assert_eq!(network.offences, Vec::<String>::new());
    }
}

#[test]
fn one_byte_dadao_sends_a_byte_where_dadao_sends_a_vector() {
    let (rate, constants) = cycle(4);
    let edges = edge_rates(4, false, rate);
    let mut network = Network::new(4, &edges, Algorithm::OneByteDadao(constants), 300.0);
    let error = network.run();
    assert!(error < 1e-6, "{error}");
    let sum = |of: fn(&Stats) -> u64| network.peers.iter().map(|p| of(&p.stats())).sum::<u64>();
    let (exchanges, bytes) = (sum(|stats| stats.exchanges), sum(|stats| stats.bytes_sent));
    // Each way a tag, a number of at most 3 bytes, a tag and the symbol; hello and farewell.
    assert!(bytes <= 2 * 6 * exchanges + 8 * 40, "{bytes} {exchanges}");
}

#[test]
fn acid_and_gossip_train_and_agree() {
    let chi = Chi { chi_1: 1.0, chi_2: 0.75 };
    for constants in [acid::Constants::PLAIN, acid::Constants::new(chi).unwrap()] {
        let schedule = Schedule::Linear { step: 0.02 };
        let algorithm = Algorithm::Acid { constants, schedule, momentum: 0.5 };
        let mut network = Network::new(4, &edge_rates(4, false, 2.0), algorithm, 600.0);
        let error = network.run();
        assert!(error < 0.05, "{error}");
    }
}

#[test]
fn monna_closes_rounds_without_a_silent_node() {
    let config = monna::Config { nodes: 5, faulty: 1, beta: 0.5 };
    let schedule = Schedule::Hyperbolic { step: 0.1, span: 20.0 };
    let algorithm = Algorithm::Monna { config, schedule };
    let mut network = Network::new(5, &edge_rates(5, true, 1.0), algorithm, 200.0);
    network.silent = Some(4);
    // Nearest neighbors of different objectives keep a distance: the error is theirs, not zero.
    let error = network.run();
    assert!(error < 3.0, "{error}");
    for node in 0..4 {
        assert_eq!(network.peers[node].time(), 200.0);
    }
}

#[test]
fn frames_that_the_algorithm_does_not_allow_change_nothing() {
    let (rate, constants) = cycle(4);
    let edges = edge_rates(4, false, rate);
    let mut network = Network::new(4, &edges, Algorithm::Dadao(constants), 5.0);
    // 0's neighbor 3 has the other end of an edge; who owns its clock is fixed by their names.
    let (owner, other) = match network.ids[0] < network.ids[3] {
        true => (0, 3),
        false => (3, 0),
    };
    let hello = |run| Frame::Hello { version: crate::manifest::PROTOCOL_VERSION, run };
    let offer = |number, body| Frame::Offer { number, body };
    let cases = [
        (owner, hello([1; 32]).encode(), "takes part in run"),
        (owner, offer(1, Body::F64(vec![0.0; 3])).encode(), "before its hello"),
        (owner, hello([9; 32]).encode(), ""),
        (owner, offer(1, Body::F64(vec![0.0; 3])).encode(), "runs at the other end"),
        (other, hello([9; 32]).encode(), ""),
        (other, offer(1, Body::F64(vec![0.0; 2])).encode(), "2 numbers, the model has 3"),
        (other, offer(1, Body::F64(vec![f64::NAN; 3])).encode(), "not finite"),
        (other, offer(1, Body::F32(vec![0.0; 3])).encode(), "no vector of f64"),
        (other, offer(7, Body::F64(vec![0.0; 3])).encode(), "exchange 7 after 0"),
        (owner, Frame::Answer { number: 3, body: Body::F64(vec![0.0; 3]) }.encode(), "not offered"),
        (other, Frame::HalfStep { round: 0, body: Body::Symbol(1) }.encode(), "without rounds"),
        (other, vec![0xff; 40], "malformed"),
        (other, Vec::new(), "malformed"),
    ];
    for (to, bytes, offence) in cases {
        let from = network.ids[if to == owner { other } else { owner }];
        let before = (network.peers[to].x().to_vec(), network.offences.len());
        network.handle(to, Input::Frame { from, bytes });
        assert_eq!(network.peers[to].x(), before.0);
        match offence {
            "" => assert_eq!(network.offences.len(), before.1, "{:?}", network.offences),
            _ => {
                let last = network.offences.last().cloned().unwrap_or_default();
                assert!(last.contains(offence), "{offence}: {last}");
                assert_eq!(network.offences.len(), before.1 + 1);
            }
        }
    }
}

#[test]
fn arbitrary_bytes_neither_panic_nor_count_as_exchanges() {
    let (rate, constants) = cycle(4);
    let edges = edge_rates(4, false, rate);
    let mut network = Network::new(4, &edges, Algorithm::Dadao(constants), 5.0);
    let mut rng = crate::sample::KeyedRng::from_seed("rumormill test frames", 1, 0);
    let from = network.ids[1];
    for _ in 0..5_000 {
        let len = rng.index(40);
        let bytes = (0..len).map(|_| rng.next_u32() as u8 % 8).collect();
        network.handle(0, Input::Frame { from, bytes });
    }
    assert!(network.offences.len() > 4_000);
    assert!(network.peers[0].edges().iter().all(|edge| edge.2 == 0));
}

#[test]
fn a_diverging_node_says_so_once_and_ends() {
    let schedule = Schedule::Linear { step: 1e3 };
    let constants = acid::Constants::PLAIN;
    let algorithm = Algorithm::Acid { constants, schedule, momentum: 0.9 };
    let mut network = Network::new(4, &edge_rates(4, false, 1.0), algorithm, 2_000.0);
    network.run();
    let diverged = network.events.iter().filter(|(_, event)| *event == Event::Diverged).count();
    assert!((1..=4).contains(&diverged), "{diverged}");
    assert!(network.peers.iter().any(Peer::has_diverged));
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let config = monna::Config { nodes: 4, faulty: 1, beta: 0.5 };
    let schedule = Schedule::Linear { step: 0.1 };
    let ids: Vec<NodeId> = (0..4).map(|i| Keys::simulated(i).id()).collect();
    let settings = Settings {
        run: RunId([1; 32]),
        me: ids[0],
        members: ids.clone(),
        edges: BTreeMap::from([(ids[1], 1.0), (ids[3], 1.0)]),
        algorithm: Algorithm::Monna { config, schedule },
        unit: UNIT,
        duration: 10.0,
        precision: Precision::F64,
        clock_seed: [0; 32],
        start: vec![0.0; 2],
    };
    let error = |settings: Settings| Peer::new(settings).err().unwrap();
    let incomplete = SettingsError::Incomplete { neighbors: 2, others: 3 };
    assert_eq!(error(settings.clone()), incomplete);
    let algorithm = Algorithm::Acid { constants: acid::Constants::PLAIN, schedule, momentum: 0.0 };
    let pairwise = Settings { algorithm, ..settings };
    assert!(Peer::new(pairwise.clone()).is_ok());
    let nan = Settings { duration: f64::NAN, ..pairwise.clone() };
    assert_eq!(error(nan), SettingsError::Numbers);
    let large = Settings { start: vec![0.0; 3 << 20], ..pairwise.clone() };
    assert!(matches!(error(large), SettingsError::Frame { .. }));
    let strange = BTreeMap::from([(Keys::simulated(9).id(), 1.0)]);
    assert_eq!(error(Settings { edges: strange, ..pairwise }), SettingsError::Members);
}
