//! Several hosts: network namespaces that are joined by two switches and the cable between them. Only
//! where they may be made (root and `ip`); elsewhere the tests say so and are skipped.
//!
//! Nothing leaves the namespaces: the switches are bridges in a namespace of their own.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Running, folder, rumormill, run, text, wait_until};

/// Runs a program; what it printed if it ended well.
fn does(program: &str, args: &[&str]) -> Result<String, String> {
    let say = |problem: String| format!("{program} {}: {problem}", args.join(" "));
    let Output { status, stdout, stderr } =
        Command::new(program).args(args).output().map_err(|error| say(error.to_string()))?;
    match status.success() {
        true => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        false => Err(say(String::from_utf8_lossy(&stderr).trim().to_owned())),
    }
}

fn ip(line: &str) -> Result<String, String> {
    does("ip", &line.split_whitespace().collect::<Vec<_>>())
}

/// Hosts at two switches with a cable between them.
struct Network {
    /// Begins the names of all its namespaces.
    name: String,
    hosts: usize,
}

impl Network {
    /// So many hosts, the first `left` at one switch and the others at the other; `None`, said aloud,
    /// where namespaces may not be made.
    fn new(tag: &str, hosts: usize, left: usize) -> Option<Network> {
        let name = format!("rm{}{tag}", std::process::id());
        let network = Network { name, hosts };
        match network.build(left) {
            Ok(()) => Some(network),
            Err(problem) => {
                println!("skipped: no network namespaces here ({problem})");
                None
            }
        }
    }

    fn build(&self, left: usize) -> Result<(), String> {
        let switch = self.switch();
        ip(&format!("netns add {switch}"))?;
        for bridge in ["left", "right"] {
            ip(&format!("-n {switch} link add {bridge} type bridge mcast_snooping 0"))?;
            ip(&format!("-n {switch} link set {bridge} up"))?;
        }
        ip(&format!("-n {switch} link add cable0 type veth peer name cable1"))?;
        for (end, bridge) in [("cable0", "left"), ("cable1", "right")] {
            ip(&format!("-n {switch} link set {end} master {bridge} up"))?;
        }
        for at in 0..self.hosts {
            let host = self.host(at);
            let bridge = if at < left { "left" } else { "right" };
            ip(&format!("netns add {host}"))?;
            ip(&format!("-n {switch} link add port{at} type veth peer name eth0 netns {host}"))?;
            ip(&format!("-n {switch} link set port{at} master {bridge} up"))?;
            ip(&format!("-n {host} addr add 10.77.0.{}/24 dev eth0", at + 1))?;
            ip(&format!("-n {host} link set lo up"))?;
            ip(&format!("-n {host} link set eth0 up"))?;
            ip(&format!("-n {host} route add 224.0.0.0/4 dev eth0"))?;
        }
        Ok(())
    }

    fn switch(&self) -> String {
        format!("{}s", self.name)
    }

    fn host(&self, at: usize) -> String {
        format!("{}h{at}", self.name)
    }

    /// Pulls the cable between the switches, or puts it back.
    fn cable(&self, state: &str) {
        ip(&format!("-n {} link set cable0 {state}", self.switch())).unwrap();
    }

    /// Every host loses a part of the packets that reach it; what is in the way otherwise.
    fn lose(&self, percent: u32) -> Result<(), String> {
        let rules = format!(
            "add table inet trouble; \
             add chain inet trouble arrive {{ type filter hook input priority 0; }}; \
             add rule inet trouble arrive iifname eth0 numgen random mod 100 < {percent} drop"
        );
        for at in 0..self.hosts {
            does("ip", &["netns", "exec", &self.host(at), "nft", &rules])?;
        }
        Ok(())
    }

    /// A node on a host that knows nobody.
    fn start(&self, at: usize, args: &[&str]) -> Running {
        let node = rumormill();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.host(at)]).arg(node.get_program());
        command.args(["node", "--json", "--log", "debug", "--timeout", "170"]).args(args);
        for (name, value) in node.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        use std::process::Stdio;
        Running::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for at in 0..self.hosts {
            let _ = ip(&format!("netns del {}", self.host(at)));
        }
        let _ = ip(&format!("netns del {}", self.switch()));
    }
}

fn status(directory: &str) -> Value {
    let ended = run(&["status", "--json", "--data-dir", directory]);
    assert_eq!(ended.code, 0, "{ended:#?}");
    ended.json()
}

fn certified(directory: &str) -> u64 {
    status(directory)["certified"].as_u64().unwrap()
}

fn all_identical(nodes: Vec<Running>) {
    let mut first: Option<Value> = None;
    for node in nodes {
        let ended = node.end();
        assert_eq!(ended.code, 0, "{}\n{}", ended.stdout, ended.stderr);
        assert!(!ended.stderr.contains("contradicting"), "{}", ended.stderr);
        let line = ended.json();
        let first = first.get_or_insert_with(|| line.clone());
        for same in ["digest", "state_hash", "round", "members"] {
            assert_eq!(line[same], first[same], "{same}:\n{line}\n{first}");
        }
    }
}

/// Five hosts of which three are enough, found by mDNS over the cable.
struct Run {
    _folder: tempfile::TempDir,
    directories: Vec<String>,
    nodes: Vec<Running>,
}

fn started(network: &Network, rounds: &str) -> Run {
    let folder = folder();
    let path = folder.path().join("run.toml");
    let args = ["init", "--model", "softmax", "--tolerate", "0", "--probes-per-round", "8"];
    let members = network.hosts.to_string();
    let more = ["--rounds-per-height", "4", "--rounds", rounds, "--members", &members];
    let ended = run(&[&args[..], &more, &["--out", text(&path)]].concat());
    assert_eq!(ended.code, 0, "{ended:#?}");
    let directory = |at: usize| text(&folder.path().join(at.to_string())).to_owned();
    let directories: Vec<String> = (0..network.hosts).map(directory).collect();
    let start = |at: usize| {
        let places = ["--run", text(&path), "--data-dir", &directories[at]];
        network.start(at, &[&places[..], &["--probe-rate", "100"]].concat())
    };
    let nodes = (0..network.hosts).map(start).collect();
    Run { _folder: folder, directories, nodes }
}

#[test]
fn hosts_find_each_other_and_a_cut_network_goes_on_where_the_majority_is() {
    let Some(network) = Network::new("cut", 5, 3) else { return };
    let Run { _folder, directories, nodes } = started(&network, "160");
    for node in &nodes {
        node.wait_for("found a peer");
        node.wait_for("certified height=3 ");
    }
    network.cable("down");
    let (majority, minority) = directories.split_at(3);
    let went = certified(&majority[0]);
    let goes_to = |height: u64| majority.iter().all(|at| certified(at) >= height);
    wait_until("the majority goes on", || goes_to(went + 4));
    let stood: Vec<u64> = minority.iter().map(|at| certified(at)).collect();
    wait_until("the majority goes on", || goes_to(went + 6));
    for (directory, stood) in minority.iter().zip(&stood) {
        assert!(*stood < went + 4, "a minority certified");
        let now = status(directory);
        assert_eq!(now["certified"], *stood, "a minority certified");
        let why = now["stalled"].as_str().expect("it says what it waits for");
        println!("minority: {why}");
    }
    network.cable("up");
    wait_until("the minority has caught up", || {
        minority.iter().zip(&stood).all(|(at, stood)| certified(at) > stood + 4)
    });
    all_identical(nodes);
}

#[test]
fn hosts_that_lose_packets_end_identical() {
    let Some(network) = Network::new("loss", 3, 2) else { return };
    if let Err(problem) = network.lose(10) {
        println!("skipped: no packets may be dropped here ({problem})");
        return;
    }
    let Run { _folder, nodes, .. } = started(&network, "48");
    all_identical(nodes);
}
