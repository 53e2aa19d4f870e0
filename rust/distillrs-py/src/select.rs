use distillrs_core::select::{self, Apart, Centres, Facility, Graphs, Peers, Picks, Points, Settings, Shard, Swaps};
use distillrs_core::{Error, Result};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{CoreError, CoreResult, check_signals, interrupted};
use crate::random::writable;

/// A two-dimensional array of float32 or float64.
pub enum Matrix {
    Single(PyBuffer<f32>),
    Double(PyBuffer<f64>),
}

impl<'py> FromPyObject<'_, 'py> for Matrix {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(buffer) = PyBuffer::<f32>::get(&object) {
            return Ok(Self::Single(buffer));
        }
        Ok(Self::Double(PyBuffer::<f64>::get(&object)?))
    }
}

fn points<'a, T>(name: &str, buffer: &'a PyBuffer<T>) -> Result<Points<'a, T>>
where
    T: Element + Into<f64>,
{
    let [rows, columns] = *buffer.shape() else {
        return Err(Error::argument(name, format_args!("{} dimensions", buffer.dimensions()), "a matrix"));
    };
    if !buffer.is_c_contiguous() {
        return Err(Error::argument(name, "a strided buffer", "a contiguous one"));
    }
    let values = if buffer.item_count() == 0 {
        &[][..]
    } else {
        // SAFETY: contiguous, `item_count` elements of type `T` (checked by `PyBuffer`), kept alive by `buffer`. Writing
        // to the array meanwhile from another thread is the caller's error; values are only ever compared and summed.
        unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<T>(), buffer.item_count()) }
    };
    Points::new(name, values, rows, columns)
}

/// Clusters `points`; fills `centres`, `labels` and `medoids`; inertia and rounds.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn k_means(
    py: Python<'_>,
    points: Matrix,
    k: usize,
    start: Option<PyBuffer<f64>>,
    iterations: usize,
    seed: u64,
    run: u64,
    centres: PyBuffer<f64>,
    labels: PyBuffer<i64>,
    medoids: PyBuffer<i64>,
) -> CoreResult<(f64, usize)> {
    let start = start.map(|start| start.to_vec(py)).transpose();
    let start = start.map_err(|_| Error::argument("start", "a buffer that cannot be read", "a contiguous one"))?;
    let settings = Settings { k, start: start.as_deref(), iterations, seed, run };
    let found = match &points {
        Matrix::Single(buffer) => py.detach(|| cluster("points", buffer, &settings))?,
        Matrix::Double(buffer) => py.detach(|| cluster("points", buffer, &settings))?,
    };
    fill("centres", &centres, &found.centres)?;
    fill("labels", &labels, &found.labels)?;
    fill("medoids", &medoids, &found.medoids)?;
    Ok((found.inertia, found.rounds))
}

fn cluster<T>(name: &str, buffer: &PyBuffer<T>, settings: &Settings<'_>) -> Result<select::Clusters>
where
    T: Element + Into<f64> + Send + Sync,
{
    select::k_means(&points(name, buffer)?, settings, &check_signals)
}

/// Runs `$work` on the points of either type, without the interpreter's lock.
macro_rules! on_points {
    ($py:ident, $points:ident, |$rows:ident| $work:expr) => {
        $py.detach(|| match &$points {
            Matrix::Single(buffer) => {
                let $rows = points("points", buffer)?;
                $work
            }
            Matrix::Double(buffer) => {
                let $rows = points("points", buffer)?;
                $work
            }
        })
    };
}

/// Refuses points that are not finite.
#[pyfunction]
pub fn check_points(py: Python<'_>, points: Matrix) -> CoreResult<()> {
    Ok(on_points!(py, points, |_rows| Ok::<_, Error>(()))?)
}

/// Picks `ids.len()` points farthest-first; fills `ids` and `gains`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn k_center(
    py: Python<'_>,
    points: Matrix,
    chosen: PyBuffer<i64>,
    start: Option<usize>,
    seed: u64,
    run: u64,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let unreadable = |_| Error::argument("chosen", "a buffer that cannot be read", "a contiguous one");
    let chosen = chosen.to_vec(py).map_err(unreadable)?;
    let settings = Centres { k: ids.item_count(), chosen: &chosen, start, seed, run };
    let picks = on_points!(py, points, |rows| select::k_center(&rows, &settings, &check_signals))?;
    fill_picks(&picks, &ids, &gains)
}

/// Picks `ids.len()` points by herding; fills `ids` and `gains`.
#[pyfunction]
pub fn herding(py: Python<'_>, points: Matrix, ids: PyBuffer<i64>, gains: PyBuffer<f64>) -> CoreResult<()> {
    let k = ids.item_count();
    let picks = on_points!(py, points, |rows| select::herding(&rows, k, &check_signals))?;
    fill_picks(&picks, &ids, &gains)
}

/// Picks `ids.len()` points near all; fills `ids` and `gains`. Lists of candidates may take `kept` bytes.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn facility_location(
    py: Python<'_>,
    points: Matrix,
    sample: Option<usize>,
    seed: u64,
    run: u64,
    kept: usize,
    neighbours: Option<usize>,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    if let Some(neighbours) = neighbours {
        let k = ids.item_count();
        let work =
            on_points!(py, points, |rows| select::facility_location_sparse(&rows, k, neighbours, &check_signals));
        return fill_picks(&work?, &ids, &gains);
    }
    let settings = Facility { k: ids.item_count(), sample, seed, run, kept };
    let picks = on_points!(py, points, |rows| select::facility_location(&rows, &settings, &check_signals))?;
    fill_picks(&picks, &ids, &gains)
}

/// Processes that meet by a function of Python's: bytes to the bytes of all.
struct Meeting {
    count: usize,
    gather: Py<PyAny>,
}

impl Peers for Meeting {
    fn count(&self) -> usize {
        self.count
    }

    fn gather(&mut self, own: &[u8]) -> Result<Vec<u8>> {
        Python::attach(|py| {
            let all = self.gather.call1(py, (PyBytes::new(py, own),))?;
            Ok(all.bind(py).cast::<PyBytes>().map_err(PyErr::from)?.as_bytes().to_vec())
        })
        .map_err(interrupted)
    }
}

/// Picks as `k_center` does among the points of `count` processes, of which this one's begin at row `first` of `total`;
/// `gather` takes bytes and gives those of all processes. Fills `ids`, rows of all points, and `gains`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn k_center_sharded(
    py: Python<'_>,
    points: Matrix,
    first: usize,
    total: usize,
    count: usize,
    gather: Py<PyAny>,
    chosen: PyBuffer<i64>,
    start: Option<usize>,
    seed: u64,
    run: u64,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let chosen = read(py, "chosen", &chosen)?;
    let settings = Centres { k: ids.item_count(), chosen: &chosen, start, seed, run };
    let mut peers = Meeting { count, gather };
    let picks = on_points!(py, points, |rows| {
        let mut shard = Shard { first, total, peers: &mut peers };
        select::k_center_sharded(&rows, &settings, &mut shard, &check_signals)
    })?;
    fill_picks(&picks, &ids, &gains)
}

/// Picks as `facility_location` does among the points of several processes; see `k_center_sharded`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn facility_location_sharded(
    py: Python<'_>,
    points: Matrix,
    first: usize,
    total: usize,
    count: usize,
    gather: Py<PyAny>,
    sample: Option<usize>,
    seed: u64,
    run: u64,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let settings = Facility { k: ids.item_count(), sample, seed, run, kept: 0 };
    let mut peers = Meeting { count, gather };
    let picks = on_points!(py, points, |rows| {
        let mut shard = Shard { first, total, peers: &mut peers };
        select::facility_location_sharded(&rows, &settings, &mut shard, &check_signals)
    })?;
    fill_picks(&picks, &ids, &gains)
}

/// Picks `ids.len()` points near all, each of which counts `weights` times; fills `ids` and `gains`.
#[pyfunction]
pub fn facility_location_weighted(
    py: Python<'_>,
    points: Matrix,
    weights: PyBuffer<f64>,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let (weights, k) = (read(py, "weights", &weights)?, ids.item_count());
    let work = on_points!(py, points, |rows| select::facility_location_weighted(&rows, &weights, k, &check_signals));
    fill_picks(&work?, &ids, &gains)
}

/// Cuts `points` into `k` parts of equal size; fills `labels`.
#[pyfunction]
pub fn balanced_partition(
    py: Python<'_>,
    points: Matrix,
    k: usize,
    iterations: usize,
    labels: PyBuffer<i64>,
) -> CoreResult<()> {
    let found = on_points!(py, points, |rows| select::balanced_partition(&rows, k, iterations, &check_signals))?;
    fill("labels", &labels, &found)
}

/// Signatures of sets, `[sets, count]`.
#[pyfunction]
pub fn min_hash(
    py: Python<'_>,
    values: PyBuffer<i64>,
    offsets: PyBuffer<i64>,
    count: usize,
    seed: u64,
    signatures: PyBuffer<u64>,
) -> CoreResult<()> {
    let (values, offsets) = (read(py, "values", &values)?, read(py, "offsets", &offsets)?);
    let found = py.detach(|| select::min_hash(&values, &offsets, count, seed))?;
    fill("signatures", &signatures, &found)
}

/// Pairs of sets whose signatures, of `count` values each, agree in a whole band: one flat list.
#[pyfunction]
pub fn candidate_pairs(
    py: Python<'_>,
    signatures: PyBuffer<u64>,
    count: usize,
    bands: usize,
    most: usize,
) -> CoreResult<Vec<i64>> {
    let signatures = read(py, "signatures", &signatures)?;
    Ok(py.detach(|| select::candidate_pairs(&signatures, count, bands, most))?.into_flattened())
}

/// Nodes' trees, roots, counts and supports, and of each level the labels, offsets, children and edge labels.
type Trees<'py> = ([Bound<'py, PyBytes>; 4], Vec<[Bound<'py, PyBytes>; 4]>);

/// The computation trees of graphs; lists as the bytes of 64-bit integers.
#[pyfunction]
pub fn computation_trees<'py>(
    py: Python<'py>,
    labels: PyBuffer<i64>,
    graphs: PyBuffer<i64>,
    sources: PyBuffer<i64>,
    targets: PyBuffer<i64>,
    edge_labels: Option<PyBuffer<i64>>,
    depth: usize,
) -> CoreResult<Trees<'py>> {
    let (labels, graphs) = (read(py, "labels", &labels)?, read(py, "graphs", &graphs)?);
    let (sources, targets) = (read(py, "edges", &sources)?, read(py, "edges", &targets)?);
    let edge_labels = edge_labels.map(|labels| read(py, "edge_labels", &labels)).transpose()?;
    let found = py.detach(|| {
        let graphs = Graphs {
            labels: &labels,
            graphs: &graphs,
            sources: &sources,
            targets: &targets,
            edge_labels: edge_labels.as_deref(),
        };
        select::computation_trees(&graphs, depth, &check_signals)
    })?;
    // One object for each number would take longer than finding the trees.
    let bytes =
        |values: Vec<i64>| PyBytes::new(py, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>());
    let levels = found.levels.into_iter().map(|level| [level.labels, level.offsets, level.children, level.edge_labels]);
    let levels = levels.map(|level| level.map(bytes)).collect();
    Ok(([found.nodes, found.roots, found.counts, found.supports].map(bytes), levels))
}

fn read<T: Element>(py: Python<'_>, name: &str, buffer: &PyBuffer<T>) -> CoreResult<Vec<T>> {
    Ok(buffer.to_vec(py).map_err(|_| Error::argument(name, "a buffer that cannot be read", "a contiguous one"))?)
}

/// Clusters `points` around `medoids.len()` of them; fills `medoids` and `labels`; loss and swaps. Products of all pairs
/// are kept if they take at most `kept` bytes.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "settings and outputs of one call")]
pub fn k_medoids(
    py: Python<'_>,
    points: Matrix,
    start: Option<PyBuffer<i64>>,
    iterations: usize,
    seed: u64,
    run: u64,
    kept: usize,
    medoids: PyBuffer<i64>,
    labels: PyBuffer<i64>,
) -> CoreResult<(f64, usize)> {
    let start = start.map(|start| start.to_vec(py)).transpose();
    let start = start.map_err(|_| Error::argument("start", "a buffer that cannot be read", "a contiguous one"))?;
    let settings = Swaps { k: medoids.item_count(), start: start.as_deref(), iterations, seed, run, kept };
    let found = on_points!(py, points, |rows| select::k_medoids(&rows, &settings, &check_signals))?;
    fill("medoids", &medoids, &found.medoids)?;
    fill("labels", &labels, &found.labels)?;
    Ok((found.loss, found.swaps))
}

/// Picks `ids.len()` texts that are far apart by edits; fills `ids` and `gains`.
#[pyfunction]
pub fn max_min_texts(
    py: Python<'_>,
    texts: Vec<String>,
    start: Option<usize>,
    seed: u64,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let settings = Apart { k: ids.item_count(), start, seed };
    let picks = py.detach(|| {
        let texts: Vec<Vec<char>> = texts.iter().map(|text| text.chars().collect()).collect();
        let mut distance = |left: usize, right: usize| Ok(select::levenshtein(&texts[left], &texts[right]) as f64);
        select::max_min(texts.len(), &settings, &mut distance, &check_signals)
    });
    fill_picks(&picks?, &ids, &gains)
}

/// Picks `ids.len()` of `count` items that are far apart; `metric` takes the places of two and gives their distance.
#[pyfunction]
pub fn max_min_items(
    py: Python<'_>,
    count: usize,
    metric: Bound<'_, PyAny>,
    start: Option<usize>,
    seed: u64,
    ids: PyBuffer<i64>,
    gains: PyBuffer<f64>,
) -> CoreResult<()> {
    let settings = Apart { k: ids.item_count(), start, seed };
    let mut distance = |left: usize, right: usize| -> Result<f64> {
        metric.call1((left, right)).and_then(|distance| distance.extract()).map_err(interrupted)
    };
    let check = || py.check_signals().map_err(interrupted);
    fill_picks(&select::max_min(count, &settings, &mut distance, &check)?, &ids, &gains)
}

/// Rows of the most valuable items whose costs sum to at most `limit`.
#[pyfunction]
pub fn budget(py: Python<'_>, values: PyBuffer<f64>, costs: PyBuffer<u64>, limit: u64) -> CoreResult<Vec<i64>> {
    let unreadable = |_| Error::argument("values", "a buffer that cannot be read", "a contiguous one");
    let (values, costs) = (values.to_vec(py).map_err(unreadable)?, costs.to_vec(py).map_err(unreadable)?);
    Ok(py.detach(|| select::budget(&values, &costs, limit, &check_signals))?)
}

fn fill_picks(picks: &Picks, ids: &PyBuffer<i64>, gains: &PyBuffer<f64>) -> CoreResult<()> {
    fill("ids", ids, &picks.ids)?;
    fill("gains", gains, &picks.gains)
}

/// The `k` nearest `points` of every query; fills `ids` and `distances`.
#[pyfunction]
pub fn nearest(
    py: Python<'_>,
    queries: Matrix,
    points: Matrix,
    k: usize,
    ids: PyBuffer<i64>,
    distances: PyBuffer<f64>,
) -> CoreResult<()> {
    let found = py.detach(|| match (&queries, &points) {
        (Matrix::Single(queries), Matrix::Single(points)) => search(queries, points, k),
        (Matrix::Single(queries), Matrix::Double(points)) => search(queries, points, k),
        (Matrix::Double(queries), Matrix::Single(points)) => search(queries, points, k),
        (Matrix::Double(queries), Matrix::Double(points)) => search(queries, points, k),
    });
    let found = found.map_err(CoreError)?;
    fill("ids", &ids, &found.ids)?;
    fill("distances", &distances, &found.distances)
}

fn search<Q, P>(queries: &PyBuffer<Q>, buffer: &PyBuffer<P>, k: usize) -> Result<select::Neighbours>
where
    Q: Element + Into<f64> + Send + Sync,
    P: Element + Into<f64> + Send + Sync,
{
    select::nearest(&points("queries", queries)?, &points("points", buffer)?, k, &check_signals)
}

pub fn fill<T: Element>(name: &str, out: &PyBuffer<T>, values: &[T]) -> CoreResult<()> {
    let out = writable(out)?;
    if out.len() != values.len() {
        return Err(Error::argument(name, format_args!("{} values", out.len()), values.len().to_string()).into());
    }
    out.copy_from_slice(values);
    Ok(())
}
