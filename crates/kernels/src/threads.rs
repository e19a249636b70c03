//! The number of threads, and the one function that runs work on them.
//!
//! Every kernel splits its work into parts whose results depend neither on each other nor on the
//! thread that computes them: no sum is ever split by the number of threads. So one seed gives the
//! same bytes on 1, 2 or 8 threads.
//!
//! ```
//! let mut squares = vec![0.0f32; 1000];
//! epiphyte_kernels::threads::for_each(squares.chunks_mut(64).enumerate(), |(part, chunk)| {
//!     for (offset, value) in chunk.iter_mut().enumerate() {
//!         *value = ((part * 64 + offset) as f32).powi(2);
//!     }
//! });
//! assert_eq!(squares[999], 998001.0);
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Isa, KernelError};

/// The most threads that [`set_threads`] starts: more than any machine has cores, and few enough
/// that starting them takes no time.
pub const MAX_THREADS: usize = 1024;

/// Sets how many threads compute in this process; 0 means as many as the process may use.
///
/// It starts rayon's global pool, which other crates share. Call it before the first kernel runs;
/// without it, the pool starts with [`std::thread::available_parallelism`] threads.
///
/// # Errors
/// [`KernelError::ThreadsFixed`] when the pool already runs with another number of threads,
/// [`KernelError::TooManyThreads`] for more than [`MAX_THREADS`].
pub fn set_threads(threads: usize) -> Result<(), KernelError> {
    if threads > MAX_THREADS {
        return Err(KernelError::TooManyThreads { asked: threads });
    }
    let started = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global();
    let running = rayon::current_num_threads();
    match started {
        Err(_) if threads != 0 && threads != running => Err(KernelError::ThreadsFixed {
            running,
            asked: threads,
        }),
        _ => Ok(()),
    }
}

/// How many threads the next kernel uses: those of the rayon pool that this thread belongs to,
/// else those of the global pool.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Calls `body` once with each of `parts`, in any order, spread over [`threads()`] threads.
///
/// `parts` is any iterator over the parts: a range of numbers, `chunks_mut` of a slice, a zip of
/// several. The threads take parts one by one, in order, so uneven ones balance. Each thread runs
/// under the caller's [`Isa::current`].
pub fn for_each<P>(parts: P, body: impl Fn(P::Item) + Sync)
where
    P: IntoIterator<IntoIter: ExactSizeIterator + Send, Item: Send>,
{
    let parts = parts.into_iter();
    let workers = threads().min(parts.len());
    if workers <= 1 {
        return parts.for_each(body);
    }
    let isa = Isa::current();
    let parts = Mutex::new(parts);
    let take = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        isa.with(|| {
            while let Some(part) = take() {
                body(part);
            }
        });
    };
    rayon::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// Runs `body` with all threads awake, for many short kernels in a row: none has to be woken, which
/// takes longer than a small product. What `body` computes is the same. While it does nothing, the
/// other threads offer their cores to the system.
///
/// ```
/// use epiphyte_kernels::threads::{awake, for_each};
///
/// let mut counts = [0; 8];
/// awake(|| for_each(counts.iter_mut(), |count| *count += 1));
/// assert_eq!(counts, [1; 8]);
/// ```
pub fn awake<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    let (done, isa) = (AtomicBool::new(false), Isa::current());
    /// Says that the work is done, also if it panics.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    rayon::scope(|scope| {
        for _ in 1..threads() {
            scope.spawn(|_| {
                while !done.load(Ordering::Acquire) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        let _done = Done(&done);
        isa.with(body)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_pool<T: Send>(threads: usize, body: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(body)
    }

    #[test]
    fn every_part_is_visited_once() {
        for threads in [1, 2, 8] {
            for length in [0, 1, 7, 1000] {
                let mut visits = vec![0u8; length];
                in_pool(threads, || {
                    for_each(visits.chunks_mut(3), |part| {
                        part.iter_mut().for_each(|n| *n += 1)
                    })
                });
                assert!(
                    visits.iter().all(|&n| n == 1),
                    "{threads} threads, {length} items"
                );
            }
        }
    }

    #[test]
    fn workers_inherit_the_instruction_set() {
        in_pool(2, || {
            Isa::Portable.with(|| for_each(0..100, |_| assert_eq!(Isa::current(), Isa::Portable)));
        });
    }

    #[test]
    fn awake_threads_take_parts_and_end_with_the_work() {
        for threads in [1, 2, 8] {
            in_pool(threads, || {
                Isa::Portable.with(|| {
                    let sum = awake(|| {
                        let mut sum = 0;
                        for round in 0..100 {
                            let mut parts = [0; 8];
                            for_each(parts.iter_mut(), |part| {
                                assert_eq!(Isa::current(), Isa::Portable);
                                *part = round;
                            });
                            sum += parts.iter().sum::<usize>();
                        }
                        sum
                    });
                    assert_eq!(sum, 8 * 4950);
                });
                let panics = || awake(|| for_each(0..8, |part| assert_ne!(part, 3)));
                assert!(std::panic::catch_unwind(panics).is_err());
                assert_eq!(awake(|| 7), 7);
            });
        }
    }

    #[test]
    fn more_threads_than_any_machine_has_are_refused() {
        assert!(matches!(
            set_threads(100_000),
            Err(KernelError::TooManyThreads { asked: 100_000 })
        ));
    }

    #[test]
    fn a_started_pool_keeps_its_size() {
        set_threads(0).unwrap();
        let running = threads();
        set_threads(running).unwrap();
        let asked = running + 1;
        assert!(matches!(
            set_threads(asked),
            Err(KernelError::ThreadsFixed { running: r, asked: a }) if (r, a) == (running, asked)
        ));
    }
}
