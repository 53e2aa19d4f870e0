"""What the proofs on real text share: the characters of a text, small transformers, plain training and its measure."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import distillrs as dr
from distillrs import random
from distillrs.errors import DataError

LENGTH = 64
BATCH = 16
RATE = 3e-3


@dataclass(frozen=True)
class Text:
    """A text by its characters, in rows of LENGTH; the last tenth of it is for validation.

    Attributes:
        alphabet: Every character that occurs, in order.
        train: Token ids to learn from, `[rows, LENGTH]`.
        held_out: Token ids that nothing is trained on, `[rows, LENGTH]`.
    """

    alphabet: str
    train: Tensor
    held_out: Tensor

    @staticmethod
    @cache
    def shakespeare() -> Text:
        """The text of `DISTILLRS_DATA/tinyshakespeare.txt`."""
        path = Path(os.environ.get("DISTILLRS_DATA", ".")) / "tinyshakespeare.txt"
        if not path.is_file():
            raise DataError(f"{path} is not there: set DISTILLRS_DATA to the folder of tinyshakespeare.txt")
        text = path.read_text(encoding="utf-8")
        alphabet = "".join(sorted(set(text)))
        places = {character: place for place, character in enumerate(alphabet)}
        ids = torch.tensor([places[character] for character in text])
        rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        cut = len(rows) * 9 // 10
        return Text(alphabet, rows[:cut], rows[cut:])

    def batches(self, steps: int, seed: int, size: int = BATCH) -> Iterator[Tensor]:
        """Token ids `[size, LENGTH]` of one step after another: rows drawn without replacement, epoch by epoch."""
        order = torch.empty(0, dtype=torch.int64)
        epoch = 0
        for _ in range(steps):
            while len(order) < size:
                more = random.permutation(len(self.train), step=dr.Step(epoch, seed=seed), name="batches")
                order, epoch = torch.cat([order, more]), epoch + 1
            yield self.train[order[:size]]
            order = order[size:]


def llama(width: int, layers: int, seed: int, *, heads: int = 4, vocabulary: int = 65, tied: bool = False):
    """A transformer over characters."""
    import transformers

    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4 * LENGTH,
            tie_word_embeddings=tied,
            initializer_range=1 / math.sqrt(width),
        )
    )


def cross_entropy(network: torch.nn.Module, ids: Tensor) -> Tensor:
    """Mean loss of the next character, nats."""
    logits = network(input_ids=ids).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train(
    network: torch.nn.Module,
    batches: Iterator[Tensor],
    steps: int,
    loss_of: Callable[[Tensor, int], Tensor] | None = None,
    *,
    rate: float = RATE,
    parameters: list[torch.nn.Parameter] | None = None,
) -> None:
    """AdamW with a linear warm-up of a twentieth of the steps and a cosine to 0.

    Args:
        network: Trained in place; left in evaluation mode.
        batches: As many as there are steps.
        steps: Length of the run.
        loss_of: Loss of a batch at a step; by default the cross-entropy.
        rate: Highest learning rate.
        parameters: What is trained; by default all of the network's.
    """
    chosen = list(network.parameters()) if parameters is None else parameters
    optimiser = torch.optim.AdamW(chosen, lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    network.train()
    for step, ids in zip(range(steps), batches, strict=True):
        share = min((step + 1) / max(1, steps / 20), 0.5 * (1 + math.cos(math.pi * step / steps)))
        optimiser.param_groups[0]["lr"] = rate * share
        optimiser.zero_grad()
        loss = cross_entropy(network, ids) if loss_of is None else loss_of(ids, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(chosen, 1.0)
        optimiser.step()
    network.eval()


@torch.inference_mode()
def held_out_loss(network: torch.nn.Module, rows: Tensor | None = None) -> float:
    """Mean loss of the next character over held-out rows (by default 400 of them), nats."""
    network.eval()
    rows = Text.shakespeare().held_out[:400] if rows is None else rows
    return sum(float(cross_entropy(network, part)) * len(part) for part in rows.split(100)) / len(rows)
