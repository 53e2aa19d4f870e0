"""Fingerprints tell teachers, tokenizers and templates apart, and only those."""

import json
import pickle

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.errors import ArgumentError, SchemaMismatch
from distillrs.trajectory import UNCHECKED, Fingerprint


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


class Tokenizer:
    def __init__(self, vocabulary, **rules):
        self.vocabulary = vocabulary
        self.rules = rules

    def get_vocab(self):
        return self.vocabulary


class FastTokenizer(Tokenizer):
    @property
    def backend_tokenizer(self):
        return self

    def to_str(self):
        return json.dumps({"model": {"vocab": self.vocabulary, **self.rules}, **self.rules})


def test_the_same_model_however_it_is_wrapped():
    first = Fingerprint.of(network())
    assert first == Fingerprint.of(network())
    assert first == Fingerprint.of(network().state_dict())
    assert first == Fingerprint.of(dr.Frozen(network()))
    assert first == Fingerprint.of(nn.DataParallel(network()))
    assert first == Fingerprint.of(torch.compile(network()))
    strided = {
        name: value.t().contiguous().t() if value.ndim == 2 else value for name, value in network().state_dict().items()
    }
    assert first == Fingerprint.of(strided)
    assert first == pickle.loads(pickle.dumps(first))
    assert first == Fingerprint(**first.to_dict())


def test_every_value_name_shape_and_type_counts():
    state = network().state_dict()
    found = {Fingerprint.of(state).teacher, Fingerprint.of(network(1)).teacher}
    for name in state:
        changed = {key: value.clone() for key, value in state.items()}
        changed[name].view(-1)[-1] += 1
        found.add(Fingerprint.of(changed).teacher)
    found.add(Fingerprint.of({**state, "0.weight": state["0.weight"].reshape(3, 4)}).teacher)
    found.add(Fingerprint.of({**state, "0.weight": state["0.weight"].bfloat16()}).teacher)
    found.add(
        Fingerprint.of({(name + "x" if name == "0.bias" else name): value for name, value in state.items()}).teacher
    )
    assert len(found) == 2 + len(state) + 3


def test_pieces_are_read_one_after_another(monkeypatch):
    whole = Fingerprint.of(network())
    monkeypatch.setattr("distillrs.trajectory.fingerprint._PIECE", 5)
    assert Fingerprint.of(network()) == whole
    assert Fingerprint.of({"x": torch.zeros(0)}) != Fingerprint.of({"x": torch.zeros(1)})


def test_tokenizers_by_their_content():
    vocabulary = {"a": 0, "b": 1}
    plain = Fingerprint.of("t", Tokenizer(vocabulary))
    assert plain == Fingerprint.of("t", {"b": 1, "a": 0})
    assert plain != Fingerprint.of("t", Tokenizer({"a": 1, "b": 0}))
    fast = Fingerprint.of("t", FastTokenizer(vocabulary, merges=["a b"]))
    assert fast != plain
    assert fast != Fingerprint.of("t", FastTokenizer(vocabulary, merges=["b a"]))
    # What a padded call leaves behind is no other tokenizer.
    assert fast != Fingerprint.of("t", FastTokenizer(vocabulary, merges=["a b"], extra=1))
    padded = FastTokenizer(vocabulary, merges=["a b"])
    form = json.loads(padded.to_str())
    padded.to_str = lambda: json.dumps({**form, "padding": {"length": 8}, "truncation": None})
    assert fast == Fingerprint.of("t", padded)


def test_every_part_is_compared_and_named():
    parts = {"teacher": "a", "tokenizer": "b", "template": "c", "sampling_temperature": 1.0}
    mine = Fingerprint(**parts)
    mine.check(Fingerprint(**parts), "it")
    for name in parts:
        other = Fingerprint(**{**parts, name: 0.5 if name == "sampling_temperature" else "other"})
        with pytest.raises(SchemaMismatch, match=f"fingerprint of it differs: {name} .* there, .* in use"):
            mine.check(other, "it")
    assert Fingerprint.of("t", None, "x") != Fingerprint.of("t", None, "y")
    assert Fingerprint.of("t", None, None) != Fingerprint.of("t", None, "")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((3,), "teacher"),
        (({},), "teacher"),
        ((nn.Linear(2, 2, device="meta"),), "teacher"),
        (("t", 3), "tokenizer"),
        (("t", None, b"x"), "template"),
        (("t", None, None, -1.0), "sampling_temperature"),
        (("t", None, None, float("nan")), "sampling_temperature"),
    ],
)
def test_what_has_no_fingerprint_is_refused(arguments, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        Fingerprint.of(*arguments)


def test_unchecked_is_one_thing():
    assert repr(UNCHECKED) == "UNCHECKED"
    assert pickle.loads(pickle.dumps(UNCHECKED)) is UNCHECKED
