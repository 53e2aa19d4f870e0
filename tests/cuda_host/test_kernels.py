"""The library's kernels in the checking mode, under several orders, and through NVIDIA's compiler."""

import itertools
import json
import re

import pytest
import torch

from cuda_host import nvrtc
from cuda_host.host import HostLoader, KernelError
from distillrs import _core, ops
from distillrs.ops._cuda import _energy, _farthest, _launcher, _mixture, _module, _parts, _sources, _statistics, _store
from distillrs.trajectory.buffers import memory

TYPES = ["float", "__nv_bfloat16", "__half"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Which macros name types of values in each source, and its kernels where they do not have its name.
MACROS = {
    "energy.cu": ("ROWS", "POINTS"),
    "farthest_first.cu": ("POINTS",),
    "mixture_denoiser.cu": ("ROWS", "POINTS"),
    "row_divergence.cu": ("STUDENT", "TEACHER"),
    "row_statistics.cu": ("LOGITS",),
    "sparse_divergence.cu": ("STUDENT",),
    "store_decode.cu": (),
}
KERNELS = {
    "energy.cu": ["energy_values", "energy_slopes"],
    "mixture_denoiser.cu": ["mixture_posterior", "mixture_covariance"],
}
SEEDS = [0, 1, 5]
ALL = [
    ops.ForwardKL(),
    ops.Mixture({ops.ReverseKL(): 0.5, ops.JensenShannon(0.3): torch.tensor([0.5, 0.0, 1.0]), ops.Alpha(0.5): 1.0}),
]


def logits(*shape, seed=0, dtype=torch.float32):
    return (3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def checked(run):
    """Results under several orders; the shim raises for whatever it sees."""
    found = []
    for seed in SEEDS:
        with _launcher.serving(_launcher.Launcher(HostLoader("check", seed))):
            found.append(run())
    return found


def assert_equal(results):
    """No order of threads changes a bit."""
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("divergence", ALL, ids=["one", "mixture"])
@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_divergence_has_no_race_and_one_result(divergence, consume, dtype):
    teacher, labels = logits(3, 523, seed=1, dtype=dtype), torch.tensor([4, -100, 522])

    def run():
        leaf = logits(3, 530, dtype=dtype).requires_grad_()
        loss, statistics = ops.row_divergence(
            (leaf * 1)[:, 1:] if not consume else leaf * 1,
            teacher,
            divergence,
            temperature=2.0,
            labels=labels,
            label_weight=0.5,
            vocabulary=523,
            consume_logits=consume,
            return_statistics=True,
            backend="cuda",
        )
        return [loss.detach(), torch.autograd.grad(loss, leaf)[0], *statistics]

    results = checked(run)
    assert_equal(results)
    assert torch.isfinite(results[0][1]).all()


@pytest.mark.parametrize("k", [0, 1, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_statistics_has_no_race_and_one_result(k, dtype):
    # A coarse grid makes ties.
    values = logits(3, 700, dtype=dtype).round()

    def run():
        found = ops.row_statistics(values, torch.arange(3), k, backend="cuda")
        return [value for value in found if value is not None]

    results = checked(run)
    assert_equal(results)
    expected = ops.row_statistics(values, torch.arange(3), k, backend="rust")
    assert torch.equal(results[0][-2], expected.top_ids)


def test_as_many_entries_as_the_kernel_can_find():
    values = logits(1, _statistics.MAX_TOP + 1).round()
    with _launcher.serving(_launcher.Launcher(HostLoader("fast", 3))):
        found = ops.row_statistics(values, top_k=_statistics.MAX_TOP, backend="cuda")
        with pytest.raises(ValueError, match="top_k=1025"):
            ops.row_statistics(values, top_k=_statistics.MAX_TOP + 1, backend="cuda")
    expected = ops.row_statistics(values, top_k=_statistics.MAX_TOP, backend="rust")
    assert torch.equal(found.top_ids, expected.top_ids)
    torch.testing.assert_close(found.top_log_probs, expected.top_log_probs)


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_divergence_has_no_race_and_one_result(consume, dtype):
    top = ops.TopK.from_logits(logits(3, 523, seed=1), 37)

    def run():
        leaf = logits(3, 530, dtype=dtype).requires_grad_()
        loss = ops.sparse_row_divergence(
            leaf * 1, top, ALL[1], vocabulary=523, consume_logits=consume, reduction="sum", backend="cuda"
        )
        return [loss.detach(), torch.autograd.grad(loss, leaf)[0]]

    assert_equal(checked(run))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-5), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("divergence", ALL, ids=["one", "mixture"])
def test_linear_row_divergence_in_chunks_is_the_reference(divergence, dtype, tolerance, reduction):
    """Every chunk's logits go through the kernel, which writes the slopes over them."""
    sides = [(logits(*shape, seed=seed) / 3).to(dtype) for seed, shape in enumerate([(3, 5), (45, 5), (3, 7), (43, 7)])]
    biases = [logits(45, seed=4).to(dtype), logits(43, seed=5).to(dtype)]
    upstream = torch.tensor([0.5, -2.0, 1.5]) if reduction == "none" else torch.tensor(0.7)

    def run(sides, biases, backend):
        leaves = [value.clone().requires_grad_() for value in (sides[0], sides[1], biases[0])]
        loss = ops.linear_row_divergence(
            *leaves[:2],
            *sides[2:],
            divergence,
            student_bias=leaves[2],
            teacher_bias=biases[1],
            temperature=2.0,
            labels=torch.tensor([4, -100, 42]),
            label_weight=0.5,
            vocabulary=43,
            reduction=reduction,
            chunk_bytes=1,
            backend=backend,
        )
        return [loss.detach(), *torch.autograd.grad(loss, leaves, upstream.to(loss))]

    results = checked(lambda: run(sides, biases, "cuda"))
    assert_equal(results)
    exact = run([value.double() for value in sides], [value.double() for value in biases], "torch")
    for found, true in zip(results[0], exact, strict=True):
        assert found.shape == true.shape
        assert float((found.double() - true).abs().max()) <= tolerance * (1 + float(true.abs().max()))


@pytest.mark.parametrize(("types", "weighted"), [(DTYPES[:2], False), (DTYPES[::-2], True)])
def test_mixture_denoiser_has_no_race_and_one_result(types, weighted):
    x, data = logits(35, 40, dtype=types[0]), logits(150, 40, seed=1, dtype=types[1])
    # Little noise, so that some tiles are passed over.
    scales = [torch.full((35,), value, dtype=torch.float64) for value in (0.9, 0.4)]
    weights = logits(150, seed=2).abs() * (torch.arange(150) % 3 > 0) if weighted else None

    def run():
        leaves = [value.clone().requires_grad_() for value in (x, *scales)]
        found = [
            function(leaves[0], data, *leaves[1:], 0.1, weights, backend="cuda")
            for function in (ops.mixture_denoiser, ops.mixture_log_density)
        ]
        return [*(value.detach() for value in found), *torch.autograd.grad(sum(map(torch.sum, found)), leaves)]

    results = checked(run)
    assert_equal(results)
    assert all(torch.isfinite(value).all() for value in results[0])


@pytest.mark.parametrize(
    ("kernel", "types", "weighted"),
    [(ops.Gaussian((0.5, 3.0)), DTYPES[:2], False), (ops.Polynomial(3, 0.1, 1.0), DTYPES[::-2], True)],
)
def test_energy_has_no_race_and_one_result(kernel, types, weighted):
    # More than a tile of everything, and a part of one.
    x, y = logits(35, 70, dtype=types[0]), logits(80, 70, seed=1, dtype=types[1])
    weights = logits(80, seed=2) if weighted else None

    def run():
        leaves = [value.clone().requires_grad_() for value in (x, y)]
        found = ops.energy(*leaves, kernel, y_weights=weights, backend="cuda")
        return [found.detach(), *torch.autograd.grad(found, leaves)]

    results = checked(run)
    assert_equal(results)
    assert all(torch.isfinite(value.float()).all() for value in results[0])


def test_energy_without_its_barrier_is_a_race():
    """The slopes of a tile are written by other threads than those that read them."""
    text = _sources.source("energy.cu")
    barrier = "      __syncthreads();\n      const unsigned f = threadIdx.x % kPoints;"
    assert text.count(barrier) == 1
    planted = text.replace(barrier, barrier.split("\n")[1])
    x = logits(3, 5)
    loader = HostLoader("check", 1)
    arguments = {"ROWS": "float", "POINTS": "float"}
    module = loader.load(planted, "energy.cu", arguments, torch.device("cpu"))
    launcher = _launcher.Launcher(_Fixed(module))
    with _launcher.serving(launcher), pytest.raises(KernelError, match="race"):
        _energy.slopes(x, x.flip(0), ops.Gaussian(), None, None)


class _Fixed:
    """Loads one module, whatever it is asked for."""

    device_type = "cpu"

    def __init__(self, module):
        self._module = module

    def load(self, *_):
        return self._module


@pytest.mark.parametrize("dtype", DTYPES)
def test_farthest_first_has_no_race_and_one_result(dtype):
    points = logits(30, 40, dtype=dtype).round()

    def run():
        return [value for chosen in ([], [4, 2]) for value in _farthest.traverse(points, chosen, 3, 5)]

    results = checked(run)
    assert_equal(results)
    assert results[0][0][0] == 3


def packed_rows(k, code, rows=7, vocabulary=500):
    """Rows as the core packs them, and their layout."""
    form = {"vocabulary": vocabulary, "k": k, "code": code, "temperatures": [1.0, 2.0], "sampled": False}
    values = logits(rows, vocabulary).contiguous()
    packed = _core.teacher_pack_logits(json.dumps(form), "float32", rows, memory(values), None, None)
    layout = _store.RowLayout(vocabulary, k, code == "f16", 2, _core.teacher_row_bytes(json.dumps(form)))
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8), layout


@pytest.mark.parametrize("code", ["u8", "f16"])
@pytest.mark.parametrize("k", [1, 33])
def test_store_decode_has_no_race_and_one_result(k, code):
    packed, layout = packed_rows(k, code)
    assert layout.partitions_at + 4 == layout.row_bytes
    places = torch.tensor([3, -1, 0, 6, 6, -1])

    def run():
        return _store.unpack(layout, packed, places, len(places), torch.int32)

    results = checked(run)
    assert_equal(results)
    ids, log_probs, tail, _ = results[0]
    assert not log_probs.isnan().any()
    assert torch.equal(log_probs.isfinite().all(1), places >= 0)
    assert torch.equal(ids[3], ids[4])
    assert not tail[places < 0].any()


def test_an_absent_entry_ends_its_row_beyond_a_warp_s_entries():
    """Those behind it are absent whatever their steps say, also where the next 32 begin."""
    packed, layout = packed_rows(70, "u8")
    rows = packed.reshape(7, -1)
    # The code of entry e lies at codes_at + e - 1. Row 1 ends within the first 32, row 2 with the last of them, row 3
    # with the first of the second, row 4 nowhere; all have ordinary steps behind.
    ends = {1: 20, 2: 31, 3: 32, 5: 69, 6: 1}
    for row, end in ends.items():
        rows[row, layout.codes_at + end - 1] = 255
        assert (rows[row, layout.codes_at + end :][: 69 - end] != 255).all()

    def run():
        return _store.unpack(layout, rows, None, 7, torch.int64)

    results = checked(run)
    assert_equal(results)
    log_probs = results[0][1]
    for row in range(7):
        end = ends.get(row, 70)
        assert log_probs[row, :end].isfinite().all()
        assert (log_probs[row, end:] == -torch.inf).all()
    steps = rows[:, layout.codes_at : layout.codes_at + 69].long().cumsum(1).float()
    head = rows[:, layout.head_at : layout.head_at + 6].contiguous()
    top, scale = head[:, :4].contiguous().view(torch.float32), head[:, 4:].contiguous().view(torch.float16).float()
    expected = torch.cat([top, top - scale * steps], 1)
    assert torch.equal(log_probs, torch.where(log_probs.isfinite(), expected, log_probs))


@pytest.mark.parametrize("code", ["u8", "f16"])
def test_a_row_that_no_encoder_writes_is_not_a_number(code):
    """Nobody looks at the bytes before the launch, and nobody waits for it."""
    packed, layout = packed_rows(33, code)
    infinite, positive, none = [0, 0x7C], [0, 0x3C], [0, 0x7E]
    single = [[0, 0, 0x80, 0x7F], [0, 0, 0xC0, 0x7F]]
    damages = [(0, [255, 255]), (layout.tail_at, positive), (layout.tail_at, none)]
    damages += [(layout.partitions_at, value) for value in single]
    if code == "u8":
        damages += [(layout.head_at, value) for value in ([0, 0, 0x80, 0x3F], *single)]
        damages += [(layout.head_at + 4, value) for value in (infinite, none, [0, 0xBC])]
    else:
        damages += [(layout.codes_at + 2 * 32, value) for value in (positive, none)]
    with _launcher.serving(_launcher.Launcher(HostLoader("check"))):
        for offset, value in damages:
            rows = packed.clone().reshape(7, -1)
            rows[4, offset : offset + len(value)] = torch.tensor(value, dtype=torch.uint8)
            ids, *others = _store.unpack(layout, rows, None, 7, torch.int64)
            assert int(ids.min()) >= 0
            assert int(ids.max()) < layout.vocabulary
            for numbers in others:
                assert numbers.reshape(7, -1).isnan().all(1).tolist() == [row == 4 for row in range(7)], offset


@pytest.mark.parametrize("columns", [1, 31, 257, 2100, 5000, 9001])
def test_any_number_of_threads(columns):
    # Rising, so that every round of a thread finds a larger logit.
    rise = torch.linspace(-20, 0, columns)
    student, teacher = logits(2, columns) + rise, logits(2, columns, seed=1) + rise
    top = ops.TopK.from_logits(teacher, min(5, columns))
    with _launcher.serving(_launcher.Launcher(HostLoader("fast", 4))):
        found = ops.row_divergence(student, teacher, ALL[0], backend="cuda")
        statistics = ops.row_statistics(student, backend="cuda")
        sparse = ops.sparse_row_divergence(student, top, ALL[0], backend="cuda")
    exact = ops.row_statistics(student.double(), backend="torch")
    assert torch.equal(statistics.argmax, exact.argmax)
    pairs = [
        (found, ops.row_divergence(student.double(), teacher.double(), ALL[0])),
        (sparse, ops.sparse_row_divergence(student.double(), top, ALL[0])),
        (statistics.entropy, exact.entropy),
        (statistics.logsumexp, exact.logsumexp),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other, atol=3e-6, rtol=1e-5)


def test_a_wrong_id_or_label_makes_its_row_not_a_number():
    """On a GPU nobody looks at their values before the launch."""
    from distillrs.ops._sparse import SparseRows

    student = logits(2, 40)
    rows = rows_of(student, labels=torch.tensor([3, 39]), label_weight=1.0)
    rows.labels[1] = 40
    top = ops.TopK(torch.tensor([[1], [-2]]), torch.zeros(2, 1), torch.full((2,), -torch.inf))
    loader = HostLoader("check")
    with _launcher.serving(_launcher.Launcher(loader)):
        from distillrs.ops import _cuda

        losses, _, _ = _cuda.divergence_rows(student, rows, torch.empty_like(student), False)
        assert losses.isnan().tolist() == [False, True]
        losses, _, _ = _cuda.sparse_rows(student, SparseRows(rows_of(student), top), torch.empty_like(student), False)
        assert losses.isnan().tolist() == [False, True]


def rows_of(student, labels=None, label_weight=0.0):
    from distillrs.ops._rows import prepare

    return prepare(
        student,
        student.flip(-1),
        ops.ForwardKL(),
        temperature=1.0,
        teacher_temperature=None,
        temperature_rule="none",
        weight=None,
        labels=labels,
        label_weight=label_weight,
        ignore_index=-100,
        vocabulary=None,
        reduction="sum",
        normaliser=None,
    )


def kernels():
    return [name for name in _core.cuda_sources() if name.endswith(".cu")]


def test_every_source_is_compiled_below():
    assert set(MACROS) == set(kernels())


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("name", sorted(MACROS))
def test_sources_compile_for_every_architecture_and_type(name, architecture):
    for types in itertools.product(TYPES, repeat=len(MACROS[name])):
        if len(set(types)) > 1 and architecture != "sm_90":
            continue  # what differs between architectures does not differ between pairs of types
        if name in ("energy.cu", "mixture_denoiser.cu") and len(set(types)) > 1 and types[0] != "float":
            continue  # rows and points are only widened, each alone
        flags = _module.options(dict(zip(MACROS[name], types, strict=True)))
        # cupy flushes subnormal numbers; what the machine code does with them is not looked at here.
        flags = (*flags, f"--gpu-architecture={architecture}", "-ftz=true", "--ptxas-options=-v")
        is_right, binary, log = nvrtc.compile_source(_sources.source(name), name, flags)
        assert is_right, log
        assert "warning" not in log, log
        # Spilled registers would go to memory and back in the middle of a pass.
        assert set(re.findall(r"(\d+) bytes spill", log)) == {"0"}, log
        assert binary[:4] == b"\x7fELF"
        for kernel in KERNELS.get(name, [name.removesuffix(".cu")]):
            assert kernel.encode() in binary


def test_a_source_that_does_not_compile_is_seen():
    broken = _sources.source("row_statistics.cu").replace("block_sum(totals);", "block_sum(totals)")
    flags = (*_module.options({"LOGITS": "float"}), "--gpu-architecture=sm_90")
    is_right, _, log = nvrtc.compile_source(broken, "row_statistics.cu", flags)
    assert not is_right
    assert re.search(r"row_statistics.cu\(\d+\): error", log), log


def test_constants_that_python_repeats_are_those_of_the_sources():
    of_rows = ["row_divergence.cu", "row_statistics.cu", "sparse_divergence.cu"]
    for names, constants in [
        (
            of_rows,
            {
                "kMaxThreads": _launcher.MAX_THREADS,
                "kChunk": _launcher.CHUNK,
                "kMaxParts": _parts.MAX_PARTS,
                "kMaxTop": _statistics.MAX_TOP,
            },
        ),
        (["mixture_denoiser.cu"], {"kRows": _mixture.ROWS, "kPoints": _mixture.POINTS}),
        (["energy.cu"], {"kRows": _energy.ROWS, "kPoints": _energy.POINTS}),
        (["store_decode.cu"], {"kWarps": _store.WARPS}),
    ]:
        text = "".join(_sources.source(name) for name in names)
        for name, value in constants.items():
            assert set(re.findall(rf"constexpr \w+ {name} = (\d+);", text)) == {str(value)}
    for names, threads in [
        (of_rows, _launcher.MAX_THREADS),
        (["mixture_denoiser.cu"], _mixture.THREADS),
        (["energy.cu"], _energy.THREADS),
        (["store_decode.cu"], 32 * _store.WARPS),
        (["farthest_first.cu"], _farthest.THREADS),
    ]:
        text = "".join(_sources.source(name) for name in names)
        assert set(re.findall(r"__launch_bounds__\((\d+)[,)]", text)) == {str(threads)}
    text = _sources.source("row_divergence.cu")
    order = re.search(r"enum Kind \{([^}]*)\}", text)[1].replace(" ", "").split(",")
    assert order == [f"k{divergence.__name__}" for divergence in _parts.KINDS]
    assert list(_parts.KINDS.values()) == list(range(len(order)))
    order = re.search(r"enum Kind \{([^}]*)\}", _sources.source("energy.cu"))[1].replace(" ", "").split(",")
    assert order == [f"k{kernel.__name__}" for kernel in _energy.KINDS]
    assert list(_energy.KINDS.values()) == list(range(len(order)))
