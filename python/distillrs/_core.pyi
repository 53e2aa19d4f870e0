from collections.abc import Callable, Sequence
from typing import final

from typing_extensions import Buffer

__version__: str

def simd_level() -> str: ...

# CUDA sources and their own headers, embedded: "row_divergence.cu", "rows.cuh", ...
def cuda_sources() -> list[str]: ...
def cuda_source(name: str) -> str: ...

@final
class TrajectoryStore:
    """One store on disk. Every method may be called from several threads; reading works after a fork."""

    @staticmethod
    def create(path: str, schema: str, metadata: str, exist_ok: bool) -> TrajectoryStore:
        """Makes a store, or joins it with `exist_ok`; both let it write.

        `schema` is `{"columns": [{"name", "dtype", "shape", "ragged", "codec", "tensor_sizes"}]}`: `dtype` a
        safetensors name ("F32"), `codec` `{"name": "raw" | "half-delta" | "delta-int8" | "lossless", ...parameters}`,
        `tensor_sizes` (optional) the lengths of the tensors that lie one after the other in a record. A ragged column
        has `shape` per row. `metadata` is any JSON object.
        """

    @staticmethod
    def open(path: str, verify: str) -> TrajectoryStore:
        """Opens a store to read; `verify` ("first", "always", "never") says when checksums are looked at."""

    @property
    def path(self) -> str: ...
    @property
    def writable(self) -> bool: ...
    @property
    def schema(self) -> str: ...
    @property
    def metadata(self) -> str: ...
    def begin(self, key: str, resume_at: int | None) -> TrajectoryWriter:
        """Starts the trajectory `key`, or goes on where its log ends; `resume_at` drops records from that step on."""

    def keys(self, incomplete: bool) -> list[str]:
        """Keys of complete trajectories, sorted; with `incomplete` those of unfinished ones too."""

    def lengths(self, incomplete: bool) -> dict[str, int]:
        """Steps of each trajectory, in the order of `keys`."""

    def missing(self, key: str) -> list[int]:
        """Steps that a repair dropped; reading one raises `StoreCorrupt`."""

    def codec_error(self, key: str, column: str) -> tuple[float, float, int] | None:
        """Largest and mean error relative to the displacement between neighbours, and over how many records.

        None for exact codecs.
        """

    def rows(self, key: str, column: str, step: int) -> int:
        """Rows of one record of a ragged column."""

    def read_into(self, key: str, column: str, steps: list[int], outs: list[tuple[int, int]]) -> None:
        """Fills one piece of memory (address, bytes) per step, without the GIL. Steps come in any order.

        The caller answers for the memory: nothing can check that it is there.
        """

    def view(self, key: str, column: str, step: int) -> RecordView:
        """One record as a read-only buffer: of the mapped file where it lies there raw, else of a decoded copy."""

    def refresh(self) -> None:
        """Takes in what other processes completed, sealed or appended since."""

    def seal(self) -> str:
        """Moves complete logs into segments.

        JSON: `{"sealed": [key], "segments": [name], "skipped": [{"key", "reason"}]}`.
        """

    def info(self) -> str:
        """JSON: format version, schema, metadata, files with sizes, trajectories, bytes, damage known so far."""

    def verify(self) -> str:
        """Reads everything.

        JSON: `{"records", "bytes", "damage": [{"path", "offset", "key", "step", "column", "reason"}], "tails": [...]}`.
        """

    def close(self) -> None:
        """Lets go of files. Does not seal. Views stay valid."""

@final
class TrajectoryWriter:
    """The one writer of one trajectory. Dropping it keeps what is written and frees the lock."""

    @property
    def key(self) -> str: ...
    @property
    def discarded(self) -> str:
        """JSON: what resuming dropped from the log's end (`{"bytes", "records"}`)."""

    def __len__(self) -> int:
        """Records so far, those before a resumption included."""

    def append(self, columns: list[tuple[str, tuple[int, int], int | None]]) -> int:
        """Writes one record: (column, (address, bytes), rows if ragged) for every column. Returns its step.

        The memory is little endian, and the caller answers for it: nothing can check that it is there.
        """

    def flush(self) -> None:
        """Every appended record is durable when it returns."""

    def complete(self) -> None:
        """Ends the trajectory, durably, and frees the lock."""

    def close(self) -> None:
        """Leaves the trajectory incomplete, resumable, and frees the lock."""

@final
class RecordView:
    """Read-only bytes that keep their file mapped."""

    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def repair_store(path: str) -> str:
    """Drops damaged records only.

    JSON: `{"dropped": [{"key", "step"}], "dependants": [{"key", "step"}], "kept", "files": [name],
    "manifest_rebuilt"}`.
    """

# teacher caches: `layout` is JSON, `{"vocabulary", "k", "code": "u8" | "f16", "temperatures", "sampled"}`; tensors are
# (address, bytes) of contiguous memory that the caller answers for: ids int64, the others float32.
def teacher_row_bytes(layout: str) -> int: ...
def teacher_pack_logits(
    layout: str,
    dtype: str,
    rows: int,
    logits: tuple[int, int],
    ids: tuple[int, int] | None,
    sampled: tuple[int, int] | None,
) -> bytes:
    """Packs rows of logits of type `dtype`: the k largest, or the `ids` [rows, k] (-1 for none)."""

def teacher_pack_top_k(
    layout: str,
    rows: int,
    ids: tuple[int, int],
    log_probs: tuple[int, int],
    tail: tuple[int, int],
    partitions: tuple[int, int],
    sampled: tuple[tuple[int, int], tuple[int, int]] | None,
) -> bytes:
    """Packs rows that were selected before; `partitions` is [rows, temperatures]."""

def teacher_pack_dense(layout: str, rows: int, logits: tuple[int, int]) -> bytes:
    """Packs every class of rows of logits; the layout has `"dense": true`."""

@final
class TeacherRows:
    """The rows of a teacher cache at one moment. Every method works in threads, without the GIL, and after a fork."""

    @staticmethod
    def load(store: TrajectoryStore, layout: str) -> TeacherRows: ...
    @property
    def size(self) -> tuple[int, int]:
        """Documents, and their tokens."""

    def keys(self) -> list[str]:
        """Sorted."""

    def conflicts(self) -> list[str]:
        """Keys that two documents have with different rows; the first writer's counts."""

    def conflict_rows(self) -> list[tuple[str, int, int]]:
        """Of each conflict the key, the first row that counts, and the other document's first row."""

    def find(self, key: str) -> tuple[int, int] | None:
        """First row and tokens of a key's document."""

    def place(self, key: str) -> tuple[str, int] | None:
        """Trajectory and step of a key's document."""

    def packed(self, key: str) -> bytes:
        """A copy of the packed rows of a key's document."""

    def gather(
        self,
        rows: tuple[int, int],
        wide: bool,
        ids: tuple[int, int],
        log_probs: tuple[int, int],
        tail: tuple[int, int],
        partitions: tuple[int, int],
    ) -> None:
        """Unpacks rows (int64; -1 for none); `ids` is int64 if `wide`, else int32."""

    def gather_sampled(self, rows: tuple[int, int], ids: tuple[int, int], log_probs: tuple[int, int]) -> None: ...
    def gather_dense(self, rows: tuple[int, int], out: tuple[int, int]) -> None:
        """Unpacks rows that hold every class into float32 `out`: log-probabilities less the row's largest."""

    def gather_packed(self, rows: tuple[int, int], out: tuple[int, int]) -> None:
        """Copies the bytes of rows as they are stored."""

# random: `units` is (first id, count) or an int64 array of ids; `out` is filled, its length is units times `per_unit`.
def random_real(
    normal: bool, seed: int, name: str, step: int, units: tuple[int, int] | Buffer, per_unit: int, out: Buffer
) -> None: ...
def random_integers(
    high: int, seed: int, name: str, step: int, units: tuple[int, int] | Buffer, per_unit: int, out: Buffer
) -> None: ...
def random_choice(n: int, seed: int, name: str, step: int, out: Buffer) -> None: ...
def random_seed(seed: int, name: str, step: int) -> int: ...

# schedule: `costs` are square, [from, to]; arcs lead forward, and an infinite cost forbids one.
def shortest_paths(costs: Buffer, most: int) -> tuple[list[float], list[list[int]]]:
    """Cheapest walks from the first node to the last of exactly 1, ..., `most` arcs.

    Costs (infinite if there is none) and nodes (then empty).
    """

def shortest_paths_of_two(
    first: Buffer, second: Buffer, count: int, second_count: int
) -> tuple[float, list[int], list[bool]]:
    """The cheapest walk of `count` arcs, `second_count` of them of the second kind: cost, nodes, which arcs are."""

# parallel
def threads() -> int: ...
def set_threads(count: int) -> None: ...

# codecs, for tests and benchmarks: stores encode and decode on their own. `spec` is JSON, buffers are bytes.
def codec_encode(
    spec: str, dtype: str, tensor_sizes: list[int], records: list[Buffer]
) -> tuple[list[tuple[bytes, int | None]], tuple[float, float, int]]:
    """Payloads with the step that each refers to (none for a keyframe); the measured error: max, mean, records."""

def codec_decode(
    spec: str, dtype: str, tensor_sizes: list[int], chain: list[Buffer], wanted: list[tuple[int, Buffer]]
) -> None:
    """Decodes the wanted positions of a chain into buffers of one record each."""

def copy_bytes(source: Buffer, out: Buffer) -> None: ...

# select: points are contiguous matrices of float32 or float64; results are written to the buffers given.
def k_means(
    points: Buffer,
    k: int,
    start: Buffer | None,
    iterations: int,
    seed: int,
    run: int,
    centres: Buffer,
    labels: Buffer,
    medoids: Buffer,
) -> tuple[float, int]:
    """Fills float64 `centres` [k, d], int64 `labels` [n] and `medoids` [k]; inertia and rounds."""

def check_points(points: Buffer) -> None:
    """Refuses points that are not finite."""

def k_center(
    points: Buffer,
    chosen: Buffer,
    start: int | None,
    seed: int,
    run: int,
    ids: Buffer,
    gains: Buffer,
) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]; `chosen` is int64."""

def herding(points: Buffer, ids: Buffer, gains: Buffer) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]."""

def facility_location(
    points: Buffer,
    sample: int | None,
    seed: int,
    run: int,
    kept: int,
    neighbours: int | None,
    ids: Buffer,
    gains: Buffer,
) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]."""

def k_center_sharded(
    points: Buffer,
    first: int,
    total: int,
    count: int,
    gather: Callable[[bytes], bytes],
    chosen: Buffer,
    start: int | None,
    seed: int,
    run: int,
    ids: Buffer,
    gains: Buffer,
) -> None:
    """`k_center` of the points of `count` processes; this one's begin at row `first` of `total`."""

def facility_location_sharded(
    points: Buffer,
    first: int,
    total: int,
    count: int,
    gather: Callable[[bytes], bytes],
    sample: int | None,
    seed: int,
    run: int,
    ids: Buffer,
    gains: Buffer,
) -> None:
    """`facility_location` of the points of `count` processes."""

def facility_location_weighted(points: Buffer, weights: Buffer, ids: Buffer, gains: Buffer) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]; float64 `weights` [n]."""

def k_medoids(
    points: Buffer,
    start: Buffer | None,
    iterations: int,
    seed: int,
    run: int,
    kept: int,
    medoids: Buffer,
    labels: Buffer,
) -> tuple[float, int]:
    """Fills int64 `medoids` [k] and `labels` [n]; loss and swaps. `start` is int64 [k]."""

def balanced_partition(points: Buffer, k: int, iterations: int, labels: Buffer) -> None:
    """Fills int64 `labels` [n]."""

def token_chunks(
    rows: int,
    student_spans: Buffer,
    teacher_spans: Buffer,
    minimum: int,
    boundary: Buffer | None,
    threshold: float,
    student_chunks: Buffer,
    teacher_chunks: Buffer,
    ends: Buffer,
) -> None:
    """Fills int64 `student_chunks` and `teacher_chunks` [rows, tokens] and `ends` [rows, fewer of both].

    Spans are int64 [rows, tokens, 2], `boundary` is float32 [rows, tokens of the teacher].
    """

def shared_tokens(
    student_bytes: Buffer, student_offsets: Buffer, teacher_bytes: Buffer, teacher_offsets: Buffer, teacher_ids: Buffer
) -> None:
    """Fills int64 `teacher_ids` [tokens of the student]; bytes are uint8, offsets int64 [tokens + 1]."""

def min_hash(values: Buffer, offsets: Buffer, count: int, seed: int, signatures: Buffer) -> None:
    """Fills uint64 `signatures` [sets, count]; `values` and `offsets` are int64."""

def candidate_pairs(signatures: Buffer, count: int, bands: int, most: int) -> list[int]:
    """Pairs of sets as one flat list; `signatures` is uint64 [sets, count]."""

def computation_trees(
    labels: Buffer,
    graphs: Buffer,
    sources: Buffer,
    targets: Buffer,
    edge_labels: Buffer | None,
    depth: int,
) -> tuple[list[bytes], list[list[bytes]]]:
    """Nodes' trees, roots, counts, supports; of each level labels, offsets, children, edge labels. Bytes of int64."""

def max_min_texts(texts: Sequence[str], start: int | None, seed: int, ids: Buffer, gains: Buffer) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]."""

def max_min_items(
    count: int,
    metric: Callable[[int, int], float],
    start: int | None,
    seed: int,
    ids: Buffer,
    gains: Buffer,
) -> None:
    """Fills int64 `ids` and float64 `gains`, both [k]; `metric` takes the places of an item and of a pick."""

def budget(values: Buffer, costs: Buffer, limit: int) -> list[int]:
    """Rows of the choice, rising; float64 `values` and uint64 `costs`, both [n]."""

def nearest(queries: Buffer, points: Buffer, k: int, ids: Buffer, distances: Buffer) -> None:
    """Fills int64 `ids` and float64 `distances`, both [queries, k]."""

# forms: memory is (address, bytes) of tensors that the caller keeps alive.

def encode_codes(codes: tuple[int, int], bits: int) -> bytes:
    """A stream of codes below 2^bits, one to a byte of `codes`."""

def decode_codes(stream: tuple[int, int], bits: int, out: tuple[int, int]) -> None:
    """Fills `out`, one code to a byte."""

def best_of_two_kinds(
    first: tuple[Buffer, Buffer, list[bool]], second: tuple[Buffer, Buffer, list[bool]], limit: int
) -> tuple[list[int], list[int]]:
    """What to keep of each kind, rising; float64 values, uint64 costs and marks of what is required, all [n]."""

# ops: rows are (address, columns, rows in a run, elements between runs, elements between rows), vectors (address,
# length) of tensors that the caller keeps alive; nothing can check that they are there. Numbers per row are float64.
def row_divergence(
    dtypes: tuple[str, str],
    student: tuple[int, int, int, int, int],
    teacher: tuple[int, int, int, int, int],
    vocabulary: int,
    parts: list[tuple[str, float, float, tuple[int, int] | None]],
    temperatures: tuple[tuple[int, int], tuple[int, int]],
    scales: tuple[tuple[int, int], tuple[int, int]],
    labels: tuple[int, int] | None,
    gradient: tuple[int, int, int, int, int] | None,
    losses: tuple[int, int],
    divergences: tuple[int, int],
) -> float:
    """Fills float64 `losses` and `divergences`, one for each row, and the gradient; the sum of the losses.

    `parts` are (name, parameter, weight, or weights of the rows). Temperatures are the student's and the teacher's,
    scales those of the divergence and of the label.
    """

def row_statistics(
    dtype: str,
    logits: tuple[int, int, int, int, int],
    vocabulary: int,
    temperature: tuple[int, int],
    logsumexp: tuple[int, int],
    entropy: tuple[int, int],
    argmax: tuple[int, int],
    k: int,
    top: tuple[int, int],
) -> None:
    """Fills float64 `logsumexp` and `entropy`, int64 `argmax`, each [rows], and int64 `top` [rows, k]."""

def sparse_row_divergence(
    dtype: str,
    student: tuple[int, int, int, int, int],
    vocabulary: int,
    k: int,
    top: tuple[tuple[int, int], tuple[int, int], tuple[int, int]],
    parts: list[tuple[str, float, float, tuple[int, int] | None]],
    temperature: tuple[int, int],
    scale: tuple[int, int],
    gradient: tuple[int, int, int, int, int] | None,
    losses: tuple[int, int],
) -> float:
    """Fills float64 `losses`, one for each row, and the gradient; the sum of the losses.

    `top` are int64 ids and float64 log-probabilities, [rows, k], and the float64 log-mass of the rest.
    """

def plackett_luce(
    dtypes: tuple[str, str],
    student: tuple[int, int, int, int, int],
    teacher: tuple[int, int, int, int, int],
    temperature: tuple[int, int],
    scale: tuple[int, int],
    labels: tuple[int, int],
    gradient: tuple[int, int, int, int, int] | None,
    losses: tuple[int, int],
) -> float:
    """Fills float64 `losses`, one for each row, and the gradient; the sum of the losses."""

def mixture_mean(
    of: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int] | None, int],
    mean: tuple[int, int],
    best: tuple[int, int],
    total: tuple[int, int],
) -> None:
    """Posterior mean (f32) of every row, the largest closeness and the sum relative to it (f64).

    `of` is x (f32), alpha, variance (f64), points (f32), weights (f64), as (address, length), and features of a row.
    """

def mixture_covariance(
    of: tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int] | None, int],
    mean: tuple[int, int],
    best: tuple[int, int],
    total: tuple[int, int],
    direction: tuple[int, int],
    out: tuple[int, int],
) -> None:
    """Covariance of the features (point - mean, its square) with their product with the direction (f64)."""

def memory_pass(first: int, second: int, out: int, bytes: int) -> None:
    """Reads two pieces of memory and writes a third, past the caches: a benchmark's limit. `out` is aligned to 64."""
