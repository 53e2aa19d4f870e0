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
def _one_thread() -> None:
    # The networks are small: a second thread costs more than it does, and sums would depend on how many there are.
    torch.set_num_threads(1)
