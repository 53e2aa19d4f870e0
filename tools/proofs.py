"""Runs the proofs and writes their figures into ``docs/ledger``.

Usage::

    python tools/proofs.py [--id tesla] [--accept]     # run, write figures; --accept also writes changed statuses
    python tools/proofs.py --summary                   # write docs/ledger/README.md from the pages
    python tools/proofs.py --check-summary             # fail if that file is not current
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LEDGER = ROOT / "docs" / "ledger"
SUMMARY = LEDGER / "README.md"

HEADER = """# The ledger of proofs

Each row is one claim of a published system, checked on real data by `tests/proofs/<family>/test_<id>.py`. The figures
stand in the page of the system, as they came. A proof fails when its outcome differs from the status here.
`make proofs` runs them all and `make proofs ID=tesla` one; what is finished is not run again until a source changes.

"""


def _pages() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(LEDGER.glob("*/*.json"))]


def summary() -> str:
    """The text of ``docs/ledger/README.md``."""
    lines = [HEADER + "| system | claim | checked | status |", "|---|---|---|---|"]
    notes = []
    for page in _pages():
        name = f"[{page['system']}]({page['family']}/{page['system']}.json)"
        for letter, claim in page["claims"].items():
            lines.append(f"| {name} | {letter} | {claim['statement']} | {claim['status']} |")
            if claim["explanation"]:
                notes.append(f"- **{page['system']} ({letter})**: {claim['explanation']}")
    text = "\n".join(lines) + "\n"
    if notes:
        text += "\n## Notes\n\n" + "\n".join(notes) + "\n"
    return text


def main() -> int:
    """Runs what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--id", help="one system of the catalogue")
    parser.add_argument("--accept", action="store_true", help="write changed statuses, too")
    parser.add_argument("--summary", action="store_true", help="only write the summary")
    parser.add_argument("--check-summary", action="store_true", help="only compare the summary with the pages")
    arguments = parser.parse_args()
    if arguments.check_summary:
        current = SUMMARY.exists() and SUMMARY.read_text() == summary()
        print("the summary is current" if current else f"{SUMMARY} is stale: run python tools/proofs.py --summary")
        return 0 if current else 1
    code = 0
    if not arguments.summary:
        name = f"test_{arguments.id.replace('-', '_')}.py" if arguments.id else "test_*.py"
        files = sorted(str(path) for path in (ROOT / "tests" / "proofs").glob(f"*/{name}"))
        if not files:
            known = sorted(path.stem.removeprefix("test_") for path in (ROOT / "tests" / "proofs").glob("*/test_*.py"))
            print(f"--id: got {arguments.id!r}, allowed is one of {', '.join(known)}")
            return 2
        environment = os.environ | {"DISTILLRS_LEDGER": "accept" if arguments.accept else "write"}
        pytest = [sys.executable, "-m", "pytest", "-m", "proof", "--timeout", "7200", "-v", *files]
        code = subprocess.run(pytest, cwd=ROOT, env=environment, check=False).returncode
    SUMMARY.write_text(summary())
    return code


if __name__ == "__main__":
    sys.exit(main())
