"""Installs the newest wheel of a folder into an empty environment and tries it there as a user would."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path


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
        subprocess.run([python, "-m", "distillrs", "doctor"], check=True, cwd=folder)
    print(f"{wheel.name}: installs and runs in an empty environment")


if __name__ == "__main__":
    main()
