"""A causal language model's answers for texts, into a teacher cache."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distillrs.checks import (
    check_callable,
    check_flag,
    check_instance,
    check_number,
    check_path,
    check_whole,
    device_of,
)
from distillrs.errors import DataError, argument_error
from distillrs.trajectory import Fingerprint, TeacherCache, key_of

# Batches whose texts are sorted by length together: padding costs as much as text.
_WINDOW = 16


@dataclass(frozen=True, slots=True)
class TeachProgress:
    """How far :func:`teach` is.

    Attributes:
        documents: Documents of this share that are in the cache.
        of: Documents of this share.
        tokens: Tokens that this call wrote.
    """

    documents: int
    of: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Taught:
    """What :func:`teach` did.

    Attributes:
        path: The cache.
        documents: Different texts of this share.
        written: Documents that this call wrote; the others were there.
        tokens: Tokens of this share that are in the cache.
        tokens_written: Tokens that this call wrote.
        truncated: Documents that this call cut at the maximum length.
        row_bytes: Bytes of payload for each token.
        bytes_on_disk: Bytes of the whole cache, all writers' work together.
        bytes_per_token: Of the whole cache, framing included.
        seconds: Wall time of this call.
        tokens_per_second: Tokens that this call wrote, by its seconds.
    """

    path: str
    documents: int
    written: int
    tokens: int
    tokens_written: int
    truncated: int
    row_bytes: int
    bytes_on_disk: int
    bytes_per_token: float
    seconds: float
    tokens_per_second: float


class _Encoded(NamedTuple):
    key: str
    ids: list[int]
    offsets: list[int] | None
    cut: bool


def teach(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    path: str | os.PathLike[str],
    *,
    k: int = 64,
    temperatures: Sequence[float] = (1.0,),
    code: Literal["u8", "f16"] = "u8",
    max_length: int = 512,
    batch_size: int = 8,
    offsets: bool = False,
    shard: tuple[int, int] = (0, 1),
    flush_every: float = 30.0,
    on_progress: Callable[[TeachProgress], None] | None = None,
) -> Taught:
    """Writes a model's answers for every position of every text; row p of a document is the distribution after token p.

    A text is found by :func:`~distillrs.trajectory.key_of` of its bytes, and written once however often it comes. What
    is in the cache already is left alone, so the same call goes on where a killed one ended, and any number of
    processes may write shares of one cache at the same time. The model is left in the mode it was in; dropout is off
    meanwhile, and nothing is recorded for gradients.

    Args:
        model: A causal language model: ``model(input_ids=, attention_mask=).logits`` is [batch, length, vocabulary].
        tokenizer: Of the model: ``tokenizer(text, truncation=, max_length=)["input_ids"]``, special tokens as it adds
            them.
        texts: The documents.
        path: The cache's directory; made, or joined if it has these settings.
        k: Tokens to keep at each position.
        temperatures: Divergences' temperatures that will be used.
        code: See :meth:`~distillrs.trajectory.TeacherCache.create`.
        max_length: Longer documents are cut there, in tokens, and counted; part of the fingerprint.
        batch_size: Documents in one pass.
        offsets: Also keep each token's first byte, for students with another tokenizer; needs a fast tokenizer.
        shard: (i, N): every N-th different text from the i-th on.
        flush_every: Seconds of work that a crash may cost at most.
        on_progress: Called after each batch.

    Raises:
        SchemaMismatch: The cache there has other settings, or is of another model, tokenizer or maximum length.
        ArgumentError: An argument is not allowed, or a document is longer than the model's positions.
    """
    check_instance("model", model, nn.Module, "a causal language model")
    check_callable("tokenizer", tokenizer, "the model's tokenizer")
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        check_whole(name, value, "a whole number from 1", least=1)
    check_flag("offsets", offsets)
    check_number("flush_every", flush_every, "a number of seconds from 0", least=0)
    if on_progress is not None:
        check_callable("on_progress", on_progress, "None or a function of a TeachProgress")
    is_pair = isinstance(shard, tuple | list) and len(shard) == 2
    if not (is_pair and all(type(each) is int for each in shard) and 0 <= shard[0] < shard[1]):
        raise argument_error("shard", shard, "(i, N) with 0 <= i < N")
    if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise argument_error("texts", type(texts).__name__, "a sequence of strings")
    began = time.monotonic()
    different = {key_of(text): text for text in texts}
    mine = dict(list(different.items())[shard[0] :: shard[1]])
    mark = fingerprint(model, tokenizer, max_length=max_length)
    positions = _positions(model)
    cache = TeacherCache.create(
        path, _vocabulary(model), k, mark, temperatures=temperatures, code=code, offsets=offsets, exist_ok=True
    )
    with cache, _answering(model):
        left = cache.missing(mine)
        tokens = truncated = 0
        flushed = time.monotonic()
        batches = _batches((_encode(tokenizer, key, mine[key], max_length, offsets) for key in left), batch_size)
        written = 0
        for batch in batches:
            longest = max(len(document.ids) for document in batch)
            if positions is not None and longest > positions:
                got = f"{max_length}, with a document of {longest} tokens"
                raise argument_error("max_length", got, f"at most {positions}, the model's positions")
            for document, logits in zip(batch, _logits(model, batch), strict=True):
                cache.append(document.key, logits, offsets=document.offsets)
                tokens += len(document.ids)
                truncated += document.cut
            written += len(batch)
            if time.monotonic() - flushed >= flush_every:
                cache.flush()
                flushed = time.monotonic()
            if on_progress is not None:
                on_progress(TeachProgress(len(mine) - len(left) + written, len(mine), tokens))
        here = int(cache.lengths(list(mine)).sum())
    seconds = time.monotonic() - began
    with TeacherCache.open(path, mark) as cache:
        on_disk = int(cache.info()["bytes"])
        return Taught(
            path=os.fspath(path),
            documents=len(mine),
            written=len(left),
            tokens=here,
            tokens_written=tokens,
            truncated=truncated,
            row_bytes=cache.row_bytes,
            bytes_on_disk=on_disk,
            bytes_per_token=on_disk / max(1, cache.tokens),
            seconds=seconds,
            tokens_per_second=tokens / max(seconds, 1e-9),
        )


def fingerprint(model: nn.Module, tokenizer: Any, *, max_length: int = 512) -> Fingerprint:
    """What the rows of :func:`teach` depend on: whoever opens the cache with it has the same model and texts' ends.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        max_length: Tokens at which documents are cut.
    """
    check_instance("model", model, nn.Module, "a causal language model")
    check_whole("max_length", max_length, "a whole number from 1", least=1)
    side = getattr(tokenizer, "truncation_side", "right")
    words = f"text, at most {max_length} tokens" + ("" if side == "right" else f", cut on the {side}")
    return Fingerprint.of(model, tokenizer, words)


def load(
    folder: str | os.PathLike[str], *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> tuple[nn.Module, Any]:
    """A causal language model and its tokenizer from a local folder; the network is not asked, no foreign code is run.

    Args:
        folder: As ``save_pretrained`` wrote it.
        device: Where the model goes.
        dtype: Of its parameters; ``None`` takes that of the files.

    Raises:
        ArgumentError: No path, device or type.
        DataError: The folder has no model or no tokenizer, or files that are cut short, or not all of the weights.
        ModuleNotFoundError: transformers is not installed.
    """
    check_path("folder", folder)
    target = device_of("device", device)
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise argument_error("dtype", dtype, "None or a torch.dtype")
    try:
        import transformers
        from safetensors import SafetensorError
    except ModuleNotFoundError as failure:
        raise ModuleNotFoundError("transformers is not installed: pip install 'distillrs[transformers]'") from failure
    if not (Path(folder) / "config.json").is_file():
        raise DataError(f"{os.fspath(folder)} holds no model: a folder that save_pretrained wrote has a config.json")
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **settings)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as failure:
        raise DataError(f"{os.fspath(folder)} has no causal language model with a tokenizer: {failure}") from failure
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        # They would be drawn at random, and taught.
        raise DataError(f"{os.fspath(folder)} lacks {len(missing)} of the model's weights, such as {missing[0]}")
    module: nn.Module = model
    return module.to(target).eval(), tokenizer


def _vocabulary(model: nn.Module) -> int:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    weight = getattr(head, "weight", None)
    if isinstance(weight, Tensor):
        return int(weight.shape[0])
    config = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None)
    if not isinstance(size, int):
        raise argument_error("model", type(model).__name__, "a causal language model with output embeddings")
    return size


def _positions(model: nn.Module) -> int | None:
    """How long a text may be, if the model says so."""
    found = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


@contextlib.contextmanager
def _answering(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; every part's own mode is put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _encode(tokenizer: Any, key: str, text: str, max_length: int, offsets: bool) -> _Encoded:
    asked = {"return_offsets_mapping": True} if offsets else {}
    try:
        found = tokenizer(text, truncation=True, max_length=max_length, **asked)
    except NotImplementedError as failure:
        raise argument_error("offsets", True, "False with a tokenizer that knows no offsets") from failure
    ids = [int(each) for each in found["input_ids"]]
    cut = False
    if len(ids) >= max_length:
        # One more token tells whether there was more; where special tokens end a text is the tokenizer's to say.
        cut = len(tokenizer(text, truncation=True, max_length=max_length + 1)["input_ids"]) > len(ids)
    return _Encoded(key, ids, _byte_offsets(text, found["offset_mapping"]) if offsets else None, cut)


def _byte_offsets(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """First byte of each token, then the end; a special token lies where the one before it ends."""
    byte_of = [0]
    for character in text:
        byte_of.append(byte_of[-1] + len(character.encode()))
    starts: list[int] = []
    end = 0
    for first, last in spans:
        # A special token has (0, 0); parts of one character share its place.
        start = end if first == last else max(byte_of[first], starts[-1] if starts else 0)
        starts.append(start)
        end = max(end, byte_of[last])
    return [*starts, end]


def _batches(documents: Iterator[_Encoded], size: int) -> Iterator[list[_Encoded]]:
    window: list[_Encoded] = []
    for document in documents:
        window.append(document)
        if len(window) == size * _WINDOW:
            yield from _of_equal_length(window, size)
            window = []
    yield from _of_equal_length(window, size)


def _of_equal_length(window: list[_Encoded], size: int) -> Iterator[list[_Encoded]]:
    window = sorted(window, key=lambda document: len(document.ids))
    for start in range(0, len(window), size):
        yield window[start : start + size]


def _logits(model: nn.Module, batch: Sequence[_Encoded]) -> Iterator[Tensor]:
    """[tokens, vocabulary] of each document; padding stands on the right, where no earlier position sees it."""
    longest = max(len(document.ids) for document in batch)
    device = next(model.parameters()).device
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, document in enumerate(batch):
        ids[row, : len(document.ids)] = torch.tensor(document.ids, dtype=torch.int64)
        mask[row, : len(document.ids)] = 1
    if longest == 0:
        yield from (torch.empty(0, _vocabulary(model)) for _ in batch)
        return
    output = model(input_ids=ids.to(device), attention_mask=mask.to(device))
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise argument_error("model", f"one that gives {type(output).__name__}", "one whose output has logits")
    for row, document in enumerate(batch):
        yield logits[row, : len(document.ids)]
