import contextlib
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from distillrs.errors import ArgumentError, DataError, UnknownNameError
from distillrs.evaluate import data
from distillrs.evaluate.data import make_bundle
from distillrs.evaluate.data.rows import copies_among
from distillrs.transforms import Zca


def arrays(train=60, test=12, classes=3, shape=(6, 6), seed=0, dtype=np.uint8):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 256, (train + test, *shape)).astype(np.uint8)
    if dtype != np.uint8:
        x = (x / 255).astype(dtype)
    y = np.arange(train + test) % classes
    # Ordered by class, as some data sets come.
    order = np.argsort(y[:train], kind="stable")
    return {"x_train": x[:train][order], "y_train": y[:train][order], "x_test": x[train:], "y_test": y[train:]}


def rows(x):
    return [row.tobytes() for row in np.asarray(x)]


def test_the_digits_come_whole_and_split_without_overlap():
    bundle = data.load("digits")
    assert bundle.shape == (1, 8, 8)
    assert bundle.classes == tuple("0123456789")
    parts = [rows(bundle.x_train), rows(bundle.x_val), rows(bundle.x_test)]
    assert [len(part) for part in parts] == [1294, 144, 359]
    assert len({row for part in parts for row in part}) == 1797
    assert float(bundle.x_train.max()) == 1.0
    assert bundle.value_bytes == 4
    assert len(bundle.validation) == 144


def test_the_test_set_never_depends_on_seed_limit_or_order():
    first, second = data.load("digits", seed=0), data.load("digits", seed=1, limit=100)
    assert torch.equal(first.x_test, second.x_test)
    assert not torch.equal(first.x_val[:10], second.x_val[:10])
    assert len(second.x_train) + len(second.x_val) == 100
    assert data.load("digits").fingerprint == first.fingerprint != second.fingerprint


def test_validation_is_taken_from_training_stratified_whatever_the_order():
    given = arrays(train=300)
    bundle = make_bundle("x", given)
    assert torch.bincount(bundle.y_val).tolist() == [10, 10, 10]
    assert torch.bincount(bundle.y_train).tolist() == [90, 90, 90]
    together = rows(bundle.x_train) + rows(bundle.x_val)
    assert sorted(together) == sorted(rows(given["x_train"][:, None].astype(np.float32) / 255))


def test_labels_stay_with_their_examples():
    given = arrays(train=300)
    known = dict(zip(rows(given["x_train"][:, None].astype(np.float32) / 255), given["y_train"], strict=True))
    bundle = make_bundle("x", given, limit=100)
    for x, y in ((bundle.x_train, bundle.y_train), (bundle.x_val, bundle.y_val)):
        assert [known[row] for row in rows(x)] == y.tolist()


def test_a_validation_part_that_is_given_is_kept():
    given = arrays()
    extra = arrays(seed=9)
    given |= {"x_val": extra["x_train"][:7], "y_val": extra["y_train"][:7]}
    bundle = make_bundle("x", given, limit=30)
    assert rows(bundle.x_val) == rows(given["x_val"][:, None].astype(np.float32) / 255)
    assert len(bundle.x_train) == 30


def test_a_limit_is_stratified_and_keeps_every_class():
    given = arrays(train=300)
    given["y_train"] = np.array([0] * 200 + [1] * 98 + [2] * 2)
    bundle = make_bundle("x", given, limit=30)
    counts = (torch.bincount(bundle.y_train) + torch.bincount(bundle.y_val, minlength=3)).tolist()
    assert sum(counts) == 30
    assert counts[0] == pytest.approx(20, abs=1)
    assert counts[2] == 2
    given["y_train"][-1] = 0
    with pytest.raises(DataError, match=r"class 2 has 1 training example.*bring x_val"):
        make_bundle("x", given)


@pytest.mark.parametrize(
    ("shape", "dtype", "result"),
    [
        ((6, 7), np.uint8, (1, 6, 7)),
        ((3, 6, 7), np.uint8, (3, 6, 7)),
        ((6, 7, 3), np.uint8, (3, 6, 7)),
        ((6, 7, 1), np.uint8, (1, 6, 7)),
        ((5,), np.uint8, (5,)),
        ((5,), np.float64, (5,)),
        ((6, 7), np.float16, (6, 7)),
        ((6, 7, 3), np.float32, (6, 7, 3)),
    ],
)
def test_bytes_become_pixels_and_floats_are_taken_as_they_are(shape, dtype, result):
    given = arrays(shape=shape, dtype=dtype)
    bundle = make_bundle("x", given)
    assert bundle.shape == result
    assert bundle.x_train.dtype == torch.float32
    assert bundle.value_bytes == (1 if dtype == np.uint8 else 4)
    assert float(bundle.x_train.min()) >= 0
    assert float(bundle.x_train.max()) <= 1
    if shape == (6, 7, 3) and dtype == np.uint8:
        moved = np.moveaxis(given["x_test"], 3, 1).astype(np.float32) / 255
        np.testing.assert_array_equal(bundle.x_test.numpy(), moved)


def test_rows_that_also_stand_in_the_test_set_are_refused_with_counts_and_remedy():
    given = arrays()
    given["x_train"][[3, 50]] = given["x_test"][[0, 1]]
    with pytest.raises(DataError, match=r"data set 'x': 2 of 60 rows of x_train .*duplicates='drop'"):
        make_bundle("x", given)
    bundle = make_bundle("x", given, duplicates="drop")
    assert bundle.dropped == 2
    assert len(bundle.x_train) + len(bundle.x_val) == 58
    assert not set(rows(bundle.x_train)) & set(rows(bundle.x_test))
    assert len(bundle.x_test) == 12


def test_validation_rows_in_the_test_set_are_refused_too():
    given = arrays()
    given |= {"x_val": given["x_test"][:3].copy(), "y_val": given["y_test"][:3]}
    with pytest.raises(DataError, match=r"0 of 60 rows of x_train and 3 of 3 rows of x_val"):
        make_bundle("x", given)


def test_minus_zero_is_the_same_row_as_zero():
    given = arrays(shape=(4,), dtype=np.float32)
    given["x_test"][0] = [0.0, 1, 2, 3]
    given["x_train"][0] = [-0.0, 1, 2, 3]
    with pytest.raises(DataError, match="1 of 60"):
        make_bundle("x", given)


def broken(change):
    given = arrays()
    change(given)
    return given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("y_test"), "there is no y_test; it has x_test, x_train, y_train"),
        (lambda a: a.update(x_val=a["x_train"][:3]), "there is no y_val"),
        (lambda a: a.update(y_train=a["y_train"][:-1]), r"y_train: got '59 labels'.*60 examples"),
        (lambda a: a.update(y_train=a["y_train"] + 1), r"y_train: got 'no example of class 0'"),
        (lambda a: a.update(y_train=np.where(a["y_train"] == 1, 5, a["y_train"])), "no example of class 1"),
        (lambda a: a.update(y_train=a["y_train"] * 10**9), "no example of class 1"),
        (lambda a: a.update(y_train=a["y_train"] - 1), r"y_train: got -1"),
        (lambda a: a.update(y_train=a["y_train"] * 0), "y_train: got 'one class'"),
        (lambda a: a.update(y_test=a["y_test"] + 1), r"y_test: got 3, allowed is class numbers below 3"),
        (lambda a: a.update(y_train=a["y_train"] / 1.0), r"y_train: got 'float64"),
        (lambda a: a.update(y_train=a["y_train"][:, None]), r"y_train: got 'int64 \(60, 1\)'"),
        (lambda a: a.update(x_train=a["x_train"].astype(np.int32)), "x_train: got 'int32'"),
        (lambda a: a.update(x_train=a["x_train"].astype(complex)), "x_train: got 'complex128'"),
        (lambda a: a.update(x_train=a["x_train"].astype(object)), "x_train: got 'objects'"),
        (lambda a: a.update(x_train=a["x_train"][:, 0, 0]), "x_train: got"),
        (lambda a: a.update(x_test=a["x_test"][:, :5]), r"x_test: got \(1, 5, 6\)"),
        (lambda a: a.update(x_test=a["x_test"] / 255.0), r"x_test: got 'float64'"),
        (lambda a: a.update(x_test=a["x_test"][:0], y_test=a["y_test"][:0]), "x_test: got 'no example'"),
    ],
)
def test_unfit_arrays_are_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        make_bundle("x", broken(change))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(value):
    given = arrays(shape=(4,), dtype=np.float32)
    given["x_train"][7, 2] = value
    with pytest.raises(DataError, match="x_train: row 7 holds a value that is not finite"):
        make_bundle("x", given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "^limit: got 0"),
        ({"limit": 5}, "limit: got 5, allowed is at least 2 examples for each of the 3 classes"),
        ({"duplicates": "keep"}, "^duplicates: got 'keep'"),
        ({"validation_share": 1.0}, "^validation_share"),
        ({"classes": ("a", "a", "b")}, "classes: got"),
        ({"classes": ("a", "b")}, "y_train: got 2, allowed is class numbers below 2"),
        ({"classes": ("a", "b", "c", "d")}, "no example of class 3"),
    ],
)
def test_arguments_that_are_not_allowed_name_themselves(options, message):
    with pytest.raises((ArgumentError, DataError), match=message):
        make_bundle("x", arrays(), **options)


def test_array_files_of_both_kinds_give_the_same_bundle(tmp_path):
    from safetensors.numpy import save_file

    given = arrays()
    words = ["cat", "dog", "eel"]
    np.savez(tmp_path / "one.npz", classes=np.array(words), **given)
    save_file(given, tmp_path / "one.safetensors", metadata={"classes": json.dumps(words)})
    first, second = data.load(tmp_path / "one.npz"), data.load(str(tmp_path / "one.safetensors"))
    assert first.fingerprint == second.fingerprint
    assert first.classes == second.classes == ("cat", "dog", "eel")
    assert first.name == "one"


def test_bfloat16_files_are_read(tmp_path):
    from safetensors.torch import save_file

    given = {name: torch.from_numpy(value) for name, value in arrays(shape=(5,), dtype=np.float32).items()}
    given |= {name: value.bfloat16() for name, value in given.items() if name.startswith("x")}
    save_file(given, tmp_path / "half.safetensors")
    bundle = data.load(tmp_path / "half.safetensors")
    assert torch.equal(bundle.x_test, given["x_test"].float())


def test_pickled_objects_in_an_npz_are_never_loaded(tmp_path):
    fired = tmp_path / "fired"

    class Trap:
        def __reduce__(self):
            return (open, (str(fired), "w"))

    given = arrays()
    labels = np.empty(60, dtype=object)
    labels[:] = [Trap() for _ in range(60)]
    np.savez(tmp_path / "bad.npz", **(given | {"y_train": labels}))
    with pytest.raises(DataError, match=r"y_train holds Python objects"):
        data.load(tmp_path / "bad.npz")
    assert not fired.exists()


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_damaged_files_give_our_error(tmp_path, kind):
    from safetensors.numpy import save_file

    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez_compressed(path, **arrays())
    else:
        save_file(arrays(), path)
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            data.load(path)
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        path.write_bytes(flipped)
        with contextlib.suppress(DataError):
            data.load(path)


def test_an_array_that_claims_to_be_enormous_gives_our_error(tmp_path):
    path = tmp_path / "big.npz"
    np.savez(path, **arrays())
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 64), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members["x_train.npy"] = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(100)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match="not a readable"):
        data.load(path)


def test_names_and_paths_that_lead_nowhere_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(DataError, match="no such file"):
        data.load(tmp_path / "nothing.npz")
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"\.npz or \.safetensors"):
        data.load(tmp_path / "x.csv")
    monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    with pytest.raises(DataError, match=r"set DISTILLRS_DATA.*distillrs data prepare mnist"):
        data.load("mnist")
    monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"has no fashion\.npz.*distillrs data prepare fashion"):
        data.load("fashion")
    with pytest.raises(ArgumentError, match=r"^size"):
        data.load("digits", size=(4, 4))


def test_a_missing_scikit_learn_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="scikit-learn"):
        data.load("digits")


def test_named_sets_are_found_in_the_folder_and_have_their_classes(tmp_path, monkeypatch):
    np.savez(tmp_path / "fashion.npz", **arrays(train=200, test=30, classes=10))
    monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path))
    bundle = data.load("fashion")
    assert bundle.name == "fashion"
    assert bundle.classes[-1] == "Ankle boot"
    assert bundle.shape == (1, 6, 6)


def jpeg_file(path, change=lambda entries: None):
    import io

    from PIL import Image

    entries = {}
    generator = np.random.default_rng(3)
    for part, count in (("train", 40), ("test", 20)):
        files = []
        for _ in range(count):
            stream = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
            files.append(stream.getvalue())
        entries[f"jpeg_{part}"] = np.frombuffer(b"".join(files), np.uint8)
        entries[f"offsets_{part}"] = np.cumsum([0, *map(len, files)])
        entries[f"y_{part}"] = (np.arange(count) % 10).astype(np.uint8)
    change(entries)
    np.savez(path, **entries)


def test_images_packed_as_jpeg_are_decoded(tmp_path, monkeypatch):
    jpeg_file(tmp_path / "cifar10_jpeg.npz")
    monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path))
    bundle = data.load("cifar10")
    assert bundle.shape == (3, 8, 8)
    assert bundle.classes[3] == "cat"
    assert len(bundle.x_test) == 20


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries.update(offsets_train=entries["offsets_train"] + 1),
        lambda entries: entries.update(offsets_train=entries["offsets_train"][:-1]),
        lambda entries: entries.update(offsets_train=entries["offsets_train"][::-1]),
        lambda entries: entries.update(offsets_train=entries["offsets_train"].astype(float)),
        lambda entries: entries.update(jpeg_train=np.zeros_like(entries["jpeg_train"])),
        lambda entries: entries.pop("offsets_test"),
    ],
)
def test_broken_packs_of_jpeg_are_refused(tmp_path, change):
    path = tmp_path / "pack.npz"
    jpeg_file(path, change)
    with pytest.raises(DataError, match=r"pack\.npz"):
        data.load(path)


def image_folder(root, mode="L", size=(6, 5)):
    from PIL import Image

    generator = np.random.default_rng(4)
    for part, count in (("train", 6), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for one in range(count):
                shape = size if mode == "L" else (*size, 3)
                Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{one}.png")
    (root / "train" / "cat" / ".thumbnails").write_text("passed over")
    return root


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_images_is_a_data_set(tmp_path, mode, channels):
    from PIL import Image

    root = image_folder(tmp_path / "pets", mode)
    bundle = data.load(root)
    assert bundle.name == "pets"
    assert bundle.shape == (channels, 6, 5)
    assert bundle.classes == ("cat", "dog")
    assert bundle.y_test.tolist() == [0, 0, 1, 1]
    pixels = np.asarray(Image.open(root / "test" / "dog" / "1.png"), dtype=np.float32) / 255
    wanted = pixels[None] if mode == "L" else np.moveaxis(pixels, 2, 0)
    np.testing.assert_array_equal(bundle.x_test[3].numpy(), wanted)


def test_one_coloured_image_makes_all_coloured(tmp_path):
    from PIL import Image

    root = image_folder(tmp_path / "pets")
    Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(root / "train" / "cat" / "0.png")
    assert data.load(root).shape == (3, 6, 5)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_8_bits_are_refused_instead_of_clipped(tmp_path, kind):
    from PIL import Image

    root = image_folder(tmp_path / "pets")
    Image.fromarray(np.full((6, 5), 1000, kind)).save(root / "train" / "cat" / "deep.tiff")
    with pytest.raises(DataError, match=r"deep\.tiff.*8 bits"):
        data.load(root)


def test_an_odd_size_is_refused_by_name_and_mended_by_resizing(tmp_path):
    from PIL import Image

    root = image_folder(tmp_path / "pets")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "train" / "dog" / "odd.png")
    with pytest.raises(DataError, match=r"odd\.png: 9 x 9 pixels.*6 x 5.*size="):
        data.load(root)
    assert data.load(root, size=(4, 3)).shape == (1, 4, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train" / "dog" / "notes.txt").write_text("x"), r"notes\.txt: not an image by its name"),
        (lambda root: (root / "train" / "dog" / "fake.png").write_text("x"), r"fake\.png: not a readable image"),
        (lambda root: (root / "train" / "loose.png").write_bytes(b""), r"loose\.png.*one sub-folder per class"),
        (lambda root: (root / "test" / "eel").mkdir(), "eel: train/ has no class"),
        (lambda root: (root / "test").rename(root / "tests"), "there is no test/"),
    ],
)
def test_odd_things_in_a_folder_are_named(tmp_path, change, message):
    root = image_folder(tmp_path / "pets")
    change(root)
    with pytest.raises(DataError, match=message):
        data.load(root)


def test_bundles_do_not_change_the_arrays_they_are_made_of():
    given = arrays(shape=(4,), dtype=np.float32)
    kept = {name: value.copy() for name, value in given.items()}
    bundle = make_bundle("x", given)
    bundle.x_test.fill_(7)
    assert all(np.array_equal(given[name], kept[name]) for name in given)


def test_bundles_can_be_pickled_for_worker_processes():
    bundle = make_bundle("x", arrays())
    again = pickle.loads(pickle.dumps(bundle))
    assert again.fingerprint == bundle.fingerprint
    assert torch.equal(again.x_val, bundle.x_val)


def test_copies_are_found_behind_the_rounding_of_a_transform():
    raw = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    zca = Zca.fit(raw)
    others = zca.forward(raw)
    rounded = torch.cat([zca.forward(zca.inverse(one[None])) for one in others[:5]])
    assert not torch.equal(rounded, others[:5])
    moved = others[5:10] + 0.01 * torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert copies_among(torch.cat([rounded, moved]), others).tolist() == [True] * 5 + [False] * 5
    assert copies_among(others[:0], others).tolist() == []
    assert copies_among(torch.rand(2, 3), others).tolist() == [False, False]
