"""Installs distillrs for development into the environment that runs this file.

The versions that the project is developed with are pinned in ``constraints.txt``. A torch that is already there and
new enough is kept, whatever its build (CPU, CUDA, ROCm), and so is not pinned.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LOWEST_TORCH = (2, 6)


def torch_to_keep() -> str | None:
    """Version of an installed torch that satisfies the project, or None."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return version if numbers and tuple(map(int, numbers.groups())) >= LOWEST_TORCH else None


def main() -> None:
    """Runs pip with the pins that apply here."""
    root = Path(__file__).resolve().parent.parent
    pins = (root / "constraints.txt").read_text().splitlines()
    kept = torch_to_keep()
    if kept:
        print(f"keeping torch {kept}, which is already installed")
        # torch decides the versions of its own companions, so their pins go with its own.
        pins = [pin for pin in pins if not re.match(r"(torch|triton|nvidia|cuda)\b", pin)]
        pins.append(f"torch=={kept}")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--constraint",
            str(constraints),
        ]
        subprocess.run([*pip, "--quiet", "maturin>=1.14,<2"], check=True)
        subprocess.run([*pip, "--no-build-isolation", "--editable", f"{root}[dev]"], check=True)


if __name__ == "__main__":
    main()
