"""Distils a small transformer on real text three ways: live teacher, written answers, and those in a Trainer.

    python examples/distil_transformer.py path/to/tinyshakespeare.txt --out out/distil-transformer

Trains a teacher, writes its sixteen likeliest next tokens at every position once (`teach`), and trains the same student

- with the teacher beside it in every step,
- from the written answers, without the teacher,
- from the written answers in the Trainer of transformers.

Writes curve.png and curve.json: the held-out loss along the way. Takes a few minutes on one core. Needs
`pip install 'distillrs[transformers,accelerate,plot]'`. Without a path the text is looked for in DISTILLRS_DATA.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch import Tensor
from torch.nn import functional

import distillrs as dr
from distillrs import integrations, knowledge, random
from distillrs.integrations import transformers as hooks
from distillrs.trajectory import TeacherCache, key_of

VOCABULARY = 512
LENGTH = 64
BATCH = 16
RATE = 3e-3

Batch = dict[str, Tensor]
Model = transformers.LlamaForCausalLM


@dataclass(frozen=True)
class Corpus:
    """Text in documents of about LENGTH tokens.

    Attributes:
        tokenizer: Trained on the documents to learn from.
        train: Documents to learn from.
        held_out: Documents that nothing is trained on: the end of the text.
    """

    tokenizer: Any
    train: list[str]
    held_out: list[str]

    @classmethod
    def read(cls, path: Path, characters: int | None = None) -> Corpus:
        """Cuts a text at ends of lines and trains a byte-pair tokenizer."""
        import tokenizers

        documents = [""]
        for line in path.read_text(encoding="utf-8")[:characters].splitlines(keepends=True):
            documents[-1] += line
            if len(documents[-1]) >= 2 * LENGTH:
                documents.append("")
        documents = [document for document in documents if document.strip()]
        cut = len(documents) * 9 // 10
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.train_from_iterator(documents[:cut], trainer)
        wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        return cls(wrapped, documents[:cut], documents[cut:])

    def rows(self, documents: Sequence[str], cache: TeacherCache | None = None) -> Batch:
        """All documents as one batch of padded rows; with a cache also its row of every position, -1 for padding."""
        encoded = self.tokenizer(list(documents), truncation=True, max_length=LENGTH)["input_ids"]
        ids = torch.zeros(len(encoded), LENGTH, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        if cache is not None:
            first = cache.index([key_of(document) for document in documents])
            batch["teacher_rows"] = (first[:, None] + torch.arange(LENGTH)).masked_fill(mask == 0, -1)
        return batch


def model(width: int, layers: int, seed: int) -> Model:
    """A transformer for this vocabulary."""
    torch.manual_seed(seed)
    return Model(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=True,
            initializer_range=1 / math.sqrt(width),
        )
    )


def draws(rows: Batch, steps: int, seed: int) -> Iterator[Batch]:
    """The batches of a run: the same for every way of training."""
    count = len(rows["input_ids"])
    order = torch.empty(0, dtype=torch.int64)
    epoch = 0
    for _ in range(steps):
        if len(order) < BATCH:
            order = torch.cat([order, random.permutation(count, step=dr.Step(epoch, seed=seed), name="batches")])
            epoch += 1
        chosen, order = order[:BATCH], order[BATCH:]
        yield {name: column[chosen] for name, column in rows.items()}


@torch.inference_mode()
def held_out_loss(network: Model, rows: Batch, teacher_logits: Tensor | None = None) -> float:
    """Mean cross-entropy of the next token in nats, or the mean divergence from a teacher's distribution."""
    mode = network.training
    network.eval()
    total = count = 0.0
    for start in range(0, len(rows["input_ids"]), 64):
        part = {name: column[start : start + 64] for name, column in rows.items()}
        logits = network(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits[:, :-1]
        labels = part["labels"][:, 1:]
        kept = labels != -100
        if teacher_logits is None:
            total += float(functional.cross_entropy(logits[kept], labels[kept], reduction="sum"))
        else:
            due = teacher_logits[start : start + 64][:, :-1][kept].log_softmax(-1)
            found = logits[kept].log_softmax(-1)
            total += float(functional.kl_div(found, due, reduction="sum", log_target=True))
        count += float(kept.sum())
    network.train(mode)
    return total / count


def train_teacher(corpus: Corpus, steps: int, seed: int = 0, width: int = 128, layers: int = 3) -> Model:
    """A teacher, trained on the text alone."""
    teacher = model(width, layers, seed).train()
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for batch in draws(corpus.rows(corpus.train), steps, seed):
        teacher(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return teacher.eval()


def objective_of(student: Model, teacher: Any) -> knowledge.Objective:
    """Forward divergence from the teacher at every position that has a next token."""
    term = knowledge.Term(knowledge.Output("logits"), rows=knowledge.Shifted(), name="divergence")
    return knowledge.Objective(student, teacher, [term])


def in_a_loop(objective: knowledge.Objective, rows: Batch, steps: int, seed: int, watch: Callable[[int], None]) -> None:
    """A plain loop."""
    optimiser = torch.optim.AdamW(objective.student.parameters(), lr=RATE, weight_decay=0.0)
    for index, batch in enumerate(draws(rows, steps, seed)):
        items = int(integrations.count_items(objective, batch))
        objective(batch, dr.Step(index, seed=seed, total=steps, items=items)).total.backward()
        torch.nn.utils.clip_grad_norm_(objective.student.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        watch(index + 1)


def in_a_trainer(
    objective: knowledge.Objective, rows: Batch, steps: int, seed: int, watch: Callable[[int], None], out: Path
) -> None:
    """The same in the Trainer of transformers."""

    class Trainer(hooks.Distil, transformers.Trainer):
        pass

    class Drawn(torch.utils.data.IterableDataset[Batch]):
        def __iter__(self) -> Iterator[Batch]:
            for batch in draws(rows, steps, seed):
                for row in range(BATCH):
                    yield {name: column[row] for name, column in batch.items()}

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            watch(state.global_step)

    arguments = transformers.TrainingArguments(
        str(out),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    Trainer(args=arguments, train_dataset=Drawn(), objective=objective, callbacks=[Watch()]).train()


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("DISTILLRS_DATA", ".")) / "tinyshakespeare.txt"
    parser.add_argument("text", type=Path, nargs="?", default=default)
    parser.add_argument("--out", type=Path, default=Path("out/distil-transformer"))
    parser.add_argument("--teacher-steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--characters", type=int, default=None, help="use the beginning of the text only")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    corpus = Corpus.read(arguments.text, arguments.characters)
    held_out = corpus.rows(corpus.held_out)
    teacher = train_teacher(corpus, arguments.teacher_steps, arguments.seed)
    teacher_loss = held_out_loss(teacher, held_out)
    print(f"teacher: {sum(p.numel() for p in teacher.parameters()):,} weights, held-out loss {teacher_loss:.3f}")
    path = arguments.out / "answers"
    taught = hooks.teach(teacher, corpus.tokenizer, corpus.train, path, k=arguments.k, max_length=LENGTH)
    print(
        f"{taught.tokens:,} tokens, {taught.bytes_per_token:.1f} bytes each, {taught.tokens_per_second:,.0f} tokens/s"
    )

    mark = hooks.fingerprint(teacher, corpus.tokenizer, max_length=LENGTH)
    curves: dict[str, Any] = {"teacher": teacher_loss}
    with TeacherCache.open(path, mark) as cache:
        live, written = corpus.rows(corpus.train), corpus.rows(corpus.train, cache)
        steps, seed = arguments.steps, arguments.seed
        for name in ("live teacher", "written answers", "written answers, Trainer"):
            student = model(64, 1, seed + 1).train()
            curve: list[tuple[int, float]] = [(0, held_out_loss(student, held_out))]

            def watch(step: int, student: Model = student, curve: list[tuple[int, float]] = curve) -> None:
                if step % max(1, steps // 10) == 0:
                    curve.append((step, held_out_loss(student, held_out)))

            began = time.perf_counter()
            if name == "live teacher":
                in_a_loop(objective_of(student, dr.Frozen(teacher)), live, steps, seed, watch)
            elif name == "written answers":
                in_a_loop(objective_of(student, knowledge.Cached(cache)), written, steps, seed, watch)
            else:
                in_a_trainer(
                    objective_of(student, knowledge.Cached(cache)),
                    written,
                    steps,
                    seed,
                    watch,
                    arguments.out / "trainer",
                )
            seconds = time.perf_counter() - began
            curves[name] = {"curve": curve, "seconds": seconds}
            print(f"{name}: held-out loss {curve[-1][1]:.4f} after {steps} steps, {seconds:.1f} s")
    (arguments.out / "curve.json").write_text(json.dumps(curves, indent=1) + "\n")
    plot(curves, arguments.out / "curve.png")


def plot(curves: dict[str, Any], path: Path) -> None:
    """The held-out losses of the three students, and the teacher's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, style in (("live teacher", "-"), ("written answers", "--"), ("written answers, Trainer", ":")):
        steps, losses = zip(*curves[name]["curve"], strict=True)
        axes.plot(steps, losses, style, label=name)
    axes.axhline(curves["teacher"], color="grey", linewidth=0.8, label="the teacher itself")
    axes.set(xlabel="step", ylabel="held-out loss, nats a token")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
