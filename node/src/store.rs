//! What a node remembers: its log.
//!
//! One append-only file, `ledger.log`: a header that names format and run, then entries, each with
//! its length, the length's complement, and the first eight bytes of its BLAKE3. Entries are handed to the system before
//! anything that follows from them is sent, so nothing is lost by `kill -9`; with [`Sync::Always`]
//! the disk has confirmed them too, so nothing is lost with the power. An entry cut short at the
//! end of the file, or a tail of zeros as some file systems leave after a loss of power, was never
//! acted upon and is dropped; damage anywhere else is an error that says where. [`cut_off`] then drops
//! everything from there on: the rest is fetched from peers, one's own signed records too.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rumormill::codec;
use rumormill::height::CertifiedHeight;
use rumormill::id::RunId;
use rumormill::protocol::{Entry, Foundation};

use crate::resume::Logged;

/// Name of the log in a data directory.
pub const LOG_NAME: &str = "ledger.log";

/// First bytes of the log; the last two are the version of its format.
const MAGIC: [u8; 16] = *b"rumormill log 02";

/// The longest entry: a certified height of the largest roster and segments.
const ENTRY_LEN_MAX: usize = 256 << 20;

/// Length, its complement, checksum.
const ENTRY_HEADER_LEN: usize = 16;

/// Suffix of a log that is about to take the place of the one that is there.
const NEXT: &str = "log.next";

/// A log is not rewritten for less than this.
const COMPACTED_MIN: u64 = 1 << 20;

/// When the disk must have confirmed what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sync {
    /// Before one's own signatures leave the node: safe against loss of power.
    Always,
    /// Never asked for: safe against the death of the process, not of the machine.
    Never,
}

impl std::str::FromStr for Sync {
    type Err = String;
    fn from_str(name: &str) -> Result<Sync, String> {
        match name {
            "always" => Ok(Sync::Always),
            "never" => Ok(Sync::Never),
            _ => Err(format!("'{name}' is neither always nor never")),
        }
    }
}

/// Why the log cannot be used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no log of this format.
    #[error("{} is not a ledger log of this version of rumormill; use another data directory", path.display())]
    Format {
        /// The file.
        path: PathBuf,
    },
    /// The log has the format of another version.
    #[error(
        "{} has format {found}, this program reads format {}; use the version of rumormill that wrote \
         it, or another data directory", path.display(), format_version()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The format in the file.
        found: String,
    },
    /// The log belongs to another run.
    #[error(
        "{} belongs to run {found}, not to {expected}; use another data directory or the run.toml \
         it was made with", path.display()
    )]
    Run {
        /// The file.
        path: PathBuf,
        /// The run in the file.
        found: RunId,
        /// The run of the manifest.
        expected: RunId,
    },
    /// An entry is damaged.
    #[error(
        "{} is damaged at byte {offset}: {problem}; restore the file, or start once with --repair, which \
         drops it from there on and fetches the rest from peers", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// The log of a node, on disk or in memory.
pub struct Store {
    place: Place,
    /// Entries appended and not yet handed to the system.
    buffer: Vec<u8>,
    /// The buffer holds something that this node is about to sign for.
    urgent: bool,
    sync: Sync,
    /// The first height whose place is known: those before it were dropped.
    first: u64,
    /// Where each certified height from there on is.
    index: Vec<(u64, usize)>,
    /// Where what comes before all heights ends: header, votes, founders.
    prelude: u64,
    len: u64,
    /// The length after the last compaction.
    compacted: u64,
}

enum Place {
    Memory(Vec<u8>),
    Disk { file: File, path: PathBuf },
}

impl Store {
    /// A log that is forgotten with the process.
    pub fn memory() -> Store {
        Store {
            place: Place::Memory(Vec::new()),
            buffer: Vec::new(),
            urgent: false,
            sync: Sync::Never,
            first: 0,
            index: Vec::new(),
            prelude: 0,
            len: 0,
            compacted: 0,
        }
    }

    /// Opens or creates the log of a run in a data directory, and reads its entries.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(
        directory: &Path,
        run: RunId,
        sync: Sync,
    ) -> Result<(Store, Vec<Logged>), StoreError> {
        let path = directory.join(LOG_NAME);
        let io = |action, source| StoreError::Io { action, path: path.clone(), source };
        // Of a process that was killed while it rewrote the log.
        let _ = std::fs::remove_file(path.with_extension(NEXT));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| io("open", source))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| io("read", source))?;
        let header = [&MAGIC[..], &run.0].concat();
        let mut store = Store {
            place: Place::Disk { file, path: path.clone() },
            buffer: Vec::new(),
            urgent: false,
            sync,
            first: 0,
            index: Vec::new(),
            prelude: header.len() as u64,
            len: 0,
            compacted: 0,
        };
        if bytes.len() < header.len() && header.starts_with(&bytes) {
            store.truncate(0)?;
            store.buffer = header;
            store.urgent = true;
            store.flush()?;
            return Ok((store, Vec::new()));
        }
        if bytes.len() < header.len() || !bytes.starts_with(&MAGIC) {
            return Err(unknown(path, &bytes));
        }
        let found = RunId(bytes[MAGIC.len()..header.len()].try_into().expect("32 bytes"));
        if found != run {
            return Err(StoreError::Run { path, found, expected: run });
        }
        let entries = store.read_entries(&bytes, header.len())?;
        Ok((store, entries))
    }

    fn read_entries(&mut self, bytes: &[u8], start: usize) -> Result<Vec<Logged>, StoreError> {
        let Parsed { entries, end } =
            parse(bytes, start).map_err(|(offset, problem)| self.damaged(offset, problem))?;
        if end < bytes.len() {
            // Cut short by a crash: nothing that follows from it was sent.
            tracing::warn!(bytes = bytes.len() - end, "dropped an unfinished entry of the log");
            self.truncate(end as u64)?;
        }
        for (Logged { offset, entry }, len) in &entries {
            self.note(entry, offset + ENTRY_HEADER_LEN as u64, *len);
        }
        self.len = end as u64;
        Ok(entries.into_iter().map(|(logged, _)| logged).collect())
    }

    fn damaged(&self, offset: usize, problem: String) -> StoreError {
        let path = match &self.place {
            Place::Disk { path, .. } => path.clone(),
            Place::Memory(_) => PathBuf::new(),
        };
        StoreError::Damaged { path, offset: offset as u64, problem }
    }

    fn truncate(&mut self, len: u64) -> Result<(), StoreError> {
        if let Place::Disk { file, path } = &mut self.place {
            let shorten = |file: &mut File| {
                file.set_len(len)?;
                file.seek(SeekFrom::Start(len)).map(|_| ())
            };
            shorten(file).map_err(|source| StoreError::Io {
                action: "shorten",
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    fn note(&mut self, entry: &Entry, offset: u64, len: usize) {
        match entry {
            Entry::Certified(certified) => {
                let Some(at) = certified.height.checked_sub(self.first) else { return };
                self.index.truncate(at as usize);
                if self.index.len() as u64 == at {
                    self.index.push((offset, len));
                }
            }
            Entry::Foundation(foundation) => {
                self.first = foundation.certified;
                self.prelude = offset + len as u64;
            }
            Entry::Vote(_) | Entry::Founded(_) if self.index.is_empty() => {
                self.prelude = offset + len as u64;
            }
            _ => {}
        }
    }

    /// Adds an entry; [`Store::flush`] makes it last.
    pub fn append(&mut self, entry: &Entry) {
        let payload = codec::encode(entry);
        let offset = self.len + (self.buffer.len() + ENTRY_HEADER_LEN) as u64;
        self.note(entry, offset, payload.len());
        push_entry(&mut self.buffer, &payload);
        self.urgent |= !matches!(entry, Entry::Certified(_));
    }

    /// Hands everything appended to the system, and waits for the disk where the policy says so.
    ///
    /// # Errors
    /// The system refused, for instance because the disk is full; nothing that depends on the
    /// entries may be sent then.
    pub fn flush(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match &mut self.place {
            Place::Memory(bytes) => bytes.append(&mut self.buffer),
            Place::Disk { file, path } => {
                let written = file.write_all(&self.buffer).and_then(|()| {
                    if self.urgent && self.sync == Sync::Always { file.sync_data() } else { Ok(()) }
                });
                written.map_err(|source| StoreError::Io {
                    action: "write to",
                    path: path.clone(),
                    source,
                })?;
                self.len += self.buffer.len() as u64;
                self.buffer.clear();
            }
        }
        if let Place::Memory(bytes) = &self.place {
            self.len = bytes.len() as u64;
        }
        self.urgent = false;
        Ok(())
    }

    /// These certified heights; `None` when one of them is not kept.
    pub fn heights(&mut self, heights: std::ops::Range<u64>) -> Option<Vec<CertifiedHeight>> {
        let place = |height: u64| {
            let at = height.checked_sub(self.first)?;
            self.index.get(at as usize).copied()
        };
        let places: Vec<_> = heights.map(place).collect::<Option<_>>()?;
        places.into_iter().map(|(offset, len)| self.read_back(offset, len).ok()).collect()
    }

    /// The first certified height that is kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Whether it has grown so much that rewriting it pays.
    pub fn has_grown(&self) -> bool {
        self.len > 2 * self.compacted + COMPACTED_MIN
    }

    /// Drops what nobody needs any more: certificates that larger ones replaced, one's own records and acks of
    /// heights before `settled`, which are final, and with a foundation everything before that. The file is replaced as a whole.
    ///
    /// # Errors
    /// The system refused: the log is as it was.
    pub fn compact(
        &mut self,
        settled: u64,
        foundation: Option<Box<Foundation>>,
    ) -> Result<(), StoreError> {
        self.flush()?;
        let certified = self.first + self.index.len() as u64;
        if settled >= certified {
            return Ok(());
        }
        let from = foundation.as_ref().map_or(self.first, |of| of.certified);
        let head_len = if foundation.is_some() { self.header_len() } else { self.prelude as usize };
        let mut head = self.read(0, head_len).map_err(|source| self.io("read", source))?;
        if let Some(foundation) = foundation {
            push_entry(&mut head, &codec::encode(&Entry::Foundation(foundation)));
        }
        // One entry at a time: a long history would not fit beside what the node holds already.
        let skipped = from.saturating_sub(self.first) as usize;
        let mut kept: Vec<(u64, usize)> = self.index.iter().skip(skipped).copied().collect();
        let mut place = head.len() as u64;
        let heights = kept.iter().map(|&(_, len)| {
            let offset = place + ENTRY_HEADER_LEN as u64;
            place = offset + len as u64;
            (offset, len)
        });
        let index: Vec<(u64, usize)> = heights.collect();
        // Wherever they stand: a larger certificate writes later heights anew behind them.
        let mut at = self.header_len() as u64;
        while at < self.len {
            let (entry, len) = self.entry_at(at)?;
            let offset = at + ENTRY_HEADER_LEN as u64;
            if let Entry::Own { height, .. } | Entry::Acked { height, .. } = entry
                && height >= settled
            {
                kept.push((offset, len));
            }
            at = offset + len as u64;
        }
        self.rewrite(&head, &kept)?;
        (self.first, self.prelude, self.index) = (from, head.len() as u64, index);
        self.compacted = self.len;
        Ok(())
    }

    /// The entry that begins there, and the length of its payload.
    fn entry_at(&mut self, at: u64) -> Result<(Entry, usize), StoreError> {
        let read = |store: &mut Store, offset, len| {
            store.read(offset, len).map_err(|source| store.io("read", source))
        };
        let header = read(self, at, ENTRY_HEADER_LEN)?;
        let len = word(&header, 0) as usize;
        let whole = ENTRY_HEADER_LEN as u64 + len as u64;
        if word(&header, 0) != !word(&header, 4) || self.len - at < whole {
            return Err(self.damaged(at as usize, "its length is not plausible".into()));
        }
        let payload = read(self, at + ENTRY_HEADER_LEN as u64, len)?;
        let entry = entry_of(&header, &payload);
        Ok((entry.map_err(|problem| self.damaged(at as usize, problem))?, len))
    }

    fn header_len(&self) -> usize {
        match self.place {
            Place::Memory(_) => 0,
            Place::Disk { .. } => MAGIC.len() + 32,
        }
    }

    fn io(&self, action: &'static str, source: io::Error) -> StoreError {
        let path = match &self.place {
            Place::Disk { path, .. } => path.clone(),
            Place::Memory(_) => PathBuf::new(),
        };
        StoreError::Io { action, path, source }
    }

    /// Puts `head` and the entries of these payloads in place of the log, all or none.
    fn rewrite(&mut self, head: &[u8], kept: &[(u64, usize)]) -> Result<(), StoreError> {
        let entry = |store: &mut Store, &(offset, len): &(u64, usize)| {
            store.read(offset - ENTRY_HEADER_LEN as u64, ENTRY_HEADER_LEN + len)
        };
        let len = kept.iter().map(|&(_, len)| (ENTRY_HEADER_LEN + len) as u64).sum::<u64>();
        let path = match &self.place {
            Place::Memory(_) => {
                let mut bytes = head.to_vec();
                for place in kept {
                    bytes.extend(entry(self, place).map_err(|source| self.io("read", source))?);
                }
                self.place = Place::Memory(bytes);
                self.len = head.len() as u64 + len;
                return Ok(());
            }
            Place::Disk { path, .. } => path.clone(),
        };
        let next = path.with_extension(NEXT);
        let mut written = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).open(&next)?;
            let mut file = BufWriter::new(file);
            file.write_all(head)?;
            for place in kept {
                file.write_all(&entry(self, place)?)?;
            }
            let file = file.into_inner()?;
            file.sync_all()?;
            std::fs::rename(&next, &path)?;
            Ok(file)
        };
        let written = written().inspect_err(|_: &io::Error| {
            // It may hold the room that the log needs to go on.
            let _ = std::fs::remove_file(&next);
        });
        let file = written.map_err(|source| self.io("rewrite", source))?;
        // The name is on disk once the folder is; until then the old log is, whole.
        if let Some(folder) = path.parent().and_then(|folder| File::open(folder).ok()) {
            let _ = folder.sync_all();
        }
        self.place = Place::Disk { file, path };
        self.len = head.len() as u64 + len;
        Ok(())
    }

    /// Certified heights from `from` on, of at most about `bytes_max` bytes, at least one if there
    /// is one.
    pub fn history(&mut self, from: u64, bytes_max: usize) -> Vec<CertifiedHeight> {
        let mut heights = Vec::new();
        let mut used = 0;
        let skipped = from.saturating_sub(self.first) as usize;
        let wanted: Vec<(u64, usize)> = self.index.iter().skip(skipped).copied().collect();
        for (offset, len) in wanted {
            if used > 0 && used + len > bytes_max {
                break;
            }
            used += len;
            match self.read_back(offset, len) {
                Ok(height) => heights.push(height),
                Err(problem) => {
                    tracing::error!(offset, problem, "cannot read history back from the log");
                    break;
                }
            }
        }
        heights
    }

    /// A certified height from its place in the log. What the disk changed since is not served: peers
    /// would take this node for a liar.
    fn read_back(&mut self, offset: u64, len: usize) -> Result<CertifiedHeight, String> {
        let start = offset - ENTRY_HEADER_LEN as u64;
        let bytes = self.read(start, ENTRY_HEADER_LEN + len).map_err(|error| error.to_string())?;
        let (header, payload) = bytes.split_at(ENTRY_HEADER_LEN);
        match entry_of(header, payload)? {
            Entry::Certified(height) => Ok(height),
            _ => Err("it is no certified height".into()),
        }
    }

    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let start = offset as usize;
        if offset >= self.len {
            // Not handed to the system yet.
            let start = (offset - self.len) as usize;
            return Ok(self.buffer[start..start + len].to_vec());
        }
        match &mut self.place {
            Place::Memory(bytes) => Ok(bytes[start..start + len].to_vec()),
            Place::Disk { file, .. } => {
                let mut bytes = vec![0; len];
                file.seek(SeekFrom::Start(offset))?;
                file.read_exact(&mut bytes)?;
                file.seek(SeekFrom::End(0))?;
                Ok(bytes)
            }
        }
    }
}

/// An entry as the log has it.
fn push_entry(bytes: &mut Vec<u8>, payload: &[u8]) {
    let len = payload.len() as u32;
    bytes.extend(len.to_le_bytes());
    bytes.extend((!len).to_le_bytes());
    bytes.extend(&blake3::hash(payload).as_bytes()[..8]);
    bytes.extend(payload);
}

/// The entries of a log.
struct Parsed {
    /// Each entry, and the length of its payload.
    entries: Vec<(Logged, usize)>,
    /// Behind the last whole entry.
    end: usize,
}

/// Reads the entries behind the header; or says where something is wrong, and what.
fn parse(bytes: &[u8], start: usize) -> Result<Parsed, (usize, String)> {
    let mut entries = Vec::new();
    let mut at = start;
    while at < bytes.len() {
        let rest = &bytes[at..];
        // A file system that lost the power may leave zeros in place of what was written last.
        if rest.iter().all(|&byte| byte == 0) {
            break;
        }
        if rest.len() >= 8 && word(rest, 0) != !word(rest, 4) {
            return Err((at, "its length is not plausible".into()));
        }
        let Some(payload) = frame(rest) else { break };
        let entry =
            entry_of(&rest[..ENTRY_HEADER_LEN], payload).map_err(|problem| (at, problem))?;
        entries.push((Logged { offset: at as u64, entry }, payload.len()));
        at += ENTRY_HEADER_LEN + payload.len();
    }
    Ok(Parsed { entries, end: at })
}

/// Reads the log of a run without changing it, while a node may be writing it: its entries, and the
/// bytes of an unfinished one behind them.
///
/// # Errors
/// See [`StoreError`].
pub fn read(directory: &Path, run: RunId) -> Result<(Vec<Logged>, u64), StoreError> {
    let path = directory.join(LOG_NAME);
    let io = |source| StoreError::Io { action: "read", path: path.clone(), source };
    let bytes = std::fs::read(&path).map_err(io)?;
    let header_len = MAGIC.len() + run.0.len();
    if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) || bytes.len() < header_len {
        return Err(unknown(path, &bytes));
    }
    let found = RunId(bytes[MAGIC.len()..header_len].try_into().expect("32 bytes"));
    if found != run {
        return Err(StoreError::Run { path, found, expected: run });
    }
    let damaged = |(offset, problem)| StoreError::Damaged {
        path: path.clone(),
        offset: offset as u64,
        problem,
    };
    let Parsed { entries, end } = parse(&bytes, header_len).map_err(damaged)?;
    let entries = entries.into_iter().map(|(logged, _)| logged).collect();
    Ok((entries, (bytes.len() - end) as u64))
}

/// Drops a damaged log from `offset` on, and keeps a copy of the whole beside it; returns the copy's
/// name.
///
/// # Errors
/// The copy or the log cannot be written; the log is unchanged then.
pub fn cut_off(path: &Path, offset: u64) -> Result<PathBuf, StoreError> {
    let io = |action, source| StoreError::Io { action, path: path.into(), source };
    let name = |number: u32| path.with_extension(format!("log.damaged-{number}"));
    let copy = (1..).map(name).find(|copy| !copy.exists()).expect("numbers do not end");
    std::fs::copy(path, &copy).map_err(|source| io("copy", source))?;
    let cut = || {
        File::open(&copy)?.sync_all()?;
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(offset)?;
        file.sync_all()
    };
    cut().map_err(|source| io("shorten", source))?;
    Ok(copy)
}

/// A file that does not begin as logs of this version do.
fn unknown(path: PathBuf, bytes: &[u8]) -> StoreError {
    let name = &MAGIC[..MAGIC.len() - 2];
    match bytes.get(name.len()..MAGIC.len()).filter(|_| bytes.starts_with(name)) {
        Some(version) if *version != MAGIC[name.len()..] => {
            StoreError::Version { path, found: String::from_utf8_lossy(version).into_owned() }
        }
        _ => StoreError::Format { path },
    }
}

fn format_version() -> std::borrow::Cow<'static, str> {
    String::from_utf8_lossy(&MAGIC[MAGIC.len() - 2..])
}

/// What helps when the system refuses.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; make room and start the node again: it goes on from what is written"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "; the data directory must be writable"
        }
        _ => "",
    }
}

/// The entry of a payload, when its checksum is the header's.
fn entry_of(header: &[u8], payload: &[u8]) -> Result<Entry, String> {
    if blake3::hash(payload).as_bytes()[..8] != header[8..] {
        return Err("its checksum does not match".into());
    }
    codec::decode::<Entry, ENTRY_LEN_MAX>(payload).map_err(|error| error.to_string())
}

/// The payload of the entry at the start of `bytes`, or nothing when it is cut short.
fn frame(bytes: &[u8]) -> Option<&[u8]> {
    let len = word(bytes.get(..4)?, 0) as usize;
    bytes.get(ENTRY_HEADER_LEN..ENTRY_HEADER_LEN.checked_add(len)?)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rumormill::keys::Signature;
    use rumormill::ledger::Segment;

    const RUN: RunId = RunId([5; 32]);

    fn certified(height: u64) -> Entry {
        Entry::Certified(CertifiedHeight {
            height,
            segments: Default::default(),
            equivocators: Vec::new(),
            controls: Vec::new(),
            weight: height + 100,
            acks: Vec::new(),
        })
    }

    fn heights(store: &mut Store) -> Vec<(u64, u64)> {
        store.history(0, 1 << 20).iter().map(|h| (h.height, h.weight)).collect()
    }

    #[test]
    fn a_compacted_log_has_all_heights_and_only_the_last_own_records() {
        let own = |height: u64| {
            let (counts, bytes, signature) =
                (vec![3], vec![1, 2, 3], Signature([height as u8; 64]));
            Entry::Own { height, segment: Segment { counts, bytes, closed: false, signature } }
        };
        let directory = tempfile::tempdir().unwrap();
        let (on_disk, _) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        for mut store in [on_disk, Store::memory()] {
            store.append(&Entry::Founded(Vec::new()));
            for height in 0..20 {
                store.append(&own(height));
                store.append(&certified(height));
            }
            store.append(&own(20));
            let before = heights(&mut store);
            let len = store.len + store.buffer.len() as u64;
            store.compact(4, None).unwrap();
            assert!(store.len < len);
            assert_eq!(heights(&mut store), before);
            assert_eq!(store.heights(3..6).map(|heights| heights.len()), Some(3));
            assert_eq!(store.heights(19..21), None);
            store.compact(30, None).unwrap();
            // It goes on as before.
            store.append(&certified(20));
            store.flush().unwrap();
            assert_eq!(heights(&mut store).len(), 21);
            store.compact(10, None).unwrap();
            assert_eq!(heights(&mut store).len(), 21);
        }
        let (mut store, entries) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        let of = |wanted: fn(&Entry) -> bool| entries.iter().filter(|l| wanted(&l.entry)).count();
        assert_eq!(of(|entry| matches!(entry, Entry::Founded(_))), 1);
        assert_eq!(of(|entry| matches!(entry, Entry::Certified(_))), 21);
        // Those of heights 10 to 20, and none twice.
        assert_eq!(of(|entry| matches!(entry, Entry::Own { .. })), 11);
        assert_eq!(heights(&mut store).len(), 21);
        assert!(!directory.path().join("ledger.log.next").exists());
    }

    #[test]
    fn entries_survive_and_a_later_one_replaces_a_height_and_all_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut store, entries) = Store::open(directory.path(), RUN, Sync::Always).unwrap();
        assert!(entries.is_empty());
        let replaced = Entry::Certified(CertifiedHeight {
            weight: 999,
            ..match certified(1) {
                Entry::Certified(height) => height,
                _ => unreachable!(),
            }
        });
        for entry in [certified(0), certified(1), certified(2), replaced] {
            store.append(&entry);
        }
        let expected = [(0, 100), (1, 999)];
        assert_eq!(heights(&mut store), expected);
        store.flush().unwrap();
        assert_eq!(heights(&mut store), expected);
        drop(store);
        let (mut store, entries) = Store::open(directory.path(), RUN, Sync::Always).unwrap();
        assert_eq!(entries.len(), 4);
        assert_eq!(heights(&mut store), expected);
    }

    #[test]
    fn an_unfinished_entry_is_dropped_and_a_damaged_one_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_NAME);
        let (mut store, _) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        store.append(&certified(0));
        store.append(&certified(1));
        store.flush().unwrap();
        drop(store);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (mut store, entries) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        assert_eq!(entries.len(), 1);
        store.append(&certified(1));
        store.flush().unwrap();
        drop(store);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        let mut flipped = whole.clone();
        flipped[48 + ENTRY_HEADER_LEN] ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        let error = Store::open(directory.path(), RUN, Sync::Never).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("damaged at byte 48"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), flipped);
    }

    /// A small log with entries of several kinds, and how many there are.
    fn small_log(path: &Path) -> (Vec<u8>, Vec<Logged>) {
        let directory = path.parent().unwrap();
        let (mut store, _) = Store::open(directory, RUN, Sync::Never).unwrap();
        let keys = rumormill::keys::Keys::simulated(1);
        let limits = rumormill::ledger::SegmentLimits { rounds: 2, bytes_per_round: 8, audits: 0 };
        let context = rumormill::ledger::Context {
            run: &RUN,
            height: rumormill::id::Height(1),
            scheme: keys.scheme(),
            limits,
        };
        let segment = Segment::sign(&context, &keys, vec![3], vec![1, 2, 3], false);
        store.append(&certified(0));
        store.append(&Entry::Own { height: 1, segment });
        store.append(&certified(1));
        store.flush().unwrap();
        drop(store);
        let (_, entries) = Store::open(directory, RUN, Sync::Never).unwrap();
        (std::fs::read(path).unwrap(), entries)
    }

    #[test]
    fn a_flipped_bit_anywhere_is_an_error_that_says_where_and_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_NAME);
        let (whole, _) = small_log(&path);
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            std::fs::write(&path, &flipped).unwrap();
            let error = Store::open(directory.path(), RUN, Sync::Never).map(|_| ()).unwrap_err();
            match (at, &error) {
                (0..14, StoreError::Format { .. })
                | (14..16, StoreError::Version { .. })
                | (16..48, StoreError::Run { .. }) => {}
                (48.., StoreError::Damaged { offset, .. }) => assert!(*offset <= at as u64),
                _ => panic!("byte {at}: {error}"),
            }
            assert!(error.to_string().contains(LOG_NAME), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), flipped);
        }
    }

    #[test]
    fn a_log_cut_anywhere_keeps_its_whole_entries() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_NAME);
        let (whole, entries) = small_log(&path);
        for len in 0..whole.len() {
            for tail in [0, 1, 4096] {
                let zeros = vec![0; tail];
                std::fs::write(&path, [&whole[..len], &zeros].concat()).unwrap();
                let opened = Store::open(directory.path(), RUN, Sync::Never);
                if len < 48 && tail > 0 {
                    // Zeros in a header are another run's.
                    continue;
                }
                match opened {
                    Ok((_, kept)) => assert_eq!(kept, entries[..kept.len()], "cut at {len}"),
                    // Part of an entry, then zeros in place of the rest.
                    Err(error) => assert!(tail > 0, "cut at {len}: {error}"),
                }
            }
        }
        std::fs::write(&path, [&whole[..], &[0; 4096]].concat()).unwrap();
        let (_, kept) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        assert_eq!(kept, entries, "zeros behind a whole log are dropped");
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }

    #[test]
    fn history_that_the_disk_changed_is_not_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_NAME);
        let (mut store, _) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
        for height in 0..3 {
            store.append(&certified(height));
        }
        store.flush().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let (second, len) = (store.index[1].0 as usize, store.index[1].1);
        bytes[second + len - 1] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(heights(&mut store), [(0, 100)]);
    }

    #[test]
    fn a_damaged_log_is_cut_off_and_its_copy_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(LOG_NAME);
        let (mut damaged, entries) = small_log(&path);
        let at = damaged.len() - 1;
        damaged[at] ^= 1;
        for number in 1..3 {
            std::fs::write(&path, &damaged).unwrap();
            let offset = match Store::open(directory.path(), RUN, Sync::Never).map(|_| ()) {
                Err(StoreError::Damaged { offset, .. }) => offset,
                other => panic!("{other:?}"),
            };
            let copy = cut_off(&path, offset).unwrap();
            assert_eq!(
                copy.file_name().unwrap().to_str(),
                Some(&*format!("ledger.log.damaged-{number}"))
            );
            assert_eq!(std::fs::read(copy).unwrap(), damaged);
            let (_, kept) = Store::open(directory.path(), RUN, Sync::Never).unwrap();
            assert_eq!(kept, entries[..2]);
        }
    }

    #[test]
    fn the_log_of_another_run_and_other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path(), RUN, Sync::Never).unwrap());
        let error = Store::open(directory.path(), RunId([6; 32]), Sync::Never).map(|_| ());
        assert!(matches!(error, Err(StoreError::Run { .. })));
        std::fs::write(
            directory.path().join(LOG_NAME),
            b"something else, and longer than a header",
        )
        .unwrap();
        let error = Store::open(directory.path(), RUN, Sync::Never).map(|_| ());
        assert!(matches!(error, Err(StoreError::Format { .. })));
    }
}
