"""The committed ledger is complete and its summary is current."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "ledger").glob("*/*.json"))


def test_what_does_not_hold_is_explained():
    for page in PAGES:
        for letter, claim in json.loads(page.read_text())["claims"].items():
            assert claim["status"] in ("holds", "does not hold")
            assert claim["figures"], f"{page.name} ({letter}) has no figures"
            if claim["status"] == "does not hold":
                assert len(claim["explanation"]) > 40, f"{page.name} ({letter}) does not hold and says not why"


def test_the_summary_is_generated_from_the_pages():
    check = subprocess.run(
        [sys.executable, ROOT / "tools" / "proofs.py", "--check-summary"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_page_has_its_proof():
    for page in PAGES:
        name = f"test_{page.stem.replace('-', '_')}.py"
        assert (ROOT / "tests" / "proofs" / page.parent.name / name).exists()


def test_the_project_file_names_the_proof_marker():
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert any(marker.startswith("proof:") for marker in markers)
