"""The CUDA backend without a GPU: what it refuses, how it launches, what it says when something is missing."""

import contextlib
import re
import sys
import types
import warnings

import numpy as np
import pytest
import torch

from cuda_host.host import HostLoader
from distillrs import _core, errors, ops
from distillrs.ops import _backends
from distillrs.ops._cuda import _launcher, _module, _sources

CUDA = torch.device("cuda", 1)


class Recorder:
    """A loader and its modules: remembers what was asked for."""

    device_type = "cpu"

    def __init__(self):
        self.loads, self.launches = [], []

    def load(self, text, name, defines, device):
        self.loads.append((name, dict(defines), device))
        return self

    def launch(self, kernel, grid, block, arguments, shared_bytes):
        self.launches.append((kernel, grid, block, dict(arguments), shared_bytes))


def test_a_source_is_compiled_once_for_each_device_and_type():
    recorder = Recorder()
    launcher = _launcher.Launcher(recorder)
    for dtype, device in [
        (torch.float32, "cpu"),
        (torch.float32, "cpu"),
        (torch.float16, "cpu"),
        (torch.float32, "meta"),
    ]:
        launcher.module("row_statistics", {"LOGITS": dtype}, torch.device(device))
    assert recorder.loads == [
        ("row_statistics.cu", {"LOGITS": "float"}, torch.device("cpu")),
        ("row_statistics.cu", {"LOGITS": "__half"}, torch.device("cpu")),
        ("row_statistics.cu", {"LOGITS": "float"}, torch.device("meta")),
    ]


def test_what_does_not_compile_is_not_tried_again():
    class Broken(Recorder):
        def load(self, text, name, defines, device):
            super().load(text, name, defines, device)
            raise _module.compile_error(name, "sm_90", (), "no", "cuda13")

    loader = Broken()
    launcher = _launcher.Launcher(loader)
    for _ in range(3):
        with pytest.raises(errors.KernelCompileError, match=r"row_statistics.cu for sm_90"):
            launcher.module("row_statistics", {"LOGITS": torch.float32}, torch.device("cpu"))
    assert len(loader.loads) == 1


@pytest.mark.parametrize(("columns", "threads"), [(1, 32), (256, 32), (257, 64), (4096, 512), (200_000, 512)])
def test_a_block_has_whole_warps_for_its_columns(columns, threads):
    recorder = Recorder()
    launcher = _launcher.Launcher(recorder)
    launcher.launch_rows("row_statistics", {"LOGITS": torch.float32}, torch.device("cpu"), 7, columns, {}, 12)
    assert recorder.launches == [("row_statistics", (7, 1, 1), (threads, 1, 1), {}, 12)]


def test_no_rows_launch_nothing_and_too_many_share_blocks():
    recorder = Recorder()
    launcher = _launcher.Launcher(recorder)
    for rows in (0, 2**33):
        launcher.launch_rows("row_statistics", {"LOGITS": torch.float32}, torch.device("cpu"), rows, 5, {})
    assert [launch[1] for launch in recorder.launches] == [(2**31 - 1, 1, 1)]


def test_rows_beyond_the_grid_are_done_too():
    """The kernels step by the grid; here with fewer blocks than rows."""
    student, teacher = torch.randn(2, 9, 50)

    class Narrow(HostLoader):
        def load(self, *arguments):
            module = super().load(*arguments)
            launch = module.launch
            module.launch = lambda kernel, grid, *others: launch(kernel, (2, 1, 1), *others)
            return module

    top = ops.TopK.from_logits(teacher, 5)
    found = []
    for loader in (Narrow("check"), HostLoader()):
        with _launcher.serving(_launcher.Launcher(loader)):
            leaf = student.clone().requires_grad_()
            divergence = ops.row_divergence(leaf, teacher, ops.SkewKL(), reduction="sum", backend="cuda")
            sparse = ops.sparse_row_divergence(leaf, top, ops.SkewKL(), reduction="sum", backend="cuda")
            (gradient,) = torch.autograd.grad(divergence + sparse, leaf)
            top_ids = ops.row_statistics(student, top_k=3, backend="cuda").top_ids
            found.append([divergence.detach(), sparse.detach(), gradient, top_ids])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_launched_is_named():
    launcher = _launcher.Launcher(Recorder())
    settings = ("row_statistics", {"LOGITS": torch.float32}, torch.device("cpu"))
    with pytest.raises(errors.ArgumentError, match=r"temperature: got 'a tensor on meta', allowed is 'one on cpu|temp"):
        launcher.launch_rows(*settings, 1, 5, {"temperature": torch.zeros(1, device="meta")})
    with pytest.raises(errors.ArgumentError, match="vocabulary: got 2147483648, allowed is at most 2147483647"):
        launcher.launch_rows(*settings, 1, 2**31, {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.row_divergence(x, x, ops.ForwardKL(), backend="cuda"), "'cuda' with tensors on cpu"),
        (lambda x: ops.row_statistics(x, backend="cuda"), "'cuda' with tensors on cpu"),
        (
            lambda x: ops.sparse_row_divergence(x, ops.TopK.from_logits(x, 2), ops.ForwardKL(), backend="cuda"),
            "'cuda' with tensors on cpu",
        ),
    ],
)
def test_a_backend_that_is_named_and_cannot_says_why(call, message):
    with pytest.raises(errors.ArgumentError, match=f"backend: got .*{message}.*CUDA device"):
        call(torch.zeros(2, 5))


class Mine(ops.RowDivergence):
    def value(self, log_p, log_q):
        return log_p

    def derivative(self, log_p, log_q):
        return log_q


@pytest.mark.parametrize(
    ("divergence", "dtype", "message"),
    [
        (Mine(), torch.float32, "'cuda' with the divergence"),
        (ops.ForwardKL(), torch.float64, "'cuda' with torch.float64.*float32, bfloat16 or float16"),
        (
            ops.Mixture({ops.JensenShannon(0.01 * share): 1.0 for share in range(1, 18)}),
            torch.float32,
            "'cuda' with a mixture of 17 divergences.*at most 16",
        ),
    ],
)
def test_what_the_kernels_cannot_serve_is_refused(divergence, dtype, message):
    x = torch.zeros(2, 5, dtype=dtype)
    with _launcher.serving(_launcher.Launcher(HostLoader())):
        with pytest.raises(errors.ArgumentError, match=message):
            ops.row_divergence(x, x, divergence, backend="cuda")
        with pytest.raises(errors.ArgumentError, match=message):
            ops.sparse_row_divergence(x, ops.TopK.from_logits(x, 2), divergence, backend="cuda")


def test_auto_takes_the_kernels_on_a_gpu_and_warns_once_where_it_cannot(monkeypatch):
    monkeypatch.setattr(_backends, "_warned", set())
    prepared = []
    assert _backends.takes_cuda("auto", CUDA, None, lambda: prepared.append(1))
    assert prepared == [1]
    assert not _backends.takes_cuda("auto", torch.device("cpu"), None, prepared.clear)
    assert not _backends.takes_cuda("rust", CUDA, None, prepared.clear)
    # What a call asks for is no reason to warn: the reference is there for it.
    assert not _backends.takes_cuda("auto", CUDA, ("torch.float64", "others"), prepared.clear)

    def fail():
        raise errors.argument_error("backend", "'cuda' without cupy", "cupy")

    with pytest.warns(UserWarning, match="backend='auto' takes torch on cuda tensors.*without cupy"):
        assert not _backends.takes_cuda("auto", CUDA, None, fail)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _backends.takes_cuda("auto", CUDA, None, fail)
    with pytest.raises(errors.ArgumentError, match="without cupy"):
        _backends.takes_cuda("cuda", CUDA, None, fail)


def test_a_missing_cupy_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(
        errors.ArgumentError, match=r"backend: got .*without cupy.*pip install 'distillrs\[cuda1[23]\]'"
    ):
        _module.CupyLoader().load("", "row_statistics.cu", {}, CUDA)


class FakeCupy(types.ModuleType):
    """As much of cupy as the loader uses."""

    class CompileError(Exception):
        def get_message(self):
            return "row_statistics.cu(3): error: no such thing"

    def __init__(self, fails=False, speaks_protocol=True):
        super().__init__("cupy")
        self.calls = []
        calls = self.calls

        class Stream:
            if speaks_protocol:

                @staticmethod
                def from_external(stream):
                    return entered("from_external", stream.cuda_stream)

        @contextlib.contextmanager
        def entered(how, stream):
            calls.append((how, stream))
            yield

        class Module:
            def __init__(self, **settings):
                calls.append(("RawModule", settings))

            def compile(self):
                if fails:
                    raise FakeCupy.CompileError

            def get_function(self, name):
                calls.append(("get_function", name))
                return lambda grid, block, values, shared_mem: calls.append(("launch", grid, block, values, shared_mem))

        self.RawModule = Module
        self.cuda = types.SimpleNamespace(
            Stream=Stream, ExternalStream=lambda pointer, device: entered("ExternalStream", (pointer, device))
        )


@pytest.fixture
def torch_with_a_gpu(monkeypatch):
    """torch.cuda as far as the loader asks it."""
    stream = types.SimpleNamespace(cuda_stream=77, device_index=1, __cuda_stream__=lambda: (0, 77))
    entered = []

    @contextlib.contextmanager
    def device(which):
        entered.append(which)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda which: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda which: (9, 0))
    return stream, entered


@pytest.mark.parametrize("speaks_protocol", [True, False])
def test_cupy_launches_on_torch_s_stream_and_device(monkeypatch, torch_with_a_gpu, speaks_protocol):
    cupy = FakeCupy(speaks_protocol=speaks_protocol)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    module = _module.CupyLoader().load("source", "row_statistics.cu", {"LOGITS": "float"}, CUDA)
    tensor = torch.zeros(3)
    for _ in range(2):
        module.launch("row_statistics", (2, 1, 1), (32, 1, 1), {"a": tensor, "b": None, "c": np.int32(4)}, 8)
    kinds = [call[0] for call in cupy.calls]
    stream = "from_external" if speaks_protocol else "ExternalStream"
    assert kinds == ["RawModule", "get_function", stream, "launch", stream, "launch"]
    assert cupy.calls[0][1] == {"code": "source", "options": ("--std=c++17", "-DLOGITS=float"), "backend": "nvrtc"}
    assert cupy.calls[2][1] == (77 if speaks_protocol else (77, 1))
    _, grid, block, values, shared = cupy.calls[3]
    assert (grid, block, shared) == ((2, 1, 1), (32, 1, 1), 8)
    assert values == (tensor.data_ptr(), 0, 4)
    assert [type(value) for value in values] == [np.uint64, np.uint64, np.int32]
    assert torch_with_a_gpu[1] == [CUDA] * 3


def test_a_compiler_s_refusal_is_readable(monkeypatch, torch_with_a_gpu):
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(fails=True))
    with pytest.raises(errors.KernelCompileError) as caught:
        _module.CupyLoader().load("source", "row_statistics.cu", {"LOGITS": "float"}, CUDA)
    error = caught.value
    assert (error.kernel, error.architecture) == ("row_statistics.cu", "sm_90")
    assert error.options == ("--std=c++17", "-DLOGITS=float")
    for part in (
        "row_statistics.cu for sm_90",
        "-DLOGITS=float",
        "error: no such thing",
        "pip install",
        "distillrs doctor",
    ):
        assert part in str(error)


def test_sources_stand_alone():
    for name in _core.cuda_sources():
        text = _sources.source(name)
        assert '#include "' not in text
        # Each header once, and lines as they are in the files.
        assert len(re.findall(r'^#line 1 "rows.cuh"$', text, re.MULTILINE)) <= 1
    text = _sources.source("row_divergence.cu").splitlines()
    here = next(index for index, line in enumerate(text) if line.startswith("struct Sums"))
    mark = max(index for index, line in enumerate(text[:here]) if line.startswith("#line"))
    number, name = re.match(r'#line (\d+) "(.*)"', text[mark]).groups()
    original = _core.cuda_source(name).splitlines()
    assert original[int(number) - 1 + here - mark - 1].startswith("struct Sums")
    with pytest.raises(errors.ArgumentError, match=r"name: got .*other.cu.*row_divergence.cu"):
        _core.cuda_source("other.cu")


def test_rows_on_a_gpu_keep_what_the_processor_need_not_know():
    """Parts of a divergence reach the device once."""
    from distillrs.ops._cuda import _parts

    mixture = ops.Mixture({ops.ForwardKL(): 0.25, ops.SkewKL(0.0): 0.5, ops.Alpha(0.5): 1.0})
    first, second = (_parts.part_arguments(mixture, (4,), torch.device("cpu")) for _ in range(2))
    for name in ("kinds", "parameters", "weights"):
        assert first[name] is second[name]
    assert first["kinds"].tolist() == [0, 0, 6]
    assert first["weights"].tolist() == [0.25, 0.5, 1.0]
    assert (first["weight_part_stride"], first["weight_row_stride"]) == (1, 0)
    rows = ops.Mixture({ops.ForwardKL(): torch.arange(4.0), ops.ReverseKL(): 2.0})
    found = _parts.part_arguments(rows, (4,), torch.device("cpu"))
    assert found["weights"].tolist() == [[0, 1, 2, 3], [2, 2, 2, 2]]
    assert (found["weight_part_stride"], found["weight_row_stride"]) == (4, 1)
