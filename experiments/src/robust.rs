//! Training with faulty nodes in rounds: MoNNA, the selection of the combined protocol, and rival
//! rules, on one problem and under the same attacks.
//!
//! Faulty nodes see every honest node and send the same vector to all. Three schemes:
//!
//! - *MoNNA*: each honest node holds its own half step, those of `n − 2f − 1` random honest others and
//!   all faulty ones, and averages the `n − 2f` nearest. Exactly [`rumormill::vector::monna`], with
//!   distances from one [`Gram`] matrix a round in place of a pass for each;
//! - *selection*: what the combined protocol does on agreed records, here on whole vectors. All nodes
//!   hold the same model and see the same momenta; [`selection`] weighs them: gate, trust, nearest-
//!   neighbor mixing. The model steps along the weighted mean;
//! - *a rule*: each honest node replaces its half step by the rule's result on what its neighbors sent.

use std::fs;

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use rumormill::data::Dataset;
use rumormill::id::Origin;
use rumormill::objective::{Network, Objective, Scratch, Split};
use rumormill::vector::monna::{Config, Node, distance};
use rumormill::vector::rule::Rule;

use crate::attack::{self, Attack, Gram, combine};
use crate::problem::{below, uniform};

/// Who takes part and how it trains.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// All participants, n.
    pub nodes: usize,
    /// How many are faulty, f.
    pub faulty: usize,
    /// Rows of a gradient.
    pub batch: usize,
    /// Momentum factor.
    pub beta: f64,
    /// Step size of the first span of rounds; in the k-th it is this over k.
    pub step: f64,
    /// Rounds between two evaluations, and between two changes of the step size.
    pub span: usize,
    /// Sizes of hidden layers.
    pub hidden: &'static [usize],
}

/// What the faulty nodes do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// None are faulty: all n are honest.
    None,
    /// The honest mean of what is sent, negated.
    SignFlip,
    /// The honest mean, but stepped along gradients on labels `classes − 1 − label`.
    LabelFlip,
    /// Along the attack's direction, by the factor of the published search: against nearest-neighbor
    /// averaging on a full list.
    Searched(Attack),
    /// Along the attack's direction, by the factor of a search against the selection itself, with all
    /// its steps; elsewhere as [`Fault::Searched`].
    Adaptive(Attack),
    /// Along the attack's direction by a given factor.
    Fixed(Attack, f64),
}

/// How honest nodes combine what they hold.
#[derive(Clone, Copy)]
pub enum Scheme<'a> {
    /// The plain mean over all honest nodes; for [`Fault::None`].
    Average,
    /// Nearest-neighbor averaging of half steps at every node.
    Monna,
    /// Selection of momenta on a common model.
    Selection,
    /// A rule on the half steps of the neighbors; the last f nodes are the faulty ones.
    Rule {
        /// The rule; the own half step is the first of its list.
        rule: &'a dyn Rule,
        /// The neighbors of each of the n nodes; `None` is the complete graph.
        graph: Option<&'a [Vec<usize>]>,
        /// Whether the result depends on which of the list is the own.
        own: bool,
    },
}

/// How one run went.
#[derive(Clone, Debug)]
pub struct Course {
    /// Test accuracy of node 0 in percent after every span.
    pub accuracy: Vec<f64>,
    /// Largest distance of an honest node from the honest mean after every span.
    pub consensus: Vec<f64>,
    /// Test accuracy of the worst honest node at the end, in percent.
    pub worst: f64,
    /// CPU seconds a round for mixing and attack.
    pub seconds: f64,
}

/// The data of a run, with a second labelling for label flipping.
pub struct Task {
    model: Network,
    flipped: Network,
    labels: Vec<u16>,
    classes: usize,
    hidden: &'static [usize],
    features: usize,
}

impl Task {
    /// A perceptron on a data set.
    pub fn new(dataset: Dataset, hidden: &'static [usize]) -> Task {
        let (labels, classes) = (dataset.train.labels.clone(), dataset.classes);
        let features = dataset.features;
        let mut flipped = dataset.clone();
        let last = (classes - 1) as u16;
        flipped.train.labels.iter_mut().for_each(|label| *label = last - *label);
        let model = Network::new(dataset.into(), hidden);
        let flipped = Network::new(flipped.into(), hidden);
        Task { model, flipped, labels, classes, hidden, features }
    }

    fn dim(&self) -> usize {
        self.model.tensors().iter().map(|tensor| tensor.len()).sum()
    }

    /// Starting parameters as of the reference: weights and biases uniform within ±1/√inputs.
    fn start(&self, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let mut inputs = self.features;
        let mut start = Vec::with_capacity(self.dim());
        for &outputs in self.hidden.iter().chain([&self.classes]) {
            let limit = 1.0 / (inputs as f64).sqrt();
            let count = (inputs + 1) * outputs;
            start.extend((0..count).map(|_| (2.0 * uniform(rng) - 1.0) * limit));
            inputs = outputs;
        }
        start
    }

    /// Each node draws its labels' shares from Dirichlet(1) (normalised exponentials), then as many
    /// rows as it would have of an even split, with replacement.
    fn shards(&self, nodes: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<u32>> {
        let mut by_label: Vec<Vec<u32>> = vec![Vec::new(); self.classes];
        for (row, label) in (0..).zip(&self.labels) {
            by_label[usize::from(*label)].push(row);
        }
        let shard = |_| {
            let shares: Vec<f64> = by_label.iter().map(|_| -(1.0 - uniform(rng)).ln()).collect();
            let total: f64 = shares.iter().sum();
            let draw = |_| {
                let mut mark = uniform(rng) * total;
                let label = shares.iter().position(|share| {
                    mark -= share;
                    mark < 0.0
                });
                let of_label = &by_label[label.unwrap_or(self.classes - 1)];
                of_label[below(rng, of_label.len())]
            };
            (0..self.labels.len() / nodes).map(draw).collect()
        };
        (0..nodes).map(shard).collect()
    }

    /// Test accuracy in percent.
    fn accuracy(&self, x: &[f64], scratch: &mut Scratch) -> f64 {
        let x: Vec<f32> = x.iter().map(|&value| value as f32).collect();
        100.0 * self.model.evaluate(&x, Split::Test, scratch).accuracy
    }
}

/// Trains for `rounds` and says how it went; `progress` is told round, accuracy and consensus
/// distance after every span.
///
/// # Errors
/// When training diverges or a rule refuses its vectors.
pub fn run(
    task: &Task,
    setup: Setup,
    seed: u64,
    rounds: usize,
    fault: Fault,
    scheme: Scheme<'_>,
    progress: &mut dyn FnMut(usize, f64, f64),
) -> Result<Course> {
    let mut group = Group::new(task, setup, seed, fault)?;
    let mut course =
        Course { accuracy: vec![], consensus: vec![], worst: f64::INFINITY, seconds: 0.0 };
    for round in 0..rounds {
        let step = setup.step / (1 + round / setup.span) as f64;
        group.half_step(step)?;
        let begin = cpu_seconds();
        group.mix(step, scheme)?;
        course.seconds += (cpu_seconds() - begin) / rounds as f64;
        if (round + 1) % setup.span == 0 {
            let accuracy = task.accuracy(group.nodes[0].x(), &mut group.scratch);
            let consensus = group.consensus();
            progress(round + 1, accuracy, consensus);
            course.accuracy.push(accuracy);
            course.consensus.push(consensus);
        }
    }
    let differ = !matches!(scheme, Scheme::Average | Scheme::Selection);
    for node in group.nodes.iter().take(if differ { group.nodes.len() } else { 1 }) {
        course.worst = course.worst.min(task.accuracy(node.x(), &mut group.scratch));
    }
    Ok(course)
}

/// The honest nodes and what they need.
struct Group<'a> {
    task: &'a Task,
    setup: Setup,
    fault: Fault,
    shards: Vec<Vec<u32>>,
    nodes: Vec<Node>,
    /// Mean gradient on flipped labels, where that is the attack.
    flipped: Vec<f64>,
    next: Vec<Vec<f64>>,
    rng: ChaCha8Rng,
    scratch: Scratch,
}

impl<'a> Group<'a> {
    fn new(task: &'a Task, setup: Setup, seed: u64, fault: Fault) -> Result<Group<'a>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let honest = setup.nodes - if fault == Fault::None { 0 } else { setup.faulty };
        let x = task.start(&mut rng);
        let shards = task.shards(honest, &mut rng);
        let config = Config { nodes: setup.nodes, faulty: setup.faulty, beta: setup.beta };
        let nodes = (0..honest)
            .map(|k| Node::new(config, Origin(k as u16), x.clone()))
            .collect::<Result<_, _>>()?;
        let zero = vec![0.0; x.len()];
        let next = vec![zero.clone(); honest];
        let scratch = Scratch::default();
        Ok(Group { task, setup, fault, shards, nodes, flipped: zero, next, rng, scratch })
    }

    /// Momentum and half step at every honest node.
    fn half_step(&mut self, step: f64) -> Result<()> {
        let mut gradient = vec![0.0; self.flipped.len()];
        self.flipped.fill(0.0);
        let count = self.nodes.len() as f64;
        let mut rows = Vec::with_capacity(self.setup.batch);
        for (node, shard) in self.nodes.iter_mut().zip(&self.shards) {
            rows.clear();
            let batch = 0..self.setup.batch;
            rows.extend(batch.map(|_| shard[below(&mut self.rng, shard.len())]));
            if self.fault == Fault::LabelFlip {
                self.task.flipped.gradient(node.x(), &rows, &mut gradient, &mut self.scratch);
                let sums = self.flipped.iter_mut().zip(&gradient);
                sums.for_each(|(sum, value)| *sum += value / count);
            }
            self.task.model.gradient(node.x(), &rows, &mut gradient, &mut self.scratch);
            node.on_gradient(&gradient, step)?;
        }
        Ok(())
    }

    fn consensus(&self) -> f64 {
        let x: Vec<&[f64]> = self.nodes.iter().map(Node::x).collect();
        let center = attack::mean(&x);
        x.iter().map(|x| distance(x, &center)).fold(0.0, f64::max)
    }

    fn mix(&mut self, step: f64, scheme: Scheme<'_>) -> Result<()> {
        let half: Vec<&[f64]> = self.nodes.iter().map(Node::x).collect();
        let mean = attack::mean(&half);
        match scheme {
            Scheme::Average => {
                self.nodes.iter_mut().for_each(|node| node.replace(&mean));
                return Ok(());
            }
            Scheme::Monna => {
                let direction = self.fault.direction(&half, &mean, &self.flipped, step);
                let gram = Gram::new(&half, &direction, &mean);
                let factor = self.fault.factor(|factor| gram.score(factor, self.setup.faulty));
                let faulty = moved(&mean, &direction, factor);
                let weights: Vec<_> = (0..half.len())
                    .map(|node| {
                        let heard = heard(&mut self.rng, node, half.len(), self.setup);
                        nearest_weights(&gram, factor, node, &heard, self.setup)
                    })
                    .collect();
                let mut vectors = half;
                vectors.push(&faulty);
                combine(&vectors, &weights, &mut self.next);
            }
            Scheme::Selection => {
                let momenta: Vec<&[f64]> = self.nodes.iter().map(Node::momentum).collect();
                // Of half steps and momenta the one is the other: m = (x − half)/step.
                let zero = vec![0.0; mean.len()];
                let center = attack::mean(&momenta);
                let direction = self.fault.direction_of_momenta(
                    &momenta,
                    (&mean, &center),
                    &self.flipped,
                    step,
                );
                let gram = Gram::new(&momenta, &direction, &zero);
                let products = |factor| with_copies(&gram, factor, self.setup);
                let score =
                    |factor: f64| shift(&gram, factor, &selected(&products(factor), self.setup));
                let factor = match self.fault {
                    Fault::Searched(_) => {
                        let centered = Gram::new(&momenta, &direction, &center);
                        self.fault.factor(|factor| centered.score(factor, self.setup.faulty))
                    }
                    _ => self.fault.factor(score),
                };
                let faulty = moved(&center, &direction, factor);
                let weights = selected(&products(factor), self.setup);
                let honest = momenta.len();
                let mut list: Vec<_> = weights[..honest].iter().copied().enumerate().collect();
                list.push((honest, weights[honest..].iter().sum()));
                let mut vectors = momenta;
                vectors.push(&faulty);
                combine(&vectors, &[list], &mut self.next[..1]);
                // All half steps came from one model; it steps along the selected momentum.
                let (first, node) = (&mut self.next[0], &self.nodes[0]);
                for ((next, half), m) in first.iter_mut().zip(node.x()).zip(node.momentum()) {
                    *next = half + step * m - step * *next;
                }
                let model = self.next[0].clone();
                self.next.iter_mut().skip(1).for_each(|next| next.copy_from_slice(&model));
            }
            Scheme::Rule { rule, graph, own } => {
                let direction = self.fault.direction(&half, &mean, &self.flipped, step);
                let gram = Gram::new(&half, &direction, &mean);
                let factor = self.fault.factor(|factor| gram.score(factor, self.setup.faulty));
                let faulty = moved(&mean, &direction, factor);
                let shared = graph.is_none() && !own;
                for node in 0..half.len() {
                    if shared && node > 0 {
                        let (first, rest) = self.next.split_at_mut(1);
                        rest[node - 1].copy_from_slice(&first[0]);
                        continue;
                    }
                    let of = |j: usize| if j < half.len() { half[j] } else { &faulty[..] };
                    let mut held = vec![half[node]];
                    match graph {
                        Some(graph) => held.extend(graph[node].iter().map(|&j| of(j))),
                        None => {
                            let others = (0..self.setup.nodes).filter(|&j| j != node);
                            held.extend(others.map(of));
                        }
                    }
                    rule.combine(0, &held, &mut self.next[node])?;
                }
            }
        }
        for (node, next) in self.nodes.iter_mut().zip(&self.next) {
            node.replace(next);
        }
        Ok(())
    }
}

impl Fault {
    /// The vector per unit of factor that is added to the honest mean of half steps.
    fn direction(self, half: &[&[f64]], mean: &[f64], flipped: &[f64], step: f64) -> Vec<f64> {
        match self {
            Fault::None => vec![0.0; mean.len()],
            Fault::SignFlip => mean.iter().map(|value| -2.0 * value).collect(),
            Fault::LabelFlip => flipped.iter().map(|value| -step * value).collect(),
            Fault::Searched(attack) | Fault::Adaptive(attack) | Fault::Fixed(attack, _) => {
                attack.direction(half, mean)
            }
        }
    }

    /// The same added to the mean of momenta, so that the half step sent is the same: a half step
    /// moved by `v` is a momentum moved by `−v/step`. Given are the means of half steps and momenta.
    fn direction_of_momenta(
        self,
        momenta: &[&[f64]],
        (half, center): (&[f64], &[f64]),
        flipped: &[f64],
        step: f64,
    ) -> Vec<f64> {
        match self {
            // Against the momenta: the half steps' negation is caught by its size alone.
            Fault::SignFlip => center.iter().map(|value| -2.0 * value).collect(),
            Fault::Searched(Attack::Alie)
            | Fault::Adaptive(Attack::Alie)
            | Fault::Fixed(Attack::Alie, _) => Attack::Alie.direction(momenta, center),
            _ => {
                let mut direction = self.direction(&[], half, flipped, step);
                direction.iter_mut().for_each(|value| *value /= -step);
                direction
            }
        }
    }

    fn factor(self, score: impl FnMut(f64) -> f64) -> f64 {
        match self {
            Fault::None | Fault::SignFlip | Fault::LabelFlip => 1.0,
            Fault::Fixed(_, factor) => factor,
            Fault::Searched(_) | Fault::Adaptive(_) => attack::search(16, score).0,
        }
    }
}

fn moved(center: &[f64], direction: &[f64], factor: f64) -> Vec<f64> {
    center.iter().zip(direction).map(|(c, d)| c + factor * d).collect()
}

/// The honest others whose half steps a node holds when the round closes.
fn heard(rng: &mut ChaCha8Rng, node: usize, honest: usize, setup: Setup) -> Vec<usize> {
    let mut others: Vec<usize> = (0..honest).filter(|&j| j != node).collect();
    let count = setup.nodes - 2 * setup.faulty - 1;
    for place in 0..count {
        let drawn = place + below(rng, others.len() - place);
        others.swap(place, drawn);
    }
    others.truncate(count);
    others.sort_unstable();
    others
}

/// MoNNA's mixing at one node as weights of the honest vectors and, last, of the faulty one.
fn nearest_weights(
    gram: &Gram,
    factor: f64,
    node: usize,
    heard: &[usize],
    setup: Setup,
) -> Vec<(usize, f64)> {
    let keep = setup.nodes - 2 * setup.faulty;
    let faulty = heard.len() + setup.faulty + setup.faulty + 1;
    debug_assert_eq!(faulty, setup.nodes);
    // List order is the order of ties: the own, then by origin, the faulty last.
    let mut list = vec![(0.0, node)];
    list.extend(heard.iter().map(|&j| (gram.between(node, j), j)));
    let honest = setup.nodes - setup.faulty;
    list.extend(std::iter::repeat_n((gram.to_faulty(node, factor), honest), setup.faulty));
    list.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut weights: Vec<(usize, f64)> = Vec::with_capacity(keep);
    for &(_, index) in &list[..keep] {
        match weights.iter_mut().find(|(known, _)| *known == index) {
            Some((_, weight)) => *weight += 1.0 / keep as f64,
            None => weights.push((index, 1.0 / keep as f64)),
        }
    }
    weights
}

/// Inner products of all n momenta, the f copies of the faulty one last; the Gram matrix is of
/// momenta around zero.
fn with_copies(gram: &Gram, factor: f64, setup: Setup) -> Vec<Vec<f64>> {
    let honest = setup.nodes - setup.faulty;
    // The faulty one is the mean plus the factor times the direction.
    let faulty = |i: usize| {
        let mean = (0..honest).map(|j| gram.product(i, j)).sum::<f64>() / honest as f64;
        mean + factor * gram.product(i, honest)
    };
    let mut products = vec![vec![0.0; setup.nodes]; setup.nodes];
    let to_direction = faulty(honest);
    let to: Vec<f64> = (0..honest).map(faulty).collect();
    let own = to.iter().sum::<f64>() / honest as f64 + factor * to_direction;
    for i in 0..setup.nodes {
        for j in 0..setup.nodes {
            products[i][j] = match (i < honest, j < honest) {
                (true, true) => gram.product(i, j),
                (true, false) => to[i],
                (false, true) => to[j],
                (false, false) => own,
            };
        }
    }
    products
}

/// The squared distance between the selected momentum and the honest mean.
fn shift(gram: &Gram, factor: f64, weights: &[f64]) -> f64 {
    let honest = gram.honest();
    let faulty: f64 = weights[honest..].iter().sum();
    // As coefficients of honest momenta and direction, less the mean's.
    let mut coefficients: Vec<f64> =
        weights[..honest].iter().map(|weight| weight + (faulty - 1.0) / honest as f64).collect();
    coefficients.push(faulty * factor);
    let row = |i: usize| -> f64 {
        (0..=honest).map(|j| coefficients[i] * coefficients[j] * gram.product(i, j)).sum()
    };
    (0..=honest).map(row).sum()
}

/// Selection of momenta by their inner products: the weight of each, with its clipping; the weights
/// before clipping sum to one.
///
/// 1. *gate*: a momentum longer than [`CLIP`] medians is shortened to that; one that is off by
///    [`OUT`] times is out;
/// 2. *trust*: the cosine with the sum of the others; of the `f` lowest those are out that lie
///    [`DEVIATIONS`] robust deviations below the median;
/// 3. *nearest-neighbor mixing*: how often each is among the `n − f` nearest of a remaining one.
pub fn selected(products: &[Vec<f64>], setup: Setup) -> Vec<f64> {
    let n = products.len();
    let lengths: Vec<f64> = (0..n).map(|i| products[i][i].max(0.0).sqrt()).collect();
    let typical = median(lengths.iter().copied());
    if typical == 0.0 {
        return vec![1.0 / n as f64; n];
    }
    let scale: Vec<f64> =
        lengths.iter().map(|&length| (CLIP * typical / length.max(typical)).min(1.0)).collect();
    let g = |i: usize, j: usize| scale[i] * scale[j] * products[i][j];
    let gated = |&i: &usize| lengths[i] <= OUT * typical && lengths[i] >= typical / OUT;
    let mut held: Vec<usize> = (0..n).filter(gated).collect();

    let to_all: Vec<f64> =
        held.iter().map(|&i| held.iter().map(|&j| g(i, j)).sum::<f64>()).collect();
    let total: f64 = to_all.iter().sum();
    let mut trust: Vec<(f64, usize)> = held
        .iter()
        .zip(&to_all)
        .map(|(&i, &all)| {
            let own = g(i, i);
            let others = (total - 2.0 * all + own).max(f64::MIN_POSITIVE).sqrt();
            ((all - own) / (own.sqrt() * others), i)
        })
        .collect();
    trust.sort_by(|a, b| a.0.total_cmp(&b.0));
    let center = median(trust.iter().map(|t| t.0));
    let spread = 1.4826 * median(trust.iter().map(|t| (t.0 - center).abs()));
    let floor = center - DEVIATIONS * spread;
    let distrusted: Vec<usize> =
        trust.iter().take(setup.faulty).filter(|t| t.0 < floor).map(|t| t.1).collect();
    held.retain(|i| !distrusted.contains(i));

    let keep = (n - setup.faulty).min(held.len());
    let mut weights = vec![0.0; n];
    for &pivot in &held {
        let mut list: Vec<(f64, usize)> =
            held.iter().map(|&j| (g(pivot, pivot) - 2.0 * g(pivot, j) + g(j, j), j)).collect();
        list.sort_by(|a, b| a.0.total_cmp(&b.0));
        let share = 1.0 / (keep * held.len()) as f64;
        list[..keep].iter().for_each(|&(_, j)| weights[j] += share);
    }
    weights.iter_mut().zip(&scale).for_each(|(weight, scale)| *weight *= scale);
    weights
}

/// A momentum counts at most this many median lengths.
const CLIP: f64 = 2.0;
/// One that is this many times longer or shorter than the median is out.
const OUT: f64 = 4.0;
/// Robust deviations below the median trust at which a momentum is out. A guess: honest nodes with
/// labels of their own reach two.
const DEVIATIONS: f64 = 3.0;

/// The upper median; NaN never occurs, as gradients are finite.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU seconds of this thread where the system tells (Linux), else zero: wall time on a busy machine
/// would measure the neighbors.
fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) * 1e-9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::normal;
    use rumormill::vector::monna::Received;

    const SETUP: Setup =
        Setup { nodes: 11, faulty: 2, batch: 1, beta: 0.5, step: 1.0, span: 1, hidden: &[] };

    fn vectors(seed: u64, count: usize, dim: usize) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| (0..dim).map(|_| 1.0 + normal(&mut rng)).collect()).collect()
    }

    #[test]
    fn mixing_by_the_gram_matrix_is_that_of_the_node() {
        for seed in 0..20 {
            let half = vectors(seed, 9, 700);
            let half: Vec<&[f64]> = half.iter().map(Vec::as_slice).collect();
            let mean = attack::mean(&half);
            let direction = Attack::Alie.direction(&half, &mean);
            let gram = Gram::new(&half, &direction, &mean);
            let faulty = moved(&mean, &direction, 0.7);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let heard = heard(&mut rng, 4, 9, SETUP);
            let weights = nearest_weights(&gram, 0.7, 4, &heard, SETUP);
            let mut list = half.clone();
            list.push(&faulty);
            let mut fast = [vec![0.0; 700]];
            combine(&list, &[weights], &mut fast);

            let config = Config { nodes: 11, faulty: 2, beta: 0.5 };
            let mut node = Node::new(config, Origin(4), half[4].to_vec()).unwrap();
            let honest = heard.iter().map(|&j| (j, half[j]));
            let received: Vec<Received<'_>> = honest
                .chain([(9, &faulty[..]), (10, &faulty[..])])
                .map(|(j, vector)| Received { origin: Origin(j as u16), vector })
                .collect();
            node.mix(&received).unwrap();
            let off = distance(node.x(), &fast[0]);
            assert!(off < 1e-12, "seed {seed}: {off}");
        }
    }

    #[test]
    fn products_with_copies_are_those_of_the_vectors() {
        let momenta = vectors(3, 9, 40);
        let momenta: Vec<&[f64]> = momenta.iter().map(Vec::as_slice).collect();
        let center = attack::mean(&momenta);
        let direction = Attack::Alie.direction(&momenta, &center);
        let gram = Gram::new(&momenta, &direction, &[0.0; 40]);
        let faulty = moved(&center, &direction, -1.3);
        let mut all = momenta.clone();
        all.extend([&faulty[..], &faulty[..]]);
        let products = with_copies(&gram, -1.3, SETUP);
        for (i, row) in products.iter().enumerate() {
            for (j, product) in row.iter().enumerate() {
                let exact: f64 = all[i].iter().zip(all[j]).map(|(a, b)| a * b).sum();
                assert!((product - exact).abs() < 1e-10, "{i} {j}");
            }
        }
        let weights = selected(&products, SETUP);
        let mut mean = [vec![0.0; 40]];
        combine(&all, &[weights.iter().copied().enumerate().collect()], &mut mean);
        let exact = distance(&mean[0], &center).powi(2);
        assert!((shift(&gram, -1.3, &weights) - exact).abs() < 1e-10);
    }

    #[test]
    fn selection_gives_no_weight_to_negated_and_to_huge_momenta() {
        let momenta = vectors(5, 9, 200);
        for factor in [-1.0, 50.0] {
            let mut all = momenta.clone();
            let faulty: Vec<f64> = momenta[0].iter().map(|value| factor * value).collect();
            all.extend([faulty.clone(), faulty]);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum();
            let products: Vec<Vec<f64>> =
                all.iter().map(|a| all.iter().map(|b| dot(a, b)).collect()).collect();
            let weights = selected(&products, SETUP);
            assert_eq!(weights[9..], [0.0, 0.0], "{factor}");
            assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
}
