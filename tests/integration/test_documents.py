"""Every Python example in the documents runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def examples():
    """One case per document: its blocks run in order, in one process and an empty folder."""
    for document in DOCUMENTS:
        blocks = BLOCK.findall(document.read_text())
        if blocks:
            yield pytest.param(document, "\n".join(blocks), id=str(document.relative_to(ROOT)))


@pytest.mark.parametrize(("document", "code"), list(examples()))
def test_examples_run(document, code, tmp_path):
    (tmp_path / "example.py").write_text(code)
    run = subprocess.run([sys.executable, "-W", "error", "example.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, f"{document.name}:\n{run.stdout}\n{run.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(document):
    missing = [target for target in LINK.findall(document.read_text()) if not (document.parent / target).exists()]
    assert not missing
