"""Progressive self-knowledge distillation: the student's own past prediction softens the label."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from distillrs import ops
from distillrs.checks import check_choice, check_number
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Arithmetic, Objective, SnapshotRing, SnapshotTable, Term
from distillrs.recipes._networks import LOGITS
from distillrs.registry import recipe
from distillrs.schedule import LinearRamp


@recipe(
    id="ps-kd",
    source="Kim, Ji, Yoon, Hwang: Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021",
    equation="CE(s, (1 - a_t) y + a_t p_{t-1}(x)), a_t from 0 to .8 over the run",
    deviations=[
        "a_t grows with the step, and not once an epoch: it is 0 at the first step and last_share at the last.",
        "The KL in place of the cross-entropy with the soft target: the gradient is the same.",
        "With past='weights' the predictions of the first epoch's start stand in for those of an epoch before it.",
    ],
    optimisers={"student": {"lr": 0.1, "momentum": 0.9}},
    engine="knowledge",
)
def ps_kd(
    student: nn.Module,
    examples: int | None = None,
    classes: int | None = None,
    past: Literal["table", "weights"] = "table",
    epoch_steps: int | None = None,
    last_share: float = 0.8,
    logits: AnyTap = LOGITS,
    ids: str = "ids",
    process_group: Any = None,
) -> Objective:
    """The student is its own teacher: of what it said of the same example an epoch ago.

    With "table" a row for each example holds what the student said when it last saw it, in training mode and of the
    augmented view, as in the authors' code; batches have ids: ``(inputs, labels, ids)``, or an entry "ids". With
    "weights" a copy of the weights from the last epoch's end looks at the present view, in evaluation mode; no ids are
    needed, mixtures of examples are allowed, and every step has one more forward pass. Both are saved with the
    objective.

    Args:
        student: The network to train.
        examples: Size of the training set, for the table.
        classes: Of the logits, for the table.
        past: "table" or "weights".
        epoch_steps: Steps of an epoch, for "weights".
        last_share: a_T, from 0 to 1.
        logits: Where the student's logits ``[B, classes]`` are.
        ids: The batch entry of the examples' ids, from 0 to ``examples - 1``.
        process_group: The processes whose predictions the table gathers; ``None`` for this one's alone.

    Returns:
        The objective; its group is "student". It needs ``Step.total``.

    Raises:
        ArgumentError: A value that is not allowed or is missing.
    """
    check_choice("past", past, ("table", "weights"))
    if past == "table":
        for name, value in (("examples", examples), ("classes", classes)):
            if value is None:
                raise argument_error(name, None, "a positive integer for past='table'")
        assert examples is not None
        assert classes is not None
        teacher: SnapshotTable | SnapshotRing = SnapshotTable(examples, classes, ids=ids, process_group=process_group)
    else:
        if epoch_steps is None:
            raise argument_error("epoch_steps", None, "a positive integer for past='weights'")
        if process_group is not None:
            raise argument_error("process_group", type(process_group).__name__, "None for past='weights'")
        teacher = SnapshotRing(1, epoch_steps)
    check_number("last_share", last_share, "a number from 0 to 1", least=0, most=1)
    target = Arithmetic(LinearRamp(0.0, last_share))
    return Objective(student, teacher, [Term(logits, divergence=ops.ForwardKL(), target=target, name="task")], ids=ids)
