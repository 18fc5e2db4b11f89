//! Recomputes a file of test vectors and counts what differs.
//!
//! The schema is recognised by its keys: `levels_f32_bits` is LB8, `cases` with `vectors` is
//! nearest-neighbor averaging, `linear_cycle4` is DADAO and A2CiD2. A *case* is one LB8 entry, one
//! pivot of an averaging case, one attack output, one search trace, one event, one checkpoint, one
//! constant, one graph's uniform numbers. Everything else that can be recomputed (tables, χ's of
//! given probabilities, matrices, optima) is checked too, as part of no case: a difference there
//! counts as a mismatch.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use rumormill::lb8;
use rumormill::time::Time;
use rumormill::vector::acid;
use rumormill::vector::dadao::{self, Chi, Constants, Flow, Rates};
use rumormill::vector::monna::{average, distance, nearest};
use rumormill_topology::family::Family;

use crate::attack::{self, Attack};
use crate::graph::Graph;
use crate::problem::{LeastSquares, Logistic, Objective};

/// What a file gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Tally {
    /// Cases in the file.
    pub cases: usize,
    /// How many cases, and checks beside them, differ by more than their tolerance.
    pub mismatches: usize,
    /// The largest absolute difference of any number compared; differing strings, nulls and
    /// numbers that are not finite add nothing.
    pub max_abs_diff: f64,
}

/// Absolute tolerance of states.
const STATE: f64 = 1e-11;
/// Absolute tolerance of averages in `f64` files, and in `f32` files.
const AVERAGE: f64 = 1e-12;
const AVERAGE_F32: f64 = 1e-6;
/// Relative tolerance of χ's, constants and matrices.
const SPECTRAL: f64 = 1e-9;

/// Reads a file and recomputes it.
///
/// # Errors
/// When the file cannot be read, is not JSON, or follows none of the schemas.
pub fn check_file(path: &Path) -> Result<Tally> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{shown} is not JSON"))?;
    check(value).with_context(|| format!("{shown} does not follow its schema"))
}

/// Recomputes the vectors of a parsed file.
///
/// # Errors
/// When the value follows none of the schemas.
pub fn check(value: Value) -> Result<Tally> {
    let mut tally = Tally::default();
    let has = |key: &str| value.get(key).is_some();
    if has("levels_f32_bits") {
        lb8_file(&serde_json::from_value(value)?, &mut tally)?;
    } else if has("linear_cycle4") {
        dadao_file(&serde_json::from_value(value)?, &mut tally)?;
    } else if value["cases"][0].get("vectors").is_some() {
        nna_file(&serde_json::from_value(value)?, &mut tally)?;
    } else {
        bail!("unknown schema: none of levels_f32_bits, linear_cycle4, cases[0].vectors is there");
    }
    Ok(tally)
}

/// The comparison of one case: right until something differs.
struct Check<'a> {
    tally: &'a mut Tally,
    right: bool,
}

impl Tally {
    /// Compares a case.
    fn case(&mut self, compare: impl FnOnce(&mut Check<'_>)) {
        self.cases += 1;
        self.beside(compare);
    }

    /// Compares something that is part of no case.
    fn beside(&mut self, compare: impl FnOnce(&mut Check<'_>)) {
        let mut check = Check { tally: self, right: true };
        compare(&mut check);
        if !check.right {
            self.mismatches += 1;
        }
    }
}

impl Check<'_> {
    fn same<T: PartialEq + ?Sized>(&mut self, ours: &T, theirs: &T) {
        self.right &= ours == theirs;
    }

    fn near(&mut self, ours: f64, theirs: f64, tolerance: f64) {
        let difference = (ours - theirs).abs();
        self.right &= difference <= tolerance;
        if difference.is_finite() {
            self.tally.max_abs_diff = self.tally.max_abs_diff.max(difference);
        }
    }

    fn relative(&mut self, ours: f64, theirs: f64, tolerance: f64) {
        self.near(ours, theirs, tolerance * theirs.abs());
    }

    fn all_near(&mut self, ours: &[f64], theirs: &[f64], tolerance: f64) {
        self.same(&ours.len(), &theirs.len());
        ours.iter().zip(theirs).for_each(|(ours, theirs)| self.near(*ours, *theirs, tolerance));
    }
}

// LB8

#[derive(Deserialize)]
#[allow(non_snake_case, reason = "the file's names")]
struct Lb8File {
    codes_per_octave: i64,
    bias: i64,
    octave_roots_f32_bits: Vec<String>,
    octave_roots: Vec<f64>,
    levels_f32_bits: Vec<String>,
    midpoints_f64_bits: Vec<String>,
    min_nonzero_over_S: f64,
    max_over_S: f64,
    max_relative_error_inside_range: f64,
    cases: Vec<Lb8Case>,
}

#[derive(Deserialize)]
struct Lb8Case {
    #[serde(rename = "in")]
    input: Value,
    in_f64_bits: String,
    e: i32,
    byte: u8,
    byte_hex: String,
    out: Option<f64>,
    out_f32_bits: Option<String>,
}

fn lb8_file(file: &Lb8File, tally: &mut Tally) -> Result<()> {
    let f32_bits = |value: f32| format!("{:08x}", value.to_bits());
    // The eight codes from the unit on.
    let roots: Vec<f32> = (96..104).map(lb8::level).collect();
    tally.beside(|check| {
        check.same(&(8, 96), &(file.codes_per_octave, file.bias));
        check.same(&roots.iter().copied().map(f32_bits).collect(), &file.octave_roots_f32_bits);
        let roots: Vec<f64> = roots.iter().copied().map(f64::from).collect();
        check.all_near(&roots, &file.octave_roots, 0.0);
    });
    tally.beside(|check| {
        check.same(&(0..128).map(lb8::level).map(f32_bits).collect(), &file.levels_f32_bits);
        let midpoint = |m: u8| format!("{:016x}", lb8::midpoint(m).to_bits());
        check.same(&(0..127).map(midpoint).collect(), &file.midpoints_f64_bits);
        check.near(f64::from(lb8::level(1)), file.min_nonzero_over_S, 0.0);
        check.near(f64::from(lb8::level(127)), file.max_over_S, 0.0);
        // The worst input lies at a midpoint: half a step above the level below it.
        let error = |m: u8| (lb8::midpoint(m) - f64::from(lb8::level(m))) / lb8::midpoint(m);
        let worst = (1..127).map(error).fold(0.0, f64::max);
        check.relative(worst, file.max_relative_error_inside_range, 1e-3);
    });
    for case in &file.cases {
        let bits = u64::from_str_radix(&case.in_f64_bits, 16)
            .with_context(|| format!("in_f64_bits {:?} is not hexadecimal", case.in_f64_bits))?;
        let input = f64::from_bits(bits);
        let byte = lb8::encode(input, case.e);
        let out = lb8::decode(byte, case.e);
        tally.case(|check| {
            match &case.input {
                Value::Number(number) => {
                    check.near(input, number.as_f64().unwrap_or(f64::NAN), 0.0);
                }
                other => check.right &= other.is_string() && !input.is_finite(),
            }
            check.near(f64::from(byte), f64::from(case.byte), 0.0);
            check.same(&format!("{byte:02x}"), &case.byte_hex);
            check.same(&out.map(f32_bits), &case.out_f32_bits);
            match (out, case.out) {
                (Some(ours), Some(theirs)) => check.near(f64::from(ours), theirs, 0.0),
                (ours, theirs) => check.right &= ours.is_none() && theirs.is_none(),
            }
        });
    }
    Ok(())
}

// Nearest-neighbor averaging

#[derive(Deserialize)]
struct NnaFile {
    cases: Vec<NnaCase>,
    attacks_on_honest5: Option<NnaAttacks>,
    factor_search_trace: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct NnaCase {
    name: String,
    dtype: String,
    m: usize,
    f: usize,
    vectors: Vec<Vec<f64>>,
    nodes: Vec<NnaPivot>,
}

#[derive(Deserialize)]
struct NnaPivot {
    pivot: usize,
    kept_count: usize,
    selected_in_order: Vec<usize>,
    distances: Vec<f64>,
    mixed: Vec<f64>,
    mixed_iter2: Vec<f64>,
}

#[derive(Deserialize)]
struct NnaAttacks {
    honest_mean: Vec<f64>,
    honest_std_unbiased: Vec<f64>,
    searched_factor_little: f64,
    searched_factor_empire: f64,
    outputs: BTreeMap<String, Vec<f64>>,
}

fn nna_file(file: &NnaFile, tally: &mut Tally) -> Result<()> {
    for case in &file.cases {
        let list: Vec<&[f64]> = case.vectors.iter().map(Vec::as_slice).collect();
        let equal = list.iter().all(|vector| vector.len() == list[0].len());
        if list.len() != case.m || case.f >= case.m || !equal {
            bail!("case {}: m, f and vectors do not fit", case.name);
        }
        if list.iter().any(|vector| vector.iter().any(|value| !value.is_finite())) {
            bail!("case {}: a vector is not finite", case.name);
        }
        let tolerance = if case.dtype == "float32" { AVERAGE_F32 } else { AVERAGE };
        let dim = list[0].len();
        let mix = |pivot: &[f64]| {
            let kept = nearest(pivot, &list, case.m - case.f);
            let mut mixed = vec![0.0; dim];
            average(kept.iter().map(|neighbor| list[neighbor.index]), &mut mixed);
            (kept.iter().map(|neighbor| neighbor.index).collect::<Vec<_>>(), mixed)
        };
        for node in &case.nodes {
            let pivot = *list
                .get(node.pivot)
                .with_context(|| format!("case {}: no vector {}", case.name, node.pivot))?;
            let (selected, mixed) = mix(pivot);
            let distances: Vec<f64> = list.iter().map(|vector| distance(pivot, vector)).collect();
            tally.case(|check| {
                check.same(&selected.len(), &node.kept_count);
                check.same(&selected, &node.selected_in_order);
                check.all_near(&distances, &node.distances, tolerance);
                check.all_near(&mix(&mixed).1, &node.mixed_iter2, tolerance);
                check.all_near(&mixed, &node.mixed, tolerance);
            });
        }
    }
    if let Some(attacks) = &file.attacks_on_honest5 {
        let base = file.cases.iter().find(|case| case.name == "honest5_byz2_far");
        let base = base.context("attacks_on_honest5 needs the case honest5_byz2_far")?;
        let honest = base.vectors.get(..5).context("honest5_byz2_far has 5 honest vectors")?;
        nna_attacks(attacks, &honest.iter().map(Vec::as_slice).collect::<Vec<_>>(), tally)?;
    }
    for (name, probed) in file.factor_search_trace.iter().flatten() {
        let score: fn(f64) -> f64 = match name.as_str() {
            "note" => continue,
            "concave" => |x| -(x - 2.3) * (x - 2.3),
            "unbounded" => |x| x,
            other => bail!("unknown factor search {other:?}"),
        };
        let theirs: Vec<f64> = serde_json::from_value(probed.clone())?;
        let (_, ours) = attack::search(theirs.len(), score);
        tally.case(|check| check.all_near(&ours, &theirs, AVERAGE));
    }
    Ok(())
}

fn nna_attacks(attacks: &NnaAttacks, honest: &[&[f64]], tally: &mut Tally) -> Result<()> {
    const FAULTY: usize = 2;
    let mean = attack::mean(honest);
    let little = Attack::Alie.search(honest, FAULTY, 16);
    let empire = Attack::Foe.search(honest, FAULTY, 16);
    tally.beside(|check| {
        check.all_near(&mean, &attacks.honest_mean, AVERAGE);
        let deviation = attack::deviation(honest, &mean);
        check.all_near(&deviation, &attacks.honest_std_unbiased, AVERAGE);
        // The file's factors carry about single precision (they are 3e-8 off the factors its own outputs
        // imply), so they are compared as such and stay out of the largest difference; the outputs
        // below pin the factors to 1e-12.
        let pairs =
            [(little, attacks.searched_factor_little), (empire, attacks.searched_factor_empire)];
        check.right &= pairs.iter().all(|(ours, theirs)| (ours - theirs).abs() <= AVERAGE_F32);
    });
    let times = |factor: f64| mean.iter().map(|value| factor * value).collect::<Vec<f64>>();
    for (name, theirs) in &attacks.outputs {
        let ours = match name.as_str() {
            "little_factor_1.5" => Attack::Alie.vector(honest, 1.5),
            "little_factor_1.5_negative" => Attack::Alie.vector(honest, -1.5),
            "empire_factor_1.1" => Attack::Foe.vector(honest, 1.1),
            "signflipping" => times(-1.0),
            "scaledSF" => times(-(honest.len() as f64) / FAULTY as f64),
            "little_search16_vs_cva" => Attack::Alie.vector(honest, little),
            "empire_search16_vs_cva" => Attack::Foe.vector(honest, empire),
            other => bail!("unknown attack {other:?}"),
        };
        tally.case(|check| check.all_near(&ours, theirs, AVERAGE));
    }
    Ok(())
}

// DADAO and A2CiD2

#[derive(Deserialize)]
struct DadaoFile {
    linear_cycle4: DadaoRun,
    linear_cycle4_long: DadaoLong,
    logistic_path4: DadaoRun,
    acid_cycle4: AcidRun,
    acid_constants: BTreeMap<String, BTreeMap<String, f64>>,
    graphs: Vec<GraphEntry>,
}

#[derive(Deserialize)]
struct DadaoRun {
    problem: ProblemEntry,
    graph: BTreeMap<String, f64>,
    constants: BTreeMap<String, f64>,
    ode_matrix: Vec<Vec<f64>>,
    expm_dt_0_375: Option<Vec<Vec<f64>>>,
    x0: Vec<Vec<f64>>,
    events: Vec<(f64, String, usize, i64)>,
    after_event_f64: Vec<BTreeMap<String, Vec<Vec<f64>>>>,
}

#[derive(Deserialize)]
#[allow(non_snake_case, reason = "the file's names")]
struct ProblemEntry {
    n: usize,
    dim: usize,
    m: usize,
    A: Vec<Vec<Vec<f64>>>,
    b: Vec<Vec<f64>>,
    mu: f64,
    L: f64,
    x_star: Option<Vec<f64>>,
    edges: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct DadaoLong {
    checkpoints: Vec<Checkpoint>,
}

#[derive(Deserialize)]
struct Checkpoint {
    events_done: usize,
    mean_dist2_to_x_star: f64,
    x: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct AcidRun {
    chi1: f64,
    chi2: f64,
    eta: f64,
    alpha: f64,
    alpha_tilde: f64,
    lr: f64,
    x0: Vec<Vec<f64>>,
    after_event: Vec<BTreeMap<String, Vec<Vec<f64>>>>,
}

#[derive(Deserialize)]
struct GraphEntry {
    graph: String,
    n: usize,
    edges: Vec<(usize, usize)>,
    uniform: Numbers,
    sdp: Option<Numbers>,
    eg: Option<Numbers>,
    lambda2_only: Option<Numbers>,
}

#[derive(Deserialize)]
struct Numbers {
    p: Option<Vec<f64>>,
    chi1: f64,
    chi2: f64,
    rate: f64,
}

fn dadao_file(file: &DadaoFile, tally: &mut Tally) -> Result<()> {
    let linear = &file.linear_cycle4;
    let squares = least_squares(&linear.problem).context("linear_cycle4")?;
    let minimizer = squares.minimizer();
    tally.beside(|check| match (&minimizer, &linear.problem.x_star) {
        (Some(ours), Some(theirs)) => check.all_near(ours, theirs, STATE),
        _ => check.right = false,
    });
    dadao_run(linear, &squares, squares.curvature(), tally).context("linear_cycle4")?;
    dadao_long(&file.linear_cycle4_long, linear, &squares, tally)?;

    let logistic = &file.logistic_path4;
    logistic.problem.check().context("logistic_path4")?;
    let problem = Logistic {
        rows: logistic.problem.A.clone(),
        labels: logistic.problem.b.clone(),
        mu: logistic.problem.mu,
    };
    dadao_run(logistic, &problem, problem.curvature(), tally).context("logistic_path4")?;

    acid_run(&file.acid_cycle4, linear, &squares, tally).context("acid_cycle4")?;
    acid_constants(&file.acid_constants, tally)?;
    file.graphs.iter().try_for_each(|entry| graph_entry(entry, tally))
}

impl ProblemEntry {
    fn check(&self) -> Result<()> {
        let rows =
            self.A.iter().all(|a| a.len() == self.m && a.iter().all(|r| r.len() == self.dim));
        let targets = self.b.iter().all(|b| b.len() == self.m);
        let edges = self.edges.iter().all(|&(i, j)| i < self.n && j < self.n && i != j);
        if self.A.len() != self.n || self.b.len() != self.n || !rows || !targets || !edges {
            bail!("n, dim, m, A, b and edges of the problem do not fit");
        }
        if self.n < 2 || self.dim == 0 || self.m == 0 || self.edges.is_empty() {
            bail!("the problem is empty");
        }
        Ok(())
    }
}

fn least_squares(problem: &ProblemEntry) -> Result<LeastSquares> {
    problem.check()?;
    Ok(LeastSquares::new(&problem.A, &problem.b))
}

fn named(constants: &Constants) -> [(&'static str, f64); 12] {
    [
        ("nu", constants.nu),
        ("alpha", constants.alpha),
        ("alpha_tilde", constants.alpha_tilde),
        ("eta", constants.eta),
        ("eta_tilde", constants.eta),
        ("theta", constants.theta),
        ("beta", constants.beta),
        ("beta_tilde", constants.beta_tilde),
        ("delta", constants.delta),
        ("delta_tilde", constants.delta_tilde),
        ("gamma", constants.gamma),
        ("gamma_tilde", constants.gamma_tilde),
    ]
}

/// Compares a table of named numbers with ours, each as a case or as none.
fn numbers(
    theirs: &BTreeMap<String, f64>,
    ours: &[(&str, f64)],
    each_a_case: bool,
    tally: &mut Tally,
) -> Result<()> {
    for (name, theirs) in theirs {
        let Some((_, ours)) = ours.iter().find(|(known, _)| known == name) else {
            bail!("unknown constant {name:?}");
        };
        let compare = |check: &mut Check<'_>| check.relative(*ours, *theirs, SPECTRAL);
        if each_a_case { tally.case(compare) } else { tally.beside(compare) }
    }
    Ok(())
}

/// The constants of a run, from its problem and the χ's of its graph at the least rate.
fn run_constants(run: &DadaoRun) -> Result<(Constants, Vec<(&'static str, f64)>)> {
    let problem = &run.problem;
    let weights = vec![1.0 / problem.edges.len() as f64; problem.edges.len()];
    let graph = Graph { nodes: problem.n, edges: problem.edges.clone(), weights };
    let uniform = graph.chi();
    let rate = uniform.rate_min();
    let rated = uniform.scaled(rate);
    let constants = Constants::new(problem.mu, problem.L, Rates { chi: rated, margin: 1.0 })?;
    let graph_numbers = vec![
        ("chi1_uniform_probability_laplacian", uniform.chi_1),
        ("chi2_uniform_probability_laplacian", uniform.chi_2),
        ("total_edge_rate", rate),
        ("grad_rate_total", problem.n as f64),
        ("chi1_of_rated_laplacian", rated.chi_1),
        ("chi2_of_rated_laplacian", rated.chi_2),
    ];
    Ok((constants, graph_numbers))
}

fn dadao_run(
    run: &DadaoRun,
    problem: &impl Objective,
    (mu, smoothness): (f64, f64),
    tally: &mut Tally,
) -> Result<()> {
    let (constants, graph_numbers) = run_constants(run)?;
    numbers(&run.constants, &named(&constants), true, tally)?;
    numbers(&run.graph, &graph_numbers, false, tally)?;
    tally.beside(|check| {
        check.relative(mu, run.problem.mu, SPECTRAL);
        check.relative(smoothness, run.problem.L, SPECTRAL);
    });
    let flow = Flow::new(&constants);
    let matrices = [
        (Some(&run.ode_matrix), flow.generator()),
        (run.expm_dt_0_375.as_ref(), flow.matrix(0.375)),
    ];
    for (theirs, ours) in matrices {
        let Some(theirs) = theirs else { continue };
        tally.beside(|check| {
            check.same(&theirs.len(), &6);
            ours.iter().zip(theirs).for_each(|(ours, theirs)| check.all_near(ours, theirs, STATE));
        });
    }
    if run.events.len() != run.after_event_f64.len() {
        bail!("{} events but {} states", run.events.len(), run.after_event_f64.len());
    }
    let mut nodes = start(&run.x0, &run.problem, |x| dadao::Node::new(&constants, x))?;
    let mut scratch = vec![0.0; problem.dim()];
    for (event, after) in run.events.iter().zip(&run.after_event_f64) {
        let (time, kind) = parse(event, nodes.len())?;
        dadao_event(&mut nodes, problem, time, kind, &mut scratch);
        let field = |pick: fn(&dadao::State) -> &Vec<f64>| -> Vec<f64> {
            nodes.iter().flat_map(|node| pick(node.state()).iter().copied()).collect()
        };
        let ours = [
            ("x", field(|s| &s.x)),
            ("x_tilde", field(|s| &s.x_tilde)),
            ("y", field(|s| &s.y)),
            ("y_tilde", field(|s| &s.y_tilde)),
            ("z", field(|s| &s.z)),
            ("z_tilde", field(|s| &s.z_tilde)),
        ];
        tally.case(|check| states(check, &ours, after));
    }
    Ok(())
}

/// Compares named state arrays, ours flattened; every array must be there.
fn states(
    check: &mut Check<'_>,
    ours: &[(&str, Vec<f64>)],
    theirs: &BTreeMap<String, Vec<Vec<f64>>>,
) {
    check.same(&ours.len(), &theirs.len());
    for (name, ours) in ours {
        match theirs.get(*name) {
            Some(theirs) => check.all_near(ours, &theirs.concat(), STATE),
            None => check.right = false,
        }
    }
}

fn start<T>(
    x0: &[Vec<f64>],
    problem: &ProblemEntry,
    node: impl Fn(Vec<f64>) -> T,
) -> Result<Vec<T>> {
    if x0.len() != problem.n || x0.iter().any(|x| x.len() != problem.dim) {
        bail!("x0 does not fit the problem");
    }
    Ok(x0.iter().cloned().map(node).collect())
}

#[derive(Clone, Copy)]
enum Kind {
    Gradient(usize),
    Edge(usize, usize),
}

fn parse(event: &(f64, String, usize, i64), nodes: usize) -> Result<(Time, Kind)> {
    let (time, kind, i, j) = event;
    let time = Time::from_secs_f64(*time);
    let other = usize::try_from(*j).ok().filter(|&j| j < nodes && j != *i);
    match (kind.as_str(), other) {
        _ if *i >= nodes => bail!("event of node {i}, but there are {nodes}"),
        ("grad", _) => Ok((time, Kind::Gradient(*i))),
        ("edge", Some(j)) => Ok((time, Kind::Edge(*i, j))),
        (kind, _) => bail!("unknown event {kind:?} of {i} and {j}"),
    }
}

fn dadao_event(
    nodes: &mut [dadao::Node],
    problem: &impl Objective,
    time: Time,
    kind: Kind,
    scratch: &mut [f64],
) {
    match kind {
        Kind::Gradient(i) => {
            nodes[i].on_gradient(time, scratch, |x, out| problem.gradient(i, x, out));
        }
        Kind::Edge(i, j) => {
            let [a, b] = nodes.get_disjoint_mut([i, j]).expect("an edge joins two nodes");
            dadao::exchange(time, a, b, scratch);
        }
    }
}

/// Event k = 0, 1, … at (k + 1)/8: even k a gradient, odd k an edge, each in turn round the cycle.
fn dadao_long(
    long: &DadaoLong,
    run: &DadaoRun,
    problem: &impl Objective,
    tally: &mut Tally,
) -> Result<()> {
    let (constants, _) = run_constants(run)?;
    let mut nodes = start(&run.x0, &run.problem, |x| dadao::Node::new(&constants, x))?;
    let x_star = run.problem.x_star.as_ref().context("linear_cycle4 has no x_star")?;
    let (n, mut scratch) = (nodes.len(), vec![0.0; problem.dim()]);
    let mut done = 0;
    for checkpoint in &long.checkpoints {
        if checkpoint.events_done > 1_000_000 || checkpoint.events_done < done {
            bail!("checkpoints must rise and stay below a million events");
        }
        while done < checkpoint.events_done {
            let turn = (done / 2) % n;
            let kind = if done.is_multiple_of(2) {
                Kind::Gradient(turn)
            } else {
                Kind::Edge(turn, (turn + 1) % n)
            };
            done += 1;
            let time = Time::from_millis(125 * done as u64);
            dadao_event(&mut nodes, problem, time, kind, &mut scratch);
        }
        let x: Vec<f64> = nodes.iter().flat_map(|node| node.state().x.iter().copied()).collect();
        let squared: f64 = nodes.iter().map(|node| distance(&node.state().x, x_star).powi(2)).sum();
        tally.case(|check| {
            check.all_near(&x, &checkpoint.x.concat(), STATE);
            check.near(squared / n as f64, checkpoint.mean_dist2_to_x_star, STATE);
        });
    }
    Ok(())
}

fn acid_run(
    run: &AcidRun,
    linear: &DadaoRun,
    problem: &impl Objective,
    tally: &mut Tally,
) -> Result<()> {
    let chi = neighborly(Family::Ring, linear.problem.n, 1.0);
    let constants = acid::Constants::new(chi)?;
    let pairs = [
        (chi.chi_1, run.chi1),
        (chi.chi_2, run.chi2),
        (constants.eta, run.eta),
        (constants.alpha, run.alpha),
        (constants.alpha_tilde, run.alpha_tilde),
    ];
    for (ours, theirs) in pairs {
        tally.case(|check| check.relative(ours, theirs, SPECTRAL));
    }
    if linear.events.len() != run.after_event.len() {
        bail!("{} events but {} states", linear.events.len(), run.after_event.len());
    }
    let mut nodes = start(&run.x0, &linear.problem, |x| acid::Node::new(constants, x))?;
    let mut scratch = vec![0.0; problem.dim()];
    for (event, after) in linear.events.iter().zip(&run.after_event) {
        match parse(event, nodes.len())? {
            (time, Kind::Gradient(i)) => {
                let gradient = |x: &[f64], out: &mut [f64]| problem.gradient(i, x, out);
                nodes[i].on_gradient(time, run.lr, &mut scratch, gradient);
            }
            (time, Kind::Edge(i, j)) => {
                let [a, b] = nodes.get_disjoint_mut([i, j]).expect("an edge joins two nodes");
                acid::exchange(time, a, b, &mut scratch);
            }
        }
        let x = nodes.iter().flat_map(|node| node.x().iter().copied()).collect();
        let x_tilde = nodes.iter().flat_map(|node| node.x_tilde().iter().copied()).collect();
        tally.case(|check| states(check, &[("x", x), ("x_tilde", x_tilde)], after));
    }
    Ok(())
}

/// χ's of the Laplacian rate·(I − W) with W_ij = 1/degree, of a regular family.
fn neighborly(family: Family, nodes: usize, rate: f64) -> Chi {
    Graph::neighborly(family, nodes, rate).chi()
}

fn acid_constants(
    entries: &BTreeMap<String, BTreeMap<String, f64>>,
    tally: &mut Tally,
) -> Result<()> {
    for (name, theirs) in entries {
        let parts: Vec<&str> = name.split('_').collect();
        let &[family, nodes, rate] = &parts[..] else { bail!("unknown A2CiD2 entry {name:?}") };
        let family = match family {
            "cycle" => Family::Ring,
            "exponential" => Family::Exponential,
            other => bail!("unknown family {other:?} in {name:?}"),
        };
        let nodes: usize = nodes.parse().with_context(|| format!("nodes of {name:?}"))?;
        let rate: f64 =
            rate.trim_start_matches("rate").parse().with_context(|| format!("rate of {name:?}"))?;
        if !(3..=512).contains(&nodes) {
            bail!("{name:?} has {nodes} nodes, not 3 to 512");
        }
        let chi = neighborly(family, nodes, rate);
        let constants = acid::Constants::new(chi)?;
        let ours = [
            ("chi1", chi.chi_1),
            ("chi2", chi.chi_2),
            ("eta", constants.eta),
            ("alpha_tilde", constants.alpha_tilde),
        ];
        numbers(theirs, &ours, true, tally).with_context(|| name.clone())?;
    }
    Ok(())
}

fn graph_entry(entry: &GraphEntry, tally: &mut Tally) -> Result<()> {
    let edges = &entry.edges;
    let inside = edges.iter().all(|&(i, j)| i < entry.n && j < entry.n && i != j);
    if !inside || edges.is_empty() || entry.n > 512 {
        bail!("graph {}: edges and n do not fit", entry.graph);
    }
    let chi_of = |weights: Vec<f64>| Graph { nodes: entry.n, edges: edges.clone(), weights }.chi();
    let compare = |check: &mut Check<'_>, chi: Chi, theirs: &Numbers| {
        check.relative(chi.chi_1, theirs.chi1, SPECTRAL);
        check.relative(chi.chi_2, theirs.chi2, SPECTRAL);
        check.relative(chi.rate_min(), theirs.rate, SPECTRAL);
    };
    let uniform = chi_of(vec![1.0 / edges.len() as f64; edges.len()]);
    tally.case(|check| compare(check, uniform, &entry.uniform));
    for theirs in [&entry.sdp, &entry.eg, &entry.lambda2_only].into_iter().flatten() {
        let Some(p) = &theirs.p else { continue };
        if p.len() != edges.len() {
            bail!("graph {}: {} probabilities for {} edges", entry.graph, p.len(), edges.len());
        }
        let chi = chi_of(p.clone());
        tally.beside(|check| {
            compare(check, chi, theirs);
            check.right &= (p.iter().sum::<f64>() - 1.0).abs() <= SPECTRAL;
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// The file of that name where the shared material is present; tests pass without it.
    fn shared(name: &str) -> Option<Value> {
        let root = std::env::var_os("RUMORMILL_SHARED").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
            PathBuf::from,
        );
        let path = root.join("vectors").join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Some(serde_json::from_str(&text).unwrap()),
            Err(error) => {
                println!("skipped: {}: {error}", path.display());
                None
            }
        }
    }

    #[test]
    fn every_shared_vector_is_reproduced() {
        for (name, cases) in [("lb8.json", 50), ("nna.json", 51), ("dadao.json", 189)] {
            let Some(value) = shared(name) else { continue };
            let tally = check(value).unwrap();
            assert_eq!((tally.cases, tally.mismatches), (cases, 0), "{name}: {tally:?}");
        }
    }

    /// Paths of the numbers a check may ignore: not compared by the file's own rules.
    fn ignored(path: &str) -> bool {
        // The scale of a zero or of a NaN does not matter, so a changed /e may be right.
        const NAMES: [&str; 10] = [
            "/e",
            "seconds",
            "reference_only",
            "final_as_shipped",
            "max_abs_diff",
            "status",
            "note",
            "non_finite_reference_behaviour",
            "geo",
            "version",
        ];
        NAMES.iter().any(|name| path.contains(name))
    }

    fn visit(value: &mut Value, path: &str, change: &mut dyn FnMut(&str, &mut Value)) {
        match value {
            Value::Number(_) => change(path, value),
            Value::Array(items) => {
                for (k, item) in items.iter_mut().enumerate() {
                    visit(item, &format!("{path}/{k}"), change);
                }
            }
            Value::Object(map) => {
                for (key, item) in map.iter_mut() {
                    visit(item, &format!("{path}/{key}"), change);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn a_changed_number_is_never_passed_over() {
        // Every 97th number of the large files, every third of LB8.
        for (name, stride) in [("lb8.json", 3), ("nna.json", 23), ("dadao.json", 97)] {
            let Some(value) = shared(name) else { continue };
            let mut count = 0;
            visit(&mut value.clone(), "", &mut |_, _| count += 1);
            for target in (0..count).step_by(stride) {
                let (mut changed, mut k, mut at) = (value.clone(), 0, String::new());
                visit(&mut changed, "", &mut |path, number| {
                    if k == target && !ignored(path) {
                        at = path.to_string();
                        let old = number.as_f64().unwrap();
                        *number = match number.as_u64() {
                            Some(integer) => (integer + 1).into(),
                            None => (old * 1.02 + 1e-3).into(),
                        };
                    }
                    k += 1;
                });
                if at.is_empty() {
                    continue;
                }
                // A change that no longer fits the schema is an error, which is as good.
                let caught = check(changed).map_or(true, |tally| tally.mismatches > 0);
                assert!(caught, "{name}{at} changed unnoticed");
            }
        }
    }

    #[test]
    fn an_unknown_schema_is_an_error() {
        assert!(check(serde_json::json!({"cases": []})).is_err());
        assert!(check(serde_json::json!([1, 2])).is_err());
    }
}
