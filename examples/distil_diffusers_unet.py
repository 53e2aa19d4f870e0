"""Distils a UNet of diffusers into four steps, and samples with diffusers' own pipeline and scheduler.

    python examples/distil_diffusers_unet.py --out out/distil-diffusers-unet

Trains a small UNet2DModel on scikit-learn's digits by flow matching, records its ways from noise to image in 48 steps,
and trains a copy to go along them in four: at each of four times the copy says the mean velocity up to the next one
(`Endpoint` on the teacher's stored states). Such a student is called like any denoiser, `unet(image, t)`, and Euler's
step at the exported grid is its map. So diffusers' own DDPMPipeline samples it with the exported scheduler, and gives
what `distillrs.diffusion.sample` gives.

Writes the student and its scheduler as diffusers saves them, samples.png and figures.json. Takes a few minutes on two
cores; --quick leaves the teacher as it is randomly initialised and takes seconds. Needs
`pip install 'distillrs[diffusers,plot]'` and scikit-learn.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import diffusers
import torch
from torch import Tensor

import distillrs as dr
from distillrs import diffusion, evaluate, random, schedule
from distillrs.integrations.diffusers import to_scheduler

PATH = schedule.RectifiedFlow()
GRID = schedule.spaced(4, PATH)
FINE = schedule.spaced(48, PATH)
BATCH = 64


class AtTheGrid(diffusers.FlowMatchEulerDiscreteScheduler):
    """The exported scheduler for DDPMPipeline, which sets its scheduler anew and can only name a number of steps."""

    def set_timesteps(self, num_inference_steps: int | None = None, device: object = None, **_: object) -> None:
        """Sets the four levels, whatever number is asked for."""
        super().set_timesteps(device=device, **to_scheduler(GRID, kind="velocity", solver="euler").call)


def unet(width: int) -> diffusers.UNet2DModel:
    """A UNet for 8 x 8 grey images."""
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )


def adapted(model: torch.nn.Module) -> diffusion.DiffusersNetwork:
    """The UNet as the engine calls it: times from 0 to 1000, as flow-matching pipelines tell them."""
    return diffusion.DiffusersNetwork(model, times="t", clock="thousand")


def train(
    objective: diffusion.FlowMap,
    model: torch.nn.Module,
    steps: int,
    rate: float,
    batches: Callable[[dr.Step], diffusion.Batch],
    name: str,
) -> torch.nn.Module:
    """Runs an objective, and returns the moving average of the model."""
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    fade = schedule.Cosine(1.0, 0.0, steps=steps)

    def after(at: dr.fitting.Progress) -> None:
        average.update_parameters(model)
        done = at.step.index + 1
        optimiser.param_groups[0]["lr"] = rate * fade(done)
        if done % max(1, steps // 5) == 0:
            print(f"{name}: step {done} of {steps}, loss {float(at.loss.total.detach()):.4f}", flush=True)

    dr.fit(objective, optimiser, steps, batches=batches, callback=after)
    return average.module.eval()


def train_teacher(model: torch.nn.Module, images: Tensor, steps: int) -> torch.nn.Module:
    """Flow matching: the velocity of noised examples, regressed."""
    objective = diffusion.FlowMap(
        adapted(model),
        path=PATH,
        residual=diffusion.Diagonal(diffusion.Data()),
        pairs=schedule.Triangle(diagonal=1.0, diagonal_law=schedule.Uniform()),
    )

    def batch(step: dr.Step) -> diffusion.Batch:
        return diffusion.Batch(images[random.integers(BATCH, len(images), step=step, name="rows")])

    return train(objective, model, steps, 2e-3, batch, "teacher")


def record(teacher: torch.nn.Module, count: int) -> Tensor:
    """The teacher's states at the four steps' times, on its way in 48: ``[count, 5, 1, 8, 8]``."""
    noise = random.normal(count, 1, 8, 8, step=dr.Step(1), name="stored")
    states = diffusion.sample(diffusion.StateMap(adapted(teacher), PATH), noise, FINE, every=True)
    return states[:: FINE.steps // GRID.steps].transpose(0, 1).contiguous()


def distil(teacher: torch.nn.Module, stored: Tensor, steps: int) -> torch.nn.Module:
    """A copy of the teacher, trained to go from each stored state to the next in one step."""
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    objective = diffusion.FlowMap(
        adapted(student),
        path=PATH,
        states=diffusion.TeacherPath(GRID),
        residual=diffusion.Endpoint(),
        pairs=schedule.Neighbouring(tuple(GRID.times.tolist())),
    )

    def batch(step: dr.Step) -> diffusion.Batch:
        rows = random.integers(BATCH, len(stored), step=step, name="rows")
        return diffusion.Batch(path_states=stored[rows])

    return train(objective, student, steps, 2e-3, batch, "student")


def in_a_pipeline(student: diffusers.UNet2DModel, count: int, out: Path) -> Tensor:
    """Samples of diffusers' pipeline, made of what was saved: ``[count, 1, 8, 8]`` in [0, 1]."""
    student.save_pretrained(out / "unet")
    to_scheduler(GRID, kind="velocity", solver="euler").scheduler.save_pretrained(out / "scheduler")
    pipeline = diffusers.DDPMPipeline(
        diffusers.UNet2DModel.from_pretrained(out / "unet"), AtTheGrid.from_pretrained(out / "scheduler")
    )
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(count, generator, num_inference_steps=GRID.steps, output_type="pt", return_dict=False)[0]


def main() -> None:
    """Everything, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/distil-diffusers-unet"))
    parser.add_argument("--quick", action="store_true", help="a teacher that is not trained, and few steps")
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--stored", type=int, default=2048, help="ways of the teacher to record")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    quick = arguments.quick
    images = 2 * evaluate.data.load("digits").x_train - 1

    model = unet(8 if quick else 32)
    print(f"UNet: {sum(value.numel() for value in model.parameters()):,} parameters")
    teacher = model.eval() if quick else train_teacher(model, images, arguments.teacher_steps)
    teacher.requires_grad_(False)
    student = distil(teacher, record(teacher, 64 if quick else arguments.stored), 20 if quick else arguments.steps)

    count = 16 if quick else 64
    # DDPMPipeline's own noise, so that its samples can be laid beside ours.
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = {
        name: diffusion.StateMap(adapted(each), PATH) for name, each in (("teacher", teacher), ("student", student))
    }
    samples = {
        f"teacher, {FINE.steps} steps": diffusion.sample(maps["teacher"], noise, FINE),
        f"student, {GRID.steps} steps": diffusion.sample(maps["student"], noise, GRID),
        f"teacher, {GRID.steps} steps": diffusion.sample(maps["teacher"], noise, GRID),
    }
    reference = next(iter(samples.values()))
    figures = {name: evaluate.generation.paired_rmse(each, reference) for name, each in samples.items()}
    drawn = in_a_pipeline(student, count, arguments.out)
    ours = (samples[f"student, {GRID.steps} steps"] / 2 + 0.5).clamp(0, 1)
    figures["pipeline beside ours, largest difference"] = float((drawn - ours).abs().max())
    for name, figure in figures.items():
        print(f"{name}: {figure:.4g}" + ("" if "pipeline" in name else " away from the teacher (paired RMSE)"))
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(samples | {"student, in diffusers' pipeline": 2 * drawn - 1}, arguments.out / "samples.png")


def plot(samples: dict[str, Tensor], path: Path) -> None:
    """A row of samples for each sampler; each column begins with the same noise."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(samples), 1, figsize=(7, 1.05 * len(samples)))
    for axis, (name, images) in zip(axes, samples.items(), strict=True):
        axis.imshow(torch.cat(list(images[:10, 0]), 1), cmap="gray", vmin=-1, vmax=1)
        axis.set_title(name, fontsize=8, loc="left", pad=2)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
