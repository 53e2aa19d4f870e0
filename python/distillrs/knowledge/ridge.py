"""Kernel ridge regression that is fitted to its own predictions, all generations by one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distillrs.checks import check_instance, check_whole, numbers
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import is_number
from distillrs.knowledge.targets import optimal_weight


@dataclass(frozen=True, slots=True, eq=False)
class RidgeGenerations:
    """Generations of kernel ridge regression, each fitted to a mix of the truth and the one before.

    Generation 1 is fitted to the truth y, generation k + 1 to ``share y + (1 - share) f_k``. Every fit is the same
    linear map ``A = K (K + penalty)^-1``, which has the eigenvectors of the kernel K and eigenvalues
    ``a = d / (d + penalty)`` for its d, so along each of them a generation is y times a gain g::

        g_1 = a,      g_{k+1} = a (share + (1 - share) g_k)

    With one share for all, ``g_k = g + ((1 - share) a)^k (1 - g)`` with the limit ``g = d / (d + penalty / share)``:
    ridge regression of a larger penalty. A share of 0 goes to 0. Source: Mobahi et al., Self-Distillation Amplifies
    Regularization in Hilbert Space, NeurIPS 2020; Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021.

    Attributes:
        values: Eigenvalues of the kernel, ``[n]``, float64.
        vectors: Its eigenvectors, ``[n, n]``.
        targets: y in their basis, ``[n, outputs]``.
        penalty: Of the squared norm of the function beside the sum of squared errors.
    """

    values: Tensor
    vectors: Tensor
    targets: Tensor
    penalty: float

    @staticmethod
    def of(kernel: Tensor, targets: Tensor, penalty: float) -> RidgeGenerations:
        """Decomposes the kernel.

        Args:
            kernel: ``[n, n]``, symmetric and positive semi-definite.
            targets: y, ``[n]`` or ``[n, outputs]``.
            penalty: Above 0.

        Raises:
            ArgumentError: Shapes that do not fit, a kernel that is not symmetric or has a negative eigenvalue beyond
                rounding, or a penalty that is not positive.
        """
        for name, value in (("kernel", kernel), ("targets", targets)):
            check_instance(name, value, Tensor, "a tensor")
        if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
            raise argument_error("kernel", f"shape {tuple(kernel.shape)}", "[n, n]")
        if targets.ndim not in (1, 2) or len(targets) != len(kernel):
            raise argument_error("targets", f"shape {tuple(targets.shape)}", f"[{len(kernel)}] or with outputs")
        if not (is_number(penalty) and penalty > 0):
            raise argument_error("penalty", penalty, "a number above 0")
        wide = kernel.detach().double()
        scale = float(wide.abs().max())
        if not torch.isfinite(wide).all() or float((wide - wide.T).abs().max()) > 1e-6 * scale:
            raise argument_error("kernel", "one that is not symmetric or not finite", "a symmetric matrix")
        values, vectors = torch.linalg.eigh((wide + wide.T) / 2)
        if float(values[0]) < -1e-6 * scale * len(kernel):
            raise argument_error("kernel", f"an eigenvalue of {float(values[0]):g}", "a positive semi-definite matrix")
        y = targets.detach().double()
        return RidgeGenerations(
            values.clamp(min=0), vectors, vectors.T @ (y[:, None] if y.ndim == 1 else y), float(penalty)
        )

    @property
    def shrinkage(self) -> Tensor:
        """a, ``[n]``."""
        return self.values / (self.values + self.penalty)

    def gains(self, shares: Sequence[float] = ()) -> Tensor:
        """The gain of each eigenvector after ``1 + len(shares)`` generations, ``[n]``.

        Args:
            shares: Of the truth, for each generation after the first.

        Raises:
            ArgumentError: A share outside of 0 to 1.
        """
        gain = self.shrinkage
        for share in numbers("shares", shares):
            gain = self.shrinkage * (_checked(share) + (1 - share) * gain)
        return gain

    def gains_at(self, generation: int, share: float) -> Tensor:
        """The closed form of :meth:`gains` for one share, ``[n]``.

        Args:
            generation: From 1.
            share: Of the truth in every generation after the first.

        Raises:
            ArgumentError: Another generation, or a share outside of 0 to 1.
        """
        check_whole("generation", generation, "an integer from 1", least=1, most=2**53)
        limit = self.limit(share)
        return limit + ((1 - share) * self.shrinkage) ** generation * (1 - limit)

    def limit(self, share: float) -> Tensor:
        """The gains of endless generations, ``[n]``: ``share d / (share d + penalty)``.

        Args:
            share: Of the truth in every generation after the first.

        Raises:
            ArgumentError: A share outside of 0 to 1.
        """
        share = _checked(share)
        return share * self.values / (share * self.values + self.penalty)

    def fitted(self, gains: Tensor) -> Tensor:
        """Predictions at the points of the fit, ``[n, outputs]``.

        Args:
            gains: ``[n]``.
        """
        return self.vectors @ (gains[:, None] * self.targets)

    def refitted(self, kernel: Tensor, target_gains: Tensor) -> Tensor:
        """Predictions at other points of what is fitted to targets on the points of the fit, ``[m, outputs]``.

        Args:
            kernel: Between the other points and those of the fit, ``[m, n]``.
            target_gains: Of the targets: 1 for the truth, a generation's gains for what that predicts.

        Raises:
            ArgumentError: A kernel of other points.
        """
        check_instance("kernel", kernel, Tensor, "a tensor")
        if kernel.ndim != 2 or kernel.shape[1] != len(self.values):
            raise argument_error("kernel", f"shape {tuple(kernel.shape)}", f"[points, {len(self.values)}]")
        weights = target_gains[:, None] * self.targets / (self.values + self.penalty)[:, None]
        return kernel.double() @ (self.vectors @ weights)

    def predict(self, kernel: Tensor, shares: Sequence[float] = ()) -> Tensor:
        """Predictions of generation ``1 + len(shares)`` at other points, ``[m, outputs]``.

        Args:
            kernel: Between the other points and those of the fit, ``[m, n]``.
            shares: As of :meth:`gains`.
        """
        given = numbers("shares", shares)
        if not given:
            return self.refitted(kernel, torch.ones_like(self.values))
        share = _checked(given[-1])
        return self.refitted(kernel, share + (1 - share) * self.gains(given[:-1]))

    def choose(self, kernel: Tensor, truth: Tensor, generations: int) -> list[float]:
        """The best share for each generation after the first, by :func:`optimal_weight` on validation data.

        Args:
            kernel: Between the validation points and those of the fit, ``[m, n]``.
            truth: ``[m]`` or ``[m, outputs]``.
            generations: In all, from 1.

        Returns:
            ``generations - 1`` shares of the truth.

        Raises:
            ArgumentError: A truth that does not fit the kernel, or no generation.
        """
        check_whole("generations", generations, "an integer from 1 to 2**16", least=1, most=2**16)
        for name, value in (("kernel", kernel), ("truth", truth)):
            check_instance(name, value, Tensor, "a tensor")
        if truth.ndim not in (1, 2) or len(truth) != len(kernel) or truth[:1].numel() != self.targets.shape[1]:
            got, allowed = f"shape {tuple(truth.shape)}", f"[{len(kernel)}, {self.targets.shape[1]}]"
            raise argument_error("truth", got, allowed)
        y = truth.double().reshape(len(truth), -1)
        first = self.predict(kernel)
        shares: list[float] = []
        for _ in range(generations - 1):
            shares.append(optimal_weight(y, first, self.refitted(kernel, self.gains(shares))))
        return shares


def _checked(share: float) -> float:
    if not (is_number(share) and 0 <= share <= 1):
        raise argument_error("share", share, "a number from 0 to 1")
    return share
