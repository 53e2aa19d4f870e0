"""The phases of ``distillrs condense`` for methods without experts: teachers, rates, selected controls."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distillrs import condense, fitting, select
from distillrs.cli import distilling, judging, plan, teaching
from distillrs.cli.preparation import prepare
from distillrs.cli.progress import Silent
from distillrs.cli.select import principal_components
from distillrs.errors import ArgumentError
from distillrs.evaluate.data import make_bundle

TEACHERS = ["experts.count=2", "experts.training.epochs=2", "network.options.width=4", "network.options.depth=1"]


def bundle(side):
    rng = np.random.default_rng(0)

    def part(count):
        y = np.arange(count) % 3
        return (rng.normal(size=(count, 1, side, side)) + y[:, None, None, None]).astype(np.float32), y

    (x, y), (x_test, y_test) = part(60), part(30)
    return make_bundle("made up", {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test})


def prepared(out, side=4, method="cda", sets=()):
    data = bundle(side)
    flags = {"data": "made-up.npz", "network": "convnet", "method": method, "per_class": 2, "out": str(out)}
    asked, card = plan.request({}, flags, [*TEACHERS, *sets])
    return prepare(plan.resolve(asked, card, data, processors=1), data, card)


def states(teachers):
    return [{name: value.clone() for name, value in teachers[each].state_dict().items()} for each in range(2)]


def same(one, other):
    return all(torch.equal(mine[name], theirs[name]) for mine, theirs in zip(one, other, strict=True) for name in mine)


def test_teachers_are_trained_once_and_read_back_running_statistics_and_all(tmp_path):
    run = prepared(tmp_path)
    assert teaching.trained(run) == 0
    first = states(teaching.teach(run, Silent()))
    assert any("running_mean" in name for name in first[0])
    assert not torch.equal(*(each["0.weight"] for each in first))
    assert teaching.trained(run) == 2
    files = sorted(run.store_path.iterdir())
    stamps = [file.stat().st_mtime_ns for file in files]
    assert same(states(teaching.teach(run, Silent())), first)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    # A file that is cut off, or another network's, is made anew; the same seed gives the same teacher.
    files[0].write_bytes(files[0].read_bytes()[:-5])
    files[1].write_bytes(b"")
    assert same(states(teaching.teach(run, Silent())), first)
    accuracies = teaching.accuracies(run, teaching.teach(run, Silent()))
    assert len(accuracies) == 2
    assert all(0 <= each <= 1 for each in accuracies)


def test_recovering_is_adam_with_a_rate_that_falls_along_a_cosine(tmp_path):
    run = prepared(tmp_path, sets=["distillation.steps=8"])
    _, objective = distilling.begin(run, None, teaching.teach(run, Silent()))
    optimiser = distilling._rates(run, objective)
    assert isinstance(optimiser, torch.optim.Adam)
    [group] = optimiser.param_groups
    assert (group["lr"], group["betas"], group["name"]) == (0.25, (0.5, 0.9), "images")
    assert group["params"] == objective.parameter_groups()["images"]
    for done in (0, 2, 4, 8):
        distilling._schedule(run, {"synthetic": optimiser}, done)
        assert group["lr"] == pytest.approx(0.125 * (1 + math.cos(math.pi * done / 8)))


def test_a_rate_that_does_not_fall_stays_and_adam_is_for_all_groups(tmp_path):
    run = prepared(tmp_path, method="dm", sets=["distillation.steps=8"])
    _, objective = distilling.begin(run, None)
    assert distilling._rates(run, objective) == {"images": {"lr": 1.0, "momentum": 0.5}}
    optimiser = fitting.sgd(objective, {"images": {"lr": 1.0, "momentum": 0.5}})
    distilling._schedule(run, {"synthetic": optimiser}, 8)
    assert optimiser.param_groups[0]["lr"] == 1.0
    groups = {"images": [torch.nn.Parameter(torch.zeros(1))], "labels": [torch.nn.Parameter(torch.zeros(1))]}
    settings = run.settings.distillation.optimisers
    adam = type(settings["images"])(0.1, betas=(0.5, 0.9))
    with pytest.raises(ArgumentError, match=r"^distillation\.optimisers\.labels\.betas: got None"):
        distilling._adam(groups, {"images": adam, "labels": settings["images"]})


def test_labels_are_written_for_the_images_that_are_saved(tmp_path):
    run = prepared(tmp_path, sets=["method.views.count=2"])
    teachers = teaching.teach(run, Silent())
    synthetic, _ = distilling.begin(run, None, teachers)
    small = distilling.condensed(run, synthetic, teachers)
    folder = distilling.Folder(tmp_path)
    for _ in range(2):  # what was there is replaced
        small.views = distilling.relabel(run, small, teachers, folder)
        small.save(tmp_path)
    again = condense.load(tmp_path)
    seen, found = again.views.at(again.images, 1)
    expected = (teachers.vote(seen) / again.views.temperature).softmax(1)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    # A run that was stopped while it removed old labels.
    for file in (tmp_path / distilling.LABELS).iterdir():
        if file.suffix != ".safetensors":
            file.unlink()
    assert len(distilling.relabel(run, small, teachers, folder).source) == 2 * 6


@pytest.mark.parametrize("side", [4, 20])
def test_selected_controls_are_those_of_select_class_by_class(tmp_path, side):
    run = prepared(tmp_path, side, method="dm")
    points, y = run.x_train.flatten(1), run.bundle.y_train
    if side == 20:
        points = principal_components(points, 64)
    rows = judging.selected(run)
    assert rows["k_center"].tolist() == select.k_center(points, 2, groups=y, seed=run.settings.seed).ids.tolist()
    assert rows["herding"].tolist() == select.herding(points, 2, groups=y).ids.tolist()
    assert rows["facility_location"].tolist() == select.facility_location(points, 2, groups=y).ids.tolist()
    for chosen in rows.values():
        assert y[chosen].bincount().tolist() == [2, 2, 2]
