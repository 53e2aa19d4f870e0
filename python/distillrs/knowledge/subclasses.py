"""Sub-classes: students with several logits for each class, and teachers whose classes are split.

Sub-class s of class c has the index ``c S + s`` everywhere, with S sub-classes for each class.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs.checks import check_instance, check_number, check_size
from distillrs.errors import argument_error
from distillrs.knowledge.alignments import Side
from distillrs.knowledge.numerics import products, wide

_ALLOWED = "the teacher's logits and its features: teacher=(Output('logits'), 'path of the layer before the head')"


def class_log_probs(logits: Tensor, per_class: int) -> Tensor:
    """Log-probabilities of classes from logits of their sub-classes: each class has what its sub-classes have together.

    ``log p_c = log sum_s exp(z_cs) - log sum_c' sum_s exp(z_c's)``. Setting: Mueller, Kornblith and Hinton, Subclass
    Distillation, 2020.

    Args:
        logits: ``[..., classes * per_class]``.
        per_class: S, sub-classes of each class.

    Returns:
        ``[..., classes]`` in float32, or float64 if they come so.

    Raises:
        ArgumentError: No logits, or a number of them that S does not divide.
    """
    check_size("per_class", per_class, "a positive number of sub-classes")
    check_instance("logits", logits, Tensor, "a tensor of logits")
    count = logits.shape[-1] if logits.ndim else 0
    if not logits.is_floating_point() or not count or count % per_class:
        got = f"{logits.dtype} of shape {tuple(logits.shape)}"
        raise argument_error("logits", got, f"floating [..., classes * {per_class}]")
    grouped = wide(logits).reshape(*logits.shape[:-1], count // per_class, per_class)
    return grouped.logsumexp(-1).log_softmax(-1)


class SubClasses:
    """The student's sub-classes added up to the teacher's classes, by :func:`class_log_probs`; an alignment.

    The term's temperature is that of the classes: it divides their log-probabilities. For a term without a teacher
    (``target=Labels()``) the same comes from a function tap: ``lambda run: class_log_probs(run.output, S)``.

    Args:
        per_class: S, the student's sub-classes of each class.

    Raises:
        ArgumentError: No positive number.
    """

    def __init__(self, per_class: int) -> None:
        check_size("per_class", per_class, "a positive number of sub-classes")
        self.per_class = per_class

    def __call__(self, student: Tensor, teacher: Side) -> tuple[Tensor, Side]:
        """``[..., classes]`` of the student, and the teacher's side as it is.

        Raises:
            ArgumentError: A student's side that is no tensor of sub-classes.
        """
        check_instance("student", student, Tensor, "logits [..., classes * per_class]")
        if not student.ndim or student.shape[-1] % self.per_class:
            got = f"shape {tuple(student.shape)}"
            raise argument_error("student", got, f"logits [..., classes * {self.per_class}]")
        return class_log_probs(student, self.per_class), teacher


class SubClassSplit(nn.Module):
    """Splits a teacher's classes by linear projections of its features; an alignment to sub-classes of the student.

    Few classes say little of an example; how a class varies inside says more. The teacher's side is a pair (logits,
    features), the student has ``classes * S`` logits, and the target is

        log P(c, s) = log p_c + log softmax_s(u_cs),   u_c = (z_c1, ..., z_cd, -z_c1, ..., -z_cd) / sharpness,

    with S = 2 d. The z_c are projections of the features, less their mean in class c, on the d leading principal
    directions of class c, of unit deviation there, after what the head reads of the features is taken out. Sums over
    the sub-classes of a class are p_c. Source: Loo and others, Linear Projections of Teacher Embeddings for Few-Class
    Distillation, 2024; the softmax over both signs of a projection is our form of its split. :meth:`fit` makes it; the
    projections are saved with the objective and not trained.

    Args:
        directions: ``[classes, d, width]``, already divided by the deviations.
        centres: ``[classes, d]``: the projections of the classes' means.
        sharpness: What the projections are divided by, above 0: the smaller, the harder the split.

    Raises:
        ArgumentError: Values that do not fit each other.
    """

    directions: Tensor
    centres: Tensor

    def __init__(self, directions: Tensor, centres: Tensor, sharpness: float = 1.0) -> None:
        super().__init__()
        for name, value, axes in (("directions", directions, 3), ("centres", centres, 2)):
            check_instance(name, value, Tensor, f"a floating tensor of {axes} axes")
            if value.ndim != axes or not value.is_floating_point() or not bool(value.isfinite().all()):
                got = f"{value.dtype} of shape {tuple(value.shape)}"
                raise argument_error(name, got, f"finite floating numbers of {axes} axes")
        if directions.shape[:2] != centres.shape:
            raise argument_error("centres", f"shape {tuple(centres.shape)}", f"{tuple(directions.shape[:2])}")
        check_number("sharpness", sharpness, "a number above 0", above=0)
        self.sharpness = float(sharpness)
        self.register_buffer("directions", directions.detach().clone())
        self.register_buffer("centres", centres.detach().clone())

    @property
    def per_class(self) -> int:
        """S: sub-classes of each class."""
        return 2 * self.centres.shape[1]

    @staticmethod
    @torch.no_grad()
    def fit(
        features: Tensor, labels: Tensor, weight: Tensor, per_class: int = 2, sharpness: float = 1.0
    ) -> SubClassSplit:
        """The split of a teacher, in closed form: two decompositions of ``width`` by ``width``, in float64.

        Args:
            features: ``[examples, width]``, what the teacher's head reads.
            labels: int64 ``[examples]``; each class has more than ``per_class / 2`` examples.
            weight: ``[classes, width]``, of the teacher's head.
            per_class: S, an even number; ``S / 2`` directions for each class.
            sharpness: See the class.

        Returns:
            The split, in the features' type and on their device.

        Raises:
            ArgumentError: Values that do not fit each other, or a class that varies in fewer directions.
        """
        rows = _checked_rows(features, labels, weight)
        check_size("per_class", per_class, "an even number of sub-classes", least=2)
        if per_class % 2:
            raise argument_error("per_class", per_class, "an even number of sub-classes: both signs of a projection")
        count = per_class // 2
        head = weight.detach().to(rows)
        _, sizes, read = torch.linalg.svd(head, full_matrices=False)
        read = read[sizes > sizes.amax() * max(head.shape) * torch.finfo(sizes.dtype).eps]
        directions, centres = [], []
        for label in range(len(head)):
            own = rows[labels == label]
            mean = own.mean(0) if len(own) else own.sum(0)
            unread = own - mean
            unread = unread - products(products(unread, read.mT), read)
            values, vectors = torch.linalg.eigh(products(unread.mT, unread) / max(len(own), 1))
            values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count].mT
            least = 1e-10 * float(own.square().sum(1).mean()) if len(own) else 0.0
            varied = int((values > least).sum())
            if varied < count:
                got = f"class {label} with {len(own)} examples, which vary in {varied} directions that no class reads"
                raise argument_error("features", got, f"at least {count} for per_class={per_class}")
            # Which sign comes first is chance in the decomposition.
            largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
            scaled = vectors * largest.sign() / values.sqrt()[:, None]
            directions.append(scaled)
            centres.append(products(scaled, mean[:, None])[:, 0])
        return SubClassSplit(torch.stack(directions).to(features), torch.stack(centres).to(features), sharpness)

    def log_probs(self, logits: Tensor, features: Tensor) -> Tensor:
        """The target of both.

        Args:
            logits: ``[..., classes]``.
            features: ``[..., width]``, of the same rows.

        Returns:
            ``[..., classes * S]``; a class that the logits exclude is excluded in all its sub-classes.

        Raises:
            ArgumentError: Sides that do not fit the split or each other.
        """
        classes, _, width = self.directions.shape
        for name, side, size in (("logits", logits, classes), ("features", features, width)):
            check_instance(name, side, Tensor, f"a tensor [..., {size}]")
            if not side.ndim or side.shape[-1] != size or side.shape[:-1] != logits.shape[:-1]:
                got = f"shape {tuple(side.shape)} beside logits of shape {tuple(logits.shape)}"
                raise argument_error(name, got, f"[..., {size}], the same rows")
        rows = wide(features)
        flat = self.directions.to(rows).flatten(0, 1)
        scores = products(rows, flat.mT).reshape(*rows.shape[:-1], *self.centres.shape) - self.centres.to(rows)
        split = torch.cat([scores, -scores], -1) / self.sharpness
        own = wide(logits).log_softmax(-1)[..., None]
        return (own + functional.log_softmax(split, -1).to(own)).flatten(-2)

    def forward(self, student: Tensor, teacher: Any) -> tuple[Tensor, Tensor]:
        """The student's logits as they are, the teacher's pair as the target.

        Raises:
            ArgumentError: A teacher's side that is no pair, or a student without as many logits.
        """
        if not isinstance(teacher, tuple) or len(teacher) != 2:
            raise argument_error("teacher", type(teacher).__name__, _ALLOWED)
        found = self.log_probs(*teacher)
        check_instance("student", student, Tensor, f"logits [..., {found.shape[-1]}]")
        if student.shape != found.shape:
            got = f"shape {tuple(student.shape)}"
            raise argument_error("student", got, f"{tuple(found.shape)}: {self.per_class} logits for each class")
        return student, found

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{len(self.centres)} classes of {self.per_class}, sharpness={self.sharpness:g}"


def _checked_rows(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    for name, value in (("features", features), ("labels", labels), ("weight", weight)):
        check_instance(name, value, Tensor, "a tensor")
    if features.ndim != 2 or not features.is_floating_point() or not bool(features.isfinite().all()):
        got = f"{features.dtype} of shape {tuple(features.shape)}"
        raise argument_error("features", got, "finite floating numbers [examples, width]")
    if weight.ndim != 2 or weight.shape[1] != features.shape[1] or not weight.is_floating_point():
        got = f"{weight.dtype} of shape {tuple(weight.shape)}"
        raise argument_error("weight", got, f"floating [classes, {features.shape[1]}]")
    if not bool(weight.isfinite().all()) or not len(weight):
        raise argument_error("weight", "none, infinities or NaN", "finite numbers of at least one class")
    if labels.dtype != torch.int64 or labels.shape != features.shape[:1]:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise argument_error("labels", got, f"int64 [{len(features)}]")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(weight):
        got = f"{int(labels.min())} to {int(labels.max())}"
        raise argument_error("labels", got, f"classes from 0 to {len(weight) - 1}")
    return features.detach().double()
