"""DED: the choice of a teacher, the filters, and the traces that differ most, by brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillrs import recipes
from distillrs.errors import ArgumentError


def edits(left, right):
    row = list(range(len(right) + 1))
    for place, character in enumerate(left, 1):
        before, row[0] = row[0], place
        for column, other in enumerate(right, 1):
            before, row[column] = row[column], min(before + (character != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


def by_hand(traces, rates, count, most, solved, longest, valid):
    left = []
    for question, (own, rate) in enumerate(zip(traces, rates, strict=True)):
        rows = [row for row, text in enumerate(own) if len(text) <= longest and valid(question, text)]
        if rate <= solved and rows:
            left.append((rate, question, rows))
    found = []
    for _, question, rows in sorted(sorted(left)[:most], key=lambda each: each[1]):
        own = traces[question]
        picked = [min(rows, key=lambda row: (len(own[row]), row))]
        while len(picked) < min(count, len(rows)):
            near = {
                row: min(edits(own[row], own[pick]) / max(len(own[row]), len(own[pick]), 1) for pick in picked)
                for row in rows
                if row not in picked
            }
            picked.append(max(near, key=lambda row: (near[row], -row)))
        found += [(question, row) for row in picked]
    return found


texts = st.text("ab+", max_size=9)
questions = st.lists(st.tuples(st.lists(texts, max_size=5), st.sampled_from([0.0, 0.25, 0.5, 1.0])), max_size=6)


@given(data=questions, count=st.integers(1, 4), most=st.integers(0, 5))
def test_what_is_kept_is_what_the_rules_keep(data, count, most):
    traces, rates = [own for own, _ in data], [rate for _, rate in data]

    def valid(question, text):
        return (len(text) + question) % 3 != 0

    kept = recipes.ded(count, most, solved=0.25, longest=8, valid=valid)(traces, rates)
    assert kept == by_hand(traces, rates, count, most, 0.25, 8, valid)


def test_the_teacher_whose_student_is_best_is_chosen():
    answers = {"large": ["long answer"] * 3, "small": ["short"] * 3, "other": ["short"] * 3}
    seen = []

    def train(own):
        seen.append(list(own))
        return len(own[0])

    found = recipes.ded_teacher(answers, train, lambda student: 1 / student)
    assert (found.best, found.scores) == ("small", {"large": 1 / 11, "small": 1 / 5, "other": 1 / 5})
    assert seen == list(answers.values())
    for bad in ({}, {"one": ["a"], "two": []}):
        with pytest.raises(ArgumentError, match="answers"):
            recipes.ded_teacher(bad, train, float)
    with pytest.raises(ArgumentError, match=r"score: got .*nan.*'large'"):
        recipes.ded_teacher(answers, train, lambda student: float("nan"))


def test_what_is_not_allowed_is_named():
    for bad in ({"traces": 0}, {"questions": -1}, {"longest": -1}, {"solved": 1.5}, {"solved": True}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            recipes.ded(**bad)
    for traces in (["a text"], [["a", 3]]):
        with pytest.raises(ArgumentError, match=r"^traces: got '(str|list) for question 0'"):
            recipes.ded()(traces, [0.1])
    for rates in ([0.1, 0.2], [1.5]):
        with pytest.raises(ArgumentError, match="pass_rates"):
            recipes.ded()([["a"]], rates)
