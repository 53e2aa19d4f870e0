"""Fixtures of the proofs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proofs.ledger import Proof


@pytest.fixture
def proof(request: pytest.FixtureRequest) -> Proof:
    """The proof of the system that the test's file is named after: `tests/proofs/<family>/test_<id>.py`."""
    file = Path(str(request.path))
    return Proof(file.parent.name, file.stem.removeprefix("test_").replace("_", "-"), file)


@pytest.fixture(autouse=True)
def _all_cores() -> None:
    torch.set_num_threads(2)
