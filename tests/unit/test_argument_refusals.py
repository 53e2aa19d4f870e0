"""A wrong argument of a public call gives a message that begins with its name: neither a raw error nor a result."""

import math
import os

import numpy as np
import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import integrations, knowledge, ops, recipes, trajectory
from distillrs.checks import check_flag, check_names, check_path, check_text, device_of
from distillrs.errors import ArgumentError
from distillrs.integrations import accelerate as in_accelerate
from distillrs.integrations import lightning as in_lightning
from distillrs.integrations import transformers as in_transformers
from distillrs.knowledge import Labels, Objective, Output, Term

LOGITS = Output("logits")
ROWS = torch.zeros(2, 4)
TOP = ops.TopK.from_logits(ROWS, 2)
KL = ops.ForwardKL()


def student():
    return nn.Linear(3, 4)


def rows(**arguments):
    return ops.row_divergence(ROWS.clone(), ROWS, KL, **arguments)


def labelled(**arguments):
    return rows(labels=torch.tensor([0, 1]), **arguments)


def objective(*terms, **arguments):
    return Objective(student(), dr.Frozen(student()), terms or [Term(LOGITS)], **arguments)


def loss(*terms, **arguments):
    batch = {"input": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    return objective(*terms, **arguments)(batch, 0)


def aligned(align):
    return loss(Term(LOGITS, align=align))


class OneSided(knowledge.BatchAlignment):
    def of_batch(self, student, teacher, inputs):
        return student


def cache_at(folder, **arguments):
    settings = {"vocabulary": 4, "k": 2, "fingerprint": trajectory.UNCHECKED, **arguments}
    return trajectory.TeacherCache.create(folder / "cache", **settings)


def of_cache(call):
    def run(folder):
        with cache_at(folder) as cache:
            cache.append("a", ROWS)
            call(cache)

    return run


def mark(value):
    return trajectory.Fingerprint.of("name", sampling_temperature=value)


OPS = [
    (lambda: ops.JensenShannon("a"), "beta"),
    (lambda: ops.JensenShannon(None), "beta"),
    (lambda: ops.JensenShannon(torch.tensor([0.5, 0.5])), "beta"),
    (lambda: ops.JensenShannon(math.nan), "beta"),
    (lambda: ops.SkewKL("a"), "alpha"),
    (lambda: ops.SkewKL(True), "alpha"),
    (lambda: ops.SkewReverseKL(None), "alpha"),
    (lambda: ops.Alpha("a"), "a"),
    (lambda: ops.Alpha(None), "a"),
    (lambda: ops.Alpha(10**400), "a"),
    (lambda: ops.Mixture({KL: True}), "weights"),
    (lambda: ops.Mixture({KL: torch.ones(2, dtype=torch.complex64)}), "weights"),
    (lambda: rows(normaliser=[1]), "normaliser"),
    (lambda: rows(normaliser={}), "normaliser"),
    (lambda: rows(normaliser=True), "normaliser"),
    (lambda: rows(normaliser=math.inf), "normaliser"),
    (lambda: rows(normaliser=torch.tensor(math.inf)), "normaliser"),
    (lambda: rows(normaliser=torch.tensor(True)), "normaliser"),
    (lambda: rows(normaliser=torch.tensor(1j)), "normaliser"),
    (lambda: rows(normaliser="items"), "normaliser"),
    (lambda: labelled(ignore_index="x"), "ignore_index"),
    (lambda: labelled(ignore_index=1.5), "ignore_index"),
    (lambda: labelled(ignore_index=True), "ignore_index"),
    (lambda: rows(label_weight="x"), "label_weight"),
    (lambda: rows(weight="x"), "weight"),
    (lambda: rows(weight=10**400), "weight"),
    (lambda: rows(weight=torch.tensor([-1.0, 1.0]), normaliser="weights"), "weight"),
    (lambda: rows(consume_logits="no"), "consume_logits"),
    (lambda: rows(return_statistics="no"), "return_statistics"),
    (lambda: rows(temperature=torch.ones(2, dtype=torch.complex64)), "temperature"),
    (lambda: rows(teacher_temperature="x"), "teacher_temperature"),
    (lambda: ops.sparse_row_divergence(ROWS.clone(), TOP, KL, consume_logits="no"), "consume_logits"),
    (lambda: ops.sparse_row_divergence(ROWS, TOP, KL, temperature="x"), "temperature"),
    (lambda: ops.sparse_row_divergence(ROWS, TOP, KL, normaliser=math.nan), "normaliser"),
    (lambda: ops.divergence(ROWS, ROWS, KL, consume_logits=1), "consume_logits"),
    (lambda: ops.row_statistics(ROWS, temperature=10**400), "temperature"),
    (lambda: ops.plackett_luce(ROWS, ROWS, torch.tensor([0, 1]), normaliser=[1]), "normaliser"),
]
TRAJECTORY = [
    (lambda path: cache_at(path, temperatures=("a",)), "temperatures"),
    (lambda path: cache_at(path, temperatures="12"), "temperatures"),
    (lambda path: cache_at(path, temperatures=(True,)), "temperatures"),
    (lambda path: cache_at(path, temperatures=3), "temperatures"),
    (lambda path: cache_at(path, sampled="no"), "sampled"),
    (lambda path: cache_at(path, offsets=1), "offsets"),
    (lambda path: cache_at(path, exist_ok="no"), "exist_ok"),
    (lambda path: cache_at(path, code="f32"), "code"),
    (lambda _: trajectory.TeacherCache.create(5, 4, 2, trajectory.UNCHECKED), "path"),
    (lambda _: trajectory.TeacherCache.create(None, 4, 2, trajectory.UNCHECKED), "path"),
    (lambda _: trajectory.TeacherCache.create(5, 4, 2, trajectory.UNCHECKED, exist_ok=True), "path"),
    (lambda _: trajectory.TeacherCache.open(5, trajectory.UNCHECKED), "path"),
    (lambda _: trajectory.LabelCache.create(5, 4, trajectory.UNCHECKED), "path"),
    (lambda _: trajectory.LabelCache.create(b"x", 4, trajectory.UNCHECKED, exist_ok=True), "path"),
    (lambda _: trajectory.Store.open(None), "path"),
    (lambda _: trajectory.Store.repair(3), "path"),
    (of_cache(lambda cache: cache.index([5])), r"keys\[0\]"),
    (of_cache(lambda cache: cache.index(["a", None])), r"keys\[1\]"),
    (of_cache(lambda cache: cache.index("a")), "keys"),
    (of_cache(lambda cache: cache.lengths(3)), "keys"),
    (of_cache(lambda cache: cache.missing(None)), "keys"),
    (of_cache(lambda cache: cache.missing([1, 2])), r"keys\[0\]"),
    (of_cache(lambda cache: cache.missing("ab")), "keys"),
    (of_cache(lambda cache: cache.offsets(3)), "cache"),
    (of_cache(lambda cache: cache.gather([0], device="foo")), "device"),
    (of_cache(lambda cache: cache.gather([0], device=1.5)), "device"),
    (of_cache(lambda cache: cache.gather_sampled([0], device="foo")), "device"),
    (lambda _: mark("a"), "sampling_temperature"),
    (lambda _: mark(None), "sampling_temperature"),
    (lambda _: mark(True), "sampling_temperature"),
    (lambda _: mark(-1), "sampling_temperature"),
    (lambda _: trajectory.random_sample(ROWS, 2, key="a", first=1.5), "first"),
    (lambda _: trajectory.random_sample(ROWS, 2, key="a", first=-1), "first"),
    (lambda _: trajectory.random_sample(ROWS, 2.0, key="a"), "draws"),
]
KNOWLEDGE = [
    (lambda: objective(withheld=3), "withheld"),
    (lambda: objective(withheld=[3]), "withheld"),
    (lambda: objective(labels=3), "labels"),
    (lambda: objective(ids=3), "ids"),
    (lambda: objective().turns("x"), "index"),
    (lambda: objective(Term(LOGITS, teacher_name=3)), "teacher_name"),
    (lambda: Term(LOGITS, name=3), "name"),
    (lambda: loss(inputs=lambda batch: batch), "inputs"),
    (lambda: aligned(lambda student, teacher: student), "align"),
    (lambda: aligned(lambda student, teacher: (student,)), "align"),
    (lambda: aligned(OneSided()), "align"),
    (lambda: aligned(knowledge.Chain(lambda student, teacher: student)), "align"),
    (lambda: loss(Term(LOGITS, scale=lambda step: "a")), "scale"),
    (lambda: loss(Term(LOGITS, scale=lambda step: "3")), "scale"),
    (lambda: loss(Term(LOGITS, scale=lambda step: None)), "scale"),
    (lambda: loss(Term(LOGITS, scale=lambda step: math.nan)), "scale"),
    (lambda: loss(Term(LOGITS, scale=lambda step: torch.ones(2))), "scale"),
    (lambda: loss(Term(LOGITS, temperature=lambda step: "a")), "temperature"),
    (lambda: loss(Term(LOGITS, rows=knowledge.SelfPaced(lambda step: "a"))), "threshold"),
    (lambda: loss(Term(LOGITS, rows=knowledge.EntropyFilter(high=lambda step: "a"))), "high"),
    (lambda: loss(Term(LOGITS, rows=knowledge.EntropyFilter(low=lambda step: "a"))), "low"),
    (lambda: loss(Term(LOGITS, target=knowledge.Arithmetic(lambda step: "a"))), "share"),
    (lambda: knowledge.Arithmetic(0.5, 3), "first"),
    (lambda: knowledge.Geometric(0.5, Labels(), 3), "second"),
    (lambda: knowledge.Shifted(3), "name"),
    (lambda: knowledge.Shifted(ignore_index=1.5), "ignore_index"),
    (lambda: knowledge.Labelled(3), "name"),
    (lambda: knowledge.Labelled(ignore_index="x"), "ignore_index"),
    (lambda: knowledge.Mask(3), "name"),
    (lambda: knowledge.Where(3, 4), "name"),
    (lambda: knowledge.Where("task", "x"), "value"),
    (lambda: knowledge.Entry(3), "name"),
    (lambda: Output(1.5), "field"),
    (lambda: Output(None), "field"),
    (lambda: Output(True), "field"),
    (lambda: Output("hidden_states", "last"), "index"),
    (lambda: knowledge.Tap("a", field=1.5), "field"),
    (lambda: knowledge.Prefixed(3), "prefix"),
    (lambda: knowledge.Prefixed("a", (3,)), "names"),
    (lambda: knowledge.LossRatio(3), "reference"),
    (lambda: knowledge.LossRatio("a", epsilon="x"), "epsilon"),
    (lambda: knowledge.GradientBalance(3), "layer"),
    (lambda: knowledge.GradientBalance("a", None), "epsilon"),
    (lambda: knowledge.Stage([Term(LOGITS)], trainable=[3]), "trainable"),
    (lambda: knowledge.Stage([Term(LOGITS)], trainable=3), "trainable"),
    (lambda: knowledge.Stage([Term(LOGITS)], name=3), "name"),
    (lambda: knowledge.random_teacher(3), "factory"),
    (lambda: knowledge.random_teacher(student()), "factory"),
    (lambda: knowledge.random_teacher(lambda: 3), "factory"),
    (lambda: knowledge.Cached(3), "cache"),
    (lambda: knowledge.SnapshotTable(4, 3, ids=3), "ids"),
    (lambda: knowledge.SnapshotTable(4, 3, labels=3), "labels"),
    (lambda: knowledge.optimal_weight(3, 4, 5), "truth"),
    (lambda: knowledge.optimal_weight(ROWS, ROWS, 5), "teacher_only"),
    (lambda: knowledge.acceptance(3, 4), "draft_logits"),
    (lambda: knowledge.acceptance(ROWS, 4), "target_logits"),
    (lambda: knowledge.acceptance(ROWS.long(), ROWS.long()), "draft_logits"),
    (lambda: knowledge.record(3, [LOGITS], knowledge.Inputs()), "network"),
    (lambda: knowledge.record(student(), 3, knowledge.Inputs()), "taps"),
    (lambda: knowledge.record(student(), ["a"], knowledge.Inputs()), "taps"),
    (lambda: knowledge.record(student(), [LOGITS], 3), "inputs"),
    (lambda: knowledge.release(3), "network"),
    (lambda: knowledge.Example(3), "fields"),
    (lambda: knowledge.Example({"a": 3}), "fields"),
    (lambda: knowledge.Example({}, weight=0), "weight"),
    (lambda: knowledge.Corpus(3), "examples"),
    (lambda: knowledge.Corpus((3,)), "examples"),
    (lambda: knowledge.Corpus((), 3), "rejected"),
    (lambda: knowledge.Task(3, "a"), "prompt"),
    (lambda: knowledge.Chunks(3), "student_ids"),
    (lambda: knowledge.Chunks(teacher_chunks=3), "teacher_chunks"),
    (lambda: knowledge.ChunkEnds(3), "student_chunks"),
    (lambda: dr.Frozen(3), "module"),
    (lambda: recipes.hinton(student(), 3), "teacher"),
    (lambda: recipes.attention_transfer(student(), None, [("a", "b")]), "teacher"),
]
INTEGRATIONS = [
    (lambda: in_lightning.distil(3), "objective"),
    (lambda: in_lightning.distil(objective(), seed="x"), "seed"),
    (lambda: in_accelerate.Distil(3, 4), "accelerator"),
    (lambda: in_accelerate.Distil(Accelerator(), 4), "objective"),
    (lambda: in_transformers.Distil(objective=3), "objective"),
    (lambda: in_transformers.load(3), "folder"),
    (lambda: in_transformers.load("x", device="foo"), "device"),
    (lambda: in_transformers.load("x", dtype="half"), "dtype"),
    (lambda: in_transformers.read_texts(3), "path"),
    (lambda: in_transformers.read_texts("x", field=3), "field"),
    (lambda: integrations.count_items(3, {}), "objective"),
]


class Accelerator:
    device = torch.device("cpu")

    def register_for_checkpointing(self, what): ...


@pytest.mark.parametrize(("call", "name"), [*OPS, *KNOWLEDGE, *INTEGRATIONS])
def test_a_wrong_argument_is_refused_by_name(call, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call()


@pytest.mark.parametrize(("call", "name"), TRAJECTORY)
def test_a_wrong_argument_of_a_store_is_refused_by_name(tmp_path, call, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call(tmp_path)
    assert not os.path.exists(tmp_path / "cache") or name in ("keys", r"keys\[0\]", r"keys\[1\]", "device", "cache")


def test_a_cached_teacher_s_rows_are_a_name(tmp_path):
    with cache_at(tmp_path) as cache, pytest.raises(ArgumentError, match=r"^rows: got 3"):
        knowledge.Cached(cache, rows=3)


def test_what_stands_close_to_a_wrong_argument_is_taken():
    """What is refused above must not take what is right with it."""
    exact = rows(weight=torch.tensor([0.5, 1.5]))
    assert torch.equal(rows(weight=np.float32(1.0), normaliser=np.int64(2)), exact)
    assert torch.equal(rows(normaliser=torch.tensor(2)), exact)
    assert torch.isfinite(rows(weight=torch.tensor([-1.0, 2.0]), reduction="sum"))
    assert labelled(ignore_index=np.int64(1), consume_logits=np.False_).isfinite()
    assert ops.JensenShannon(np.float32(0.5)) == ops.JensenShannon(0.5)
    assert trajectory.Fingerprint.of("a", sampling_temperature=np.float32(2)).to_dict()["sampling_temperature"] == 2.0
    assert type(mark(1).sampling_temperature) is float
    names = (name for name in ("mask", "other"))
    assert objective(withheld=names).withheld == ("mask", "other")
    assert Output(3).field == 3
    assert objective().turns(dr.Step(3)) == objective().turns(3) == ("student",)
    assert device_of("device", None) == device_of("device", "cpu") == device_of("device", torch.device("cpu"))


def test_a_scale_of_any_number_multiplies():
    torch.manual_seed(0)
    network, teacher = student(), dr.Frozen(student())
    batch = {"input": torch.randn(2, 3), "labels": torch.tensor([0, 1])}

    def total(scale):
        return float(Objective(network, teacher, [Term(LOGITS, scale=scale)])(batch, 0).total.detach())

    for given in (torch.tensor(2.0), torch.tensor([2]), np.float32(2), 2):
        assert total(lambda step, given=given: given) == pytest.approx(2 * total(1.0), rel=1e-6)


def test_the_shared_checks_take_their_kind_and_no_other(tmp_path):
    check_flag("x", True)
    check_flag("x", np.False_)
    check_text("x", "a")
    check_names("x", ["a"])
    check_names("x", ())
    check_path("x", tmp_path)
    check_path("x", "a")
    for check, wrong in [
        (check_flag, (1, 0, "no", None, torch.tensor(True))),
        (check_text, ("", 3, None, b"a")),
        (check_names, ("ab", 3, None, [3], ["a", None])),
        (check_path, (3, None, b"a")),
        (device_of, ("foo", 1.5, True, "cuda:x")),
    ]:
        for value in wrong:
            with pytest.raises(ArgumentError, match=r"^x: got"):
                check("x", value)
