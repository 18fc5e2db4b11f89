//! The built-in task: digits drawn procedurally, so that a run needs no files.
//!
//! A digit is a few strokes, each a chain of straight and curved pieces, in one of several hands. Every
//! image bends the control points, thickens, rotates, shears, scales and shifts the strokes at random, paints
//! them by distance with a soft edge, adds specks and noise, and is stored as 16×16 bytes. Only the
//! four operations and `sqrt` on `f32` are used, in a fixed order, so a seed gives the same images on
//! every platform.
//!
//! The variation is chosen so that a linear model stays clearly below a small perceptron (see the test
//! of that name): a training task on which nothing is gained by more than a linear model shows little.

use ndarray::Array2;

use super::{Features, Raw, Scaling};
use crate::sample::KeyedRng;

/// Width and height of an image, in pixels.
pub const SIDE: usize = 16;

/// Training rows of the built-in data set.
pub const TRAIN_ROWS: usize = 12_000;

/// Held-out rows of the built-in data set.
pub const TEST_ROWS: usize = 10_000;

/// The built-in data set of a seed: [`TRAIN_ROWS`] and [`TEST_ROWS`] images of their own.
pub fn dataset(seed: u64) -> super::Dataset {
    let (train, test) = (table(seed, 0, TRAIN_ROWS), table(seed, 1, TEST_ROWS));
    super::Dataset::assemble("digits", train, Some(test)).expect("digits are a data set")
}

/// `rows` images of a seed; tables of different index are drawn independently.
///
/// Classes take turns, so every ten rows hold each digit once.
pub fn table(seed: u64, index: u64, rows: usize) -> Raw {
    let mut rng = KeyedRng::from_seed("rumormill v1 digits", seed, index);
    let mut pixels = Vec::with_capacity(rows * SIDE * SIDE);
    let mut labels = Vec::with_capacity(rows);
    for row in 0..rows {
        let digit = row % 10;
        let image = draw(digit, &mut rng);
        pixels.extend(image.iter().map(|ink| ((ink - PAPER).clamp(0.0, 1.0) * 255.0 + 0.5) as u8));
        labels.push(digit.to_string());
    }
    let values = Array2::from_shape_vec((rows, SIDE * SIDE), pixels);
    let values = values.expect("every image has the same number of pixels");
    Raw {
        features: Features::U8 { values, scale: 1.0, offset: 0.0 },
        labels,
        scaling: Scaling::Global,
    }
}

/// A point; digits are designed on `[-1, 1]²`, y downward.
type Point = [f32; 2];

/// A stroke through control points.
#[derive(Clone, Copy)]
enum Stroke {
    /// Straight pieces from point to point.
    Line(&'static [Point]),
    /// A smooth curve near the inner points, from the first point to the last.
    Curve(&'static [Point]),
    /// A smooth closed curve near the points.
    Loop(&'static [Point]),
}

use Stroke::{Curve, Line, Loop};

/// The hands of every digit.
const HANDS: [&[&[Stroke]]; 10] = [
    &[
        &[Loop(&[[-0.6, -0.9], [0.6, -0.9], [0.6, 0.9], [-0.6, 0.9]])],
        &[Loop(&[[0.0, -1.1], [0.8, -0.3], [0.4, 1.0], [-0.4, 1.0], [-0.8, -0.3]])],
        &[Curve(&[[0.3, -0.8], [-0.9, -0.8], [-0.8, 1.1], [0.9, 1.1], [0.9, -0.9], [0.0, -0.8]])],
    ],
    &[
        &[Line(&[[0.0, -0.9], [0.0, 0.9]])],
        &[Line(&[[-0.4, -0.5], [0.1, -0.9], [0.1, 0.9]])],
        &[Line(&[[-0.4, -0.5], [0.0, -0.9], [0.0, 0.9]]), Line(&[[-0.5, 0.9], [0.5, 0.9]])],
    ],
    &[
        &[
            Curve(&[[-0.6, -0.5], [-0.5, -1.1], [0.8, -1.0], [0.6, -0.1], [-0.6, 0.9]]),
            Line(&[[-0.6, 0.9], [0.6, 0.9]]),
        ],
        &[Curve(&[
            [-0.6, -0.6],
            [0.1, -1.3],
            [0.9, -0.5],
            [0.0, 0.3],
            [-0.9, 1.1],
            [-0.2, 0.5],
            [0.7, 0.9],
        ])],
        &[Line(&[[-0.5, -0.8], [0.5, -0.8], [0.5, 0.0], [-0.5, 0.9], [0.6, 0.9]])],
    ],
    &[
        &[
            Curve(&[[-0.5, -0.8], [0.8, -1.1], [0.7, -0.1], [-0.1, -0.1]]),
            Curve(&[[-0.1, -0.1], [0.9, -0.1], [0.9, 1.1], [-0.6, 0.8]]),
        ],
        &[
            Line(&[[-0.5, -0.9], [0.5, -0.9], [0.0, -0.2]]),
            Curve(&[[0.0, -0.2], [0.9, -0.1], [0.7, 1.2], [-0.6, 0.7]]),
        ],
        &[
            Line(&[[-0.5, -0.9], [0.5, -0.9], [0.5, 0.9], [-0.5, 0.9]]),
            Line(&[[-0.3, 0.0], [0.5, 0.0]]),
        ],
    ],
    &[
        &[Line(&[[-0.3, -0.9], [-0.6, 0.2], [0.6, 0.2]]), Line(&[[0.3, -0.6], [0.3, 0.9]])],
        &[Line(&[[0.3, 0.9], [0.3, -0.9], [-0.6, 0.4], [0.7, 0.4]])],
        &[
            Curve(&[[-0.5, -0.9], [-0.7, 0.3], [0.0, 0.2], [0.5, 0.0]]),
            Line(&[[0.5, -0.9], [0.4, 0.9]]),
        ],
    ],
    &[
        &[
            Line(&[[0.5, -0.9], [-0.4, -0.9], [-0.5, -0.1]]),
            Curve(&[[-0.5, -0.1], [0.8, -0.5], [0.9, 1.2], [-0.6, 0.8]]),
        ],
        &[Curve(&[
            [0.6, -0.9],
            [-0.6, -1.0],
            [-0.6, -0.1],
            [0.5, -0.2],
            [0.8, 0.9],
            [-0.1, 1.0],
            [-0.6, 0.7],
        ])],
        &[Line(&[[0.5, -0.9], [-0.5, -0.9], [-0.5, 0.0], [0.5, 0.0], [0.5, 0.9], [-0.5, 0.9]])],
    ],
    &[
        &[
            Curve(&[[0.4, -0.9], [-0.6, -0.6], [-0.5, 0.4]]),
            Loop(&[[-0.5, 0.1], [0.5, 0.0], [0.6, 0.9], [-0.5, 1.0]]),
        ],
        &[Curve(&[
            [0.2, -0.9],
            [-0.7, -0.1],
            [-0.6, 1.1],
            [0.6, 1.0],
            [0.5, -0.1],
            [-0.3, 0.1],
            [-0.5, 0.5],
        ])],
    ],
    &[
        &[Line(&[[-0.6, -0.9], [0.6, -0.9], [-0.1, 0.9]])],
        &[Line(&[[-0.6, -0.9], [0.6, -0.9], [0.0, 0.9]]), Line(&[[-0.3, 0.0], [0.5, 0.0]])],
        &[Curve(&[[-0.6, -0.7], [0.0, -1.0], [0.8, -1.0], [0.2, 0.0], [0.0, 0.9]])],
    ],
    &[
        &[
            Loop(&[[-0.5, -0.95], [0.5, -0.95], [0.4, -0.05], [-0.4, -0.05]]),
            Loop(&[[-0.55, 0.0], [0.55, 0.0], [0.6, 1.0], [-0.6, 1.0]]),
        ],
        &[Loop(&[
            [0.6, -0.9],
            [-0.2, -1.2],
            [-0.8, -0.5],
            [0.0, 0.0],
            [0.9, 0.5],
            [0.2, 1.2],
            [-0.8, 0.8],
            [-0.1, 0.0],
        ])],
    ],
    &[
        &[
            Loop(&[[-0.5, -1.0], [0.5, -1.0], [0.5, 0.0], [-0.5, 0.0]]),
            Line(&[[0.45, -0.5], [0.3, 0.9]]),
        ],
        &[Curve(&[
            [0.4, -0.5],
            [0.1, -1.2],
            [-0.8, -0.8],
            [-0.4, 0.2],
            [0.5, 0.0],
            [0.6, -1.2],
            [0.5, 0.4],
            [-0.4, 1.0],
        ])],
    ],
];

/// Segments that a piece of a curve is drawn as.
const CURVE_SEGMENTS: usize = 4;

/// How far control points move, in design units.
const WOBBLE: f32 = 0.15;

/// The largest half-angle tangent of a rotation; 0.13 turns by 15 degrees.
const TURN: f32 = 0.13;

/// The largest shear.
const SHEAR: f32 = 0.28;

/// Pixels a design unit is wide and high: the center and how far it varies.
const SCALE: (f32, f32) = (5.2, 1.0);

/// Pixels a digit moves.
const MOVE: f32 = 1.4;

/// Half the width of a stroke in pixels: the center and how far it varies.
const WIDTH: (f32, f32) = (0.75, 0.35);

/// Noise of a pixel, as a share of full ink.
const NOISE: f32 = 0.08;

/// Ink that does not show: most of the background is zero, as on scanned paper, and costs a probe
/// nothing.
const PAPER: f32 = 0.1;

fn draw(digit: usize, rng: &mut KeyedRng) -> [f32; SIDE * SIDE] {
    let hands = HANDS[digit];
    let strokes = hands[rng.index(hands.len() as u32) as usize];
    let warp = Warp::draw(rng);
    let half_width = WIDTH.0 + rng.symmetric(WIDTH.1);
    // The squared distance of every pixel to the nearest stroke.
    let mut nearest = [f32::INFINITY; SIDE * SIDE];
    for stroke in strokes {
        let points: Vec<Point> =
            stroke.points(rng).iter().map(|&point| warp.apply(point)).collect();
        points.windows(2).for_each(|ends| near_segment(&mut nearest, ends[0], ends[1]));
    }
    let ink = 0.75 + 0.25 * rng.unit_f32();
    let mut image = nearest.map(|square| ink * (half_width + 0.5 - square.sqrt()).clamp(0.0, 1.0));
    add_noise(&mut image, rng);
    image
}

impl Stroke {
    /// The corners of the stroke after its control points have wobbled.
    fn points(&self, rng: &mut KeyedRng) -> Vec<Point> {
        let (Line(controls) | Curve(controls) | Loop(controls)) = self;
        let wobbled: Vec<Point> = controls
            .iter()
            .map(|control| control.map(|coordinate| coordinate + rng.symmetric(WOBBLE)))
            .collect();
        match self {
            Line(_) => wobbled,
            Curve(_) => {
                // Quadratic pieces from middle to middle of the control polygon, and the two ends.
                let mut points = vec![wobbled[0]];
                for (index, corner) in wobbled.windows(3).enumerate() {
                    let first = if index == 0 { corner[0] } else { middle(corner[0], corner[1]) };
                    let last = index + 3 == wobbled.len();
                    let end = if last { corner[2] } else { middle(corner[1], corner[2]) };
                    bend(first, corner[1], end, &mut points);
                }
                points
            }
            Loop(_) => {
                let count = wobbled.len();
                let at = |index: usize| wobbled[index % count];
                let mut points = vec![middle(at(0), at(1))];
                for index in 0..count {
                    let end = middle(at(index + 1), at(index + 2));
                    bend(middle(at(index), at(index + 1)), at(index + 1), end, &mut points);
                }
                points
            }
        }
    }
}

/// Appends a quadratic Bézier piece without its first point.
fn bend(first: Point, control: Point, last: Point, points: &mut Vec<Point>) {
    for step in 1..=CURVE_SEGMENTS {
        let t = step as f32 / CURVE_SEGMENTS as f32;
        points.push(mix(mix(first, control, t), mix(control, last, t), t));
    }
}

fn middle(a: Point, b: Point) -> Point {
    mix(a, b, 0.5)
}

fn mix(a: Point, b: Point, t: f32) -> Point {
    [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]
}

/// An affine map from design units to pixels.
struct Warp {
    columns: [Point; 2],
    origin: Point,
}

impl Warp {
    fn draw(rng: &mut KeyedRng) -> Warp {
        // A rotation from the tangent of its half angle: exact without sine and cosine.
        let t = rng.symmetric(TURN);
        let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
        let shear = rng.symmetric(SHEAR);
        let (wide, high) = (SCALE.0 + rng.symmetric(SCALE.1), SCALE.0 + rng.symmetric(SCALE.1));
        let center = (SIDE as f32 - 1.0) / 2.0;
        Warp {
            columns: [
                [wide * cos, wide * sin],
                [high * (shear * cos - sin), high * (shear * sin + cos)],
            ],
            origin: [center + rng.symmetric(MOVE), center + rng.symmetric(MOVE)],
        }
    }

    fn apply(&self, [x, y]: Point) -> Point {
        let [[xx, xy], [yx, yy]] = self.columns;
        [self.origin[0] + xx * x + yx * y, self.origin[1] + xy * x + yy * y]
    }
}

/// Lowers every pixel's squared distance to that of a segment.
fn near_segment(nearest: &mut [f32; SIDE * SIDE], from: Point, to: Point) {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    // A piece without length is a dot.
    let inverse = 1.0 / (dx * dx + dy * dy).max(1e-6);
    for (y, row) in nearest.as_chunks_mut::<SIDE>().0.iter_mut().enumerate() {
        let py = y as f32 - from[1];
        for (x, nearest) in row.iter_mut().enumerate() {
            let px = x as f32 - from[0];
            let along = ((px * dx + py * dy) * inverse).clamp(0.0, 1.0);
            let (rx, ry) = (px - along * dx, py - along * dy);
            *nearest = nearest.min(rx * rx + ry * ry);
        }
    }
}

/// Adds noise to every pixel, nearly normal: the sum of the four bytes of a word.
fn add_noise(image: &mut [f32; SIDE * SIDE], rng: &mut KeyedRng) {
    /// Standard deviation of the sum of four uniform bytes: `sqrt(4 · (256² − 1)/12)`.
    const DEVIATION: f32 = 147.8;
    for ink in image {
        let sum: u32 = rng.next_u32().to_le_bytes().iter().map(|&byte| u32::from(byte)).sum();
        *ink += (sum as f32 - 510.0) * (NOISE / DEVIATION);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(raw: &Raw) -> &Array2<u8> {
        let Features::U8 { values, .. } = &raw.features else { panic!("images are bytes") };
        values
    }

    #[test]
    fn a_seed_gives_the_same_images_everywhere() {
        // Made by this code; it shows a platform or a change that draws differently.
        let hash = blake3::hash(pixels(&table(1, 0, 100)).as_slice().unwrap());
        assert_eq!(hash.to_hex()[..16], *"66c3d41fc60e7c6d");
    }

    #[test]
    fn training_and_test_images_differ() {
        let (train, test) = (table(1, 0, 200), table(1, 1, 200));
        let (train, test) = (pixels(&train), pixels(&test));
        assert!(
            test.rows().into_iter().all(|held| train.rows().into_iter().all(|row| row != held))
        );
        assert_ne!(pixels(&table(2, 0, 200)), train);
    }

    #[test]
    fn classes_are_even() {
        let labels = table(1, 0, 30).labels;
        assert!((0..10).all(|d| labels.iter().filter(|l| **l == d.to_string()).count() == 3));
    }

    #[test]
    fn digits_are_mostly_paper_with_some_ink() {
        for image in pixels(&table(3, 0, 500)).rows() {
            let inked = image.iter().filter(|&&byte| byte > 80).count();
            assert!((5..150).contains(&inked), "{inked} of 256 pixels");
        }
    }
}
