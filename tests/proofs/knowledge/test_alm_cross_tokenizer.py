"""A student over bytes and a teacher over 512 byte pairs, on real text: what approximate likelihood matching adds.

Students are trained for equally many steps on the same rows: by cross-entropy, by ALM beside it, by ALM alone, and by
the sorted probabilities of ULD (Boizard et al., 2024) at the ends of chunks, which asks nothing about which token is
which.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import pytest
import torch
from torch import Tensor

import distillrs as dr
from distillrs import knowledge, random, recipes
from distillrs.integrations import transformers as hooks
from distillrs.knowledge.chunks import reference_chunks
from proofs.knowledge.bed import Text, llama, train
from proofs.ledger import Proof

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SEEDS = [1, 2, 3]
BYTES = 128
BEGIN = 256
PAIRS = 512
BATCH = 8
TEACHER_STEPS = 900
STEPS = 700
WAYS = ("cross-entropy", "ALM and cross-entropy", "ALM", "ULD")


@dataclass(frozen=True, slots=True)
class SortedProbabilities(knowledge.Divergence):
    """``sum |sorted p - sorted q|``, the shorter side filled with zeros."""

    def rows(self, student: Tensor, teacher: Tensor, view: knowledge.View) -> Tensor:
        """See the base."""
        q, p = (side.float().softmax(-1).sort(-1, descending=True).values for side in (student, teacher))
        wide = max(p.shape[-1], q.shape[-1])
        q, p = (torch.nn.functional.pad(side, (0, wide - side.shape[-1])) for side in (q, p))
        return (q - p.detach()).abs().sum(-1)


class Rows:
    """The text in rows of bytes, in both forms, with the chunks of each."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        data = Text.shakespeare()
        ids = torch.cat([data.train.flatten(), data.held_out.flatten()])
        text = "".join(data.alphabet[place] for place in ids.tolist())
        texts = [text[at : at + BYTES] for at in range(0, len(text) - BYTES + 1, BYTES)]
        cut = len(texts) * 9 // 10
        pairs = Tokenizer(models.BPE())
        pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        settings = {"vocab_size": PAIRS, "initial_alphabet": alphabet, "show_progress": False}
        pairs.train_from_iterator(texts[:cut], trainers.BpeTrainer(special_tokens=["<s>", "<pad>"], **settings))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=pairs, bos_token="<s>", pad_token="<pad>")
        found = hooks.token_spans(tokenizer, texts)
        begin = torch.full((len(texts), 1), int(tokenizer.bos_token_id))
        nothing = torch.full((len(texts), 1, 2), -1)
        self.pairs = torch.cat([begin, found.input_ids], 1)
        self.pair_labels = torch.cat([begin, found.input_ids.masked_fill(found.attention_mask == 0, -100)], 1)
        self.pair_spans = torch.cat([nothing, found.spans], 1)
        own = torch.tensor([list(each.encode()) for each in texts])
        self.bytes = torch.cat([torch.full((len(texts), 1), BEGIN), own], 1)
        places = torch.arange(BYTES)
        spans = torch.stack([places, places + 1], 1).expand(len(texts), -1, -1)
        self.byte_spans = torch.cat([nothing, spans], 1).contiguous()
        self.chunks = knowledge.token_chunks(self.byte_spans, self.pair_spans)
        self.cut = cut

    @staticmethod
    @cache
    def shakespeare() -> Rows:
        """Made once."""
        return Rows()

    def numbers(self, steps: int, seed: int) -> Any:
        """Numbers of the rows of each step."""
        for step in range(steps):
            yield random.integers(BATCH, self.cut, step=dr.Step(step, seed=seed), name="rows")

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """What the recipe reads."""
        # The longest row of these; what is behind it is padding for all.
        width = int((self.pair_labels[rows] != -100).sum(1).max())
        return {
            "input_ids": self.bytes[rows],
            "labels": self.bytes[rows],
            "chunks": self.chunks.student[rows],
            "teacher_input_ids": self.pairs[rows, :width],
            "teacher_chunks": self.chunks.teacher[rows, :width],
        }


def next_token_loss(network: torch.nn.Module, ids: Tensor, labels: Tensor) -> Tensor:
    logits = network(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(network: torch.nn.Module) -> float:
    """Of held-out rows, over bytes."""
    rows = Rows.shakespeare()
    held_out = rows.bytes[rows.cut : rows.cut + 320]
    losses = [float(next_token_loss(network, part, part)) for part in held_out.split(80)]
    return fmean(losses) / math.log(2)


@torch.no_grad()
def teacher_bits(network: torch.nn.Module) -> float:
    """The same of the teacher: its nats for each row over the row's bytes."""
    rows = Rows.shakespeare()
    ids, labels = (each[rows.cut : rows.cut + 320] for each in (rows.pairs, rows.pair_labels))
    logits = network(input_ids=ids).logits[:, :-1]
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return float(total) / (len(ids) * BYTES) / math.log(2)


def teacher_network() -> torch.nn.Module:
    rows = Rows.shakespeare()
    network = llama(96, 2, 100, vocabulary=PAIRS)

    def loss(numbers: Tensor, step: int) -> Tensor:
        width = int((rows.pair_labels[numbers] != -100).sum(1).max())
        return next_token_loss(network, rows.pairs[numbers, :width], rows.pair_labels[numbers, :width])

    batches = (
        torch.cat(pair) for pair in zip(*(rows.numbers(TEACHER_STEPS, seed) for seed in (100, 101)), strict=True)
    )
    train(network, batches, TEACHER_STEPS, loss)
    return network


def student_of(way: str, teacher: torch.nn.Module, seed: int, **settings: Any) -> float:
    """Bits per byte of one student."""
    rows = Rows.shakespeare()
    network = llama(64, 1, seed, vocabulary=BEGIN + 1)
    if way == "ULD":
        output = knowledge.Output("logits")
        term = knowledge.Term(output, align=knowledge.ChunkEnds(), divergence=SortedProbabilities())
        inputs = knowledge.Prefixed("teacher_")
        frozen = knowledge.FrozenTeacher(dr.Frozen(teacher), inputs)
        withheld = ("chunks", "teacher_chunks", *inputs.entries)
        objective = knowledge.Objective(network, frozen, [term], withheld=withheld)
    elif way != "cross-entropy":
        settings = {"task_weight": 0.0 if way == "ALM" else 1.0, **settings}
        objective = recipes.alm(network, teacher, **settings)

    def loss(numbers: Tensor, step: int) -> Tensor:
        if way == "cross-entropy":
            return next_token_loss(network, rows.bytes[numbers], rows.bytes[numbers])
        return objective(rows.batch(numbers), dr.Step(step, seed=seed, total=STEPS)).total

    train(network, rows.numbers(STEPS, seed), STEPS, loss)
    return bits_per_byte(network)


def measure() -> dict[str, Any]:
    teacher = teacher_network()
    found: dict[str, Any] = {"teacher": teacher_bits(teacher)}
    return found | {way: [student_of(way, teacher, seed) for seed in SEEDS] for way in WAYS}


def measure_speed() -> dict[str, Any]:
    rows = Rows.shakespeare()
    own, other = rows.byte_spans[:1024].contiguous(), rows.pair_spans[:1024].contiguous()
    lists = [[tuple(span) for span in row] for row in own.tolist()], [[tuple(s) for s in row] for row in other.tolist()]
    lists = tuple([[span for span in row if span != (-1, -1)] for row in side] for side in lists)
    ours, theirs = [], []
    for _ in range(7):
        begin = time.perf_counter()
        knowledge.token_chunks(own, other)
        middle = time.perf_counter()
        two_pointers(*lists)
        ours.append(middle - begin)
        theirs.append(time.perf_counter() - middle)
    return {"seconds": sorted(ours)[3], "seconds of the loop": sorted(theirs)[3]}


def two_pointers(student: Any, teacher: Any) -> list[list[tuple[int, int, int, int]]]:
    """The loop of public code."""
    found = []
    for own, other in zip(student, teacher, strict=True):
        chunks = []
        i = j = first = second = 0
        while i < len(own) and j < len(other):
            if own[i][1] == other[j][1]:
                i, j = i + 1, j + 1
                chunks.append((first, i, second, j))
                first, second = i, j
            elif own[i][1] < other[j][1]:
                i += 1
            else:
                j += 1
        found.append(chunks)
    return found


def test_a_chunks_tile_the_text(proof: Proof) -> None:
    rows = Rows.shakespeare()
    offsets, tokens = rows.chunks.groups("student")
    plain = reference_chunks(rows.byte_spans[:200].tolist(), rows.pair_spans[:200].tolist())
    same = rows.chunks.student[:200].tolist() == plain[0] and rows.chunks.teacher[:200].tolist() == plain[1]
    every = len(tokens) == BYTES * len(rows.bytes) and bool((rows.chunks.ends.max(1).values == BYTES).all())
    proof.conclude(
        "a",
        "tinyshakespeare in rows of 128 bytes, bytes beside 512 byte pairs: chunks tile every row, and those of 200 "
        "rows are those of a plain loop (also: a property test, as are the loss's least value and equal tokenizers)",
        holds=same and every,
        figures={"rows": len(rows.bytes), "chunks": len(offsets) - 1, "bytes in chunks": len(tokens)},
    )


def test_b_alm_adds_to_cross_entropy(proof: Proof) -> None:
    found = proof.cell("students", measure)
    gain = fmean(found["cross-entropy"]) - fmean(found["ALM and cross-entropy"])
    proof.conclude(
        "b",
        f"{STEPS} steps, bits per byte of held-out text, mean of three seeds: ALM beside cross-entropy is at least "
        "0.03 below cross-entropy alone",
        holds=gain >= 0.03,
        figures={"teacher": found["teacher"]} | {way: found[way] for way in WAYS[:2]} | {"gain": gain},
        seeds=SEEDS,
    )


def test_c_alm_alone_beats_sorted_probabilities(proof: Proof) -> None:
    found = proof.cell("students", measure)
    margins = [uld - alm for uld, alm in zip(found["ULD"], found["ALM"], strict=True)]
    proof.conclude(
        "c",
        "without labels a student of ALM has fewer bits per byte than one of ULD's sorted probabilities at the ends of "
        "chunks, for each of three seeds",
        holds=min(margins) > 0,
        figures={way: found[way] for way in WAYS[2:]},
        seeds=SEEDS,
    )


def test_d_alignment_is_fast(proof: Proof) -> None:
    found = proof.cell("speed", measure_speed)
    ratio = found["seconds of the loop"] / found["seconds"]
    proof.conclude(
        "d",
        "1024 rows of 128 bytes beside byte pairs: chunks in Rust on the proof's threads take at most a twentieth of "
        "the time of a loop in Python over lists",
        holds=ratio >= 20,
        figures=found | {"ratio": ratio},
    )
