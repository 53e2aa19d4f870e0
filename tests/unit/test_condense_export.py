from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from distillrs import condense, transforms
from distillrs.condense import CondensedSet
from distillrs.errors import ArgumentError, DistillrsError
from distillrs.training import TrainingSettings


def small(channels=3, soft=False, classes=("cat", "dog"), **options):
    images = torch.linspace(-0.2, 1.1, 4 * channels * 20).reshape(4, channels, 4, 5)
    labels = torch.tensor([0, 1, 1, 0])
    logits = torch.eye(2)[labels] * 3
    kind = {"logits": logits} if soft else {"labels": labels}
    transform = transforms.Standardise(torch.tensor([0.5] * channels), torch.tensor([0.25] * channels))
    return CondensedSet(
        transform.forward(images), **kind, inner_lr=0.1, classes=list(classes) if classes else None,
        transform=transform, training=TrainingSettings(3, 2, 0.1), **options,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_hold_the_raw_values_in_a_folder_for_each_class(tmp_path, channels):
    data = small(channels)
    found = condense.export_image_folder(data, tmp_path / "set")
    raw = data.raw()
    assert found.files == 4
    assert found.clipped == pytest.approx(((raw < 0) | (raw > 1)).float().mean().item())
    assert found.largest_error == pytest.approx(0.2, abs=1e-5)
    files = sorted((tmp_path / "set" / "train").rglob("*.png"))
    assert [file.relative_to(tmp_path / "set" / "train").as_posix() for file in files] == [
        "cat/00000.png", "cat/00003.png", "dog/00001.png", "dog/00002.png",
    ]  # fmt: skip
    for file in files:
        pixels = np.asarray(Image.open(file)).reshape(4, 5, channels).transpose(2, 0, 1) / 255
        expected = raw[int(file.stem)].clamp(0, 1).numpy()
        assert np.abs(pixels - expected).max() <= 0.5 / 255 + 1e-6
    rows = [json.loads(line) for line in (tmp_path / "set" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert rows[1] == {"file_name": "dog/00001.png", "label": 1}
    assert json.loads((tmp_path / "set" / "training.json").read_text())["training"]["epochs"] == 3


def test_soft_labels_are_written_beside_the_pictures(tmp_path):
    data = small(soft=True)
    condense.export_image_folder(data, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train" / "metadata.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [0, 1, 1, 0]
    torch.testing.assert_close(torch.tensor([row["probabilities"] for row in rows]), data.target())


@pytest.mark.parametrize("classes", [
    None, ("../up", "b"), ("a", "a"), ("", "b"), (".hidden", "b"), ("a/b", "c"), ("Cat", "cat"),
    ("a ", "b"), ("a.", "b"), ("\ud800", "b"), ("a\nb", "c"), ("é" * 200, "b"), ("metadata.jsonl", "b"),
])  # fmt: skip
def test_names_that_are_no_folders_names_become_numbers(tmp_path, classes):
    condense.export_image_folder(small(classes=classes), tmp_path / "set")
    assert {path.name for path in (tmp_path / "set" / "train").iterdir()} == {"0", "1", "metadata.jsonl"}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_no_picture_or_no_empty_folder_is_refused(tmp_path):
    flat = CondensedSet(torch.randn(2, 5), torch.tensor([0, 1]), inner_lr=0.1)
    with pytest.raises(ArgumentError, match=r"^data: got 'examples of shape \(5,\)'"):
        condense.export_image_folder(flat, tmp_path / "set")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    for path in (tmp_path / "there", tmp_path / "there" / "file"):
        with pytest.raises(ArgumentError, match=r"^path: got .*there"):
            condense.export_image_folder(small(), path)


class FakeDataset:
    @classmethod
    def from_dict(cls, columns, features):
        made = cls()
        made.columns, made.features = columns, features
        return made


def fake_package():
    def kind(name):
        return lambda *values, **options: (name, values, options)

    names = ("Array2D", "Array3D", "Array4D", "Array5D", "ClassLabel", "Sequence", "Value", "Features")
    return SimpleNamespace(Dataset=FakeDataset, **{name: kind(name) for name in names})


@pytest.mark.parametrize("soft", [False, True])
def test_a_data_set_of_hugging_face_has_values_classes_and_probabilities(monkeypatch, soft):
    monkeypatch.setitem(sys.modules, "datasets", fake_package())
    data = small(soft=soft)
    made = condense.to_hugging_face(data)
    assert np.array_equal(np.stack(made.columns["values"]), data.images.numpy())
    assert made.columns["label"] == [0, 1, 1, 0]
    described = made.features[1][0]
    assert described["values"] == ("Array3D", (), {"shape": (3, 4, 5), "dtype": "float32"})
    assert described["label"] == ("ClassLabel", (), {"names": ["cat", "dog"]})
    assert ("probabilities" in made.columns) == ("probabilities" in described) == soft
    flat = CondensedSet(torch.randn(2, 5), torch.tensor([0, 1]), inner_lr=0.1)
    assert condense.to_hugging_face(flat).features[1][0]["values"][0] == "Sequence"


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DistillrsError, match=r"needs the package 'datasets': pip install datasets"):
        condense.to_hugging_face(small())
