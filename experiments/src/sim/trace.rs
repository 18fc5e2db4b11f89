//! The trace of a run: what was seen at regular times, as CSV.

use std::fmt::Write as _;

/// The network at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// Model seconds.
    pub time_s: f64,
    /// Probes, or gradients, made by all nodes so far.
    pub work: u64,
    /// Bytes sent so far by all nodes.
    pub bytes: u64,
    /// Mean test accuracy of the honest nodes that are up; these are meant below, too.
    pub accuracy: f64,
    /// The worst accuracy.
    pub accuracy_min: f64,
    /// Mean test loss.
    pub loss: f64,
    /// The worst loss.
    pub loss_max: f64,
    /// The largest distance of a node's parameters from their mean.
    pub consensus: f64,
    /// Rounds that are certified (or, in rounds, done) at the slowest node; algorithms without
    /// rounds have none.
    pub rounds: Option<u64>,
    /// How many nodes that is.
    pub up: usize,
}

/// The columns after `seed`; the second is `probes` or `gradients`.
pub const COLUMNS: [&str; 10] = [
    "time_s",
    "probes",
    "bytes",
    "accuracy",
    "accuracy_min",
    "loss",
    "loss_max",
    "consensus",
    "rounds",
    "up",
];

impl Sample {
    /// Whether everything measured is finite.
    pub fn is_finite(&self) -> bool {
        [self.accuracy, self.loss, self.loss_max, self.consensus].iter().all(|v| v.is_finite())
    }
}

/// Of every seed its samples, as CSV. What is not finite is an empty cell.
pub fn csv(work: &str, traces: &[(u64, Vec<Sample>)]) -> String {
    let mut columns = COLUMNS;
    columns[1] = work;
    let mut text = format!("seed,{}\n", columns.join(","));
    for (seed, samples) in traces {
        for sample in samples {
            let _ = write!(text, "{seed},{},{},{}", sample.time_s, sample.work, sample.bytes);
            let numbers = [
                sample.accuracy,
                sample.accuracy_min,
                sample.loss,
                sample.loss_max,
                sample.consensus,
            ];
            for number in numbers {
                let _ = match number.is_finite() {
                    true => write!(text, ",{number}"),
                    false => write!(text, ","),
                };
            }
            let rounds = sample.rounds.map_or(String::new(), |rounds| rounds.to_string());
            let _ = writeln!(text, ",{rounds},{}", sample.up);
        }
    }
    text
}

/// Numbers of the honest nodes that are up, gathered one by one.
#[derive(Clone, Debug, Default)]
pub struct Gathering {
    /// Parameters of each.
    params: Vec<Vec<f64>>,
    /// Loss and accuracy of each.
    quality: Vec<(f64, f64)>,
}

impl Gathering {
    /// Another node. `evaluate` is asked for loss and accuracy, unless a node with the very same
    /// parameters was there before.
    pub fn add(&mut self, params: Vec<f64>, evaluate: impl FnOnce(&[f32]) -> (f64, f64)) {
        let same = self.params.iter().position(|other| *other == params);
        let quality = same.map(|at| self.quality[at]).unwrap_or_else(|| {
            let view: Vec<f32> = params.iter().map(|&value| value as f32).collect();
            evaluate(&view)
        });
        self.params.push(params);
        self.quality.push(quality);
    }

    /// Puts together what was gathered; with nobody up, there are no numbers.
    pub fn finish(&self, sample: &mut Sample) {
        let count = self.quality.len() as f64;
        let losses = self.quality.iter().map(|quality| quality.0);
        let accuracies = self.quality.iter().map(|quality| quality.1);
        sample.up = self.quality.len();
        sample.loss = losses.clone().sum::<f64>() / count;
        sample.accuracy = accuracies.clone().sum::<f64>() / count;
        // NaN must not be lost in a maximum.
        sample.loss_max = losses.fold(f64::NEG_INFINITY, |most, loss| match loss > most {
            _ if most.is_nan() || loss.is_nan() => f64::NAN,
            true => loss,
            false => most,
        });
        sample.accuracy_min = accuracies.fold(f64::INFINITY, f64::min);
        sample.consensus = self.consensus();
    }

    fn consensus(&self) -> f64 {
        let Some(first) = self.params.first() else { return f64::NAN };
        if self.params.iter().all(|params| params == first) {
            return 0.0;
        }
        let count = self.params.len() as f64;
        let mut mean = vec![0.0f64; first.len()];
        for params in &self.params {
            mean.iter_mut().zip(params).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= count);
        let distance = |params: &Vec<f64>| {
            let squares = params.iter().zip(&mean).map(|(p, m)| (p - m).powi(2));
            squares.sum::<f64>().sqrt()
        };
        self.params.iter().map(distance).fold(0.0, |most, distance| match distance.is_nan() {
            true => f64::NAN,
            false => f64::max(most, distance),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_nodes_are_evaluated_once_and_distances_are_from_the_mean() {
        let mut gathering = Gathering::default();
        let mut evaluated = 0;
        for params in [vec![0.0, 0.0], vec![0.0, 0.0], vec![3.0, 0.0]] {
            gathering.add(params, |params| {
                evaluated += 1;
                (f64::from(params[0]), 0.5)
            });
        }
        let mut sample = Sample::default();
        gathering.finish(&mut sample);
        assert_eq!(evaluated, 2);
        assert_eq!((sample.loss, sample.loss_max, sample.consensus), (1.0, 3.0, 2.0));
    }

    #[test]
    fn what_is_not_finite_is_an_empty_cell() {
        let sample =
            Sample { time_s: 1.5, loss: f64::NAN, loss_max: f64::INFINITY, ..Default::default() };
        let text = csv("gradients", &[(7, vec![sample])]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("seed,time_s,gradients,bytes,"), "{}", lines[0]);
        assert_eq!(lines[1], "7,1.5,0,0,0,0,,,0,,0");
    }
}
