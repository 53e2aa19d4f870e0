"""DistillSpec: drafts that a target model accepts more often."""

from __future__ import annotations

from torch import nn

from distillrs.knowledge import AnyTap, Objective, Shifted, Term
from distillrs.ops import RowDivergence, TotalVariation
from distillrs.recipes._networks import LOGITS, answering
from distillrs.registry import recipe

_DIVERGENCE = TotalVariation()


@recipe(
    id="distillspec",
    source="Zhou, Lyu, Rawat, Menon, Rostamizadeh, Kumar, Kagy, Agarwal: DistillSpec: Improving Speculative Decoding "
    "via Knowledge Distillation, ICLR 2024",
    equation="mean over completion tokens of D(p_t || q_t), on text drawn from the draft q; 1 - TVD is the acceptance",
    deviations=["Text is drawn by a TextMix beside the objective, which draws nothing itself."],
    optimisers={"student": {"lr": 3e-4}},
    engine="knowledge",
)
def distillspec(
    draft: nn.Module,
    target: nn.Module,
    divergence: RowDivergence = _DIVERGENCE,
    temperature: float = 1.0,
    labels: str = "labels",
    logits: AnyTap = LOGITS,
) -> Objective:
    """The draft matches the target's next-token distributions where it will stand when it proposes.

    Batches are text of a :class:`~distillrs.knowledge.TextMix`, mostly the draft's own
    (:func:`~distillrs.knowledge.sample_text`): ``{"input_ids": ids, "labels": labels}`` with -100 for prompts. Labels
    only say which positions count. No gradient goes through the drawing.

    Args:
        draft: The small network to train.
        target: The large one, over the same vocabulary; it is frozen, unless it is a
            :class:`~distillrs.knowledge.Teacher`.
        divergence: Of the target p and the draft q; the total variation is one less the acceptance itself. Which is
            best depends on the task and on how text is decoded.
        temperature: Of both sides: that of the decoding.
        labels: The batch entry that marks the completion.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    term = Term(logits, divergence=divergence, temperature=temperature, rows=Shifted(labels), name="distillation")
    return Objective(draft, answering(target, "target"), [term], labels=labels)
