"""The example with a UNet of diffusers, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install distillrs[diffusers]")
pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install distillrs[plot]")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "distil_diffusers_unet.py"


def test_the_pipeline_samples_what_we_sample(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pipeline beside ours, largest difference"] < 1e-4
    assert figures["teacher, 48 steps"] == 0
    assert figures["student, 4 steps"] != figures["teacher, 4 steps"]  # it was trained, if not for long
    assert (tmp_path / "samples.png").stat().st_size > 1000
    scheduler = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["_class_name"], scheduler["shift"]) == ("FlowMatchEulerDiscreteScheduler", 1.0)
    assert (tmp_path / "unet" / "config.json").exists()
