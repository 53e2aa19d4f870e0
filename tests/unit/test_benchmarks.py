"""What the benchmarks measure is what they say: peers compute what the fused operations do; bars and memory hold."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillrs import ops

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def _path():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def module(name):
    return importlib.import_module(name)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["forward KL", "reverse KL", "Jensen-Shannon", "skew KL", "skew reverse KL",
                                  "total variation", "alpha 0.5", "mixture of forward and reverse KL"])  # fmt: skip
def test_peers_of_rows_compute_the_divergence(name):
    peers = module("peers")
    assert set(peers.DIVERGENCES) == set(peers._ENTRIES)
    student, teacher = 3 * normal(5, 40), 3 * normal(5, 40, seed=1)
    due = ops.row_divergence(
        student, teacher, peers.DIVERGENCES[name], temperature=2.0, reduction="none", backend="torch"
    )
    # The peers' arithmetic is in float32.
    assert torch.allclose(peers.rows(name, student, teacher, 2.0).double(), due, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["forward KL", "Jensen-Shannon"])
def test_every_way_of_row_divergence_has_the_same_gradient(name):
    bench, peers = module("row_divergence"), module("peers")
    # More rows than a chunk has, and no multiple of it.
    student, teacher, weight = normal(150, 30).float(), normal(150, 30, seed=1).float(), torch.rand(150)
    expected = peers.gradient(lambda *rest: bench.weighted_mean(name, *rest), student, teacher, weight)
    pieces = bench.chunked(lambda *rest: bench.weighted_mean(name, *rest), student, teacher, weight)
    assert torch.allclose(pieces, expected, atol=1e-8)
    # The fused one last: it writes into the logits.
    assert torch.allclose(bench.ours(peers.DIVERGENCES[name], student, teacher, weight), expected, atol=1e-7)


@pytest.mark.parametrize("name", ["forward KL", "Jensen-Shannon", "Jensen-Shannon and cross-entropy"])
def test_every_loss_of_heads_is_the_same(name):
    heads = module("heads")
    both = heads.Heads.normal((20, 50, 6, 9))
    expected = heads.gradients(heads.eager, name, both)
    assert heads.fused(name, both).item() == pytest.approx(heads.eager(name, both).item(), rel=1e-5)
    for found, due in zip(heads.gradients(heads.fused, name, both), expected, strict=True):
        assert torch.allclose(found, due, atol=1e-6)


def test_everything_that_runs_on_a_device_is_the_same_work():
    bench, peers, heads = module("cuda_kernels"), module("peers"), module("heads")
    source, teacher = normal(12, 80).float(), normal(12, 80, seed=1).float()
    rows = bench.row_contenders(source, teacher, with_compiled=False, backend="torch")
    expected = {name: rows[f"eager {name}"]() for name in peers.DIVERGENCES}
    for name, due in expected.items():
        # Into a copy of the logits, which the next one would begin from.
        fused = bench.ours(peers.DIVERGENCES[name], source.clone(), teacher, backend="torch")
        assert torch.allclose(fused, due, atol=1e-7), name
    for name in ("forward KL, none", "top-k teacher", f"statistics, top {bench.TOP}", "torch.topk", "memory limit"):
        rows[name]()
    both = heads.Heads.normal(bench.QUICK_HEADS[0])
    found = bench.head_contenders(both, with_compiled=False)
    assert {name.removeprefix("eager ") for name in found} >= {"four products", *heads.LOSSES}
    logits, _, by_head = bench.products(both)
    assert logits.shape == (len(both.student), len(both.head))
    assert by_head.shape == both.head.shape


def test_without_a_device_nothing_is_measured(capsys, monkeypatch):
    bench = module("cuda_kernels")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.main(["--quick", "--part", "rows"])
    assert capsys.readouterr().out == "there is no CUDA device: nothing is measured\n"


def test_arguments_of_the_device_benchmark(capsys):
    bench = module("cuda_kernels")
    assert bench.arguments_of([]).part == bench.PARTS
    chosen = bench.arguments_of(["--part", "heads", "--part", "rows", "--rounds", "3", "--no-compile"])
    assert (chosen.part, chosen.rounds, chosen.no_compile, chosen.quick) == (["heads", "rows"], 3, True, False)
    for words in (["--rounds", "0"], ["--part", "none"]):
        with pytest.raises(SystemExit):
            bench.arguments_of(words)
    assert "--rounds: got 0, allowed is at least 1" in capsys.readouterr().err


def test_bars_say_whether_they_hold():
    measure = module("measure")
    assert measure.bar("a", 3.0, at_least=3)["held"]
    assert not measure.bar("a", 2.9, at_least=3)["held"]
    assert not measure.bar("a", float("nan"), at_least=3)["held"]
    assert measure.bar("a", 3.0, at_most=3) == {"of": "a", "figure": 3.0, "at_most": 3, "held": True}
    with pytest.raises(ValueError, match="one bound"):
        measure.bar("a", 1.0)


def test_parts_of_a_benchmark_stand_beside_each_other(tmp_path, monkeypatch):
    measure = module("measure")
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["b.py", "--part", "1"])
    measure.add("b", "x", {"one": 1, "two": 2})
    monkeypatch.setattr(sys, "argv", ["b.py", "--part", "2"])
    measure.add("b", "x", {"two": 3})
    measure.add("b", "y", {"one": 4})
    page = json.loads((tmp_path / "b.json").read_text())
    assert page["results"] == {"x": {"one": 1, "two": 3}, "y": {"one": 4}}
    assert page["commands"] == ["python benchmarks/b.py --part 1", "python benchmarks/b.py --part 2"]
    # Another machine's figures do not stand beside these.
    page["machine"]["processor"] = "another"
    (tmp_path / "b.json").write_text(json.dumps(page))
    measure.add("b", "y", {"one": 5})
    assert json.loads((tmp_path / "b.json").read_text())["results"] == {"y": {"one": 5}}


MEMORY_OF_CALLS = """
import measure, torch

MIB = 2**20

def work():
    # 24 MiB and 8 MiB at once, then 16 alone.
    first = torch.ones(24 * MIB // 4)
    second = torch.ones(8 * MIB // 4)
    del first, second
    torch.ones(16 * MIB // 4)

kept = torch.ones(64 * MIB // 4)
print(measure.extra_bytes(work), measure.extra_bytes(lambda: kept.add_(1)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_extra_memory_is_what_a_call_holds_at_once():
    # In a process of its own, as benchmarks are: what others left in the heap decides where memory is found.
    command = [sys.executable, "-c", MEMORY_OF_CALLS]
    found = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout.split()
    assert [int(each) for each in found] == [pytest.approx(mib * 2**20, abs=2 * 2**20) for mib in (32, 0)]
