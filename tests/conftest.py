"""What every test shares: hypothesis profiles, and a torch that gives the same numbers every time.

The profile is taken from ``HYPOTHESIS_PROFILE``: "quick" while writing code, "ci" (the default), "deep" overnight.
"""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

from cuda_host.host import HostLoader
from distillrs.ops._cuda import _launcher

# A shared two-core machine stalls now and then; a deadline would make tests fail by chance.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=60, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("deep", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

_HOST = _launcher.Launcher(HostLoader(seed=2))

# A shell's background job ignores interrupts, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("DISTILLRS_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _same_torch_randomness():
    """Tests that draw from torch's global generator see the same numbers alone and in a full run."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _kernels_run_on_the_cpu(request):
    """Where a test's parameter `backend` is "cuda", the kernels' sources run on the CPU, under `tests/cuda_host`."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or callspec.params.get("backend") != "cuda":
        yield
        return
    with _launcher.serving(_HOST):
        yield
