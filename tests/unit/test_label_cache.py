"""The label cache: labels are found by image and view, views are replayed, and what does not fit is refused by name."""

import json
import pickle

import numpy as np
import pytest
import torch

from distillrs import _core, ops, trajectory
from distillrs.augment import Augmentation
from distillrs.errors import (
    ArgumentError,
    KeyConflict,
    KeyNotFound,
    SchemaMismatch,
    StoreCorrupt,
    StoreExists,
    StoreLocked,
)
from distillrs.ops import TopK
from distillrs.step import Step
from distillrs.trajectory import UNCHECKED, Fingerprint, LabelCache, Store, TeacherCache

C = 10
AUGMENTATION = Augmentation("color_crop_flip_rotate")


def logits(number, seed=0, classes=C):
    return torch.randn(number, classes, generator=torch.Generator().manual_seed(seed)) * 4


def make(path, **settings):
    return LabelCache.create(path, **{"classes": C, "fingerprint": UNCHECKED, **settings})


@pytest.mark.parametrize("code", ["f16", "u8"])
@pytest.mark.parametrize("sealed", [True, False])
def test_labels_are_found_by_image_and_view_in_any_order(tmp_path, code, sealed):
    cache = make(tmp_path / "c", code=code)
    shuffled = torch.tensor([7, 3, 0, 12, 1])
    assert cache.append(shuffled, 0, logits(5, 0), seed=9) == 5
    assert cache.append(range(5), 4, logits(5, 1)) == 5
    if sealed:
        cache.__exit__(None, None, None)
        cache = LabelCache.open(tmp_path / "c", UNCHECKED)
    assert len(cache) == 10
    assert cache.views() == [0, 4]
    assert cache.images(0).tolist() == [0, 1, 3, 7, 12]
    assert cache.images(1).tolist() == []
    assert cache.missing([12, 5, 3, 6], 0).tolist() == [5, 6]
    rows = cache.index(torch.tensor([[12, 2], [3, 0]]), torch.tensor([[0, 4], [0, 4]]))
    assert cache.seeds(rows).tolist() == [[9, 0], [9, 0]]
    found = cache.gather(rows)
    due = torch.stack([logits(5, 0)[3], logits(5, 1)[2], logits(5, 0)[1], logits(5, 1)[0]]).log_softmax(-1)
    assert found.shape == (2, 2, C)
    torch.testing.assert_close(found.view(4, C), due, rtol=0, atol=0.02 if code == "f16" else 0.08)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 2))
    none = cache.gather(torch.tensor([-1, int(rows[0, 0])]))
    torch.testing.assert_close(none[0].exp(), torch.full((C,), 1 / C))
    assert torch.equal(none[1], found[0, 0])
    assert cache.gather([]).shape == (0, C)
    cache.close()


def test_any_temperature_follows_where_every_class_is_kept(tmp_path):
    with make(tmp_path / "c") as cache:
        cache.append(range(6), 0, logits(6))
        rows = cache.index(range(6), 0)
        for temperature in (0.5, 1.0, 20.0):
            found = cache.gather(rows, temperature=temperature)
            torch.testing.assert_close(found, (logits(6) / temperature).log_softmax(-1), rtol=0, atol=0.03)
        for bad in (0, -1.0, float("nan"), "hot"):
            with pytest.raises(ArgumentError, match="temperature"):
                cache.gather(rows, temperature=bad)


def test_the_likeliest_classes_alone_are_a_top_k(tmp_path):
    with make(tmp_path / "c", k=3, temperatures=(1.0, 4.0)) as cache:
        cache.append([5, 2], 0, logits(2))
        cache.append([5, 2], 1, TopK.from_logits(logits(2), 3, (1.0, 4.0)))
        for view in (0, 1):
            found = cache.gather(cache.index([5, 2], view), temperature=4.0)
            due = TopK.from_logits(logits(2), 3, (4.0,)).at(4.0)
            assert torch.equal(found.ids, due.ids)
            torch.testing.assert_close(found.log_probs, due.log_probs, rtol=0, atol=0.01)
            torch.testing.assert_close(found.tail_log_mass, due.tail_log_mass, rtol=0, atol=0.02)
        with pytest.raises(ArgumentError, match=r"temperature: got 2\.0"):
            cache.gather(cache.index([5, 2], 0), temperature=2.0)
        loss = ops.sparse_row_divergence(logits(2, 7), cache.gather(cache.index([5, 2], 0)), ops.ForwardKL())
        assert loss.isfinite()
        with pytest.raises(ArgumentError, match=r"answers: got .*, allowed is a TopK of shape \[2, 3\]"):
            cache.append([5, 2], 2, TopK.from_logits(logits(2), 4, (1.0, 4.0)))


def test_a_class_without_probability_stays_without(tmp_path):
    answers = logits(3)
    answers[:, 4] = -torch.inf
    for code in ("f16", "u8"):
        with make(tmp_path / code, code=code) as cache:
            cache.append(range(3), 0, answers)
            found = cache.gather(cache.index(range(3), 0), temperature=2.0)
            assert (found[:, 4] == -torch.inf).all()
            assert found[:, :4].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floating_types_are_taken(tmp_path, dtype):
    with make(tmp_path / "c") as cache:
        cache.append(range(4), 0, logits(4).to(dtype).t().contiguous().t())
        due = logits(4).to(dtype).float().log_softmax(-1)
        torch.testing.assert_close(cache.gather(cache.index(range(4), 0)), due, rtol=0, atol=0.02)


def test_the_same_label_again_is_nothing_and_another_one_a_conflict(tmp_path):
    with make(tmp_path / "c") as cache:
        assert cache.append([1, 2, 3], 0, logits(3), seed=5) == 3
        # Another batch, another order, one new image: only that one is written.
        again = torch.cat([logits(3).flip(0), logits(1, 8)])
        assert cache.append([3, 2, 1, 4], 0, again, seed=5) == 1
        with pytest.raises(KeyConflict, match=r"image 2 is already labelled in view 0 in .*, with other content"):
            cache.append([9, 2], 0, logits(2, 3), seed=5)
        with pytest.raises(KeyConflict, match=r"image 1 is already labelled in view 0 in .* of seed 5, not 6"):
            cache.append([1], 0, logits(3)[:1], seed=6)
        assert cache.missing([9], 0).tolist() == [9]  # nothing of a refused call was written
    with make(tmp_path / "c", exist_ok=True) as cache:
        assert cache.append([1, 2, 3], 0, logits(3), seed=5) == 0
        assert len(cache) == 4
        assert cache.conflicts == []


def test_writers_at_once_and_their_conflicts(tmp_path):
    first, second = make(tmp_path / "c"), make(tmp_path / "c", exist_ok=True)
    for cache, seed in ((first, 0), (second, 1)):
        cache.append(range(4), 0, logits(4, 7))  # the same
        answers = logits(4, 3)
        answers[2] += torch.arange(C) * seed
        cache.append(range(4), 1, answers)  # image 2 differs, under the very same key
        cache.append([seed, 5 + seed], 2, logits(2, seed))
        cache.append([8, 20 + seed], 3, logits(2, 9), seed=seed)  # another seed
    second.append([0], 2, logits(1, 77))
    first.close()
    second.close()
    with LabelCache.open(tmp_path / "c", UNCHECKED) as cache:
        assert cache.images(2).tolist() == [0, 1, 5, 6]
        assert cache.conflicts == [(0, 2), (2, 1), (8, 3)]
        assert int(cache.seeds(cache.index([8], 3))) == 0
        # The lower-numbered writer's label counts.
        torch.testing.assert_close(
            cache.gather(cache.index([2], 1)), logits(4, 3)[2:3].log_softmax(-1), rtol=0, atol=0.02
        )
        assert len(cache) == 4 + 4 + 4 + 3


def test_views_are_replayed_bit_for_bit_in_other_batches(tmp_path):
    pixels = torch.rand(6, 3, 8, 8)
    path = tmp_path / "c"
    made = {}
    with make(path, augmentation=AUGMENTATION) as cache:
        for view, seed in ((0, 3), (1, 3), (2, 11)):
            made[view] = cache.augment(pixels, range(6), view, seed=seed)
            cache.append(range(6), view, logits(6, view), seed=seed)
    assert not torch.equal(made[0], made[1])
    with LabelCache.open(path, UNCHECKED) as cache:
        assert cache.augmentation == AUGMENTATION
        images, views = torch.tensor([4, 1, 5, 1, 0]), torch.tensor([2, 0, 2, 2, 1])
        again = cache.augment(pixels[images], images, views)
        for row, (image, view) in enumerate(zip(images.tolist(), views.tolist(), strict=True)):
            assert torch.equal(again[row], made[view][image])
        assert torch.equal(cache.augment(pixels[:1], [0], 2), made[2][:1])
        # What anybody can do without the cache, from the seed alone.
        plan = AUGMENTATION.plan(torch.tensor([4]), step=Step(2, seed=11), shape=(3, 8, 8), name="label")
        assert torch.equal(AUGMENTATION.apply(pixels[4:5], plan)[0], made[2][4])
        with pytest.raises(KeyNotFound, match="image 0 has no label in view 7"):
            cache.augment(pixels[:1], [0], 7)
        with pytest.raises(ArgumentError, match="images: got '1 numbers'"):
            cache.augment(pixels, [0], 0)
        for wrong, shape in ((torch.tensor(4), r"\[\]"), (torch.arange(6).reshape(2, 3), r"\[2, 3\]")):
            with pytest.raises(ArgumentError, match=f"images: got '[16] numbers of shape {shape}'"):
                cache.augment(pixels[:2], wrong, 0)
        with pytest.raises(ArgumentError, match="pixels: got"):
            cache.augment(pixels[0], [0, 1, 2], 0)


def test_other_augmentations_are_named_and_refused(tmp_path):
    path = tmp_path / "c"
    words = "RandomResizedCrop(224)"
    with make(path, augmentation=words) as cache, pytest.raises(ArgumentError, match="RandomResizedCrop"):
        cache.augment(torch.rand(1, 3, 8, 8), [0], 0, seed=0)
    with pytest.raises(SchemaMismatch, match=r"augmentation of .* differs: RandomResizedCrop.* there, None in use"):
        make(path, exist_ok=True)
    with make(tmp_path / "d") as cache:
        pixels = torch.rand(2, 3, 8, 8)
        assert cache.augment(pixels, [0, 1], 0, seed=0) is pixels
    with pytest.raises(ArgumentError, match="augmentation"):
        make(tmp_path / "e", augmentation=3)


def test_bytes_are_accounted_and_framing_apart(tmp_path):
    with make(tmp_path / "dense", classes=100) as cache:
        for view in range(5):
            cache.append(range(200), view, logits(200, view, 100))
    with LabelCache.open(tmp_path / "dense", UNCHECKED) as cache:
        assert cache.row_bytes == 200
        assert cache.nbytes == 1000 * 200
        on_disk = sum(file.stat().st_size for file in cache.path.iterdir())
        assert cache.nbytes + cache.framing_bytes == on_disk
        assert cache.framing_bytes < 0.06 * cache.nbytes
        info = cache.info()
        assert (info["labels"], info["views"], info["label_bytes"]) == (1000, 5, 200_000)
    sizes = {"u8": 102, "top": 5 * 7 // 8 + 1 + 4 + 6 + 2}
    assert make(tmp_path / "u8", classes=100, code="u8").row_bytes == sizes["u8"]
    assert make(tmp_path / "top", classes=100, code="u8", k=5).row_bytes == sizes["top"]


def test_fingerprints_and_settings_that_differ_are_refused_with_both_named(tmp_path):
    path = tmp_path / "c"
    there = Fingerprint("resnet", "none", "none", 1.0)
    make(path, fingerprint=there).close()
    assert LabelCache.open(path, there).fingerprint == there
    other = Fingerprint("vit", "none", "none", 1.0)
    for attempt in (lambda: LabelCache.open(path, other), lambda: make(path, fingerprint=other, exist_ok=True)):
        with pytest.raises(SchemaMismatch, match="teacher resnet there, vit in use"):
            attempt()
    with pytest.raises(ArgumentError, match="fingerprint: got None"):
        LabelCache.open(path, None)
    with pytest.raises(StoreExists):
        make(path)
    for change in ({"classes": C + 1}, {"k": 3}, {"code": "u8"}):
        with pytest.raises(SchemaMismatch):
            make(path, fingerprint=there, exist_ok=True, **change)
    TeacherCache.create(tmp_path / "t", 20, 3, UNCHECKED).close()
    with pytest.raises(SchemaMismatch, match="no label cache"):
        LabelCache.open(tmp_path / "t", UNCHECKED)
    with pytest.raises(SchemaMismatch, match="no teacher cache"):
        TeacherCache.open(path, UNCHECKED)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"classes": 0}, "classes"),
        ({"classes": (1 << 16) + 1}, "classes"),
        ({"classes": 2.0}, "classes"),
        ({"k": 0}, "k"),
        ({"k": C + 1}, "k"),
        ({"code": "f32"}, "code"),
        ({"temperatures": (1.0, 2.0)}, "temperatures"),
        ({"temperatures": (1.0, -2.0), "k": 2}, "temperatures"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, settings, name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        make(tmp_path / "c", **settings)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 0], 0, logits(2)), "images: got 'an image twice'"),
        (([-1], 0, logits(1)), "images: got -1"),
        (([1 << 40], 0, logits(1)), "images: got 1099511627776"),
        (([0.5], 0, logits(1)), "images"),
        ((["a"], 0, logits(1)), "images"),
        (([[0]], 0, logits(1)), "images"),
        (([0], -1, logits(1)), "view: got -1"),
        (([0], 1 << 23, logits(1)), "view"),
        (([0], True, logits(1)), "view: got True"),
        (([0], 0, logits(2)), r"answers: got 'float32 \[2, 10\]', allowed is logits of shape \[1, 10\]"),
        (([0], 0, logits(1).long()), "answers"),
        (([0], 0, [1.0]), "answers: got 'list'"),
        (([0], 0, logits(1) * torch.nan), "logits: got NaN in row 0"),
        (([0], 0, torch.full((1, C), -torch.inf)), "logits: got -inf throughout in row 0"),
        (([0], 0, TopK.from_logits(logits(1), 3)), "answers: got 'a TopK'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with make(tmp_path / "c") as cache:
        with pytest.raises(ArgumentError, match=message):
            cache.append(*arguments)
        assert len(cache) == 0
        with pytest.raises(ArgumentError, match="seed"):
            cache.append([0], 0, logits(1), seed=-1)


def test_rows_and_keys_that_are_not_there_are_refused(tmp_path):
    with make(tmp_path / "c") as cache:
        assert cache.append([], 0, logits(0)) == 0
        cache.append(range(3), 0, logits(3))
    with LabelCache.open(tmp_path / "c", UNCHECKED) as cache:
        first = int(cache.index([0], 0))
        for row in (first + 3, -2, 1 << 62):
            with pytest.raises(ArgumentError, match=r"^rows: got"):
                cache.gather([row])
            with pytest.raises(ArgumentError, match=r"^rows: got"):
                cache.seeds([row])
        with pytest.raises(KeyNotFound, match=r"image 5 has no label in view 0 in .*, nor have 1 others"):
            cache.index([0, 5, 6], 0)
        with pytest.raises(ArgumentError, match="views: got"):
            cache.index([0, 1], [0, 0, 0])
        with pytest.raises(ArgumentError, match="opened to read"):
            cache.append([9], 0, logits(1))


def test_rows_outlive_growth_and_other_processes_are_seen_after_refresh(tmp_path):
    cache = make(tmp_path / "c")
    cache.append(range(3), 0, logits(3))
    cache.flush()
    reader = pickle.loads(pickle.dumps(LabelCache.open(tmp_path / "c", UNCHECKED)))
    rows = reader.index(range(3), 0)
    before = reader.gather(rows)
    cache.append(range(3), 1, logits(3, 1))
    cache.__exit__(None, None, None)
    assert torch.equal(reader.gather(rows), before)
    reader.refresh()
    assert torch.equal(reader.index(range(3), 0), rows)
    assert reader.views() == [0, 1]


def test_threads_give_the_same_bits(tmp_path):
    with make(tmp_path / "c", classes=50) as cache:
        cache.append(range(700), 0, logits(700, 0, 50))
        rows = cache.index(torch.randperm(700), 0)
        before = _core.threads()
        try:
            found = []
            for threads in (1, 2, 5):
                _core.set_threads(threads)
                found.append(cache.gather(rows))
        finally:
            _core.set_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def hostile(path, key, rows):
    """A document whose checksums hold and whose content is a stranger's."""
    with make(path) as cache:
        writer = cache._room()
        writer.append(rows=torch.tensor(rows, dtype=torch.uint8), key=torch.tensor(list(key), dtype=torch.uint8))
    return path


SOUND = np.zeros((2, 2 * C), np.uint8)


@pytest.mark.parametrize(
    "key",
    [
        b"view 0 seed 0 images 0-2",
        b"view 0 seed 0 images 1,0",
        b"view 0 seed 0 images 0,0",
        b"view 0 seed 0 images 3-2",
        b"view 0 seed 0 images 0-1 ",
        b"view 0 seed 0 images 0-9999999999999",
        b"view 0 seed 0 images 9999999999998-9999999999999",
        b"view 9999999 seed 0 images 0-1",
        b"view 0 seed 9999999999999999999 images 0-1",
        b"view 0 seed 0 images 0-99999999999999999999",
        "view 0 seed 0 images ٠-١".encode(),
        b"document",
    ],
)
def test_keys_that_contradict_their_rows_are_damage(tmp_path, key):
    path = hostile(tmp_path / "c", key, SOUND)
    with LabelCache.open(path, UNCHECKED) as cache, pytest.raises(StoreCorrupt, match="whose key says otherwise"):
        cache.index([0], 0)


def test_rows_that_no_encoder_writes_are_damage(tmp_path):
    bad = SOUND.copy()
    bad[1, 1] = 0x3C  # a log-probability of 1
    path = hostile(tmp_path / "c", b"view 0 seed 0 images 0-1", bad)
    with LabelCache.open(path, UNCHECKED) as cache:
        torch.testing.assert_close(cache.gather(cache.index([0], 0)).exp(), torch.full((1, C), 1 / C))
        with pytest.raises(StoreCorrupt, match="not a number or above 0 at token 1 of document 0"):
            cache.gather(cache.index([0, 1], 0))


def test_flipped_bits_are_told_and_repaired(tmp_path):
    path = tmp_path / "c"
    with make(path) as cache:
        cache.append(range(50), 0, logits(50))
        cache.append(range(50), 1, logits(50, 1))
    [segment] = path.glob("*.safetensors")
    content = bytearray(segment.read_bytes())
    with LabelCache.open(path, UNCHECKED) as cache:
        packed = cache._packed(cache.index(range(50), 1).numpy()).tobytes()
    content[content.index(packed) + 100] ^= 1
    segment.write_bytes(content)
    with LabelCache.open(path, UNCHECKED) as cache:
        with pytest.raises(StoreCorrupt, match="checksum"):
            cache.gather(cache.index([0], 1))
        assert not cache.verify().sound
    Store.repair(path)
    with LabelCache.open(path, UNCHECKED) as cache:
        assert cache.views() == [0]
        assert cache.missing([0], 1).tolist() == [0]


def test_metadata_of_a_stranger(tmp_path):
    form = {
        "format": 0,
        "vocabulary": C,
        "k": 0,
        "code": "f16",
        "temperatures": [1.0],
        "sampled": False,
        "dense": True,
        "augmentation": {"strategy": "flip", "unknown": 1},
        "fingerprint": None,
    }
    schema = trajectory.Schema(
        rows=trajectory.Column((2 * C,), "uint8", ragged=True), key=trajectory.Column((), "uint8", ragged=True)
    )
    Store.create(tmp_path / "a", schema, {"label_cache": form}).close()
    with pytest.raises(SchemaMismatch, match="does not know"):
        _ = LabelCache.open(tmp_path / "a", UNCHECKED).augmentation
    Store.create(tmp_path / "b", schema, {"label_cache": {**form, "vocabulary": C + 1}}).close()
    with pytest.raises(SchemaMismatch):
        LabelCache.open(tmp_path / "b", UNCHECKED)
    Store.create(tmp_path / "d", schema, {"label_cache": json.loads("[]")}).close()
    with pytest.raises(SchemaMismatch, match="no label cache"):
        LabelCache.open(tmp_path / "d", UNCHECKED)
    whole = {"teacher": "a", "tokenizer": "b", "template": "c", "sampling_temperature": 1.0}
    for number, wrong in enumerate(("abc", [1], {"teacher": "a"}, whole | {"teacher": 3}, whole | {"more": 1})):
        Store.create(tmp_path / f"f{number}", schema, {"label_cache": {**form, "fingerprint": wrong}}).close()
        with pytest.raises(SchemaMismatch, match="has a fingerprint that is none"):
            LabelCache.open(tmp_path / f"f{number}", UNCHECKED)


def test_a_living_writer_keeps_its_lock(tmp_path):
    with make(tmp_path / "c") as cache:
        cache.append(range(2), 0, logits(2))
        with make(tmp_path / "c", exist_ok=True) as other:
            with pytest.raises(StoreLocked):
                other._store.begin("writer-00000")
            assert other.append(range(2, 4), 0, logits(2, 1)) == 2
        cache.refresh()
        assert cache.images(0).tolist() == [0, 1, 2, 3]
