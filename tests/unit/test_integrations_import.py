"""The hooks are found as attributes, whatever was imported before, and import nobody's package."""

import subprocess
import sys

import pytest

from distillrs import integrations

MODULES = ["accelerate", "diffusers", "lightning", "sklearn", "transformers"]


def test_the_hooks_are_attributes_of_a_fresh_import():
    code = (
        "import sys\nfrom distillrs import integrations\n"
        f"for name in {MODULES}:\n"
        "    module = getattr(integrations, name)\n"
        "    assert module.__name__ == 'distillrs.integrations.' + name\n"
        "    assert name not in sys.modules, name\n"
        "class Mixed(integrations.transformers.Distil): pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_are_listed_and_others_refused():
    assert set(MODULES) <= set(dir(integrations))
    assert set(MODULES) <= set(integrations.__all__)
    with pytest.raises(AttributeError, match=r"'distillrs\.integrations' has no attribute 'trl'"):
        integrations.trl  # noqa: B018  # looking it up is the test
