"""Mixers of fixed memory in the place of softmax attention: learned linear attention, and Mamba's recurrence.

Both take over the projections of an attention module. ``o_t = phi(q_t)^T S_t / (phi(q_t)^T n_t)`` with the memory
``S_t = S_(t-1) + phi(k_t) v_t^T`` and the normaliser ``n_t = n_(t-1) + phi(k_t)``, which is one more channel of the
values, equal to one everywhere. Sources: Katharopoulos et al., Transformers are RNNs, ICML 2020; the learned map of
Zhang et al., The Hedgehog and the Porcupine, ICLR 2024; the recurrence in a Mamba mixer, Attention to Mamba, 2026.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from distillrs import random
from distillrs.checks import check_size, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.knowledge.forms.mixer_state import MixerState, layer_state, store_state
from distillrs.knowledge.forms.recurrence import CHUNK, chunked_recurrence
from distillrs.knowledge.forms.tokens import Tokens
from distillrs.step import Step

_FLOOR = 1e-6
# softplus(_STEP_BIAS) = 1 and silu(_GATE_BIAS) = 1.
_STEP_BIAS = math.log(math.expm1(1.0))
_GATE_BIAS = 1.2784645427610738
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class FeatureMap(nn.Module):
    """Positive features of a head's vectors: ``[softmax(W x), softmax(-W x)]``, with a W for each head.

    A floor of 1e-6 keeps every product of two features above 0. Source: Zhang et al., The Hedgehog and the Porcupine,
    ICLR 2024; the softmax over each half bounds the exponentials.

    Args:
        heads: How many W.
        width: Of a head's vectors.
        features: Rows of W, half of the features; ``None`` for ``width``.
        initial: "identity" (W has ones on its diagonal) or "random" (normal of deviation ``width^-1/2``).
        seed: Of the random values.
        name: Of the draw: maps of different names differ.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        features: int | None = None,
        initial: Literal["identity", "random"] = "identity",
        seed: int = 0,
        name: str = "feature map",
    ) -> None:
        super().__init__()
        check_size("heads", heads)
        check_size("width", width)
        if features is not None:
            check_size("features", features, "None or a positive number")
        check_text("name", name)
        rows = width if features is None else features
        given = Step(0, seed=seed)
        if initial == "identity":
            weight = torch.eye(rows, width).repeat(heads, 1, 1)
        elif initial == "random":
            weight = random.normal(heads, rows, width, step=given, name=name) * width**-0.5
        else:
            raise argument_error("initial", initial, "'identity' or 'random'")
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """The features, in float32 or wider.

        Args:
            x: ``[B, heads, L, width]``.

        Returns:
            ``[B, heads, L, 2 rows]``, positive.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        mapped = x.to(wide) @ self.weight.to(wide).transpose(1, 2)
        return torch.cat([mapped.softmax(-1), (-mapped).softmax(-1)], -1) + _FLOOR


class LinearAttention(nn.Module):
    """Learned linear attention over the projections of an attention module.

    It stands where that module stood: it is called as Hugging Face's attention modules are, and works with their
    caches, in which it keeps a :class:`MixerState` in the place of keys and values. Attention's dropout is not kept. It
    refuses masks that say more than padding and packing.

    Args:
        attention: A module with ``q_proj, k_proj, v_proj, o_proj`` and ``head_dim``, such as Llama's, Qwen's or OLMo's;
            it is left as it was, and its projections are shared.
        features: See :class:`FeatureMap`.
        initial: See :class:`FeatureMap`.
        seed: See :class:`FeatureMap`.
        chunk: Tokens whose products are formed at once.

    Raises:
        ArgumentError: A module that is no such attention, or whose attention this form cannot take over.
    """

    def __init__(
        self,
        attention: nn.Module,
        features: int | None = None,
        initial: Literal["identity", "random"] = "identity",
        seed: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        super().__init__()
        _check_attention(attention)
        check_whole("chunk", chunk, "a positive number of tokens", least=1)
        self.head_dim = int(attention.head_dim)  # type: ignore[arg-type]  # modules' attributes have no types
        self.layer_idx: Any = getattr(attention, "layer_idx", None)
        self.config: Any = getattr(attention, "config", None)
        self.chunk = chunk
        for name in _PROJECTIONS:
            self.add_module(name, attention.get_submodule(name))
        for name in ("q_norm", "k_norm"):
            self.add_module(name, getattr(attention, name, None))
        self.heads = self._projection("q_proj").out_features // self.head_dim
        self.groups = self._projection("k_proj").out_features // self.head_dim
        like = self._projection("q_proj").weight
        place = f"mixer {self.layer_idx}"
        self.query_map = FeatureMap(self.heads, self.head_dim, features, initial, seed, f"{place} queries").to(like)
        self.key_map = FeatureMap(self.groups, self.head_dim, features, initial, seed, f"{place} keys").to(like)
        self.train(attention.training)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """The mixer's output, as an attention module gives it.

        Args:
            hidden_states: ``[B, L, hidden]``.
            position_embeddings: Cosines and sines of the rotation, each ``[B or 1, L, head_dim]``; ``None`` for none.
            attention_mask: See :meth:`Tokens.of_mask`; ``None`` if all tokens are there.
            past_key_values: Hugging Face's cache, whose layer is replaced by this mixer's state.
            **kwargs: ``position_ids`` tell packed documents apart where the attention's implementation makes no mask.

        Returns:
            ``[B, L, hidden]``, and ``None`` for the weights of attention, which there are none of.

        Raises:
            ArgumentError: A mask or a cache that this mixer cannot take.
        """
        state = layer_state(past_key_values, self.layer_idx)
        length = hidden_states.shape[1]
        seen = 0 if state is None else state.seen
        if attention_mask is not None:
            tokens = Tokens.of_mask(attention_mask, length, seen)
        elif self._tells_by_positions and kwargs.get("position_ids") is not None and not seen:
            tokens = Tokens.of_positions(kwargs["position_ids"].expand(len(hidden_states), -1))
        else:
            tokens = Tokens()
        mixed, state = self.mix(hidden_states, position_embeddings, tokens, state)
        store_state(past_key_values, self.layer_idx, state)
        return mixed, None

    def mix(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        tokens: Tokens | None = None,
        state: MixerState | None = None,
    ) -> tuple[Tensor, MixerState]:
        """The mixer's output and what it remembers: for all tokens at once, or some after others.

        Args:
            hidden_states: ``[B, L, hidden]``.
            position_embeddings: As for a call.
            tokens: Which are there; ``None`` for all.
            state: After the tokens before these; ``None`` at the start.

        Returns:
            ``[B, L, hidden]``, and the state after the last token.
        """
        tokens = Tokens() if tokens is None else tokens
        batch, length = hidden_states.shape[:2]
        (queries, keys, values), window = self._projected(hidden_states, tokens, state)
        if position_embeddings is not None:
            queries, keys = (rotated(each, *position_embeddings) for each in (queries, keys))
        read, write = self.query_map(queries), self.key_map(keys)
        step, log_decay = self._dynamics(hidden_states)
        if step is not None:
            write = write * step[..., None].to(write)
        if tokens.there is not None:
            write = write * tokens.there[:, None, :, None]
            log_decay = None if log_decay is None else log_decay * tokens.there[:, None]
        wide = values.to(write)
        memory = None if state is None else state.memory
        found, memory = chunked_recurrence(
            read,
            write,
            torch.cat([wide, torch.ones_like(wide[..., :1])], -1),
            log_decay=None if log_decay is None else log_decay.to(write),
            segments=tokens.segments,
            memory=memory,
            chunk=self.chunk,
        )
        normaliser = found[..., -1:]
        # Padding before the first token has read nothing.
        mixed = found[..., :-1] / torch.where(normaliser > 0, normaliser, torch.ones_like(normaliser))
        mixed = self._finished(mixed, wide, hidden_states).to(hidden_states.dtype)
        mixed = self._projection("o_proj")(mixed)
        seen = length + (0 if state is None else state.seen)
        return mixed.reshape(batch, length, -1), MixerState(memory, window, seen)

    @property
    def _tells_by_positions(self) -> bool:
        return "flash" in str(getattr(self.config, "_attn_implementation", ""))

    def _projection(self, name: str) -> nn.Linear:
        return self.get_submodule(name)  # type: ignore[return-value]  # checked at construction

    def _projected(
        self, hidden_states: Tensor, tokens: Tokens, state: MixerState | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """Queries ``[B, H, L, d]``, keys and values ``[B, G, L, d]``; and what a convolution is to remember."""
        given = [self._projection(name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj")]
        return self._by_head(*given), None

    def _by_head(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = (each.reshape(*each.shape[:-1], -1, self.head_dim) for each in (queries, keys, values))
        if (norm := self._modules["q_norm"]) is not None:
            queries = norm(queries)
        if (norm := self._modules["k_norm"]) is not None:
            keys = norm(keys)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def _dynamics(self, hidden_states: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Step size and logarithm of the decay, each ``[B, G, L]``; ``None`` for 1 and 0."""
        return None, None

    def _finished(self, mixed: Tensor, values: Tensor, hidden_states: Tensor) -> Tensor:
        """What goes into the output projection, ``[B, L, H d]``."""
        return mixed.transpose(1, 2).flatten(2)


class MambaMixer(LinearAttention):
    """Linear attention as a Mamba mixer: with a convolution, a step and a decay that depend on the token, and a gate.

    ``S_t = exp(-step_t rate) S_(t-1) + step_t B_t x_t^T`` with ``B = phi(k)``, ``x = v``, ``y_t = C_t^T S_t`` over the
    normaliser's channel with ``C = phi(q)``, then ``y + skip x``, times ``silu(gate(u))``. It begins as the linear
    attention that it is made of, to rounding: the convolution at the identity, the step at ``softplus(b) = 1``, the
    rate and the skip at 0, the gate at ``silu(b) = 1``. Sources: Gu and Dao, Mamba, 2023; Dao and Gu, Transformers
    are SSMs, ICML 2024 (one rate for each memory).

    The convolution runs over queries, keys and values before rotation and feature maps, within documents; padding
    counts as zeros.

    Args:
        mixer: The linear attention, which is left as it was; its projections and maps are shared.
        kernel: Tokens that the convolution sees, from 1.

    Raises:
        ArgumentError: Something else, or a kernel that is not allowed.
    """

    def __init__(self, mixer: LinearAttention, kernel: int = 4) -> None:
        if type(mixer) is not LinearAttention:
            raise argument_error("mixer", type(mixer).__name__, "a LinearAttention")
        check_size("kernel", kernel, "a positive number of tokens")
        super().__init__(mixer, chunk=mixer.chunk)
        self.query_map, self.key_map = mixer.query_map, mixer.key_map
        query = self._projection("q_proj")
        like, hidden = query.weight, query.in_features
        identity = torch.zeros(self.head_dim * (self.heads + 2 * self.groups), kernel)
        identity[:, -1] = 1
        self.convolution = nn.Parameter(identity.to(like))
        self.step = _constant_linear(hidden, self.groups, _STEP_BIAS).to(like)
        self.rate = nn.Parameter(torch.zeros(self.groups).to(like))
        self.skip = nn.Parameter(torch.zeros(self.heads).to(like))
        self.gate = _constant_linear(hidden, self.heads * self.head_dim, _GATE_BIAS).to(like)

    def _projected(
        self, hidden_states: Tensor, tokens: Tokens, state: MixerState | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        x = torch.cat([self._projection(name)(hidden_states) for name in ("q_proj", "k_proj", "v_proj")], -1)
        if tokens.there is not None:
            x = x * tokens.there[..., None].to(x)
        before = self.convolution.shape[1] - 1
        past = x.new_zeros(len(x), before, x.shape[-1]) if state is None or state.window is None else state.window
        joined = torch.cat([past.to(x), x], 1)
        taps = self.convolution.unbind(1)
        mixed = x * taps[-1]
        for back, tap in enumerate(reversed(taps[:-1]), start=1):
            shifted = joined[:, before - back : joined.shape[1] - back]
            if tokens.segments is not None:
                marks = tokens.segments
                first = marks[:, :1].expand(-1, min(back, marks.shape[1]))
                same = torch.cat([first, marks[:, :-back]], 1) == marks
                shifted = shifted * same[..., None].to(shifted)
            mixed = mixed + shifted * tap
        sizes = [self.heads * self.head_dim, *[self.groups * self.head_dim] * 2]
        return self._by_head(*torch.split(mixed, sizes, -1)), joined[:, joined.shape[1] - before :]

    def _dynamics(self, hidden_states: Tensor) -> tuple[Tensor | None, Tensor | None]:
        step = functional.softplus(self.step(hidden_states).to(torch.promote_types(hidden_states.dtype, torch.float32)))
        step = step.transpose(1, 2)
        return step, -step * _NonNegative.apply(self.rate)[:, None].to(step)

    def _finished(self, mixed: Tensor, values: Tensor, hidden_states: Tensor) -> Tensor:
        own = values.repeat_interleave(self.heads // self.groups, 1)
        joined = (mixed + self.skip.to(mixed)[:, None, None] * own).transpose(1, 2).flatten(2)
        return joined * functional.silu(self.gate(hidden_states)).to(joined)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Vectors turned by their positions, coordinate i with coordinate ``i + width / 2``.

    Source: Su et al., RoFormer, 2021, in the pairing of Hugging Face's Llama.

    Args:
        x: ``[B, heads, L, width]``.
        cosine: ``[B or 1, L, width]``.
        sine: ``[B or 1, L, width]``.
    """
    if cosine.shape[-1] != x.shape[-1]:
        got = f"{cosine.shape[-1]} of {x.shape[-1]} coordinates"
        raise argument_error("position_embeddings", got, "a rotation of all coordinates of a head")
    low, high = x.chunk(2, -1)
    return x * cosine[:, None] + torch.cat([-high, low], -1) * sine[:, None]


class _NonNegative(torch.autograd.Function):
    """``max(x, 0)``, whose gradient still reaches what lies at or below 0 and is to rise: a rate may leave 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x > 0) | (gradient < 0), gradient, torch.zeros_like(gradient))


def _constant_linear(inputs: int, outputs: int, value: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)
    return layer


def _check_attention(attention: nn.Module) -> None:
    missing = [name for name in _PROJECTIONS if not isinstance(getattr(attention, name, None), nn.Linear)]
    if missing or not isinstance(getattr(attention, "head_dim", None), int):
        got = f"{type(attention).__name__} without {', '.join(missing) or 'head_dim'}"
        raise argument_error("attention", got, "a module with q_proj, k_proj, v_proj, o_proj and head_dim")
    if getattr(attention, "is_causal", True) is False:
        raise argument_error("attention", f"{type(attention).__name__}, which sees later tokens", "causal attention")
    if getattr(attention, "sliding_window", None):
        got = f"{type(attention).__name__} over a window of {attention.sliding_window} tokens"
        raise argument_error("attention", got, "attention over all earlier tokens")
    if isinstance(attention, LinearAttention):
        return
    _check_rotation(attention)


def _check_rotation(attention: nn.Module) -> None:
    """Raises if the attention's own module rotates in another way than :func:`rotated`."""
    import sys

    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    if apply is None:
        return
    width = int(attention.head_dim)  # type: ignore[arg-type]  # checked before
    x = random.normal(2, 3, width, step=Step(0), name="rotation probe")[None]
    angle = random.uniform(3, width // 2, step=Step(0), name="rotation angles")[None].repeat(1, 1, 2)
    theirs, _ = apply(x, x, angle.cos(), angle.sin())
    if theirs.shape != x.shape or not torch.allclose(theirs, rotated(x, angle.cos(), angle.sin()), atol=1e-5):
        got = f"{type(attention).__name__}, which pairs coordinates in another way"
        raise argument_error("attention", got, "rotary positions in the pairing of Llama, or none")
