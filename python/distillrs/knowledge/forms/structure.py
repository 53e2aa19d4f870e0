"""What of a transformer can be left out: attention heads, feed-forward neurons, residual channels, layers.

A :class:`Structure` says where each of them lies in the parameters, by names. From that follow the cost of a smaller
network, masks that make a network compute what the smaller one would (``gates``), and the smaller network
itself (``slicing``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from distillrs.checks import check_flag, check_instance, check_text, check_whole, device_of
from distillrs.errors import argument_error
from distillrs.knowledge.taps import unwrapped


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an axis lies in a parameter.

    Attributes:
        name: The parameter's name in the unwrapped network.
        dim: Along which dimension.
        offset: Index of the axis's first element there: packed projections hold several.
    """

    name: str
    dim: int
    offset: int = 0

    def __post_init__(self) -> None:
        check_text("name", self.name, "the name of a parameter")
        for name in ("dim", "offset"):
            check_whole(name, getattr(self, name), "a whole number from 0", least=0)


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention of one layer. Head h reads the keys and values of the key-value head ``h // (heads / shared)``.

    Attributes:
        path: The module's path.
        queries: Where its query heads lie; each has ``size`` elements.
        keys_values: Where its key and value heads lie: all keys, and all values.
        outputs: Where the heads enter the output projection.
        heads: Query heads.
        shared: Key-value heads.
        size: Elements of a head.
    """

    path: str
    queries: tuple[Slot, ...]
    keys_values: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    heads: int
    shared: int
    size: int

    def __post_init__(self) -> None:
        check_text("path", self.path, "the path of a module")
        for name in ("queries", "keys_values", "outputs"):
            _check_all(name, getattr(self, name), Slot)
        for name in ("heads", "shared", "size"):
            check_whole(name, getattr(self, name), "a positive number", least=1)
        if self.heads % self.shared:
            raise argument_error("shared", self.shared, f"a divisor of the {self.heads} heads")

    def key_value_heads(self, heads: Tensor) -> tuple[Tensor, int]:
        """The key-value heads that chosen query heads need, in their order, and query heads of each.

        Where the chosen heads do not fall into groups of one size, every head gets a copy of its keys and values.

        Args:
            heads: int64 ``[n]``, query heads.
        """
        owners = heads // (self.heads // self.shared)
        runs, counts = torch.unique_consecutive(owners, return_counts=True)
        even = len(runs) > 0 and len(runs.unique()) == len(runs) and bool((counts == counts[0]).all())
        return (runs, int(counts[0])) if even else (owners, 1)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """A feed-forward part of one layer.

    Attributes:
        path: The module's path.
        inner: Where its neurons lie in what leads into them: up and gate.
        outputs: Where they enter the output projection.
        neurons: How many there are.
        matrices: Weight matrices with a neuron axis, 2 or 3.
    """

    path: str
    inner: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    neurons: int
    matrices: int

    def __post_init__(self) -> None:
        check_text("path", self.path, "the path of a module")
        for name in ("inner", "outputs"):
            _check_all(name, getattr(self, name), Slot)
        for name in ("neurons", "matrices"):
            check_whole(name, getattr(self, name), "a positive number", least=1)


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """How much of each unit counts: 1 for all of it, 0 for none. Values between are allowed, and may have a graph.

    Attributes:
        heads: ``[heads]`` for each attention.
        neurons: ``[neurons]`` for each feed-forward part.
        channels: ``[channels]``; ``None`` for all.
        layers: ``[layers]``: how far each layer moves its input; ``None`` for all.
    """

    heads: tuple[Tensor, ...]
    neurons: tuple[Tensor, ...]
    channels: Tensor | None = None
    layers: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "neurons"):
            _check_all(name, getattr(self, name), Tensor)
        for name in ("channels", "layers"):
            if getattr(self, name) is not None:
                check_instance(name, getattr(self, name), Tensor, "None or a tensor")

    def to(self, device: torch.device | str) -> Masks:
        """The same on a device.

        Raises:
            ArgumentError: No device.
        """
        device = device_of("device", device)
        channels = None if self.channels is None else self.channels.to(device)
        layers = None if self.layers is None else self.layers.to(device)
        heads, neurons = (tuple(mask.to(device) for mask in masks) for masks in (self.heads, self.neurons))
        return Masks(heads, neurons, channels, layers)


@dataclass(frozen=True, slots=True)
class Structure:
    """Where the parts of a transformer lie that can be left out.

    Attributes:
        attention: The attention of each layer.
        feed_forward: The feed-forward part of each layer.
        layers: Paths of the layers.
        width: Residual channels.
        residual: Every axis of residual channels; empty if channels cannot be left out.
        written: Those of them that write to the residual stream: embeddings and output projections.
        norms: Paths of the normalisations over residual channels.
        vocabulary: Outputs of the head; 0 without one.
        causal: Whether tokens see only those before them.
    """

    attention: tuple[Attention, ...]
    feed_forward: tuple[FeedForward, ...]
    layers: tuple[str, ...]
    width: int
    residual: tuple[Slot, ...] = ()
    written: tuple[Slot, ...] = ()
    norms: tuple[str, ...] = ()
    vocabulary: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        for name, kind in (("attention", Attention), ("feed_forward", FeedForward), ("layers", str), ("norms", str)):
            _check_all(name, getattr(self, name), kind)
        for name in ("residual", "written"):
            _check_all(name, getattr(self, name), Slot)
        for name in ("width", "vocabulary"):
            check_whole(name, getattr(self, name), "a whole number from 0", least=0)
        check_flag("causal", self.causal)

    @staticmethod
    def of(network: nn.Module) -> Structure:
        """The structure of a network of one of the known kinds.

        Known are models with Llama's names (``q_proj``, ..., ``down_proj``; Llama, Mistral, Qwen and the like), models
        with GPT-2's (``c_attn``, ``c_fc``, ``c_proj``), both from Hugging Face, and any module that holds
        ``torch.nn.TransformerEncoderLayer``, whose channels cannot be left out.

        Args:
            network: The plain network, or one wrapped.

        Raises:
            ArgumentError: A network of another kind.
        """
        plain = unwrapped(network)
        for read in (_llama, _gpt2, _encoder):
            found = read(plain)
            if found is not None:
                return found
        allowed = "a transformer with Llama's or GPT-2's names, or with torch.nn.TransformerEncoderLayer"
        raise argument_error("network", type(plain).__name__, allowed)

    def full(self) -> Masks:
        """Masks of ones."""
        heads = tuple(torch.ones(unit.heads) for unit in self.attention)
        return Masks(heads, tuple(torch.ones(unit.neurons) for unit in self.feed_forward))

    def check(self, masks: Masks) -> None:
        """Refuses masks that do not fit.

        Raises:
            ArgumentError: Another number of masks, or of entries; channels where they cannot be left out.
        """
        check_instance("masks", masks, Masks, "Masks(heads, neurons, ...)")
        due = {
            "heads": [unit.heads for unit in self.attention],
            "neurons": [unit.neurons for unit in self.feed_forward],
        }
        for name, sizes in due.items():
            got = [list(mask.shape) for mask in getattr(masks, name)]
            if got != [[size] for size in sizes]:
                raise argument_error(f"masks.{name}", f"shapes {got}", f"one mask for each layer, of {sizes} entries")
        for name, one, size in (
            ("channels", masks.channels, self.width if self.residual else None),
            ("layers", masks.layers, len(self.layers)),
        ):
            if one is not None and size is None:
                raise argument_error(f"masks.{name}", list(one.shape), "None for a network of this kind")
            if one is not None and list(one.shape) != [size]:
                raise argument_error(f"masks.{name}", f"shape {list(one.shape)}", f"[{size}]")

    def check_names(self, network: nn.Module) -> None:
        """Refuses a network in which these parts do not lie.

        Args:
            network: The unwrapped network.

        Raises:
            ArgumentError: A layer that is not there.
        """
        for path in self.layers:
            try:
                network.get_submodule(path)
            except AttributeError as failure:
                allowed = f"a network of this structure, with a layer {path!r}"
                raise argument_error("network", type(network).__name__, allowed) from failure

    def macs(self, length: int, masks: Masks | None = None, *, head: bool = False) -> int:
        """Multiplications and additions of a token, on average over a text, in the matrix products.

        Queries, keys, values and outputs: ``width * size * (2 heads + 2 shared)``; scores and their sums: ``size *
        heads * (length + 1)`` where a token sees those before it and itself, else ``2 size heads length``;
        feed-forward: ``width * neurons * matrices``. Embeddings, normalisations and rotations are not counted.

        Args:
            length: Tokens of a text.
            masks: What is there; units whose mask is 0 are not. ``None`` for everything.
            head: Whether the output head counts too.

        Raises:
            ArgumentError: Masks that do not fit, or a length that is none.
        """
        check_whole("length", length, "a positive number of tokens", least=1)
        check_flag("head", head)
        masks = self.full() if masks is None else masks
        self.check(masks)
        width = self.width if masks.channels is None else int(masks.channels.count_nonzero())
        there = [True] * len(self.layers) if masks.layers is None else [bool(share != 0) for share in masks.layers]
        total = 0
        for unit, mask, layer in zip(self.attention, masks.heads, there, strict=True):
            kept = mask.nonzero().flatten()
            shared = len(unit.key_value_heads(kept)[0])
            seen = length + 1 if self.causal else 2 * length
            total += layer * unit.size * (width * 2 * (len(kept) + shared) + len(kept) * seen)
        for part, mask, layer in zip(self.feed_forward, masks.neurons, there, strict=True):
            total += layer * width * int(mask.count_nonzero()) * part.matrices
        return total + head * width * self.vocabulary

    def gate(self, network: nn.Module, masks: Masks) -> None:
        """Makes a network compute under masks; again, with other masks, changes them. See :func:`ungate`.

        Masks of heads and neurons multiply their columns of the output projections, those of channels all that
        is written to the residual stream and what the normalisations see and give.

        Args:
            network: The plain network; changed in place.
            masks: ``masks.channels`` and ``masks.layers`` that are ``None`` leave theirs as they are.

        Raises:
            ArgumentError: Masks or a network that do not fit.
        """
        from distillrs.knowledge.forms import gates

        self.check_names(unwrapped(network))
        gates.gate(self, network, masks)

    def take(
        self,
        network: nn.Module,
        heads: Sequence[Tensor] | None = None,
        neurons: Sequence[Tensor] | None = None,
        channels: Tensor | None = None,
        layers: Tensor | None = None,
    ) -> nn.Module:
        """A new network of chosen parts in a chosen order: a smaller one, or the same with its parts permuted.

        Args:
            network: The plain network; left as it is.
            heads: int64 ``[n]`` for each attention of the given network, at least one; ``None`` for all.
            neurons: int64 ``[n]`` for each feed-forward part, at least one; ``None`` for all.
            channels: int64 ``[n]``; ``None`` for all.
            layers: int64 ``[n]``, rising; ``None`` for all.

        Returns:
            A plain network; :meth:`of` gives its structure.

        Raises:
            ArgumentError: Parts that are not there, or none.
        """
        from distillrs.knowledge.forms import slicing

        return slicing.take(self, network, heads, neurons, channels, layers)

    def slice(self, network: nn.Module, masks: Masks) -> nn.Module:
        """The smaller network of the parts whose masks are 1; it computes what the masked one does.

        Args:
            network: The plain network, without masks; left as it is.
            masks: Zeros and ones.

        Raises:
            ArgumentError: Other values, or a layer that stays without a head or a neuron: leave out the layer.
        """
        self.check(masks)
        given = [*masks.heads, *masks.neurons, *(one for one in (masks.channels, masks.layers) if one is not None)]
        if not all(bool(((mask == 0) | (mask == 1)).all()) for mask in given):
            raise argument_error("masks", "values between", "zeros and ones; others have no smaller network")
        heads, neurons = ([mask.nonzero().flatten() for mask in each] for each in (masks.heads, masks.neurons))
        channels, layers = (None if one is None else one.nonzero().flatten() for one in (masks.channels, masks.layers))
        if layers is not None:
            # What a layer that goes away has inside does not matter.
            gone = set(range(len(self.layers))) - set(layers.tolist())
            heads = [torch.arange(len(masks.heads[i])) if i in gone else each for i, each in enumerate(heads)]
            neurons = [torch.arange(len(masks.neurons[i])) if i in gone else each for i, each in enumerate(neurons)]
        return self.take(network, heads, neurons, channels, layers)


def ungate(network: nn.Module) -> None:
    """Takes masks off a network again; one without is left as it is.

    Raises:
        ArgumentError: No network.
    """
    check_instance("network", network, nn.Module, "a torch.nn.Module")
    from distillrs.knowledge.forms import gates

    gates.ungate(network)


def _check_all(name: str, values: object, kind: type) -> None:
    """Refuses what is no tuple of one kind."""
    if not isinstance(values, tuple) or not all(isinstance(each, kind) for each in values):
        got = [type(each).__name__ for each in values] if isinstance(values, list | tuple) else type(values).__name__
        raise argument_error(name, got, f"a tuple, each a {kind.__name__}")


def _dims(module: nn.Module) -> tuple[int, int]:
    """The dimensions of a projection's weight that are its inputs and its outputs."""
    return (0, 1) if type(module).__name__ == "Conv1D" else (1, 0)


def _inputs(network: nn.Module, path: str) -> tuple[Slot, ...]:
    return (Slot(f"{path}.weight", _dims(network.get_submodule(path))[0]),)


def _outputs(network: nn.Module, path: str, offset: int = 0) -> tuple[Slot, ...]:
    module: Any = network.get_submodule(path)
    slots = [Slot(f"{path}.weight", _dims(module)[1], offset)]
    return (*slots, Slot(f"{path}.bias", 0, offset)) if module.bias is not None else tuple(slots)


def _paths(network: nn.Module, *children: str) -> list[str]:
    """Paths of the modules that have all these children."""
    return [
        path
        for path, module in network.named_modules()
        if all(module._modules.get(child) is not None for child in children)
    ]


def _size(network: nn.Module, slots: Sequence[Slot]) -> int:
    return network.get_parameter(slots[0].name).shape[slots[0].dim]


def _llama(network: nn.Module) -> Structure | None:
    attentions = _paths(network, "q_proj", "k_proj", "v_proj", "o_proj")
    parts = _paths(network, "gate_proj", "up_proj", "down_proj")
    if not attentions or len(attentions) != len(parts):
        return None
    attention, feed_forward = [], []
    for path in attentions:
        module: Any = network.get_submodule(path)
        q, k, v, o = (f"{path}.{name}_proj" for name in "qkvo")
        size = int(module.head_dim)
        queries, keys_values = _outputs(network, q), _outputs(network, k) + _outputs(network, v)
        heads, shared = _size(network, queries) // size, _size(network, keys_values) // size
        attention.append(Attention(path, queries, keys_values, _inputs(network, o), heads, shared, size))
    for path in parts:
        inner = _outputs(network, f"{path}.up_proj") + _outputs(network, f"{path}.gate_proj")
        outputs = _inputs(network, f"{path}.down_proj")
        feed_forward.append(FeedForward(path, inner, outputs, _size(network, outputs), 3))
    read = [f"{path}.{name}_proj" for path in attentions for name in "qkv"]
    read += [f"{path}.{name}_proj" for path in parts for name in ("up", "gate")]
    write = [f"{path}.o_proj" for path in attentions] + [f"{path}.down_proj" for path in parts]
    return _residual(network, Structure(tuple(attention), tuple(feed_forward), _layers(attentions), 0), read, write)


def _gpt2(network: nn.Module) -> Structure | None:
    attentions, parts = _paths(network, "c_attn", "c_proj"), _paths(network, "c_fc", "c_proj")
    if not attentions or len(attentions) != len(parts) or any(path.endswith("crossattention") for path in attentions):
        return None
    attention, feed_forward = [], []
    for path in attentions:
        module: Any = network.get_submodule(path)
        size, inner_width = int(module.head_dim), int(module.split_size)
        queries, keys, values = (_outputs(network, f"{path}.c_attn", part * inner_width) for part in range(3))
        heads = inner_width // size
        attention.append(
            Attention(path, queries, keys + values, _inputs(network, f"{path}.c_proj"), heads, heads, size)
        )
    for path in parts:
        inner, outputs = _outputs(network, f"{path}.c_fc"), _inputs(network, f"{path}.c_proj")
        feed_forward.append(FeedForward(path, inner, outputs, _size(network, outputs), 2))
    read = [f"{path}.c_attn" for path in attentions] + [f"{path}.c_fc" for path in parts]
    write = [f"{path}.c_proj" for path in attentions + parts]
    return _residual(network, Structure(tuple(attention), tuple(feed_forward), _layers(attentions), 0), read, write)


def _residual(network: nn.Module, found: Structure, read: list[str], write: list[str]) -> Structure:
    """Adds the residual channels: embeddings, normalisations, projections and the head."""
    width = _size(network, _inputs(network, read[0]))
    embeddings = [path for path, module in network.named_modules() if isinstance(module, nn.Embedding)]
    embeddings = [path for path in embeddings if network.get_parameter(f"{path}.weight").shape[1] == width]
    head = next((path for path in ("lm_head", "score", "classifier") if path in dict(network.named_modules())), None)
    norms = []
    for path, module in network.named_modules():
        scale = module._parameters.get("weight")
        is_norm = "norm" in type(module).__name__.lower() and scale is not None and [*scale.shape] == [width]
        # Those of a head's queries and keys may have the same size by chance.
        if is_norm and not any(path.startswith(f"{unit.path}.") for unit in found.attention):
            norms.append(path)
    written = [Slot(f"{path}.weight", 1) for path in embeddings]
    written += [slot for path in write for slot in _outputs(network, path)]
    residual = [*written, *(slot for path in read for slot in _inputs(network, path))]
    residual += [
        Slot(f"{path}.{name}", 0) for path in norms for name, _ in network.get_submodule(path).named_parameters()
    ]
    vocabulary = 0
    if head is not None:
        residual += _inputs(network, head)
        vocabulary = _size(network, _outputs(network, head))
    return replace(
        found, width=width, residual=tuple(residual), written=tuple(written), norms=tuple(norms), vocabulary=vocabulary
    )


def _layers(attentions: list[str]) -> tuple[str, ...]:
    return tuple(path.rpartition(".")[0] for path in attentions)


def _encoder(network: nn.Module) -> Structure | None:
    layers = [path for path, module in network.named_modules() if isinstance(module, nn.TransformerEncoderLayer)]
    if not layers:
        return None
    attention, feed_forward = [], []
    width = 0
    for layer in layers:
        path = f"{layer}.self_attn" if layer else "self_attn"
        module: Any = network.get_submodule(path)
        width, size = int(module.embed_dim), int(module.head_dim)
        heads = int(module.num_heads)
        names = ["in_proj_weight", *(["in_proj_bias"] if module.in_proj_bias is not None else [])]
        packed = [tuple(Slot(f"{path}.{name}", 0, part * heads * size) for name in names) for part in range(3)]
        attention.append(
            Attention(path, packed[0], packed[1] + packed[2], _inputs(network, f"{path}.out_proj"), heads, heads, size)
        )
        first, second = (f"{layer}.{name}" if layer else name for name in ("linear1", "linear2"))
        outputs = _inputs(network, second)
        feed_forward.append(
            FeedForward(layer or "linear1", _outputs(network, first), outputs, _size(network, outputs), 2)
        )
    return Structure(tuple(attention), tuple(feed_forward), tuple(layers), width, causal=False)
