import json

import pytest

from proofs import ledger


@pytest.fixture
def proof(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LEDGER", tmp_path / "ledger")
    monkeypatch.setattr(ledger, "CELLS", tmp_path / "cells")
    file = tmp_path / "test_system.py"
    file.write_text("")
    return ledger.Proof("family", "system", file)


def conclude(proof, holds):
    proof.conclude("a", "one is less than two", holds=holds, figures={"one": 1.0}, seeds=[0])


def test_an_unknown_claim_fails(proof):
    with pytest.raises(AssertionError, match="not in the ledger"):
        conclude(proof, holds=True)


@pytest.mark.parametrize("status", [True, False])
def test_a_claim_must_come_out_as_the_ledger_says(proof, monkeypatch, status):
    monkeypatch.setenv("DISTILLRS_LEDGER", "accept")
    conclude(proof, holds=status)
    monkeypatch.setenv("DISTILLRS_LEDGER", "write")
    conclude(proof, holds=status)
    with pytest.raises(AssertionError, match="but the ledger says"):
        conclude(proof, holds=not status)
    written = json.loads(proof.path.read_text())["claims"]["a"]
    assert written["status"] == (ledger.HOLDS if status else ledger.FAILS)
    assert written["figures"] == {"one": 1.0}


def test_finished_cells_are_not_computed_again(proof):
    calls = []
    for _ in range(2):
        assert proof.cell("seed-0", lambda: calls.append(0) or [1.5]) == [1.5]
    assert len(calls) == 1
    proof.file.write_text("changed")
    proof.cell("seed-0", lambda: calls.append(0))
    assert len(calls) == 2
