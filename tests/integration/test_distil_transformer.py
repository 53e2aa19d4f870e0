"""The example with a small transformer, as a user runs it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

for name, extra in (("transformers", "transformers"), ("accelerate", "accelerate"), ("matplotlib", "plot")):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install distillrs[{extra}]")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distil_transformer.py"


def test_three_ways_to_one_student(tmp_path):
    # Words enough for a vocabulary of 512 tokens, without data from elsewhere.
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulnrst", k=draw.randint(1, 7))) for _ in range(600)]
    text = tmp_path / "text.txt"
    text.write_text("".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(400)))
    command = [sys.executable, str(SCRIPT), str(text), "--out", str(tmp_path / "out")]
    command += ["--teacher-steps", "4", "--steps", "3", "--k", "300", "--characters", "12000"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    curves = json.loads((tmp_path / "out" / "curve.json").read_text())
    live, written, trainer = (
        dict(curves[name]["curve"]) for name in ("live teacher", "written answers", "written answers, Trainer")
    )
    assert list(live) == list(written) == list(trainer) == [0, 1, 2, 3]
    assert live[0] == written[0] == trainer[0]
    assert live[3] != live[0]  # it was trained, if not for long
    assert trainer[3] == pytest.approx(written[3], abs=2e-4)
    assert written[3] == pytest.approx(live[3], abs=2e-2)  # 300 of 512 entries and the mass of the rest
    assert (tmp_path / "out" / "curve.png").stat().st_size > 1000
    assert "held-out loss" in done.stdout


def test_the_documentation_leads_to_it():
    root = SCRIPT.parents[1]
    assert "examples/distil_transformer.py" in (root / "README.md").read_text()
    assert "](../examples/distil_transformer.py)" in (root / "docs" / "README.md").read_text()
