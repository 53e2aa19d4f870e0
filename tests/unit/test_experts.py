from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distillrs.condense.experts import ExpertProgress, ExpertTraining, Snapshots
from distillrs.condense.modifiers import ClippedLoss, InputGradientPenalty, SharpnessAware
from distillrs.errors import ArgumentError, KeyConflict, StoreLocked, TrainingDivergedError
from distillrs.training import StepRule, TrainingSettings, plain, train
from distillrs.trajectory import ParameterLayout

SETTINGS = TrainingSettings(epochs=4, batch_size=8, learning_rate=0.1, momentum=0.9)
Y = torch.arange(32) % 3
X = nn.functional.one_hot(Y, 5).float() + 0.5 * torch.linspace(0, 60, 160).sin().reshape(32, 5)


class MemoryWriter:
    """Keeps the very tensors it is given, so that a view in place of a copy would show."""

    def __init__(self, records: list[Tensor], complete: Callable[[], None] = lambda: None) -> None:
        self.records = records
        self.durable = len(records)
        self.complete = complete

    def __enter__(self) -> MemoryWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, failure: object, trace: object) -> None:
        if kind is None:
            self.complete()
        else:
            del self.records[self.durable :]

    def __len__(self) -> int:
        return len(self.records)

    def append(self, **columns: Tensor) -> None:
        self.records.append(columns["theta"])

    def flush(self) -> None:
        self.durable = len(self.records)


class MemoryStore:
    """The methods of a store that recording calls, over a dictionary."""

    def __init__(self) -> None:
        self.records: dict[str, list[Tensor]] = {}
        self.complete: set[str] = set()
        self.locked: set[str] = set()
        self.opened: list[tuple[str, int | None]] = []

    def keys(self) -> list[str]:
        return sorted(self.complete)

    def begin(self, key: str, resume_at: int | None = None) -> MemoryWriter:
        if key in self.locked:
            raise StoreLocked("held", host="here", process="1")
        if key in self.complete:
            raise KeyConflict("complete")
        records = self.records.setdefault(key, [])
        if resume_at is not None:
            if resume_at > len(records):
                raise ArgumentError(f"resume_at: got {resume_at}")
            del records[resume_at:]
        self.opened.append((key, resume_at))
        return MemoryWriter(records, lambda: self.complete.add(key))


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed % 2**32)
        return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 3))


def assert_same(first: MemoryStore, second: MemoryStore) -> None:
    assert first.complete == second.complete
    for key in first.complete:
        assert len(first.records[key]) == len(second.records[key])
        assert all(torch.equal(a, b) for a, b in zip(first.records[key], second.records[key], strict=True))


@pytest.fixture(scope="module")
def uninterrupted() -> MemoryStore:
    store = MemoryStore()
    ExpertTraining(SETTINGS).record(store, network, X, Y, keys=3, seed=7)
    return store


def test_an_expert_has_one_record_before_training_and_one_after_each_epoch(uninterrupted: MemoryStore) -> None:
    assert uninterrupted.keys() == ["expert-0", "expert-1", "expert-2"]
    assert all(len(records) == SETTINGS.epochs + 1 for records in uninterrupted.records.values())


def test_snapshots_are_copies_and_not_views_of_one_network(uninterrupted: MemoryStore) -> None:
    for records in uninterrupted.records.values():
        for before, after in itertools.pairwise(records):
            assert float((after - before).norm()) > 0
        assert len({each.data_ptr() for each in records}) == len(records)


def test_the_trajectory_is_that_of_the_training_loop(uninterrupted: MemoryStore) -> None:
    seen: list[tuple[int, nn.Module]] = []
    store = MemoryStore()

    def factory(seed: int) -> nn.Module:
        made = network(seed)
        seen.append((seed, made))
        return made

    ExpertTraining(SETTINGS).record(store, factory, X, Y, keys=["expert-1"], seed=7)
    seed, trained = seen[0]
    again = network(seed)
    layout = ParameterLayout.of(again)
    assert torch.equal(layout.flatten(again), uninterrupted.records["expert-1"][0])
    train(again, X, Y, SETTINGS, seed=seed)
    assert torch.equal(layout.flatten(again), uninterrupted.records["expert-1"][-1])
    assert torch.equal(layout.flatten(trained), layout.flatten(again))


def test_experts_differ_from_each_other_and_with_the_seed(uninterrupted: MemoryStore) -> None:
    starts = [records[0] for records in uninterrupted.records.values()]
    assert not torch.equal(starts[0], starts[1])
    other = MemoryStore()
    ExpertTraining(SETTINGS).record(other, network, X, Y, keys=1, seed=8)
    assert not torch.equal(other.records["expert-0"][0], starts[0])


def test_shards_make_together_the_store_that_one_process_makes(uninterrupted: MemoryStore) -> None:
    store = MemoryStore()
    outcomes = {}
    for index in (1, 0):
        outcomes |= ExpertTraining(SETTINGS).record(store, network, X, Y, keys=3, shard=(index, 2), seed=7)
    assert outcomes == dict.fromkeys(("expert-0", "expert-1", "expert-2"), "recorded")
    assert_same(store, uninterrupted)


def test_complete_and_locked_experts_are_skipped() -> None:
    store = MemoryStore()
    experts = ExpertTraining(SETTINGS)
    experts.record(store, network, X, Y, keys=["a"])
    kept = store.records["a"]
    store.locked.add("b")
    assert experts.record(store, network, X, Y, keys=["a", "b", "c"]) == {
        "a": "complete",
        "b": "locked",
        "c": "recorded",
    }
    assert store.records["a"] is kept
    assert store.keys() == ["a", "c"]


def test_an_expert_that_another_process_completed_meanwhile_counts_as_complete() -> None:
    class Late(MemoryStore):
        def keys(self) -> list[str]:
            return []

    store = Late()
    experts = ExpertTraining(SETTINGS)
    experts.record(store, network, X, Y, keys=["a"])
    assert experts.record(store, network, X, Y, keys=["a"]) == {"a": "complete"}


class Interruption(Exception):
    pass


def interrupt_after(epoch: int) -> object:
    def stop(progress: ExpertProgress) -> None:
        if (progress.key, progress.epoch) == ("expert-1", epoch):
            raise Interruption

    return stop


@pytest.mark.parametrize("with_checkpoints", [False, True])
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_an_interrupted_expert_becomes_bit_for_bit_the_uninterrupted_one(
    uninterrupted: MemoryStore, tmp_path: Path, with_checkpoints: bool, epoch: int
) -> None:
    store = MemoryStore()
    folder = tmp_path / "unfinished" if with_checkpoints else None
    experts = ExpertTraining(SETTINGS)
    with pytest.raises(Interruption):
        experts.record(
            store,
            network,
            X,
            Y,
            keys=3,
            seed=7,
            checkpoints=folder,
            on_progress=interrupt_after(epoch),  # type: ignore[arg-type]  # raises instead of returning
        )
    assert store.keys() == ["expert-0"]
    outcomes = experts.record(store, network, X, Y, keys=3, seed=7, checkpoints=folder)
    assert outcomes == {"expert-0": "complete", "expert-1": "recorded", "expert-2": "recorded"}
    assert_same(store, uninterrupted)
    if folder is not None:
        resumed = dict(store.opened)["expert-1"]
        # The last epoch leaves no checkpoint of its own: one epoch is trained again.
        assert resumed == min(epoch, SETTINGS.epochs - 1) + 1
        assert not list(folder.iterdir())


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_used(uninterrupted: MemoryStore, tmp_path: Path) -> None:
    experts = ExpertTraining(SETTINGS)

    def interrupted(seed: int) -> MemoryStore:
        store = MemoryStore()
        with pytest.raises(Interruption):
            experts.record(
                store,
                network,
                X,
                Y,
                keys=["expert-1"],
                seed=seed,
                checkpoints=tmp_path,
                on_progress=interrupt_after(2),  # type: ignore[arg-type]  # raises instead of returning
            )
        return store

    for damage in ("other seed", "damaged", "missing records"):
        store = interrupted(8 if damage == "other seed" else 7)
        (file,) = tmp_path.iterdir()
        if damage == "damaged":
            file.write_bytes(file.read_bytes()[:100])
        if damage == "missing records":
            store = MemoryStore()
        experts.record(store, network, X, Y, keys=["expert-1"], seed=7, checkpoints=tmp_path)
        for ours, theirs in zip(store.records["expert-1"], uninterrupted.records["expert-1"], strict=True):
            assert torch.equal(ours, theirs)


def other_start(seed: int) -> nn.Module:
    return network(seed + 1)


@pytest.mark.parametrize(
    ("x", "y", "start"),
    [(X + 1, Y, network), (X, (Y + 1) % 3, network), (X, Y, other_start)],
    ids=["examples", "labels", "initial weights"],
)
def test_a_checkpoint_from_other_data_or_another_start_is_not_used(
    uninterrupted: MemoryStore, tmp_path: Path, x: Tensor, y: Tensor, start: Callable[[int], nn.Module]
) -> None:
    store, experts = MemoryStore(), ExpertTraining(SETTINGS)
    with pytest.raises(Interruption):
        experts.record(
            store,
            start,
            x,
            y,
            keys=["expert-1"],
            seed=7,
            checkpoints=tmp_path,
            on_progress=interrupt_after(2),  # type: ignore[arg-type]  # raises instead of returning
        )
    experts.record(store, network, X, Y, keys=["expert-1"], seed=7, checkpoints=tmp_path)
    for ours, theirs in zip(store.records["expert-1"], uninterrupted.records["expert-1"], strict=True):
        assert torch.equal(ours, theirs)


def test_progress_names_the_expert_and_its_epochs() -> None:
    seen: list[ExpertProgress] = []
    ExpertTraining(SETTINGS).record(
        MemoryStore(), network, X, Y, keys=["a", "b", "c"], shard=(0, 2), on_progress=seen.append
    )
    assert [(each.key, each.expert, each.experts) for each in seen] == [("a", 0, 2)] * 4 + [("c", 1, 2)] * 4
    assert [each.epoch for each in seen] == [1, 2, 3, 4] * 2
    assert seen[3].loss < seen[0].loss


def test_snapshots_serve_a_loop_of_ones_own() -> None:
    model = nn.Linear(5, 3)
    writer = MemoryWriter([])
    snapshots = Snapshots(writer, ParameterLayout.of(model))
    snapshots.record(model)
    with torch.no_grad():
        model.weight.add_(1)
    snapshots.record(model)
    assert writer.durable == 2
    moved = writer.records[1] - writer.records[0]
    torch.testing.assert_close(moved, torch.cat([torch.ones(15), torch.zeros(3)]))


def test_networks_with_running_statistics_are_refused_with_the_remedy() -> None:
    store = MemoryStore()
    with pytest.raises(ArgumentError, match=r"running_mean.*GroupNorm"):
        ExpertTraining(SETTINGS).record(
            store, lambda seed: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)), X, Y, keys=1
        )
    assert not store.records


def test_divergence_leaves_the_trajectory_incomplete() -> None:
    store = MemoryStore()

    def deep(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    wild = TrainingSettings(epochs=4, batch_size=8, learning_rate=1e38)
    with pytest.raises(TrainingDivergedError):
        ExpertTraining(wild).record(store, deep, X, Y, keys=1)
    assert store.keys() == []


@pytest.mark.parametrize(
    "rule", [SharpnessAware(0.05, adaptive=True, surrogate_gap=0.3), ClippedLoss(rule=InputGradientPenalty())]
)
def test_a_rule_changes_the_trajectory_but_not_its_start(rule: StepRule, uninterrupted: MemoryStore) -> None:
    store = MemoryStore()
    ExpertTraining(SETTINGS, rule).record(store, network, X, Y, keys=1, seed=7)
    ours, theirs = store.records["expert-0"], uninterrupted.records["expert-0"]
    assert torch.equal(ours[0], theirs[0])
    assert not torch.allclose(ours[-1], theirs[-1], atol=1e-3)


def test_the_description_tells_settings_and_nested_rules_apart() -> None:
    first = ExpertTraining(SETTINGS, SharpnessAware(0.01, rule=ClippedLoss()))
    assert first.describe() == {
        "training": SETTINGS.to_dict(),
        "rule": {
            "name": "SharpnessAware",
            "radius": 0.01,
            "adaptive": False,
            "surrogate_gap": 0.0,
            "mix": 1.0,
            "rule": {
                "name": "ClippedLoss",
                "start": 0.5,
                "increment": 0.05,
                "epochs": 10,
                "rule": "distillrs.training:plain",
            },
        },
    }
    others = [
        ExpertTraining(SETTINGS),
        ExpertTraining(SETTINGS, SharpnessAware(0.02, rule=ClippedLoss())),
        ExpertTraining(SETTINGS, SharpnessAware(0.01)),
    ]
    assert len({each.fingerprint for each in (first, *others)}) == 4
    assert ExpertTraining(SETTINGS, plain).fingerprint == ExpertTraining(SETTINGS).fingerprint


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"keys": 0}, "keys"),
        ({"keys": ["a", "a"]}, "keys"),
        ({"keys": "expert"}, "keys"),
        ({"keys": 2, "shard": (2, 2)}, "shard"),
        ({"keys": 2, "shard": (-1, 2)}, "shard"),
    ],
)
def test_arguments_outside_their_range_are_refused_by_name(changes: dict[str, object], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        ExpertTraining(SETTINGS).record(MemoryStore(), network, X, Y, **changes)  # type: ignore[arg-type]  # on purpose


def test_a_rule_that_no_description_tells_from_another_has_no_fingerprint() -> None:
    rules = [
        functools.partial(SharpnessAware(0.1)),
        lambda *arguments: plain(*arguments),
        SharpnessAware(0.1, rule=functools.partial(plain)),
    ]
    for rule in rules:
        with pytest.raises(ArgumentError, match=r"^rule: got.*dataclass"):
            ExpertTraining(SETTINGS, rule).describe()
