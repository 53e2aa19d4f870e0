"""A smaller network out of chosen parts of a larger one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs.checks import check_instance
from distillrs.errors import argument_error
from distillrs.knowledge.forms.structure import Slot, Structure
from distillrs.knowledge.taps import unwrapped


def take(
    structure: Structure,
    network: nn.Module,
    heads: Sequence[Tensor] | None,
    neurons: Sequence[Tensor] | None,
    channels: Tensor | None,
    layers: Tensor | None,
) -> nn.Module:
    """See :meth:`Structure.take`."""
    plain = unwrapped(network)
    structure.check_names(plain)
    heads = _checked("heads", heads, [unit.heads for unit in structure.attention])
    neurons = _checked("neurons", neurons, [part.neurons for part in structure.feed_forward])
    if channels is not None:
        if not structure.residual:
            raise argument_error("channels", type(channels).__name__, "None for a network of this kind")
        (channels,) = _checked("channels", [channels], [structure.width])
    if layers is not None:
        (layers,) = _checked("layers", [layers], [len(structure.layers)])
        if bool((layers.diff() <= 0).any()):
            raise argument_error("layers", layers.tolist(), "rising numbers: layers keep their order")
    chosen: dict[tuple[str, int], list[tuple[int, Tensor]]] = {}
    groups = []

    def note(slots: Sequence[Slot], places: Tensor) -> None:
        for slot in slots:
            chosen.setdefault((slot.name, slot.dim), []).append((slot.offset, places.cpu()))

    for unit, kept in zip(structure.attention, heads, strict=True):
        shared, group = unit.key_value_heads(kept)
        groups.append(group)
        note(unit.queries, _elements(kept, unit.size))
        note(unit.outputs, _elements(kept, unit.size))
        note(unit.keys_values, _elements(shared, unit.size))
    for part, kept in zip(structure.feed_forward, neurons, strict=True):
        note((*part.inner, *part.outputs), kept)
    if channels is not None:
        note(structure.residual, channels)
    smaller = copy.deepcopy(plain)
    _cut(smaller, chosen)
    for unit, kept, group in zip(structure.attention, heads, groups, strict=True):
        _mend_attention(smaller, unit.path, len(kept), group, unit.size)
    if layers is not None:
        _keep_layers(smaller, structure.layers, layers.tolist())
    _mend_configs(smaller, Structure.of(smaller))
    return smaller


def _elements(heads: Tensor, size: int) -> Tensor:
    return (heads[:, None] * size + torch.arange(size, device=heads.device)).flatten()


def _checked(name: str, parts: Sequence[Tensor] | None, sizes: list[int]) -> list[Tensor]:
    if parts is None:
        return [torch.arange(size) for size in sizes]
    if not isinstance(parts, list | tuple):
        raise argument_error(name, type(parts).__name__, "None or a list of tensors, one for each layer")
    if len(parts) != len(sizes):
        raise argument_error(name, f"{len(parts)} tensors", f"{len(sizes)}: one for each layer")
    for place, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        check_instance(name, part, Tensor, "int64 [n]")
        if part.dtype != torch.int64 or part.ndim != 1:
            raise argument_error(name, f"{part.dtype} of shape {list(part.shape)}", "int64 [n]")
        inside = len(part) and int(part.min()) >= 0 and int(part.max()) < size
        if not inside or len(set(part.tolist())) != len(part):
            allowed = f"at least one of 0 to {size - 1}, each once; to leave out all of a layer, leave out the layer"
            raise argument_error(name, f"{part.tolist()} in place {place}", allowed)
    return [part.cpu() for part in parts]


@torch.no_grad()
def _cut(network: nn.Module, chosen: dict[tuple[str, int], list[tuple[int, Tensor]]]) -> None:
    indices: dict[str, dict[int, Tensor]] = {}
    for (name, dim), pieces in chosen.items():
        pieces.sort(key=lambda piece: piece[0])
        indices.setdefault(name, {})[dim] = torch.cat([offset + places for offset, places in pieces])
    # Tied parameters stay tied.
    made: dict[int, nn.Parameter] = {}
    for name, dims in indices.items():
        path, _, own = name.rpartition(".")
        module = network.get_submodule(path)
        old = module._parameters.get(own)
        if old is None:
            raise argument_error("network", f"{name!r} under a form", "a plain network; take the form off first")
        if id(old) not in made:
            new = old
            for dim, places in dims.items():
                new = new.index_select(dim, places.to(new.device))  # type: ignore[assignment]  # a tensor on the way
            made[id(old)] = nn.Parameter(new.clone(), requires_grad=old.requires_grad)
        module._parameters[own] = made[id(old)]
        _mend_sizes(module)


def _mend_sizes(module: Any) -> None:
    """Writes the shapes of a module's parameters into its attributes."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(weight.shape)
    elif type(module).__name__ == "Conv1D":
        module.nx, module.nf = weight.shape


def _mend_attention(network: nn.Module, path: str, heads: int, group: int, size: int) -> None:
    module: Any = network.get_submodule(path)
    if isinstance(module, nn.MultiheadAttention):
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, SlicedAttention(module, heads, size))
        return
    for attribute, value in (
        ("num_heads", heads),
        ("num_key_value_groups", group),
        ("num_key_value_heads", heads // group),
        ("split_size", heads * size),
    ):
        if hasattr(module, attribute):
            setattr(module, attribute, value)


def _keep_layers(network: nn.Module, paths: tuple[str, ...], kept: list[int]) -> None:
    parent, _, _ = paths[0].rpartition(".")
    blocks: Any = network.get_submodule(parent)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != len(paths):
        raise argument_error("layers", kept, f"None: {parent!r} is no list of the layers alone")
    remaining = nn.ModuleList([blocks[place] for place in kept])
    for number, block in enumerate(remaining):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]  # a plain attribute of the user's module
    above, _, name = parent.rpartition(".")
    setattr(network.get_submodule(above), name, remaining)
    for config in _configs(network):
        if len(getattr(config, "layer_types", None) or ()) == len(paths):
            config.layer_types = [config.layer_types[place] for place in kept]
        config.num_hidden_layers = len(kept)
    if hasattr(network.get_submodule(above), "num_layers"):
        network.get_submodule(above).num_layers = len(kept)  # type: ignore[assignment]  # as above


def _configs(network: nn.Module) -> list[Any]:
    configs = [getattr(module, "config", None) for module in network.modules()]
    return list({id(config): config for config in configs if config is not None}.values())


def _mend_configs(network: nn.Module, structure: Structure) -> None:
    """What a configuration can say of the new sizes: those that all layers share."""
    attention, parts = structure.attention, structure.feed_forward
    sizes = {
        "hidden_size": {structure.width},
        "num_attention_heads": {unit.heads for unit in attention},
        "num_key_value_heads": {unit.shared for unit in attention},
        "head_dim": {unit.size for unit in attention},
        "intermediate_size": {part.neurons for part in parts},
    }
    for config in _configs(network):
        for name, values in sizes.items():
            if hasattr(config, name) and len(values) == 1:
                setattr(config, name, values.pop())
                values.add(getattr(config, name))


class SlicedAttention(nn.Module):
    """Takes the place of ``torch.nn.MultiheadAttention``, which cannot have fewer heads than its width asks for.

    Args:
        module: The attention, whose parameters were cut.
        heads: How many heads they hold.
        size: Elements of a head.
    """

    # TransformerEncoderLayer reads it, and takes its plain path for an attention that says so.
    _qkv_same_embed_dim = False

    def __init__(self, module: nn.MultiheadAttention, heads: int, size: int) -> None:
        super().__init__()
        self.in_proj_weight = module.in_proj_weight
        self.in_proj_bias = module.in_proj_bias
        self.out_proj = module.out_proj
        self.embed_dim = module.embed_dim
        self.num_heads = heads
        self.head_dim = size
        self.dropout = module.dropout
        self.batch_first = module.batch_first
        self.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As ``torch.nn.MultiheadAttention`` on batches, without the attention's weights.

        Args:
            query: ``[batch, tokens, width]``, or tokens first without ``batch_first``; the same tensor as the next two.
            key: See ``query``.
            value: See ``query``.
            key_padding_mask: ``[batch, tokens]``, true (or minus infinity) where there is nothing to see.
            need_weights: Refused.
            attn_mask: ``[tokens, tokens]`` or ``[batch * heads of the original, tokens, tokens]``.
            is_causal: A hint that ``attn_mask`` is causal.

        Raises:
            ArgumentError: Different inputs, wanted weights, or a mask of other heads.
        """
        if query is not key or key is not value or need_weights:
            raise argument_error("query", "another tensor than key or value, or need_weights", "self-attention")
        if attn_mask is not None and attn_mask.ndim == 3:
            raise argument_error("attn_mask", f"shape {list(attn_mask.shape)}", "[tokens, tokens]: heads were cut")
        x = query if self.batch_first else query.transpose(0, 1)
        batch, tokens, _ = x.shape
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = packed.view(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        bias = None if attn_mask is None else _additive(attn_mask, x.dtype)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, x.dtype)[:, None, None, :]
            bias = padding if bias is None else bias + padding
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0
        )
        out = self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return (out if self.batch_first else out.transpose(0, 1)), None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -torch.inf)
