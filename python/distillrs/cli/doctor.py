"""``distillrs doctor``: what this installation has, what it lacks, and what each extra would add."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distillrs.cli import exit_codes

FORMAT = 1

# What each extra of the package adds, in the words of its user. A test holds the names to the package's metadata.
EXTRAS = {
    "plot": "pictures of condensed sets and curves",
    "demo": "the digits of scikit-learn, image folders, and pictures",
    "diffusers": "grids and paths as schedulers of diffusers, and back",
    "transformers": "teacher caches from language models, and the hook of its Trainer",
    "lightning": "the hook of Lightning's Trainer",
    "accelerate": "the hook of Accelerate's loop",
    "sklearn": "selectors and clusterers as estimators of scikit-learn",
    "testing": "strategies and checks of distillrs.testing for your own parts",
    "cuda12": "cupy, which compiles and launches the kernels of distillrs.ops on NVIDIA GPUs with CUDA 12",
    "cuda13": "cupy, which compiles and launches the kernels of distillrs.ops on NVIDIA GPUs with CUDA 13",
    "dev": "what it takes to develop distillrs",
}

_BASE = ("torch", "numpy", "safetensors", "tyro", "rich")
_DATA_FILES = ("mnist.npz", "fashion.npz", "cifar10.npz", "cifar10_jpeg.npz")


@dataclass(frozen=True)
class Doctor:
    """Show versions, threads, vector instructions, GPU state, and what each extra would add.

    Exit code 1 if something that is installed does not work.
    """

    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs instead of tables.")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints the examination."""
        found = examine()
        if self.json:
            output.out(json.dumps(found, indent=2), highlight=False)
        else:
            show(found, output)
        return exit_codes.FAILED if found["problems"] else exit_codes.SUCCESS


def examine() -> dict[str, Any]:
    """Everything that the doctor knows, as JSON values."""
    problems: list[str] = []
    return {
        "format": FORMAT,
        "versions": versions(),
        "system": system(),
        "gpu": gpu(),
        "cupy": cupy(problems),
        "extras": extras(),
        "data": data(problems),
        "problems": problems,
    }


def versions() -> dict[str, str]:
    """Versions of Python, of distillrs and its core, and of the packages that it stands on."""
    import distillrs
    from distillrs import _core

    found = {"python": platform.python_version(), "distillrs": distillrs.__version__, "core": _core.__version__}
    return found | {name: version_of(name) or "not installed" for name in _BASE}


def version_of(package: str) -> str | None:
    """Version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def system() -> dict[str, Any]:
    """Machine, threads and vector instructions."""
    import torch

    from distillrs import _core

    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "executable": sys.executable,
        "processors": os.cpu_count(),
        "usable_processors": usable_processors(),
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "torch_vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "core_vector_instructions": _core.simd_level(),
    }


def usable_processors() -> int:
    """Processors that this process may run on; a container or a job often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpu() -> dict[str, Any]:
    """What torch sees."""
    import torch

    built = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None)
    if not torch.cuda.is_available():
        reason = "torch is a CPU build" if built is None else "no device, or no driver that this torch can use"
        return {"torch_built_for": built, "available": False, "reason": reason, "devices": []}
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return {"torch_built_for": built, "available": True, "reason": "", "devices": devices}


_PROBE = """
#include <cuda_fp16.h>
extern "C" __global__ void probe(__half* x) { x[threadIdx.x] = __hadd(x[threadIdx.x], x[threadIdx.x]); }
"""


def cupy(problems: list[str]) -> dict[str, Any]:
    """Whether kernels can be compiled (NVRTC and the toolkit's headers) and launched (cupy and a driver)."""
    names = [name for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy") if version_of(name)]
    if not names:
        return {"installed": False, "version": None, "nvrtc": None, "compiles": False, "reason": "not installed"}
    state: dict[str, Any] = {"installed": True, "version": version_of(names[0]), "nvrtc": None, "compiles": False}
    if len(names) > 1:
        problems.append(f"{' and '.join(names)} are installed together and overwrite each other; keep one of them")
    try:
        importlib.import_module("cupy")
        nvrtc = importlib.import_module("cupy.cuda.nvrtc")
        compiler = importlib.import_module("cupy.cuda.compiler")
        state["nvrtc"] = ".".join(map(str, nvrtc.getVersion()))
        compiler.compile_using_nvrtc(_PROBE, options=("--std=c++17",), arch="80")
    except Exception as failure:  # whatever a broken GPU stack raises is the finding
        state["reason"] = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"
        problems.append(f"cupy is installed but cannot compile a kernel ({state['reason']})")
        return state
    return state | {"compiles": True, "reason": ""}


def extras() -> dict[str, dict[str, Any]]:
    """For each extra: what it adds, whether it is complete, what is missing, and the command that adds it."""
    requirements = importlib.metadata.requires("distillrs") or []
    found = {}
    for name, adds in EXTRAS.items():
        missing = [package for package in packages_of(name, requirements) if version_of(package) is None]
        found[name] = {
            "adds": adds,
            "complete": not missing,
            "missing": missing,
            "install": f"pip install 'distillrs[{name}]'",
        }
    return found


def packages_of(extra: str, requirements: list[str]) -> list[str]:
    """Packages that an extra asks for, those of the extras that it names included.

    Args:
        extra: Name of the extra.
        requirements: Lines as ``importlib.metadata.requires`` gives them.
    """
    packages: list[str] = []
    for line in requirements:
        requirement, _, marker = line.partition(";")
        if not re.search(rf"""extra\s*==\s*['"]{re.escape(extra)}['"]""", marker):
            continue
        match = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?", requirement)
        if match is None:
            continue
        package, nested = match[1], match[2]
        if package == "distillrs":
            for name in (nested or "").split(","):
                packages += [other for other in packages_of(name.strip(), requirements) if other not in packages]
        elif package not in packages:
            packages.append(package)
    return packages


def data(problems: list[str]) -> dict[str, Any]:
    """Where data sets are looked up, and which are there."""
    folder = os.environ.get("DISTILLRS_DATA")
    if not folder:
        return {"DISTILLRS_DATA": None, "files": []}
    if not Path(folder).is_dir():
        problems.append(f"DISTILLRS_DATA is {folder!r}, which is not a folder")
        return {"DISTILLRS_DATA": folder, "files": []}
    return {"DISTILLRS_DATA": folder, "files": [name for name in _DATA_FILES if (Path(folder) / name).is_file()]}


def show(found: dict[str, Any], output: Console) -> None:
    """The examination as tables."""
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, version in found["versions"].items():
        facts.add_row(name, version)
    here = found["system"]
    facts.add_row("platform", here["platform"])
    facts.add_row("processors", f"{here['usable_processors']} usable of {here['processors']}")
    facts.add_row("threads", f"torch {here['torch_threads']}, between operations {here['torch_interop_threads']}")
    facts.add_row(
        "vectors", f"core {here['core_vector_instructions']}, torch {here['torch_vector_instructions'].lower()}"
    )
    facts.add_row("CUDA", _show_gpu(found["gpu"]))
    cupy_state = found["cupy"]
    if cupy_state["compiles"]:
        facts.add_row("cupy", f"{cupy_state['version']}, NVRTC {cupy_state['nvrtc']} compiles with the headers")
    else:
        facts.add_row("cupy", cupy_state["reason"])
    where = found["data"]
    files = ", ".join(where["files"]) or "none of the known files"
    facts.add_row(
        "data", f"{where['DISTILLRS_DATA']}: {files}" if where["DISTILLRS_DATA"] else "DISTILLRS_DATA is not set"
    )
    output.print(facts, highlight=False)
    output.print()

    table = Table("extra", "state", "adds", "to install", box=None, pad_edge=False, header_style="bold")
    for name, extra in found["extras"].items():
        state = "[green]complete" if extra["complete"] else f"[yellow]lacks {', '.join(extra['missing'])}"
        table.add_row(name, state, extra["adds"], "" if extra["complete"] else extra["install"].replace("[", r"\["))
    output.print(table, highlight=False)
    for problem in found["problems"]:
        output.print(f"\nproblem: {problem}", style="bold red", highlight=False, markup=False)


def _show_gpu(state: dict[str, Any]) -> str:
    built = f"torch is built for {state['torch_built_for']}" if state["torch_built_for"] else "torch is a CPU build"
    if not state["available"]:
        return built if state["torch_built_for"] is None else f"{built}; {state['reason']}"
    names = ", ".join(
        f"{device['name']} ({device['capability']}, {device['memory_bytes'] / 2**30:.0f} GiB)"
        for device in state["devices"]
    )
    return f"{built}; {names}"
