"""The fused head in real language models."""

import pytest
import torch

import distillrs as dr
from distillrs import ops
from distillrs.knowledge import Head, Labels, Objective, Output, Shifted, Term
from tiny_language import VOCABULARY, llama


def gpt2(width, layers, seed):
    import transformers

    torch.manual_seed(seed)
    sizes = {"n_embd": width, "n_layer": layers, "n_head": 2, "n_positions": 32}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes)
    return transformers.GPT2LMHeadModel(config)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("make", [llama, gpt2])
def test_losses_and_gradients_are_those_of_the_logits(make, checkpointing):
    student, teacher = make(16, 2, seed=0), dr.Frozen(llama(24, 2, seed=1))
    for dropout in (module for module in student.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    student.train()
    if checkpointing:
        # Its name before transformers 5.
        enable = getattr(student, "activation_checkpointing_enable", None) or student.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    ids = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
    found = []
    for tap in (Head("lm_head", chunk_bytes=5 * 8 * VOCABULARY), Output("logits")):
        terms = [
            Term(tap, divergence=ops.JensenShannon(), temperature=2.0, rows=Shifted()),
            Term(tap, target=Labels(), rows=Shifted(), scale=0.5),
        ]
        student.zero_grad()
        loss = Objective(student, teacher, terms)({"input_ids": ids, "labels": ids})
        loss.total.backward()
        found.append((loss.total.detach(), {name: p.grad.clone() for name, p in student.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-6, msg=name)
    assert student(ids).logits.shape == (2, 9, VOCABULARY)
