"""Experts recorded into a store on disk: interruption, several writers, other processes."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn

from distillrs.condense import ExpertProgress, ExpertTraining
from distillrs.training import TrainingSettings
from distillrs.trajectory import ParameterLayout, Schema, Store

EXPERTS = ExpertTraining(TrainingSettings(epochs=5, batch_size=8, learning_rate=0.1, momentum=0.9))
Y = torch.arange(32) % 3
X = nn.functional.one_hot(Y, 5).float() + 0.5 * torch.linspace(0, 60, 160).sin().reshape(32, 5)
KEYS = ["expert-0", "expert-1", "expert-2", "expert-3"]


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**32)
        return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))


def join(path: Path) -> Store:
    layout = ParameterLayout.of(network(0))
    return Store.create(path, Schema(theta=layout.column()), {"layout": layout.to_dict()}, exist_ok=True)


def contents(path: Path) -> dict[str, torch.Tensor]:
    with Store.open(path) as store:
        return {key: store.read(key, range(length)) for key, length in store.lengths().items()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("reference") / "store"
    with join(path) as store:
        EXPERTS.record(store, network, X, Y, keys=4, seed=7)
    return contents(path)


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_records_are_the_path_and_not_one_snapshot_repeated(reference: dict[str, torch.Tensor]) -> None:
    assert list(reference) == KEYS
    for records in reference.values():
        assert records.shape[0] == EXPERTS.training.epochs + 1
        assert bool((records[1:] - records[:-1]).norm(dim=1).gt(0).all())


class Interruption(Exception):
    pass


@pytest.mark.parametrize("checkpoints", [False, True])
def test_an_interrupted_store_is_completed_bit_for_bit(
    tmp_path: Path, reference: dict[str, torch.Tensor], checkpoints: bool
) -> None:
    folder = tmp_path / "unfinished" if checkpoints else None
    first_epochs: dict[str, int] = {}

    def stop(progress: ExpertProgress) -> None:
        if (progress.key, progress.epoch) == ("expert-2", 3):
            raise Interruption

    def note(progress: ExpertProgress) -> None:
        first_epochs.setdefault(progress.key, progress.epoch)

    with pytest.raises(Interruption), join(tmp_path / "store") as store:
        EXPERTS.record(store, network, X, Y, keys=4, seed=7, checkpoints=folder, on_progress=stop)
    with join(tmp_path / "store") as store:
        assert store.keys() == KEYS[:2]
        assert store.lengths(incomplete=True)["expert-2"] == 4
        EXPERTS.record(store, network, X, Y, keys=4, seed=7, checkpoints=folder, on_progress=note)
    assert_equal(contents(tmp_path / "store"), reference)
    assert first_epochs == {"expert-2": 4 if checkpoints else 1, "expert-3": 1}


def test_an_expert_that_another_writer_holds_is_passed_over(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    with join(tmp_path / "store") as other, join(tmp_path / "store") as store:
        held = other.begin("expert-1")
        outcomes = EXPERTS.record(store, network, X, Y, keys=4, seed=7)
        assert outcomes == {key: "locked" if key == "expert-1" else "recorded" for key in KEYS}
        held.close()
        assert EXPERTS.record(store, network, X, Y, keys=4, seed=7)["expert-1"] == "recorded"
    assert_equal(contents(tmp_path / "store"), reference)


def _work(path: Path, shard: tuple[int, int]) -> None:
    torch.set_num_threads(1)
    with join(path) as store:
        EXPERTS.record(store, network, X, Y, keys=4, shard=shard, seed=7)


def test_two_processes_make_the_store_that_one_makes(tmp_path: Path, reference: dict[str, torch.Tensor]) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(tmp_path / "store", (index, 2))) for index in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    assert_equal(contents(tmp_path / "store"), reference)
