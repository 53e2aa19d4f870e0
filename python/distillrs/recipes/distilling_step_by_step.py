"""Distilling step by step: rationales as a second task."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from distillrs.checks import check_flag, check_number
from distillrs.knowledge import AnyTap, Labelled, Labels, Objective, Shifted, Term, View, Where
from distillrs.recipes._networks import LOGITS
from distillrs.registry import recipe


@recipe(
    id="distilling-step-by-step",
    source="Hsieh, Li, Yeh, Nakhost, Fujii, Ratner, Krishna, Lee, Pfister: Distilling Step-by-Step!, ACL Findings 2023",
    equation="CE(label | '[label] x') + l CE(rationale | '[rationale] x'), each a mean over its own tokens",
    deviations=["A decoder alone is allowed beside the paper's encoder and decoder."],
    optimisers={"student": {"lr": 5e-5}},
    engine="knowledge",
)
def distilling_step_by_step(
    student: nn.Module,
    weight: float = 1.0,
    encoder_decoder: bool = False,
    weighted: bool = False,
    logits: AnyTap = LOGITS,
) -> Objective:
    """The student learns a teacher's labels and, told by another prompt, its reasons; only labels are asked for later.

    Batches come from :func:`~distillrs.knowledge.paired_batch` with two tasks: 0 the label, 1 the rationale; for an
    encoder and a decoder from its ``start=`` with the decoder's first token. The
    teacher's work is done before, in a :class:`~distillrs.knowledge.Corpus`.

    Args:
        student: The network to train.
        weight: l, of the rationale; 0 learns labels alone.
        encoder_decoder: Whether logits stand at their labels' own places, as in T5, not one before.
        weighted: Whether examples count by the batch's "weight".
        logits: Where the logits are.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_number("weight", weight, "a number from 0", least=0)
    for name, flag in (("encoder_decoder", encoder_decoder), ("weighted", weighted)):
        check_flag(name, flag)
    labelled = Labelled() if encoder_decoder else Shifted()
    terms: list[Term] = []
    normaliser: Literal["rows", "weights"] = "weights" if weighted else "rows"
    for task, (name, scale) in enumerate((("label", 1.0), ("rationale", weight))):
        rows = [labelled, Where("task", task), *([_weight] if weighted else [])]
        terms.append(Term(logits, target=Labels(), rows=rows, scale=scale, normaliser=normaliser, name=name))
    return Objective(student, terms=terms, withheld=("task", "weight"))


def _weight(view: View) -> Tensor:
    return view.inputs.tensor("weight")
