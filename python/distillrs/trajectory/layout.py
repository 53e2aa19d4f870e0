"""How a model's parameters lie in one flat vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distillrs.checks import check_choice, check_flag, check_instance
from distillrs.errors import ArgumentError, SchemaMismatch, argument_error
from distillrs.trajectory.dtypes import HALF_DTYPES, dtype_name, dtype_of

if TYPE_CHECKING:
    from distillrs.trajectory.codecs import Codec
    from distillrs.trajectory.schema import Column

V = TypeVar("V")

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_SHARDED_REMEDY = (
    "whole tensors; gather them first with torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True)) and pass the resulting mapping"
)


@dataclass(frozen=True, slots=True)
class ParameterSlot:
    """Where one parameter lies.

    Attributes:
        name: Name in the unwrapped model.
        shape: Shape of the parameter.
        offset: Index of its first element in the vector.
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and offsets of a model's parameters in one flat vector.

    Parameters lie in the order of ``named_parameters()``; one that is shared by several modules lies there once.
    Names are those of the unwrapped model: the prefixes that ``DistributedDataParallel`` and ``torch.compile`` add
    are dropped, so a trajectory recorded from a wrapped model loads into a plain one. Buffers are not part of the
    vector; a model that keeps running statistics is told by :attr:`has_running_statistics`.

    Attributes:
        slots: One entry per parameter, in order, without gaps.
        dtype: Element type of the vectors that :meth:`flatten` gives.
        trainable_only: Whether parameters that require no gradient were left out.
        running_statistics: Names of buffers that the model updates while it trains.
    """

    slots: tuple[ParameterSlot, ...]
    dtype: torch.dtype
    trainable_only: bool = False
    running_statistics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.slots:
            raise argument_error("slots", self.slots, "at least one parameter")
        end = 0
        for slot in self.slots:
            if slot.offset != end or any(extent < 0 for extent in slot.shape):
                raise argument_error(
                    "slots", (slot.name, slot.shape, slot.offset), f"a parameter that begins at offset {end}"
                )
            end += slot.size
        if len({slot.name for slot in self.slots}) != len(self.slots):
            raise argument_error("slots", [slot.name for slot in self.slots], "distinct parameter names")

    @classmethod
    def of(
        cls, model: nn.Module, *, trainable_only: bool = False, dtype: torch.dtype | str | None = None
    ) -> ParameterLayout:
        """The layout of a model's parameters.

        All parameters are taken by default, frozen ones too: a vector then holds all that a functional call needs.

        Args:
            model: Any module; it may be wrapped, on the meta device, or sharded (global shapes are used).
            trainable_only: Leave out parameters that require no gradient (an adapter on a frozen base).
            dtype: Element type of the vectors; ``None`` takes the parameters' own, which must then agree.

        Raises:
            ArgumentError: The model has no parameters, lazy ones, FSDP1 flat ones, or mixed types without ``dtype``.
        """
        check_instance("model", model, nn.Module, "a torch.nn.Module")
        check_flag("trainable_only", trainable_only)
        chosen = {
            name: parameter
            for name, parameter in _parameters(model).items()
            if parameter.requires_grad or not trainable_only
        }
        if not chosen:
            kind = "parameter that requires a gradient" if trainable_only else "parameter"
            raise argument_error("model", type(model).__name__, f"a module with at least one {kind}")
        if dtype is None:
            dtypes = {parameter.dtype for parameter in chosen.values()}
            if len(dtypes) > 1:
                names = ", ".join(sorted(dtype_name(each) for each in dtypes))
                raise argument_error(
                    "model", f"parameters of types {names}", "one type for all, or dtype= to convert every parameter to"
                )
            dtype = dtypes.pop()
        dtype = dtype_of(dtype)
        if not dtype.is_floating_point:
            raise argument_error("dtype", dtype_name(dtype), "a floating-point type")
        slots = []
        offset = 0
        for name, parameter in chosen.items():
            slots.append(ParameterSlot(name, tuple(parameter.shape), offset))
            offset += parameter.numel()
        statistics = tuple(
            name
            for name, buffer in _canonical(dict(model.named_buffers())).items()
            if name.rpartition(".")[2] in _RUNNING_STATISTICS
        )
        return cls(tuple(slots), dtype, trainable_only, statistics)

    @property
    def size(self) -> int:
        """Number of elements of a vector."""
        return self.slots[-1].offset + self.slots[-1].size

    @property
    def has_running_statistics(self) -> bool:
        """Whether the model keeps state (batch normalisation's means and variances) that the vector lacks."""
        return bool(self.running_statistics)

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits over names, shapes and type; equal for equal layouts on every machine."""
        text = json.dumps([[slot.name, slot.shape] for slot in self.slots] + [dtype_name(self.dtype)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def flatten(self, model: nn.Module | Mapping[str, Tensor], out: Tensor | None = None) -> Tensor:
        """A copy of the parameters in one vector.

        It never shares memory with the model, so a later optimiser step leaves it unchanged.

        Args:
            model: A module with these parameters, or a mapping such as its gathered ``state_dict()``.
            out: [size] Contiguous tensor of this layout's type to write into, on any device.

        Returns:
            [size] ``out``, or a new detached vector on the parameters' device (on the CPU if they lie on several).

        Raises:
            ArgumentError: Parameters are missing, differ in shape, are sharded or have no data; ``out`` does not fit.
        """
        values = self._values(model)
        if out is not None:
            check_instance("out", out, Tensor, "a tensor, or None for a new one")
        devices = {value.device for value in values}
        for slot, value in zip(self.slots, values, strict=True):
            if _is_sharded(value):
                raise argument_error("model", f"a sharded parameter {slot.name!r}", _SHARDED_REMEDY)
            if value.is_meta:
                raise argument_error("model", f"parameter {slot.name!r} on the meta device", "parameters with data")
        if out is None:
            device = devices.pop() if len(devices) == 1 else torch.device("cpu")
            out = torch.empty(self.size, dtype=self.dtype, device=device)
        elif out.shape != (self.size,) or out.dtype != self.dtype or not out.is_contiguous() or out.requires_grad:
            raise argument_error(
                "out",
                f"{'' if out.is_contiguous() else 'strided '}{dtype_name(out.dtype)} {list(out.shape)}"
                f"{' that requires a gradient' if out.requires_grad else ''}",
                f"a contiguous {dtype_name(self.dtype)} tensor of shape [{self.size}] that requires no gradient",
            )
        with torch.no_grad():
            for slot, value in zip(self.slots, values, strict=True):
                out.narrow(0, slot.offset, slot.size).view(slot.shape).copy_(value)
        return out

    def load(self, model: nn.Module, vector: Tensor) -> None:
        """Copies a vector into a model's parameters, converting type and device.

        Args:
            model: A module with these parameters.
            vector: [size] The values.

        Raises:
            ArgumentError: The parameters or the vector's shape differ, or a parameter is sharded; nothing is changed.
        """
        values = self._values(model)
        for slot, value in zip(self.slots, values, strict=True):
            if _is_sharded(value):
                raise argument_error("model", f"a sharded parameter {slot.name!r}", "a module before it is sharded")
        check_instance("vector", vector, Tensor, f"a tensor of shape [{self.size}]")
        if vector.shape != (self.size,):
            raise argument_error("vector", list(vector.shape), f"shape [{self.size}]")
        with torch.no_grad():
            for value, source in zip(values, self.unflatten(vector.detach()).values(), strict=True):
                value.copy_(source)

    def unflatten(self, vector: Tensor, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Views of a vector by parameter name, as ``torch.func.functional_call`` takes them.

        Args:
            vector: [..., size] Any type; gradients flow through.
            model: Names the views as this (perhaps wrapped) module does; ``None`` uses the unwrapped names.

        Returns:
            For each parameter a view of shape [..., *shape].

        Raises:
            ArgumentError: The last axis is not ``size`` long, or ``model`` lacks a parameter.
        """
        check_instance("vector", vector, Tensor, f"a tensor of shape [..., {self.size}]")
        if vector.ndim == 0 or vector.shape[-1] != self.size:
            raise argument_error("vector", list(vector.shape), f"shape [..., {self.size}]")
        names = {slot.name: slot.name for slot in self.slots}
        if model is not None:
            check_instance("model", model, nn.Module, "a torch.nn.Module, or None")
            self._values(model)
            names = _wrapped_names([name for name, _ in model.named_parameters()])
        lead = vector.shape[:-1]
        pieces = torch.split(vector, [slot.size for slot in self.slots], dim=-1)
        return {
            names[slot.name]: piece.view((*lead, *slot.shape)) for slot, piece in zip(self.slots, pieces, strict=True)
        }

    def column(
        self,
        *,
        codec: str | Codec = "raw",
        dtype: torch.dtype | str | None = None,
        half_precision: Literal["refuse", "allow"] = "refuse",
    ) -> Column:
        """A column that holds these vectors.

        Args:
            codec: ``"raw"``, ``"half-delta"``, ``"delta-int8"``, ``"lossless"``, or one with its parameters.
            dtype: Element type on disk; ``None`` is the layout's own.
            half_precision: ``"allow"`` accepts a type of 16 bits or fewer.

        Raises:
            ArgumentError: The type has 16 bits or fewer and ``half_precision`` is ``"refuse"``.
        """
        from distillrs.trajectory.schema import Column

        check_choice("half_precision", half_precision, ("refuse", "allow"))
        kind = self.dtype if dtype is None else dtype_of(dtype)
        if kind in HALF_DTYPES and half_precision == "refuse":
            raise argument_error(
                "dtype",
                dtype_name(kind),
                "float32 or float64 for parameters: rounding weights to bfloat16 loses 27-66% of one epoch's "
                "displacement (float16 4-8%), which is what trajectory matching measures; keep the vectors in float32 "
                "(ParameterLayout.of(model, dtype='float32')) and store them with codec='delta-int8' (3.9 times "
                "smaller, 0.7% of the displacement), or pass half_precision='allow'",
            )
        return Column((self.size,), kind, codec=codec, tensor_sizes=tuple(slot.size for slot in self.slots))

    def to_dict(self) -> dict[str, Any]:
        """A form that JSON can hold."""
        return {
            "parameters": [[slot.name, list(slot.shape)] for slot in self.slots],
            "dtype": dtype_name(self.dtype),
            "trainable_only": self.trainable_only,
            "running_statistics": list(self.running_statistics),
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> ParameterLayout:
        """The layout that :meth:`to_dict` described.

        Raises:
            ArgumentError: The form is not one of a layout.
        """
        try:
            slots = []
            offset = 0
            for name, shape in form["parameters"]:
                slot = ParameterSlot(str(name), tuple(int(extent) for extent in shape), offset)
                offset += slot.size
                slots.append(slot)
            dtype = dtype_of(form["dtype"])
            statistics = tuple(str(name) for name in form.get("running_statistics", ()))
            trainable_only = bool(form.get("trainable_only", False))
        except ArgumentError:
            raise
        except (KeyError, TypeError, ValueError) as failure:
            raise argument_error("form", form, "what ParameterLayout.to_dict() gives") from failure
        return cls(tuple(slots), dtype, trainable_only, statistics)

    def require_same(self, other: ParameterLayout) -> None:
        """Checks that two layouts describe the same vector.

        Raises:
            SchemaMismatch: They differ; the message names the first difference.
        """
        check_instance("other", other, ParameterLayout, "a ParameterLayout")
        if self.fingerprint == other.fingerprint:
            return
        if self.dtype != other.dtype:
            raise SchemaMismatch(f"layout: {dtype_name(self.dtype)} here, {dtype_name(other.dtype)} there")
        for mine, theirs in zip(self.slots, other.slots, strict=False):
            if mine != theirs:
                raise SchemaMismatch(
                    f"layout: parameter {mine.name!r} {list(mine.shape)} here, "
                    f"{theirs.name!r} {list(theirs.shape)} there"
                )
        raise SchemaMismatch(f"layout: {len(self.slots)} parameters here, {len(other.slots)} there")

    def _values(self, model: nn.Module | Mapping[str, Tensor]) -> list[Tensor]:
        """The parameters in the layout's order, checked by name and shape."""
        if isinstance(model, nn.Module):
            values: dict[str, Tensor] = dict(_parameters(model))
            if not self.trainable_only:
                surplus = sorted(set(values) - {slot.name for slot in self.slots})
                if surplus:
                    raise argument_error(
                        "model", f"a parameter {surplus[0]!r}", "a module with this layout's parameters"
                    )
        elif isinstance(model, Mapping):
            for part, kind in [*((name, str) for name in model), *((each, Tensor) for each in model.values())]:
                check_instance("model", part, kind, "a mapping of names to tensors")
            values = _canonical(dict(model))
        else:
            raise argument_error("model", type(model).__name__, "a torch.nn.Module, or a mapping of names to tensors")
        found = []
        for slot in self.slots:
            value = values.get(slot.name)
            if value is None:
                raise argument_error(
                    "model", f"no parameter {slot.name!r}", f"one of shape {list(slot.shape)} under this name"
                )
            if tuple(value.shape) != slot.shape:
                raise argument_error(
                    "model", f"{slot.name!r} of shape {list(value.shape)}", f"shape {list(slot.shape)}"
                )
            found.append(value)
        return found


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise argument_error("model", f"lazy parameter {name!r}", "a module after its first forward pass")
        if name.rpartition(".")[2].startswith("_flat_param"):
            raise argument_error("model", f"a flattened parameter {name!r} of FSDP1", _SHARDED_REMEDY)
    return _canonical(parameters)


def _canonical(values: Mapping[str, V]) -> dict[str, V]:
    return {plain: values[wrapped] for plain, wrapped in _wrapped_names(list(values)).items()}


def _wrapped_names(names: list[str]) -> dict[str, str]:
    """Unwrapped name to the name as found."""
    plain = [_without_wrappers(name) for name in names]
    # "module." is dropped only where every name has it: it may also be an attribute of the user's own.
    while plain and all(name.startswith("module.") for name in plain):
        plain = [name.removeprefix("module.") for name in plain]
    return dict(zip(plain, names, strict=True))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("_orig_mod", "_checkpoint_wrapped_module"))


def _is_sharded(value: Tensor) -> bool:
    # By its methods: importing torch.distributed.tensor costs a third of a second and fails where it is not built.
    return hasattr(value, "full_tensor") and hasattr(value, "placements")
