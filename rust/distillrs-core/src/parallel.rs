//! Threads for heavy work: a pool for each process, built at its first use.
//!
//! A forked child has the parent's memory but none of its threads, so a pool that it inherits would wait for ever. Pools
//! are therefore found by process id: the child leaves the parent's alone (never dropped: dropping waits for threads that
//! are not there) and builds its own. Nothing here holds a lock over a fork. Results never depend on the thread count:
//! callers combine the parts in a fixed order.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rayon::ThreadPool;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::{Error, Result};

/// A pool and the process it belongs to. Entries are only ever added; there is one for each thread count in use.
struct Entry {
    process: u32,
    threads: usize,
    pool: ThreadPool,
    next: *const Entry,
}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// 0 until somebody sets or asks.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Most threads that can be asked for.
pub const MAX_THREADS: usize = 1024;

/// Environment variable with the number of threads.
pub const VARIABLE: &str = "DISTILLRS_THREADS";

/// How many threads heavy work uses: as set, else as [`VARIABLE`] says, else one for each available processor.
pub fn threads() -> usize {
    let set = THREADS.load(Ordering::Relaxed);
    if set != 0 {
        return set;
    }
    let named = std::env::var(VARIABLE).ok().and_then(|text| text.trim().parse().ok());
    let count = named
        .filter(|count| (1..=MAX_THREADS).contains(count))
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |count| count.get().min(MAX_THREADS)));
    // Whoever sets a count meanwhile wins.
    match THREADS.compare_exchange(0, count, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => count,
        Err(set) => set,
    }
}

/// Sets how many threads heavy work uses from now on in this process.
///
/// # Errors
/// [`Error::Argument`] for none or more than [`MAX_THREADS`].
pub fn set_threads(count: usize) -> Result<()> {
    if !(1..=MAX_THREADS).contains(&count) {
        return Err(Error::argument("threads", count, format!("an integer from 1 to {MAX_THREADS}")));
    }
    THREADS.store(count, Ordering::Relaxed);
    Ok(())
}

/// This process's pool of that size; `None` when the system gives no threads.
fn pool(threads: usize) -> Option<&'static ThreadPool> {
    let process = std::process::id();
    let mut head = ENTRIES.load(Ordering::Acquire);
    let mut built: Option<Box<Entry>> = None;
    loop {
        let mut at: *const Entry = head;
        // SAFETY: entries are leaked, so a pointer in the list stays valid; `Acquire` makes their contents visible.
        while let Some(entry) = unsafe { at.as_ref() } {
            if entry.process == process && entry.threads == threads {
                return Some(&entry.pool);
            }
            at = entry.next;
        }
        let mut entry = match built.take() {
            Some(entry) => entry,
            None => {
                let name = |index| format!("distillrs-{index}");
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(name).build().ok()?;
                Box::new(Entry { process, threads, pool, next: ptr::null() })
            }
        };
        entry.next = head;
        let raw = Box::into_raw(entry);
        match ENTRIES.compare_exchange(head, raw, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just leaked, never freed.
            Ok(_) => return Some(unsafe { &(*raw).pool }),
            Err(now) => {
                head = now;
                // SAFETY: the exchange failed, so nobody else has seen this pointer.
                built = Some(unsafe { Box::from_raw(raw) });
            }
        }
    }
}

/// Runs `task` on every item, on as many threads as are set.
pub fn for_each<T: Send>(items: Vec<T>, task: impl Fn(T) + Sync + Send) {
    match usable(items.len()) {
        Some(pool) => pool.install(|| items.into_par_iter().for_each(task)),
        None => items.into_iter().for_each(task),
    }
}

/// Results of `task` for every item, in the items' order, on as many threads as are set.
pub fn map<T: Send, R: Send>(items: Vec<T>, task: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    match usable(items.len()) {
        Some(pool) => pool.install(|| items.into_par_iter().map(task).collect()),
        None => items.into_iter().map(task).collect(),
    }
}

/// A pool when more than one thread can help; without one the caller's own thread does the same work.
fn usable(items: usize) -> Option<&'static ThreadPool> {
    let threads = threads();
    if threads < 2 || items < 2 { None } else { pool(threads) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_at_any_thread_count() {
        let expected: Vec<usize> = (0..1000).map(|value| value * value).collect();
        for threads in [1, 2, 3, 8] {
            set_threads(threads).unwrap();
            assert_eq!(map((0..1000).collect(), |value: usize| value * value), expected);
        }
        assert!(set_threads(0).is_err() && set_threads(MAX_THREADS + 1).is_err());
    }

    #[test]
    fn a_pool_is_built_once_for_each_size() {
        let (first, second) = (pool(2).unwrap(), pool(2).unwrap());
        assert!(ptr::eq(first, second));
        assert!(!ptr::eq(first, pool(3).unwrap()));
    }
}
