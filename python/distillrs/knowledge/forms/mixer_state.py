"""What a mixer remembers between calls, alone or as a layer of Hugging Face's caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from distillrs.errors import argument_error


@dataclass(frozen=True, slots=True, eq=False)
class MixerState:
    """A mixer's memory after some tokens; its size does not depend on how many.

    Attributes:
        memory: ``[B, groups, features, head_dim + 1]``; the last channel is the normaliser.
        window: The last inputs of the convolution, ``[B, kernel - 1, channels]``; ``None`` without one.
        seen: Tokens so far, padding included.
    """

    memory: Tensor
    window: Tensor | None
    seen: int

    def mapped(self, function: Callable[[Tensor], Tensor]) -> MixerState:
        """The state with a function applied to each tensor."""
        window = None if self.window is None else function(self.window)
        return MixerState(function(self.memory), window, self.seen)


def layer_state(past: Any, index: int | None) -> MixerState | None:
    """The state that a cache holds for a layer; ``None`` without a cache or before the first token.

    Args:
        past: Hugging Face's cache, or ``None``.
        index: The layer's number.

    Raises:
        ArgumentError: No cache of layers, or one whose layer already holds keys and values.
    """
    if past is None:
        return None
    layers = getattr(past, "layers", None)
    if not isinstance(layers, list) or index is None:
        raise argument_error("past_key_values", type(past).__name__, "None or a transformers.Cache, and a layer_idx")
    if index >= len(layers):
        return None
    layer = layers[index]
    if isinstance(layer, _state_layer()):
        state: MixerState | None = layer.state  # type: ignore[attr-defined]  # its class is made when it is asked for
        return state
    if getattr(layer, "is_initialized", False):
        got = f"keys and values in layer {index}"
        raise argument_error("past_key_values", got, "a cache that this network filled")
    return None


def store_state(past: Any, index: int | None, state: MixerState) -> None:
    """Writes a state into a cache, in the place of the layer's keys and values.

    Args:
        past: The cache, or ``None`` to do nothing.
        index: The layer's number.
        state: What to keep.
    """
    if past is None or index is None:
        return
    kind = _state_layer()
    while len(past.layers) <= index:
        past.layers.append(past.layer_class_to_replicate())
    if not isinstance(past.layers[index], kind):
        past.layers[index] = kind()
    past.layers[index].state = state


@cache
def _state_layer() -> type:
    """The layer of a cache that holds a state: made at first use, since transformers is optional."""
    from transformers.cache_utils import CacheLayerMixin

    class StateLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers types none of it
        """One layer's :class:`MixerState`."""

        is_sliding = False
        supports_early_init = False

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)  # type: ignore[no-untyped-call]  # as above
            self.state: MixerState | None = None

        def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
            """Nothing: the mixer makes the state."""

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            raise argument_error("past_key_values", "a mixer's state", "a cache that this network filled")

        def get_seq_length(self) -> int:
            return 0 if self.state is None else self.state.seen

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.get_seq_length() + query_length, 0

        def get_max_length(self) -> int:
            return -1

        def offload(self) -> None:
            """Nothing: the state is small."""

        def prefetch(self) -> None:
            """Nothing: the state is never offloaded."""

        def reset(self) -> None:
            self.state = None

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self._map(lambda each: each.index_select(0, beam_idx.to(each.device)))

        def batch_repeat_interleave(self, repeats: int) -> None:
            self._map(lambda each: each.repeat_interleave(repeats, 0))

        def batch_select_indices(self, indices: Tensor) -> None:
            self._map(lambda each: each[indices])

        def _map(self, function: Callable[[Tensor], Tensor]) -> None:
            self.state = None if self.state is None else self.state.mapped(function)

    return StateLayer
