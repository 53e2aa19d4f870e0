"""A tiny distillation of language models, and the loops that must all train it alike."""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # after the environment that transformers reads at import

import distillrs as dr
from distillrs import schedule
from distillrs.integrations.bookkeeping import count_items
from distillrs.knowledge import (
    Labels,
    Mask,
    NormalisedMSE,
    Objective,
    Output,
    Projector,
    Shifted,
    Term,
)

VOCABULARY, LENGTH, BATCH, STEPS = 40, 9, 2, 5
RATE = 5e-3


def llama(width: int, layers: int, seed: int, dropout: float = 0.0):
    import transformers

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, **sizes, **heads, attention_dropout=dropout, initializer_range=0.3
    )
    return transformers.LlamaForCausalLM(config)


def rows(count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Padded rows and packed ones, whose positions start anew and whose first labels do not count."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        ids = torch.randint(0, VOCABULARY, (LENGTH,), generator=generator)
        mask, positions = torch.ones(LENGTH, dtype=torch.int64), torch.arange(LENGTH)
        labels = ids.clone()
        if number % 2:
            mask[LENGTH - 1 - number % 5 :] = 0
            labels[mask == 0] = -100
        else:
            cut = 2 + number % 5
            positions[cut:] = torch.arange(LENGTH - cut)
            labels[[0, cut]] = -100
        found.append({"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels})
    return found


def loader(batch: int = BATCH):
    return torch.utils.data.DataLoader(rows(), batch_size=batch, shuffle=False)


def make(dropout: float = 0.0) -> Objective:
    torch.manual_seed(7)
    projector = Projector(16, 24)
    return Objective(
        llama(16, 1, 1, dropout).train(),
        dr.Frozen(llama(24, 2, 2)),
        [
            Term(Output("logits"), temperature=2.0, temperature_rule="squared", rows=Shifted(), scale=0.7),
            Term(
                "model.layers.0",
                teacher="model.layers.1",
                align=projector,
                divergence=NormalisedMSE(),
                rows=Mask(),
                scale=schedule.LinearRamp(1.0, 0.2, steps=STEPS),
                name="hint",
            ),
            Term(Output("logits"), target=Labels(), rows=Shifted(), scale=0.3, name="task"),
        ],
    )


def parameters(objective: Objective) -> list[torch.Tensor]:
    own = [*objective.student.parameters(), *objective.parameters()]
    return [parameter.detach().clone() for parameter in own]


def adam(objective: Objective) -> torch.optim.AdamW:
    groups = [{"params": group} for group in objective.parameter_groups().values()]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0)


def plain(accumulate: int = 2, bf16: bool = False, steps: int = STEPS, objective: Objective | None = None):
    """The reference: nothing but torch. Gives the losses of the steps and the parameters at the end."""
    objective = objective or make()
    optimiser, batches, losses = adam(objective), iter(loader()), []
    for index in range(steps):
        window = [next(batches) for _ in range(accumulate)]
        items = sum(int(count_items(objective, batch)) for batch in window)
        optimiser.zero_grad()
        total = 0.0
        for number, batch in enumerate(window):
            step = dr.Step(index, seed=42, total=steps, first_unit=number * BATCH, items=items)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = objective(batch, step)
            loss.total.backward()
            total += float(loss.total)
        optimiser.step()
        losses.append(total)
    return losses, parameters(objective)


def trainer_of(folder: Path, objective: Objective, accumulate: int = 2, **settings):
    import transformers

    from distillrs.integrations.transformers import Distil

    class Trainer(Distil, transformers.Trainer):
        def _get_train_sampler(self, *arguments, **named):
            return torch.utils.data.SequentialSampler(rows())

        def training_step(self, *arguments, **named):
            loss = super().training_step(*arguments, **named)
            self.seen = [*getattr(self, "seen", []), float(self.accelerator.gather(loss.reshape(1)).mean())]
            return loss

    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    arguments = transformers.TrainingArguments(str(folder), **settings)
    return Trainer(args=arguments, train_dataset=rows(), objective=objective)


def with_trainer(folder: Path, accumulate: int = 2, **settings):
    objective = make()
    trainer = trainer_of(folder, objective, accumulate, **settings)
    trainer.train()
    losses = [sum(trainer.seen[at : at + accumulate]) for at in range(0, len(trainer.seen), accumulate)]
    return losses, parameters(objective)


def with_accelerate(accumulate: int = 2, precision: str = "no"):
    import accelerate

    from distillrs.integrations.accelerate import Distil

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
    objective = make()
    distil = Distil(accelerator, objective, seed=42, total=STEPS)
    model, optimiser, batches = accelerator.prepare(objective.student, adam(objective), loader())
    losses = []
    for window in distil.windows(batches):
        parts = [distil.backward(model, batch).total for batch in window]
        losses.append(float(accelerator.reduce(torch.stack(parts).sum(), "sum")))
        optimiser.step()
        optimiser.zero_grad()
        if len(losses) == STEPS:
            break
    return losses, parameters(objective)


def with_lightning(accumulate=2, holds=False, steps=STEPS, objective=None, path=None, data=None, **settings):
    import lightning

    from distillrs.integrations.lightning import distil

    objective = objective or make()
    callback = distil(objective, seed=42)
    losses = []

    class Student(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.student = objective.student
            if holds:
                self.objective = objective

        def training_step(self, batch, index):
            return callback.loss(self, batch)

        def configure_optimizers(self):
            return adam(objective)

        def on_train_start(self):
            self.start = self.trainer.global_step

        def on_train_batch_end(self, *arguments):
            if self.trainer.global_step - self.start > len(losses):
                losses.append(float(self.trainer.callback_metrics["distil/loss"]))

    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    quiet |= {"use_distributed_sampler": False, "accelerator": "cpu", "devices": 1, "max_steps": steps}
    trainer = lightning.Trainer(callbacks=[callback], accumulate_grad_batches=accumulate, **{**quiet, **settings})
    trainer.fit(
        Student(),
        loader() if data is None else data,
        ckpt_path=path,
        **({} if path is None else {"weights_only": True}),
    )
    return losses, parameters(objective), trainer


def rank(out: str) -> None:
    """One of two processes: each loop takes every other batch."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    losses, weights = with_trainer(Path(out) / f"trainer-{os.environ['RANK']}", ddp_backend="gloo")
    found["trainer"] = losses
    torch.save(weights, f"{out}/trainer-{os.environ['RANK']}.pt")
    losses, weights = with_accelerate()
    found["accelerate"] = losses
    torch.save(weights, f"{out}/accelerate-{os.environ['RANK']}.pt")
    place, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    whole = copy.copy(rows)
    # Lightning's own sampler deals rows, not batches, in turn.
    mine = [row for at in range(place * BATCH, len(rows()), world * BATCH) for row in whole()[at : at + BATCH]]
    globals()["rows"] = lambda: mine
    losses, weights, _ = with_lightning(strategy="ddp", num_nodes=world)
    found["lightning"] = losses
    torch.save(weights, f"{out}/lightning-{os.environ['RANK']}.pt")
    Path(out, f"losses-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    rank(sys.argv[1])
