"""A label cache against a dictionary, and each encoding against the error that its format states."""

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from distillrs.errors import KeyConflict
from distillrs.trajectory import UNCHECKED, LabelCache


def answers(image, view, classes, variant=0):
    generator = torch.Generator().manual_seed(image + 1000 * view + 100_000 * variant)
    return torch.randn(classes, generator=generator) * 3


batches = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), unique=True, max_size=8),
        st.integers(0, 3),
        st.integers(0, 1),
        st.sampled_from(["append", "append", "append", "reopen", "other", "close"]),
    ),
    max_size=8,
)


@given(batches, st.sampled_from([("f16", None), ("u8", None), ("u8", 2)]))
@settings(max_examples=30)
def test_a_cache_is_a_dictionary_from_image_and_view(steps, encoding):
    code, k = encoding
    classes = 4
    due = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c"

        def opened():
            return LabelCache.create(path, classes, UNCHECKED, k=k, code=code, exist_ok=True)

        cache, others = opened(), []
        for images, view, variant, action in steps:
            if action in ("reopen", "close"):
                cache.close() if action == "close" else cache.__exit__(None, None, None)
                cache = opened()
            elif action == "other":
                others.append(cache)  # stays open beside the next one
                cache.flush()
                cache = opened()
            new = [image for image in images if (image, view) not in due]
            same = all(due.get((image, view), variant) == variant for image in images)
            logits = torch.stack([answers(image, view, classes, variant) for image in images] or [torch.zeros(classes)])
            try:
                written = cache.append(images, view, logits[: len(images)], seed=variant)
                assert same
                assert written == len(new)
                due.update({(image, view): variant for image in new})
            except KeyConflict:
                assert not same
            assert cache.missing(range(13), view).tolist() == [image for image in range(13) if (image, view) not in due]
        for each in (*others, cache):
            each.close()
        with LabelCache.open(path, UNCHECKED) as cache:
            assert len(cache) == len(due)
            assert cache.conflicts == []
            assert cache.nbytes == len(due) * cache.row_bytes
            keys = sorted(due)
            images, views = torch.tensor([[image, view] for image, view in keys] or [[0, 0]]).unbind(1)
            rows = cache.index(images[: len(keys)], views[: len(keys)])
            assert cache.seeds(rows).tolist() == [due[key] for key in keys]
            found = cache.gather(rows)
            exact = [answers(*key, classes, due[key]).log_softmax(-1) for key in keys]
            for row, each in enumerate(exact):
                if k is None:
                    assert (found[row] - each).abs().max() < 0.1
                else:
                    assert found.ids[row].tolist() == each.topk(k).indices.tolist()


@given(
    st.integers(1, 300),
    st.integers(1, 5),
    st.sampled_from(["f16", "u8"]),
    st.sampled_from([0.01, 1.0, 6.0, 60.0]),
    st.sampled_from([0.5, 1.0, 4.0]),
    st.booleans(),
    st.integers(0, 1 << 30),
)
def test_every_class_is_within_the_error_that_the_format_states(classes, n, code, spread, temperature, holes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator) * spread
    if holes:
        logits[:, 1:][torch.rand(n, classes - 1, generator=generator) < 0.5] = -torch.inf
    with (
        tempfile.TemporaryDirectory() as folder,
        LabelCache.create(Path(folder) / "c", classes, UNCHECKED, code=code) as cache,
    ):
        cache.append(range(n), 0, logits)
        found = cache.gather(cache.index(range(n), 0), temperature=temperature).double()
    exact = (logits.double() / temperature).log_softmax(-1)
    assert torch.equal(found == -torch.inf, exact == -torch.inf)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-5)
    depth = (logits.amax(-1, keepdim=True) - logits).double()
    finite = torch.where(depth.isinf(), 0, depth)
    if code == "f16":
        # Each depth is rounded to eleven bits, and the normaliser moves by the mean rounding at most.
        due = exact.exp()
        shift = (due * finite).sum(-1, keepdim=True) / 2048 / temperature
        bound = finite / 2048 / temperature + 1.01 * shift + 1e-5
    else:
        bound = finite.amax(-1, keepdim=True).clamp(max=104) / 254 * 1.002 / temperature + 1e-5
        bound = bound + (finite - 104).clamp(min=0) / temperature
    there = exact > -torch.inf
    assert ((found - exact).abs() <= bound.expand_as(exact))[there].all()
