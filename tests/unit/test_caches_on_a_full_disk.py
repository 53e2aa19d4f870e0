"""A disk that refuses in the middle: what was flushed is intact, and append may be tried again."""

import subprocess
import sys

import pytest

CODE = """
import resource
import signal
import sys

import torch

from distillrs.errors import StoreIOError
from distillrs.trajectory import UNCHECKED, LabelCache, TeacherCache

path, kind = sys.argv[1:]
if kind == "teacher":
    cache = TeacherCache.create(path, 400, 50, UNCHECKED)
    answers = [3 * torch.randn(1500, 400, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def append(number):
        cache.append(str(number), answers[number])

else:
    cache = LabelCache.create(path, 50, UNCHECKED)
    answers = [3 * torch.randn(1500, 50, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]

    def append(number):
        cache.append(torch.arange(1500), number, answers[number])


def present(cache):
    # How many of the three are there and what they are.
    if kind == "teacher":
        keys = [key for key in ("0", "1", "2") if key in cache]
        return {key: cache.gather(cache.index([key]) + torch.arange(1500)).log_probs for key in keys}
    numbers = [number for number in range(3) if not len(cache.missing(torch.arange(1500), number))]
    return {str(number): cache.gather(cache.index(torch.arange(1500), number)) for number in numbers}


append(0)
cache.flush()
# A file may be no longer than this: the second document does not fit, as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(1500 * cache.row_bytes * 1.4), hard))
refused = 0
for _ in range(2):
    try:
        append(1)
        cache.flush()
    except StoreIOError:
        refused += 1
assert refused == 2, refused
reader = type(cache).open(path, UNCHECKED)
assert list(present(reader)) == ["0"], list(present(reader))
before = present(reader)["0"]
reader.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append(1)
append(2)
cache.flush()
cache.close()
found = present(type(cache).open(path, UNCHECKED))
assert list(found) == ["0", "1", "2"], list(found)
assert torch.equal(found["0"], before)
exact = answers[1].log_softmax(-1)
exact = exact.topk(50).values if kind == "teacher" else exact
assert (found["1"] - exact).abs().max() < 0.05
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process has no limit of a file's size there")
@pytest.mark.parametrize("kind", ["teacher", "label"])
def test_append_may_be_tried_again_after_the_disk_refused(tmp_path, kind):
    command = [sys.executable, "-c", CODE, str(tmp_path / "cache"), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
