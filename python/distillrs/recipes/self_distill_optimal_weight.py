"""Self-distillation with the weight of the truth that is best on validation data."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs.checks import check_instance, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Arithmetic, Brier, Inputs, Objective, Term, optimal_weight
from distillrs.knowledge.taps import as_taps, record
from distillrs.ops import RowDivergence
from distillrs.recipes._networks import LOGITS, answering
from distillrs.registry import recipe

_BRIER = Brier()


@recipe(
    id="self-distill-optimal-weight",
    source="Borup, Andersen: Even your Teacher Needs Guidance, NeurIPS 2021",
    equation="a |softmax(s) - onehot(y)|^2 + (1 - a) |softmax(s) - softmax(t)|^2, t the generation before",
    deviations=[
        "The squared error is a sum over classes, not a mean: the rate is larger by their number.",
        "The weight comes from two fits in closed form (self_distill_share), where the paper searches a grid.",
    ],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def self_distill_optimal_weight(
    student: nn.Module,
    teacher: nn.Module,
    share: float,
    divergence: RowDivergence = _BRIER,
    temperature: float = 1.0,
    logits: AnyTap = LOGITS,
) -> Objective:
    """One generation: the student is fitted to a mix of the labels and the generation before.

    The squared error to the mix ``share onehot + (1 - share) softmax(t)`` has the gradient of the equation. The weight
    costs one training beside the generation's own::

        alone = recipes.self_distill_optimal_weight(first_student, teacher, share=0.0)      # train it
        share = recipes.self_distill_share(teacher, first_student, x_validation, y_validation)
        objective = recipes.self_distill_optimal_weight(student, teacher, share)            # and train it

    The form for kernel ridge regression is :class:`distillrs.knowledge.RidgeGenerations`.

    Args:
        student: The network to train, of the teacher's form.
        teacher: The generation before, trained; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        share: Of the truth, from 0 to 1.
        divergence: Between the student's distribution and the mix.
        temperature: Divides the student's and the teacher's logits.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise argument_error("share", share, "a number from 0 to 1")
    target = Arithmetic(1.0 - share)
    term = Term(logits, divergence=divergence, target=target, temperature=temperature, name="generation")
    return Objective(student, answering(teacher), [term])


@torch.no_grad()
def self_distill_share(
    teacher: nn.Module, alone: nn.Module, x: Tensor, labels: Tensor, logits: AnyTap = LOGITS, batch: int = 512
) -> float:
    """The weight of the truth, by :func:`distillrs.knowledge.optimal_weight` of probabilities on validation data.

    It is exact where fits are linear in their targets, and an estimate for networks.

    Args:
        teacher: What was fitted to the truth alone: the first generation.
        alone: The student that was fitted to the teacher alone.
        x: Validation inputs ``[B, ...]``.
        labels: int64 ``[B]``.
        logits: Where the logits are, on both sides.
        batch: Rows that go through the networks at a time.

    Returns:
        From 0 to 1.

    Raises:
        ArgumentError: Labels that do not fit the inputs, or no rows.
    """
    for name, network in (("teacher", teacher), ("alone", alone)):
        check_instance(name, network, nn.Module, "a network")
    for name, tensor in (("x", x), ("labels", labels)):
        if not isinstance(tensor, Tensor) or not tensor.ndim:
            raise argument_error(name, type(tensor).__name__, "a tensor with one entry for each row")
    check_whole("batch", batch, "a positive number of rows", least=1)
    if len(x) != len(labels) or not len(x):
        raise argument_error("labels", f"{len(labels)} for {len(x)} rows", "one for each row, at least one")
    (tap,) = as_taps("logits", logits)
    found = []
    for network in (teacher, alone):
        states = [(module, module.training) for module in network.modules()]
        network.eval()
        try:
            parts = [record(network, [tap], Inputs((part,))).values[tap].softmax(-1) for part in torch.split(x, batch)]
        finally:
            for module, training in states:
                module.training = training
        found.append(torch.cat(parts))
    classes = found[0].shape[-1]
    if labels.dtype != torch.int64 or not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        got = f"{labels.dtype}, {labels.min()} to {labels.max()}"
        raise argument_error("labels", got, f"int64 [B] from 0 to {classes - 1}")
    return optimal_weight(functional.one_hot(labels, classes), found[0], found[1])
