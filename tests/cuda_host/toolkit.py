"""Where NVIDIA's headers and its runtime compiler are on this machine."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

REMEDY = (
    "they come with torch's CUDA builds and with `pip install nvidia-cuda-runtime nvidia-cuda-nvrtc nvidia-cuda-cccl`"
)


def roots() -> list[Path]:
    """Folders that may hold a toolkit: NVIDIA's wheels first, then what the environment and the system name."""
    found = []
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # Since CUDA 13 one folder holds all; before, each library had its own.
        found += sorted(Path(folder).glob("cu[0-9]*"), reverse=True)
        found += [Path(folder) / "cuda_runtime", Path(folder) / "cuda_nvrtc", Path(folder) / "cuda_cccl"]
    found += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    found.append(Path("/usr/local/cuda"))
    return [folder for folder in found if folder.is_dir()]


def include_folders() -> list[Path]:
    """What a compiler needs for ``cuda_fp16.h`` and ``cuda_bf16.h``.

    Raises:
        FileNotFoundError: They are not there; the message says what brings them.
    """
    folders = [root / "include" for root in roots()]
    first = next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)
    if first is None:
        raise FileNotFoundError(f"no cuda_fp16.h in {', '.join(map(str, folders)) or 'any known folder'}: {REMEDY}")
    # The headers ask for <nv/target>, which newer wheels keep one folder deeper.
    targets = [folder for folder in (first, first / "cccl", *folders) if (folder / "nv" / "target").is_file()]
    return list(dict.fromkeys([first, *targets[:1]]))


def nvrtc() -> ctypes.CDLL:
    """NVIDIA's runtime compiler, which needs no driver.

    Raises:
        FileNotFoundError: It is not there; the message says what brings it.
    """
    for root in roots():
        for folder in (root / "lib", root / "lib64"):
            for path in sorted(folder.glob("libnvrtc.so.*")):
                if "alt" not in path.name:
                    # The compiler opens this one by name.
                    for builtins in folder.glob("libnvrtc-builtins.so.*"):
                        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
                    return ctypes.CDLL(str(path))
    raise FileNotFoundError(f"no libnvrtc.so in {', '.join(map(str, roots())) or 'any known folder'}: {REMEDY}")
