"""Recipes over text: ALM, DistillSpec, step by step; corpora and paired tasks."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import distillrs as dr
from distillrs import knowledge as kn
from distillrs import ops, recipes
from distillrs.errors import ArgumentError
from distillrs.registry import find_recipe
from tiny_language import llama


class Net(nn.Module):
    def __init__(self, vocabulary, width, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Embedding(vocabulary, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.body(input_ids).cumsum(1))


def across():
    spans = [
        torch.tensor([[[-1, -1], [0, 1], [1, 2], [2, 3], [3, 4]]] * 3),
        torch.tensor([[[-1, -1], [0, 2], [2, 4]]] * 3),
    ]
    chunks = kn.token_chunks(*spans)
    ids = torch.arange(15).reshape(3, 5) % 7
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids,
        "chunks": chunks.student,
        "teacher_input_ids": torch.arange(9).reshape(3, 3) % 4,
        "teacher_chunks": chunks.teacher,
    }


@pytest.mark.parametrize("temperature", [50.0, float("inf")])
def test_alm_is_its_formula(temperature):
    student, teacher, batch = Net(7, 6, 0), Net(4, 5, 1), across()
    objective = recipes.alm(
        student, teacher, temperature, 2.0, 0.5, hidden=("body", "body"), widths=(6, 5), hidden_weight=0.1
    )
    loss = objective(batch, 0)
    q = student(batch["input_ids"])[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    p = teacher(batch["teacher_input_ids"])[:, :-1].log_softmax(-1)
    p = p.gather(-1, batch["teacher_input_ids"][:, 1:, None])[..., 0].detach()
    lq, lp = torch.stack([q[:, 0] + q[:, 1], q[:, 2] + q[:, 3]], 1), p
    if temperature == 50:
        a, b = (lp / 50).exp(), (lq / 50).exp()
        chunks = 50 * (a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()).mean()
    else:
        chunks = (lp - lq + lp * ((-lq).log() - (-lp).log())).mean()
    projector = objective.stages[0].terms[1].align.parts[1]
    own, other = student.body(batch["input_ids"])[:, [2, 4]], teacher.body(batch["teacher_input_ids"])[:, [1, 2]]
    hidden = (projector.project(own) - other).square().mean()
    task = F.cross_entropy(student(batch["input_ids"])[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(loss.total, 2 * chunks + 0.1 * hidden + 0.5 * task, rtol=2e-4, atol=1e-5)
    assert list(objective.parameter_groups()) == ["student", "objective"]


def test_alm_brings_a_student_to_the_teachers_likelihoods():
    student, teacher, batch = Net(7, 16, 0), Net(4, 5, 1), across()
    objective = recipes.alm(student, teacher, task_weight=0.0)
    optimiser = torch.optim.Adam(objective.parameter_groups()["student"], 0.02)
    values = []
    for step in range(150):
        optimiser.zero_grad()
        loss = objective(batch, step)
        loss.total.backward()
        optimiser.step()
        values.append(float(loss.total.detach()))
    assert values[-1] < 1e-3 * values[0]
    balanced = recipes.alm(
        student, teacher, balance_layer="head", boundary=kn.Boundary(torch.arange(7) > 2, torch.arange(4) > 0)
    )
    terms = balanced(batch, 0).terms
    assert {"chunks", "task", "factor/chunks", "factor/task"} <= set(terms)
    for wrong in ({"temperature": 0.0}, {"hidden": ("body", "body")}, {"teacher_arguments": ()}):
        with pytest.raises(ArgumentError, match=r"temperature|widths|names"):
            recipes.alm(student, teacher, **wrong)


@pytest.mark.parametrize("divergence", [ops.TotalVariation(), ops.JensenShannon(0.5), ops.ReverseKL()])
def test_distillspec_raises_acceptance_where_the_draft_stands(divergence):
    target, draft = llama(24, 2, 2).eval(), llama(16, 1, 1)
    prompts = torch.arange(24)[:, None] % 40
    objective = recipes.distillspec(draft, target, divergence)
    mix = kn.TextMix(
        {
            "fixed": lambda units, step: torch.cat([units[:, None] % 40] * 8, 1),
            "draft": lambda units, step: kn.sample_text(draft, units[:, None] % 40, 8, step=step, units=units),
        },
        {"fixed": 0.25, "draft": 0.75},
    )
    text = kn.sample_text(target, prompts, 8, step=0)

    def rate():
        with torch.no_grad():
            return float(kn.acceptance(draft(text).logits, target(text).logits)[:, :-1].mean())

    before = rate()
    optimiser = torch.optim.Adam(objective.parameter_groups()["student"], 1e-2)
    for step in range(25):
        ids, _ = mix.batch(16, step)
        labels = ids.clone()
        labels[:, 0] = -100
        optimiser.zero_grad()
        objective({"input_ids": ids, "labels": labels}, step).total.backward()
        optimiser.step()
    assert rate() > before + 0.05
    assert all(parameter.grad is None for parameter in target.parameters())
    logits = draft(ids).logits[:, :-1], target(ids).logits[:, :-1]
    expected = ops.row_divergence(*logits, divergence, reduction="mean")
    torch.testing.assert_close(objective({"input_ids": ids, "labels": labels}, 0).total, expected)


def test_caches_of_keys_change_nothing():
    model = llama(16, 1, 1)

    def plain(input_ids):
        return model(input_ids=input_ids).logits

    prompts = torch.arange(6)[:, None]
    kept = kn.sample_text(model, prompts, 9, step=4)
    assert torch.equal(kept, kn.sample_text(plain, prompts, 9, step=4))
    assert torch.equal(kept[2:], kn.sample_text(dr.Frozen(model), prompts[2:], 9, step=4, units=range(2, 6)))


def sums(given, step):
    first, second = (int(part) for part in given["question"].split("+"))
    return {"label": str(first + second), "rationale": f"{first} and {second}, attempt {step.index}"}


QUESTIONS = [{"question": f"{a}+{b}"} for a, b in ((1, 2), (3, 4), (5, 6), (7, 8))]
TASKS = (kn.Task("[l]{question}", "{label}"), kn.Task("[r]{question}", "{rationale}"))


def test_a_corpus_knows_where_its_examples_come_from():
    def check(fields):
        if fields["question"] == "5+6":
            return 0.0
        return 2.5 if fields["rationale"].endswith("attempt 1") else False

    found = kn.Corpus.written(QUESTIONS, sums, check=check, attempts=2, seed=3)
    assert [example.fields["label"] for example in found.examples] == ["3", "7", "15"]
    assert {(example.weight, example.source, example.attempt) for example in found.examples} == {(2.5, "teacher", 1)}
    assert found.rejected == (2,)
    both = found + kn.Corpus.written(QUESTIONS[:1], sums, source="rules")
    assert both.sources() == {"teacher": 3, "rules": 1}
    assert len(both) == 4
    seen = []
    kn.Corpus.written(
        QUESTIONS, lambda given, step: seen.append((step.seed, step.first_unit, step.index)) or {}, seed=9
    )
    assert seen == [(9, unit, 0) for unit in range(4)]
    for wrong, name in (
        ({"attempts": 0}, "attempts"),
        ({"check": lambda fields: -1.0}, "check"),
        ({"check": lambda fields: float("nan")}, "check"),
    ):
        with pytest.raises(ArgumentError, match=name):
            kn.Corpus.written(QUESTIONS, sums, **wrong)
    for answer in ({"question": "other"}, {"label": 3}, "text"):
        with pytest.raises(ArgumentError, match="write"):
            kn.Corpus.written(QUESTIONS, lambda given, step, answer=answer: answer)


def test_every_example_stands_once_for_each_task():
    corpus = kn.Corpus.written(QUESTIONS, sums)
    found = kn.paired_batch(corpus.examples, TASKS, lambda text: list(text.encode()), end=1, pad=0)
    assert found["task"].tolist() == [0] * 4 + [1] * 4
    for row, (task, example) in enumerate((task, example) for task in TASKS for example in corpus.examples):
        prompt, answer = (text.encode() for text in task.texts(example.fields))
        length = int(found["attention_mask"][row].sum())
        assert found["input_ids"][row, :length].tolist() == [*prompt, *answer, 1]
        assert found["labels"][row, :length].tolist() == [-100] * len(prompt) + [*answer, 1]
        assert (found["labels"][row, length:] == -100).all()
    with pytest.raises(ArgumentError, match="examples"):
        kn.paired_batch(corpus.examples, TASKS, lambda text: list(text.encode()), end=1, max_length=12)
    with pytest.raises(ArgumentError, match="tasks"):
        kn.paired_batch(corpus.examples, [], list, end=1)
    with pytest.raises(ArgumentError, match="template"):
        kn.paired_batch(corpus.examples, [kn.Task("{other}", "")], list, end=1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_encoder_and_a_decoder_get_the_prompt_and_the_answer():
    import transformers

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    student = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=64, dropout_rate=0.0, **sizes))
    corpus = kn.Corpus.written(QUESTIONS, sums)
    batch = kn.paired_batch(
        corpus.examples, TASKS, lambda text: [ord(each) % 60 + 2 for each in text], end=1, start=0, max_length=40
    )
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    for row, labels in enumerate(batch["labels"]):
        answer = labels[labels != -100]
        assert answer[-1] == 1
        assert batch["decoder_input_ids"][row, : len(answer)].tolist() == [0, *answer[:-1].tolist()]
        assert int(batch["attention_mask"][row].sum()) == len("[l]1+2")
    total = 0
    for task, scale in ((0, 1.0), (1, 0.5)):
        # Its own loss shifts the labels to what the decoder is given.
        rows = batch["task"] == task
        asked = {name: batch[name][rows] for name in ("input_ids", "attention_mask", "labels")}
        total = total + scale * student(**asked).loss
    found = recipes.distilling_step_by_step(student, 0.5, encoder_decoder=True)(batch, 0)
    torch.testing.assert_close(found.total, total)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_each_task_is_averaged_over_its_own_tokens(weighted, encoder_decoder):
    corpus = kn.Corpus.written(QUESTIONS, sums, check=lambda fields: float(fields["label"]))
    batch = kn.paired_batch(corpus.examples, TASKS, lambda text: [ord(each) % 60 + 2 for each in text], end=1)
    student = Net(64, 8, 0)
    objective = recipes.distilling_step_by_step(student, 0.5, encoder_decoder, weighted)
    total = 0
    logits = student(batch["input_ids"])
    for task, scale in ((0, 1.0), (1, 0.5)):
        rows = batch["task"] == task
        own, labels = logits[rows], batch["labels"][rows]
        if not encoder_decoder:
            own, labels = own[:, :-1], labels[:, 1:]
        losses = F.cross_entropy(own.transpose(1, 2), labels, reduction="none")
        weight = (labels != -100) * (batch["weight"][rows, None] if weighted else 1.0)
        total = total + scale * (losses * weight).sum() / weight.sum()
    torch.testing.assert_close(objective(batch, 0).total, total)
    # A global count of labels must not turn the two means into one.
    items = int(objective.count_items(batch))
    torch.testing.assert_close(objective(batch, dr.Step(0, items=items)).total, total)
    assert find_recipe("distilling-step-by-step").function is recipes.distilling_step_by_step
    with pytest.raises(ArgumentError, match="weight"):
        recipes.distilling_step_by_step(student, -1.0)
