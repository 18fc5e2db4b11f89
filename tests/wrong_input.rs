//! Mistakes of people: each ends with its exit code, one line on stderr that names the thing and
//! the remedy, nothing on stdout, and no file made or changed.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;

use tempfile::TempDir;

use crate::support::{
    Ended, Running, clusters, csv, folder, gzip, idx_header, rumormill, run, text, wait_until,
    write_idx_folder,
};

/// Every file in a folder, with its content; sockets have none.
fn content(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| match path.is_dir() {
        true => content(&path).into_iter().collect(),
        false if !path.is_file() => Vec::new(),
        false => vec![(path.display().to_string(), fs::read(&path).unwrap())],
    });
    files.collect()
}

/// The end of a command that was refused: its code, and one line that holds every one of `says`.
fn check(ended: &Ended, code: i32, says: &[&str]) {
    assert_eq!((ended.code, &*ended.stdout), (code, ""), "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "one line on stderr: {}", ended.stderr);
    assert!(ended.stderr.starts_with("error: "), "{}", ended.stderr);
    for say in says {
        assert!(ended.stderr.contains(say), "no '{say}' in: {}", ended.stderr);
    }
    let parts: Vec<&str> = ended.stderr.trim_end().split(": ").collect();
    let twice = parts.windows(2).find(|pair| pair[0] == pair[1]);
    assert_eq!(twice, None, "said twice: {}", ended.stderr);
}

/// Runs a command that must be refused without a trace in `folder`.
fn refused(folder: &Path, args: &[&str], code: i32, says: &[&str]) {
    let before = content(folder);
    check(&run(args), code, says);
    assert_eq!(content(folder), before, "{args:?} left something behind");
}

/// `local` on a data set that must be refused.
fn refused_data(folder: &Path, data: &Path, extra: &[&str], says: &[&str]) {
    let args = ["local", "--json", "--rounds", "16", "--nodes", "2", "--data", text(data)];
    refused(folder, &[&args[..], extra].concat(), 1, says);
}

/// A run of one member in a folder of its own.
struct Solo {
    folder: TempDir,
    run: String,
    directory: String,
}

impl Solo {
    fn new() -> Solo {
        let folder = folder();
        let path = folder.path().join("run.toml");
        let args = ["init", "--members", "1", "--rounds", "16", "--model", "softmax"];
        let ended = run(&[&args[..], &["--out", text(&path)]].concat());
        assert_eq!(ended.code, 0, "{ended:#?}");
        let directory = text(&folder.path().join("data")).to_owned();
        Solo { run: text(&path).to_owned(), directory, folder }
    }

    /// The command that starts the node, quiet but for errors.
    fn args<'a>(&'a self, extra: &[&'a str]) -> Vec<&'a str> {
        let listen = if extra.contains(&"--listen") { &[][..] } else { &["--listen", LOOPBACK] };
        let common = ["node", "--json", "--no-mdns", "--log", "error"];
        let places = ["--run", &self.run, "--data-dir", &self.directory];
        [&common[..], &places, listen, extra].concat()
    }

    /// Trains the run to its end.
    fn train(&self) {
        let ended = run(&self.args(&[]));
        assert_eq!(ended.code, 0, "{ended:#?}");
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        Path::new(&self.directory).join(name)
    }

    fn refused(&self, extra: &[&str], code: i32, says: &[&str]) {
        refused(self.folder.path(), &self.args(extra), code, says);
    }

    /// Replaces a text in the run file.
    fn edit(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.run).unwrap();
        assert!(text.contains(from), "{from} in {text}");
        fs::write(&self.run, text.replace(from, to)).unwrap();
    }
}

const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/0";

#[test]
fn missing_data_is_named() {
    let folder = folder();
    let absent = folder.path().join("absent.csv");
    refused_data(folder.path(), &absent, &[], &["absent.csv", "No such file"]);
    refused_data(
        folder.path(),
        folder.path(),
        &[],
        &["train-images-idx3-ubyte", "with or without"],
    );
    let strange = folder.path().join("data.bin");
    fs::write(&strange, "1 2 3").unwrap();
    refused_data(folder.path(), &strange, &[], &["data.bin", "--format csv"]);
}
/// How a file's bytes are spoiled.
type Damage = fn(&mut Vec<u8>);

#[test]
fn damaged_idx_files_are_named_with_the_place() {
    let images = "train-images-idx3-ubyte";
    let damages: [(&str, Damage, &[&str]); 6] = [
        (images, |bytes| bytes.truncate(1000), &["offset 1000", "6416"]),
        (images, |bytes| bytes.truncate(10), &["offset 10", "header"]),
        (images, |bytes| bytes[3] = 9, &["0x00000809", "0x00000803"]),
        (images, |bytes| bytes.push(0), &["1 byte(s) follow"]),
        ("train-labels-idx1-ubyte", |bytes| bytes[3] = 3, &["0x00000803", "0x00000801"]),
        // A label that no training row has.
        ("t10k-labels-idx1-ubyte", |bytes| bytes[8] = 77, &["\"77\"", "training set"]),
    ];
    for (name, damage, says) in damages {
        for gz in [false, true] {
            let folder = folder();
            write_idx_folder(folder.path(), false);
            let path = folder.path().join(name);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, if gz { gzip(&bytes) } else { bytes }).unwrap();
            let named = if name.starts_with("t10k") { folder.path() } else { &path };
            refused_data(folder.path(), folder.path(), &[], &[says, &[text(named)]].concat());
        }
    }
}

#[test]
fn labels_and_images_that_differ_in_number_are_refused() {
    let folder = folder();
    write_idx_folder(folder.path(), false);
    let path = folder.path().join("train-labels-idx1-ubyte");
    let bytes = [idx_header(0x0801, &[399]), vec![0; 399]].concat();
    fs::write(&path, bytes).unwrap();
    refused_data(folder.path(), folder.path(), &[], &[text(&path), "399 labels for 400 images"]);
}

#[test]
fn a_gzip_file_that_is_cut_short_is_named() {
    let folder = folder();
    let path = folder.path().join("a.csv.gz");
    let packed = gzip(csv(&clusters(200, 0)).as_bytes());
    fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    refused_data(folder.path(), &path, &[], &["a.csv.gz"]);
}

#[test]
fn bad_cells_are_named_by_file_line_and_column() {
    let folder = folder();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let one_class: String = (0..60).map(|row| format!("{row},1,x\n")).collect();
    for (name, text, says) in [
        ("word.csv", "a,b,c\n1,2,x\n1,oops,x\n", &["line 3, column 2", "\"oops\""][..]),
        ("empty.csv", "1,2,x\n1,,x\n", &["line 2, column 2"]),
        ("nan.csv", "1,2,x\nNaN,2,x\n", &["line 2, column 1"]),
        ("ragged.csv", "1,2,x\n1,x\n", &["line 2", "2 columns", "3"]),
        ("none.csv", "", &["no data rows"]),
        ("label.csv", "1,2,x\n1,2,\n", &["line 2, column 3"]),
        ("one.csv", &one_class, &["\"x\"", "two classes"]),
        ("label.libsvm", "+1 1:2\nfoo 1:2\n", &["line 2, column 1", "\"foo\""]),
        ("entry.libsvm", "+1 1:2 2:x\n", &["line 1, column 8", "\"2:x\""]),
        ("order.libsvm", "+1 2:2 1:3\n", &["line 1, column 8", "start at 1 and increase"]),
    ] {
        let path = file(name, text);
        refused_data(folder.path(), &path, &[], &[says, &[name]].concat());
    }
    let good = file("good.csv", &csv(&clusters(50, 0)));
    let other = file("other.csv", "1,2,first\n3,4,second\n");
    refused_data(folder.path(), &good, &["--test", text(&other)], &["2 columns", "6"]);
    let unknown = file("unknown.csv", "1,2,3,4,5,6,third\n");
    refused_data(folder.path(), &good, &["--test", text(&unknown)], &["\"third\"", "row 0"]);
    let own = ["built-in data set has held-out rows of its own", "unknown.csv"];
    refused_data(folder.path(), Path::new("digits"), &["--test", text(&unknown)], &own);
}

#[test]
fn models_that_do_not_fit_the_data_are_refused() {
    let here = folder();
    let args = ["local", "--json", "--model", "logistic"];
    refused(here.path(), &args, 1, &["needs 2 classes", "10", "use softmax"]);
}

#[test]
fn mistakes_on_the_command_line_end_with_2() {
    let here = folder();
    let local = |args: &[&str], says: &[&str]| {
        refused(here.path(), &[&["local", "--json"], args].concat(), 2, says);
    };
    local(&["--bogus"], &["--bogus", "--help"]);
    local(&["--node", "3"], &["--node", "--nodes"]);
    local(&["--nodes"], &["--nodes"]);
    local(&["--nodes", "many"], &["--nodes", "many"]);
    local(&["--nodes", "0"], &["--nodes", "at least one"]);
    local(&["--model", "resnet"], &["--model", "resnet", "softmax"]);
    local(&["--family", "circle"], &["--family", "circle", "ring"]);
    local(&["--shards", "striped"], &["striped", "dirichlet"]);
    local(&["--selection", "best"], &["best", "median"]);
    local(&["--format", "xml"], &["xml", "libsvm"]);
    local(&["--rounds", "8", "--seconds", "3"], &["--rounds", "--seconds"]);
    local(&["--probe-rate", "0"], &["--probe-rate", "positive"]);
    local(&["--edge-rate", "nan"], &["--edge-rate", "positive"]);
    local(&["--timeout=-1"], &["--timeout", "positive"]);
    refused(here.path(), &["fly"], 2, &["fly", "--help"]);
    refused(here.path(), &["node", "--peer", "localhost:1"], 2, &["--peer", "localhost:1"]);
    refused(here.path(), &["local", "--log", "=,="], 2, &["--log"]);
}

#[test]
fn numbers_out_of_their_range_are_refused_with_the_range() {
    let here = folder();
    let out = text(here.path()).to_owned() + "/run.toml";
    for (args, says) in [
        (&["--rounds", "0"][..], &["rounds", "between 1"][..]),
        (&["--redundancy", "0.5"], &["--redundancy", "between 1 and 4096"]),
        (&["--step=-1"], &["--step", "above 0"]),
        (&["--decay-from", "101"], &["--decay-from", "between 0 and 100"]),
        (&["--epsilon-log2", "99"], &["epsilon_log2", "between -30 and 10"]),
        (&["--batch", "0"], &["batch", "between 1"]),
        (&["--members", "0"], &["founders", "at least 1"]),
        (&["--members", "129"], &["founders", "at most 128", "join"]),
        (&["--members", "4", "--tolerate", "2"], &["faulty", "at most 1", "3f + 1"]),
        (&["--seconds", "0"], &["--seconds", "positive"]),
    ] {
        let common = ["init", "--model", "softmax", "--out", &out];
        let before = content(here.path());
        let ended = run(&[&common[..], args].concat());
        assert!([1, 2].contains(&ended.code), "{ended:#?}");
        check(&ended, ended.code, says);
        assert_eq!(content(here.path()), before, "{args:?}");
    }
}

#[test]
fn graphs_that_cannot_train_are_refused() {
    let folder = folder();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        text_of(&path)
    };
    let graph = |args: &[&str], code: i32, says: &[&str]| {
        refused(folder.path(), &[&["local", "--json"], args].concat(), code, says);
    };
    let split = file("split.edges", "a b\nc d\n");
    graph(&["--topology", &split], 1, &["split.edges", "not connected", "\"c\"", "add an edge"]);
    let empty = file("empty.json", r#"{"nodes": [], "edges": []}"#);
    graph(&["--topology", &empty], 1, &["empty.json", "at least one"]);
    let nothing = file("nothing.edges", "");
    graph(&["--topology", &nothing], 1, &["nothing.edges"]);
    let broken = file("broken.json", r#"{"nodes": ["a", "b"], "edges": [[0, 7, null]]}"#);
    graph(&["--topology", &broken], 1, &["broken.json", "line 1", "node 7"]);
    let looped = file("loop.edges", "a b\nb b\n");
    graph(&["--topology", &looped], 1, &["loop.edges", "line 2", "self-loop"]);
    graph(&["--topology", "/absent/graph.json"], 1, &["/absent/graph.json"]);
    let triangle = file("triangle.edges", "a b\nb c\nc a\n");
    graph(
        &["--topology", &triangle, "--nodes", "4"],
        2,
        &["--nodes 4", "triangle.edges", "3 nodes", "leave --nodes out"],
    );
    graph(&["--topology", &triangle, "--family", "ring"], 2, &["--topology", "--family"]);
    graph(&["--family", "hypercube", "--nodes", "12"], 1, &["hypercube", "12", "power of two"]);
    graph(&["--nodes", "1000"], 1, &["1000 nodes", "at most 256"]);
}

fn text_of(path: &Path) -> String {
    text(path).to_owned()
}

#[test]
fn init_keeps_an_existing_file_and_leaves_nothing_half_written() {
    let folder = folder();
    let existing = folder.path().join("run.toml");
    fs::write(&existing, "mine").unwrap();
    let args = ["init", "--model", "softmax", "--out"];
    refused(folder.path(), &[&args[..], &[text(&existing)]].concat(), 1, &["run.toml", "--force"]);
    let nowhere = folder.path().join("absent/run.toml");
    refused(folder.path(), &[&args[..], &[text(&nowhere)]].concat(), 1, &["absent/run.toml"]);
}

#[test]
fn run_files_with_mistakes_are_refused_with_the_key() {
    for (from, to, says) in [
        ("mdns = true", "mnds = true", &["mnds"][..]),
        ("batch = 64", "batsch = 64", &["batsch"]),
        ("[node]", "[nodes]", &["nodes"]),
        ("version = 6", "version = 1", &["version", "is 1", "speaks version 6"]),
        ("batch = 64", "batch = 0", &["batch", "between 1 and"]),
        ("batch = 64", "batch = many", &["line "]),
        ("batch = 64", "batch = \"64\"", &["line ", "batch"]),
        ("batch = 64\n", "", &["batch"]),
        ("model = \"softmax\"", "model = \"gpt\"", &["gpt", "softmax"]),
        ("seed = 1", "seed = 1\nseed = 2", &["seed"]),
        ("listen = [\"/ip4", "listen = [\"/ipx4", &["node.listen", "/ipx4"]),
        ("[run]", "[run", &["line 4"]),
    ] {
        let solo = Solo::new();
        solo.edit(from, to);
        let before = fs::read(&solo.run).unwrap();
        // The flag would take the place of the addresses in the file.
        let args = ["node", "--json", "--no-mdns", "--timeout", "60", "--log", "error"];
        let places = ["--run", &solo.run, "--data-dir", &solo.directory];
        check(&run(&[&args[..], &places].concat()), 1, says);
        assert_eq!(fs::read(&solo.run).unwrap(), before);
        assert!(!solo.file("ledger.log").exists() || from.starts_with("listen"), "{from} → {to}");
    }
}

#[test]
fn a_missing_run_file_is_named_with_the_command_that_writes_one() {
    let folder = folder();
    let run_file = folder.path().join("run.toml");
    let args = ["node", "--run", text(&run_file), "--data-dir", text(folder.path())];
    refused(folder.path(), &args, 1, &[text(&run_file), "rumormill init"]);
}

#[test]
fn other_data_and_another_base_model_than_the_runs_are_refused() {
    let solo = Solo::new();
    let table = solo.folder.path().join("table.csv");
    fs::write(&table, csv(&clusters(100, 0))).unwrap();
    let ended = run(&solo.args(&["--data", text(&table)]));
    check(&ended, 1, &["table.csv", "data_hash", "use the same files"]);
    let text = fs::read_to_string(&solo.run).unwrap();
    let hash = text.lines().find(|line| line.starts_with("base_hash")).unwrap().to_owned();
    solo.edit(&hash, &format!("base_hash = \"{}\"", "0".repeat(64)));
    check(&run(&solo.args(&[])), 1, &["base_hash", "changed by hand"]);
}

#[test]
fn a_nodes_own_numbers_are_checked() {
    let solo = Solo::new();
    for (flag, says) in [
        ("--timeout=-1", &["--timeout", "positive"][..]),
        ("--timeout=nan", &["--timeout", "positive"]),
        ("--exchanges-per-round=0", &["--exchanges-per-round", "positive"]),
        ("--exchanges-per-round=nan", &["--exchanges-per-round", "positive"]),
        ("--edge-rate=-1", &["edge rate", "-1", "positive"]),
        ("--probe-rate=inf", &["probe rate", "inf", "positive"]),
    ] {
        let ended = run(&solo.args(&[flag]));
        assert!([1, 2].contains(&ended.code), "{ended:#?}");
        check(&ended, ended.code, says);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let solo = Solo::new();
    let listen = format!("/ip4/127.0.0.1/tcp/{port}");
    let ended = run(&solo.args(&["--listen", &listen]));
    check(&ended, 1, &[&listen, "in use"]);
    // Nothing stands in the way once the port is free.
    drop(taken);
    let ended = run(&solo.args(&["--listen", &listen]));
    assert_eq!(ended.code, 0, "{ended:#?}");
}

#[test]
fn a_data_directory_has_one_node_at_a_time() {
    let solo = Solo::new();
    solo.edit("minimum = 1", "minimum = 2");
    let mut command = rumormill();
    command.args(["node", "--json", "--no-mdns", "--run", &solo.run, "--listen", LOOPBACK]);
    let first = Running::start(command.args(["--data-dir", &solo.directory]));
    first.wait_for("listening on ");
    // The last file that a start makes.
    wait_until("the addresses are written", || solo.file("addresses").exists());
    solo.refused(&[], 1, &[&solo.directory, "in use by another node", "choose another"]);
    first.signal("INT");
    assert_eq!(first.end().code, 0);
}

#[cfg(unix)]
#[test]
fn an_identity_that_is_open_damaged_or_unreadable_is_named_and_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let solo = Solo::new();
    solo.train();
    let key = solo.file("identity.key");
    let mode = |mode: u32| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    solo.refused(&[], 1, &["identity.key", "mode 644", "chmod 600"]);
    mode(0o600);
    let whole = fs::read(&key).unwrap();
    fs::write(&key, &whole[..whole.len() - 7]).unwrap();
    solo.refused(&[], 1, &["identity.key", "damaged", "restore it"]);
    fs::remove_file(&key).unwrap();
    fs::create_dir(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o700)).unwrap();
    solo.refused(&[], 1, &["identity.key", "cannot read"]);
}

#[test]
fn a_damaged_ledger_is_named_with_the_place_and_left_alone() {
    let solo = Solo::new();
    solo.train();
    let path = solo.file("ledger.log");
    let whole = fs::read(&path).unwrap();
    for at in [48, 56, 70, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        fs::write(&path, flipped).unwrap();
        solo.refused(&[], 1, &["ledger.log", "damaged at byte", "restore the file"]);
    }
    fs::write(&path, b"this is no ledger, whatever its name may say").unwrap();
    solo.refused(&[], 1, &["ledger.log", "not a ledger log", "another data directory"]);
    // What a crash cut short was never acted upon.
    fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    solo.train();
}

#[test]
fn the_ledger_of_another_run_is_refused() {
    let solo = Solo::new();
    solo.train();
    solo.edit("name = \"rumormill\"", "name = \"another\"");
    solo.refused(&[], 1, &["ledger.log", "belongs to run", "another data directory"]);
}

#[test]
fn vector_algorithms_refuse_what_does_not_fit_them() {
    let folder = folder();
    let local = |args: &[&str], code: i32, says: &[&str]| {
        refused(folder.path(), &[&["local"], args].concat(), code, says);
    };
    local(&["--algorithm", "sgd"], 2, &["unknown algorithm 'sgd'", "dadao", "monna"]);
    local(&["--algorithm", "monna", "--family", "ring"], 2, &["--family complete"]);
    local(&["--algorithm", "dadao", "--processes"], 2, &["--processes", "dadao"]);
    local(&["--algorithm", "acid", "--nodes", "1"], 2, &["at least two nodes"]);
    local(&["--algorithm", "acid", "--precision", "f16"], 2, &["f32 and f64"]);
    local(&["--algorithm", "acid", "--momentum", "1"], 2, &["--momentum", "below 1"]);
    local(&["--algorithm", "dadao", "--margin", "0.5"], 2, &["--margin"]);
    local(&["--algorithm", "dadao", "--unit-ms", "0"], 2, &["--unit-ms"]);
    local(&["--algorithm", "gossip", "--rounds", "0"], 2, &["--rounds"]);
    local(&["--algorithm", "gossip", "--exchange-factor", "1e12"], 2, &["at most 1000"]);
    local(&["--algorithm", "gossip", "--selection", "nna"], 2, &["--selection", "gossip"]);
    let absent = folder.path().join("absent").join("trace.csv");
    local(&["--algorithm", "gossip", "--trace", text(&absent)], 2, &["--trace", "absent"]);
    local(&["--trace", "trace.csv"], 2, &["--trace", "--algorithm"]);
    local(&["--algorithm", "one-byte-dadao", "--model", "mlp:4"], 1, &["convex", "softmax"]);
    let without = ["--algorithm", "dadao", "--model", "softmax", "--penalty", "0"];
    local(&without, 1, &["strong convexity", "--penalty"]);
    let faulty = ["--algorithm", "monna", "--nodes", "4", "--tolerate", "2", "--rounds", "8"];
    local(&faulty, 2, &["--tolerate 2", "fewer than half"]);
}
