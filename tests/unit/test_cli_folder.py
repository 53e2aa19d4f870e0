from __future__ import annotations

import dataclasses

import pytest
import torch

from distillrs import configuration
from distillrs.cli.folder import CONFIG, Folder
from distillrs.cli.settings import (
    CondenseSettings,
    DistillationSettings,
    EvaluationSettings,
    ExpertSettings,
    MethodSettings,
    NetworkSettings,
    OptimiserSettings,
    identity,
    same_identity,
)
from distillrs.errors import ArgumentError
from distillrs.training import TrainingSettings


def settings(**changes):
    training = TrainingSettings(epochs=3, batch_size=4, learning_rate=0.1)
    base = CondenseSettings(
        data="digits",
        per_class=1,
        method=MethodSettings("tesla", {"inner_steps": 20}),
        network=NetworkSettings("mlp"),
        experts=ExpertSettings(2, training),
        distillation=DistillationSettings(10, {"images": OptimiserSettings(1.0)}, 5),
        evaluation=EvaluationSettings((0,), training, training),
        transform="identity",
        duplicates="refuse",
        seed=0,
        device="cpu",
        threads=1,
        out="somewhere",
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "out" / "demo")


def test_a_new_folder_is_made_and_holds_the_configuration(folder):
    folder.claim(settings(), overwrite=False)
    assert configuration.load(CondenseSettings, folder.path / CONFIG) == settings()


def test_the_same_configuration_comes_back_from_elsewhere_too(folder):
    folder.claim(settings(), overwrite=False)
    folder.save_state({"step": 3})
    folder.claim(settings(out="another name for it", store="x"), overwrite=False)
    assert folder.load_state() == {"step": 3}


def test_another_configuration_is_refused_with_the_first_differing_keys(folder):
    folder.claim(settings(), overwrite=False)
    (folder.path / "report.json").write_text("{}")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.path.iterdir())
    other = settings(seed=1, method=MethodSettings("tesla", {"inner_steps": 30}))
    with pytest.raises(ArgumentError) as refusal:
        folder.claim(other, overwrite=False)
    text = str(refusal.value)
    assert "--overwrite" in text
    assert "method.options.inner_steps: there 20, asked for 30" in text
    assert "seed: there 0, asked for 1" in text
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.path.iterdir()) == before


def test_overwrite_leaves_nothing_of_the_other_but_its_experts(folder):
    folder.claim(settings(), overwrite=False)
    folder.save_state({"step": 3})
    for name in ("report.json", "condensed.png"):
        (folder.path / name).write_text("old")
    (folder.path / "experts").mkdir()
    (folder.path / "notes.txt").write_text("mine")
    folder.claim(settings(seed=1), overwrite=True)
    assert folder.load_state() is None
    assert {path.name for path in folder.path.iterdir()} == {CONFIG, "experts", "notes.txt", ".unfinished"}
    assert configuration.load(CondenseSettings, folder.path / CONFIG).seed == 1


def test_results_without_a_configuration_are_not_replaced(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "report.md").write_text("somebody's")
    with pytest.raises(ArgumentError, match=r"report\.md but no config\.toml"):
        folder.claim(settings(), overwrite=False)
    assert (folder.path / "report.md").read_text() == "somebody's"
    folder.claim(settings(), overwrite=True)
    assert not (folder.path / "report.md").exists()


def test_other_files_in_the_folder_are_no_obstacle(folder):
    folder.path.mkdir(parents=True)
    (folder.path / "notes.txt").write_text("mine")
    folder.claim(settings(), overwrite=False)
    assert (folder.path / "notes.txt").read_text() == "mine"


def test_state_comes_back_bit_for_bit(folder):
    folder.claim(settings(), overwrite=False)
    state = {"next": 3, "tensors": {0: torch.tensor([1e-45, float("nan"), -0.0])}, "losses": [0.1, 1 / 3]}
    folder.save_state(state)
    back = folder.load_state()
    assert back["losses"] == state["losses"]
    ints = [each["tensors"][0].view(torch.int32) for each in (state, back)]
    assert torch.equal(*ints)
    folder.finish()
    assert folder.load_state() is None


def test_damaged_state_says_what_to_do(folder):
    folder.claim(settings(), overwrite=False)
    folder.save_state({"next": 3})
    path = next((folder.path / ".unfinished").iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ArgumentError, match=r"is damaged.*remove it"):
        folder.load_state()


def test_state_that_would_run_code_is_refused(folder):
    folder.claim(settings(), overwrite=False)
    (folder.path / ".unfinished" / "distillation.pt").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    with pytest.raises(ArgumentError, match="damaged"):
        folder.load_state()


def test_seconds_survive_or_begin_anew(folder):
    folder.claim(settings(), overwrite=False)
    assert folder.load_seconds() == {}
    folder.save_seconds({"experts": 1.5})
    assert folder.load_seconds() == {"experts": 1.5}
    (folder.path / ".unfinished" / "seconds.json").write_text("[1]")
    assert folder.load_seconds() == {}


def test_a_folder_in_which_another_run_is_at_work_is_refused(tmp_path):
    folder = tmp_path / "out"
    with Folder(folder).held():
        other = Folder(folder).held()
        with pytest.raises(ArgumentError, match="another process is at work"):
            other.__enter__()
    with Folder(folder).held():
        pass


def test_an_unfinished_run_is_known_by_the_values_of_its_configuration():
    wanted = settings()
    kept = configuration.to_toml(identity(wanted))
    assert "learning_rate = 0.1" in kept
    assert same_identity(kept, wanted)
    assert same_identity(kept.replace("inner_steps = 20", "inner_steps = 20.0"), wanted)
    assert not same_identity(kept.replace("learning_rate = 0.1", "learning_rate = 0.2"), wanted)
    assert not same_identity("no = toml = at all", wanted)
    assert not same_identity(None, wanted)
