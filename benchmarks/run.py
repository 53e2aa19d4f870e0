"""Runs the benchmarks, each in a process of its own, and says where their results are.

Usage::

    python benchmarks/run.py [NAME ...]       # all, or those named: store, codecs, ...

Every benchmark prints a table and writes `benchmarks/results/NAME.json`: the machine, the command, the medians, and the
ratios to its peers in the same run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> int:
    names = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("run", "measure", "peers", "heads"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all by default")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"NAME: got {', '.join(unknown)}, allowed is one of {', '.join(names)}")
    failed = []
    for name in arguments.names or names:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], cwd=FOLDER.parent, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
