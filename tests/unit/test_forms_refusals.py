"""A wrong argument of a student form, or of a recipe that makes one, gives a message that begins with its name."""

import math

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs import knowledge, ops, recipes, trajectory
from distillrs.errors import ArgumentError
from distillrs.knowledge import forms
from tiny_transformers import IDS, make

HUGE = 10**30
NETWORK = make("llama")
STRUCTURE = forms.Structure.of(NETWORK)
FULL = STRUCTURE.full()
INPUTS = knowledge.Inputs((), {"input_ids": IDS}, {"input_ids": IDS})
HEADS = tuple(torch.ones(unit.shared) for unit in STRUCTURE.attention)
NEURONS = tuple(torch.ones(part.neurons) for part in STRUCTURE.feed_forward)
IMPORTANCE = forms.Importance(HEADS, NEURONS)
QUERIES = torch.zeros(1, 2, 5, 3)
VALUES = torch.zeros(1, 2, 5, 4)


def within(**arguments):
    given = {"structure": STRUCTURE, "importance": IMPORTANCE, "share": 0.7, "length": 6, **arguments}
    return forms.masks_within(**given)


def recurrence(**arguments):
    given = {"queries": QUERIES, "keys": QUERIES, "values": VALUES, **arguments}
    return forms.chunked_recurrence(**given)


def by_gradient(**arguments):
    return forms.bits_by_gradient(**{"norms": {"a": 1.0}, "sizes": {"a": 3}, "bits": 3.0, **arguments})


def mamba():
    student = make("llama")
    forms.convert_mixers(student, kind="mamba")
    return student


def to_mamba(**arguments):
    return recipes.attention_to_mamba(**{"student": mamba(), "teacher": NETWORK, "align_steps": 2, **arguments})


def pruned(**arguments):
    return recipes.optin(**{"network": NETWORK, "batch": {"input_ids": IDS}, "tokens": 4, "group": 20, **arguments})


def quantised(**arguments):
    return recipes.quantized_distillation(**{"student": nn.Linear(3, 4), "teacher": nn.Linear(3, 4), **arguments})


def moved(network):
    return forms.Pruned(STRUCTURE, FULL).apply(network)


FORMS = [
    *[(lambda wrong=wrong: within(length=wrong), "length") for wrong in (-1, 0, True, 1.5, math.nan, HUGE, "6", None)],
    *[(lambda wrong=wrong: within(share=wrong), "share") for wrong in (True, 0, math.nan, "a", 1.5, 1e-9)],
    (lambda: within(structure="llama"), "structure"),
    (lambda: within(importance=FULL), "importance"),
    (lambda: forms.Importance(heads=torch.ones(2), neurons=NEURONS), "heads"),
    (lambda: forms.Importance(HEADS, NEURONS, group=0), "group"),
    (lambda: IMPORTANCE.add(None, 1.0), "other"),
    (lambda: IMPORTANCE.add(forms.Importance(HEADS, NEURONS, 2), 1.0), "other"),
    (lambda: IMPORTANCE.add(IMPORTANCE, math.nan), "scale"),
    (lambda: forms.output_changes("a", INPUTS), "network"),
    (lambda: forms.output_changes(NETWORK, {"input_ids": IDS}), "inputs"),
    (lambda: forms.output_changes(NETWORK, INPUTS, "a"), "structure"),
    (lambda: forms.output_changes(NETWORK, INPUTS, mask=[]), "mask"),
    (lambda: forms.Masks([torch.ones(2)], NEURONS), "heads"),
    (lambda: forms.Masks(HEADS, NEURONS, channels=3), "channels"),
    (lambda: FULL.to("gpu"), "device"),
    (lambda: forms.Slot("", 0), "name"),
    (lambda: forms.Slot("a", -1), "dim"),
    (lambda: forms.Attention("a", (), (), (), heads=3, shared=2, size=1), "shared"),
    (lambda: forms.FeedForward("a", (), ("x",), 1, 2), "outputs"),
    (lambda: forms.Structure((), (), "ab", 3), "layers"),
    (lambda: forms.Structure.of("llama"), "network"),
    (lambda: STRUCTURE.check(None), "masks"),
    (lambda: STRUCTURE.macs(-1), "length"),
    (lambda: STRUCTURE.macs(math.nan), "length"),
    (lambda: STRUCTURE.macs(3, head="no"), "head"),
    (lambda: STRUCTURE.gate(nn.Linear(2, 2), FULL), "network"),
    (lambda: STRUCTURE.slice(nn.Linear(2, 2), FULL), "network"),
    (lambda: STRUCTURE.take(NETWORK, heads=3), "heads"),
    (lambda: STRUCTURE.take(NETWORK, layers=[0]), "layers"),
    (lambda: forms.ungate(None), "network"),
    (lambda: forms.Pruned("a", FULL), "structure"),
    (lambda: forms.Pruned(STRUCTURE, None), "masks"),
    (lambda: moved(None), "module"),
    (lambda: forms.Pruned(STRUCTURE, FULL).export(moved(make("llama")), 3), "path"),
    (lambda: forms.Pruned(STRUCTURE, FULL).restore(NETWORK, None), "path"),
    (lambda: forms.Quantised(2).apply("a"), "module"),
    (lambda: forms.Quantised(2).remove(None), "module"),
    (lambda: forms.Quantised(2).materialise(None), "module"),
    (lambda: forms.Quantised(2).export(forms.Quantised(2).apply(nn.Linear(2, 2)), None), "path"),
    (lambda: forms.Quantised(2).restore(nn.Linear(2, 2), 5), "path"),
    (lambda: forms.Quantised({1: 2}), "bits"),
    (lambda: forms.Quantised(rounding=["nearest"]), "rounding"),
    (lambda: forms.gradient_bits(None, lambda: 0, 2), "network"),
    (lambda: forms.gradient_bits(nn.Linear(2, 2), None, 2), "loss"),
    (lambda: forms.gradient_bits(nn.Linear(2, 2), lambda: 1.0, 2), "loss"),
    (lambda: by_gradient(norms=3), "norms"),
    (lambda: by_gradient(sizes={"a": 1.5}), "sizes"),
    (lambda: by_gradient(bits=math.inf), "bits"),
    (lambda: by_gradient(lowest=1.5), "lowest"),
    (lambda: by_gradient(highest=True), "highest"),
    (lambda: forms.convert_mixers("a"), "network"),
    (lambda: forms.convert_mixers(make("llama"), []), "paths"),
    (lambda: forms.convert_mixers(make("llama"), 3), "paths"),
    (lambda: forms.convert_mixers(make("llama"), "model.layer.0.self_attn"), "paths"),
    (lambda: forms.convert_mixers(make("llama"), seed="a"), "seed"),
    (lambda: forms.convert_mixers(make("llama"), features=HUGE), "features"),
    (lambda: forms.convert_mixers(make("llama"), kind="mamba", kernel=HUGE), "kernel"),
    (lambda: forms.mixer_paths(None), "network"),
    (lambda: forms.mixer_paths(NETWORK, nn.Linear), "kind"),
    (lambda: forms.FeatureMap(2, 0, initial="random"), "width"),
    (lambda: forms.FeatureMap("a", 4), "heads"),
    (lambda: recurrence(queries=[1]), "queries"),
    (lambda: recurrence(log_decay=torch.zeros(1, 2, 4)), "log_decay"),
    (lambda: recurrence(segments=torch.zeros(5, dtype=torch.int64)), "segments"),
    (lambda: recurrence(segments=torch.zeros(1, 5)), "segments"),
    (lambda: recurrence(memory="a"), "memory"),
    (lambda: recurrence(memory=torch.zeros(1, 2, 4, 3)), "memory"),
    (lambda: forms.Tokens.of_positions(torch.arange(4)), "positions"),
    (lambda: forms.Tokens.of_mask([1], 1), "mask"),
    (lambda: forms.Tokens.of_mask(torch.ones(2, 6), 6, seen=-1), "seen"),
    (lambda: forms.Tokens.of_mask(torch.ones(2, 6), 8), "attention_mask"),
    (lambda: forms.activation_importance(None, [IDS]), "network"),
    (lambda: forms.activation_importance(NETWORK, IDS), "batches"),
    (lambda: forms.layer_order(NETWORK, {"input_ids": IDS}), "batches"),
    (lambda: forms.layer_order(NETWORK, [IDS], "logits"), "output"),
    (lambda: forms.nested(NETWORK, IMPORTANCE), "importance"),
    (lambda: forms.Elastic(budgets=0.5), "budgets"),
    (lambda: forms.Elastic(channels=None), "channels"),
    (lambda: forms.Elastic(weights=(-1.0, 1.0, 1.0)), "weights"),
    (lambda: forms.Elastic(order="ab"), "order"),
    (lambda: forms.Elastic(hard="no"), "hard"),
    (lambda: forms.Elastic(head=0), "head"),
    (lambda: forms.Elastic(tolerance=math.nan), "tolerance"),
    (lambda: forms.Elastic().apply("a"), "module"),
    (lambda: forms.Elastic().choose(None, 1.0), "module"),
    (lambda: forms.Elastic().sizes(NETWORK, torch.ones(2)), "budget"),
    (lambda: forms.router_of(None), "module"),
    (lambda: forms.begin_step(None, dr.Step(0)), "network"),
    (lambda: forms.begin_step(NETWORK, "a"), "step"),
]
RECIPES = [
    (lambda: to_mamba(student="a"), "student"),
    (lambda: to_mamba(student=nn.Linear(2, 2)), "student"),
    (lambda: to_mamba(align_steps=0), "align_steps"),
    (lambda: to_mamba(align_steps=None), "align_steps"),
    (lambda: to_mamba(prefix=None), "prefix"),
    (lambda: to_mamba(labels=3), "labels"),
    (lambda: to_mamba(logits=""), "logits"),
    (lambda: pruned(network=None), "network"),
    (lambda: pruned(batch=[[1]]), "length"),
    (lambda: pruned(length=-1), "length"),
    (lambda: pruned(length=HUGE), "length"),
    (lambda: pruned(share=True), "share"),
    (lambda: pruned(share=0.01), "share"),
    (lambda: pruned(logit_share=math.nan), "logit_share"),
    (lambda: quantised(student=None), "student"),
    (lambda: quantised(teacher=None), "teacher"),
    (lambda: quantised(logits=3), "logits"),
    (lambda: recipes.nemotron_elastic(None, NETWORK), "student"),
    (lambda: recipes.nemotron_elastic(NETWORK, NETWORK, cost_weight="a"), "module"),
]
OTHERS = [
    (lambda: knowledge.MutualInformation(HUGE), "width"),
    (lambda: knowledge.MutualInformation(3, key=None), "key"),
    (lambda: knowledge.MutualInformation(3).rows([1], torch.zeros(2, 3), None), "student"),
    (lambda: knowledge.InfoNCE(width=-1), "width"),
    (lambda: knowledge.InfoNCE(queue=HUGE), "queue"),
    (lambda: knowledge.NoiseContrast(HUGE, 3), "examples"),
    (lambda: knowledge.NoiseContrast(4, HUGE), "width"),
    (lambda: knowledge.Projector(HUGE, 3), "in_features"),
    (lambda: knowledge.Projector(3, HUGE), "out_features"),
    (lambda: knowledge.SnapshotTable(HUGE, 3), "examples"),
    (lambda: knowledge.SnapshotTable(3, HUGE), "classes"),
    (lambda: knowledge.EntropyFilter(low=torch.zeros(2)), "low"),
    (lambda: knowledge.ListMLE(mask=3), "mask"),
    (lambda: knowledge.Objective(nn.Linear(2, 2), None, [knowledge.Term("a")], seed="x"), "seed"),
    (lambda: knowledge.record(nn.Linear(2, 2), [], knowledge.Inputs((torch.zeros(1, 2),)), who=3), "who"),
    (lambda: ops.Mixture({ops.ForwardKL(): torch.ones(3)}).of_rows([0.5]), "rows"),
    (lambda: trajectory.Fingerprint.of("a").check(trajectory.Fingerprint.of("a"), what=None), "what"),
]


@pytest.mark.parametrize(("call", "name"), [*FORMS, *RECIPES, *OTHERS])
def test_a_wrong_argument_is_refused_by_name(call, name):
    with pytest.raises(ArgumentError, match=rf"^{name}: got"):
        call()


def test_a_recipe_that_is_refused_leaves_the_student_plain():
    student = nn.Linear(3, 4)
    with pytest.raises(ArgumentError, match=r"^teacher: got"):
        quantised(student=student, teacher="a")
    assert not hasattr(student, "parametrizations")


def test_the_least_share_that_is_named_is_enough():
    with pytest.raises(ArgumentError, match=r"^share: got") as refused:
        within(share=1e-9)
    named = float(str(refused.value).split("at least ")[1].split(",")[0])
    kept = within(share=named * (1 + 1e-4))
    assert [int(mask.sum()) for mask in (*kept.heads, *kept.neurons)] == [1, 1, 1, 1]
    with pytest.raises(ArgumentError, match=r"^share: got"):
        within(share=named * (1 - 1e-3))
