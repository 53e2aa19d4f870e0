"""Students with weights on few levels, trained against the teacher: weights by straight-through, or the levels."""

from __future__ import annotations

from torch import nn

from distillrs import ops
from distillrs.checks import check_instance, check_number
from distillrs.errors import argument_error
from distillrs.knowledge import AnyTap, Objective, Stage, Term
from distillrs.knowledge.forms import LearnedLevels, Quantised
from distillrs.knowledge.taps import as_taps
from distillrs.recipes._networks import LOGITS, answering, task
from distillrs.registry import recipe

_SOURCE = "Polino, Pascanu, Alistarh: Model compression via distillation and quantization, ICLR 2018"
_KL = "The KL in place of the cross-entropy of soft targets: the gradient is the same."


def _terms(weight: float, temperature: float, logits: AnyTap) -> list[Term]:
    check_number("weight", weight, "a number from 0 to 1", least=0, most=1)
    as_taps("logits", logits)
    soft = Term(
        logits,
        divergence=ops.ForwardKL(),
        temperature=temperature,
        temperature_rule="squared",
        scale=weight,
        name="distillation",
    )
    return [soft, *task(logits, 1 - weight)]


@recipe(
    id="quantized-distillation",
    source=_SOURCE,
    equation="w <- w - r dL(Q(w))/dQ, L = a T^2 KL(softmax(t/T) || softmax(s/T)) + (1 - a) CE(s, y); Q(w) is exported",
    deviations=[
        _KL,
        "Biases and normalisations stay in full precision, and so are counted in the file's size.",
    ],
    optimisers={"student": {"lr": 0.05, "momentum": 0.9}},
    engine="knowledge",
)
def quantized_distillation(
    student: nn.Module,
    teacher: nn.Module,
    form: Quantised = Quantised(bits=2),  # noqa: B008  # frozen
    temperature: float = 4.0,
    weight: float = 0.7,
    logits: AnyTap = LOGITS,
) -> Objective:
    """Full-precision weights learn from the teacher through their rounded values.

    Afterwards ``form.materialise(student)`` is the plain network, and ``form.export(student, path)`` its file.

    Args:
        student: The network to train; the form is put on it.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        form: Bits, buckets and rounding.
        temperature: T of both sides.
        weight: a, from 0 to 1; with 1 no labels are needed.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student".

    Raises:
        ArgumentError: A value that is not allowed, or a student that already has such a form.
    """
    terms = _terms(weight, temperature, logits)
    if not isinstance(form, Quantised):
        raise argument_error("form", type(form).__name__, "forms.Quantised(...)")
    check_instance("student", student, nn.Module, "a torch.nn.Module that is a network")
    source = answering(teacher)
    form.apply(student)
    return Objective(student, source, terms)


@recipe(
    id="differentiable-quantization",
    source=_SOURCE,
    equation="p_j <- p_j - r sum over i with j(i) = j of scale_i dL/dQ(w)_i, L as of the other recipe; w is fixed",
    deviations=[
        _KL,
        "Every parameter but the levels is fixed; biases and normalisations stay as trained, in full precision.",
        "Bits by gradients (forms.gradient_bits) are our rule: the next bit where it removes most first-order error.",
    ],
    optimisers={"student": {"lr": 0.001}},
    engine="knowledge",
)
def differentiable_quantization(
    student: nn.Module,
    teacher: nn.Module,
    form: LearnedLevels = LearnedLevels(bits=2),  # noqa: B008  # frozen
    temperature: float = 4.0,
    weight: float = 0.7,
    logits: AnyTap = LOGITS,
) -> Objective:
    """The positions of the levels learn from the teacher; the weights are those of a trained student.

    Afterwards ``form.materialise(student)`` is the plain network, and ``form.export(student, path)`` its file. The
    paper trains the positions by plain gradient descent.

    Args:
        student: The trained network; the form is put on it.
        teacher: The trained one; it is frozen, unless it is a :class:`~distillrs.knowledge.Teacher`.
        form: Bits, also by layer, and buckets.
        temperature: T of both sides.
        weight: a, from 0 to 1; with 1 no labels are needed.
        logits: Where the logits are, on both sides.

    Returns:
        The objective; its group is "student": the levels, and biases, which get no gradient.

    Raises:
        ArgumentError: A value that is not allowed, or a student that already has such a form.
    """
    terms = _terms(weight, temperature, logits)
    if not isinstance(form, LearnedLevels):
        raise argument_error("form", type(form).__name__, "forms.LearnedLevels(...)")
    check_instance("student", student, nn.Module, "a torch.nn.Module that is a network")
    source = answering(teacher)
    form.apply(student)
    return Objective(student, source, stages=[Stage(terms, trainable=("*.levels",), name="levels")])
