"""The ledger of proofs: what each system's check gave, and whether its claim holds.

`docs/ledger/<family>/<system>.json` holds one entry per claim: the statement that is checked, its figures as they came,
and its status. A proof fails when its outcome differs from the status in the ledger, whichever way it differs.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "docs" / "ledger"
CELLS = ROOT / ".proofs"

HOLDS = "holds"
FAILS = "does not hold"


def _rounded(value: Any) -> Any:
    """Figures to six digits: more is noise of the machine."""
    if isinstance(value, torch.Tensor):
        return _rounded(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(name): _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def source_fingerprint(*extra: Path) -> str:
    """Changes when any source that a proof runs changes: all but the command line and the public test helpers."""
    digest = sha256()
    package = ROOT / "python" / "distillrs"
    paths = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ("cli", "testing")]
    paths += (ROOT / "rust").glob("*/src/**/*.rs")
    for path in sorted([*paths, *extra]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@dataclass
class Proof:
    """One system's proof: caches its expensive cells and compares its claims with the ledger.

    Attributes:
        family: The catalogue's family.
        system: The catalogue's id.
        file: The proof's own file; its text is part of what a cached cell depends on.
    """

    family: str
    system: str
    file: Path
    started: float = field(default_factory=time.perf_counter)

    @property
    def path(self) -> Path:
        """The system's file in the ledger."""
        return LEDGER / self.family / f"{self.system}.json"

    def read(self) -> dict[str, Any]:
        """The system's page of the ledger, empty if there is none yet."""
        if not self.path.exists():
            return {"format": 1, "family": self.family, "system": self.system, "claims": {}}
        page: dict[str, Any] = json.loads(self.path.read_text())
        return page

    def cell(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON-able result that is computed once per version of the sources, so that proofs can be resumed.

        Args:
            name: Name of the cell, unique within the system.
            compute: Gives the result.
        """
        folder = CELLS / self.family / self.system
        shared = [path for path in self.file.parent.glob("*.py") if not path.name.startswith("test_")]
        path = folder / f"{name}-{source_fingerprint(self.file, *shared)}.json"
        if path.exists():
            return json.loads(path.read_text())
        result = compute()
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps(result))
        draft.replace(path)
        return result

    def conclude(
        self, claim: str, statement: str, *, holds: bool, figures: Mapping[str, Any], seeds: list[int] | None = None
    ) -> None:
        """Compares the outcome of a claim with its status in the ledger.

        With ``DISTILLRS_LEDGER=write`` the figures are written down. With ``accept`` a changed status is, too; one that
        does not hold then needs its explanation written into the file by hand.

        Args:
            claim: The claim's letter in the catalogue.
            statement: What is checked, with its margin.
            holds: Whether it held in this run.
            figures: Everything that was measured, as it came.
            seeds: Seeds of the run.

        Raises:
            AssertionError: The outcome differs from the ledger, or the ledger does not know the claim.
        """
        mode = os.environ.get("DISTILLRS_LEDGER", "")
        page = self.read()
        entry = page["claims"].get(claim)
        outcome = HOLDS if holds else FAILS
        if mode == "accept" or (mode == "write" and entry is not None and entry["status"] == outcome):
            explanation = (entry or {}).get("explanation", "")
            page["claims"][claim] = {
                "statement": statement,
                "status": outcome,
                "figures": _rounded(figures),
                "seeds": seeds or [],
                "seconds": round(time.perf_counter() - self.started, 1),
                "explanation": explanation,
                "measured_on": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            }
            page["claims"] = dict(sorted(page["claims"].items()))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n")
            entry = page["claims"][claim]
        assert entry is not None, f"{self.system} ({claim}) is not in the ledger; it {outcome}: {dict(figures)}"
        assert entry["status"] == outcome, (
            f"{self.system} ({claim}) {outcome}, but the ledger says it {entry['status']}: {statement}; {dict(figures)}"
        )
