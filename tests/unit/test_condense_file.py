import json
import os

import pytest
import safetensors.torch
import torch
from torch.utils.data import DataLoader

import distillrs as dr
from distillrs import condense, transforms
from distillrs.condense import Additive, CondensedSet, Enlarged, Factors, HardLabels, SoftLabels, Synthetic
from distillrs.training import TrainingSettings

SETTINGS = TrainingSettings(epochs=3, batch_size=2, learning_rate=0.1, momentum=0.9)


def hard(**options):
    return Synthetic(torch.randn(4, 1, 3, 3), HardLabels(torch.tensor([0, 1, 2, 1])), inner_lr=0.03, **options)


def soft(**options):
    return Synthetic(torch.randn(4, 5), SoftLabels(torch.randn(4, 3)), inner_lr=0.25, **options)


def standardise():
    return transforms.Standardise(torch.tensor([0.3]), torch.tensor([0.7]))


def test_what_is_saved_is_what_is_loaded(tmp_path):
    made = hard()
    made.save(tmp_path / "set.safetensors", transform=standardise(), training=SETTINGS, classes=["a", "b", "c"])
    data = condense.load(tmp_path / "set.safetensors")
    assert torch.equal(data.images, made.images.detach())
    assert torch.equal(data.labels, made.targets())
    assert data.probabilities is None
    assert data.inner_lr == made.inner_lr.item()
    assert data.training == SETTINGS
    assert data.classes == ["a", "b", "c"]
    torch.testing.assert_close(data.raw(), made.images.detach() * 0.7 + 0.3)


def test_soft_labels_come_back_as_probabilities(tmp_path):
    made = soft()
    made.save(tmp_path, training=None)
    data = condense.load(tmp_path)
    assert (tmp_path / "condensed.safetensors").is_file()
    assert data.labels is None
    assert torch.equal(data.logits, made.labels.logits.detach())
    torch.testing.assert_close(data.target(), made.targets().detach())
    torch.testing.assert_close(data.probabilities.sum(1), torch.ones(4))
    assert data.training is None
    assert isinstance(data.transform, transforms.Identity)


@pytest.mark.parametrize("factors", [Enlarged((6, 6)), Additive(torch.randn(2, 1, 3, 3))])
def test_factors_come_back_and_make_the_same_examples(tmp_path, factors):
    count = 2 * (2 if isinstance(factors, Additive) else 1)
    made = Synthetic(torch.randn(2, 1, 3, 3), HardLabels(torch.zeros(count, dtype=torch.int64)), factors=factors)
    made.save(tmp_path)
    data = condense.load(tmp_path)
    torch.testing.assert_close(data.images, made.examples().detach())
    assert data.stored_bytes() == made.condensed().stored_bytes()


class Mirrored(Factors):
    kind = "mirrored"

    def forward(self, images):
        return torch.cat([images, images.flip(-1)])

    @classmethod
    def restore(cls, description, tensors):
        return cls()


def test_a_users_factors_are_read_when_they_are_named(tmp_path):
    made = Synthetic(torch.randn(1, 3), HardLabels(torch.tensor([0, 0])), factors=Mirrored())
    made.save(tmp_path)
    with pytest.raises(dr.errors.DataError, match="mirrored"):
        condense.load(tmp_path)
    data = condense.load(tmp_path, factors={"mirrored": Mirrored})
    torch.testing.assert_close(data.images[1], made.images[0].detach().flip(-1))


def test_bytes_count_images_labels_factors_and_the_rate():
    assert hard().condensed().stored_bytes() == 4 * 9 * 4 + 4 * 8 + 8
    assert soft().condensed().stored_bytes() == 4 * 5 * 4 + 4 * 3 * 4 + 8
    made = Synthetic(
        torch.zeros(2, 3), HardLabels(torch.zeros(4, dtype=torch.int64)), factors=Additive(torch.zeros(2, 3))
    )
    assert made.condensed().stored_bytes() == (2 + 2) * 3 * 4 + 4 * 8 + 8


def test_the_average_is_what_is_saved(tmp_path):
    made = hard(average=0.5)
    made.images.data.add_(1)
    made.after_step()
    made.save(tmp_path)
    assert torch.equal(condense.load(tmp_path).images, made.examples(averaged=True))


@pytest.mark.parametrize("make", [hard, soft])
def test_a_data_loader_takes_the_set_as_it_is(make):
    data = make().condensed()
    images, targets = next(iter(DataLoader(data, batch_size=4)))
    assert torch.equal(images, data.images)
    torch.testing.assert_close(targets, data.target())


def test_the_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    made = hard()
    made.save(tmp_path)
    before = (tmp_path / "condensed.safetensors").read_bytes()
    made.images.data.add_(1)

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        made.save(tmp_path)
    assert (tmp_path / "condensed.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["condensed.safetensors"]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    made = soft()
    for name in ("one", "two"):
        made.save(tmp_path / name, transform=standardise(), training=SETTINGS)
    assert (tmp_path / "one" / condense.file.FILE_NAME).read_bytes() == (
        tmp_path / "two" / condense.file.FILE_NAME
    ).read_bytes()


def page(**changes):
    return {
        "format": "distillrs.condensed",
        "version": 1,
        "classes": 2,
        "class_names": None,
        "transform": {"kind": "identity"},
        "factors": None,
        "training": None,
    } | changes


def tensors(**changes):
    good = {
        "images": torch.zeros(2, 3),
        "labels": torch.tensor([0, 1]),
        "inner_lr": torch.tensor(0.1, dtype=torch.float64),
    }
    return {name: tensor for name, tensor in (good | changes).items() if tensor is not None}


def write(path, text=None, **changes):
    text = json.dumps(page()) if text is None else text
    safetensors.torch.save_file(tensors(**changes), path, {"distillrs": text})


def test_a_file_made_by_hand_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    assert len(condense.load(path)) == 2


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("{", {}, "not a condensed set"),
        (DEEP, {}, "not a condensed set"),
        ("3", {}, "format"),
        (json.dumps(page(format="other")), {}, "format"),
        (json.dumps(page(version=2)), {}, "newer distillrs"),
        (json.dumps(page(version="1")), {}, "version"),
        (json.dumps(page(classes=0)), {}, "classes"),
        (json.dumps(page(classes=1)), {}, "indices"),
        (json.dumps(page(class_names=["a"])), {}, "classes"),
        (json.dumps(page(class_names=3)), {}, "class_names"),
        (json.dumps(page(transform={"kind": "pickle"})), {}, "transform"),
        (json.dumps(page(transform=[])), {}, "not a condensed set"),
        (json.dumps(page(transform={"kind": "standardise"})), {}, "mean"),
        (json.dumps(page(training={"epochs": -1})), {}, "not a condensed set"),
        (json.dumps(page(training={"shell": "rm"})), {}, "shell"),
        (json.dumps(page(factors={"kind": "code"})), {}, "factors"),
        (json.dumps(page(factors={"kind": "enlarged", "size": [65536, 65536]})), {"images": torch.zeros(2, 64, 1, 1)},
         "bytes of examples"),
        (json.dumps(page(factors={"kind": "enlarged", "size": "big"})), {}, "size"),
        ("x" * (2 << 20), {}, "metadata"),
        (None, {"images": None}, "images"),
        (None, {"inner_lr": None}, "inner_lr"),
        (None, {"labels": None}, "labels"),
        (None, {"logits": torch.zeros(2, 2)}, "labels"),
        (None, {"labels": torch.tensor([0, 5])}, "indices"),
        (None, {"labels": torch.tensor([0])}, "labels"),
        (None, {"labels": torch.tensor([0.0, 1.0])}, "indices"),
        (None, {"images": torch.zeros(2, 3, dtype=torch.int32)}, "images"),
        (None, {"images": torch.full((2, 3), float("nan"))}, "images"),
        (None, {"images": torch.zeros(0, 3)}, "images"),
        (None, {"inner_lr": torch.zeros(3)}, "inner_lr"),
        (None, {"inner_lr": torch.tensor(float("nan"))}, "inner_lr"),
        (None, {"inner_lr": torch.tensor(-1.0)}, "inner_lr"),
        (None, {"code": torch.zeros(1)}, "code"),
        (None, {"factors.offsets": torch.zeros(1, 3)}, "factors"),
    ],
)  # fmt: skip
def test_a_strangers_file_is_refused_with_the_reason(tmp_path, text, changes, says):
    path = tmp_path / "x.safetensors"
    write(path, text, **changes)
    with pytest.raises(dr.errors.DataError, match=says) as refused:
        condense.load(path)
    assert str(path) in str(refused.value)


def test_a_damaged_or_foreign_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    whole = path.read_bytes()
    for content in (b"", b"\x80\x04pickle", whole[:20], whole[:-1], whole + b"more", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(dr.errors.DataError, match="not a condensed set"):
            condense.load(path)
    safetensors.torch.save_file(tensors(), path)
    with pytest.raises(dr.errors.DataError, match="no entry 'distillrs'"):
        condense.load(path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    write(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(dr.errors.DataError):
            condense.load(path)


def test_missing_and_too_large_files_are_named(tmp_path):
    with pytest.raises(dr.errors.DataError, match="no such file"):
        condense.load(tmp_path)
    write(tmp_path / "x.safetensors")
    with pytest.raises(dr.errors.DataError, match="allowed are 10"):
        condense.load(tmp_path / "x.safetensors", max_bytes=10)


def test_parts_that_do_not_fit_are_refused():
    images, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(dr.errors.ArgumentError, match=r"^labels: got"):
        CondensedSet(images, inner_lr=0.1)
    with pytest.raises(dr.errors.ArgumentError, match=r"^class_count: got"):
        CondensedSet(images, logits=torch.zeros(2, 3), class_count=2, inner_lr=0.1)
    with pytest.raises(dr.errors.ArgumentError, match=r"^inner_lr: got"):
        CondensedSet(images, labels, inner_lr=0.0)


@pytest.mark.parametrize(
    ("page", "tensors"),
    [
        ({}, {"inner_lr": torch.tensor(1 + 1j)}),
        ({"classes": 10**30}, {}),
        ({"transform": {"kind": "zca", "regularisation": 10**400}},
         {"transform.mean": torch.zeros(4), "transform.directions": torch.eye(4),
          "transform.variances": torch.ones(4)}),
        ({"training": {"epochs": 1, "batch_size": 1, "learning_rate": 10**400}}, {}),
        ({"transform": {"kind": "standardise"}},
         {"transform.mean": torch.zeros(1).to(torch.float8_e4m3fn),
          "transform.std": torch.ones(1).to(torch.float8_e4m3fn)}),
        ({"factors": {"kind": "additive"}}, {"factors.offsets": torch.ones(1, 4).to(torch.float8_e4m3fn)}),
    ],
    ids=["complex rate", "countless classes", "infinite integer", "infinite rate", "fp8 transform", "fp8 factors"],
)  # fmt: skip
def test_odd_numbers_of_a_stranger_give_our_error(tmp_path, page, tensors):
    whole = {"format": "distillrs.condensed", "version": 1, "classes": 2, "transform": {"kind": "identity"}}
    parts = {"images": torch.ones(2, 4), "labels": torch.tensor([0, 1]), "inner_lr": torch.tensor(0.1), **tensors}
    file = tmp_path / "odd.safetensors"
    file.write_bytes(safetensors.torch.save(parts, {"distillrs": json.dumps({**whole, **page})}))
    with pytest.raises(dr.errors.DataError, match="not a condensed set"):
        condense.load(file)


def test_logits_of_eight_bits_are_refused(tmp_path):
    whole = {"format": "distillrs.condensed", "version": 1, "classes": 2, "transform": {"kind": "identity"}}
    parts = {"images": torch.ones(2, 4), "logits": torch.zeros(2, 2).to(torch.float8_e4m3fn),
             "inner_lr": torch.tensor(0.1)}  # fmt: skip
    file = tmp_path / "odd.safetensors"
    file.write_bytes(safetensors.torch.save(parts, {"distillrs": json.dumps(whole)}))
    with pytest.raises(dr.errors.DataError, match=r"logits: got"):
        condense.load(file)
