"""What every test shares: hypothesis profiles, and a torch that gives the same numbers every time.

The profile is taken from ``HYPOTHESIS_PROFILE``: "quick" while writing code, "ci" (the default), "deep" overnight.
"""

import os
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings

# A shared two-core machine stalls now and then; a deadline would make tests fail by chance.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=15, derandomize=True, **_COMMON)
settings.register_profile("ci", max_examples=60, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("deep", max_examples=2000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell's background job ignores interrupts, and so would every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(int(os.environ.get("DISTILLRS_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _same_torch_randomness():
    """Tests that draw from torch's global generator see the same numbers alone and in a full run."""
    torch.manual_seed(0)
