//! Who this node is: an Ed25519 key in its data directory, and the directory's lock.
//!
//! The file `identity.key` is one line of text, `rumormill-ed25519-seed-1`, a space and the 32
//! bytes of the seed as 64 hexadecimal digits. It is readable by its owner only, and written
//! whole or not at all: first under another name, flushed to the disk, then given its own name if
//! none has it yet.
//!
//! The lock keeps two daemons off one directory, and so from signing different things with one
//! key. It is the operating system's and ends with the process, however that ends.

use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, ed25519};
use rumormill::id::NodeId;

/// The name of the key's file in the data directory.
pub const FILE_NAME: &str = "identity.key";

/// The name of the lock's file in the data directory.
pub const LOCK_FILE_NAME: &str = "lock";

const TAG: &str = "rumormill-ed25519-seed-1";

/// Longer than any valid file; what is longer is not read.
const FILE_LEN_MAX: u64 = 256;

/// A node's secret key.
#[derive(Clone)]
pub struct Identity {
    seed: [u8; 32],
    keypair: ed25519::Keypair,
}

/// Why there is no identity. No file was changed, unless its name says that one was created.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read.
    #[error("cannot read the identity {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be created.
    #[error("cannot create the identity {}: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what this program writes.
    #[error(
        "the identity {} is damaged: {found}; restore it from a backup, or move it away to start \
         as a new node", path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// Others may read the file.
    #[error(
        "the identity {path} is open to others (mode {mode:03o}); if nobody has read it: \
         chmod 600 {path}", path = path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Why the data directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "the data directory {} is in use by another node; stop that one or choose another \
         directory", directory.display()
    )]
    InUse {
        /// The directory.
        directory: PathBuf,
    },
    /// The lock file cannot be made or locked.
    #[error("cannot lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Identity {
    /// Reads the identity in `directory`, or makes one there on the first start. If two processes
    /// do so at once, both get the same.
    ///
    /// # Errors
    /// If the file is there and is unreadable, damaged or open to others, or cannot be created.
    pub fn load_or_create(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(FILE_NAME);
        match Self::load(&path) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::generate().save(directory)?;
                // Whoever was first has written the file that counts.
                Self::load(&path)
            }
            loaded => loaded,
        }
    }

    /// Reads the identity in `directory`; without one, as in a copy for others to check, a fresh one that
    /// is not written down.
    ///
    /// # Errors
    /// If the file is there and is unreadable, damaged or open to others.
    pub fn load_or_any(directory: &Path) -> Result<Self, IdentityError> {
        match Self::load(&directory.join(FILE_NAME)) {
            Err(IdentityError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Self::generate())
            }
            loaded => loaded,
        }
    }

    /// Whether a directory holds an identity, readable or not.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE_NAME).exists()
    }

    /// Writes the identity into a directory, which is made if it does not exist. An identity that
    /// is already there stays.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn save(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(FILE_NAME);
        let failed = |source| IdentityError::Create { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        create(directory, &path, self).map_err(failed)
    }

    /// Reads an identity from its file.
    ///
    /// # Errors
    /// If the file is missing, unreadable, damaged or open to others.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Read { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        if let Some(mode) = open_to_others(&file).map_err(failed)? {
            return Err(IdentityError::Open { path: path.into(), mode });
        }
        let mut text = Vec::new();
        file.take(FILE_LEN_MAX).read_to_end(&mut text).map_err(failed)?;
        parse(&text)
            .map(Self::from_seed)
            .map_err(|found| IdentityError::Damaged { path: path.into(), found })
    }

    /// A new identity from the system's randomness.
    pub fn generate() -> Self {
        let secret = ed25519::SecretKey::generate();
        let seed = secret.as_ref().try_into().expect("an Ed25519 seed has 32 bytes");
        Self::from_seed(seed)
    }

    /// The identity of a seed.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        let mut copy = seed;
        let secret =
            ed25519::SecretKey::try_from_bytes(&mut copy).expect("any 32 bytes are a seed");
        Self { seed, keypair: secret.into() }
    }

    /// The 32 bytes that everything else follows from. Whoever has them is this node.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The key for libp2p.
    pub fn to_keypair(&self) -> Keypair {
        self.keypair.clone().into()
    }

    /// The name for the protocol: the public key itself.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.keypair.public().to_bytes())
    }

    /// The name for libp2p.
    pub fn peer_id(&self) -> PeerId {
        self.to_keypair().public().to_peer_id()
    }
}

/// Shows who it is, never the secret.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer_id())
    }
}

/// The node behind a libp2p name, if that holds an Ed25519 key.
pub fn node_of(peer: PeerId) -> Option<NodeId> {
    // Ed25519 keys are short enough that the name holds the key itself, not its hash.
    const IDENTITY_HASH: u64 = 0;
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    Some(NodeId(key.to_bytes()))
}

/// The libp2p name of a node; `None` if its id is no public key.
pub fn peer_of(node: NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

fn parse(text: &[u8]) -> Result<[u8; 32], String> {
    let text = std::str::from_utf8(text).map_err(|_| "not text".to_owned())?;
    if text.is_empty() {
        return Err("empty".into());
    }
    let digits = text
        .strip_prefix(TAG)
        .and_then(|rest| rest.strip_prefix(' '))
        .ok_or_else(|| format!("does not begin with {TAG:?}"))?;
    let digits = digits.strip_suffix('\n').ok_or("ends early or is too long")?;
    if digits.len() != 64 {
        return Err(format!("{} digits instead of 64", digits.len()));
    }
    let mut seed = [0; 32];
    for (byte, pair) in seed.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or("not hexadecimal");
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Ok(seed)
}

/// Writes the file under another name and gives it its own only if nobody has it.
fn create(directory: &Path, path: &Path, identity: &Identity) -> io::Result<()> {
    let mut line = format!("{TAG} ");
    for byte in identity.seed {
        write!(line, "{byte:02x}").expect("a string takes every character");
    }
    line.push('\n');
    // Its own name for each process and thread, so that none writes into another's.
    let unfinished = directory.join(format!(
        "{FILE_NAME}.{}.{:016x}",
        std::process::id(),
        name_suffix(identity)
    ));
    let written = (|| {
        let mut file = private_file().open(&unfinished)?;
        file.write_all(line.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&unfinished, path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            // Some file systems know no links. There the last of several first starts wins.
            Err(_) => fs::rename(&unfinished, path),
        }
    })();
    // If this fails, a file stays behind that nobody reads.
    let _ = fs::remove_file(&unfinished);
    written?;
    sync_directory(directory)
}

fn name_suffix(identity: &Identity) -> u64 {
    let public = identity.node_id().0;
    u64::from_le_bytes(public[..8].try_into().expect("8 of 32 bytes"))
}

#[cfg(unix)]
fn private_file() -> OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
}

#[cfg(not(unix))]
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    options
}

/// The permission bits, if they let anyone but the owner in.
#[cfg(unix)]
fn open_to_others(file: &File) -> io::Result<Option<u32>> {
    use std::os::unix::fs::PermissionsExt;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    Ok((mode & 0o077 != 0).then_some(mode))
}

#[cfg(not(unix))]
fn open_to_others(_: &File) -> io::Result<Option<u32>> {
    Ok(None)
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Other systems do not open directories as files.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// The sole right to a data directory, until dropped.
#[derive(Debug)]
pub struct DirectoryLock {
    /// Held for its lock.
    _file: File,
}

impl DirectoryLock {
    /// Takes the directory, which is made if it does not exist.
    ///
    /// # Errors
    /// If another process holds it, or the lock file cannot be made.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(LOCK_FILE_NAME);
        let failed = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse { directory: directory.into() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn the_second_start_finds_the_first_ones_identity() {
        let directory = directory();
        let below = directory.path().join("made/on/the/way");
        let first = Identity::load_or_create(&below).unwrap();
        let second = Identity::load_or_create(&below).unwrap();
        assert_eq!(first.seed(), second.seed());
        let files: Vec<_> = fs::read_dir(&below).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(files, [FILE_NAME], "nothing unfinished stays");
    }

    #[test]
    fn simultaneous_first_starts_agree() {
        let directory = directory();
        let seeds: Vec<_> = std::thread::scope(|scope| {
            let start = || *Identity::load_or_create(directory.path()).unwrap().seed();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seeds.iter().all(|seed| *seed == seeds[0]));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let directory = directory();
        Identity::load_or_create(directory.path()).unwrap();
        let path = directory.path().join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(directory.path()).unwrap_err().to_string();
        assert!(error.contains("mode 644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let directory = directory();
        Identity::load_or_create(directory.path()).unwrap();
        let path = directory.path().join(FILE_NAME);
        let whole = fs::read(&path).unwrap();
        let mut not_hex = whole.clone();
        not_hex[TAG.len() + 5] = b'x';
        let long = [whole.clone(), whole.clone()].concat();
        let damaged = [&b""[..], &whole[..10], &whole[..whole.len() - 1], &not_hex, &long, b"\xff"];
        for bytes in damaged {
            fs::write(&path, bytes).unwrap();
            let error = Identity::load_or_create(directory.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(FILE_NAME), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn names_convert_both_ways() {
        let identity = Identity::from_seed([7; 32]);
        assert_eq!(node_of(identity.peer_id()), Some(identity.node_id()));
        assert_eq!(peer_of(identity.node_id()), Some(identity.peer_id()));
        // A random libp2p name is a hash of no key.
        assert_eq!(node_of(PeerId::random()), None);
    }

    /// RFC 8032, section 7.1, test 1.
    #[test]
    fn a_seed_gives_its_public_key() {
        let hex = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed = parse(format!("{TAG} {hex}\n").as_bytes()).unwrap();
        let public = Identity::from_seed(seed).node_id().to_string();
        assert_eq!(public, "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    }

    #[test]
    fn a_directory_has_one_holder() {
        let directory = directory();
        let lock = DirectoryLock::acquire(directory.path()).unwrap();
        let error = DirectoryLock::acquire(directory.path()).unwrap_err();
        assert!(matches!(error, LockError::InUse { .. }), "{error}");
        drop(lock);
        DirectoryLock::acquire(directory.path()).unwrap();
    }
}
