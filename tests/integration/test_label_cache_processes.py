"""Several processes label into one cache; some are killed at any moment."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from distillrs.trajectory import UNCHECKED, LabelCache
from killed_writers import killed_writers, remove_logs

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")

CLASSES = 7

WRITER = """
from distillrs.trajectory import UNCHECKED, LabelCache

def answers(image, view):
    return torch.randn(7, generator=torch.Generator().manual_seed(100 * view + image))

def write(path, first, last):
    with LabelCache.create(path, 7, UNCHECKED, exist_ok=True) as cache:
        for view in range(first, last):
            for begin in (0, 10):
                left = cache.missing(range(begin, begin + 12), view).tolist()
                if left:
                    cache.append(left, view, torch.stack([answers(image, view) for image in left]), seed=view)
            if view % 2 == 0:
                cache.flush()
                yield view
"""


def answers(image: int, view: int) -> torch.Tensor:
    return torch.randn(CLASSES, generator=torch.Generator().manual_seed(100 * view + image))


def check(path: Path, due: set[int]) -> int:
    """Compares every label that is there; all of the views that are due are among them. Gives their number."""
    with LabelCache.open(path, UNCHECKED, verify="always") as cache:
        assert cache.conflicts == []
        for view in cache.views():
            images = cache.images(view)
            if view in due:
                assert images.tolist() == list(range(22))
            rows = cache.index(images, view)
            assert cache.seeds(rows).eq(view).all()
            exact = torch.stack([answers(image, view) for image in images.tolist()]).log_softmax(-1)
            torch.testing.assert_close(cache.gather(rows), exact, rtol=0, atol=0.01)
        assert due <= set(cache.views())
        return len(cache)


def test_kills_lose_no_acknowledged_label(tmp_path: Path) -> None:
    path, acknowledged, beyond = tmp_path / "c", set[int](), 0
    for acknowledged in killed_writers(WRITER, path, 15, new=24, shared=12):
        beyond += check(path, acknowledged) - 22 * len(acknowledged)
    # Otherwise no kill came between an append and the next acknowledgement.
    assert beyond > 0
    with LabelCache.create(path, CLASSES, UNCHECKED, exist_ok=True) as cache:
        assert cache.verify().sound
    remove_logs(path)
    check(path, acknowledged)
