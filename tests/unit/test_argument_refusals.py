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
SPARSE = ROWS.to_sparse()
WORDS = np.array(["mean", "sum"])
IDS = torch.zeros(1, 2, dtype=torch.int64)
SQUARE = torch.eye(3)
META = ROWS.to("meta")
SCHEMA = trajectory.Schema(x=trajectory.Column((2,), "float32"))
DRAWN = ops.Sampled(torch.zeros(2, 1, dtype=torch.int64), torch.full((2, 1), -1.0))


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


def answer(*_):
    return {"label": "b"}


def paired(**arguments):
    examples, tasks = [knowledge.Example({"q": "a"})], [knowledge.Task("{q}", "{q}")]
    settings = {"examples": examples, "tasks": tasks, "encode": lambda text: [2] * len(text), "end": 1, **arguments}
    return knowledge.paired_batch(**settings)


def generations():
    return knowledge.RidgeGenerations.of(SQUARE, SQUARE, 0.1)


class OneSided(knowledge.BatchAlignment):
    def of_batch(self, student, teacher, inputs):
        return student


def cache_at(folder, **arguments):
    settings = {"vocabulary": 4, "k": 2, "fingerprint": trajectory.UNCHECKED, **arguments}
    return trajectory.TeacherCache.create(folder / "cache", **settings)


def labels_at(folder, **arguments):
    cache = trajectory.LabelCache.create(folder / "cache", 4, trajectory.UNCHECKED, **arguments)
    cache.append([0, 1], 0, ROWS)
    return cache


def store_at(folder, **arguments):
    store = trajectory.Store.create(folder / "store", SCHEMA, **arguments)
    with store.begin("k") as writer:
        for _ in range(3):
            writer.append(x=torch.zeros(2))
    return store


def layout():
    return trajectory.ParameterLayout.of(student())


def ring():
    held = trajectory.Ring(SCHEMA, 3)
    held.append(x=torch.zeros(2))
    return held


def of_cache(call, **settings):
    def run(folder):
        with cache_at(folder, **settings) as cache:
            cache.append("a", ROWS, offsets=[0, 1, 2] if settings else None)
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
    (lambda: ops.row_divergence(SPARSE, ROWS, KL), "student"),
    (lambda: ops.row_divergence(ROWS, SPARSE, KL, backend="torch"), "teacher"),
    (lambda: ops.divergence(SPARSE, ROWS, KL), "student"),
    (lambda: ops.divergence(ROWS.long(), ROWS, KL), "student"),
    (lambda: ops.sparse_row_divergence(SPARSE, TOP, KL), "student"),
    (lambda: ops.plackett_luce(ROWS, SPARSE, torch.tensor([0, 1])), "teacher"),
    (lambda: ops.row_statistics(SPARSE), "logits"),
    (lambda: ops.TopK.from_logits(SPARSE, 2), "logits"),
    (lambda: ops.linear_row_divergence(ROWS, ROWS.to_sparse(), ROWS, ROWS, KL), "student_weight"),
    (lambda: ops.mixture_denoiser(SPARSE, ROWS, 1.0, 1.0), "x"),
    (lambda: ops.mixture_denoiser(ROWS, SPARSE, 1.0, 1.0), "data"),
    (lambda: ops.energy(ROWS, SPARSE, ops.Gaussian()), "y"),
    (lambda: rows(reduction=WORDS), "reduction"),
    (lambda: rows(normaliser=WORDS), "normaliser"),
    (lambda: rows(temperature_rule=WORDS), "temperature_rule"),
    (lambda: rows(backend=WORDS), "backend"),
    (lambda: rows(weight=math.nan), "weight"),
    (lambda: rows(weight=math.inf), "weight"),
    (lambda: labelled(label_weight=math.nan), "label_weight"),
    (lambda: labelled(ignore_index=2**63), "ignore_index"),
    (lambda: ops.plackett_luce(ROWS, ROWS, torch.tensor([0, 1]), ignore_index=2**63), "ignore_index"),
    (lambda: ops.linear_row_divergence(ROWS, ROWS, ROWS, ROWS, KL, chunk_bytes=2**63), "chunk_bytes"),
    (lambda: ops.mixture_denoiser(ROWS, ROWS, 10**400, 1.0), "alpha"),
    (lambda: ops.mixture_denoiser(ROWS, ROWS, 1.0, 10**400), "sigma"),
    (lambda: ops.mixture_denoiser(ROWS, ROWS, 1.0, -1.0), "sigma"),
    (lambda: ops.mixture_denoiser(ROWS, ROWS, 1.0, 1.0, bandwidth=10**400), "bandwidth"),
    (lambda: ops.Gaussian(10**400), "bandwidths"),
    (lambda: ops.Laplacian(10**400), "bandwidth"),
    (lambda: ops.Polynomial(scale=10**400), "scale"),
    (lambda: ops.TopK.from_logits(ROWS, 2, ""), "temperatures"),
    (lambda: ops.TopK.from_logits(ROWS, 2, b"12"), "temperatures"),
    (lambda: ops.TopK.from_logits(ROWS, 2, (0.0,)), "temperatures"),
    (lambda: TOP.at(10**400), "temperature"),
    (lambda: TOP.at(math.nan), "temperature"),
    (lambda: ops.divergence(ROWS, DRAWN, ops.ReverseKL(), temperature=np.ones(2)), "temperature"),
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
    (lambda _: trajectory.random_sample(ROWS, 2, key="a", first=2**63), "first"),
    (lambda _: trajectory.random_sample(SPARSE, 2, key="a"), "logits"),
    (lambda _: trajectory.random_sample(META, 2, key="a"), "logits"),
    (lambda path: cache_at(path, temperatures=META), "temperatures"),
    (lambda path: cache_at(path, temperatures=SPARSE), "temperatures"),
    (lambda path: cache_at(path, temperatures=""), "temperatures"),
    (lambda path: cache_at(path, temperatures=b"12"), "temperatures"),
    (lambda path: cache_at(path, code=WORDS), "code"),
    (lambda path: cache_at(path, exist_ok=torch.ones(2)), "exist_ok"),
    (lambda path: labels_at(path, code=WORDS), "code"),
    (lambda path: labels_at(path, exist_ok=torch.ones(2)), "exist_ok"),
    (lambda path: labels_at(path).gather([0], temperature=10**400), "temperature"),
    (lambda path: labels_at(path).gather([0], temperature=True), "temperature"),
    (lambda _: trajectory.TeacherCache.open("nowhere", trajectory.UNCHECKED, verify=WORDS), "verify"),
    (of_cache(lambda cache: cache.append("b", META)), "answers"),
    (of_cache(lambda cache: cache.append("b", SPARSE)), "answers"),
    (of_cache(lambda cache: cache.index(torch.tensor(1.0))), "keys"),
    (of_cache(lambda cache: cache.gather(torch.zeros(1, dtype=torch.complex64))), "rows"),
    (of_cache(lambda cache: cache.gather([1j])), "rows"),
    (of_cache(lambda cache: cache.gather(META.long())), "rows"),
    (of_cache(lambda cache: cache.gather([0], device=10**30)), "device"),
    (of_cache(lambda cache: cache.gather([0], dtype=WORDS)), "dtype"),
    *[
        (of_cache(lambda cache, given=given: cache.append("b", ROWS, offsets=given), offsets=True), "offsets")
        for given in ("ab", ["a"], [None], {}, 10**30, [[1], [2, 3]], [0, 2, 1], torch.zeros(3, dtype=torch.complex64))
    ],
    (lambda _: mark(1).check(None, "x"), "other"),
    (lambda path: store_at(path).missing(3), "key"),
    (lambda path: store_at(path).codec_error(None), "key"),
    (lambda path: store_at(path).keys(incomplete="no"), "incomplete"),
    (lambda path: store_at(path).begin("a", resume_at=2**63), "resume_at"),
    (lambda path: store_at(path).begin("a", resume_at=True), "resume_at"),
    (lambda path: store_at(path, metadata=torch.ones(2)), "metadata"),
    (lambda path: store_at(path, metadata=[]), "metadata"),
    (lambda path: store_at(path).read("k", 0, ["x"]), "column"),
    (lambda path: store_at(path).sample(WORDS), "span"),
    (lambda path: store_at(path).sample(1, name=3), "name"),
    (lambda path: store_at(path).sample(1, lambda step: 10**400), "start"),
    (lambda path: store_at(path).sample(1, step=2**63), "index"),
    (lambda path: store_at(path).loader(1, steps="2"), "steps"),
    (lambda path: store_at(path).loader(1, steps=True), "steps"),
    (lambda path: store_at(path).loader(1, steps=2, units=1.5), "units"),
    (lambda path: store_at(path).loader(1, steps=2, prefetch="2"), "prefetch"),
    (lambda path: store_at(path).loader(1, steps=2, pin_memory="no"), "pin_memory"),
    (lambda path: store_at(path).loader(1, "early", steps=2), "start"),
    (lambda path: store_at(path).loader(1, steps=2, name=3), "name"),
    (lambda _: trajectory.WindowLoader(3, 1, steps=2), "store"),
    (lambda _: trajectory.Column((2,), ["float32"]), "dtype"),
    (lambda _: trajectory.Column((2,), "float32", ragged="no"), "ragged"),
    (lambda _: trajectory.Column((True,), "float32"), "shape"),
    (lambda _: trajectory.Column((2,), "float32", tensor_sizes=2), "tensor_sizes"),
    (lambda _: trajectory.DeltaInt8("17"), "keyframe_every"),
    (lambda _: trajectory.Lossless(1.5), "keyframe_every"),
    (lambda _: trajectory.ParameterLayout.of(3), "model"),
    (lambda _: trajectory.ParameterLayout.of(student(), trainable_only="no"), "trainable_only"),
    (lambda _: layout().load(3, ROWS), "model"),
    (lambda _: layout().load(student(), [0.0] * 16), "vector"),
    (lambda _: layout().flatten({"weight": 3}), "model"),
    (lambda _: layout().flatten({3: ROWS}), "model"),
    (lambda _: layout().flatten(student(), out=[0.0]), "out"),
    (lambda _: layout().unflatten([0.0]), "vector"),
    (lambda _: layout().unflatten(torch.zeros(16), model={}), "model"),
    (lambda _: layout().column(half_precision=WORDS), "half_precision"),
    (lambda _: layout().require_same(3), "other"),
    (lambda _: trajectory.Ring(SCHEMA, True), "capacity"),
    (lambda _: trajectory.Ring(SCHEMA, 2, device="nowhere"), "device"),
    (lambda _: ring().read("ab"), "ids"),
    (lambda _: ring().read([0.0]), "ids"),
    (lambda _: ring().evict(3), "ids"),
    (lambda _: ring().window("a", span=1), "id"),
    (lambda _: ring().load_state_dict(3), "state"),
    (lambda _: ring().load_state_dict({3: 4}), "state"),
    (lambda _: trajectory.export_safetensors(3, "x"), "store"),
    (lambda path: trajectory.export_safetensors(store_at(path), 3), "folder"),
    (lambda path: trajectory.export_safetensors(store_at(path), path, keys="ab"), "keys"),
    (lambda path: trajectory.export_safetensors(store_at(path), path, on_trajectory=3), "on_trajectory"),
    (lambda _: trajectory.import_safetensors([], 3), "store"),
    (lambda path: trajectory.import_safetensors("a", store_at(path)), "paths"),
    (lambda path: trajectory.import_safetensors([3], store_at(path)), "paths"),
    (lambda path: trajectory.import_safetensors([], store_at(path), on_trajectory=3), "on_trajectory"),
    (lambda _: trajectory.import_replay_buffers([], 3, layout()), "store"),
    (lambda path: trajectory.import_replay_buffers([], store_at(path), 3), "layout"),
    (lambda path: trajectory.import_replay_buffers(3, store_at(path), layout()), "paths"),
    (lambda path: trajectory.import_replay_buffers([], store_at(path), layout(), on_expert=3), "on_expert"),
]
KNOWLEDGE = [
    (lambda: objective(withheld=3), "withheld"),
    (lambda: objective(withheld=[3]), "withheld"),
    (lambda: objective(labels=3), "labels"),
    (lambda: objective(ids=3), "ids"),
    (lambda: objective().turns("x"), "step"),
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
    (lambda: Term(LOGITS, temperature_rule=WORDS), "temperature_rule"),
    (lambda: Term(LOGITS, normaliser=WORDS), "normaliser"),
    (lambda: objective()({"input": torch.zeros(2, 3)}, turn=WORDS), "turn"),
    (lambda: objective(withheld=torch.tensor(1.0)), "withheld"),
    (lambda: loss(Term(LOGITS, divergence=knowledge.MSE(row_axes="one"))), "row_axes"),
    (lambda: loss(Term(LOGITS, divergence=knowledge.Cosine(row_axes=-1))), "row_axes"),
    (lambda: knowledge.NormalisedMSE(epsilon=0), "epsilon"),
    (lambda: knowledge.NormalisedMSE(by=WORDS), "by"),
    (lambda: knowledge.Bernoulli(WORDS), "given"),
    (lambda: knowledge.EntropyFilter(WORDS), "of"),
    (lambda: knowledge.EntropyFilter(low=10**400), "low"),
    (lambda: knowledge.EntropyFilter(high=math.nan), "high"),
    (lambda: knowledge.SelfPaced(1.0, hard="no"), "hard"),
    (lambda: knowledge.Projector(3, 4, bias="no"), "bias"),
    (lambda: knowledge.Gram(WORDS), "of"),
    (lambda: knowledge.Gram("examples", WORDS), "normalise"),
    (lambda: knowledge.layer_pairs(2, 4, WORDS), "how"),
    (lambda: knowledge.layer_pairs(2, 4, [[1], [2]]), "how"),
    (lambda: knowledge.InfoNCE(duplicates=WORDS), "duplicates"),
    (lambda: knowledge.NoiseContrast(4, 2, labels=[0, 1, 0, 1]), "labels"),
    (lambda: knowledge.NoiseContrast(4, 2, labels=torch.zeros(4, device="meta")), "labels"),
    (lambda: knowledge.Ensemble([dr.Frozen(student())], weights="1"), "weights"),
    (lambda: knowledge.Ensemble([dr.Frozen(student())], weights=1.0), "weights"),
    (lambda: knowledge.Ensemble([dr.Frozen(student())], WORDS), "how"),
    (lambda: knowledge.SnapshotRing(how=WORDS), "how"),
    (lambda: knowledge.Tap("a", WORDS), "side"),
    (lambda: knowledge.record(student(), torch.tensor(1.0), knowledge.Inputs()), "taps"),
    (lambda: knowledge.record(student(), [["a"]], knowledge.Inputs()), "taps"),
    (lambda: knowledge.Corpus.written(3, answer), "inputs"),
    (lambda: knowledge.Corpus.written([], 3), "write"),
    (lambda: knowledge.Corpus.written([], answer, check=3), "check"),
    (lambda: knowledge.Corpus.written([], answer, source=3), "source"),
    (lambda: paired(examples=3), "examples"),
    (lambda: paired(examples=["a"]), "examples"),
    (lambda: paired(tasks=["a"]), "tasks"),
    (lambda: paired(tasks=torch.ones(2)), "tasks"),
    (lambda: paired(encode=3), "encode"),
    (lambda: paired(encode=lambda text: text), "encode"),
    (lambda: paired(encode=lambda text: 3), "encode"),
    (lambda: paired(end=1.5), "end"),
    (lambda: paired(end=2**63), "end"),
    (lambda: paired(pad=None), "pad"),
    (lambda: paired(start="s"), "start"),
    (lambda: paired(max_length="8"), "max_length"),
    (lambda: knowledge.TextMix([], {}), "sources"),
    (lambda: knowledge.TextMix({"a": 3}, {"a": 1}), "sources"),
    (lambda: knowledge.TextMix({"a": answer}, [1]), "shares"),
    (lambda: knowledge.TextMix({"a": answer}, {"a": 1}).batch(1.5, 0), "count"),
    (lambda: knowledge.TextMix({"a": answer}, {"a": 1}).batch(2, 0), "sources"),
    (lambda: knowledge.sample_text(3, IDS, 4, step=0), "network"),
    (lambda: knowledge.block_length(0.5, 10**400), "draft_length"),
    (lambda: knowledge.RidgeGenerations.of(3, SQUARE, 0.1), "kernel"),
    (lambda: knowledge.RidgeGenerations.of(SQUARE, [1.0], 0.1), "targets"),
    (lambda: generations().gains(3), "shares"),
    (lambda: generations().gains_at(10**30, 0.5), "generation"),
    (lambda: generations().predict(3), "kernel"),
    (lambda: generations().predict(SQUARE, SQUARE), "shares"),
    (lambda: generations().choose(SQUARE, [1.0], 2), "truth"),
    (lambda: knowledge.Evolution(answer, answer, answer).load_state_dict(3), "state"),
    (lambda: knowledge.speed_up(0.5, -1, 0.1), "draft_length"),
    (lambda: knowledge.speculative_sample(answer, answer, IDS, 4, step=0, name=3), "name"),
    (lambda: knowledge.InfoNCE(key=3), "key"),
    (lambda: knowledge.NoiseContrast(4, 2, key=None), "key"),
    (lambda: knowledge.speculative_sample(3, answer, IDS, 4, step=0), "target"),
    (lambda: knowledge.speculative_sample(answer, 3, IDS, 4, step=0), "draft"),
    (lambda: knowledge.speculative_sample(answer, answer, IDS, 4, step=0, draft_length=10**30), "draft_length"),
    (lambda: dr.Frozen(3), "module"),
    (lambda: recipes.hinton(student(), 3), "teacher"),
    (lambda: recipes.attention_transfer(student(), None, [("a", "b")]), "teacher"),
    (lambda: recipes.distillspec(student(), 3), "target"),
    (lambda: recipes.hinton(student(), student(), weight=True), "weight"),
    (lambda: recipes.relational_kd(student(), student(), LOGITS, task_weight=WORDS), "task_weight"),
    (lambda: recipes.decoupled_kd(student(), student(), warmup_steps=1.5), "warmup_steps"),
    (lambda: recipes.contrastive_kd(student(), student(), LOGITS, "3", 3, 8), "student_width"),
    (lambda: recipes.contrastive_kd(student(), student(), LOGITS, 3, 0, 8), "teacher_width"),
    (lambda: recipes.contrastive_kd(student(), student(), LOGITS, 3, 3, 8, width=None), "width"),
    (lambda: recipes.contrastive_kd(student(), student(), LOGITS, 3, 3, 2**63), "examples"),
    (lambda: recipes.distiller_mi_alpha(student(), student(), [("a", "a")], 3, -1), "teacher_width"),
    (lambda: recipes.distiller_mi_alpha(student(), student(), [("a", "a")], 3, 3, weight=WORDS), "weight"),
    (lambda: recipes.fitnets(student(), student(), "a", "b", 3, 3, 5, regressor=3), "regressor"),
    (lambda: recipes.fitnets(student(), student(), "a", "b", 10**400, 3, 5), "student_width"),
    (lambda: recipes.distilling_step_by_step(student(), weighted="no"), "weighted"),
    (lambda: recipes.distilling_step_by_step(student(), math.nan), "weight"),
    (lambda: recipes.ps_kd(student(), 4, 4, past=WORDS), "past"),
    (lambda: recipes.ps_kd(student(), 4, 4, last_share="1"), "last_share"),
    (lambda: recipes.alm(student(), student(), weight="1"), "weight"),
    (lambda: recipes.alm(student(), student(), temperature=math.nan), "temperature"),
    (lambda: recipes.alm(student(), student(), hidden=("a", "b"), widths=("3", 4)), "widths"),
    (lambda: recipes.self_distill_share(3, student(), ROWS, IDS[0]), "teacher"),
    (lambda: recipes.self_distill_share(student(), student(), 3, IDS[0]), "x"),
    (lambda: recipes.self_distill_share(student(), student(), ROWS, IDS[0], batch=0), "batch"),
    (lambda: knowledge.shared_tokens(3, []), "student"),
    (lambda: knowledge.VocabularyMap(torch.tensor([0]), 2**63), "teacher_vocabulary"),
    (lambda: knowledge.VocabularyMap(torch.tensor([0]), 4, outside=WORDS), "outside"),
    (lambda: loss(Term(LOGITS, temperature=torch.ones(2, dtype=torch.complex64))), "temperature"),
    (lambda: loss(Term(LOGITS, target=knowledge.Arithmetic(torch.ones(2, dtype=torch.complex64)))), "share"),
    (lambda: recipes.alm(student(), knowledge.SelfTeacher()), "teacher"),
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
    (lambda: in_transformers.load("x", device="cuda:99"), "device"),
    (lambda: teach(model=3), "model"),
    (lambda: teach(tokenizer=3), "tokenizer"),
    (lambda: teach(texts=3), "texts"),
    (lambda: teach(texts=["\ud800"]), "text"),
    (lambda: teach(offsets="no"), "offsets"),
    (lambda: teach(flush_every="1"), "flush_every"),
    (lambda: teach(flush_every=-1), "flush_every"),
    (lambda: teach(on_progress=3), "on_progress"),
    (lambda: teach(batch_size=True), "batch_size"),
    (lambda: in_transformers.fingerprint(3, words), "model"),
    (lambda: in_transformers.fingerprint(student(), None, max_length="5"), "max_length"),
    (lambda: in_transformers.token_spans(3, []), "tokenizer"),
    (lambda: in_transformers.token_spans(Words(), 3), "texts"),
    (lambda: in_transformers.token_spans(Words(), [], add_special_tokens="no"), "add_special_tokens"),
    (lambda: in_transformers.token_bytes(None), "tokenizer"),
    (lambda: in_transformers.begins_word(3), "tokenizer"),
    (lambda: in_transformers.AcrossTokenizers(3, Words()), "student"),
    (lambda: in_transformers.AcrossTokenizers(Words(), 3), "teacher"),
    (lambda: in_transformers.AcrossTokenizers(Words(), Words(), teacher_max_length=0), "teacher_max_length"),
    (lambda: in_transformers.AcrossTokenizers(Words(), Words(), minimum_bytes=0), "minimum_bytes"),
    (lambda: in_transformers.AcrossTokenizers(Words(), Words(), field=3), "field"),
    (lambda: in_transformers.AcrossTokenizers(Words(), Words())(3), "examples"),
    (lambda: in_transformers.AcrossTokenizers(Words(), Words())([3]), r"examples\[0\]"),
    (lambda: list(accelerated().windows(3)), "loader"),
    (lambda: accelerated().backward(3, {}), "model"),
    (lambda: accelerated().backward(student(), {}), "batch"),
    (lambda: accelerated().load_state_dict(3), "state"),
    (lambda: in_lightning.distil(objective()).load_state_dict({}), "state"),
]


def words(text, **settings):
    return {"input_ids": [0]}


class Words:
    added_tokens_decoder = ()
    __call__ = staticmethod(words)


def teach(**arguments):
    settings = {"model": student(), "tokenizer": words, "texts": ["a"], "path": "x", **arguments}
    return in_transformers.teach(**settings)


def accelerated():
    return in_accelerate.Distil(Accelerator(), objective())


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


@pytest.mark.parametrize("name", ["temperatures", "sampled", "offsets", "exist_ok", "code"])
def test_a_cache_whose_arguments_are_refused_is_not_made(tmp_path, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        cache_at(tmp_path, **{name: 3})
    assert not os.path.exists(tmp_path / "cache")


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


def test_large_whole_numbers_are_taken_where_they_are_numbers():
    points = torch.eye(2)
    assert torch.equal(
        ops.mixture_denoiser(points, points, 1, 0, 10**30), ops.mixture_denoiser(points, points, 1.0, 0.0, 1e30)
    )
    kept = ops.TopK.from_logits(ROWS, 2, [2, np.float32(3)])
    assert set(kept.log_partition) == {2.0, 3.0}
    assert torch.equal(kept.at(torch.tensor(2.0)).log_probs, kept.at(np.int64(2)).log_probs)
    assert kept.at(1) is kept


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
