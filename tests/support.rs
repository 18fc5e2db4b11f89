//! Starting the binary, waiting for what it says, and making small data for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before the test fails: far beyond what an idle machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The binary, without settings from the caller's environment.
pub(crate) fn rumormill() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rumormill"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RUMORMILL_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// An empty folder that is gone after the test.
pub(crate) fn folder() -> TempDir {
    tempfile::Builder::new().prefix("rumormill-test-").tempdir().expect("a temporary folder")
}

/// A folder of real data, if this machine has it.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("RUMORMILL_SHARED").map(PathBuf::from);
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let path = root.unwrap_or_else(beside).join(path);
    if !path.exists() {
        println!("skipped: {} is not here", path.display());
        return None;
    }
    Some(path)
}

/// Waits until something holds.
pub(crate) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Exit code; -1 when a signal ended it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// The one JSON object that stdout must be.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line on stdout: {self:#?}");
        let value: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {self:#?}"));
        assert!(value.is_object(), "{value}");
        value
    }
}

/// Runs a command to its end.
pub(crate) fn run<S: AsRef<str>>(args: &[S]) -> Ended {
    run_command(rumormill().args(args.iter().map(AsRef::as_ref)))
}

/// Runs a command, with its environment set by the caller, to its end.
pub(crate) fn run_command(command: &mut Command) -> Ended {
    Running::start(command).end()
}

/// A started command whose stderr can be waited for.
pub(crate) struct Running {
    child: Child,
    log: Arc<Log>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    ended: bool,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Running {
        let mut child = command.spawn().expect("the binary starts");
        let log = Arc::new(Log::default());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stdout.expect("piped").read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let writer = Arc::clone(&log);
        let stderr = std::thread::spawn(move || {
            let mut reader = BufReader::new(stderr.expect("piped"));
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
                line.clear();
                writer.state.lock().unwrap().lines.push(text);
                writer.changed.notify_all();
            }
            writer.state.lock().unwrap().ended = true;
            writer.changed.notify_all();
        });
        Running { child, log, stdout: Some(stdout), stderr: Some(stderr) }
    }

    /// Everything on stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.state.lock().unwrap().lines.join("\n")
    }

    /// Whether a line of stderr holds `text` so far.
    pub(crate) fn said(&self, text: &str) -> bool {
        self.log.state.lock().unwrap().lines.iter().any(|line| line.contains(text))
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&self) -> bool {
        !self.log.state.lock().unwrap().ended
    }

    /// Waits for a line of stderr that holds `text`, and returns it.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.state.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.contains(text)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let over = state.ended || left.is_zero();
            assert!(!over, "never said '{text}' (ended: {}):\n{}", state.ended, tail(&state.lines));
            state = self.log.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Sends a signal by its name: INT, KILL.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(status.expect("kill is installed").success(), "kill -{name} {pid}");
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            if Instant::now() > deadline {
                let lines = self.log.state.lock().unwrap().lines.clone();
                panic!("still running after {} s:\n{}", PATIENCE.as_secs(), tail(&lines));
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout = self.stdout.take().expect("taken once").join().unwrap();
        self.stderr.take().expect("taken once").join().unwrap();
        let mut stderr = self.log();
        if !stderr.is_empty() {
            stderr.push('\n');
        }
        Ended { code: status.code().unwrap_or(-1), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A child that has ended cannot be killed again.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(lines: &[String]) -> String {
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A row of a table: features, and whether it belongs to the second of two classes.
pub(crate) type Row = ([f64; 6], bool);

/// Rows of two clusters that differ in every feature, in some more than in others, and overlap a
/// little. The rows are those from `first` on of an endless table that is always the same.
pub(crate) fn clusters(rows: usize, first: usize) -> Vec<Row> {
    const CENTER: [f64; 6] = [1.0, -0.7, 0.5, 0.3, -0.2, 0.1];
    // The fractional parts of multiples of √2, √3, …: spread evenly, and never twice the same.
    let noise = |i: usize, k: usize| {
        let root = [2.0, 3.0, 5.0, 6.0, 7.0, 10.0_f64][k].sqrt();
        3.0 * ((i as f64 * root).fract() - 0.5)
    };
    (first..first + rows)
        .map(|i| {
            let second = i % 2 == 1;
            let sign = if second { 1.0 } else { -1.0 };
            (std::array::from_fn(|k| sign * CENTER[k] + noise(i, k)), second)
        })
        .collect()
}

/// Rows as CSV with a header and the label in the last column.
pub(crate) fn csv(rows: &[Row]) -> String {
    let mut text = "a,b,c,d,e,f,kind\n".to_owned();
    for (features, second) in rows {
        features.iter().for_each(|value| text += &format!("{value:.4},"));
        text += if *second { "second\n" } else { "first\n" };
    }
    text
}

/// Rows in LIBSVM's format.
pub(crate) fn libsvm(rows: &[Row]) -> String {
    let mut text = String::new();
    for (features, second) in rows {
        text += if *second { "+1" } else { "-1" };
        (1..).zip(features).for_each(|(index, value)| text += &format!(" {index}:{value:.4}"));
        text.push('\n');
    }
    text
}

/// Writes an MNIST-style folder: images of 4 × 4 pixels of which label `l` lights up two, gzipped
/// when `gz`.
pub(crate) fn write_idx_folder(folder: &Path, gz: bool) {
    for (part, rows) in [("train", 400_usize), ("t10k", 200)] {
        let mut images = idx_header(0x0803, &[rows, 4, 4]);
        let mut labels = idx_header(0x0801, &[rows]);
        for row in 0..rows {
            let label = row % 8;
            let pixel = |p: usize| if p / 2 == label { 200 } else { (row * 31 + p * 17) % 60 };
            images.extend((0..16).map(|p| pixel(p) as u8));
            labels.push(label as u8);
        }
        for (name, bytes) in [("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)] {
            let name = format!("{part}-{name}");
            if gz {
                std::fs::write(folder.join(name + ".gz"), gzip(&bytes)).unwrap();
            } else {
                std::fs::write(folder.join(name), bytes).unwrap();
            }
        }
    }
}

/// The first bytes of an idx file.
pub(crate) fn idx_header(magic: u32, dimensions: &[usize]) -> Vec<u8> {
    let mut bytes = magic.to_be_bytes().to_vec();
    for &extent in dimensions {
        bytes.extend((extent as u32).to_be_bytes());
    }
    bytes
}

/// Packs bytes as `gzip` does.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}
