"""Gaussian noise paths: coefficients, conversions among predictions, clocks, and maps to other paths."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from distillrs.errors import argument_error, unknown_name_error
from distillrs.schedule._times import Time, as_float64, as_time, check_range, check_values, spread, work_dtype

Kind: TypeAlias = Literal["x0", "noise", "v", "velocity", "score", "F"]
"""What a network predicts; see :meth:`Path.convert`."""

Clock: TypeAlias = Literal["time", "thousand", "sigma", "log_sigma", "ratio", "log_snr", "angle", "index"]
"""How a level of noise is named; see :meth:`Path.clock`."""

_KINDS, _CLOCKS = get_args(Kind), get_args(Clock)


class Row(NamedTuple):
    """A kind as a linear form: ``scale * kind = data * x0 + noise * eps``.

    The scale is there for kinds that grow without bound at an end of the path: the scaled row stays finite.
    """

    scale: Tensor
    data: Tensor
    noise: Tensor


class Moved(NamedTuple):
    """A state on another path.

    Attributes:
        x: The state, of the shape and type it had.
        time: float64 times on the other path.
    """

    x: Tensor
    time: Tensor


class Path(ABC):
    """A Gaussian path from data to noise, ``x_t = alpha(t) x0 + sigma(t) eps`` with standard normal ``eps``.

    Time runs from 0, data, to 1, noise. Coefficients are float64, whatever the type of the tensors; values are computed
    in the tensors' type (half precision in float32) and have it. Times are one number, or a tensor whose shape leads
    that of the values: ``[batch]``, ``[batch, frames]``, ``[batch, tokens]``. Everything can be differentiated in times
    and values, backward and forward (``torch.func.jvp``).

    At a singular end some conversions have no value: no noise can be told from a state without any. There the result is
    not a number; where the limit exists, it is the limit.
    """

    __slots__ = ()

    sigma_data: float = 1.0
    """Standard deviation of the data that the kind ``F`` and the clock ``angle`` assume."""

    # What a path defines, on float64 tensors.

    @abstractmethod
    def _alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _alpha_derivative(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _sigma_derivative(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_log_snr(self, log_snr: Tensor) -> Tensor: ...

    @abstractmethod
    def _time_of_sigma(self, sigma: Tensor) -> Tensor: ...

    def _log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self._alpha(t).log() - self._sigma(t).log())

    def _velocity(self, t: Tensor) -> Row:
        return Row(torch.ones_like(t), self._alpha_derivative(t), self._sigma_derivative(t))

    def _network(self, t: Tensor) -> Row:
        raise argument_error(
            "kind", "F", f"another kind: the paths EDM and Trig define F, {type(self).__name__} does not"
        )

    def _angle(self, t: Tensor) -> Tensor:
        return torch.atan2(self._sigma(t), self._alpha(t) * self.sigma_data)

    def _deviation(self, t: Tensor) -> Tensor:
        """Standard deviation of the state, for data of deviation ``sigma_data``."""
        return torch.hypot(self._alpha(t) * self.sigma_data, self._sigma(t))

    def _jump(self, kind: Kind, t: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of state and prediction in the state at ``r`` that has the data and noise which both claim at ``t``.

        With the prediction as a row ``scale F = data x0 + noise eps`` and ``D = alpha_t noise - sigma_t data``:
        ``(alpha_r noise - sigma_r data) / D`` and ``scale (sigma_r alpha_t - alpha_r sigma_t) / D``.
        """
        scale, data, noise = self._row(kind, t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        alpha_r, sigma_r = self._alpha(r), self._sigma(r)
        determinant = alpha * noise - sigma * data
        of_state = (alpha_r * noise - sigma_r * data) / determinant
        return of_state, scale * (sigma_r * alpha - alpha_r * sigma) / determinant

    def _drift(self, t: Tensor) -> Tensor | None:
        """Weight of the reference in the state, for paths between two images."""
        return None

    def _drift_derivative(self, t: Tensor) -> Tensor | None:
        return None

    # What it offers.

    def alpha(self, t: Time) -> Tensor:
        """Weight of the data: float64, of the times' shape."""
        return self._alpha(as_time(t))

    def sigma(self, t: Time) -> Tensor:
        """Weight of the noise, its standard deviation: float64, of the times' shape."""
        return self._sigma(as_time(t))

    def alpha_derivative(self, t: Time) -> Tensor:
        """``d alpha / dt``: float64, of the times' shape."""
        return self._alpha_derivative(as_time(t))

    def sigma_derivative(self, t: Time) -> Tensor:
        """``d sigma / dt``: float64, of the times' shape; infinite at the data end of variance-preserving paths."""
        return self._sigma_derivative(as_time(t))

    def log_snr(self, t: Time) -> Tensor:
        """``log(alpha^2 / sigma^2)``: float64, of the times' shape; infinite where one of the two is 0."""
        return self._log_snr(as_time(t))

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """The inverse of :meth:`log_snr`.

        Args:
            log_snr: Any shape, within the path's range.

        Returns:
            float64, of that shape.

        Raises:
            ArgumentError: For a value that the path does not reach.
        """
        value = as_float64("log_snr", log_snr)
        low, high = (float(self._log_snr(torch.tensor(end, dtype=torch.float64))) for end in (1.0, 0.0))
        # The last bits of a value that was computed elsewhere may lie outside.
        slack = 1e-9 * (1 + abs(low)) if math.isfinite(low) else 0.0
        check_range("log_snr", value, low - slack, high, f"log-SNRs of {type(self).__name__}")
        return self._time_of_log_snr(value).clamp(0.0, 1.0)

    def time_of_sigma(self, sigma: Time) -> Tensor:
        """The inverse of :meth:`sigma`.

        Raises:
            ArgumentError: For a value that the path does not reach.
        """
        value = as_float64("sigma", sigma)
        high = float(self._sigma(torch.tensor(1.0, dtype=torch.float64)))
        check_range("sigma", value, 0.0, high * (1 + 1e-9), f"sigmas of {type(self).__name__}")
        return self._time_of_sigma(value).clamp(0.0, 1.0)

    def clock(self, value: Time, *, of: Clock = "time", to: Clock = "time") -> Tensor:
        """A level of noise, told by another clock.

        - ``time``: 0 to 1, data to noise; every other method takes this one.
        - ``thousand``: 0 to 1000, a thousand times the time.
        - ``sigma``, ``log_sigma``: the weight of the noise and its natural logarithm.
        - ``ratio``: ``sigma / alpha``, the sigma of EDM and of samplers written for it, on any path.
        - ``log_snr``: ``log(alpha^2 / sigma^2)``.
        - ``angle``: ``arctan(sigma / (alpha sigma_data))``, 0 to pi/2: the time of TrigFlow (Lu and Song, "Simplifying,
          stabilizing and scaling continuous-time consistency models", 2024).
        - ``index``: row of the table that a path was made from, 0 the least noise; such paths only.

        Args:
            value: Any shape.
            of: The clock of ``value``.
            to: The clock of the result.

        Returns:
            float64, of that shape.

        Raises:
            ArgumentError: For an unknown clock, or a value that the path does not reach.
        """
        for name in (of, to):
            check_clock("clock", name)
        return self._told(self._time(as_float64("value", value), of), to)

    def _time(self, value: Tensor, clock: Clock) -> Tensor:
        if clock == "time":
            return as_time(value)
        if clock == "thousand":
            check_range("value", value, 0.0, 1000.0, "times")
            return value / 1000
        if clock == "sigma":
            return self.time_of_sigma(value)
        if clock == "log_sigma":
            return self.time_of_sigma(value.exp())
        if clock == "log_snr":
            return self.time_of_log_snr(value)
        if clock == "index":
            rows = self._rows()
            check_range("value", value, -1.0, rows - 1.0, "rows")
            return (value + 1) / rows
        if clock == "angle":
            check_range("value", value, 0.0, math.pi / 2, "angles")
            return self._time_of_angle(value)
        check_range("value", value, 0.0, math.inf, "ratios")
        return self._time_of_ratio(value)

    def _time_of_angle(self, angle: Tensor) -> Tensor:
        return self._time_of_ratio(angle.tan() * self.sigma_data)

    def _time_of_ratio(self, ratio: Tensor) -> Tensor:
        return self.time_of_log_snr(-2 * ratio.log())

    def _told(self, t: Tensor, clock: Clock) -> Tensor:
        if clock == "time":
            return t
        if clock == "thousand":
            return t * 1000
        if clock == "sigma":
            return self._sigma(t)
        if clock == "log_sigma":
            return self._sigma(t).log()
        if clock == "log_snr":
            return self._log_snr(t)
        if clock == "index":
            return t * self._rows() - 1
        if clock == "angle":
            return self._angle(t)
        return self._sigma(t) / self._alpha(t)

    def _rows(self) -> int:
        raise argument_error("clock", "index", f"another clock: {type(self).__name__} was not made from a table")

    def corrupt(self, x0: Tensor, noise: Tensor, t: Time, *, reference: Tensor | None = None) -> Tensor:
        """The state at a time: ``alpha(t) x0 + sigma(t) noise``.

        Args:
            x0: Data, ``[batch, ...]``.
            noise: Standard normal, of the same shape.
            t: A number or a tensor whose shape leads that of ``x0``.
            reference: The other image, of the same shape; for :class:`Residual`, and for it alone.

        Returns:
            Of the shape and type of ``x0``.

        Raises:
            ArgumentError: For times outside [0, 1], shapes that differ, or a missing or superfluous reference.
        """
        check_values("x0", x0)
        check_values("noise", noise, x0)
        times = as_time(t)
        dtype = work_dtype(x0, noise)
        state = spread(self._alpha(times), x0, dtype) * x0 + spread(self._sigma(times), x0, dtype) * noise
        return self._shifted(state, self._drift(times), reference, 1, dtype).to(x0.dtype)

    def convert(
        self, value: Tensor, x_t: Tensor, t: Time, *, kind: Kind, to: Kind, reference: Tensor | None = None
    ) -> Tensor:
        """One prediction as another, given the state that both are about.

        - ``x0``: the data; ``noise``: the noise ``eps``.
        - ``velocity``: ``dx_t/dt = alpha' x0 + sigma' eps``, per unit of the time from 0 to 1.
        - ``v``: ``(alpha eps - sigma x0) / sqrt(alpha^2 + sigma^2)``, Salimans and Ho, "Progressive distillation for
          fast sampling of diffusion models" (2022); on a path of another variance, that of the variance-preserving path
          at the same log-SNR.
        - ``score``: ``-eps / sigma``, the gradient of the log-density of the state.
        - ``F``: what the network of a preconditioned denoiser gives; see :class:`EDM` and :class:`Trig`.

        Each kind is a linear form in (x0, eps), and so is the state; two of them determine any third.

        Args:
            value: The prediction, ``[batch, ...]``.
            x_t: The state, of the same shape.
            t: A number or a tensor whose shape leads that of ``value``.
            kind: What ``value`` is.
            to: What is wanted.
            reference: The other image, of the same shape; for :class:`Residual`, and for it alone.

        Returns:
            Of the shape and type of ``value``; not a number at a singular end where the two do not determine it (``x0``
            to anything else at noise level 0, ``noise`` to anything else but the score at signal level 0).

        Raises:
            ArgumentError: For an unknown kind, times outside [0, 1], shapes that differ, or a missing or superfluous
                reference.
        """
        for name in (kind, to):
            check_kind("kind", name)
        check_values("value", value)
        check_values("x_t", x_t, value)
        times = as_time(t)
        drift, drift_derivative = self._drift(times), self._drift_derivative(times)
        dtype = work_dtype(value, x_t)
        self._shifted(x_t, drift, reference, -1, dtype)  # refuses a wrong reference for every pair of kinds
        given = self._row(kind, times)
        if kind == to:
            spread(times, value, dtype)
            return value
        wanted = self._row(to, times)
        alpha, sigma = self._alpha(times), self._sigma(times)
        if {kind, to} == {"noise", "score"}:
            # Multiples of each other, which holds without any signal, too.
            factor = -sigma if kind == "score" else -1 / sigma
            return (spread(factor, value, dtype) * value).to(value.dtype)
        determinant = (alpha * given.noise - sigma * given.data) * wanted.scale
        of_state = (wanted.data * given.noise - wanted.noise * given.data) / determinant
        of_value = (alpha * wanted.noise - sigma * wanted.data) * given.scale / determinant
        if kind == "velocity":
            value = self._shifted(value, drift_derivative, reference, -1, dtype)
        state = self._shifted(x_t, drift, reference, -1, dtype)
        result = spread(of_state, state, dtype) * state + spread(of_value, state, dtype) * value
        if to == "velocity":
            result = self._shifted(result, drift_derivative, reference, 1, dtype)
        return result.to(value.dtype)

    def move(self, x_t: Tensor, t: Time, to: Path, *, reference: Tensor | None = None) -> Moved:
        """The same state on another path: equal log-SNR, rescaled to the other path's variance.

        ``x = x_t sqrt((alpha'^2 + sigma'^2) / (alpha^2 + sigma^2))`` at the time with the same log-SNR; exact for every
        data distribution, since both states are one multiple of ``x0 + eps / sqrt(SNR)``.

        Args:
            x_t: The state, ``[batch, ...]``.
            t: A number or a tensor whose shape leads that of ``x_t``.
            to: The other path.
            reference: The other image, if one of the paths is a :class:`Residual`.

        Returns:
            State and times there.

        Raises:
            ArgumentError: For times outside [0, 1], a log-SNR that the other path does not reach, or a missing or
                superfluous reference.
        """
        check_values("x_t", x_t)
        check_path("to", to)
        times = as_time(t)
        there = to.time_of_log_snr(self._log_snr(times))
        here, other = self._drift(times), to._drift(there)
        dtype = work_dtype(x_t)
        if reference is not None and other is not None and here is None:
            state = x_t
        else:
            state = self._shifted(x_t, here, reference, -1, dtype)
        scale = torch.hypot(to._alpha(there), to._sigma(there)) / torch.hypot(self._alpha(times), self._sigma(times))
        state = spread(scale, x_t, dtype) * state
        if other is not None:
            state = to._shifted(state, other, reference, 1, dtype)
        return Moved(state.to(x_t.dtype), there)

    def _row(self, kind: Kind, t: Tensor) -> Row:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        if kind == "x0":
            return Row(one, one, zero)
        if kind == "noise":
            return Row(one, zero, one)
        if kind == "velocity":
            return self._velocity(t)
        if kind == "F":
            return self._network(t)
        alpha, sigma = self._alpha(t), self._sigma(t)
        if kind == "score":
            return Row(sigma, zero, -one)
        return Row(torch.hypot(alpha, sigma), -sigma, alpha)

    def _shifted(
        self, value: Tensor, weight: Tensor | None, reference: Tensor | None, sign: int, dtype: torch.dtype
    ) -> Tensor:
        if weight is None:
            if reference is not None:
                raise argument_error("reference", "a tensor", f"None: {type(self).__name__} has no other image")
            return value
        if reference is None:
            raise argument_error("reference", None, f"the other image, which {type(self).__name__} ends in")
        check_values("reference", reference, value)
        return value + sign * spread(weight, value, dtype) * reference


def check_path(name: str, value: object) -> None:
    """Refuses what is no path, its name for example.

    Raises:
        ArgumentError: By the argument's name.
    """
    if not isinstance(value, Path):
        raise argument_error(name, value, "a noise path (RectifiedFlow(), VP(), EDM(), ...)")


def check_kind(name: str, value: object) -> None:
    """Refuses what is no kind of prediction.

    Raises:
        UnknownNameError: By the argument's name.
    """
    if value not in _KINDS:
        raise unknown_name_error(name, value, list(_KINDS))


def check_clock(name: str, value: object) -> None:
    """Refuses what is no clock.

    Raises:
        UnknownNameError: By the argument's name.
    """
    if value not in _CLOCKS:
        raise unknown_name_error(name, value, list(_CLOCKS))
