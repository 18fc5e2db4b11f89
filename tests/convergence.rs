//! What training must be able to reach.

use rumormill::direction::Direction;
use rumormill::id::{Round, RunId, Slot};
use rumormill::params::{Payout, State, TensorSpec, coefficient};

/// Softmax, logistic regression and all biases start at zero, and their weights on ordinary tables
/// end beyond 4. An LSB of 2⁻³⁰ would let them wrap around at 2.
#[test]
fn a_weight_that_starts_at_zero_can_grow_past_two() {
    let mut state = State::from_base(vec![TensorSpec::new("weight", &[3])], vec![0.0; 3]).unwrap();
    let mut expected = [0.0; 3];
    for slot in 0..40 {
        let direction = Direction::new(&RunId([1; 32]), Round(0), Slot(slot));
        // Every step along the first parameter's sign, as when its loss keeps falling.
        let step = 0.25 * f64::from(direction.sign(0, 0));
        state.apply(&[Payout { direction, from: 0, to: coefficient(step) }]);
        for (p, weight) in expected.iter_mut().enumerate() {
            *weight += step as f32 * f32::from(direction.sign(0, p as u64));
        }
    }
    let mut view = [0.0; 3];
    state.write_view(&mut view);
    assert_eq!(view, expected);
    assert_eq!(view[0], 10.0);
}
