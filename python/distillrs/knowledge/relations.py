"""Alignments that compare relations inside each side, so that widths may differ and nothing is trained."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from distillrs.checks import check_choice
from distillrs.errors import argument_error
from distillrs.knowledge.inputs import IGNORED
from distillrs.knowledge.numerics import is_number, products, unit, wide
from distillrs.knowledge.targets import check_labels


class AttentionMap:
    """Where a convolutional network looks: ``sum_c |A_c|^p`` over the places, each map brought to length 1.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017.

    Args:
        p: The power, from 1: below it the slope at an activation of 0 is infinite.

    Raises:
        ArgumentError: Another power.
    """

    def __init__(self, p: float = 2.0) -> None:
        if not (is_number(p) and p >= 1):
            raise argument_error("p", p, "a number from 1")
        self.p = p

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, C, H, W]`` to ``[B, H W]`` on both sides; sizes must agree (:class:`Pooled` before it)."""
        return self._map("student", student), self._map("teacher", teacher)

    def _map(self, name: str, maps: Tensor) -> Tensor:
        if maps.ndim < 3:
            raise argument_error(name, f"shape {tuple(maps.shape)}", "maps [B, C, ...]")
        return unit(wide(maps).abs().pow(float(self.p)).mean(1).flatten(1))


class Gram:
    """Inner products between the tokens, channels or examples of each side.

    ``of="examples"``: ``[B, ...]`` to ``[B, B]``; "tokens": ``[..., L, D]`` to ``[..., L, L]``; "channels":
    ``[B, C, ...]`` to ``[B, C, C]``.

    Args:
        of: What is related to what.
        normalise: "vectors": of each one the direction alone, so the products are cosines; "rows": each row of the
            products is brought to length 1 (Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019);
            "size": divided by the length of the vectors, as in style transfer; "none".
    """

    def __init__(
        self,
        of: Literal["examples", "tokens", "channels"],
        normalise: Literal["vectors", "rows", "size", "none"] = "vectors",
    ) -> None:
        check_choice("of", of, ("examples", "tokens", "channels"))
        check_choice("normalise", normalise, ("vectors", "rows", "size", "none"))
        self.of = of
        self.normalise = normalise

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The products of both sides."""
        return self._products("student", student), self._products("teacher", teacher)

    def _products(self, name: str, features: Tensor) -> Tensor:
        if features.ndim < (2 if self.of == "examples" else 3 if self.of == "channels" else 2):
            raise argument_error(name, f"shape {tuple(features.shape)}", f"features of {self.of}")
        vectors = wide(features)
        if self.of == "examples":
            vectors = vectors.flatten(1)
        elif self.of == "channels":
            vectors = vectors.flatten(2)
        if self.normalise == "vectors":
            vectors = unit(vectors)
        gram = products(vectors, vectors.mT)
        if self.normalise == "rows":
            return unit(gram)
        return gram / vectors.shape[-1] if self.normalise == "size" else gram


class ClassGradients:
    """How the classes share channels in the gradient of a linear classifier, whatever its width.

    The mean cross-entropy has the gradient ``A = mean_b (softmax(z_b) - onehot(y_b)) h_b^T`` [classes, channels] by the
    weight of ``z = W h + c``: for each class a map of the channels that would help it. A A^T relates the classes; its
    rows are brought to length 1. It is formed from logits and features, so it is itself differentiable. Source: Dong
    et al., DisWOT, CVPR 2023, which relates the channels of each class: of one row alone, so only signs are left, and
    only equal widths can be compared.
    """

    def __call__(
        self, student: tuple[Tensor, Tensor, Tensor], teacher: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits ``[B, C]``, what goes into the classifier ``[B, D]`` and labels int64 ``[B]``, to ``[C, C]``."""
        return self._relations("student", student), self._relations("teacher", teacher)

    @staticmethod
    def _relations(name: str, tensors: Any) -> Tensor:
        if not isinstance(tensors, tuple) or len(tensors) != 3:
            got = f"{len(tensors)} tensors" if isinstance(tensors, tuple) else "one tensor"
            raise argument_error(name, got, "taps of logits, of the classifier's input, and Entry('labels')")
        logits, features, labels = tensors
        if logits.ndim != 2 or features.ndim != 2 or len(features) != len(logits):
            got = f"shapes {tuple(logits.shape)} and {tuple(features.shape)}"
            raise argument_error(name, got, "logits [batch, classes] and features [batch, channels]")
        check_labels(labels, logits)
        found, there = wide(logits), (labels != IGNORED)[:, None]
        onehot = torch.zeros_like(found).scatter(1, labels.clamp(min=0)[:, None], 1.0)
        errors = torch.where(there, found.softmax(1) - onehot, 0.0) / there.sum().clamp(min=1)
        gradient = products(errors.T, wide(features).to(errors.dtype))
        return unit(products(gradient, gradient.T))


class HeadRelations:
    """Scaled products between tokens within re-split heads, as logits of a distribution for each token.

    Of every tensor A ``[B, L, D]`` (queries, keys, values) the relation of head r is ``softmax(A_r A_r^T / sqrt(D /
    heads))``; the softmax is the row divergence's. Only the number of heads must agree. Source: Wang et al., MiniLMv2,
    2021. Padding takes part in the softmax as any token does; a row mask leaves out its rows alone.

    Args:
        heads: Relation heads, which divide both widths.
    """

    def __init__(self, heads: int) -> None:
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1:
            raise argument_error("heads", heads, "a positive integer")
        self.heads = heads

    def __call__(
        self, student: Tensor | tuple[Tensor, ...], teacher: Tensor | tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """``[B, L, D]``, or several, to ``[B, L, tensors, heads, L]``: tokens first, so that masks of tokens fit."""
        return self._scores("student", student), self._scores("teacher", teacher)

    def _scores(self, name: str, tensors: Tensor | tuple[Tensor, ...]) -> Tensor:
        found = []
        for each in tensors if isinstance(tensors, tuple) else (tensors,):
            if each.ndim != 3 or each.shape[-1] % self.heads:
                allowed = f"[batch, tokens, width] with a width that {self.heads} heads divide"
                raise argument_error(name, f"shape {tuple(each.shape)}", allowed)
            split = wide(each).reshape(*each.shape[:2], self.heads, -1).transpose(1, 2)
            found.append(products(split, split.mT) / math.sqrt(split.shape[-1]))
        return torch.stack(found, 1).permute(0, 3, 1, 2, 4)


class PairDistances:
    """Distances between the examples of a batch, each side's divided by its mean over different examples: [B, B].

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019.
    """

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, ...]`` to ``[B, B]`` on both sides."""
        return self._distances(student), self._distances(teacher)

    @staticmethod
    def _distances(features: Tensor) -> Tensor:
        flat = wide(features).flatten(1)
        # From differences, not from products: near examples would lose their digits, and the root has no slope at 0.
        squares = (flat[:, None] - flat[None]).square().sum(-1)
        apart = squares > 0
        distances = torch.where(apart, squares.where(apart, 1.0).sqrt(), 0.0)
        return distances / (distances.sum() / apart.sum().clamp(min=1)).clamp(min=torch.finfo(flat.dtype).tiny)


class TripletAngles:
    """Cosines of the angles that each two examples span at a third.

    Source: Park et al., Relational Knowledge Distillation, CVPR 2019.
    """

    def __call__(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, ...]`` to ``[B, B B]`` on both sides, a row for each vertex i."""
        return self._angles(student), self._angles(teacher)

    @staticmethod
    def _angles(features: Tensor) -> Tensor:
        flat = wide(features).flatten(1)
        edges = unit(flat[None] - flat[:, None])
        return products(edges, edges.mT).flatten(1)
