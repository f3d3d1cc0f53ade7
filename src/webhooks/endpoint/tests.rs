//! The backoff.

use super::*;

#[test]
fn there_are_about_fourteen_attempts_in_five_minutes() {
    let timing = Timing::default();
    for (random, expected) in [(0, 18), (u32::MAX / 2, 14), (u32::MAX, 12)] {
        let (mut at, mut attempts) = (Duration::ZERO, 0);
        while at < timing.delivery_timeout {
            attempts += 1;
            at += backoff(attempts, random, &timing);
        }
        assert_eq!(attempts, expected);
    }
}

#[test]
fn the_backoff_doubles_up_to_a_maximum() {
    let timing = Timing::default();
    let secs = |failures, random| backoff(failures, random, &timing).as_secs_f64();
    for (failures, expected) in [(1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (40, 30.0)] {
        assert!((secs(failures, u32::MAX / 2) - expected).abs() < 0.001, "{failures}");
        assert!((secs(failures, 0) - expected * 0.75).abs() < 0.001, "{failures}");
        assert!((secs(failures, u32::MAX) - expected * 1.25).abs() < 0.001, "{failures}");
    }
}
