//! Many seeds, on every processor.

use std::num::NonZero;
use std::ops::Range;
use std::thread;

/// Does the same for every seed, each thread into a tally of its own, and adds these up.
///
/// # Panics
///
/// Where one of them does.
pub fn tallied<T: Default + Send>(
    seeds: &Range<u64>,
    one: impl Fn(u64, &mut T) + Sync,
    plus: impl Fn(T, T) -> T,
) -> T {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let one = &one;
    let tallies: Vec<T> = thread::scope(|scope| {
        let handles: Vec<_> = (seeds.start..)
            .take(threads)
            .map(|first| {
                scope.spawn(move || {
                    let mut tally = T::default();
                    (first..seeds.end).step_by(threads).for_each(|seed| one(seed, &mut tally));
                    tally
                })
            })
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a thread goes to its end")).collect()
    });
    tallies.into_iter().fold(T::default(), plus)
}
