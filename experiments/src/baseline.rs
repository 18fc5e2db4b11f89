//! Baselines that run in rounds, beside the asynchronous algorithms.

use anyhow::Result;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rumormill::id::{Origin, RunId};
use rumormill::objective::{self, Scratch};
use rumormill::spsa::projected_gradient;
use rumormill::vector::monna::{Config, Node, Received};
use rumormill::vector::onebyte::{Stream, direction};

use crate::course::{Course, Plan};
use crate::problem::{Objective, below};

/// The minimizer of the mean of all `f_i` by Nesterov's method for strongly convex functions, until
/// the gradient is at most `precision` or `steps` are used up.
pub fn minimizer(
    problem: &impl Objective,
    (mu, smoothness): (f64, f64),
    precision: f64,
    steps: usize,
) -> Vec<f64> {
    let (nodes, dim) = (problem.nodes(), problem.dim());
    let root = (mu / smoothness).sqrt();
    let momentum = (1.0 - root) / (1.0 + root);
    let (mut x, mut ahead) = (vec![0.0; dim], vec![0.0; dim]);
    let (mut gradient, mut part) = (vec![0.0; dim], vec![0.0; dim]);
    for _ in 0..steps {
        gradient.fill(0.0);
        for node in 0..nodes {
            problem.gradient(node, &ahead, &mut part);
            gradient.iter_mut().zip(&part).for_each(|(sum, g)| *sum += g / nodes as f64);
        }
        for ((x, ahead), g) in x.iter_mut().zip(&mut ahead).zip(&gradient) {
            let next = *ahead - g / smoothness;
            *ahead = next + momentum * (next - *x);
            *x = next;
        }
        if gradient.iter().map(|g| g * g).sum::<f64>().sqrt() <= precision {
            break;
        }
    }
    x
}

/// Synchronous D-SGD: in a round every node averages with all neighbors by Metropolis weights
/// `1/(1 + max degree of the two)` and steps along the gradient at its own parameters before that.
///
/// ```text
/// x_i ← Σ_j W_ij x_j − step · ∇f_i(x_i)
/// ```
///
/// A round is one unit of time, one gradient a node and one exchange an edge.
pub fn synchronous(
    problem: &impl Objective,
    edges: &[(usize, usize)],
    step: &dyn Fn(f64) -> f64,
    start: &[Vec<f64>],
    plan: &Plan,
    loss: &mut dyn FnMut(&[f64]) -> f64,
) -> Course {
    let mut degree = vec![0u32; start.len()];
    for &(i, j) in edges {
        degree[i] += 1;
        degree[j] += 1;
    }
    let mut x = start.to_vec();
    let mut next = x.clone();
    let mut gradient = vec![0.0; problem.dim()];
    let mut course = Course::default();
    let (mut time, mut due) = (0.0, 0.0);
    let (mut gradients, mut exchanges) = (0, 0);
    loop {
        if time >= due {
            let nodes = x.iter().map(Vec::as_slice);
            if !course.look(plan, (time, gradients, exchanges), nodes, loss) {
                return course;
            }
            due = plan.next(time);
        }
        for (node, (next, x)) in next.iter_mut().zip(&x).enumerate() {
            problem.gradient(node, x, &mut gradient);
            for ((next, x), g) in next.iter_mut().zip(x).zip(&gradient) {
                *next = x - step(time) * g;
            }
        }
        for &(i, j) in edges {
            let weight = 1.0 / f64::from(1 + degree[i].max(degree[j]));
            let [at_i, at_j] = next.get_disjoint_mut([i, j]).expect("an edge joins two nodes");
            for (((at_i, at_j), x_i), x_j) in at_i.iter_mut().zip(at_j).zip(&x[i]).zip(&x[j]) {
                *at_i += weight * (x_j - x_i);
                *at_j += weight * (x_i - x_j);
            }
        }
        std::mem::swap(&mut x, &mut next);
        time += 1.0;
        gradients += x.len() as u64;
        exchanges += edges.len() as u64;
    }
}

/// MeZO: one node with all rows, SPSA with exact scalars.
///
/// ```text
/// x ← x − step · (L(x + εu) − L(x − εu))/2ε · u,   u of signs, ε = 2⁻⁸
/// ```
///
/// Over its `probes` the plan's time passes from 0 to the end; what are gradients elsewhere are
/// probes here.
#[derive(Clone, Copy, Debug)]
pub struct Mezo {
    /// The step size.
    pub step: f64,
    /// How many probes are made.
    pub probes: u64,
    /// Rows of a probe.
    pub batch: usize,
    /// Draws rows and directions.
    pub seed: u64,
}

/// ε = 2^this, as of the daemon.
const EPSILON_LOG2: i32 = -8;

impl Mezo {
    /// Runs all probes, unless the plan ends before.
    pub fn run(
        self,
        model: &dyn objective::Objective,
        rows: &[u32],
        start: &[f64],
        plan: &Plan,
        loss: &mut dyn FnMut(&[f64]) -> f64,
    ) -> Course {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let (run, stream) = (RunId(key), Stream::Gradient(Origin(0)));
        let epsilon = f64::from(EPSILON_LOG2).exp2();
        let (mut x, mut u) = (start.to_vec(), vec![0.0; start.len()]);
        let mut scratch = Scratch::default();
        let mut course = Course::default();
        let mut due = 0.0;
        for probe in 0.. {
            let time = plan.time_max * probe as f64 / self.probes as f64;
            if time >= due {
                if !course.look(plan, (time, probe, 0), std::iter::once(&x[..]), loss) {
                    break;
                }
                due = plan.next(time).min(plan.time_max);
            }
            direction(run, stream, probe, &mut u);
            let batch: Vec<u32> =
                (0..self.batch).map(|_| rows[below(&mut rng, rows.len())]).collect();
            let at = |sign: f64| -> Vec<f32> {
                x.iter().zip(&u).map(|(x, u)| (x + sign * epsilon * u) as f32).collect()
            };
            let (plus, minus) = model.loss_pair(&at(1.0), &at(-1.0), &batch, &mut scratch);
            let scalar = projected_gradient(plus, minus, EPSILON_LOG2);
            x.iter_mut().zip(&u).for_each(|(x, u)| *x -= self.step * scalar * u);
        }
        course
    }
}

/// MoNNA without faults but ready for some: the state machine of [`rumormill::vector::monna`] on a
/// complete graph, every round closed on random others. An exchange is one of a pair of nodes.
#[derive(Clone, Copy, Debug)]
pub struct Monna {
    /// Faulty nodes tolerated.
    pub faulty: usize,
    /// Momentum factor.
    pub beta: f64,
    /// Draws whose half steps arrive first.
    pub seed: u64,
}

impl Monna {
    /// Runs rounds until the plan ends.
    ///
    /// # Errors
    /// When too many are to be tolerated, or training diverges.
    pub fn run(
        self,
        problem: &impl Objective,
        step: f64,
        start: &[Vec<f64>],
        plan: &Plan,
        loss: &mut dyn FnMut(&[f64]) -> f64,
    ) -> Result<Course> {
        let Monna { faulty, beta, seed } = self;
        let count = start.len();
        let config = Config { nodes: count, faulty, beta };
        let name = |node: usize| Origin(u16::try_from(node).expect("a network is small"));
        let nodes = start.iter().enumerate().map(|(k, x)| Node::new(config, name(k), x.clone()));
        let mut nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut gradient = vec![0.0; problem.dim()];
        let mut course = Course::default();
        let mut due = 0.0;
        for round in 0u64.. {
            let time = round as f64;
            if time >= due {
                let done = (time, round * count as u64, round * (count * (count - 1) / 2) as u64);
                if !course.look(plan, done, nodes.iter().map(Node::x), loss) {
                    break;
                }
                due = plan.next(time);
            }
            for (k, node) in nodes.iter_mut().enumerate() {
                problem.gradient(k, node.x(), &mut gradient);
                node.on_gradient(&gradient, step)?;
            }
            let half: Vec<Vec<f64>> = nodes.iter().map(|node| node.x().to_vec()).collect();
            for (k, node) in nodes.iter_mut().enumerate() {
                let mut others: Vec<usize> = (0..count).filter(|&j| j != k).collect();
                while others.len() > count - faulty - 1 {
                    others.swap_remove(below(&mut rng, others.len()));
                }
                let received =
                    others.iter().map(|&j| Received { origin: name(j), vector: &half[j] });
                node.mix(&received.collect::<Vec<_>>())?;
            }
        }
        Ok(course)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::LeastSquares;

    #[test]
    fn nesterov_finds_the_minimizer_of_least_squares() {
        let (problem, _) = LeastSquares::generate(4, 5, 3, 20);
        let x = minimizer(&problem, problem.curvature(), 1e-11, 10_000);
        let exact = problem.minimizer().unwrap();
        assert!(x.iter().zip(&exact).all(|(x, o)| (x - o).abs() < 1e-10), "{x:?} {exact:?}");
    }

    #[test]
    fn a_round_on_two_nodes_by_hand() {
        let rows = vec![vec![vec![1.0]]; 2];
        let problem = LeastSquares::new(&rows, &[vec![0.0], vec![4.0]]);
        let plan = Plan { goal: 0.0, time_max: 1.0, every: 1.0, share: 0.0 };
        let start = [vec![1.0], vec![3.0]];
        let mut seen = Vec::new();
        let mut loss = |x: &[f64]| {
            seen.push(x[0]);
            1.0
        };
        synchronous(&problem, &[(0, 1)], &|_| 0.25, &start, &plan, &mut loss);
        // The nodes meet at 2 and step by −0.25·2·(1 − 0) and −0.25·2·(3 − 4).
        assert_eq!(seen, [1.0, 3.0, 2.0, 1.5, 2.5, 2.0]);
    }
}
