//! Audits: with public data a lie is measured, not guessed.
//!
//! Once a height is certified, every member derives a few of its records from its own signature on the
//! certified digest, which nobody else can foresee; repeats those probes (same direction, same
//! minibatch, and the model of the record's round, which it keeps beside the present one); and appends seed
//! and bytes to its own segment of the height after next. So an audit costs one byte, and signing, relaying,
//! agreement and equivocation are those of any record. Bytes of one probe measured twice correlate near 0.99, those
//! of two honest nodes along one direction near 0.1: ten repetitions tell a liar from an honest node
//! whatever the lie, where rules that compare origins are blind.
//!
//! Auditors lie, too. Whom most auditors, each on its own, find honest, is measured by all of them, and an
//! auditor whose repetitions of what all those did do not fit is not heard ([`Panel`]). An origin's *score* is a
//! correlation over the last [`WINDOW`] heights: of the auditors' own correlations a third of the members' number is
//! left out on either side, so that so many that lie about one origin alone, or copy
//! what they should repeat, cannot move the rest beyond what honest ones found. A score below
//! [`LOW`] of the usual one, and lower than chance makes the usual, whichever height is left out, excludes the origin.
//! Before that it is *doubted* ([`Panel::doubted`]). Everything is a function of certified
//! records: the verdict is the same everywhere.

use crate::height::SetDigest;
use crate::id::{Height, NodeId, Origin, RunId};
use crate::keys::{Keys, Scheme, Signature};
use crate::lb8;
use crate::manifest::Manifest;
use crate::sample::KeyedRng;

/// Bytes of an audit section before its audits: the auditor's signature on the digest.
pub const SEED_LEN: usize = 64;

/// Heights that are looked back on for a score, at most.
pub const WINDOW: u64 = 16;

/// Records of one origin that an auditor repeats in a height: two, so that many auditors see it.
const PER_ORIGIN: usize = 2;

/// What the repetitions of an origin must be worth for a verdict ([`Pooled::worth`]), whichever height is left out.
const WORTH_MIN: u32 = 10;

/// Repetitions that must be left in the middle. With four, and 0.6 for [`LOW`], verdicts took up to 87 rounds instead of 60.
const KEPT_MIN: u32 = 2;

/// A verdict asks for a score below so much of the usual one. Measured: honest origins score 0.94 to 1, and never below
/// 0.88 of the usual where a model jumps about (4,343 scores); liars below 0.4 and who repeats another's bytes 0.2 to
/// 0.8 (`ARCHITECTURE.md`, "Audits").
const LOW: f64 = 0.8;

/// Deviations below the usual that a verdict asks for at first ([`unusual`], [`deviations`]), where few repetitions or
/// a low usual score ask for more than [`LOW`] does.
const VERDICT_DEVIATIONS: f64 = 4.0;

/// By how much honest nodes' scores differ other than by chance, in Fisher's transformation: the model of a record may be
/// one round newer than that of its repetition, or lack what came late.
const DIFFERENCE: f64 = 0.15;

/// Deviations below the usual from which on an auditor is not heard, of its repetitions of whom most find honest.
const BELIEF_DEVIATIONS: f64 = 2.5;

/// Origins are found honest, and auditors that find it agree, above it.
const HONEST: f64 = 0.75;

/// Below it an origin may be doubted.
const DOUBTFUL: f64 = 0.7;

/// An auditor is not heard whose repetitions of those whom most find honest correlate less, and less than
/// chance makes the usual: honest ones reach 0.9, who reports the opposite −0.8, who reports anything 0.
const BELIEVED: f64 = 0.3;

/// Repetitions of those whom most find honest, before an auditor is heard at all.
const BELIEF_MIN: u32 = 4;

/// Repetitions, the newest, by which an origin is doubted, of so many auditors at least. Doubt can be withdrawn:
/// it may err more often than a verdict, and comes the sooner.
const DOUBT_MIN: u32 = 8;

/// Auditors that doubt needs: most of three find lies where one of them lies.
const DOUBTERS_MIN: usize = 3;

/// Deviations below the usual from which on an origin is doubted.
const DOUBT_DEVIATIONS: f64 = 2.0;

/// Values are clipped at so many standard deviations of the height's scale, so that a few large honest
/// values do not hide many small lies.
const CLIP: f64 = 3.0;

/// Probes that a member repeats for each height; none when audits are off.
pub fn per_height(manifest: &Manifest) -> usize {
    let probes = manifest.probes_per_round as usize * manifest.rounds_per_height as usize;
    (probes * usize::from(manifest.audit_permille)).div_ceil(1000)
}

/// The most bytes of an audit section; zero when audits are off.
pub fn section_len_max(manifest: &Manifest) -> usize {
    match per_height(manifest) {
        0 => 0,
        audits => SEED_LEN + audits,
    }
}

fn statement(run: &RunId, height: Height, digest: &SetDigest) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("rumormill v1 audit seed");
    hasher.update(&run.0).update(&height.0.to_le_bytes()).update(digest);
    *hasher.finalize().as_bytes()
}

/// The seed of a member's audits of a certified height. Ed25519 signatures are deterministic, so an
/// auditor cannot choose among seeds.
pub fn seed(run: &RunId, height: Height, digest: &SetDigest, keys: &Keys) -> Signature {
    keys.sign(&statement(run, height, digest))
}

/// Whether a seed is that of `auditor`.
pub fn is_seed_of(
    auditor: &NodeId,
    seed: &Signature,
    run: &RunId,
    height: Height,
    digest: &SetDigest,
    scheme: Scheme,
) -> bool {
    scheme.verify(auditor, &statement(run, height, digest), seed)
}

/// A record that is to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose record.
    pub origin: Origin,
    /// Its position among the origin's records of the height.
    pub index: usize,
}

/// What `auditor` repeats of a certified height. `records` gives an origin's records of that height,
/// empty where none are to be audited.
///
/// *Whom* it audits rotates over the members, so that in few heights many auditors see each origin;
/// *which* records follows from the seed.
pub fn targets<'a>(
    manifest: &Manifest,
    run: &RunId,
    height: Height,
    auditor: Origin,
    seed: &Signature,
    roster_len: usize,
    records: impl Fn(Origin) -> &'a [u8],
) -> Vec<Target> {
    let wanted = per_height(manifest);
    let origins = wanted.div_ceil(PER_ORIGIN).min(roster_len).max(1);
    let turns = (roster_len / origins).max(1) as u64;
    let parts: [&[u8]; 2] = [&auditor.0.to_le_bytes(), &(height.0 / turns).to_le_bytes()];
    let mut order = KeyedRng::new("rumormill v1 audit turns", run, &parts)
        .permutation(roster_len as u32)
        .into_iter()
        .map(|at| Origin(at as u16))
        .collect::<Vec<Origin>>();
    order.rotate_left((height.0 % turns) as usize * origins);
    order.retain(|&origin| origin != auditor && !records(origin).is_empty());
    let mut rng = KeyedRng::new("rumormill v1 audit targets", run, &[&seed.0]);
    let mut targets = Vec::with_capacity(wanted);
    for &origin in order.iter().cycle().take(if order.is_empty() { 0 } else { origins }) {
        let records = records(origin);
        for _ in 0..PER_ORIGIN.min(wanted - targets.len()) {
            let index = rng.index(records.len() as u32) as usize;
            if records[index] != lb8::ABSTAIN {
                targets.push(Target { origin, index });
            }
        }
    }
    targets
}

/// What one auditor found of one origin in one height.
#[derive(Clone, Copy, Debug, PartialEq, bincode::Encode, bincode::Decode)]
pub struct Sample {
    /// Who repeated.
    pub auditor: Origin,
    /// Whose records.
    pub origin: Origin,
    /// Sum of products of record and repetition, in units of the scale.
    product: f64,
    /// Sum of squares of records.
    record: f64,
    /// Sum of squares of repetitions.
    repeated: f64,
    /// Repetitions.
    count: u32,
}

impl Sample {
    /// Nothing found yet.
    pub fn new(auditor: Origin, origin: Origin) -> Sample {
        Sample { auditor, origin, product: 0.0, record: 0.0, repeated: 0.0, count: 0 }
    }

    /// Adds a repetition: two bytes of one scale. Abstentions say nothing.
    pub fn add(&mut self, record: u8, repetition: u8) {
        let value = |byte| Some(f64::from(lb8::decode(byte, 0)?).clamp(-CLIP, CLIP));
        if let (Some(record), Some(repeated)) = (value(record), value(repetition)) {
            self.product += record * repeated;
            self.record += record * record;
            self.repeated += repeated * repeated;
            self.count += 1;
        }
    }

    /// Whether its repetitions can be those of a height: sums of them stay within their range.
    pub(crate) fn is_plausible(&self) -> bool {
        self.count <= u32::from(u16::MAX)
    }

    fn join(&mut self, other: &Sample) {
        self.product += other.product;
        self.record += other.record;
        self.repeated += other.repeated;
        self.count += other.count;
    }

    fn correlation(&self) -> f64 {
        let scale = (self.record * self.repeated).sqrt();
        if scale > 0.0 { self.product / scale } else { 0.0 }
    }
}

/// What audits say of an origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Correlation of its bytes with their repetitions, in [−1, 1].
    pub correlation: f64,
    /// Auditors that were heard.
    pub auditors: usize,
    /// Repetitions, before any were left out.
    pub samples: u32,
    /// Whether it is a liar's.
    pub convicts: bool,
}

/// Deviations from the usual that are asked for: more as heights pass, by `log₂(height)/6`. There is a verdict at
/// every height, and the probabilities of an error must not add up however many follow.
fn deviations(at_first: f64, height: Height) -> f64 {
    at_first + f64::from(height.0.max(1).ilog2()) / 6.0
}

/// A correlation that is lower than `usual` by so many deviations, as chance makes them among `count`
/// repetitions; −1 where they are too few to say.
///
/// Fisher's transformation `ln((1 + r)/(1 − r))/2` of a correlation is nearly normal with variance
/// `1/(count − 3)`; honest nodes differ, too, by [`DIFFERENCE`].
fn unusual(usual: f64, count: u32, deviations: f64) -> f64 {
    if count <= 3 {
        return -1.0;
    }
    let variance = 1.0 / f64::from(count - 3) + DIFFERENCE * DIFFERENCE;
    // (1 + x/64)^64 for exp(x): only the basic operations are the same on every machine.
    let x = 2.0 * deviations * variance.sqrt();
    let shrunk = 1.0 / (0..6).fold(1.0 + x / 64.0, |power, _| power * power);
    let usual = usual.clamp(-0.99, 0.99);
    let odds = (1.0 + usual) / (1.0 - usual) * shrunk;
    (odds - 1.0) / (odds + 1.0)
}

/// The middle one, of two the higher: most are honest.
fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What was found in the heights that are looked back on, by whom that is heard.
///
/// A majority of honest auditors is enough to find out which auditors lie about many: an origin whose
/// records fit the repetitions of most of its auditors is *found honest*, by a median that less than
/// half of them cannot move beyond what honest ones found; and who reports of those, taken together,
/// that they lie is itself the liar. Who has repeated less than [`BELIEF_MIN`] of them is not heard yet; nor is anybody
/// while most do not fit. Liars found out in this way are no longer among the `faulty` whose findings
/// are left out on either side of a score.
///
/// How well honest repetitions fit depends on the run: a model that jumps about between a probe and its
/// repetition leaves less. So what is low is measured by what is usual among all ([`unusual`]).
pub struct Panel<'a> {
    /// The newest height.
    height: Height,
    /// From the newest height to the oldest; in each those of an origin together, by origin.
    heights: Vec<&'a [Sample]>,
    /// Those whose records count for nothing any more, in order.
    out: Vec<Origin>,
    /// Auditors that are not heard, in order; those that are out among them.
    unheard: Vec<Origin>,
    /// Members that may lie in one accord.
    third: usize,
    /// Auditors that may lie and are heard nevertheless.
    faulty: usize,
}

/// A correlation and what it was made of.
#[derive(Clone, Copy)]
struct Pooled {
    correlation: f64,
    /// As many repetitions, all of them counted, make a correlation as certain: what is left in the middle
    /// when the `f` extreme of `n` auditors on either side are out has not lost what they said, only how
    /// far out they were. `1 − 3f/4n` is below the efficiency of such a trimmed mean of normal values, down to
    /// the median's 2/π.
    worth: u32,
    /// Repetitions in the middle.
    kept: u32,
    /// Whether most of the auditors, each on its own, find less than [`DOUBTFUL`].
    most_find_lies: bool,
    auditors: usize,
    samples: u32,
}

impl<'a> Panel<'a> {
    /// From the samples of heights, from the newest, `height`, to the oldest, in each those of an origin
    /// together, by origin. Those who do not `count` are not heard, nor are they what others are measured by; of the
    /// others `faulty` may lie as auditors.
    pub fn new(
        height: Height,
        heights: impl Iterator<Item = &'a [Sample]>,
        faulty: usize,
        counts: impl Fn(Origin) -> bool,
    ) -> Panel<'a> {
        let heights: Vec<&[Sample]> = heights.collect();
        let all = || heights.iter().flat_map(|height| height.iter());
        let mut out: Vec<Origin> =
            all().flat_map(|sample| [sample.auditor, sample.origin]).collect();
        out.sort_unstable();
        out.dedup();
        out.retain(|&origin| !counts(origin));
        let mut unheard = out.clone();
        let [disbelieved, unproven] = not_believed(height, all(), &unheard);
        let third = faulty;
        let faulty = third.saturating_sub(disbelieved.len());
        unheard.extend(disbelieved.into_iter().chain(unproven));
        unheard.sort_unstable();
        Panel { height, heights, out, unheard, third, faulty }
    }

    /// The scores of origins `0 .. roster_len`; `None` where little was found.
    ///
    /// A score is a correlation over all heights that are looked back on, of the auditors that are left when the
    /// `faulty` lowest and highest are out. It convicts below [`LOW`] times the usual one of all origins, if it is also
    /// lower than chance makes the usual. A liar that was honest before comes below it in about four heights.
    ///
    /// Enough are `2·faulty + 1` auditors and repetitions that are worth [`WORTH_MIN`] and leave [`KEPT_MIN`] in the middle without any one of the
    /// heights: of the correlations that leave out one height the best counts. A larger certificate may deal
    /// the slots of a height anew after honest nodes have measured them, so that their bytes there fit nothing.
    pub fn scores(&self, roster_len: usize) -> Vec<Option<Score>> {
        let found: Vec<Option<Pooled>> =
            (0..roster_len as u16).map(|origin| self.without_one(Origin(origin))).collect();
        let scored = (0..).map(Origin).zip(&found);
        let usual = self.usual(scored.filter_map(|(of, found)| Some((of, found.as_ref()?))));
        let allowed = deviations(VERDICT_DEVIATIONS, self.height);
        let score = |of: Pooled| {
            let low = (LOW * usual).min(unusual(usual, of.worth, allowed));
            let Pooled { correlation, auditors, samples, .. } = of;
            Score { correlation, auditors, samples, convicts: correlation < low }
        };
        let enough = |of: &Pooled| of.worth >= WORTH_MIN && of.kept >= KEPT_MIN;
        found.into_iter().map(|of| of.filter(enough).map(score)).collect()
    }

    /// Origins below `roster_len` that the newest repetitions speak against, in order: less certain than a
    /// verdict, but sooner, and withdrawn when later ones speak for them.
    ///
    /// Of an origin's newest heights as many count as have [`DOUBT_MIN`] repetitions by [`DOUBTERS_MIN`] auditors that are
    /// heard, or all heights that are looked back on if they say worse. It is doubted where most of those auditors, each on its own, find less than [`DOUBTFUL`], and all together
    /// less than that and than chance makes the usual one of all origins.
    pub fn doubted(&self, roster_len: usize) -> Vec<Origin> {
        let lowest = |origin: Origin| {
            let all = self.all_of(origin)?;
            let newest = (1..=self.heights.len()).find_map(|to| self.newest_of(origin, to))?;
            Some(if newest.correlation <= all.correlation { newest } else { all })
        };
        let found: Vec<(Origin, Pooled)> = (0..roster_len as u16)
            .filter_map(|origin| Some((Origin(origin), lowest(Origin(origin))?)))
            .collect();
        let usual = self.usual(found.iter().map(|(origin, of)| (*origin, of)));
        let is_doubted = |of: &Pooled| {
            let low = DOUBTFUL.min(unusual(usual, of.worth, DOUBT_DEVIATIONS));
            of.most_find_lies && of.correlation < low
        };
        found.into_iter().filter(|(_, of)| is_doubted(of)).map(|(origin, _)| origin).collect()
    }

    /// All that auditors that are heard found of an origin; `None` where it is too little for a doubt.
    fn all_of(&self, origin: Origin) -> Option<Pooled> {
        self.newest_of(origin, self.heights.len())
    }

    /// The same of the newest `heights`.
    fn newest_of(&self, origin: Origin, heights: usize) -> Option<Pooled> {
        let found = self.heights[..heights].iter().flat_map(|height| self.heard(height, origin));
        pooled(origin, found, 0).filter(|of| of.samples >= DOUBT_MIN && of.auditors >= DOUBTERS_MIN)
    }

    /// The usual score of honest origins: the highest without a third of the members, of all that count and of whom
    /// enough is known. Nearly half of them may be liars, and then the middle one is the worst of the honest; and a third
    /// that contrive to fit better than anybody do not set it. −1, which nobody is below, while they are too few.
    fn usual<'b>(&self, found: impl Iterator<Item = (Origin, &'b Pooled)>) -> f64 {
        let counts = |(origin, of): &(Origin, &Pooled)| {
            self.out.binary_search(origin).is_err() && of.worth >= WORTH_MIN / 2
        };
        let mut found: Vec<f64> = found.filter(counts).map(|(_, of)| of.correlation).collect();
        found.sort_by(|a, b| b.total_cmp(a));
        found.get(self.third).copied().unwrap_or(-1.0)
    }

    /// What auditors that are heard found of an origin in a height.
    fn heard(&self, height: &'a [Sample], origin: Origin) -> impl Iterator<Item = &'a Sample> {
        let from = height.partition_point(|sample| sample.origin < origin);
        let of_origin = height[from..].iter().take_while(move |sample| sample.origin == origin);
        of_origin.filter(|sample| {
            sample.count > 0 && self.unheard.binary_search(&sample.auditor).is_err()
        })
    }

    /// The best of what is left of an origin's audits without one height, and the least that such a rest is worth.
    fn without_one(&self, origin: Origin) -> Option<Pooled> {
        let heights: Vec<Vec<&Sample>> =
            self.heights.iter().map(|height| self.heard(height, origin).collect()).collect();
        let found: Vec<&Vec<&Sample>> =
            heights.iter().filter(|height| !height.is_empty()).collect();
        let without = |left_out: usize| {
            let rest = found.iter().enumerate().filter(|(at, _)| *at != left_out);
            pooled(origin, rest.flat_map(|(_, height)| height.iter().copied()), self.faulty)
        };
        let all = (0..found.len()).map(without).collect::<Option<Vec<Pooled>>>()?;
        let least = |of: fn(&Pooled) -> u32| all.iter().map(of).min();
        let (worth, kept) = (least(|of| of.worth)?, least(|of| of.kept)?);
        let best = all.into_iter().max_by(|a, b| a.correlation.total_cmp(&b.correlation))?;
        Some(Pooled { worth, kept, ..best })
    }
}

/// Auditors whose repetitions of those whom most find honest do not fit, and those who repeated too
/// few of them to tell.
fn not_believed<'a>(
    height: Height,
    samples: impl Iterator<Item = &'a Sample>,
    unheard: &[Origin],
) -> [Vec<Origin>; 2] {
    let heard =
        |sample: &&Sample| sample.count > 0 && unheard.binary_search(&sample.auditor).is_err();
    let mut samples: Vec<&Sample> = samples.filter(heard).collect();
    // Stable: sums of floating-point numbers depend on their order.
    samples.sort_by_key(|sample| (sample.origin, sample.auditor));
    // Of every pair of an auditor and an origin, over all heights; by origin.
    let mut pairs: Vec<Sample> = Vec::new();
    for sample in samples {
        match pairs.last_mut() {
            Some(pair) if (pair.origin, pair.auditor) == (sample.origin, sample.auditor) => {
                pair.join(sample);
            }
            _ => pairs.push(*sample),
        }
    }
    // Of every auditor, whether it repeated any of the honest or not.
    let mut of_honest: Vec<Sample> =
        pairs.iter().map(|pair| Sample::new(pair.auditor, pair.origin)).collect();
    for of_origin in pairs.chunk_by(|a, b| a.origin == b.origin) {
        let mut found: Vec<f64> = of_origin.iter().map(Sample::correlation).collect();
        found.sort_by(f64::total_cmp);
        // Of two the lower: a tie finds nobody honest.
        if found[(found.len() - 1) / 2] >= HONEST {
            of_honest.extend(of_origin);
        }
    }
    of_honest.sort_by_key(|pair| (pair.auditor, pair.origin));
    let of_auditors: Vec<Sample> = of_honest
        .chunk_by(|a, b| a.auditor == b.auditor)
        .map(|of_auditor| {
            let mut all = Sample::new(of_auditor[0].auditor, of_auditor[0].auditor);
            of_auditor.iter().for_each(|pair| all.join(pair));
            all
        })
        .collect();
    let (proven, unproven): (Vec<Sample>, Vec<Sample>) =
        of_auditors.into_iter().partition(|of| of.count >= BELIEF_MIN);
    let mut fits: Vec<f64> = proven.iter().map(Sample::correlation).collect();
    let usual = median(&mut fits).unwrap_or(1.0);
    if usual < HONEST {
        // Those who seem honest are not yet: the auditors contradict each other.
        let all = proven.iter().chain(&unproven);
        return [Vec::new(), all.map(|of| of.auditor).collect()];
    }
    let lies = |of: &&Sample| {
        of.correlation()
            < BELIEVED.min(unusual(usual, of.count, deviations(BELIEF_DEVIATIONS, height)))
    };
    let disbelieved = proven.iter().filter(lies).map(|of| of.auditor).collect();
    [disbelieved, unproven.iter().map(|of| of.auditor).collect()]
}

/// The correlation over all auditors but the `faulty` lowest and highest, if there are more.
fn pooled<'a>(
    origin: Origin,
    samples: impl Iterator<Item = &'a Sample>,
    faulty: usize,
) -> Option<Pooled> {
    let mut by_auditor: Vec<Sample> = Vec::new();
    for sample in samples {
        match by_auditor.iter_mut().find(|known| known.auditor == sample.auditor) {
            Some(known) => known.join(sample),
            None => by_auditor.push(*sample),
        }
    }
    let (auditors, samples) = (by_auditor.len(), by_auditor.iter().map(|s| s.count).sum());
    if auditors <= 2 * faulty {
        return None;
    }
    by_auditor.sort_by(|a, b| {
        a.correlation().total_cmp(&b.correlation()).then(a.auditor.cmp(&b.auditor))
    });
    let mut middle = Sample::new(origin, origin);
    by_auditor[faulty..auditors - faulty].iter().for_each(|sample| middle.join(sample));
    let worth = u64::from(samples) * (4 * auditors - 3 * faulty) as u64 / (4 * auditors) as u64;
    let most_find_lies = by_auditor[auditors / 2].correlation() < DOUBTFUL;
    let (correlation, worth, kept) = (middle.correlation(), worth as u32, middle.count);
    Some(Pooled { correlation, worth, kept, most_find_lies, auditors, samples })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId([3; 32]);

    fn score(heights: &[&[Sample]], faulty: usize) -> Option<Score> {
        // Six honest origins beside it, by which it is measured.
        let others = (1..=6).flat_map(|origin| {
            (1..=7).map(move |auditor| {
                let truth = sample(auditor, &[(1.0, 0.9), (-0.7, -0.8), (0.5, 0.45)].repeat(3));
                Sample { origin: Origin(origin), ..truth }
            })
        });
        let others: Vec<Sample> = others.collect();
        let heights: Vec<Vec<Sample>> =
            heights.iter().map(|height| [*height, &others[..]].concat()).collect();
        let heights: Vec<&[Sample]> = heights.iter().map(Vec::as_slice).collect();
        panel(&heights, faulty).scores(7)[0]
    }

    fn panel<'a>(heights: &[&'a [Sample]], faulty: usize) -> Panel<'a> {
        Panel::new(Height(64), heights.iter().copied(), faulty, |_| true)
    }

    fn sample(auditor: u16, pairs: &[(f64, f64)]) -> Sample {
        let mut sample = Sample::new(Origin(auditor), Origin(0));
        for &(record, repeated) in pairs {
            sample.add(lb8::encode(record, 0), lb8::encode(repeated, 0));
        }
        sample
    }

    #[test]
    fn a_seed_is_its_auditors_and_a_digests_alone() {
        let keys = Keys::simulated(1);
        let seed = seed(&RUN, Height(4), &[7; 32], &keys);
        let is_seed = |id: &NodeId, height, digest| {
            is_seed_of(id, &seed, &RUN, Height(height), &digest, keys.scheme())
        };
        assert!(is_seed(&keys.id(), 4, [7; 32]));
        assert!(!is_seed(&keys.id(), 5, [7; 32]));
        assert!(!is_seed(&keys.id(), 4, [8; 32]));
        assert!(!is_seed(&Keys::simulated(2).id(), 4, [7; 32]));
    }

    #[test]
    fn targets_are_others_records_and_reach_everybody_in_turn() {
        let manifest =
            Manifest { probes_per_round: 16, audit_permille: 60, ..Manifest::template() };
        assert_eq!(per_height(&manifest), 8);
        let bytes = [5_u8, lb8::ABSTAIN, 9, 12];
        let records = |origin: Origin| if origin == Origin(3) { &[][..] } else { &bytes[..] };
        let of = |height, seed| {
            let seed = Signature([seed; 64]);
            targets(&manifest, &RUN, Height(height), Origin(2), &seed, 15, records)
        };
        assert_eq!(of(6, 1), of(6, 1));
        assert_ne!(of(6, 1), of(6, 2));
        let mut seen = std::collections::BTreeSet::new();
        for height in 0..3 {
            let targets = of(height, 1);
            assert!(targets.len() <= 8 && targets.len() >= 2);
            assert!(targets.iter().all(|t| t.origin != Origin(2) && t.origin != Origin(3)));
            assert!(targets.iter().all(|t| bytes[t.index] != lb8::ABSTAIN));
            seen.extend(targets.iter().map(|target| target.origin));
        }
        assert!(seen.len() >= 9, "three heights reach {} origins", seen.len());
        let nobody = |_| &[][..];
        assert!(
            targets(&manifest, &RUN, Height(0), Origin(0), &Signature([0; 64]), 1, nobody)
                .is_empty()
        );
    }

    #[test]
    fn a_score_is_a_correlation_by_hand() {
        let one = [sample(1, &[(1.0, 1.0), (2.0, -1.0)].repeat(12))];
        let score = score(&[&one[..]; 2], 0).unwrap();
        // Σuv = −1, Σu² = 5, Σv² = 2, twelve times over.
        assert!((score.correlation + 1.0 / 10_f64.sqrt()).abs() < 1e-12);
        assert_eq!((score.auditors, score.samples), (1, 24));
        assert!(score.convicts);
    }

    #[test]
    fn faulty_auditors_neither_clear_a_liar_nor_convict_the_honest() {
        let truth = [(1.0, 0.9), (-0.7, -0.8), (0.5, 0.45)].repeat(3);
        let unrelated = [(1.0, -0.2), (-0.7, -0.3), (0.5, 0.1)].repeat(3);
        let accuse = [(1.0, -1.0), (-0.7, 0.7), (0.5, -0.5)].repeat(3);
        let copy = [(1.0, 1.0), (-0.7, -0.7), (0.5, 0.5)].repeat(3);
        let heard = |honest: &[(f64, f64)], faulty: &[(f64, f64)]| {
            let mut all: Vec<Sample> = (1..=5).map(|auditor| sample(auditor, honest)).collect();
            all.extend((6..=7).map(|auditor| sample(auditor, faulty)));
            score(&[&all[..]; 2], 2).unwrap()
        };
        assert!(!heard(&truth, &accuse).convicts);
        assert!(heard(&unrelated, &copy).convicts);
    }

    /// What fifteen members, the last five of them liars, find of one another in a height. Liars say what
    /// `told` makes of whose records they repeat: 1 if they fit, −1 for the contrary.
    fn found(told: impl Fn(u16) -> f64) -> Vec<Sample> {
        let pairs = (0..15).flat_map(|origin| (0..15).map(move |auditor| (origin, auditor)));
        let found = pairs.filter(|(origin, auditor)| origin != auditor).map(|(origin, auditor)| {
            let fits = match (auditor < 10, origin < 10) {
                (true, true) => 0.9,
                (true, false) => -0.9,
                (false, _) => told(origin),
            };
            let mut sample = Sample::new(Origin(auditor), Origin(origin));
            for value in [1.0, -0.7] {
                sample.add(lb8::encode(value, 0), lb8::encode(fits * value, 0));
            }
            sample
        });
        found.collect()
    }

    fn convicted(heights: &[&[Sample]], faulty: usize) -> Vec<u16> {
        let scores = panel(heights, faulty).scores(15).into_iter().zip(0..);
        scores.filter(|(score, _)| score.is_some_and(|of| of.convicts)).map(|of| of.1).collect()
    }

    /// Five of fifteen, where four are tolerated: of the five that accuse one would stay in.
    #[test]
    fn a_third_of_the_auditors_that_accuse_convict_nobody_but_are_not_heard() {
        let accuse = found(|origin| if origin < 10 { -1.0 } else { 1.0 });
        let heights = [&accuse[..]; 4];
        let panel = panel(&heights, 4);
        assert_eq!(panel.unheard, [10, 11, 12, 13, 14].map(Origin));
        assert_eq!(panel.faulty, 0);
        assert_eq!(convicted(&heights, 4), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_third_of_the_auditors_that_frame_one_are_outvoted() {
        let frame = found(|origin| if origin == 3 { -1.0 } else { 1.0 });
        let heights = [&frame[..]; 12];
        assert_eq!(panel(&heights, 5).unheard, []);
        assert_eq!(convicted(&heights, 5), [10, 11, 12, 13, 14]);
    }

    #[test]
    fn nearly_half_liars_are_measured_by_the_honest_and_not_by_each_other() {
        // Seven of fifteen repeat others' bytes, and audit as honest nodes do.
        let pairs = (0..15).flat_map(|origin| (0..15).map(move |auditor| (origin, auditor)));
        let found = pairs.filter(|(origin, auditor)| origin != auditor).map(|(origin, auditor)| {
            let mut sample = Sample::new(Origin(auditor), Origin(origin));
            let fits = if origin < 8 { [0.95, 0.95] } else { [0.9, -0.9] };
            for (value, fits) in [1.0, -0.7].into_iter().zip(fits) {
                sample.add(lb8::encode(value, 0), lb8::encode(fits * value, 0));
            }
            sample
        });
        let found: Vec<Sample> = found.collect();
        let heights = [&found[..]; 3];
        assert_eq!(convicted(&heights, 5), [8, 9, 10, 11, 12, 13, 14]);
        // Who is convicted is no measure for the others: two honest ones are left among nine liars.
        let left = |origin: Origin| origin >= Origin(6);
        let panel = Panel::new(Height(64), heights.iter().copied(), 3, left);
        assert!(panel.scores(15)[7].is_some_and(|score| !score.convicts));
    }

    /// Three auditors that found this of an origin beside honest ones, in each of some heights, and that it was honest
    /// in as many before and after.
    fn doubted(found: [f64; 3], heights: usize, [before, after]: [usize; 2]) -> bool {
        let sample = |auditor: u16, origin: u16, fits: f64| {
            let mut sample = Sample::new(Origin(auditor), Origin(origin));
            for value in [1.0, -0.7] {
                sample.add(lb8::encode(value, 0), lb8::encode(fits * value, 0));
            }
            sample
        };
        let of_origin = (1..).zip(found).map(|(auditor, fits)| sample(auditor, 0, fits));
        let others = (1..6).flat_map(|origin| {
            (1..6).filter(move |of| *of != origin).map(move |of| sample(of, origin, 0.95))
        });
        let height: Vec<Sample> = of_origin.chain(others).collect();
        let honest: Vec<Sample> = (1..4).map(|auditor| sample(auditor, 0, 0.95)).collect();
        let honest = [&honest[..], &height[3..]].concat();
        let some = |height, count| std::iter::repeat_n(height, count);
        let newest_first = some(&honest[..], after).chain(some(&height[..], heights));
        let all: Vec<&[Sample]> = newest_first.chain(some(&honest[..], before)).collect();
        panel(&all, 1).doubted(6) == [Origin(0)]
    }

    #[test]
    fn doubt_comes_with_few_repetitions_and_goes_again() {
        assert!(doubted([-0.9; 3], 2, [4, 0]), "twelve that do not fit");
        assert!(!doubted([-0.9; 3], 1, [0, 0]), "six are too few");
        assert!(!doubted([-0.9; 3], 2, [0, 12]), "it is long ago");
        assert!(!doubted([0.9; 3], 2, [4, 0]));
        assert!(!doubted([-0.9, 0.9, 0.9], 4, [4, 0]), "one auditor of three says so");
    }

    #[test]
    fn where_nobody_is_found_honest_there_are_no_verdicts() {
        // Liars that nobody clears, and nobody beside them to be measured by.
        let few = found(|_| -1.0).into_iter().filter(|sample| sample.origin >= Origin(10));
        let few: Vec<Sample> = few.collect();
        assert_eq!(panel(&[&few[..]; 8], 4).scores(15), vec![None; 15]);
    }

    #[test]
    fn too_few_auditors_or_repetitions_give_no_verdict() {
        let some = [sample(1, &[(1.0, -1.0); 30]), sample(2, &[(1.0, -1.0); 30])];
        assert_eq!(score(&[&some[..]; 5], 1), None);
        let few = [sample(1, &[(1.0, -1.0); 9])];
        assert_eq!(score(&[&few[..]; 2], 0), None);
        assert_eq!(score(&[&few[..]; 3], 0).map(|score| score.samples), Some(18));
    }

    #[test]
    fn who_begins_to_lie_is_convicted_within_four_heights() {
        let (lies, truth) = ([(1.0, -1.0); 17], [(1.0, 1.0); 17]);
        let (lies, truth) = ([sample(1, &lies)], [sample(1, &truth)]);
        let after = |heights: usize| {
            let new = std::iter::repeat_n(&lies[..], heights);
            let old = std::iter::repeat_n(&truth[..], 16 - heights);
            score(&new.chain(old).collect::<Vec<_>>(), 0).unwrap()
        };
        assert!((0..=1).all(|heights| !after(heights).convicts), "one height is left out");
        assert!((4..=16).all(|heights| after(heights).convicts));
    }

    #[test]
    fn one_height_that_was_dealt_anew_convicts_nobody() {
        let fits = [sample(1, &[(1.0, 0.9), (-0.7, -0.8)].repeat(15))];
        let garbage = [sample(1, &[(1.0, -0.9), (-0.7, 0.8)].repeat(15))];
        let of = |heights: &[&[Sample]]| score(heights, 0).unwrap().convicts;
        assert!(!of(&[&garbage, &fits]));
        assert!(!of(&[&fits, &garbage]));
        assert!(of(&[&garbage, &garbage]));
    }
}
