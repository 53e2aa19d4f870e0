import gzip
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from distillrs.errors import ArgumentError, DataError, UnknownNameError
from distillrs.evaluate import data
from distillrs.evaluate.data import prepare

IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_parts():
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 256, (40, 28, 28), dtype=np.uint8),
        (np.arange(40) % 10).astype(np.uint8),
        generator.integers(0, 256, (20, 28, 28), dtype=np.uint8),
        (np.arange(20) % 10).astype(np.uint8),
    ]


def write_mnist(folder, *, packed=False, dotted=False):
    parts = mnist_parts()
    for name, part in zip(IDX, parts, strict=True):
        content = idx(part)
        spelled = name.replace("-idx", ".idx") if dotted else name
        if packed:
            (folder / f"{spelled}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / spelled).write_bytes(content)
    return parts


@pytest.mark.parametrize("form", [{}, {"packed": True}, {"dotted": True}])
def test_idx_files_become_a_data_set(tmp_path, monkeypatch, form):
    parts = write_mnist(tmp_path, **form)
    path = prepare("mnist", tmp_path, tmp_path / "made" / "here")
    assert path == tmp_path / "made" / "here" / "mnist.npz"
    with np.load(path) as file:
        for name, part in zip(("x_train", "y_train", "x_test", "y_test"), parts, strict=True):
            np.testing.assert_array_equal(file[name], part)
    monkeypatch.setenv("DISTILLRS_DATA", str(path.parent))
    assert data.load("mnist").shape == (1, 28, 28)
    assert [entry.name for entry in path.parent.iterdir()] == ["mnist.npz"]


@pytest.mark.skipif(os.name == "nt", reason="permissions are another thing there")
def test_the_file_has_the_permissions_that_the_umask_leaves(tmp_path):
    write_mnist(tmp_path)
    before = os.umask(0o027)
    try:
        path = prepare("fashion", tmp_path, tmp_path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IDX[0], b"", "not an IDX file"),
        (IDX[0], idx(np.zeros(3, np.uint8)), "not an IDX file of bytes with 3 axes"),
        (IDX[0], struct.pack(">BBBBIII", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "claims 79228162458924105385"),
        (IDX[1], idx(np.zeros(40, np.uint8))[:-1], "claims 40 values, 39 are there"),
        (IDX[1], idx(np.zeros(39, np.uint8)), "40 images and 39 labels"),
        (IDX[1], idx(np.full(40, 10, np.uint8)), "not classes 0 to 9"),
        (IDX[3] + ".gz", b"no gzip", "cannot be read"),
        (IDX[3] + ".gz", gzip.compress(idx(np.zeros(20, np.uint8)))[:-4], "cannot be read"),
    ],
)
def test_damaged_downloads_are_named_and_nothing_is_written(tmp_path, name, content, message):
    write_mnist(tmp_path)
    if name.endswith(".gz"):
        (tmp_path / name.removesuffix(".gz")).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("mnist", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compressed_bomb_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("distillrs.evaluate.data.downloads._LARGEST", 1 << 20)
    write_mnist(tmp_path)
    (tmp_path / IDX[0]).unlink()
    (tmp_path / f"{IDX[0]}.gz").write_bytes(gzip.compress(bytes(1 << 24)))
    with pytest.raises(DataError, match="more than 1048576 bytes"):
        prepare("mnist", tmp_path, tmp_path / "out")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    path = prepare("mnist", tmp_path, tmp_path)
    old = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        prepare("mnist", tmp_path, tmp_path)
    assert path.read_bytes() == old
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def cifar_batches():
    generator = np.random.default_rng(1)
    return {
        name: (generator.integers(0, 256, (10, 3072), dtype=np.uint8), [int(one) for one in generator.permutation(10)])
        for name in [*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]
    }


def binary(images, labels):
    return np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1).tobytes()


def python(images, labels, protocol=2):
    return pickle.dumps({b"batch_label": b"x", b"labels": labels, b"data": images, b"filenames": [b"a"] * 10}, protocol)


def pack(path, inner, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{inner}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_cifar(folder, form):
    batches = cifar_batches()
    end, encode = (".bin", binary) if "binary" in form else ("", python)
    files = {name + end: encode(*batch) for name, batch in batches.items()}
    inner = "cifar-10-batches-bin" if "binary" in form else "cifar-10-batches-py"
    if form.endswith("archive"):
        pack(folder / f"cifar-10-{'binary' if 'binary' in form else 'python'}.tar.gz", inner, files)
    else:
        target = folder / inner if form.endswith("folder") else folder
        target.mkdir(exist_ok=True)
        for name, content in files.items():
            (target / name).write_bytes(content)
    return batches


@pytest.mark.parametrize(
    "form", ["binary folder", "binary inside", "binary archive", "python folder", "python inside", "python archive"]
)
def test_every_form_of_cifar_gives_the_same_arrays(tmp_path, form):
    batches = write_cifar(tmp_path, form)
    with np.load(prepare("cifar10", tmp_path, tmp_path)) as file:
        images = np.concatenate([batches[f"data_batch_{batch}"][0] for batch in range(1, 6)])
        labels = np.concatenate([batches[f"data_batch_{batch}"][1] for batch in range(1, 6)])
        np.testing.assert_array_equal(file["x_train"], images.reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(file["y_train"], labels)
        np.testing.assert_array_equal(file["x_test"], batches["test_batch"][0].reshape(-1, 3, 32, 32))
        np.testing.assert_array_equal(file["y_test"], batches["test_batch"][1])


class Runs:
    """A pickle that would run code in the reader."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_batches(marker):
    images = np.zeros((10, 3072), np.uint8)
    return {
        "a call of the system": pickle.dumps({b"data": Runs(os.system, f"touch {marker}"), b"labels": [0] * 10}, 2),
        "eval": pickle.dumps({b"data": Runs(eval, f"open({str(marker)!r}, 'w')"), b"labels": [0] * 10}, 2),
        "a codec other than latin1": pickle.dumps(Runs(__import__("_codecs").encode, "x", "rot13"), 2),
        "an attribute of numpy": b"\x80\x04\x8c\x05numpy\x8c\x0bndarray.tofile\x93.",
        "another module of numpy": b"cnumpy.testing\nrundocs\n.",
        "a reference outside": b"\x80\x02X\x01\x00\x00\x00aQ.",
        "a forged memo index": b"\x80\x02}r\xff\xff\xff\x7f.",
        "objects instead of bytes": pickle.dumps({b"data": np.array([None] * 10), b"labels": [0] * 10}, 2),
        "another shape": pickle.dumps({b"data": images[:, :-1], b"labels": [0] * 10}, 2),
        "a wrong type": pickle.dumps({b"data": images.astype(np.int64), b"labels": [0] * 10}, 2),
        "labels that are no numbers": pickle.dumps({b"data": images, b"labels": ["a"] * 10}, 2),
        "labels out of range": pickle.dumps({b"data": images, b"labels": [10] * 10}, 2),
        "too few labels": pickle.dumps({b"data": images, b"labels": [0] * 9}, 2),
        "no dictionary": pickle.dumps([1, 2], 2),
        "nothing": b"",
        "noise": bytes(range(256)),
    }


@pytest.mark.parametrize("kind", hostile_batches("x"))
def test_hostile_pickles_run_nothing(tmp_path, kind):
    marker = tmp_path / "ran"
    write_cifar(tmp_path, "python folder")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(hostile_batches(marker)[kind])
    with pytest.raises(DataError, match="data_batch_3"):
        prepare("cifar10", tmp_path, tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


def test_pickles_of_every_protocol_are_read(tmp_path):
    for protocol in (2, 3, 4, 5):
        write_cifar(tmp_path, "python folder")
        images, labels = cifar_batches()["data_batch_1"]
        (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(python(images, labels, protocol))
        if protocol == 5:
            # numpy pickles by another function from protocol 5 on; no download of CIFAR-10 does, so it is refused.
            with pytest.raises(DataError, match="refused"):
                prepare("cifar10", tmp_path, tmp_path)
        else:
            prepare("cifar10", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data_batch_1.bin": b"x" * 3074}, "not a whole number of 3073-byte records"),
        ({"data_batch_1.bin": b""}, "not a whole number"),
        ({}, r"data_batch_1\.bin: missing"),
    ],
)
def test_broken_binary_batches_are_named(tmp_path, files, message):
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare("cifar10", tmp_path, tmp_path / "out")


def test_broken_archives_are_named(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: cannot be read"):
        prepare("cifar10", tmp_path, tmp_path)
    pack(path, "elsewhere", {"data_batch_1.bin": b"x"})
    with pytest.raises(DataError, match=r"there is no cifar-10-batches-bin/data_batch_1\.bin in it"):
        prepare("cifar10", tmp_path, tmp_path)


def test_what_cannot_be_prepared_says_so(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        prepare("minst", tmp_path, tmp_path)
    with pytest.raises(ArgumentError, match=r"^source: got"):
        prepare("mnist", tmp_path / "nowhere", tmp_path)
    with pytest.raises(DataError, match=r"there is no train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        prepare("mnist", tmp_path, tmp_path)
    with pytest.raises(DataError, match="cifar-10-batches-bin or cifar-10-batches-py"):
        prepare("cifar10", tmp_path, tmp_path)
