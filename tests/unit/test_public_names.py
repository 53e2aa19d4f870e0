"""The public surface changes on purpose only: after an intended change run this file as a script."""

import importlib
import pkgutil
from pathlib import Path

import distillrs

SNAPSHOT = Path(__file__).with_name("public_names.txt")
PRIVATE = {"distillrs.__main__", "distillrs._core"}


def public_names() -> str:
    """Every name in every public package's `__all__`, one per line."""
    packages = ["distillrs"]
    packages += [f"distillrs.{info.name}" for info in pkgutil.iter_modules(distillrs.__path__)]
    lines = []
    for package in packages:
        if package in PRIVATE or package.startswith(("distillrs.cli", "distillrs._")):
            continue
        module = importlib.import_module(package)
        lines += [f"{package}.{name}" for name in getattr(module, "__all__", [])]
        for name in getattr(module, "__all__", []):
            getattr(module, name)
    return "".join(f"{line}\n" for line in sorted(lines))


def test_the_public_names_are_those_of_the_snapshot():
    assert public_names() == SNAPSHOT.read_text(), f"if the change is meant: python {Path(__file__).name}"


if __name__ == "__main__":
    SNAPSHOT.write_text(public_names())
