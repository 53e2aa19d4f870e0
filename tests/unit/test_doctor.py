from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import types

import pytest

from distillrs.cli import doctor, exit_codes, main


def test_extras_are_those_of_the_package():
    declared = set(importlib.metadata.metadata("distillrs").get_all("Provides-Extra"))
    assert set(doctor.EXTRAS) == declared
    requirements = importlib.metadata.requires("distillrs")
    for extra in declared:
        assert doctor.packages_of(extra, requirements), extra


def test_an_extra_includes_those_that_it_names():
    requirements = [
        "torch>=2.6",
        "matplotlib>=3.8 ; extra == 'plot'",
        'scikit-learn>=1.4; extra == "demo"',
        'distillrs[plot]; extra == "demo"',
        'cupy-cuda12x[ctk]>=14; extra == "cuda12"',
        'distillrs[demo,testing]; extra == "dev"',
        'hypothesis; extra == "testing"',
    ]
    assert doctor.packages_of("plot", requirements) == ["matplotlib"]
    assert doctor.packages_of("demo", requirements) == ["scikit-learn", "matplotlib"]
    assert doctor.packages_of("cuda12", requirements) == ["cupy-cuda12x"]
    assert doctor.packages_of("dev", requirements) == ["scikit-learn", "matplotlib", "hypothesis"]


def test_json_is_for_programs(capsys):
    assert main(["doctor", "--json"]) == exit_codes.SUCCESS
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == doctor.FORMAT
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["system"]["core_vector_instructions"]
    assert 1 <= found["system"]["usable_processors"] <= found["system"]["processors"]
    assert found["problems"] == []


def test_tables_name_every_extra(capsys):
    assert main(["doctor"]) == exit_codes.SUCCESS
    text = capsys.readouterr().out
    for extra in doctor.EXTRAS:
        assert re.search(rf"^{extra} ", text, re.MULTILINE)


def test_missing_extra_says_how_to_add_it(monkeypatch):
    version = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name == "matplotlib" else version(name))
    plot = doctor.extras()["plot"]
    assert plot["missing"] == ["matplotlib"]
    assert not plot["complete"]
    assert plot["install"] == "pip install 'distillrs[plot]'"


def test_broken_cupy_is_a_problem_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "version_of", lambda name: {"cupy-cuda12x": "14.0", "torch": "2.6"}.get(name))
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it raises ImportError
    problems = []
    state = doctor.cupy(problems)
    assert state["installed"]
    assert not state["compiles"]
    assert len(problems) == 1
    assert "cupy is installed but cannot compile" in problems[0]
    assert main(["doctor"]) == exit_codes.FAILED
    assert "problem: cupy" in capsys.readouterr().out


def test_working_cupy_compiles_a_kernel_with_the_headers(monkeypatch):
    compiled = []
    cupy = types.ModuleType("cupy")
    nvrtc = types.SimpleNamespace(getVersion=lambda: (12, 9))
    compiler = types.SimpleNamespace(compile_using_nvrtc=lambda source, **options: compiled.append((source, options)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nvrtc", nvrtc)
    monkeypatch.setitem(sys.modules, "cupy.cuda.compiler", compiler)
    monkeypatch.setattr(doctor, "version_of", lambda name: "14.0" if name == "cupy-cuda13x" else None)
    problems = []
    state = doctor.cupy(problems)
    assert state == {"installed": True, "version": "14.0", "nvrtc": "12.9", "compiles": True, "reason": ""}
    assert problems == []
    assert "cuda_fp16.h" in compiled[0][0]


def test_two_cupy_packages_overwrite_each_other(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda name: "14.0" if name.startswith("cupy-") else None)
    monkeypatch.setitem(sys.modules, "cupy", None)
    problems = []
    doctor.cupy(problems)
    assert "overwrite each other" in problems[0]


@pytest.mark.parametrize("state", ["unset", "folder", "nothing"])
def test_data_folder_is_examined(state, monkeypatch, tmp_path):
    (tmp_path / "mnist.npz").touch()
    if state == "unset":
        monkeypatch.delenv("DISTILLRS_DATA", raising=False)
    else:
        monkeypatch.setenv("DISTILLRS_DATA", str(tmp_path if state == "folder" else tmp_path / "none"))
    problems = []
    found = doctor.data(problems)
    assert found["files"] == (["mnist.npz"] if state == "folder" else [])
    assert bool(problems) == (state == "nothing")
