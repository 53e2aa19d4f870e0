"""The trajectory store: windows, appends, bytes of real experts, opening.

Everything runs on one thread; contenders take turns. torchrl and tensordict are compared with if they are
installed. With `--quick` the store is small and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import measure
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from distillrs import random
from distillrs.step import Step
from distillrs.trajectory import Column, DeltaInt8, ParameterLayout, Schema, Store

# The ConvNet of trajectory matching on 32 x 32 colour images: names and elements of its parameters.
CONVNET = {
    "features.0.weight": 3456, "features.0.bias": 128, "features.1.weight": 128, "features.1.bias": 128,
    "features.4.weight": 147456, "features.4.bias": 128, "features.5.weight": 128, "features.5.bias": 128,
    "features.8.weight": 147456, "features.8.bias": 128, "features.9.weight": 128, "features.9.bias": 128,
    "classifier.weight": 20480, "classifier.bias": 10,
}  # fmt: skip


FEW = 4


@dataclass(frozen=True)
class Scale:
    """How large the data are."""

    experts: int = 20
    snapshots: int = 51
    windows: int = 100
    appends: int = 51
    opened: int = 1000
    epochs: int = 50
    rounds: int = 15


QUICK = Scale(experts=2, snapshots=5, windows=20, appends=5, opened=20, epochs=3, rounds=3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small data, to see that it runs")
    parser.add_argument("--folder", type=Path, default=None, help="where the data go (about 5 GB); a temporary one")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scale = QUICK if arguments.quick else Scale()
    if arguments.resident:
        return print(json.dumps(resident_memory(arguments.resident)))
    if arguments.save:
        return print(json.dumps(save_lists(arguments.save, scale)))
    if arguments.load:
        return print(json.dumps(load_lists(arguments.load)))
    folder = Path(tempfile.mkdtemp(prefix="distillrs-store-", dir=arguments.folder))
    try:
        results: dict[str, Any] = {"scale": scale.__dict__}
        for name, part in {"append": append, "open": opening, "windows": windows, "bytes": real_experts}.items():
            results[name] = part(folder, scale)
            report({name: results[name]})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not arguments.quick:
        measure.write("store", results)
    return None


def made_up_experts(scale: Scale) -> Iterator[Tensor]:
    """[snapshots, parameters] One random walk after another."""
    size = sum(CONVNET.values())
    for number in range(scale.experts):
        steps = random.normal(scale.snapshots, size, step=Step(number), name="benchmark")
        yield steps.mul_(0.01).cumsum(0)


def windows(folder: Path, scale: Scale) -> dict[str, Any]:
    """(a) Reading (t, t + 2), and what it holds in memory."""
    size = sum(CONVNET.values())
    schemas = {
        "raw": Schema(theta=Column((size,), "float32")),
        "delta-int8": Schema(theta=Column((size,), "float32", codec=DeltaInt8())),
        "lossless": Schema(theta=Column((size,), "float32", codec="lossless")),
        "half-delta": Schema(
            theta=Column((size,), "float32", codec="half-delta", tensor_sizes=tuple(CONVNET.values()))
        ),
    }
    memory = torch.empty(scale.experts, scale.snapshots, size)
    for number, expert in enumerate(made_up_experts(scale)):
        memory[number] = expert
    lists = [[list(torch.split(snapshot, list(CONVNET.values()))) for snapshot in expert] for expert in memory]
    child("--save", folder / "lists.pt", scale)
    loaded = child("--load", folder / "lists.pt", scale)
    (folder / "lists.pt").unlink()
    for name, schema in schemas.items():
        with Store.create(folder / name, schema) as store:
            # Few experts do for what is compared with nothing else: memory need not hold more.
            for number, expert in enumerate(memory if name in ("raw", "delta-int8") else memory[:FEW]):
                with store.begin(f"expert-{number:02d}") as writer:
                    for snapshot in expert:
                        writer.append(theta=snapshot)
    for number, expert in enumerate(memory):
        save_file({"theta": expert}, folder / f"{number}.safetensors")
    stores = {name: Store.open(folder / name) for name in schemas}

    drawn = {name: store.sample(2, units=scale.windows) for name, store in stores.items()}
    places = [(int(key[-2:]), start) for key, start in drawn["raw"]]
    out = (torch.empty(size), torch.empty(size))
    arrays = (out[0].numpy(), out[1].numpy())
    source = memory.numpy()
    files = [safe_open(folder / f"{number}.safetensors", framework="pt") for number in range(scale.experts)]
    slices = [file.__enter__().get_slice("theta") for file in files]

    def memory_copy() -> None:
        for expert, start in places:
            np.copyto(arrays[0], source[expert, start])
            np.copyto(arrays[1], source[expert, start + 2])

    def torch_copy() -> None:
        for expert, start in places:
            out[0].copy_(memory[expert, start])
            out[1].copy_(memory[expert, start + 2])

    def stored(name: str) -> Callable[[], None]:
        def read() -> None:
            for key, start in drawn[name]:
                stores[name].window(key, "theta", start=start, span=2, out=out)

        return read

    def nested() -> None:
        for expert, start in places:
            torch.cat([part.reshape(-1) for part in lists[expert][start]], out=out[0])
            torch.cat([part.reshape(-1) for part in lists[expert][start + 2]], out=out[1])

    def sliced() -> None:
        for expert, start in places:
            out[0].copy_(slices[expert][start])
            out[1].copy_(slices[expert][start + 2])

    contenders = {
        "copy from memory (numpy)": memory_copy,
        "copy from memory (torch)": torch_copy,
        "store, raw": stored("raw"),
        "nested lists in memory, flattened": nested,
        "safetensors get_slice, copied": sliced,
        **{f"store, {name}": stored(name) for name in schemas if name != "raw"},
    }
    memmap = torchrl_memmap(folder / "memmap", memory[:FEW], drawn["lossless"])
    if memmap is not None:
        contenders["TorchRL LazyMemmapStorage get"] = memmap
    for name in schemas:
        stored(name)()
        key, start = drawn[name][-1]
        error = (out[1] - memory[int(key[-2:]), start + 2]).abs().max()
        assert error == 0 if name in ("raw", "lossless") else error < 1e-2, (name, float(error))
    seconds = measure.alternate(contenders, rounds=scale.rounds)
    each = {name: value / scale.windows * 1e3 for name, value in measure.medians(seconds).items()}
    limit = min(each["copy from memory (numpy)"], each["copy from memory (torch)"])
    for file in files:
        file.__exit__(None, None, None)
    return {
        "what": f"(t, t + 2) of {scale.experts} experts x {scale.snapshots} records x {size} float32, read once before",
        "milliseconds per window": each,
        "ratio of store, raw to a copy from memory": each["store, raw"] / limit,
        "ratio of peers to store, raw": {
            name: value / each["store, raw"] for name, value in each.items() if not name.startswith(("store", "copy"))
        },
        "resident": {name: child("--resident", folder / name, scale) for name in ("raw", "delta-int8")},
        "torch.load of nested lists": loaded,
        "bytes on disk over float32": {
            name: folder_bytes(folder / name) / (4 * size * scale.snapshots * len(store))
            for name, store in stores.items()
        },
        "TorchRL": "compared" if memmap is not None else "not installed",
    }


def torchrl_memmap(folder: Path, memory: Tensor, drawn: list[tuple[str, int]]) -> Callable[[], None] | None:
    """Reads windows from TorchRL's storage on disk; None if it is not installed."""
    try:
        from tensordict import TensorDict
        from torchrl.data import LazyMemmapStorage
    except ImportError:
        return None
    experts, snapshots = memory.shape[:2]
    storage = LazyMemmapStorage(experts * snapshots, scratch_dir=str(folder))
    for number in range(experts):
        rows = TensorDict({"theta": memory[number]}, batch_size=[snapshots])
        storage.set(range(number * snapshots, (number + 1) * snapshots), rows)

    def read() -> None:
        for key, start in drawn:
            row = int(key[-2:]) * snapshots + start
            storage.get([row, row + 2])["theta"]

    return read


def resident_memory(path: Path) -> dict[str, Any]:
    """Anonymous memory before and after every window of a store was read once; in a process of its own."""
    store = Store.open(path)
    size = store.schema["theta"].size
    out = (torch.empty(size), torch.empty(size))
    keys = store.keys()
    store.window(keys[0], "theta", start=0, span=2, out=out)
    before = measure.anonymous_bytes()
    growth = []
    for key in keys:
        for start in range(store.lengths()[key] - 2):
            store.window(key, "theta", start=start, span=2, out=out)
        growth.append(measure.anonymous_bytes() - before)
    return {
        "anonymous bytes after one expert": growth[0],
        "anonymous bytes after all": growth[-1],
        "bytes of the store": folder_bytes(path),
    }


def save_lists(path: Path, scale: Scale) -> dict[str, Any]:
    """Writes nested lists, as code bases without a store do."""
    sizes = list(CONVNET.values())
    lists = [
        [[part.clone() for part in torch.split(row, sizes)] for row in expert] for expert in made_up_experts(scale)
    ]
    torch.save(lists, path)
    return {"bytes": path.stat().st_size}


def load_lists(path: Path) -> dict[str, Any]:
    """Time and anonymous memory of loading nested lists."""
    before = measure.anonymous_bytes()
    start = perf_counter()
    lists = torch.load(path, weights_only=True)
    seconds = perf_counter() - start
    return {"seconds": seconds, "anonymous bytes": measure.anonymous_bytes() - before, "experts": len(lists)}


def child(option: str, path: Path, scale: Scale) -> dict[str, Any]:
    """Runs one part in a process of its own, so that neither's memory counts for the other."""
    command = [sys.executable, str(Path(__file__).resolve()), option, str(path)]
    if scale is QUICK:
        command.append("--quick")
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(output)
    return found


def append(folder: Path, scale: Scale) -> dict[str, Any]:
    """(b) Append and flush against write and fsync of the same bytes, in turns."""
    size = sum(CONVNET.values())
    record = random.normal(1, size, step=0, name="benchmark")[0]
    data = record.numpy().data.cast("B")
    store = Store.create(folder / "append", Schema(theta=Column((size,), "float32")))
    coded = Store.create(folder / "append-coded", Schema(theta=Column((size,), "float32", codec=DeltaInt8())))
    plain = os.open(folder / "plain", os.O_CREAT | os.O_WRONLY)
    light = os.open(folder / "light", os.O_CREAT | os.O_WRONLY)
    writer, coded_writer = store.begin("a"), coded.begin("a")

    def ours() -> None:
        writer.append(theta=record)
        writer.flush()

    def ours_coded() -> None:
        record[:1000] += 1e-3
        coded_writer.append(theta=record)
        coded_writer.flush()

    def write_fsync() -> None:
        os.write(plain, data)
        os.fsync(plain)

    def write_fdatasync() -> None:
        os.write(light, data)
        os.fdatasync(light)

    contenders = {
        "write + fsync": write_fsync,
        "append + flush, raw": ours,
        "write + fdatasync": write_fdatasync,
        "append + flush, delta-int8": ours_coded,
    }
    seconds = measure.alternate(contenders, rounds=scale.appends)
    for descriptor in (plain, light):
        os.close(descriptor)
    for each in (store, coded):
        each.close()
    median = measure.medians(seconds)
    return {
        "what": f"one record of {size} float32",
        "milliseconds": {name: value * 1e3 for name, value in median.items()},
        "rate of append + flush over write + fsync": median["write + fsync"] / median["append + flush, raw"],
        "rate of append + flush over write + fdatasync": median["write + fdatasync"] / median["append + flush, raw"],
    }


def real_experts(folder: Path, scale: Scale) -> dict[str, Any]:
    """(d) Bytes and error of the codecs on experts that are trained here."""
    results: dict[str, Any] = {}
    for name in ("digits", "mnist"):
        try:
            trajectories, layout = train_experts(name, scale)
        except Exception as failure:
            if name == "digits":
                raise
            results[name] = f"left out: {failure}"
            continue
        results[name] = {
            "network": f"convolutional, {layout.size} parameters, {scale.epochs} epochs",
            "displacement of one epoch over the weights' norm": [
                statistics.median((after - before).norm() / before.norm() for before, after in pairwise(each)).item()
                for each in trajectories
            ],
            **{
                codec: codec_on(folder / name, layout, trajectories, codec)
                for codec in ("raw", "delta-int8", "half-delta", "lossless")
            },
        }
    return results


def train_experts(name: str, scale: Scale) -> tuple[list[list[Tensor]], ParameterLayout]:
    from distillrs import evaluate
    from distillrs.training import TrainingSettings, train

    data = evaluate.data.load(name)
    images, labels = data.x_train[:1000], data.y_train[:1000]
    images = (images - images.mean()) / images.std()
    settings = TrainingSettings(epochs=scale.epochs, batch_size=256, learning_rate=0.01, momentum=0.0)
    trajectories = []
    for seed in range(2):
        network = evaluate.networks.build("convnet", data.shape, len(data.classes), seed=seed, width=32, depth=2)
        layout = ParameterLayout.of(network)
        snapshots = [layout.flatten(network)]

        def keep(
            epoch: int, trained: nn.Module, snapshots: list[Tensor] = snapshots, layout: ParameterLayout = layout
        ) -> None:
            snapshots.append(layout.flatten(trained))

        train(network, images, labels, settings, seed=seed, after_epoch=keep)
        trajectories.append(snapshots)
    return trajectories, layout


def codec_on(folder: Path, layout: ParameterLayout, trajectories: list[list[Tensor]], codec: str) -> dict[str, Any]:
    path = folder / codec
    path.parent.mkdir(exist_ok=True)
    with Store.create(path, Schema(theta=layout.column(codec=codec))) as store:
        for number, snapshots in enumerate(trajectories):
            with store.begin(f"expert-{number}") as writer:
                for snapshot in snapshots:
                    writer.append(theta=snapshot)
    reader = Store.open(path)
    plain = sum(len(snapshots) for snapshots in trajectories) * layout.size * 4
    relative = []
    for number, snapshots in enumerate(trajectories):
        decoded = reader.read(f"expert-{number}", range(len(snapshots)))
        for step in range(1, len(snapshots)):
            displacement = (snapshots[step] - snapshots[step - 1]).norm()
            relative.append(float((decoded[step] - snapshots[step]).norm() / displacement))
    (segment,) = path.glob("seg-*.safetensors")
    found = {
        "payload bytes over float32": payload_bytes(segment) / plain,
        "segment bytes over float32": segment.stat().st_size / plain,
        "largest error over displacement": max(relative),
        "mean error over displacement": statistics.mean(relative),
        "measured by the store": [reader.codec_error(key) for key in reader.keys()],  # noqa: SIM118  # no mapping
    }
    delta = largest_delta(segment)
    if delta is not None:
        found["largest delta record over float32"] = delta / (layout.size * 4)
    return found


def payload_bytes(segment: Path) -> int:
    """Bytes of all records as they lie in the segment."""
    items = {"U8": 1, "F32": 4}
    with safe_open(segment, framework="np") as file:
        names = [name for name in file.keys() if name.endswith(("/theta", "/theta.bytes"))]  # noqa: SIM118  # no mapping
        parts = [file.get_slice(name) for name in names]
        return sum(int(np.prod(part.get_shape())) * items[part.get_dtype()] for part in parts)


def largest_delta(segment: Path) -> int | None:
    """Bytes of the largest record that is no keyframe, None for a column without any."""
    largest = None
    with safe_open(segment, framework="np") as file:
        for name in file.keys():  # noqa: SIM118  # no mapping
            if name.endswith("/theta.offsets"):
                sizes = np.diff(file.get_tensor(name))
                bases = file.get_tensor(name.replace(".offsets", ".base"))
                deltas = sizes[(bases >= 0) & (bases != np.arange(len(bases)))]
                largest = max([largest or 0, *deltas.tolist()])
    return largest


def opening(folder: Path, scale: Scale) -> dict[str, Any]:
    """Opening a sealed store of many trajectories, in one segment and in many."""
    found: dict[str, Any] = {"what": f"{scale.opened} sealed trajectories of 4 records"}
    for name, every in (("one segment", scale.opened), ("many segments", max(1, scale.opened // 100))):
        path = folder / name.replace(" ", "-")
        with Store.create(path, Schema(theta=Column((8,), "float32")), {"note": "small"}) as store:
            for number in range(scale.opened):
                with store.begin(f"expert-{number:04d}") as writer:
                    for step in range(4):
                        writer.append(theta=torch.full((8,), float(step)))
                if (number + 1) % every == 0:
                    store.seal()

        def open_only(path: Path = path) -> None:
            Store.open(path)

        def open_and_read(path: Path = path) -> None:
            Store.open(path).window("expert-0007", start=0, span=2)

        median = measure.medians(measure.alternate({"open": open_only, "open and read": open_and_read}, rounds=51))
        found[name] = {
            "segments": len(list(path.glob("seg-*"))),
            **{f"milliseconds to {what}": value * 1e3 for what, value in median.items()},
        }
    return found


def folder_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def report(results: dict[str, Any], indent: str = "") -> None:
    for name, value in results.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            report(value, indent + "  ")
        elif isinstance(value, float):
            print(f"{indent}{name}: {value:.4g}", flush=True)
        else:
            print(f"{indent}{name}: {value}", flush=True)


if __name__ == "__main__":
    main()
