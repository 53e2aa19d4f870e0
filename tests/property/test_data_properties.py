from fractions import Fraction

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from distillrs.evaluate.data import make_bundle, row_hashes
from distillrs.evaluate.data.rows import pick_per_class, rows_among, shares

COUNTS = st.lists(st.integers(1, 50), min_size=1, max_size=12)


@given(COUNTS, st.data())
def test_shares_add_up_keep_every_class_and_stay_near_the_proportion(counts, data):
    total = data.draw(st.integers(len(counts), sum(counts)))
    given = shares(counts, total)
    assert sum(given) == total
    assert all(1 <= share <= count for share, count in zip(given, counts, strict=True))
    lifted = sum(Fraction(count * total, sum(counts)) < 1 for count in counts)
    for share, count in zip(given, counts, strict=True):
        exact = Fraction(count * total, sum(counts))
        assert share <= exact + 1
        # Classes lifted to their one example take from the largest ones, and from nowhere else.
        assert share > exact - 1 - lifted


@given(COUNTS, st.integers(0, 400), st.data())
def test_shares_respect_limits_of_their_own(weights, total, data):
    limits = data.draw(st.lists(st.integers(0, 60), min_size=len(weights), max_size=len(weights)))
    given = shares(weights, total, limits=limits, least=0)
    assert sum(given) == min(total, sum(limits))
    assert all(0 <= share <= limit for share, limit in zip(given, limits, strict=True))


@given(st.lists(st.integers(0, 4), min_size=5, max_size=60), st.integers(0, 2**64 - 1), st.data())
def test_picks_are_different_rows_of_the_right_class(labels, seed, data):
    y = torch.tensor(labels)
    counts = torch.bincount(y, minlength=5).tolist()
    wanted = [data.draw(st.integers(0, count)) for count in counts]
    rows = pick_per_class(y, wanted, seed=seed, name="test")
    assert torch.bincount(y[rows], minlength=5).tolist() == wanted
    assert len(set(rows.tolist())) == len(rows)


@given(st.integers(1, 20), st.integers(1, 6), st.integers(0, 2**32), st.data())
def test_hashes_find_exactly_the_shared_rows(count, size, seed, data):
    generator = torch.Generator().manual_seed(seed)
    # Few different values, so that equal rows come about.
    x = torch.randint(2, (count, size), generator=generator).float()
    others = torch.randint(2, (data.draw(st.integers(0, 10)), size), generator=generator).float()
    brute = torch.tensor([any(torch.equal(row, other) for other in others) for row in x], dtype=torch.bool)
    assert torch.equal(rows_among(x, others), brute)
    hashes = row_hashes(x)
    for one in range(count):
        for two in range(count):
            assert (hashes[one] == hashes[two]) == torch.equal(x[one], x[two])


@st.composite
def data_sets(draw):
    classes = draw(st.integers(2, 5))
    counts = [draw(st.integers(2, 20)) for _ in range(classes)]
    y = np.repeat(np.arange(classes), counts)
    order = np.random.default_rng(draw(st.integers(0, 1000))).permutation(len(y))
    y = y[order]
    tests = draw(st.integers(1, 10))
    x = np.arange((len(y) + tests) * 2, dtype=np.float32).reshape(-1, 2)
    return {
        "x_train": x[: len(y)],
        "y_train": y,
        "x_test": x[len(y) :],
        "y_test": np.arange(tests) % classes,
    }


@given(data_sets(), st.integers(0, 2**32), st.floats(0.05, 0.9), st.none() | st.integers(4, 60))
def test_parts_are_disjoint_whole_and_labelled_as_before(arrays, seed, share, limit):
    classes = int(arrays["y_train"].max()) + 1
    assume(limit is None or limit >= 2 * classes)
    bundle = make_bundle("x", arrays, seed=seed, validation_share=share, limit=limit)
    label = {tuple(row): int(y) for row, y in zip(arrays["x_train"].tolist(), arrays["y_train"], strict=True)}
    parts = [(bundle.x_train, bundle.y_train), (bundle.x_val, bundle.y_val)]
    seen = [tuple(row) for x, _ in parts for row in x.tolist()]
    assert len(set(seen)) == len(seen) == min(len(label), limit or len(label))
    assert all(label[tuple(row)] == int(y) for x, ys in parts for row, y in zip(x.tolist(), ys, strict=True))
    for _, y in parts:
        assert set(y.tolist()) == set(range(classes))
    assert bundle.x_test.tolist() == arrays["x_test"].tolist()


@given(data_sets(), st.integers(0, 100))
def test_the_fingerprint_follows_the_contents(arrays, seed):
    first, again = (make_bundle(name, arrays, seed=seed) for name in ("one", "two"))
    assert first.fingerprint == again.fingerprint
    changed = dict(arrays, x_test=arrays["x_test"] + 0.5)
    assert make_bundle("one", changed, seed=seed).fingerprint != first.fingerprint
    named = make_bundle("one", arrays, seed=seed, classes=[f"class {one}" for one in range(len(first.classes))])
    assert named.fingerprint != first.fingerprint
