"""PCoreSet: active learning beside a teacher, with queries spread over the space of predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distillrs import ops, select
from distillrs.checks import check_floating, check_number, check_text, described
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Labelled, Labels, Objective, Output, Term, View
from distillrs.knowledge.inputs import IGNORED
from distillrs.recipes._networks import LOGITS, frozen
from distillrs.registry import recipe
from distillrs.select import Picks

CLASSES, TEACHER = Output("ce"), Output("kd")


@recipe(
    id="pcoreset",
    source="Kang, Lee, Hwang: PCoreSet: Effective Active Learning through Knowledge Distillation from Vision-Language "
    "Models, 2025",
    equation=".5 CE(ce, y) + .5 (KL_labelled + KL_unlabelled), KL = T^2 KL(softmax(t/T) || softmax(kd/T)); query "
    "argmax_x min_c |p(x) - p(c)|, c labelled or queried, p = (1 - a) softmax(ce) + a softmax(kd/b)",
    deviations=[
        "A point's distance to the nearest centre is kept from pick to pick instead of being computed again to all of "
        "them; the picks are the same.",
    ],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="select",
)
def pcoreset(
    student: nn.Module,
    teacher: nn.Module,
    temperature: float = 2.0,
    weight: float = 0.5,
    class_head: AnyTap = CLASSES,
    teacher_head: AnyTap = TEACHER,
    teacher_logits: AnyTap = LOGITS,
    labels: str = "labels",
) -> Objective:
    """A student with two heads on one backbone: one learns the labels there are, the other the teacher everywhere.

    A round of active learning::

        train(student, recipes.pcoreset(student, teacher))             # batches of labelled and unlabelled examples
        p = recipes.pcoreset_probabilities(ce, kd)                     # of all examples, [n, classes]
        more = recipes.pcoreset_queries(p, labelled, 100).ids          # to be labelled next

    Under accumulation and over processes the unlabelled examples of a micro-batch weigh as its labelled ones do
    (see :class:`~distillrs.knowledge.Objective`): give each the same share of labelled examples, or those without any
    count nothing.

    Args:
        student: The network to train; it gives a mapping with both heads' logits.
        teacher: The network that knows the classes without labels, or with few; it is frozen.
        temperature: T of the distillation.
        weight: Of the distillation; 1 - weight is that of the labels. From 0 to 1.
        class_head: The student's logits for the labels.
        teacher_head: The student's logits for the teacher.
        teacher_logits: The teacher's.
        labels: The batch entry of the labels, -100 for examples without one.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed.
    """
    check_number("weight", weight, "a number from 0 to 1", least=0, most=1)
    check_text("labels", labels, "the name of an entry of the batch")

    def unlabelled(view: View) -> Tensor:
        return view.inputs.tensor(labels) == IGNORED

    terms = [
        Term(class_head, target=Labels(), rows=Labelled(labels), scale=1 - weight, name="task"),
        *(
            Term(
                teacher_head,
                teacher_logits,
                divergence=ops.ForwardKL(),
                rows=rows,
                temperature=temperature,
                temperature_rule="squared",
                scale=weight,
                name=f"distillation/{name}",
            )
            for name, rows in (("labelled", Labelled(labels)), ("unlabelled", unlabelled))
        ),
    ]
    return Objective(student, frozen(teacher), terms, labels=labels)


def pcoreset_probabilities(ce: Tensor, kd: Tensor, share: float = 0.5, beta: float = 1.0) -> Tensor:
    """What a student with two heads predicts: ``(1 - share) softmax(ce) + share softmax(kd / float(beta))``.

    Args:
        ce: Logits of the head for the labels, ``[n, classes]``.
        kd: Logits of the head for the teacher, ``[n, classes]``.
        share: Of the head for the teacher, from 0 to 1.
        beta: Its temperature, above 0.

    Returns:
        ``[n, classes]``, without a graph.

    Raises:
        ArgumentError: A value that is not allowed, or different shapes.
    """
    for name, logits in (("ce", ce), ("kd", kd)):
        check_floating(name, logits, "floating logits [n, classes]", axes=2)
    check_number("share", share, "a number from 0 to 1", least=0, most=1)
    check_number("beta", beta, "a number above 0", above=0)
    if ce.shape != kd.shape:
        raise argument_error("kd", f"shape {tuple(kd.shape)}", f"the shape {tuple(ce.shape)} of ce")
    with torch.no_grad():
        return (1 - share) * ce.softmax(-1) + share * (kd / float(beta)).softmax(-1)


def pcoreset_queries(
    probabilities: Tensor, labelled: Tensor, k: int, *, seed: int = 0, memory_budget: int | None = None
) -> Picks:
    """The examples whose predictions are farthest from those of all that are labelled or queried before.

    Time grows with examples times classes for each pick at most, memory with the examples.

    Args:
        probabilities: ``[n, classes]``, of the whole pool, the labelled examples included.
        labelled: int64 ``[m]``: rows that have labels; they are the first centres and are not queried.
        k: Number of queries.
        seed: Draws the first query where nothing is labelled.
        memory_budget: As of :func:`distillrs.select.k_center`.

    Returns:
        The queries in order; a gain is a query's distance to the nearest centre before it.

    Raises:
        ArgumentError: Rows that are no probabilities, or as of :func:`distillrs.select.k_center`.
    """
    check_floating("probabilities", probabilities, "floating [n, classes], rows from 0 to 1 that sum to 1", axes=2)
    sums = probabilities.sum(1)
    # Logits have distances, too, and would be picked by them. A NaN fails the comparison and is named below.
    if len(sums) and (bool(((sums - 1).abs() > 0.02).any()) or float(probabilities.min()) < 0):
        got = f"{probabilities.dtype} {tuple(probabilities.shape)} that are no probabilities"
        raise argument_error("probabilities", got, "[n, classes], rows from 0 to 1 that sum to 1")
    if not isinstance(labelled, Tensor) or labelled.layout != torch.strided or labelled.is_meta:
        allowed = f"int64 [m] of distinct rows from 0 to {len(probabilities) - 1}"
        raise argument_error("labelled", described(labelled), allowed)
    if labelled.dtype != torch.int64 or labelled.ndim != 1:
        allowed = f"int64 [m] of distinct rows from 0 to {len(probabilities) - 1}"
        raise argument_error("labelled", described(labelled), allowed)
    if not _distinct(labelled, len(probabilities)):
        got = f"{labelled.dtype} {tuple(labelled.shape)}, {_range(labelled)}"
        raise argument_error("labelled", got, f"int64 [m] of distinct rows from 0 to {len(probabilities) - 1}")
    return select.k_center(probabilities, k, chosen=labelled, seed=seed, memory_budget=memory_budget)


def _distinct(rows: Tensor, count: int) -> bool:
    return not len(rows) or (int(rows.min()) >= 0 and int(rows.max()) < count and len(torch.unique(rows)) == len(rows))


def _range(rows: Tensor) -> str:
    return f"values from {rows.min().item()} to {rows.max().item()}" if rows.numel() else "no value"
