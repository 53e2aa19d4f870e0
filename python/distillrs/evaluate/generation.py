"""How near generated samples are to real ones: exact, on raw features.

Features are the rows themselves, or what the caller computed; they must not be those that a loss used. The Frechet
distance alone cannot tell a good map from a good generator; :func:`paired_rmse` can, where both sides had the same
noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distillrs.errors import argument_error
from distillrs.select import nearest

# Rows of a tile of distances: 2^22 doubles at a time.
_TILE = 2**22


class Neighbourhoods(NamedTuple):
    """Shares of samples in the neighbourhoods of the others; see :func:`neighbourhood_scores`.

    Attributes:
        precision: Share of the generated samples within the manifold of the real ones.
        recall: Share of the real samples within the manifold of the generated ones.
        density: Real neighbourhoods per generated sample, over ``k``; may exceed 1.
        coverage: Share of the real samples whose neighbourhood holds a generated one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def paired_rmse(samples: Tensor, reference: Tensor) -> float:
    """``sqrt(mean (samples - reference)^2)`` over all elements, where row ``i`` of both began with the same noise.

    Args:
        samples: ``[n, ...]``.
        reference: Of the same shape.

    Raises:
        ArgumentError: For shapes that differ, or no element.
    """
    if samples.shape != reference.shape or not samples.numel():
        raise argument_error("samples", f"shape {tuple(samples.shape)}", f"that of reference, {tuple(reference.shape)}")
    return float((samples.double() - reference.double()).square().mean().sqrt())


def frechet_distance(samples: Tensor, real: Tensor) -> float:
    """``|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2))`` of means and covariances (with n - 1).

    Dowson and Landau (1982); Heusel et al., "GANs trained by a two time-scale update rule" (2017), on features.

    Args:
        samples: ``[n, d...]``, two or more rows.
        real: ``[m, d...]``, likewise.

    Raises:
        ArgumentError: For rows of different size, fewer than two, or values that are not finite.
    """
    x, y = _features(samples, real, least=2)
    apart = (x.mean(0) - y.mean(0)).square().sum()
    if x.shape[1] > min(len(x), len(y)):
        return max(float(apart + _spread_of_few(x - x.mean(0), y - y.mean(0))), 0.0)
    first, second = torch.cov(x.T).reshape(x.shape[1], -1), torch.cov(y.T).reshape(x.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # tr (C C')^(1/2) by the symmetric matrix with the same eigenvalues.
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return max(float(apart + first.trace() + second.trace() - 2 * cross), 0.0)


def _spread_of_few(x: Tensor, y: Tensor) -> Tensor:
    """``tr(C + C' - 2 (C C')^(1/2))`` of centred rows that are fewer than their features.

    With ``C = X'X / (n - 1)`` the eigenvalues of ``C C'`` are the squared singular values of ``X Y'``, up to those
    factors: rows by rows, where the covariances would be features by features.
    """
    n, m = len(x) - 1, len(y) - 1
    cross = torch.linalg.svdvals(x @ y.T).sum() / math.sqrt(n * m)
    spread: Tensor = x.square().sum() / n + y.square().sum() / m - 2 * cross
    return spread


def neighbourhood_scores(samples: Tensor, real: Tensor, k: int = 5) -> Neighbourhoods:
    """Precision and recall, density and coverage, from the balls to each point's k-th neighbour of its own side.

    Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models" (2019); Naeem et al.,
    "Reliable fidelity and diversity metrics for generative models" (2020). A point on the edge of a ball is within; a
    point is not its own neighbour.

    Args:
        samples: ``[n, d...]``, more than ``k`` rows.
        real: ``[m, d...]``, likewise.
        k: Which neighbour.

    Raises:
        ArgumentError: For rows of different size, a ``k`` out of range, or values that are not finite.
    """
    x, y = _features(samples, real, least=2)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k < min(len(x), len(y)):
        raise argument_error("k", k, f"a number from 1 to {min(len(x), len(y)) - 1}, one less than the rows")
    of_samples, of_real = _radii(x, k), _radii(y, k)
    within_real = torch.zeros(len(x), dtype=torch.int64)
    recalled, covered = (torch.zeros(len(y), dtype=torch.bool) for _ in range(2))
    for rows, distances in _tiles(x, y):
        near = distances <= of_real
        within_real[rows] = near.sum(1)
        covered |= near.any(0)
        recalled |= (distances <= of_samples[rows, None]).any(0)
    return Neighbourhoods(
        float((within_real > 0).double().mean()),
        float(recalled.double().mean()),
        float(within_real.double().mean() / k),
        float(covered.double().mean()),
    )


def maximum_mean_discrepancy(
    samples: Tensor, real: Tensor, bandwidths: Sequence[float], *, unbiased: bool = True
) -> float:
    """The squared discrepancy under ``k(a, b) = sum_h exp(-|a - b|^2 / (2 h^2))``.

    Gretton et al., "A kernel two-sample test" (2012). Unbiased, a pair of a row with itself does not count, and the
    result may be below 0.

    Args:
        samples: ``[n, d...]``, two or more rows.
        real: ``[m, d...]``, likewise.
        bandwidths: ``h``, in units of the features.
        unbiased: Whether rows are left out of their own mean.

    Raises:
        ArgumentError: For rows of different size, fewer than two, bandwidths that are not positive, or values that are
            not finite.
    """
    if not bandwidths or not all(math.isfinite(width) and width > 0 for width in bandwidths):
        raise argument_error("bandwidths", tuple(bandwidths), "one or more positive numbers")
    x, y = _features(samples, real, least=2)

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        total = 0.0
        for _, distances in _tiles(a, b):
            total += sum(float(torch.exp(-distances.square() / (2 * width**2)).sum()) for width in bandwidths)
        if same and unbiased:
            return (total - len(a) * len(bandwidths)) / (len(a) * (len(a) - 1))
        return total / (len(a) * len(b))

    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def class_histogram(samples: Tensor, real: Tensor, labels: Tensor) -> Tensor:
    """Shares of the classes among the samples, each counted for the class of the nearest real example.

    Args:
        samples: ``[n, d...]``, one or more rows.
        real: ``[m, d...]``.
        labels: int64 ``[m]``, from 0.

    Returns:
        float64 ``[classes]``, with sum 1.

    Raises:
        ArgumentError: For rows of different size, labels of another length, or values that are not finite.
    """
    x, y = _features(samples, real, least=1)
    if tuple(labels.shape) != (len(y),) or labels.dtype != torch.int64 or int(labels.min()) < 0:
        raise argument_error("labels", f"shape {tuple(labels.shape)} of {labels.dtype}", f"int64 [{len(y)}] from 0")
    found = labels.cpu()[nearest(x, y, 1).ids[:, 0]]
    return torch.bincount(found, minlength=int(labels.max()) + 1).double() / len(x)


def total_variation(first: Tensor, second: Tensor) -> float:
    """``sum |p - q| / 2`` of two histograms of one length: from 0 to 1."""
    if first.shape != second.shape:
        raise argument_error("first", f"shape {tuple(first.shape)}", f"that of second, {tuple(second.shape)}")
    return float((first.double() - second.double()).abs().sum() / 2)


def _features(samples: Tensor, real: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if samples.shape[1:] != real.shape[1:]:
        allowed = f"rows of the shape of the real ones, {tuple(real.shape[1:])}"
        raise argument_error("samples", f"rows of shape {tuple(samples.shape[1:])}", allowed)
    found = []
    for name, values in (("samples", samples), ("real", real)):
        if values.dim() < 1 or len(values) < least or not values.is_floating_point():
            got = f"shape {tuple(values.shape)} of {values.dtype}"
            raise argument_error(name, got, f"{least} or more floating-point rows")
        rows = values.detach().cpu().double().reshape(len(values), -1)
        if not bool(rows.isfinite().all()):
            raise argument_error(name, "values that are not finite", "finite values")
        found.append(rows)
    return found[0], found[1]


def _tiles(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    height = max(_TILE // max(len(y), 1), 1)
    for start in range(0, len(x), height):
        rows = slice(start, min(start + height, len(x)))
        # Not by a product of matrices: squares cancel between near neighbours, which are what is asked for.
        yield rows, torch.cdist(x[rows], y, compute_mode="donot_use_mm_for_euclid_dist")


def _radii(points: Tensor, k: int) -> Tensor:
    found = torch.empty(len(points), dtype=torch.float64)
    for rows, distances in _tiles(points, points):
        distances[torch.arange(rows.stop - rows.start), torch.arange(rows.start, rows.stop)] = math.inf
        found[rows] = distances.kthvalue(k, dim=1).values
    return found
