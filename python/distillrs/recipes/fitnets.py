"""FitNets: a hint from the middle of the teacher first, then its outputs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from distillrs import ops
from distillrs.checks import check_instance
from distillrs.knowledge import MSE, AnyTap, Objective, Projector, Stage, Term, Through
from distillrs.recipes._networks import LOGITS, answering, check_widths, task
from distillrs.registry import recipe
from distillrs.schedule import LinearRamp


@recipe(
    id="fitnets",
    source="Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio: FitNets: Hints for Thin Deep Nets, ICLR 2015",
    equation="stage 1: mean (hint_T - r(guided_S))^2 / 2; stage 2: CE(s, y) + l KL(p_T || p_S), l from 4 to 1",
    deviations=[
        "The hint's loss is a mean over its entries, not a sum: the rate of stage 1 is larger by their number.",
        "The regressor is a linear map of the channels; the paper has a larger convolution. Another one may be given.",
        "The KL in place of the cross-entropy of soft targets: the gradient is the same.",
    ],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}, "objective": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def fitnets(
    student: nn.Module,
    teacher: nn.Module,
    guided: str,
    hint: str,
    student_width: int,
    teacher_width: int,
    hint_steps: int,
    regressor: nn.Module | None = None,
    trainable: Sequence[str] | None = None,
    temperature: float = 3.0,
    first_weight: float = 4.0,
    last_weight: float = 1.0,
    logits: AnyTap = LOGITS,
    seed: int = 0,
) -> Objective:
    """The lower part of the student learns to give the teacher's hint; then all of it learns the outputs.

    Args:
        student: The network to train.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        guided: Path of the student's layer.
        hint: Path of the teacher's.
        student_width: Channels of the guided layer.
        teacher_width: Of the hint.
        hint_steps: Length of stage 1, in which the layers above the guided one have no gradient: in
            ``DistributedDataParallel`` that takes ``find_unused_parameters=True``.
        regressor: From the guided layer's output to the hint's shape, trained and discarded; ``None`` for a linear one.
        trainable: What of the student stage 1 trains, as of :class:`~distillrs.knowledge.Stage`; ``None`` leaves all,
            of which those above the guided layer get no gradient.
        temperature: T of stage 2.
        first_weight: l at the start of stage 2.
        last_weight: l at the run's last step.
        logits: Where the logits are, on both sides.
        seed: Of the regressor's first values.

    Returns:
        The objective; its groups are "student" and "objective" (the regressor). Stage 2 needs ``Step.total``.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_widths(student_width=student_width, teacher_width=teacher_width)
    if regressor is not None:
        check_instance("regressor", regressor, nn.Module, "a module, or None for a linear one")
    align = Projector(student_width, teacher_width, seed=seed) if regressor is None else Through(regressor)
    first = Stage(
        [Term(guided, hint, align, MSE(), scale=0.5, name="hint")], hint_steps, trainable=trainable, name="hint"
    )
    soft = Term(
        logits,
        divergence=ops.ForwardKL(),
        temperature=temperature,
        scale=LinearRamp(first_weight, last_weight),
        name="distillation",
    )
    return Objective(student, answering(teacher), stages=[first, Stage([soft, *task(logits, 1.0)], name="outputs")])
