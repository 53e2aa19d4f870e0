"""The folder of results: whose configuration it holds, and the state of an unfinished run."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distillrs import configuration
from distillrs.cli.settings import identity, without_places
from distillrs.errors import ArgumentError, argument_error
from distillrs.files import folder_lock, write_whole

CONFIG = "config.toml"
RESULTS = ("condensed.safetensors", "condensed.png", "curve.png", "report.md", "report.json")
EXPERTS = "experts"
LABELS = "condensed-labels"
_STATE = ".unfinished"
_SHOWN = 5


class Folder:
    """What ``--out`` names.

    Args:
        path: The folder; it may not exist yet.
        command: Whose results it holds.
        results: Their names.
    """

    def __init__(self, path: Path, command: str = "condense", results: Sequence[str] = RESULTS) -> None:
        self.path = path
        self._command = command
        self._results = tuple(results)

    @property
    def _state(self) -> Path:
        return self.path / _STATE

    def claim(self, settings: object, *, overwrite: bool) -> None:
        """Makes the folder this configuration's own.

        Args:
            settings: What is about to run.
            overwrite: Throw away the results of another configuration. Recorded experts stay; they are found by their
                fingerprint.

        Raises:
            ArgumentError: The folder holds another configuration, or results of an unknown one.
        """
        config = self.path / CONFIG
        if config.exists():
            self._compare(config, settings, overwrite=overwrite)
        elif strangers := [name for name in (*self._results, LABELS) if (self.path / name).exists()]:
            if not overwrite:
                allowed = "an empty folder, or --overwrite to replace them"
                raise argument_error("out", f"{self.path} with {', '.join(strangers)} but no {CONFIG}", allowed)
            self._clear()
        self.path.mkdir(parents=True, exist_ok=True)
        comment = f"Written by distillrs. `distillrs {self._command} --config` with this file repeats the run."
        configuration.save(settings, config, comment=comment)
        self._state.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from working in this folder for a block.

        Raises:
            ArgumentError: Another one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(folder_lock(self.path))
            except BlockingIOError as failure:
                got = f"{self.path}, in which another process is at work"
                raise argument_error("out", got, "a folder of its own for each run") from failure
            yield

    def _compare(self, config: Path, settings: object, *, overwrite: bool) -> None:
        wanted = identity(settings)
        try:
            found = without_places(configuration.read_toml(config))
        except ArgumentError:
            if overwrite:
                self._clear()
                return
            raise
        if found == wanted:
            return
        if overwrite:
            self._clear()
            return
        different = configuration.differences(found, wanted)
        lines = [f"  {key}: there {_show(old)}, asked for {_show(new)}" for key, old, new in different[:_SHOWN]]
        if len(different) > _SHOWN:
            lines.append(f"  and {len(different) - _SHOWN} more")
        head = f"out: {self.path} holds another configuration; allowed is the same, another folder, or --overwrite"
        raise ArgumentError("\n".join([head, *lines]))

    def _clear(self) -> None:
        # The configuration goes first: without it nobody takes what is left for results.
        for name in (CONFIG, *self._results):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self._state, ignore_errors=True)
        shutil.rmtree(self.path / LABELS, ignore_errors=True)

    def finish(self) -> None:
        """Removes the state of the run, which is over."""
        shutil.rmtree(self._state, ignore_errors=True)

    def write(self, name: str, content: str) -> None:
        """Writes a text file, whole or not at all."""
        write_whole(self.path / name, content.encode())

    def save_state(self, state: Mapping[str, Any], phase: str = "distillation") -> None:
        """Keeps the state of a phase: tensors and plain values, nested."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_whole(self._state / f"{phase}.pt", buffer.getvalue())

    def load_state(self, phase: str = "distillation") -> dict[str, Any] | None:
        """What :meth:`save_state` kept, or ``None``."""
        path = self._state / f"{phase}.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as failure:  # torch raises many kinds for a damaged file
            raise ArgumentError(f"out: {path} is damaged ({failure}); remove it to begin the {phase} anew") from failure
        return state

    def save_seconds(self, seconds: Mapping[str, float]) -> None:
        """Keeps how long each phase took so far."""
        write_whole(self._state / "seconds.json", json.dumps(dict(seconds)).encode())

    def load_seconds(self) -> dict[str, float]:
        """Seconds of the phases before an interruption."""
        path = self._state / "seconds.json"
        if not path.exists():
            return {}
        try:
            return {str(name): float(value) for name, value in json.loads(path.read_text()).items()}
        except (ValueError, AttributeError, TypeError):
            return {}  # a lost stopwatch is no reason to stop


def _show(value: object) -> str:
    return "nothing" if value is None else repr(value)
