//! Points whose rows lie with several processes.
//!
//! Every process holds some consecutive rows and calls the same function with the same settings; one primitive, a gather
//! of equally long messages, brings together what a pick needs. What is decided from gathered messages is decided by all
//! alike, so no process tells another what to do.

use super::points::{Points, squared_distance};
use crate::Result;

/// The processes that hold the points, this one among them.
pub trait Peers {
    /// How many there are.
    fn count(&self) -> usize;

    /// Every process's message, in the order of their rows; all are equally long.
    ///
    /// # Errors
    /// Whatever keeps the messages from arriving.
    fn gather(&mut self, own: &[u8]) -> Result<Vec<u8>>;
}

/// One process with all points.
#[derive(Debug)]
pub struct Alone;

impl Peers for Alone {
    fn count(&self) -> usize {
        1
    }

    fn gather(&mut self, own: &[u8]) -> Result<Vec<u8>> {
        Ok(own.to_vec())
    }
}

/// Where a process's points stand among all.
pub struct Shard<'a> {
    /// Rows that processes before this one hold.
    pub first: usize,
    /// Rows of all processes.
    pub total: usize,
    /// The processes.
    pub peers: &'a mut dyn Peers,
}

/// Rows whose coordinates travel together.
const TOGETHER: usize = 256;

impl Shard<'_> {
    /// Every process's numbers, one after the other.
    pub(super) fn gather(&mut self, own: &[f64]) -> Result<Vec<f64>> {
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.peers.gather(&bytes)?;
        Ok(all.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
    }

    /// The largest of all processes' values, one by one.
    pub(super) fn largest(&mut self, own: &[f64]) -> Result<Vec<f64>> {
        let all = self.gather(own)?;
        let mut most = own.to_vec();
        for values in all.chunks_exact(own.len().max(1)) {
            most.iter_mut().zip(values).for_each(|(most, &value)| *most = most.max(value));
        }
        Ok(most)
    }

    /// Sums over all processes, in their order.
    pub(super) fn sum(&mut self, own: &[f64]) -> Result<Vec<f64>> {
        let all = self.gather(own)?;
        let mut sums = vec![0.0; own.len()];
        for values in all.chunks_exact(own.len().max(1)) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(sums)
    }

    /// Sums of whole numbers over all processes.
    pub(super) fn sum_whole(&mut self, own: &[i64]) -> Result<Vec<i64>> {
        let bytes: Vec<u8> = own.iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = self.peers.gather(&bytes)?;
        let mut sums = vec![0; own.len()];
        for values in all.chunks_exact(bytes.len().max(1)) {
            for (sum, &bytes) in sums.iter_mut().zip(values.as_chunks::<8>().0) {
                *sum += i64::from_le_bytes(bytes);
            }
        }
        Ok(sums)
    }

    /// This process's place of a row of all, if it holds it.
    pub(super) fn own(&self, row: usize, rows: usize) -> Option<usize> {
        row.checked_sub(self.first).filter(|&own| own < rows)
    }

    /// Coordinates of some rows of all, which every process asks for alike.
    pub(super) fn rows<T: Copy + Into<f64>>(&mut self, points: &Points<'_, T>, rows: &[usize]) -> Result<Vec<f64>> {
        let width = points.columns() + 1;
        let mut found = Vec::with_capacity(rows.len() * points.columns());
        for rows in rows.chunks(TOGETHER) {
            let mut own = vec![0.0; rows.len() * width];
            for (out, &row) in own.chunks_exact_mut(width).zip(rows) {
                if let Some(row) = self.own(row, points.rows()) {
                    out[0] = 1.0;
                    out[1..].iter_mut().zip(points.row(row)).for_each(|(out, &value)| *out = value.into());
                }
            }
            let all = self.gather(&own)?;
            for place in 0..rows.len() {
                let held = all.chunks_exact(own.len()).map(|values| &values[place * width..(place + 1) * width]);
                found.extend(held.filter(|values| values[0] == 1.0).flat_map(|values| &values[1..]).take(width - 1));
            }
        }
        Ok(found)
    }

    /// The lowest row of all with the least squared distance to a place.
    pub(super) fn nearest<T: Copy + Into<f64>>(&mut self, points: &Points<'_, T>, place: &[f64]) -> Result<usize> {
        let mut best = (f64::INFINITY, 0);
        for row in 0..points.rows() {
            let squared = squared_distance(points.row(row), place);
            if squared < best.0 {
                best = (squared, self.first + row);
            }
        }
        let all = self.gather(&[best.0, best.1 as f64])?;
        let mut best = (f64::INFINITY, 0.0);
        for &[squared, row] in all.as_chunks::<2>().0 {
            if squared < best.0 {
                best = (squared, row);
            }
        }
        Ok(best.1 as usize)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::{Arc, Barrier, Mutex};

    use super::*;

    /// Processes as threads.
    pub(in super::super) struct Threads {
        rank: usize,
        messages: Arc<(Barrier, Mutex<Vec<Vec<u8>>>)>,
    }

    impl Peers for Threads {
        fn count(&self) -> usize {
            self.messages.1.lock().unwrap().len()
        }

        fn gather(&mut self, own: &[u8]) -> Result<Vec<u8>> {
            self.messages.1.lock().unwrap()[self.rank] = own.to_vec();
            self.messages.0.wait();
            let all = self.messages.1.lock().unwrap().concat();
            self.messages.0.wait();
            assert_eq!(all.len(), own.len() * self.count());
            Ok(all)
        }
    }

    /// Runs `work` with each process's rows, `cuts` telling where they begin and end; the results, which are all alike.
    pub(in super::super) fn together<R: Send + PartialEq + std::fmt::Debug>(
        cuts: &[usize],
        work: impl Fn(std::ops::Range<usize>, &mut Shard<'_>) -> R + Sync,
    ) -> R {
        let count = cuts.len() - 1;
        let messages = Arc::new((Barrier::new(count), Mutex::new(vec![Vec::new(); count])));
        let mut results: Vec<R> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|rank| {
                    let (messages, work) = (Arc::clone(&messages), &work);
                    scope.spawn(move || {
                        let mut peers = Threads { rank, messages };
                        let mut shard = Shard { first: cuts[rank], total: cuts[count], peers: &mut peers };
                        work(cuts[rank]..cuts[rank + 1], &mut shard)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let last = results.pop().unwrap();
        assert!(results.iter().all(|result| *result == last));
        last
    }

    #[test]
    fn what_is_gathered_is_that_of_all() {
        let values: Vec<f32> = (0..14).map(|value| value as f32).collect();
        let found = together(&[0, 2, 2, 7], |rows, shard| {
            let points = Points::new("points", &values[2 * rows.start..2 * rows.end], rows.len(), 2).unwrap();
            let own = rows.start as f64;
            (
                shard.sum(&[own, 1.0]).unwrap(),
                shard.largest(&[own]).unwrap(),
                shard.sum_whole(&[rows.len() as i64]).unwrap(),
                shard.rows(&points, &[6, 0]).unwrap(),
                shard.nearest(&points, &[5.0, 6.0]).unwrap(),
            )
        });
        assert_eq!(found, (vec![4.0, 3.0], vec![2.0], vec![7], vec![12.0, 13.0, 0.0, 1.0], 2));
    }
}
