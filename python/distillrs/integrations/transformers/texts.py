"""The documents of a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from distillrs.checks import check_path, check_text
from distillrs.errors import DataError


def read_texts(path: str | os.PathLike[str], *, field: str = "text") -> list[str]:
    """The documents of a file: of ``.jsonl`` one a line, of any other those between blank lines.

    Args:
        path: UTF-8; a byte order mark at its begin is no text.
        field: The text's name in an object of a ``.jsonl`` file; lines that are strings are taken as they are.

    Raises:
        ArgumentError: No path, or no name.
        DataError: There is no file, it is no UTF-8, has no text, or a line is not of this form or has half a character.
    """
    check_path("path", path)
    check_text("field", field, "the name of an entry")
    file = Path(path)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as failure:
        raise DataError(f"{file} is not there") from failure
    except IsADirectoryError as failure:
        raise DataError(f"{file} is a folder: name a file of texts") from failure
    except UnicodeDecodeError as failure:
        raise DataError(f"{file} is no UTF-8: {failure}") from failure
    if file.suffix == ".jsonl":
        texts = [_text_of(line, field, f"{file}, line {number}") for number, line in _numbered(content)]
    else:
        texts = _paragraphs(content)
    texts = [text for text in texts if text]
    if not texts:
        raise DataError(f"{file} has no text")
    return texts


def _paragraphs(content: str) -> list[str]:
    documents: list[list[str]] = [[]]
    for line in content.splitlines(keepends=True):
        if line.strip():
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    return ["".join(lines).rstrip("\r\n") for lines in documents]


def _numbered(content: str) -> Iterator[tuple[int, str]]:
    # splitlines() would also split at separators that JSON allows within strings.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield number, line


def _text_of(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as failure:
        raise DataError(f"{where} is no JSON: {failure}") from failure
    text = value.get(field) if isinstance(value, dict) else value
    if not isinstance(text, str):
        known = f"; its fields are {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise DataError(f"{where} has no text in {field!r}{known}")
    # JSON can escape one half of a character, which no encoding has bytes for.
    if any("\ud800" <= each <= "\udfff" for each in text):
        raise DataError(f"{where} has half a character (a lone surrogate) in {field!r}")
    return text
