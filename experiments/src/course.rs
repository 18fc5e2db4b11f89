//! How a network does over time, looked at now and then: for problems on which a look costs more
//! than an event.

use crate::event::{Clocks, Event, Network};

/// How far a network was at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Units of model time, or rounds.
    pub time: f64,
    /// Gradients of all nodes.
    pub gradients: u64,
    /// Exchanges on all edges.
    pub edges: u64,
    /// What is to become small, at the mean of the nodes.
    pub mean: f64,
    /// The same at the worst node, each as of its last event.
    pub worst: f64,
}

/// When a course is looked at and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The course ends when the worst node is here.
    pub goal: f64,
    /// Or after this many units of time.
    pub time_max: f64,
    /// Time between two looks.
    pub every: f64,
    /// Later looks are rarer: the time between two is at least this share of the time so far.
    pub share: f64,
}

/// A course.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Course {
    /// The looks taken, in order.
    pub points: Vec<Point>,
}

impl Course {
    /// The first look at which the worst node, or the mean, was at the goal.
    pub fn reached(&self, goal: f64, of: impl Fn(&Point) -> f64) -> Option<&Point> {
        self.points.iter().find(|point| of(point) <= goal)
    }

    /// The last look.
    ///
    /// # Panics
    /// If there is none.
    pub fn last(&self) -> &Point {
        self.points.last().expect("a course has a look at the start")
    }

    /// The smallest value of the worst node.
    pub fn best(&self) -> f64 {
        self.points.iter().map(|point| point.worst).fold(f64::INFINITY, f64::min)
    }

    /// Looks at the nodes; whether the course goes on.
    pub fn look<'a>(
        &mut self,
        plan: &Plan,
        (time, gradients, edges): (f64, u64, u64),
        nodes: impl Iterator<Item = &'a [f64]> + Clone,
        loss: &mut dyn FnMut(&[f64]) -> f64,
    ) -> bool {
        let worst = nodes.clone().map(&mut *loss).fold(f64::NEG_INFINITY, f64::max);
        let mut center: Vec<f64> = Vec::new();
        let mut count = 0.0;
        for node in nodes {
            center.resize(node.len(), 0.0);
            center.iter_mut().zip(node).for_each(|(sum, value)| *sum += value);
            count += 1.0;
        }
        center.iter_mut().for_each(|sum| *sum /= count);
        let mean = loss(&center);
        self.points.push(Point { time, gradients, edges, mean, worst });
        // `fold` with `max` drops NaN: the mean shows it.
        worst > plan.goal && mean.is_finite() && worst.is_finite() && time < plan.time_max
    }
}

impl Plan {
    /// When to look next.
    pub fn next(&self, time: f64) -> f64 {
        time + self.every.max(self.share * time)
    }
}

/// Drives a network of `nodes` nodes by its clocks along a plan; `loss` is what is to become small.
pub fn follow(
    network: &mut impl Network,
    nodes: usize,
    clocks: &mut Clocks,
    plan: &Plan,
    loss: &mut dyn FnMut(&[f64]) -> f64,
) -> Course {
    let mut course = Course::default();
    let (mut gradients, mut edges) = (0, 0);
    let mut due = 0.0;
    loop {
        let (time, event) = clocks.next_event();
        let now = time.as_secs_f64();
        if now >= due {
            let xs = (0..nodes).map(|node| network.x(node));
            if !course.look(plan, (now, gradients, edges), xs, loss) {
                return course;
            }
            due = plan.next(now);
        }
        match event {
            Event::Gradient(node) => {
                network.on_gradient(time, node);
                gradients += 1;
            }
            Event::Edge(edge) => {
                network.on_edge(time, edge);
                edges += 1;
            }
        }
    }
}
