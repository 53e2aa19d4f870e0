"""Approximate likelihood matching: a teacher with another tokenizer."""

from __future__ import annotations

import math

from torch import nn

from distillrs.checks import check_number
from distillrs.errors import argument_error
from distillrs.knowledge import (
    MSE,
    Bernoulli,
    BernoulliLimit,
    Boundary,
    Chain,
    ChunkEnds,
    Chunks,
    FrozenTeacher,
    GradientBalance,
    Labels,
    Objective,
    Output,
    Prefixed,
    Projector,
    Shifted,
    Tap,
    Term,
)
from distillrs.recipes._networks import check_widths, frozen
from distillrs.registry import recipe

_LOGITS = Output("logits")


@recipe(
    id="alm-cross-tokenizer",
    source="Minixhofer, Vulić, Ponti: Cross-Tokenizer Distillation via Approximate Likelihood Matching, 2025",
    equation="mean over chunks of T KL(B(exp(lp/T)) || B(exp(lq/T))), lp and lq sums of next-token log-probs; + CE",
    deviations=[
        "The KL in place of the cross-entropy of both events: the gradient is the same.",
        "Multiplied by T, so that the gradient keeps its size when T changes.",
        "The boundary's log-probability that is added to a side is that side's own.",
        "Chunks are not filtered by a bias of pairs of tokens that is computed beforehand.",
    ],
    optimisers={"student": {"lr": 1e-5}, "objective": {"lr": 1e-5}},
    engine="knowledge",
)
def alm(
    student: nn.Module,
    teacher: nn.Module,
    temperature: float = 100.0,
    weight: float = 1.0,
    task_weight: float = 1.0,
    boundary: Boundary | None = None,
    hidden: tuple[str | Tap | Output, str | Tap | Output] | None = None,
    widths: tuple[int, int] | None = None,
    hidden_weight: float = 1.0,
    balance_layer: str | None = None,
    teacher_arguments: tuple[str, ...] = ("input_ids", "attention_mask"),
    seed: int = 0,
) -> Objective:
    """The student gives chunks of text the likelihoods that the teacher gives them, whatever tokens either cuts.

    Batches come from :class:`distillrs.integrations.transformers.AcrossTokenizers`, or have its entries.

    Args:
        student: The network to train.
        teacher: The trained one, over its own vocabulary; it is frozen.
        temperature: T, above 0; infinity for the limit.
        weight: Of the chunks' likelihoods.
        task_weight: Of the cross-entropy with the student's own tokens; 0 for none.
        boundary: Joins chunks that the teacher would not end, and counts the likelihood of their ends; ``None`` for
            chunks as they are.
        hidden: Where the student's and the teacher's hidden states are, to be matched at the ends of chunks.
        widths: Of these; a projector is trained where they differ.
        hidden_weight: Of that term.
        balance_layer: Path of the student's last layer that all terms share, in which each is then brought to the same
            norm of its gradient; ``None`` for none.
        teacher_arguments: What the teacher is called with: entries of the batch behind "teacher_".
        seed: Of the projector's first values.

    Returns:
        The objective; its groups are "student" and, with a projector, "objective".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if temperature != math.inf:
        check_number("temperature", temperature, "a number above 0, or infinity", above=0)
    for name, factor in (("weight", weight), ("task_weight", task_weight), ("hidden_weight", hidden_weight)):
        check_number(name, factor, "a finite number")
    if (hidden is None) != (widths is None):
        raise argument_error("widths", widths, "the widths of both hidden states, together with hidden=")
    for name, pair in (("hidden", hidden), ("widths", widths)):
        if pair is not None and (not isinstance(pair, tuple | list) or len(pair) != 2):
            raise argument_error(name, pair, "a pair (student's, teacher's)")
    for width in () if widths is None else widths:
        check_widths(widths=width)
    is_limit = math.isinf(temperature)
    terms = [
        Term(
            _LOGITS,
            align=Chunks(boundary=boundary),
            divergence=BernoulliLimit() if is_limit else Bernoulli("log_probabilities"),
            temperature=1.0 if is_limit else temperature,
            scale=weight if is_limit else weight * temperature,
            name="chunks",
        )
    ]
    if hidden is not None and widths is not None:
        ends = ChunkEnds()
        align = ends if widths[0] == widths[1] else Chain(ends, Projector(*widths, seed=seed))
        terms.append(Term(hidden[0], hidden[1], align, MSE(), scale=hidden_weight, name="hidden"))
    if task_weight:
        terms.append(Term(_LOGITS, target=Labels(), rows=Shifted("labels"), scale=task_weight, name="task"))
    inputs = Prefixed("teacher_", teacher_arguments)
    return Objective(
        student,
        FrozenTeacher(frozen(teacher), inputs),
        terms,
        balance=None if balance_layer is None else GradientBalance(balance_layer),
        withheld=("chunks", "teacher_chunks", *inputs.entries),
    )
