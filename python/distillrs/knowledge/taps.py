"""Tensors from inside a network, by the path of a module, a field of the output, or a function.

Hooks live as long as one call of the network, so a recomputation under activation checkpointing, which runs later, is
not seen twice, and a network that is called within a network that is being recorded stays out of the outer record.
Compiled networks are the exception: the compiler looks at hooks once, at its first call, so theirs stay in place until
:func:`release` and do nothing between records.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import difflib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distillrs.checks import check_choice, check_text
from distillrs.errors import argument_error, unknown_name_error
from distillrs.knowledge.heads import Head, StandIn, standing_in
from distillrs.knowledge.inputs import Inputs

# What DistributedDataParallel and DataParallel, torch.compile, checkpoint_wrapper and FSDP put around a module.
_WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@dataclass(frozen=True, slots=True)
class Tap:
    """What goes into or comes out of a module.

    Attributes:
        path: The module's path in the unwrapped network, "model.layers.5"; prefixes of wrappers are not written.
        side: "output", or "input": the module's first positional argument.
        field: Which entry, where that is a tuple or a mapping; ``None`` takes the tensor itself, or a tuple's first.
        call: Which call, from 0, of a module that is called several times in one forward pass.
    """

    path: str
    side: Literal["output", "input"] = "output"
    field: int | str | None = None
    call: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise argument_error("path", self.path, "the path of a module, such as 'model.layers.5'")
        if isinstance(self.field, bool) or not (self.field is None or isinstance(self.field, str | int)):
            raise argument_error("field", self.field, "None, the name of an entry, or an index of a tuple")
        check_choice("side", self.side, ("output", "input"))
        if self.call is not None and (isinstance(self.call, bool) or not isinstance(self.call, int) or self.call < 0):
            raise argument_error("call", self.call, "None or the number of a call, from 0")

    def __str__(self) -> str:
        return (
            self.path + ("" if self.side == "output" else ":input") + ("" if self.field is None else f"[{self.field}]")
        )


@dataclass(frozen=True, slots=True)
class Output:
    """A field of what the whole network returns.

    Attributes:
        field: Name of an entry of a mapping or model output, or an index of a tuple. "logits" is also a network's
            plain tensor, and a tuple's first entry.
        index: Which entry, where the field is itself a tuple (``Output("hidden_states", -1)``).
    """

    field: str | int = "logits"
    index: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.field, bool) or not isinstance(self.field, str | int) or self.field == "":
            raise argument_error("field", self.field, "the name of an entry, or an index of a tuple")
        if self.index is not None and (isinstance(self.index, bool) or not isinstance(self.index, int)):
            raise argument_error("index", self.index, "None or the index of an entry")

    def __str__(self) -> str:
        return f"{self.field}" if self.index is None else f"{self.field}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the batch, for alignments that need one beside tensors of the network.

    Attributes:
        name: The entry, such as "labels".
    """

    name: str = "labels"

    def __post_init__(self) -> None:
        check_text("name", self.name, "the name of an entry of the batch")

    def __call__(self, run: Run) -> Tensor:
        """The entry as it is.

        Raises:
            UnknownNameError: The batch has none of this name.
        """
        return run.inputs.tensor(self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One call of a network, for taps that are functions.

    Attributes:
        output: What it returned.
        inputs: What it was called with, and the batch.
    """

    output: Any
    inputs: Inputs


OneTap: TypeAlias = Tap | Output | Head | Callable[[Run], Tensor]
AnyTap: TypeAlias = str | OneTap | Sequence["str | OneTap"]

_TAPS = "a module's path, a Tap, an Output, a Head, a function of a Run, or a sequence of these"


def as_taps(name: str, tap: AnyTap) -> tuple[OneTap, ...]:
    """One tap or several, each checked.

    Args:
        name: The argument's, for the message.
        tap: A module's path, a tap, an output, a function, or several of these.

    Raises:
        ArgumentError: None of these.
    """
    if isinstance(tap, str) and tap:
        return (Tap(tap),)
    if isinstance(tap, Tap | Output | Head) or callable(tap):
        return (tap,)
    if isinstance(tap, Sequence) and not isinstance(tap, str | bytes) and tap:
        return tuple(one for each in tap for one in as_taps(name, each))
    raise argument_error(name, tap, _TAPS)


def tap_name(tap: OneTap) -> str:
    """A short name of a tap for logs and messages."""
    return str(tap) if isinstance(tap, Tap | Output | Head | Entry) else getattr(tap, "__name__", type(tap).__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The tensors that one call of a network gave.

    Attributes:
        output: What the network returned.
        values: The tensor of each tap; of a :class:`Head` its :class:`Projected`.
    """

    output: Any
    values: Mapping[OneTap, Any]


def record(network: nn.Module, taps: Iterable[OneTap], inputs: Inputs, *, who: str = "network") -> Record:
    """Calls a network once and takes what the taps ask for.

    Args:
        network: Any module, also wrapped by DistributedDataParallel, FSDP or ``torch.compile``.
        taps: What to take.
        inputs: What to call it with.
        who: What messages call the network ("student").

    Raises:
        UnknownNameError: A module's path or an output's field that is not there.
        ArgumentError: No module, taps or inputs; a module that was not called, or several times, or whose output has no
            such entry; a head that cannot be left out.
    """
    check_text("who", who, "what messages call the network")
    _check_network(who, network)
    given: Any = taps
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise argument_error("taps", taps, "a list of taps, such as [Tap('model.layers.5')]")
    try:
        wanted = tuple(dict.fromkeys(taps))
    except TypeError as failure:  # a list for a tap, a tensor of no axes
        raise argument_error("taps", taps, "a list of taps, such as [Tap('model.layers.5')]") from failure
    for tap in wanted:
        if not isinstance(tap, Tap | Output | Head) and not callable(tap):
            raise argument_error("taps", tap, "a Tap, an Output, a Head or a function of a Run for each")
    if not isinstance(inputs, Inputs):
        raise argument_error("inputs", type(inputs).__name__, "Inputs(args, kwargs, fields)")
    places: dict[tuple[str, str], nn.Module] = {
        (tap.path, tap.side): find_module(network, tap.path, who) for tap in wanted if isinstance(tap, Tap)
    }
    heads = _stand_ins(network, wanted, who)
    calls = _Calls()
    with _recording(network, places, calls), standing_in(list(heads.values())):
        output = network(*inputs.args, **inputs.kwargs)
    run = Run(output, inputs)
    values: dict[OneTap, Any] = {}
    for tap in wanted:
        if isinstance(tap, Tap):
            values[tap] = _module_value(network, tap, calls, places[tap.path, tap.side], who)
        elif isinstance(tap, Output):
            values[tap] = _output_value(output, tap, who)
        elif isinstance(tap, Head):
            head = heads[tap]
            values[tap] = head.value(None if head.forms_logits else _output_value(output, Output(), who))
        else:
            values[tap] = _tensor(tap(run), f"{who} tap {tap_name(tap)!r}")
    return Record(output, values)


def find_module(network: nn.Module, path: str, who: str = "network") -> nn.Module:
    """The module at a path; wrappers on the way are stepped through.

    Args:
        network: Where to look.
        path: Names of children, joined by dots.
        who: What messages call the network.

    Raises:
        UnknownNameError: There is none; the nearest paths are named.
    """
    module = network
    for name in path.split("."):
        inner = module
        while not _has_child(inner, name):
            wrapped = next((wrapper for wrapper in _WRAPPERS if _has_child(inner, wrapper)), None)
            if wrapped is None:
                raise _no_module(network, path, who)
            inner = inner.get_submodule(wrapped)
        module = inner.get_submodule(name)
    return module


def unwrapped(network: nn.Module, name: str = "network") -> nn.Module:
    """The network inside DistributedDataParallel, FSDP and ``torch.compile``.

    Args:
        network: The network, wrapped or not.
        name: The argument's, for the message.

    Raises:
        ArgumentError: Something else than a network.
    """
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    _check_network(name, network)
    while True:
        if isinstance(network, DistributedDataParallel | DataParallel):
            network = network.get_submodule("module")
        elif (inner := next((name for name in _WRAPPERS[1:] if _has_child(network, name)), None)) is not None:
            network = network.get_submodule(inner)
        else:
            return network


def plain_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by their names in the network as it was before anything was wrapped, inside it as well.

    A parameter that several modules share has several names.

    Args:
        network: The network, wrapped or not.
    """
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    found: dict[str, nn.Parameter] = {}

    def visit(module: nn.Module, prefix: str) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                found[prefix + name] = parameter
        for name, child in module._modules.items():
            if child is not None:
                # "module" alone is also a usual name of a network's own part.
                is_parallel = name == "module" and isinstance(module, DistributedDataParallel | DataParallel)
                visit(child, prefix if is_parallel or name in _WRAPPERS[1:] else f"{prefix}{name}.")

    visit(unwrapped(network), "")
    return found


def copied(network: nn.Module) -> nn.Module:
    """A copy of the unwrapped network without the hooks that stay in a compiled one.

    Args:
        network: The network, wrapped or not.
    """
    twin = copy.deepcopy(unwrapped(network))
    for module in twin.modules():
        for number in [number for number, hook in module._forward_hooks.items() if isinstance(hook, _Hook)]:
            del module._forward_hooks[number]
            module._forward_hooks_with_kwargs.pop(number, None)
    return twin


def release(network: nn.Module) -> None:
    """Removes the hooks that stay in a compiled network.

    Args:
        network: The network, or any module that holds it.

    Raises:
        ArgumentError: Something else.
    """
    _check_network("network", network)
    for module in network.modules():
        for handle in _kept.pop(module, {}).values():
            handle.remove()


def _check_network(name: str, network: object) -> None:
    if not isinstance(network, nn.Module):
        raise argument_error(name, type(network).__name__, "a torch.nn.Module")


class _Calls:
    """What hooks saw during one call of a network."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], list[Any]] = {}


_current: contextvars.ContextVar[_Calls | None] = contextvars.ContextVar("distillrs_record", default=None)
_kept: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], RemovableHandle]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True, eq=False)
class _Hook:
    """Notes what passes; in a network's own call of itself or outside of any record it does nothing."""

    key: tuple[str, str]
    calls: _Calls | None = field(default=None)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _note(self, args, kwargs, output)


# A break in a compiled graph and not a part of it, which could neither read a context nor append to a list of ours.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch does not type it
def _note(hook: _Hook, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    calls = _current.get()
    if calls is None or (hook.calls is not None and hook.calls is not calls):
        return
    value = output
    if hook.key[1] == "input":
        value = args[0] if args else next(iter(kwargs.values()), None)
    calls.seen.setdefault(hook.key, []).append(value)


@contextlib.contextmanager
def _recording(network: nn.Module, places: Mapping[tuple[str, str], nn.Module], calls: _Calls) -> Iterator[None]:
    handles = []
    compiled = bool(places) and _is_compiled(network)
    for key, module in places.items():
        if compiled:
            kept = _kept.setdefault(module, {})
            if key not in kept:
                kept[key] = module.register_forward_hook(_Hook(key), with_kwargs=True)
        else:
            handles.append(module.register_forward_hook(_Hook(key, calls), with_kwargs=True))
    token = _current.set(calls)
    try:
        yield
    finally:
        _current.reset(token)
        for handle in handles:
            handle.remove()


def _stand_ins(network: nn.Module, wanted: Iterable[OneTap], who: str) -> dict[Head, StandIn]:
    """One for each head; the network forms its logits where another tap may look at them."""
    taps = tuple(wanted)
    heads = [tap for tap in taps if isinstance(tap, Head)]
    paths = {head.path for head in heads}
    if len(paths) > 1:
        raise argument_error(f"{who} tap", f"the heads {', '.join(sorted(paths))}", "one Head of a network at a time")
    others = [tap for tap in taps if not isinstance(tap, Head)]
    looks = any(
        tap.path in paths and tap.side == "output" if isinstance(tap, Tap) else not _is_apart(tap) for tap in others
    )
    found = {}
    for tap in heads:
        module, name = find_module(network, tap.path, who), f"{who} tap {str(tap)!r}"
        # The compiler has read the head's forward and would not look at another one.
        if any(_compiles(outer) and any(each is module for each in outer.modules()) for outer in network.modules()):
            got, allowed = "a head within what torch.compile compiled", "a network of which the body alone is compiled"
            raise argument_error(name, got, f"{allowed}, or Output('logits')")
        found[tap] = StandIn(tap, module, name, looks)
    return found


def _is_apart(tap: OneTap) -> bool:
    """Whether it looks at an output that does not hang on the logits."""
    return isinstance(tap, Output) and isinstance(tap.field, str) and tap.field not in ("logits", "loss")


def _is_compiled(network: nn.Module) -> bool:
    return any(_compiles(module) for module in network.modules())


def _compiles(module: nn.Module) -> bool:
    return _has_child(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _has_child(module: nn.Module, name: str) -> bool:
    return module._modules.get(name) is not None


def _no_module(network: nn.Module, path: str, who: str) -> Exception:
    known = [name for name, _ in unwrapped(network).named_modules() if name]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.3) or known[:3]
    error = unknown_name_error(f"{who} tap", path, near)
    error.args = (f"{error.args[0]} ({len(known)} modules in {type(unwrapped(network)).__name__})",)
    return error


def _module_value(network: nn.Module, tap: Tap, calls: _Calls, module: nn.Module, who: str) -> Tensor:
    seen = calls.seen.get((tap.path, tap.side), [])
    name = f"{who} tap {str(tap)!r}"
    if not seen:
        remedy = "a module that the network calls in this forward pass"
        if _is_compiled(network):
            remedy += ", tapped before the compiled network's first call (or torch.compiler.reset() before this one)"
        raise argument_error(name, "no call", remedy)
    if tap.call is None and len(seen) > 1:
        raise argument_error(name, f"{len(seen)} calls in one forward pass", "Tap(..., call=which of them)")
    if tap.call is not None and tap.call >= len(seen):
        raise argument_error(name, f"call {tap.call} of {len(seen)}", f"a call from 0 to {len(seen) - 1}")
    value = _entry(seen[tap.call or 0], tap.field, name)
    is_trained = tap.side == "output" and any(parameter.requires_grad for parameter in module.parameters())
    if torch.is_grad_enabled() and is_trained and not value.requires_grad:
        raise argument_error(
            name,
            "an output without a graph from a module that is trained",
            "a graph: use torch.utils.checkpoint with use_reentrant=False, and no torch.no_grad() around the module",
        )
    return value


def _output_value(output: Any, tap: Output, who: str) -> Tensor:
    name = f"{who} output {str(tap)!r}"
    if isinstance(output, Tensor):
        if tap.field != "logits":
            raise argument_error(name, "a plain tensor", "Output('logits') for a network that returns a tensor")
        return output
    if tap.field == "logits" and isinstance(output, list | tuple) and not hasattr(output, "logits"):
        value = output[0]
    elif isinstance(output, Mapping) or isinstance(tap.field, str):
        fields: dict[Any, Any] = dict(output) if isinstance(output, Mapping) else _attributes(output)
        value = fields.get(tap.field, getattr(output, str(tap.field), None))
        if value is None:
            raise unknown_name_error(f"{who} output", str(tap.field), [str(each) for each in fields])
    else:
        value = _at(output, tap.field, name)
    if tap.index is not None:
        value = _at(value, tap.index, name)
    return _tensor(value, name)


def _entry(value: Any, entry: int | str | None, name: str) -> Tensor:
    if entry is None:
        return _tensor(value[0] if isinstance(value, list | tuple) and value else value, name)
    if isinstance(entry, int):
        return _tensor(_at(value, entry, name), name)
    fields = dict(value) if isinstance(value, Mapping) else _attributes(value)
    if entry not in fields:
        raise unknown_name_error(name, entry, [str(each) for each in fields])
    return _tensor(fields[entry], name)


def _attributes(value: Any) -> dict[str, Any]:
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    return {key: each for key, each in getattr(value, "__dict__", {}).items() if not key.startswith("_")}


def _at(value: Any, index: int, name: str) -> Any:
    if not isinstance(value, list | tuple) or not -len(value) <= index < len(value):
        got = f"{type(value).__name__}" + (f" of {len(value)}" if isinstance(value, list | tuple) else "")
        raise argument_error(name, got, f"a tuple with an entry {index}")
    return value[index]


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise argument_error(name, type(value).__name__, "a tensor; name the entry with field=, or use a function")
    return value
