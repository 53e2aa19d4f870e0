"""``distillrs teach``: a language model's answers for texts, into a teacher cache."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from distillrs.cli import exit_codes, interrupt
from distillrs.cli.experts import launcher_shard, parse_shard
from distillrs.cli.progress import choose
from distillrs.cli.report import size
from distillrs.errors import argument_error

if TYPE_CHECKING:
    from distillrs.integrations.transformers import Taught

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Teach:
    """Write a teacher cache: the likeliest next tokens of a local model at every position of a file's texts.

    A text that is in the cache already is left out, so the same command goes on where a killed one stopped. Any number
    of processes may write shares of one cache: --shard i/N, or as SLURM or torchrun number them.

    Example: distillrs teach --model models/teacher --text corpus.jsonl --out cache --k 64 --temperatures 1 2
    """

    model: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="A causal language model with its tokenizer.")]
    text: Annotated[
        Path,
        tyro.conf.arg(metavar="FILE", help=".jsonl: a document a line; other text: documents between blank lines."),
    ]
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER", help="The cache, to be made or to go on with.")]
    field: Annotated[str, tyro.conf.arg(metavar="NAME", help="The text's name in a line of a .jsonl file.")] = "text"
    k: Annotated[int, tyro.conf.arg(metavar="N", help="Tokens to keep at each position.")] = 64
    temperatures: Annotated[
        tuple[float, ...], tyro.conf.arg(metavar="T", help="Divergences' temperatures that will be used.")
    ] = (1.0,)
    code: Annotated[
        Literal["u8", "f16"], tyro.conf.arg(help="Bits of a log-probability: eight with a scale, or sixteen.")
    ] = "u8"
    max_length: Annotated[int, tyro.conf.arg(metavar="N", help="Cut documents after so many tokens.")] = 512
    batch_size: Annotated[int, tyro.conf.arg(metavar="N", help="Documents in one pass.")] = 8
    offsets: Annotated[
        bool, tyro.conf.arg(help="Also keep each token's first byte, for other tokenizers.", help_behavior_hint="")
    ] = False
    shard: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="i/N",
            help="Take every N-th text from the i-th on, i from 0.",
            help_behavior_hint="(default: the launcher's, or 0/1)",
        ),
    ] = None
    device: Annotated[str, tyro.conf.arg(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1.")] = "cpu"
    dtype: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME", help="float32, bfloat16 or float16.", help_behavior_hint="(default: that of the files)"
        ),
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs, without progress.", help_behavior_hint="")] = (
        False
    )

    def run(self, output: Console, messages: Console) -> int:
        """Does the work."""
        import os

        import torch

        from distillrs.cli.running import command
        from distillrs.integrations import transformers

        shard = parse_shard(self.shard) if self.shard is not None else launcher_shard(os.environ)
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise argument_error("dtype", self.dtype, f"one of {', '.join(_DTYPES)}")
        texts = transformers.read_texts(self.text, field=self.field)
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        model, tokenizer = transformers.load(self.model, device=self.device, dtype=dtype)
        mine = len(list(dict.fromkeys(texts))[shard[0] :: shard[1]])
        try:
            with (
                interrupt.terminable(),
                choose(messages, quiet=self.json).phase("teach", mine, "documents") as phase,
            ):
                taught = transformers.teach(
                    model,
                    tokenizer,
                    texts,
                    self.out,
                    k=self.k,
                    temperatures=self.temperatures,
                    code=self.code,
                    max_length=self.max_length,
                    batch_size=self.batch_size,
                    offsets=self.offsets,
                    shard=shard,
                    on_progress=lambda at: phase.update(at.documents, tokens=f"{at.tokens:,}"),
                )
                phase.update(taught.documents)
        except KeyboardInterrupt as stop:
            stop.add_note(f"go on with: {command()}")
            raise
        if self.json:
            output.out(json.dumps({**asdict(taught), "shard": list(shard)}, indent=2), highlight=False)
        else:
            show(taught, shard, output)
        return exit_codes.SUCCESS


def show(taught: Taught, shard: tuple[int, int], output: Console) -> None:
    """The summary for people."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("cache", taught.path)
    there = taught.documents - taught.written
    facts.add_row(f"shard {shard[0]}/{shard[1]}", f"{taught.written:,} documents written now, {there:,} there before")
    facts.add_row("tokens", f"{taught.tokens_written:,} written now, {taught.tokens:,} in all")
    if taught.truncated:
        facts.add_row("cut", f"{taught.truncated:,} documents at --max-length")
    words = f"{taught.bytes_per_token:.1f} bytes a token, {taught.row_bytes} of them payload"
    facts.add_row("bytes", f"{size(taught.bytes_on_disk)}, {words}")
    facts.add_row("rate", f"{taught.tokens_per_second:,.0f} tokens/s")
    output.print(facts, highlight=False, markup=False)
