"""Installs the newest wheel of a folder into an empty environment and tries it there as a user would."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

# Each at the least that it does: whether it starts, trains, draws and writes without anything but what it depends on.
COMMANDS = (
    ("doctor",),
    ("schedule", "--path", "edm", "--steps", "4"),
    (
        "distill-sampler", "--data", "images.npz", "--steps", "2", "--out", "sampler",
        "--set", "network.options.width=8", "--set", "network.options.depth=1",
        "--set", "teacher.steps=2", "--set", "teacher.batch_size=8", "--set", "teacher.sampling_steps=2",
        "--set", "student.steps=2", "--set", "student.batch_size=8", "--set", "student.check_every=1",
        "--set", "evaluation.samples=8", "--set", "evaluation.neighbours=1",
    ),
)  # fmt: skip
DATA = (
    "import numpy as np; rng = np.random.default_rng(0);"
    "x, y = rng.random((40, 8, 8), dtype=np.float32), np.arange(40) % 4;"
    "np.savez('images.npz', x_train=x[:32], y_train=y[:32], x_test=x[32:], y_test=y[32:])"
)


def main() -> None:
    """Usage: ``check_wheel.py FOLDER``."""
    wheel = max(Path(sys.argv[1]).glob("*.whl"), key=lambda path: path.stat().st_mtime)
    constraints = Path(__file__).resolve().parent.parent / "constraints.txt"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--constraint", str(constraints), str(wheel)], check=True)
        # From a neutral folder, so that the checkout cannot stand in for the installed package.
        subprocess.run([python, "-c", "import distillrs; print(distillrs.__version__)"], check=True, cwd=folder)
        subprocess.run([python, "-c", DATA], check=True, cwd=folder)
        for words in COMMANDS:
            subprocess.run([python, "-m", "distillrs", *words], check=True, cwd=folder)
    print(f"{wheel.name}: installs and runs in an empty environment")


if __name__ == "__main__":
    main()
