//! Whole runs of small scenarios, and what is refused before one begins.

use std::fs;
use std::path::Path;

use super::*;
use rumormill::fault::FaultKind;
use rumormill::sample::KeyedRng;

/// A folder with a small data set of two classes, `data.csv`, on a slanted line.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let rows: String = (0..80)
        .map(|i| {
            let (a, b) = (f64::from(i * 37 % 80) / 80.0, f64::from(i * 53 % 80) / 80.0);
            format!("{a},{b},{}\n", u8::from(a + 0.5 * b > 0.75))
        })
        .collect();
    fs::write(folder.path().join("data.csv"), rows).unwrap();
    folder
}

fn args(path: &Path) -> SimArgs {
    SimArgs { scenario: path.into(), seeds: None, seed: None, out: None, json: false }
}

fn prepared(folder: &Path, text: &str) -> Result<(Plan, Vec<u64>), Usage> {
    let path = folder.join("scenario.toml");
    fs::write(&path, text).unwrap();
    prepare(&args(&path))
}

/// Runs a scenario on the small data set; `text` begins with top-level keys.
fn ran(text: &str, task: &str) -> (Plan, Vec<Outcome>) {
    let folder = folder();
    let text = format!("{text}\n[task]\ndata = \"data.csv\"\nbatch = 8\n{task}\n");
    let (plan, seeds) = prepared(folder.path(), &text).unwrap_or_else(|error| panic!("{error}"));
    let outcomes = simulate(&plan, &seeds).unwrap();
    (plan, outcomes)
}

/// Rounds of a few probes, so that a run takes a moment.
const SHORT: &str = "[run]\nrounds = 12\nrounds_per_height = 2\nprobes_per_round = 4\nstep = 0.3\n";

const ALGORITHMS: [&str; 4] = ["dadao", "acid", "gossip", "monna"];

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let lossy = "nodes = 4\nseeds = [3]\n[compute]\nspread = 4\n[link]\nloss = 0.1\n\
                 latency_ms = { lognormal = { median = 5, sigma = 0.4 } }\n";
    let trace = |text: &str, task: &str| {
        let (plan, outcomes) = ran(text, task);
        trace_csv(&plan, &outcomes)
    };
    let records = format!("{lossy}{SHORT}");
    let task = "model = \"softmax\"\nshards = \"iid\"";
    assert_eq!(trace(&records, task), trace(&records, task));
    for algorithm in ALGORITHMS {
        let text =
            format!("algorithm = \"{algorithm}\"\ntime_s = 20\n{lossy}[vector]\nmu = 0.05\n");
        let first = trace(&text, task);
        assert_eq!(first, trace(&text, task), "{algorithm}");
        let other = text.replace("seeds = [3]", "seeds = [4]");
        assert_ne!(first, trace(&other, task), "{algorithm}");
    }
}

#[test]
fn every_algorithm_learns() {
    let task = "model = \"softmax\"\nshards = \"iid\"";
    let learns = |outcome: &Outcome, name: &str| {
        assert!(outcome.verdict.is_good(), "{name}: {:?}", outcome.verdict);
        let (first, last) = (outcome.samples[0], outcome.last());
        assert!(last.loss < 0.9 * first.loss, "{name}: {first:?} {last:?}");
        assert!(last.work > 0 && last.bytes > 0 && last.up == 4, "{name}: {last:?}");
    };
    learns(&ran(&format!("nodes = 4\n{SHORT}"), task).1[0], "rumormill");
    for algorithm in ALGORITHMS {
        let text = format!("nodes = 4\nalgorithm = \"{algorithm}\"\n[vector]\nmu = 0.05\n");
        learns(&ran(&text, task).1[0], algorithm);
    }
}

#[test]
fn partition_and_churn_end_identical() {
    let troubles = "nodes = 7\n[graph]\nfamily = \"complete\"\n\
        [[partition]]\nfrom_s = 0.2\nto_s = 4\nnodes = [0, 1]\n\
        [[churn]]\nat_s = 0.3\nnode = 2\naction = \"crash\"\n\
        [[churn]]\nat_s = 1.5\nnode = 2\naction = \"restart\"\n\
        [[churn]]\nat_s = 0.5\nnode = 6\naction = \"join\"\n\
        [[churn]]\nat_s = 5\nnode = 3\naction = \"leave\"\n";
    let long = SHORT.replace("rounds = 12", "rounds = 120");
    let (_, outcomes) = ran(&format!("{troubles}{long}"), "model = \"softmax\"\nshards = \"iid\"");
    let outcome = &outcomes[0];
    assert_eq!(outcome.verdict, Verdict::Agreed, "{:?}", outcome.last());
    assert_eq!((outcome.last().up, outcome.models), (6, Some(1)));
    assert!(outcome.samples.iter().any(|sample| sample.consensus > 0.0));
    assert_eq!(outcome.last().consensus, 0.0);
}

#[test]
fn a_run_whose_time_is_up_is_judged_by_what_all_have_certified() {
    let long = SHORT.replace("rounds = 12", "rounds = 100000");
    let (_, outcomes) = ran(&format!("nodes = 4\ntime_s = 3\n{long}"), "model = \"softmax\"");
    assert_eq!(outcomes[0].verdict, Verdict::Agreed);
    assert_eq!(outcomes[0].last().time_s, 3.0);
    assert!(outcomes[0].last().rounds > Some(0));
}

#[test]
fn a_diverging_run_is_called_so_and_its_cells_are_numbers_or_empty() {
    let diverging = [
        (SHORT.replace("step = 0.3", "step = 250"), "model = \"softmax\""),
        ("algorithm = \"gossip\"\n[vector]\nstep = 1e9\nmu = 1".into(), "model = \"softmax\""),
        (
            "algorithm = \"monna\"\n[vector]\nstep = 1e9\nbeta = 0\nmu = 1".into(),
            "model = \"softmax\"",
        ),
        ("algorithm = \"acid\"\n[vector]\nstep = 1e12".into(), "model = \"mlp:4,4\""),
    ];
    for (text, task) in diverging {
        let text = format!("nodes = 4\n{text}").replace("rounds = 12", "rounds = 4000");
        let (plan, outcomes) = ran(&text, task);
        assert_eq!(outcomes[0].verdict, Verdict::Diverged, "{text}: {:?}", outcomes[0].last());
        let csv = trace_csv(&plan, &outcomes);
        let bad = |cell: &str| !cell.is_empty() && !cell.parse().is_ok_and(f64::is_finite);
        let cells = || csv.lines().skip(1).flat_map(|line| line.split(','));
        assert!(!cells().any(bad), "{text}: {csv}");
        plot::figures(&csv).unwrap();
        let json = to_json(&plan, &outcomes);
        assert_eq!(json["seeds"][0]["verdict"], "diverged");
        assert_eq!(json["good"], false);
    }
}

#[test]
fn every_lie_leaves_honest_nodes_agreed() {
    let values = FaultKind::all().filter(|kind| kind.is_value());
    for kind in values.chain([FaultKind::Silent]) {
        let fault = format!("[[fault]]\ncount = 1\nkind = \"{kind}\"\n");
        let records = format!("nodes = 4\n{}selection = \"nnm\"\n{fault}", SHORT);
        let (plan, outcomes) = ran(&records, "model = \"softmax\"");
        assert_eq!(outcomes[0].verdict, Verdict::Agreed, "{kind}");
        assert!(plan.lies[3].is_some() && plan.honest().count() == 3, "{kind}");
        let vectors = format!("nodes = 5\nalgorithm = \"monna\"\n{fault}");
        let (_, outcomes) = ran(&vectors, "model = \"softmax\"\nshards = \"iid\"");
        assert_eq!(outcomes[0].verdict, Verdict::Done, "{kind}");
        let last = outcomes[0].last();
        assert!(last.loss < outcomes[0].samples[0].loss, "{kind}: {last:?}");
    }
}

#[test]
fn a_liar_is_doubted_before_it_is_excluded_and_nobody_else_is() {
    let text = "nodes = 7\n[graph]\nfamily = \"complete\"\n[run]\nrounds = 60\nrounds_per_height = 2\n\
                probes_per_round = 16\nstep = 0.1\nselection = \"stack\"\naudit_permille = 100\n\
                [[fault]]\ncount = 2\nkind = \"sign-flip\"\n";
    let (plan, outcomes) = ran(text, "model = \"softmax\"");
    assert_eq!(outcomes[0].verdict, Verdict::Agreed);
    for of in &outcomes[0].standings {
        if plan.lies[of.node].is_some() {
            assert!(of.doubted_from.is_some() && of.doubted_from < of.excluded_from, "{of:?}");
        } else {
            assert_eq!(of.excluded_from, None, "{of:?}");
        }
    }
}

#[test]
fn broken_protocols_are_named_in_scenarios_as_lies_are() {
    for kind in ["equivocation", "false-ack", "restored-backup"] {
        let fault = format!("[[fault]]\ncount = 1\nkind = \"{kind}\"\n");
        let (plan, outcomes) = ran(&format!("nodes = 4\n{SHORT}{fault}"), "model = \"softmax\"");
        assert_eq!(outcomes[0].verdict, Verdict::Agreed, "{kind}");
        assert_eq!(plan.honest().count(), 3, "{kind}");
    }
}

#[test]
fn monna_holds_against_f_faulty_and_not_beyond() {
    let accuracy = |faulty: usize, tolerated: usize| {
        let text = format!(
            "nodes = 7\nalgorithm = \"monna\"\n[vector]\nfaulty = {tolerated}\nstep = 0.5\n\
             [[fault]]\ncount = {faulty}\nkind = \"largest-opposing\"\nfactor = 5\n"
        );
        let (_, outcomes) = ran(&text, "model = \"softmax\"\nshards = \"iid\"");
        outcomes[0].last().accuracy_min
    };
    let (held, lost) = (accuracy(2, 2), accuracy(2, 0));
    assert!(held > 0.8 && lost < 0.6, "{held} {lost}");
}

#[test]
fn examples_are_possible() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let (plan, _) = prepare(&args(&path)).unwrap_or_else(|error| panic!("{error}"));
        assert!(!plan.scenario.claim.is_empty(), "{} states no claim", path.display());
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    for name in ["quick", "stragglers", "partition", "faulty", "dadao"] {
        assert!(names.contains(&format!("{name}.toml")), "{names:?}");
    }
}

#[test]
fn wrong_input_is_refused_with_file_key_and_remedy() {
    let folder = folder();
    fs::write(folder.path().join("split.txt"), "a b\nc d\n").unwrap();
    fs::write(folder.path().join("line.txt"), "a b\nb c\n").unwrap();
    let cases = [
        ("nods = 4", "unknown field `nods`"),
        ("[run]\nround = 4", "unknown field `round`"),
        ("[task]\nmodle = \"softmax\"", "unknown field `modle`"),
        ("nodes = 0", "nodes is 0"),
        ("nodes = 100000", "between 1 and 4096"),
        ("seeds = []", "seeds is empty"),
        ("algorithm = \"sgd\"", "`dadao`"),
        ("nodes = 4\n[[fault]]\ncount = 5\nkind = \"zero\"", "more faulty nodes than the 4"),
        ("nodes = 4\n[[fault]]\ncount = 4\nkind = \"zero\"", "one at least must be honest"),
        ("nodes = 4\n[[fault]]\ncount = 2\nkind = \"zero\"", "have 7 nodes"),
        ("nodes = 6\n[run]\ntolerate = 2", "tolerate at most 1"),
        (
            "[[fault]]\nnodes = [8]\nkind = \"zero\"",
            "fault.nodes names node 8; there are 8, 0 to 7",
        ),
        ("[[fault]]\nnodes = [1, 1]\nkind = \"zero\"", "named twice"),
        ("[[fault]]\nkind = \"zero\"", "nodes = [..] or count"),
        ("[[fault]]\ncount = 1\nkind = \"lies\"", "known: sign-flip"),
        ("[[fault]]\ncount = 1\nkind = \"sybil\"", "needs sockets"),
        ("algorithm = \"monna\"\n[[fault]]\ncount = 1\nkind = \"forge\"", "of record sets"),
        ("algorithm = \"monna\"\n[vector]\nfaulty = 4", "at least 9 nodes"),
        ("algorithm = \"monna\"\n[graph]\nfamily = \"ring\"", "complete graph"),
        ("[[straggler]]\nnode = 9\nfactor = 2", "straggler.node names node 9"),
        ("[[straggler]]\nnode = 1\nfactor = 0", "straggler.factor is 0"),
        ("[[churn]]\nat_s = 1\nnode = 8\naction = \"crash\"", "churn.node names node 8"),
        ("[[churn]]\nat_s = 1\nnode = 1\naction = \"restart\"", "node 1 cannot do Restart"),
        ("[[churn]]\nat_s = 1\nnode = 1\naction = \"dance\"", "`restart`"),
        ("[[partition]]\nfrom_s = 2\nto_s = 1\nnodes = [1]", "must end after it began"),
        (
            "[[partition]]\nfrom_s = 0\nto_s = 5\nnodes = [1]\n\
             [[partition]]\nfrom_s = 4\nto_s = 6\nnodes = [2]",
            "one at a time",
        ),
        ("[link]\nloss = 1.5", "link.loss is 1.5"),
        ("[link]\nlatency_ms = { normal = 3 }", "`lognormal`"),
        ("[link]\nlatency_ms = { uniform = { min = 5, max = 2 } }", "min 5 is above max 2"),
        ("[link]\nlatency_ms = { uniform = { min = 5 } }", "max"),
        ("[link]\nlatency_ms = { constant = -1 }", "latency_ms.constant is -1"),
        ("[compute]\nspread = 0.5", "compute.spread is 0.5"),
        ("[run]\nstep = 0", "run.step is 0"),
        ("[run]\nrounds = 0", "run.rounds"),
        ("[run]\nselection = \"best\"", "best"),
        ("time_s = -1", "time_s is -1"),
        ("[graph]\nfamily = \"blob\"", "hypercube"),
        ("nodes = 9\n[graph]\nfamily = \"hypercube\"", "graph: "),
        ("[graph]\nfile = \"none.txt\"", "none.txt"),
        ("[graph]\nfile = \"split.txt\"", "split.txt"),
        ("nodes = 4\n[graph]\nfile = \"line.txt\"", "graph.file has 3; leave nodes out"),
        ("[graph]\nfile = \"line.txt\"\nrates = \"file\"", "graph.rates"),
        ("[task]\ndata = \"none.csv\"", "none.csv"),
        ("[task]\nmodel = \"gpt\"", "softmax"),
        ("[task]\nmodel = \"logistic\"", "needs 2 classes"),
        ("[task]\nshards = \"some\"", "dirichlet:ALPHA"),
        ("nodes = 90\n[task]\ndata = \"data.csv\"\nshards = \"iid\"", "task.shards"),
        ("algorithm = \"dadao\"\n[task]\nmodel = \"softmax\"", "set mu above 0"),
        ("algorithm = \"dadao\"\n[task]\nmodel = \"mlp:4\"", "not convex"),
        (
            "algorithm = \"dadao\"\n[task]\nmodel = \"softmax\"\n[vector]\nmu = 0.1\nrate = 0.01",
            "on this graph at least",
        ),
    ];
    for (text, expected) in cases {
        let Err(Usage(error)) = prepared(folder.path(), text) else { panic!("{text} passed") };
        assert!(error.contains("scenario.toml"), "{text}: {error}");
        assert!(error.contains(expected), "{text}: {error}");
    }
    let missing = folder.path().join("missing.toml");
    let Err(Usage(error)) = prepare(&args(&missing)) else { panic!("a missing file passed") };
    assert!(error.contains("missing.toml"), "{error}");
}

#[test]
fn seeds_are_a_range_with_both_ends() {
    assert_eq!("1..20".parse(), Ok(Seeds(1, 20)));
    for wrong in ["", "3", "5..2", "a..b", "0..99999999"] {
        assert!(wrong.parse::<Seeds>().is_err(), "{wrong}");
    }
}

#[test]
fn a_result_folder_holds_everything_and_its_figures_are_drawn_from_the_csv() {
    let folder = folder();
    let text =
        format!("nodes = 4\nseeds = [1, 2]\n{SHORT}[task]\ndata = \"data.csv\"\nbatch = 8\n");
    let (_, _) = prepared(folder.path(), &text).unwrap();
    let out = folder.path().join("out");
    let mut args = args(&folder.path().join("scenario.toml"));
    args.out = Some(out.clone());
    assert!(run(&args).unwrap());
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    assert!(read("README.md").contains("2 of 2 seeds"));
    assert_eq!(read("scenario.toml"), text);
    assert!(read("command.txt").starts_with("rumormill-lab sim "));
    let again = folder.path().join("again");
    plot::run(&out.join("trace.csv"), &again).unwrap();
    for name in ["accuracy.svg", "loss.svg", "consensus.svg"] {
        assert_eq!(read(name), fs::read_to_string(again.join(name)).unwrap());
    }
}

/// Scenario files with spoiled bytes are read or refused, with the file's name.
#[test]
fn spoiled_scenarios_are_read_or_refused() {
    let folder = folder();
    let path = folder.path().join("scenario.toml");
    let whole = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/partition.toml")).unwrap();
    let asked = std::env::var("RUMORMILL_MUTATIONS").ok();
    let mutations = asked.map_or(500, |asked| asked.parse().expect("a number"));
    for seed in 0..mutations {
        let mut rng = KeyedRng::from_seed("rumormill test spoiled bytes", seed, 1);
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.index(4) {
            let at = rng.index(bytes.len().max(1) as u32) as usize;
            match rng.index(4) {
                0 if at < bytes.len() => bytes[at] ^= 1 << rng.index(8),
                1 if at < bytes.len() => drop(bytes.remove(at)),
                2 => bytes.insert(at.min(bytes.len()), b"0-9e.]=\""[rng.index(8) as usize]),
                _ => bytes.truncate(at.max(bytes.len() / 2)),
            }
        }
        fs::write(&path, &bytes).unwrap();
        match Scenario::read(&path) {
            // What is read may still be refused: without a run, whatever numbers it has.
            Ok(scenario) => drop(format!("{scenario:?}")),
            Err(Usage(message)) => assert!(message.contains("scenario.toml"), "{message}"),
        }
    }
}
