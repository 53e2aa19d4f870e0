"""Text drawn from causal language models: token by token, or by a draft that a larger model verifies.

Draws are keyed by (seed, name, step, unit) and the token's place, so a row does not depend on the batch that it is
drawn in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distillrs import random
from distillrs.checks import check_callable, check_text, check_whole
from distillrs.errors import argument_error
from distillrs.frozen import Frozen, evaluating
from distillrs.knowledge.numerics import is_number, wide
from distillrs.step import Step

Network = nn.Module | Callable[..., Any]
"""A causal language model: ``network(input_ids=ids)`` gives logits ``[B, L, vocabulary]``, or what has ``.logits``."""


@torch.no_grad()
def sample_text(
    network: Network,
    prompts: Tensor,
    length: int,
    *,
    step: Step | int,
    name: str = "text",
    temperature: float = 1.0,
    units: random.Units | None = None,
) -> Tensor:
    """Draws continuations. No gradient goes through them.

    Keys and values of earlier tokens are kept where the network returns them as ``past_key_values``; a network that
    does not is asked about the whole row for each token.

    Args:
        network: The model, put into evaluation mode meanwhile.
        prompts: int64 ``[B, P]``, at least one token, all of one length.
        length: Tokens of a row, prompt included.
        step: Where in the run.
        name: What the draw is for.
        temperature: Divides the logits; 0 takes the most likely token.
        units: Global ids of the rows; ``None`` counts from ``step.first_unit``.

    Returns:
        int64 ``[B, length]``.

    Raises:
        ArgumentError: An argument is not allowed.
    """
    check_callable("network", network, "a network or a function of input_ids=")
    check_drawing(prompts, length, temperature)
    rows, given = prompts.shape
    step = Step.of(step)
    drawn = random.uniform(rows if units is None else units, length, step=step, name=name, dtype=torch.float64)
    if len(drawn) != rows:
        raise argument_error("units", f"{len(drawn)} ids", f"{rows}, one for each prompt")
    drawn = drawn.to(prompts.device)
    ids = torch.cat([prompts, prompts.new_zeros(rows, length - given)], 1)
    model, kept, seen = module_of(network), None, 0
    with evaluating(*_modules(network)):
        for place in range(given, length):
            options: dict[str, Any] = {} if kept is None else {"past_key_values": kept}
            if hasattr(model, "config"):
                options["use_cache"] = True
            output = model(input_ids=ids[:, seen:place], **options)
            kept = getattr(output, "past_key_values", None)
            seen = place if kept is not None else 0
            log_probs = tempered(logits_of(output)[:, -1], temperature)
            ids[:, place] = pick(log_probs, drawn[:, place])
    return ids


@dataclass(frozen=True, slots=True, eq=False)
class Speculated:
    """What :func:`speculative_sample` drew, and how often the draft was right.

    Attributes:
        ids: int64 ``[B, length]``.
        accepted: Proposals of the draft that were taken.
        tested: Proposals that were tested: those up to the first in a block that was not taken.
        expected: Sum over the tested proposals of the probability to be taken, ``sum_v min(p_v, q_v)``, which is
            ``1 - TVD(p, q)``.
        blocks: Calls of the target, added up over the rows.
    """

    ids: Tensor
    accepted: int
    tested: int
    expected: float
    blocks: int

    @property
    def acceptance(self) -> float:
        """Share of the tested proposals that were taken."""
        return self.accepted / max(self.tested, 1)

    @property
    def expected_acceptance(self) -> float:
        """Mean of ``1 - TVD`` at the tested places."""
        return self.expected / max(self.tested, 1)


@torch.no_grad()
def speculative_sample(
    target: Network,
    draft: Network,
    prompts: Tensor,
    length: int,
    *,
    step: Step | int,
    name: str = "speculation",
    draft_length: int = 4,
    temperature: float = 1.0,
    lenience: float = 1.0,
) -> Speculated:
    """Draws from the target with the help of a draft; with lenience 1 exactly the target's distribution.

    The draft q proposes a block of tokens; the target p looks at all of them in one call. Proposal x is taken with
    probability ``min(1, p(x) / (lenience q(x)))``; the first that is not is replaced by a draw from ``max(0, p -
    lenience q)``, normalised, and after a block that was taken whole one more token is drawn from p. Source:
    Leviathan, Kalman, Matias, Fast Inference from Transformers via Speculative Decoding, ICML 2023.

    It measures what drafts are worth: networks are asked about whole rows, so it is itself not fast.

    Args:
        target: The model to draw from.
        draft: A model over the same vocabulary.
        prompts: int64 ``[B, P]``, at least one token.
        length: Tokens of a row, prompt included.
        step: Where in the run; rows are the units from ``step.first_unit``.
        name: What the draw is for.
        draft_length: Proposals of a block.
        temperature: Of both models; 0 takes the most likely token.
        lenience: From above 0 to 1; below 1 more proposals are taken, and the result is between target and draft.

    Raises:
        ArgumentError: An argument is not allowed, or the vocabularies differ.
    """
    for name_of, network in (("target", target), ("draft", draft)):
        check_callable(name_of, network, "a network or a function of input_ids=")
    check_drawing(prompts, length, temperature)
    check_whole("draft_length", draft_length, "a positive number of tokens", least=1, most=2**31)
    if not (is_number(lenience) and 0 < lenience <= 1):
        raise argument_error("lenience", lenience, "a number from above 0 to 1")
    check_text("name", name)
    rows, given = prompts.shape
    device, step = prompts.device, Step.of(step)
    # A place is proposed again after a proposal before it was not taken; nothing was decided by its draws then.
    proposing, testing, mending = (
        random.uniform(rows, length, step=step, name=f"{name}/{what}", dtype=torch.float64).to(device)
        for what in ("proposal", "test", "replacement")
    )
    # Beyond the end is room for the proposals of the last block.
    ids = torch.cat([prompts, prompts.new_zeros(rows, length - given + draft_length)], 1)
    lengths = torch.full((rows,), given, device=device)
    accepted = tested = blocks = 0
    expected = 0.0
    line = torch.arange(rows, device=device)
    with evaluating(*_modules(target), *_modules(draft)):
        while (open_rows := lengths < length).any():
            proposals = []
            for ahead in range(draft_length):
                places = (lengths + ahead).clamp(max=length + draft_length - 1)
                log_q = tempered(_at(draft, ids, places - 1), temperature)
                ids[line, places] = pick(log_q, proposing[line, places.clamp(max=length - 1)])
                proposals.append(log_q)
            found = logits_of(module_of(target)(input_ids=ids[:, : int(lengths.max()) + draft_length]))
            blocks += int(open_rows.sum())
            going = open_rows.clone()
            start = lengths.clone()
            for ahead in range(draft_length + 1):
                place = start + ahead
                going &= place < length
                inside = place.clamp(max=length - 1)
                log_p = tempered(found[line, (place - 1).clamp(max=found.shape[1] - 1)], temperature)
                if ahead == draft_length:
                    ids[line, inside] = torch.where(going, pick(log_p, proposing[line, inside]), ids[line, inside])
                    lengths += going
                    break
                log_q = proposals[ahead]
                if log_q.shape != log_p.shape:
                    got = f"{log_q.shape[-1]} tokens of the draft, {log_p.shape[-1]} of the target"
                    raise argument_error("draft", got, "one vocabulary")
                p, q = log_p.exp(), lenience * log_q.exp()
                own = ids[line, inside]
                taken = testing[line, inside] * q[line, own] < p[line, own]
                rest = (p - q).clamp(min=0)
                # Nothing is left where both are equal but for rounding.
                rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
                replaced = pick(rest.log(), mending[line, inside])
                ids[line, inside] = torch.where(going & ~taken, replaced, own)
                tested += int(going.sum())
                accepted += int((going & taken).sum())
                expected += float((torch.minimum(p / lenience, q / lenience).sum(-1) * going).sum())
                lengths += going
                going &= taken
    return Speculated(ids[:, :length], accepted, tested, expected, blocks)


def acceptance(draft_logits: Tensor, target_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probability that the target takes a draft's proposal: ``sum_v min(p_v, q_v) = 1 - TVD(p, q)``, [...].

    Args:
        draft_logits: ``[..., vocabulary]``.
        target_logits: ``[..., vocabulary]``.
        temperature: Of both; 0 for the most likely token of each.

    Raises:
        ArgumentError: Something else than tensors, shapes that differ, or a temperature that is not allowed.
    """
    for name, logits in (("draft_logits", draft_logits), ("target_logits", target_logits)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or not logits.ndim:
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise argument_error(name, got, "a floating tensor [..., vocabulary]")
    if draft_logits.shape != target_logits.shape:
        got = f"shapes {tuple(draft_logits.shape)} and {tuple(target_logits.shape)}"
        raise argument_error("draft_logits", got, "one shape")
    _check_temperature(temperature)
    return torch.minimum(tempered(draft_logits, temperature).exp(), tempered(target_logits, temperature).exp()).sum(-1)


def block_length(rate: float, draft_length: int) -> float:
    """Expected tokens of one call of the target: ``(1 - a^(g + 1)) / (1 - a)`` for a proposal taken with probability a.

    Args:
        rate: a, from 0 to 1.
        draft_length: g, the proposals of a block, from 0.

    Raises:
        ArgumentError: A rate that is no probability, or a length that is no count.
    """
    if not (is_number(rate) and 0 <= rate <= 1):
        raise argument_error("rate", rate, "a probability")
    check_whole("draft_length", draft_length, "a number of tokens from 0 to 2**20", least=0, most=2**20)
    return float(sum(rate**power for power in range(draft_length + 1)))


def speed_up(rate: float, draft_length: int, cost: float) -> float:
    """How many times faster than the target alone: :func:`block_length` over ``c g + 1``.

    Args:
        rate: a, from 0 to 1.
        draft_length: g, the proposals of a block.
        cost: c, time of a call of the draft over that of the target.

    Raises:
        ArgumentError: A rate that is no probability, or a negative cost.
    """
    if not (is_number(cost) and cost >= 0):
        raise argument_error("cost", cost, "a number from 0")
    return block_length(rate, draft_length) / (cost * draft_length + 1)


def check_drawing(prompts: Tensor, length: int, temperature: float) -> None:
    """Raises for what cannot be continued.

    Raises:
        ArgumentError: Prompts, a length or a temperature that are not allowed.
    """
    if not isinstance(prompts, Tensor) or prompts.dtype != torch.int64 or prompts.ndim != 2 or not prompts.shape[1]:
        got = f"{prompts.dtype} {tuple(prompts.shape)}" if isinstance(prompts, Tensor) else type(prompts).__name__
        raise argument_error("prompts", got, "int64 [rows, tokens] with at least one token")
    if isinstance(length, bool) or not isinstance(length, int) or length < prompts.shape[1]:
        raise argument_error("length", length, f"at least {prompts.shape[1]}, the prompts' length")
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not (is_number(temperature) and temperature >= 0):
        raise argument_error("temperature", temperature, "a finite number from 0")


def module_of(network: Network) -> Any:
    """The module itself, where it is frozen."""
    return network.module if isinstance(network, Frozen) else network


def _modules(network: Network) -> list[nn.Module]:
    """What has modes; a plain function has none."""
    module = module_of(network)
    return [module] if isinstance(module, nn.Module) else []


def logits_of(output: Any) -> Tensor:
    """A plain tensor, or ``.logits``."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Log-probabilities in at least 32 bits; at temperature 0 all mass on the first most likely token."""
    logits = wide(logits)
    if temperature == 0:
        best = torch.full_like(logits, -math.inf)
        return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    return (logits / float(temperature)).log_softmax(-1)


def pick(log_weights: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative sum of ``[B, vocabulary]`` passes a uniform draw ``[B]``.

    Cumulative sums are in float64; a token of weight 0 is never picked, whatever the rounding.
    """
    sums = log_weights.double().exp().cumsum(-1)
    # Below the whole, so that the last token that is found has a weight.
    wanted = torch.minimum(uniform[:, None] * sums[:, -1:], sums[:, -1:] * (1 - 2**-52))
    return torch.searchsorted(sums, wanted, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def _at(network: Network, ids: Tensor, places: Tensor) -> Tensor:
    """Logits ``[B, vocabulary]`` at one place of each row; what stands behind it is not seen by a causal model."""
    found = logits_of(module_of(network)(input_ids=ids[:, : int(places.max()) + 1]))
    return found[torch.arange(len(ids), device=ids.device), places]
