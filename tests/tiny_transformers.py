"""Tiny transformers of the known kinds, and masks of their parts."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # after the environment that transformers reads at import
from torch import nn

from distillrs.knowledge.forms import Masks, Structure

VOCABULARY = 11
KINDS = ["llama", "grouped", "tied", "gpt2", "encoder", "post-norm"]


def make(kind: str, seed: int = 0) -> nn.Module:
    import transformers

    torch.manual_seed(seed)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=2, n_head=4, n_inner=20
        )
        network = transformers.GPT2LMHeadModel(config)
    elif kind in ("encoder", "post-norm"):
        layer = nn.TransformerEncoderLayer(24, 4, 20, batch_first=True, norm_first=kind == "encoder")
        network = nn.Sequential(
            nn.Embedding(VOCABULARY, 24), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        )
    else:
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2 if kind == "grouped" else 4,
            attention_bias=kind == "grouped",
            tie_word_embeddings=kind == "tied",
            max_position_embeddings=32,
        )
        network = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in network.parameters():
            # Biases and scales too: those that begin at 0 or 1 would hide mistakes.
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.eval()


def output(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    found = network(ids)
    return found if isinstance(found, torch.Tensor) else found.logits


def masks_of(structure: Structure, seed: int, *, channels: bool = True, layers: bool = False) -> Masks:
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> torch.Tensor:
        mask = (torch.rand(count, generator=generator) > 0.4).float()
        mask[int(torch.randint(count, (1,), generator=generator))] = 1
        return mask

    return Masks(
        tuple(some(unit.heads) for unit in structure.attention),
        tuple(some(part.neurons) for part in structure.feed_forward),
        some(structure.width) if channels and structure.residual else None,
        torch.tensor([0.0, 1.0]) if layers else None,
    )


IDS = torch.randint(0, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(5))
