"""The teacher cache: what is appended is what is gathered, and what does not fit is refused by name."""

import json
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from distillrs import _core, ops, trajectory
from distillrs.errors import (
    ArgumentError,
    KeyConflict,
    KeyNotFound,
    SchemaMismatch,
    StoreCorrupt,
    StoreExists,
    StoreMissing,
)
from distillrs.ops import TopK
from distillrs.trajectory import UNCHECKED, Fingerprint, Sampled, TeacherCache, key_of

V, K = 500, 20
FINGERPRINT = Fingerprint("t", "v", "c", 1.0)


def logits(tokens, seed=0, vocabulary=V):
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed)) * 4


def make(path, **settings):
    settings = {"vocabulary": V, "k": K, "fingerprint": UNCHECKED, "temperatures": (1.0, 2.0), **settings}
    return TeacherCache.create(path, **settings)


def written(path, documents, **settings):
    with make(path, **settings) as cache:
        for seed, (key, tokens) in enumerate(documents.items()):
            cache.append(key, logits(tokens, seed))
    return path


def check(topk, exact_logits, code="u8"):
    """Ids are the exact top, probabilities are near, and with the tail they add up to one."""
    due = TopK.from_logits(exact_logits.double(), topk.ids.shape[-1], tuple(topk.log_partition))
    assert torch.equal(topk.ids.long(), due.ids)
    assert (topk.log_probs - due.log_probs).abs().max() < (0.02 if code == "u8" else 0.01)
    assert (topk.tail_log_mass - due.tail_log_mass).abs().max() < 0.01
    total = topk.log_probs.exp().sum(-1) + topk.tail_log_mass.exp()
    assert (total - 1).abs().max() < (3e-4 if code == "u8" else 3e-3)


@pytest.mark.parametrize("code", ["u8", "f16"])
@pytest.mark.parametrize("sealed", [True, False])
def test_what_is_appended_is_gathered(tmp_path, code, sealed):
    documents = {"a": 7, "b": 1, "c": 30}
    cache = make(tmp_path / "c", code=code)
    for seed, (key, tokens) in enumerate(documents.items()):
        assert cache.append(key, logits(tokens, seed))
    if sealed:
        cache.__exit__(None, None, None)
        cache = TeacherCache.open(tmp_path / "c", UNCHECKED)
    assert cache.keys() == ["a", "b", "c"]
    assert (len(cache), cache.tokens) == (3, 38)
    rows = cache.index(list(documents))
    assert cache.lengths(list(documents)).tolist() == [7, 1, 30]
    for seed, (tokens, first) in enumerate(zip(documents.values(), rows, strict=True)):
        exact = logits(tokens, seed)
        check(cache.gather(first + torch.arange(tokens)), exact, code)
        backwards = cache.gather((first + torch.arange(tokens)).flip(0))
        fields = (backwards.ids, backwards.log_probs, backwards.tail_log_mass)
        check(TopK(*(each.flip(0) for each in fields)), exact, code)
    cache.close()


def test_gathering_keeps_the_shape_of_the_rows_and_knows_rows_that_are_none(tmp_path):
    with TeacherCache.open(written(tmp_path / "c", {"a": 5, "b": 6}), UNCHECKED) as cache:
        a, b = cache.index(["a", "b"]).tolist()
        rows = torch.tensor([[b + 5, -1, a], [-1, -1, b]])
        topk = cache.gather(rows)
        assert topk.ids.shape == (2, 3, K)
        assert topk.tail_log_mass.shape == topk.log_partition[2.0].shape == (2, 3)
        check(TopK(topk.ids[0, 0], topk.log_probs[0, 0], topk.tail_log_mass[0, 0]), logits(6, 1)[5])
        check(TopK(topk.ids[0, 2], topk.log_probs[0, 2], topk.tail_log_mass[0, 2]), logits(5, 0)[0])
        none = rows == -1
        assert (topk.ids[none] == 0).all()
        assert (topk.log_probs[none] == -torch.inf).all()
        assert (topk.tail_log_mass[none] == 0).all()
        assert not topk.log_probs[~none].isinf().any()
        # Noncontiguous numbers, other integer types, lists; none at all.
        assert torch.equal(cache.gather(rows.t()).ids, topk.ids.transpose(0, 1))
        assert torch.equal(cache.gather(rows.flatten().tolist()).ids, topk.ids.flatten(0, 1))
        assert cache.gather([]).ids.shape == (0, K)
        assert cache.gather(torch.empty(0, 4, dtype=torch.int64)).ids.shape == (0, 4, K)
        narrow = cache.gather(rows, dtype=torch.int32)
        assert narrow.ids.dtype == torch.int32
        assert torch.equal(narrow.ids.long(), topk.ids)
        # The same memory again.
        again = cache.gather(rows.flip(1), out=topk)
        assert again.ids.data_ptr() == topk.ids.data_ptr()
        assert torch.equal(again.ids, cache.gather(rows.flip(1)).ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_taken_as_they_are(tmp_path, dtype):
    coarse = logits(9).to(dtype)
    with make(tmp_path / "c") as cache:
        cache.append("half", coarse)
        cache.append("single", coarse.float())
        assert cache._rows is not None
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache._rows.packed("half") == cache._rows.packed("single")


def test_a_stored_temperature_is_that_of_the_whole_vocabulary(tmp_path):
    with TeacherCache.open(written(tmp_path / "c", {"a": 40}, temperatures=(2.0, 0.5)), UNCHECKED) as cache:
        assert cache.temperatures == (1.0, 2.0, 0.5)
        topk = cache.gather(cache.index(["a"]) + torch.arange(40))
    assert topk.at(1.0) is topk
    for temperature in (2.0, 0.5):
        at = topk.at(temperature)
        exact = torch.log_softmax(logits(40).double() / temperature, -1)
        assert (at.log_probs - exact.gather(1, at.ids)).abs().max() < 0.03
        tail = exact.exp().scatter(1, at.ids, 0).sum(1)
        assert (at.tail_log_mass.exp() - tail).abs().max() < 3e-6
        assert (at.log_probs.exp().sum(1) + at.tail_log_mass.exp() - 1).abs().max() < 3e-6
        # Renormalising the entries as if they were all there is, the usual mistake, is far away.
        assert (torch.log_softmax(topk.log_probs / 2.0, -1) - at.log_probs).abs().max() > 0.05 or temperature != 2.0
        with pytest.raises(ArgumentError, match=r"is kept: 1\.0"):
            at.at(2.0)
    with pytest.raises(ArgumentError, match=r"temperature: got 3\.0, allowed is .*: 0\.5, 1\.0, 2\.0"):
        topk.at(3.0)


def test_the_same_content_again_is_nothing_and_other_content_a_conflict(tmp_path):
    with make(tmp_path / "c") as cache:
        assert cache.append("a", logits(5))
        assert not cache.append("a", logits(5))
        with pytest.raises(KeyConflict, match="'a' is already in"):
            cache.append("a", logits(5, 1))
        with pytest.raises(KeyConflict):
            cache.append("a", logits(4))
    with make(tmp_path / "c", exist_ok=True) as cache:
        assert not cache.append("a", logits(5))
        with pytest.raises(KeyConflict):
            cache.append("a", logits(5, 1))
        assert cache.missing(["a", "b", "a"]) == ["b"]
        assert cache.append("b", logits(2))
        assert "b" in cache
        assert cache.missing(["a", "b"]) == []
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache.keys() == ["a", "b"]


def test_numbers_of_rows_outlive_growth_and_sealing(tmp_path):
    path = tmp_path / "c"
    cache = make(path)
    cache.append("a", logits(5))
    cache.append("b", logits(6, 1))
    before = cache.index(["a", "b"])
    reader = TeacherCache.open(path, UNCHECKED)  # sees the open log
    assert torch.equal(reader.index(["a", "b"]), before)
    open_rows = reader.gather(before)
    cache.__exit__(None, None, None)
    for seed in range(2, 5):
        with make(path, exist_ok=True) as other:
            other.append(f"z{seed}", logits(3, seed))
    # Not touched before: its log is gone, and the reader finds the rows where they went.
    assert torch.equal(reader.gather(before + 1).ids, TeacherCache.open(path, UNCHECKED).gather(before + 1).ids)
    reader.refresh()
    assert torch.equal(reader.index(["a", "b"]), before)
    assert torch.equal(reader.gather(before).log_probs, open_rows.log_probs)
    assert len(reader) == 5


def test_two_writers_at_once_and_their_conflict(tmp_path):
    first, second = make(tmp_path / "c"), make(tmp_path / "c", exist_ok=True)
    for cache, seed in ((first, 0), (second, 1)):
        cache.append("both", logits(3, seed))
        cache.append("same", logits(3, 7))
        cache.append(f"own-{seed}", logits(2, seed))
    first.close()
    second.close()
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache.keys() == ["both", "own-0", "own-1", "same"]
        assert cache.conflicts == ["both"]
        check(cache.gather(cache.index(["both"]) + torch.arange(3)), logits(3, 0))


def test_a_dead_writer_is_completed_by_the_next(tmp_path):
    path = tmp_path / "c"
    cache = make(path)
    cache.append("a", logits(5))
    cache.flush()
    cache._store.close()  # as a process that dies: the lock goes, the trajectory stays incomplete
    with TeacherCache.open(path, UNCHECKED) as reader:
        check(reader.gather(reader.index(["a"])), logits(5)[:1])
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    TeacherCache.open(path, UNCHECKED).close()
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before  # readers never write
    with make(path, exist_ok=True) as cache:
        assert cache.missing(["a", "b"]) == ["b"]
    assert any(file.suffix == ".safetensors" for file in path.iterdir())
    assert not any(file.suffix == ".dlog" for file in path.iterdir())
    with TeacherCache.open(path, UNCHECKED) as reader:
        check(reader.gather(reader.index(["a"]) + torch.arange(5)), logits(5))


def test_an_error_in_the_block_keeps_what_was_appended(tmp_path):
    def fail():
        with make(tmp_path / "c") as cache:
            cache.append("a", logits(5))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache.keys() == ["a"]


def test_a_full_log_is_followed_by_another(tmp_path, monkeypatch):
    monkeypatch.setattr("distillrs.trajectory.documents._ROLL_BYTES", 2000)
    monkeypatch.setattr("distillrs.trajectory.documents._FLUSH_BYTES", 500)
    with make(tmp_path / "c") as cache:
        for seed in range(6):
            cache.append(f"d{seed}", logits(20, seed))
        assert len(cache) == 6
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert len(cache._store) > 2
        for seed in range(6):
            check(cache.gather(cache.index([f"d{seed}"]) + torch.arange(20)), logits(20, seed))


def test_fingerprints_that_differ_are_refused_with_both_named(tmp_path):
    path = written(tmp_path / "c", {"a": 2}, fingerprint=FINGERPRINT)
    assert TeacherCache.open(path, FINGERPRINT).fingerprint == FINGERPRINT
    assert TeacherCache.open(path, UNCHECKED).fingerprint == FINGERPRINT
    other = Fingerprint("t", "w", "c", 0.7)
    message = "tokenizer v there, w in use; sampling_temperature 1.0 there, 0.7 in use"
    with pytest.raises(SchemaMismatch, match=message):
        TeacherCache.open(path, other)
    with pytest.raises(SchemaMismatch, match=message):
        make(path, fingerprint=other, exist_ok=True)
    with make(path, fingerprint=UNCHECKED, exist_ok=True) as cache:
        assert cache.fingerprint == FINGERPRINT
    with pytest.raises(SchemaMismatch, match="UNCHECKED there"):
        TeacherCache.open(written(tmp_path / "u", {"a": 2}), FINGERPRINT)
    with pytest.raises(ArgumentError, match=r"fingerprint: got None, allowed is Fingerprint\.of"):
        TeacherCache.open(path, None)
    with pytest.raises(ArgumentError, match="fingerprint"):
        make(tmp_path / "x", fingerprint=None)


def test_settings_that_differ_are_refused(tmp_path):
    path = written(tmp_path / "c", {"a": 2})
    with pytest.raises(StoreExists):
        make(path)
    for change in ({"k": K + 1}, {"temperatures": (1.0, 3.0)}, {"code": "f16"}, {"sampled": True}, {"offsets": True}):
        with pytest.raises(SchemaMismatch):
            make(path, exist_ok=True, **change)
    with pytest.raises(StoreMissing):
        TeacherCache.open(tmp_path / "none", UNCHECKED)
    trajectory.Store.create(tmp_path / "s", trajectory.Schema(x=trajectory.Column((), "float32"))).close()
    with pytest.raises(SchemaMismatch, match="no teacher cache"):
        TeacherCache.open(tmp_path / "s", UNCHECKED)


def test_sampled_tokens_stand_beside_the_top(tmp_path):
    tokens = torch.tensor([3, 499, 0])
    exact = torch.log_softmax(logits(3).double(), -1).gather(1, tokens[:, None]).squeeze(1)
    with make(tmp_path / "c", sampled=True) as cache:
        cache.append("logits", logits(3), sampled=tokens)
        cache.append("rows", TopK.from_logits(logits(3), K, (1.0, 2.0)), sampled=Sampled(tokens, exact.float()))
        with pytest.raises(ArgumentError, match="sampled"):
            cache.append("x", logits(3))
        with pytest.raises(ArgumentError, match=r"sampled: got 500 in row 1, allowed is an id from 0 to 499"):
            cache.append("x", logits(3), sampled=torch.tensor([0, 500, 1]))
        with pytest.raises(ArgumentError, match=r"sampled\.log_probs: got 0\.5 in row 2"):
            cache.append(
                "x", TopK.from_logits(logits(3), K, (1.0, 2.0)), sampled=Sampled(tokens, torch.tensor([0, -1, 0.5]))
            )
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        for key in ("logits", "rows"):
            found = cache.gather_sampled(torch.cat([cache.index([key]) + torch.arange(3), torch.tensor([-1])]))
            assert torch.equal(found.ids, torch.cat([tokens, torch.tensor([0])]))
            assert (found.log_probs[:3] - exact).abs().max() < 1e-5
            assert found.log_probs[3] == -torch.inf
        check(cache.gather(cache.index(["logits"]) + torch.arange(3)), logits(3))
    cache = TeacherCache.open(written(tmp_path / "d", {"a": 2}), UNCHECKED)
    with pytest.raises(ArgumentError, match="sampled=True"):
        cache.gather_sampled(cache.index(["a"]))


def test_a_cache_of_sampled_tokens_alone(tmp_path):
    with make(tmp_path / "c", k=0, sampled=True, temperatures=(1.0,)) as cache:
        assert cache.row_bytes == 2 + 4
        cache.append("logits", logits(3), sampled=torch.tensor([1, 2, 3]))
        cache.append("tokens", Sampled(torch.tensor([4, 5]), torch.tensor([-0.5, -1.5])))
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        rows = cache.index(["tokens"]) + torch.arange(2)
        assert cache.gather_sampled(rows).ids.tolist() == [4, 5]
        assert cache.gather_sampled(rows).log_probs.tolist() == [-0.5, -1.5]
        with pytest.raises(ArgumentError, match="k=0"):
            cache.gather(rows)
    with pytest.raises(ArgumentError, match="k: got 0"):
        make(tmp_path / "d", k=0, temperatures=(1.0,))


def test_a_support_that_the_student_chose(tmp_path):
    ids = logits(4, 9).topk(K).indices
    ids[2, 5:] = -1
    with make(tmp_path / "c", support="student") as cache:
        cache.append("a", logits(4), ids=ids)
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        topk = cache.gather(cache.index(["a"]) + torch.arange(4))
    exact = torch.log_softmax(logits(4).double(), -1)
    for row in range(4):
        there = topk.log_probs[row] > -torch.inf
        chosen = ids[row][ids[row] >= 0]
        assert sorted(topk.ids[row][there].tolist()) == sorted(chosen.tolist())
        assert (topk.log_probs[row][there] - exact[row][topk.ids[row][there]]).abs().max() < 0.1
        assert abs(topk.tail_log_mass[row].exp() - (1 - exact[row][chosen].exp().sum())) < 1e-3
    assert (topk.log_probs.exp().sum(1) + topk.tail_log_mass.exp() - 1).abs().max() < 3e-4


def test_rows_that_somebody_else_selected(tmp_path):
    exact = logits(6)
    with make(tmp_path / "c") as cache:
        cache.append("rust", exact)
        cache.append("torch", TopK.from_logits(exact, K, cache.temperatures))
        with pytest.raises(ArgumentError, match=r"log_partition: got 'none for \[2.0\]'"):
            cache.append("x", TopK.from_logits(exact, K))
        good = TopK.from_logits(exact, K, cache.temperatures)
        with pytest.raises(ArgumentError, match=r"tail_log_mass: got .* in row 0, allowed is the log of what"):
            cache.append("x", replace(good, tail_log_mass=torch.full((6,), -0.001)))
        with pytest.raises(ArgumentError, match=r"log_partition: got .* in row 0"):
            cache.append("x", replace(good, log_partition={2.0: torch.full((6,), -9.0)}))
        with pytest.raises(ArgumentError, match=r"log_probs: got NaN in row 0"):
            cache.append("x", replace(good, log_probs=good.log_probs * torch.nan))
        with pytest.raises(ArgumentError, match=r"ids: got .* twice in row 0"):
            cache.append("x", replace(good, ids=torch.zeros_like(good.ids)))
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        rust, other = (cache.gather(cache.index([key]) + torch.arange(6)) for key in ("rust", "torch"))
        assert torch.equal(rust.ids, other.ids)
        assert (rust.log_probs - other.log_probs).abs().max() < 1e-4
        assert (rust.log_partition[2.0] - other.log_partition[2.0]).abs().max() < 1e-4


def test_byte_offsets_are_kept(tmp_path):
    with make(tmp_path / "c", offsets=True) as cache:
        cache.append("a", logits(3), offsets=[0, 2, 5, 9])
        assert not cache.append("a", logits(3), offsets=[0, 2, 5, 9])
        with pytest.raises(KeyConflict):
            cache.append("a", logits(3), offsets=[0, 2, 5, 8])
        for bad in ([0, 2, 5], [0, 5, 2, 9], [-1, 2, 5, 9], None):
            with pytest.raises(ArgumentError, match="offsets"):
                cache.append("b", logits(3), offsets=bad)
    with TeacherCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache.offsets("a").tolist() == [0, 2, 5, 9]
        with pytest.raises(KeyNotFound):
            cache.offsets("b")
    with make(tmp_path / "c", offsets=True, exist_ok=True) as cache, pytest.raises(KeyConflict):
        cache.append("a", logits(3), offsets=[0, 2, 5, 8])
    cache = TeacherCache.open(written(tmp_path / "d", {"a": 2}), UNCHECKED)
    with pytest.raises(ArgumentError, match="offsets=True"):
        cache.offsets("a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", logits(1)), "key: got ''"),
        ((3, logits(1)), "key: got 3"),
        (("x", logits(1)[0]), r"answers: got 'float32 \[500\]', allowed is logits of shape \[tokens, 500\]"),
        (("x", logits(1, vocabulary=501)), r"answers: got 'float32 \[1, 501\]'"),
        (("x", logits(1).double()), "float64"),
        (("x", logits(1) * torch.nan), "logits: got NaN in row 0"),
        (("x", [1.0]), "answers: got 'list'"),
        (
            ("x", TopK.from_logits(logits(2), K - 1, (1.0, 2.0))),
            r"ids: got 'int64 \[2, 19\]', allowed is integers of shape",
        ),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with make(tmp_path / "c") as cache:
        with pytest.raises(ArgumentError, match=message):
            cache.append(*arguments)
        assert len(cache) == 0


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"vocabulary": 0}, "vocabulary"),
        ({"vocabulary": 1 << 25}, "vocabulary"),
        ({"k": V + 1}, "k"),
        ({"k": 1.5}, "k"),
        ({"k": 5000, "vocabulary": 9000}, "k"),
        ({"temperatures": (1.0, 0.0)}, "temperatures"),
        ({"temperatures": (2.0, 2.0)}, "temperatures"),
        ({"temperatures": 2.0}, "temperatures"),
        ({"temperatures": (1.0, float("nan"))}, "temperatures"),
        ({"code": "u4"}, "code"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        make(tmp_path / "c", **settings)
    assert not (tmp_path / "c").exists()


def test_rows_that_are_not_there_are_refused(tmp_path):
    with TeacherCache.open(written(tmp_path / "c", {"a": 5, "b": 6}), UNCHECKED) as cache:
        a, b = cache.index(["a", "b"]).tolist()
        # The next document is not what a position beyond the end reads.
        for row in (a + 5, b - 1, b + 6, -2, 1 << 62, a + (1 << 24) * 7):
            with pytest.raises(ArgumentError, match=r"^rows: got"):
                cache.gather([a, row])
        with pytest.raises(ArgumentError, match="a position below 5"):
            cache.gather([a + 5])
        with pytest.raises(ArgumentError, match="rows"):
            cache.gather(torch.tensor([0.5]))
        with pytest.raises(KeyNotFound, match=r"'x' is not in .*, nor are 1 others"):
            cache.index(["a", "x", "y"])
        with pytest.raises(ArgumentError, match="keys"):
            cache.index("a")
        good = cache.gather([a])
        with pytest.raises(ArgumentError, match=r"out\.ids"):
            cache.gather([a, b], out=good)
        with pytest.raises(ArgumentError, match="out"):
            cache.gather([a], out=good.ids)
        with pytest.raises(ArgumentError, match="dtype"):
            cache.gather([a], dtype=torch.int16)
        with pytest.raises(ArgumentError, match="opened to read"):
            cache.append("x", logits(1))


def test_damage_is_told_at_the_first_touch(tmp_path):
    path = written(tmp_path / "c", {"a": 50, "b": 50})
    [segment] = path.glob("*.safetensors")
    content = bytearray(segment.read_bytes())
    with TeacherCache.open(path, UNCHECKED) as cache:
        packed = cache._rows.packed("b")
    content[content.index(packed) + 1000] ^= 1
    segment.write_bytes(content)
    with TeacherCache.open(path, UNCHECKED) as cache:
        a, b = cache.index(["a", "b"]).tolist()
        check(cache.gather([a]), logits(50)[:1])
        with pytest.raises(StoreCorrupt, match="checksum"):
            cache.gather([a, b])
        assert not cache.verify().sound
    trajectory.Store.repair(path)
    with TeacherCache.open(path, UNCHECKED) as cache:
        assert cache.keys() == ["a"]
        assert cache.index(["a"]).tolist() == [a]
        with pytest.raises(ArgumentError, match="rows"):
            cache.gather([b])


def test_rows_of_a_stranger_that_no_encoder_writes_are_refused(tmp_path):
    """Checksums are right, and the rows are not."""
    path = tmp_path / "c"
    with make(path) as cache:
        writer = cache._room()
        packed, _ = cache._pack(logits(2), None, None)
        rows = torch.tensor(np.frombuffer(packed, np.uint8).reshape(2, -1).copy())
        rows[1, :5] = 255  # ids of 511 in a vocabulary of 500
        writer.append(rows=rows, key=torch.tensor(list(b"bad"), dtype=torch.uint8))
    with TeacherCache.open(path, UNCHECKED) as cache:
        first = cache.index(["bad"]).item()
        assert cache.gather([first]).ids.max() < V
        with pytest.raises(StoreCorrupt, match="an id beyond the vocabulary at token 1 of document 0"):
            cache.gather([first, first + 1])


def test_threads_and_thread_counts_give_the_same_bits(tmp_path):
    with TeacherCache.open(written(tmp_path / "c", {"a": 2500, "b": 700}), UNCHECKED) as cache:
        a, b = cache.index(["a", "b"]).tolist()
        rows = torch.cat([torch.arange(a, a + 2500), torch.tensor([-1] * 1100), torch.arange(b, b + 700)])
        rows = rows[torch.randperm(len(rows))]
        before = _core.threads()
        try:
            results = []
            for threads in (1, 2, 5):
                _core.set_threads(threads)
                results.append(cache.gather(rows))
        finally:
            _core.set_threads(before)
        for other in results[1:]:
            for name in ("ids", "log_probs", "tail_log_mass"):
                assert torch.equal(getattr(results[0], name), getattr(other, name))
        found = [None] * 4
        fresh = pickle.loads(pickle.dumps(cache))

        def gather(index):
            found[index] = fresh.gather(rows)

        threads = [threading.Thread(target=gather, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(one.log_probs, results[0].log_probs) for one in found)


def test_sixty_four_of_a_large_vocabulary_in_216_bytes_and_two_percent_framing(tmp_path):
    # The size that the project promises; rows are made without the logits, which would take a gigabyte.
    vocabulary, tokens = 151_936, 300
    layout = json.dumps({"vocabulary": vocabulary, "k": 64, "code": "u8", "temperatures": [1.0], "sampled": False})
    assert _core.teacher_row_bytes(layout) <= 216
    with TeacherCache.create(tmp_path / "c", vocabulary, 64, UNCHECKED) as cache:
        for document in range(40):
            small = TopK.from_logits(logits(tokens, document, 1000), 64)
            cache.append(key_of(str(document)), replace(small, ids=small.ids * 151))
        payload = cache.row_bytes * tokens * 40
    on_disk = sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    assert payload < on_disk <= 1.02 * payload


def test_keys_are_digests_of_text():
    assert key_of("grüße") == key_of("grüße".encode())
    assert key_of("a") != key_of("b")
    assert len(key_of("")) == 32
    with pytest.raises(ArgumentError, match=r"^text: got 'int'"):
        key_of(5)
    with pytest.raises(ArgumentError, match=r"^text: got 'half a character at place 1'"):
        key_of("a\ud800")


def test_keys_and_rows_of_other_kinds_are_refused(tmp_path):
    with TeacherCache.open(written(tmp_path / "c", {"a": 3}), UNCHECKED) as cache:
        for call in (cache.missing, cache.index, cache.lengths):
            with pytest.raises(ArgumentError, match=r"^keys: got 'abc', allowed is a sequence of keys"):
                call("abc")
        with pytest.raises(ArgumentError, match=r"^keys: got 5"):
            cache.index(5)
        for wrong in ("abc", None, [None]):
            with pytest.raises(ArgumentError, match=r"^rows: got"):
                cache.gather(wrong)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_gathered_rows_are_a_teacher_for_sparse_divergences(tmp_path, dtype):
    student = logits(12, 3)
    with TeacherCache.open(written(tmp_path / "c", {"a": 11}, k=200, code="f16"), UNCHECKED) as cache:
        rows = torch.cat([cache.index(["a"]) + torch.arange(11), torch.tensor([-1])])
        topk = cache.gather(rows, dtype=dtype)
    for temperature in (1.0, 2.0):
        arguments = {"temperature": temperature, "weight": (rows >= 0).float(), "reduction": "none"}
        found = ops.sparse_row_divergence(student, topk, ops.ForwardKL(), **arguments)
        teacher = torch.cat([logits(11), student[-1:]])
        full = ops.row_divergence(student, teacher, ops.ForwardKL(), **arguments)
        assert found[-1] == 0
        # The tail's events are one here: a lower bound, near where the tail is small.
        assert (found <= full + 1e-2).all()
        torch.testing.assert_close(found, full, rtol=0.1, atol=0.05)


def test_a_log_that_is_sealed_after_it_was_listed_is_found(tmp_path):
    path = tmp_path / "cache"
    settings = {"vocabulary": 8, "k": 2, "fingerprint": trajectory.UNCHECKED}
    cache = trajectory.TeacherCache.create(path, **settings)
    cache.append("a", torch.randn(3, 8))
    cache.close()
    # What a process sees that opens the cache now, while another one seals it.
    listed = trajectory.Store.open(path)
    assert listed.keys() == ["writer-00000"]
    with trajectory.TeacherCache.create(path, exist_ok=True, **settings):
        pass
    assert not list(path.glob("*.dlog"))
    found = trajectory.TeacherCache(listed, listed.metadata["teacher_cache"])
    assert found.keys() == ["a"]
    assert found.gather(found.index(["a"])).ids.shape == (1, 2)
