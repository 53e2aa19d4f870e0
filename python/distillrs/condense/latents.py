"""Latents that say little of an attribute: an autoencoder that learns them, a smaller encoder, and new examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_choice, check_floating, check_instance, check_number, check_turn, check_whole
from distillrs.condense.signals import wide
from distillrs.errors import argument_error
from distillrs.frozen import Frozen, evaluating
from distillrs.random import Units
from distillrs.step import Loss, Step

Reconstruction = Callable[[Tensor, Tensor], Tensor]
_TEACHER, _STUDENT = "teacher", "student"


def distance_covariance(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance covariance of two paired samples: 0 in the limit if, and only if, they are independent.

    ``mean_ij A_ij B_ij`` with A and B the matrices of Euclidean distances within x and within y, of which the means of
    rows and of columns are taken away and that of all is added (Szekely, Rizzo and Bakirov, "Measuring and testing
    dependence by correlation of distances", Annals of Statistics 2007). Both matrices are held.

    Args:
        x: [n, ...], with its graph; where points coincide, the distance's slope is taken as 0.
        y: [n, ...] or [n]; classes as they are, or one-hot where their order means nothing.

    Returns:
        Scalar in 32 bits at least, not negative but for rounding.

    Raises:
        ArgumentError: Samples that are not paired.
    """
    for name, value in (("x", x), ("y", y)):
        check_instance(name, value, Tensor, "a tensor [n, ...]")
    if not x.ndim or not len(x) or not y.ndim or len(x) != len(y):
        raise argument_error("y", tuple(y.shape), f"as many rows as x, {len(x) if x.ndim else 0}, at least 1")
    return (_centred(x) * _centred(y.to(x))).mean()


def _centred(points: Tensor) -> Tensor:
    # Means of many distances leave the precision of 16 bits.
    flat = wide(points.reshape(len(points), -1))
    squares = (flat[:, None] - flat[None]).square().sum(2)
    # The root has no slope at 0, where the diagonal always is.
    apart = squares > 0
    distances = torch.where(apart, torch.where(apart, squares, torch.ones_like(squares)).sqrt(), 0.0)
    return distances - distances.mean(0) - distances.mean(1, keepdim=True) + distances.mean()


class GaussianCode(nn.Module):
    """A diagonal normal distribution over latents for each example.

    Args:
        body: From examples to [n, 2 k]: means, then logarithms of variances.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        check_instance("body", body, nn.Module, "a module from examples to [n, 2 k]")
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of variances, [n, k] each, of examples [n, ...].

        Raises:
            ArgumentError: The body gives something else.
        """
        found = self.body(x)
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] % 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise argument_error("body", f"an output {got}", "[n, 2 k]: means and logarithms of variances")
        mean, log_variance = found.chunk(2, dim=1)
        return mean, log_variance


def sampled(mean: Tensor, log_variance: Tensor, step: Step | int, units: Units, *, name: str = "latent") -> Tensor:
    """Latents ``mean + exp(log_variance / 2) noise``, with their graph; the noise belongs to each unit.

    Args:
        mean: [n, k].
        log_variance: [n, k].
        step: Of the run.
        units: For whom; see :mod:`distillrs.random`.
        name: Of the draw.
    """
    noise = random.normal(units, mean.shape[1], step=step, name=name).to(mean)
    return mean + (log_variance / 2).exp() * noise


def gaussian_divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """``KL(N(mean, var) || N(other_mean, other_var))`` of diagonal normal distributions, [n], in nats."""
    ratio = log_variance - other_log_variance
    apart = (mean - other_mean).square() * (-other_log_variance).exp()
    return (ratio.exp() + apart - 1 - ratio).sum(1) / 2


def squared_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Half the squared distance of each example, [n]: minus a unit normal's log-likelihood, but for a constant."""
    return (found - wanted).square().flatten(1).sum(1) / 2


class FairAutoencoder(nn.Module):
    """A variational autoencoder whose latents should tell as little as can be of an attribute.

    ``mean recon(x, dec(z)) + divergence KL(q(z|x) || N(0, I)) + fairness dCov^2(z, s)`` over a batch, z drawn from
    q(z|x) (Kingma and Welling, ICLR 2014, with :func:`distance_covariance` beside it).

    Args:
        encoder: Trained, not owned.
        decoder: From latents [n, k] to examples; trained, not owned.
        fairness: gamma, from 0; 0 is a plain autoencoder.
        divergence: Factor of the divergence to the prior.
        reconstruction: From (decoded, examples) to [n].
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        encoder: GaussianCode,
        decoder: nn.Module,
        *,
        fairness: float = 1.0,
        divergence: float = 1.0,
        reconstruction: Reconstruction = squared_error,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_instance("encoder", encoder, nn.Module, "a GaussianCode")
        check_instance("decoder", decoder, nn.Module, "a module from latents [n, k] to examples")
        if not callable(reconstruction):
            raise argument_error("reconstruction", reconstruction, "a function of what was decoded and the examples")
        for name, value in (("fairness", fairness), ("divergence", divergence)):
            check_number(name, value, "a number from 0", least=0)
        # Outside torch's registry: they are neither owned nor saved here.
        self._networks = (encoder, decoder)
        self.fairness, self.divergence, self.reconstruction, self.seed = (
            fairness,
            divergence,
            reconstruction,
            Step(0, seed=seed).seed,
        )

    def forward(self, batch: tuple[Tensor, Tensor], step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Examples [n, ...] and their attribute [n] or [n, ...].
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "teacher".

        Returns:
            ``total`` is a mean over the examples, divided by ``step.items`` and times their number if that is given;
            ``terms`` are "reconstruction", "divergence" and "dependence" (the distance covariance).

        Raises:
            ArgumentError: A batch that is no pair of examples and as many attributes.
        """
        check_turn(turn, _TEACHER)
        step = Step.of(step, self.seed)
        (x, attribute), (encoder, decoder) = _checked(batch), self._networks
        mean, log_variance = encoder(x)
        z = sampled(mean, log_variance, step, len(x))
        zero = torch.zeros_like(mean)
        terms = {
            "reconstruction": self.reconstruction(decoder(z), x).mean(),
            "divergence": gaussian_divergence(mean, log_variance, zero, zero).mean(),
            "dependence": distance_covariance(z, attribute),
        }
        total = terms["reconstruction"] + self.divergence * terms["divergence"] + self.fairness * terms["dependence"]
        share = 1.0 if step.items is None else len(x) / step.items
        return Loss(total * share, {name: value.detach() for name, value in terms.items()})

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "teacher"."""
        return (_TEACHER,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Encoder and decoder, as "teacher"."""
        return {_TEACHER: [each for network in self._networks for each in network.parameters()]}


def _checked(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(each, Tensor) for each in batch):
        raise argument_error("batch", type(batch).__name__, "(examples [n, ...], attribute [n] or [n, ...])")
    x, attribute = batch
    if not x.ndim or not len(x) or not attribute.ndim or len(attribute) != len(x):
        got = f"{tuple(x.shape)} and {tuple(attribute.shape)}"
        raise argument_error("batch", got, "as many attributes as examples, at least 1")
    return x, attribute


class LatentDistillation(nn.Module):
    """A smaller encoder that gives the latents of a frozen one, so that the frozen one's decoder serves it too.

    ``quality |z_S - z_T| + utility KL(q_S(z|x) || q_T(z|x))``, both latents drawn with the same noise, the teacher's a
    constant.

    Args:
        student: Trained, not owned.
        teacher: Frozen.
        quality: Factor of the latents' distance.
        utility: Factor of the divergence.
        distance: "l1" or "l2": the sum over a latent of absolute or of squared differences.
        seed: Of steps that are given as plain numbers.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        student: GaussianCode,
        teacher: GaussianCode,
        *,
        quality: float = 1.0,
        utility: float = 1.0,
        distance: Literal["l1", "l2"] = "l2",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_instance("student", student, nn.Module, "a GaussianCode")
        check_instance("teacher", teacher, nn.Module, "a GaussianCode")
        for name, value in (("quality", quality), ("utility", utility)):
            check_number(name, value, "a number from 0", least=0)
        check_choice("distance", distance, ("l1", "l2"))
        self._student = (student,)
        self.teacher = Frozen(teacher)
        self.quality, self.utility, self.distance, self.seed = quality, utility, distance, Step(0, seed=seed).seed

    def forward(self, batch: Tensor | tuple[Tensor, ...], step: Step | int = 0, *, turn: str | None = None) -> Loss:
        """The loss at a step.

        Args:
            batch: Examples [n, ...], or a tuple that begins with them.
            step: Step of the run; a plain number takes the objective's ``seed``.
            turn: ``None`` or "student".

        Returns:
            ``total`` is a mean over the examples, divided by ``step.items`` and times their number if that is given;
            ``terms`` are "quality" and "utility", before their factors.

        Raises:
            ArgumentError: Latents of different sizes.
        """
        check_turn(turn, _STUDENT)
        step = Step.of(step, self.seed)
        x = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
        check_floating("batch", x, "floating examples [n, ...], or a tuple that begins with them", least_axes=2, rows=1)
        with torch.no_grad():
            teacher_mean, teacher_log_variance = self.teacher(x)
        mean, log_variance = self._student[0](x)
        if mean.shape != teacher_mean.shape:
            raise argument_error(
                "student", f"latents {tuple(mean.shape)}", f"the teacher's, {tuple(teacher_mean.shape)}"
            )
        apart = sampled(mean, log_variance, step, len(x)) - sampled(teacher_mean, teacher_log_variance, step, len(x))
        terms = {
            "quality": (apart.abs() if self.distance == "l1" else apart.square()).sum(1).mean(),
            "utility": gaussian_divergence(mean, log_variance, teacher_mean, teacher_log_variance).mean(),
        }
        total = self.quality * terms["quality"] + self.utility * terms["utility"]
        share = 1.0 if step.items is None else len(x) / step.items
        return Loss(total * share, {name: value.detach() for name, value in terms.items()})

    def turns(self, step: Step | int) -> tuple[str, ...]:
        """One turn, "student"."""
        return (_STUDENT,)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The student's encoder, as "student"."""
        return {_STUDENT: list(self._student[0].parameters())}


@torch.no_grad()
def generated(
    encoder: GaussianCode,
    decoder: nn.Module,
    x: Tensor,
    *,
    spread: float = 1.0,
    step: Step | int = 0,
    batch: int = 1024,
) -> Tensor:
    """New examples beside real ones: their latents are drawn and decoded, so that their labels are kept.

    Args:
        encoder: Whose latents.
        decoder: Of the latents.
        x: [n, ...] Real examples.
        spread: Factor of the latents' deviation; 0 gives reconstructions.
        step: Of the draw.
        batch: Examples in one pass.

    Returns:
        [n, ...].

    Raises:
        ArgumentError: A negative spread.
    """
    check_instance("encoder", encoder, nn.Module, "a GaussianCode")
    check_instance("decoder", decoder, nn.Module, "a module from latents [n, k] to examples")
    check_floating("x", x, "floating examples [n, ...], n >= 1", least_axes=2, rows=1)
    check_number("spread", spread, "a number from 0", least=0)
    check_whole("batch", batch, "a positive integer", least=1)
    step, pieces = Step.of(step), []
    with evaluating(encoder, decoder):
        for first in range(0, len(x), batch):
            mean, log_variance = encoder(x[first : first + batch])
            units = range(first, first + len(mean))
            drawn = sampled(mean, log_variance, step, units, name="generated")
            pieces.append(decoder(mean + float(spread) * (drawn - mean)))
    return torch.cat(pieces)
