"""Packing and gathering against plain arithmetic in float64, on any logits, documents and rows."""

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from distillrs import _core
from distillrs.ops import TopK
from distillrs.ops._cuda import _launcher, _module
from distillrs.trajectory import UNCHECKED, TeacherCache

TYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def documents(draw):
    """Logits of a few documents: flat and peaked rows, ties, excluded ids."""
    vocabulary = draw(st.integers(2, 700))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    dtype = draw(st.sampled_from(TYPES))
    found = []
    for _ in range(draw(st.integers(1, 4))):
        tokens = draw(st.integers(0, 9))
        logits = torch.randn(tokens, vocabulary, generator=generator) * draw(st.sampled_from([0.01, 1.0, 5.0, 20.0]))
        if draw(st.booleans()):
            logits = logits.round()
        if draw(st.booleans()):
            logits[:, 1:][torch.rand(tokens, vocabulary - 1, generator=generator) < 0.7] = -torch.inf
        found.append(logits.to(dtype))
    return vocabulary, found


@given(documents(), st.integers(1, 70), st.sampled_from(["u8", "f16"]), st.integers(0, 1 << 30), st.integers(1, 3))
@settings(max_examples=40)
def test_gathered_rows_are_those_of_the_reference(drawn, k, code, seed, threads):
    vocabulary, found = drawn
    k = min(k, vocabulary)
    temperatures = (1.0, 2.0, 0.7)
    before = _core.threads()
    _core.set_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache"
            settings = {"vocabulary": vocabulary, "k": k, "fingerprint": UNCHECKED, "temperatures": temperatures}
            with TeacherCache.create(path, code=code, **settings) as cache:
                for number, logits in enumerate(found):
                    assert cache.append(f"document {number}", logits)
            with TeacherCache.open(path, UNCHECKED) as cache:
                starts = cache.index([f"document {number}" for number in range(len(found))])
                rows = [start + torch.arange(len(logits)) for start, logits in zip(starts, found, strict=True)]
                rows = torch.cat([*rows, torch.full((3,), -1)])
                order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
                topk = cache.gather(rows[order])
                none = rows[order] == -1
    finally:
        _core.set_threads(before)
    exact = torch.cat([*(logits.double() for logits in found), torch.zeros(3, vocabulary, dtype=torch.float64)])[order]
    assert (topk.log_probs[none] == -torch.inf).all()
    assert (topk.ids[none] == 0).all()
    assert not topk.tail_log_mass[none].any()
    exact = exact[~none]
    partition = {temperature: each[~none] for temperature, each in topk.log_partition.items()}
    topk = type(topk)(topk.ids[~none], topk.log_probs[~none], topk.tail_log_mass[~none], partition)
    log_probs = torch.log_softmax(exact, -1)
    there = topk.log_probs > -torch.inf
    # Every stored value belongs to its id, and the ids are as probable as those of the reference.
    mine = log_probs.gather(1, topk.ids)
    due = TopK.from_logits(exact, k, temperatures)
    assert torch.equal(mine, due.log_probs)
    assert torch.equal(there, mine > -torch.inf)
    # The scale is at most the largest step over 254, and a row is shifted by at most half of it.
    steps = torch.where(there, due.log_probs.clamp(min=-104), torch.inf).diff(dim=1).nan_to_num(0, 0, 0).abs()
    scale = steps.amax(1, keepdim=True) / 254 * 1.001 if k > 1 else torch.zeros(len(mine), 1)
    low = due.log_probs < -100  # what float32 cannot hold as a probability may be told as e^-104
    bound = scale + 1e-5 if code == "u8" else due.log_probs.abs() / 2048 + 1e-5
    assert ((topk.log_probs - due.log_probs).abs() <= bound)[there & ~low].all()
    # No tail is lost in a difference; eleven bits of its logarithm are kept.
    tail = topk.tail_log_mass.double()
    assert ((tail - due.tail_log_mass).abs() <= due.tail_log_mass.abs() / 2048 + 1e-6)[due.tail_log_mass > -80].all()
    for temperature in temperatures:
        at = topk.at(temperature)
        total = torch.exp(at.log_probs.double()).sum(1) + at.tail_log_mass.double().exp()
        assert ((total - 1).abs() < 4e-3).all()
        head = torch.softmax(exact / temperature, -1).gather(1, topk.ids).masked_fill(~there, 0).sum(1)
        near = 3e-6 if temperature != 1.0 or code == "u8" else 4e-3
        assert (torch.exp(at.log_probs.double()).sum(1) - head).abs().le(near).all()


@given(
    st.integers(1, 3000),
    st.integers(1, 64),
    st.lists(st.floats(-60, 0, width=32), min_size=64, max_size=64),
    st.booleans(),
)
def test_any_log_probabilities_keep_their_order_and_mass(vocabulary, k, values, flat):
    """Distributions that no softmax of normal logits would give: cliffs, plateaus, single entries."""
    k = min(k, vocabulary)
    logits = torch.full((1, vocabulary), -30.0)
    logits[0, :k] = torch.tensor(values[:k]).round() if flat else torch.tensor(values[:k])
    with (
        tempfile.TemporaryDirectory() as folder,
        TeacherCache.create(Path(folder) / "c", vocabulary, k, UNCHECKED, temperatures=(1.0, 4.0)) as cache,
    ):
        cache.append("a", logits)
        topk = cache.gather(cache.index(["a"]))
    assert (topk.log_probs[0].diff() <= 0).all()
    assert topk.ids[0].unique().numel() == k
    for temperature in (1.0, 4.0):
        at = topk.at(temperature)
        total = at.log_probs.double().exp().sum() + at.tail_log_mass.double().exp().sum()
        assert abs(total - 1) < 4e-4


@pytest.mark.parametrize("backend", ["cuda"])
@given(documents(), st.integers(1, 70), st.sampled_from(["u8", "f16"]), st.booleans(), st.integers(1, 3), st.data())
@settings(max_examples=40)
def test_rows_unpacked_on_the_device_are_those_of_the_core(backend, drawn, k, code, sampled, temperatures, data):
    """Bit for bit: with the kernels on the CPU, every call goes the device's way."""
    vocabulary, found = drawn
    chosen = {"temperatures": (1.0, 2.0, 0.7)[:temperatures], "code": code, "sampled": sampled}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        with TeacherCache.create(path, vocabulary, min(k, vocabulary), UNCHECKED, **chosen) as cache:
            for number, logits in enumerate(found):
                tokens = torch.zeros(len(logits), dtype=torch.int64) if sampled else None
                cache.append(f"document {number}", logits, sampled=tokens)
        with TeacherCache.open(path, UNCHECKED) as cache:
            starts = cache.index([f"document {number}" for number in range(len(found))])
            rows = torch.cat([start + torch.arange(len(logits)) for start, logits in zip(starts, found, strict=True)])
            rows = torch.cat([rows, torch.full((data.draw(st.sampled_from([0, 1, 3])),), -1)])
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))]
            dtype = data.draw(st.sampled_from([torch.int64, torch.int32]))
            there = cache.gather(rows.reshape(1, -1), dtype=dtype)
            again = cache.gather(rows.reshape(1, -1).flip(1), dtype=dtype, out=cache.gather(rows[None], dtype=dtype))
            with _launcher.serving(_launcher.Launcher(_module.CupyLoader())):
                core = cache.gather(rows.reshape(1, -1), dtype=dtype)
    assert there.ids.dtype == dtype
    assert there.log_partition.keys() == core.log_partition.keys()
    for name in ("ids", "log_probs", "tail_log_mass"):
        assert torch.equal(getattr(there, name), getattr(core, name))
        assert torch.equal(getattr(again, name).flip(1), getattr(core, name))
    for temperature, partition in core.log_partition.items():
        assert torch.equal(there.log_partition[temperature], partition)
        assert torch.equal(again.log_partition[temperature].flip(1), partition)
