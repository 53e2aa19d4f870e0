"""The published schedules against the package that most people take them from: ``pip install distillrs[diffusers]``."""

import math
import os
import warnings

import numpy as np
import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.integrations.diffusers import from_scheduler, to_scheduler
from distillrs.schedule import EDM, VP, Grid, RectifiedFlow, coefficients, ddim, integrate, karras, shifted, spaced

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install distillrs[diffusers]")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
X = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
OUTPUT = torch.tensor([[-0.7, 0.4, 1.1]], dtype=torch.float64)
TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("name", "kind"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("squaredcos_cap_v2", "cosine")]
)
def test_tables_of_betas(name, kind):
    ends = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (1e-4, 0.02)}[name]
    peer = diffusers.DDPMScheduler(beta_schedule=name, beta_start=ends[0], beta_end=ends[1])
    path = VP.betas(kind)
    times = path.clock(torch.arange(1000, dtype=torch.float64), of="index")
    # Their table is a product of a thousand factors in float32, which loses up to 2e-4. The product of their factors in
    # float64 is ours but for the betas' own rounding to float32, a thousand times, and most where hardly anything is
    # left: 1 - 0.999.
    products = (1 - peer.betas.double()).cumprod(0)
    kept = peer.betas < 0.5
    assert int(kept.sum()) > 990
    assert torch.allclose(path.alpha(times)[kept] ** 2, products[kept], rtol=1e-6, atol=1e-9)
    assert torch.allclose(path.alpha(times) ** 2, peer.alphas_cumprod.double(), rtol=2e-4, atol=1e-6)
    exact = VP.table(peer.alphas_cumprod)
    assert torch.allclose(exact.alpha(times) ** 2, peer.alphas_cumprod.double(), rtol=1e-6, atol=0)
    ratios = ((1 - peer.alphas_cumprod.double()) / peer.alphas_cumprod.double()).sqrt()
    assert torch.allclose(exact.clock(times, to="ratio"), ratios, rtol=1e-6)


@pytest.mark.parametrize(
    ("spacing", "offset", "last"),
    [("leading", 0, "data"), ("leading", 1, "first_row"), ("trailing", 0, "data"), ("linspace", 0, "data")],
)
@pytest.mark.parametrize("kind", ["noise", "x0", "v"])
def test_rows_and_steps_of_ddim(spacing, offset, last, kind):
    peer = diffusers.DDIMScheduler(
        **TABLE, timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=last == "data", clip_sample=False,
        prediction_type={"noise": "epsilon", "x0": "sample", "v": "v_prediction"}[kind],
    )  # fmt: skip
    path = VP.table(peer.alphas_cumprod)
    for steps in (5, 20, 50):
        peer.set_timesteps(steps)
        grid = ddim(steps, path, spacing=spacing, offset=offset, last=last)
        rows = path.clock(grid.times[:-1], to="index").round().int()
        assert rows.tolist() == peer.timesteps.tolist()
    peer.set_timesteps(10)
    grid = ddim(10, path, spacing=spacing, offset=offset, last=last)
    if spacing == "linspace":
        return  # their step goes 100 rows back, not to the next of these rows
    for index, row in enumerate(peer.timesteps[:-1] if last == "first_row" else peer.timesteps):
        theirs = peer.step(OUTPUT, int(row), X).prev_sample
        weights = coefficients(Grid(grid.times[index : index + 2], path), "ddim")
        denoised = path.convert(OUTPUT, X, grid.times[index], kind=kind, to="x0")
        ours = weights.state[0] * X + weights.current[0] * denoised
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6), (index, row)


def test_karras_levels():
    for steps in (5, 18):
        peer = diffusers.EulerDiscreteScheduler(**TABLE, use_karras_sigmas=True, sigma_min=0.02, sigma_max=10.0)
        peer.set_timesteps(steps)
        path = VP.table(peer.alphas_cumprod)
        ours = karras(steps, 0.02, 10.0, path=path)
        assert torch.allclose(ours.ratios, peer.sigmas.double(), rtol=1e-6, atol=1e-7)
        edm = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
        edm.set_timesteps(steps)
        assert torch.allclose(karras(steps).sigmas, edm.sigmas.double(), rtol=1e-6, atol=0)


def test_eulers_step_on_a_variance_exploding_path():
    peer = diffusers.EulerDiscreteScheduler(**TABLE, use_karras_sigmas=True, sigma_min=0.02, sigma_max=10.0)
    peer.set_timesteps(6)
    path = EDM(sigma_max=20.0)
    grid = karras(6, 0.02, 10.0, path=path)
    x = X.clone()
    for timestep in peer.timesteps:
        x = peer.step(OUTPUT, timestep, x).prev_sample.double()
    ours = integrate(grid, X, lambda x, t: OUTPUT, solver="euler", kind="noise")
    assert torch.allclose(ours, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_levels_timesteps_and_steps(shift):
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # Its own list goes to a thousandth; explicit levels are the usual pipelines' way.
    peer.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8).tolist())
    grid = shifted(8, shift)
    assert torch.allclose(grid.sigmas, peer.sigmas.double(), rtol=1e-6, atol=1e-7)
    assert torch.allclose(grid.path.clock(grid.times[:-1], to="thousand"), peer.timesteps.double(), rtol=1e-6)
    x = X.clone()
    for timestep in peer.timesteps:
        x = peer.step(OUTPUT, timestep, x).prev_sample.double()
    ours = integrate(grid, X, lambda x, t: OUTPUT, solver="euler")
    assert torch.allclose(ours, x, rtol=1e-6, atol=1e-6)
    assert grid.path == RectifiedFlow()


def test_steps_of_the_second_order_multistep_solver():
    peer = diffusers.DPMSolverMultistepScheduler(
        **TABLE, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing", prediction_type="sample",
        final_sigmas_type="zero", lower_order_final=False, euler_at_final=True,
    )  # fmt: skip
    steps = 20
    peer.set_timesteps(steps)
    path = VP.table(peer.alphas_cumprod)
    times = [*path.clock(peer.timesteps.double(), of="index").tolist(), 0.0]
    grid = Grid(times, path)
    # Theirs are roots of quotients in float32, whose 1 - alpha^2 cancels at the data's end.
    assert torch.allclose(grid.ratios, peer.sigmas.double(), rtol=1e-5, atol=1e-6)

    def denoise(x, t):
        return torch.tanh(x) + t

    x = X.clone()
    for index, timestep in enumerate(peer.timesteps):
        x = peer.step(denoise(x, times[index]), timestep, x).prev_sample.double()
    ours = integrate(grid, X, denoise, solver="dpm++2m", kind="x0")
    # Their step works in float32 whatever it is given, twenty times over.
    assert torch.allclose(ours, x, rtol=1e-5, atol=1e-5)


def test_equal_steps_of_the_logarithm():
    peer = diffusers.EulerDiscreteScheduler(**TABLE, use_exponential_sigmas=True, sigma_min=0.02, sigma_max=10.0)
    peer.set_timesteps(8)
    path = EDM(sigma_max=10.0)
    grid = spaced(8, path, of="log_sigma", end=0.02 / 10, then_data=True)
    assert torch.allclose(grid.sigmas, peer.sigmas.double(), rtol=1e-6, atol=0)


def network(x, t):
    return torch.tanh(x) * 0.5 + 0.1 * t


def play(exported, x, told):
    """A pipeline's loop: its scheduler set anew by the exported arguments."""
    scheduler = exported.scheduler.from_config(exported.scheduler.config)
    scheduler.set_timesteps(**exported.call)
    for index, timestep in enumerate(scheduler.timesteps):
        # Flow-matching schedulers do not scale what the network sees.
        seen = scheduler.scale_model_input(x.clone(), timestep) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, told[index]).to(x), timestep, x).prev_sample.double()
    return x


def test_a_grid_of_a_rectified_flow_exports_and_comes_back():
    grid = Grid([0.99, 0.7, 0.41, 0.05, 0.0], RectifiedFlow())
    for solver in ("euler", "ddim"):
        exported = to_scheduler(grid, kind="velocity", solver=solver)
        back = from_scheduler(exported.scheduler)
        assert back.path == grid.path
        assert torch.allclose(back.times, grid.times, atol=1e-7)
        found = play(exported, X, grid.times)
        ours = integrate(grid, X, network, solver=solver)
        assert torch.allclose(found, ours, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["noise", "x0", "v"])
def test_a_grid_of_a_table_exports_and_comes_back(kind):
    path = VP.betas()
    grid = Grid([*path.clock(torch.tensor([999.0, 700.0, 333.3, 40.0]).double(), of="index").tolist(), 0.0], path)
    exported = to_scheduler(grid, kind=kind)
    back = from_scheduler(exported.scheduler)
    assert torch.allclose(back.ratios, grid.ratios, rtol=1e-6)
    assert torch.allclose(back.times, grid.times, atol=1e-4)
    # Their state is ours over alpha; what the network sees is ours.
    found = play(exported, X / path.alpha(grid.times[0]), grid.times)
    ours = integrate(grid, X, network, solver="ddim", kind=kind)
    # Their levels are float32, and the first, a ratio of 14, multiplies that rounding.
    assert torch.allclose(found, ours, rtol=1e-5, atol=1e-5)
    rows = exported.scheduler.timesteps
    assert torch.allclose(rows.double(), path.clock(grid.times[:-1], to="index"), atol=0.05)


def test_rows_of_a_table_export_to_the_multistep_solver():
    path = VP.betas()
    grid = ddim(20, path)
    exported = to_scheduler(grid, kind="x0", solver="dpm++2m")
    assert exported.scheduler.timesteps.tolist() == path.clock(grid.times[:-1], to="index").round().int().tolist()
    assert torch.allclose(from_scheduler(exported.scheduler).ratios, grid.ratios, rtol=1e-4)
    found = play(exported, X, grid.times)
    ours = integrate(grid, X, network, solver="dpm++2m", kind="x0")
    # Their table is the product of a thousand float32 factors, which is off by up to 2e-4 (see the tables of betas).
    assert torch.allclose(found, ours, rtol=1e-4, atol=1e-4)
    with pytest.raises(ArgumentError, match=r"^grid: got 'row 199.3'"):
        to_scheduler(Grid([0.5, 0.2003, 0.0], path), kind="x0", solver="dpm++2m")


def test_any_levels_of_edm_export():
    path = EDM(sigma_data=0.7)
    grid = Grid([0.9, 0.31, 0.02, 0.001, 0.0], path)
    exported = to_scheduler(grid, kind="F")
    back = from_scheduler(exported.scheduler)
    assert back.path.sigma_data == 0.7
    assert torch.allclose(back.sigmas, grid.sigmas, rtol=1e-6)
    start = X * grid.sigmas[0]
    found = play(exported, start, grid.times)
    scaled = lambda x, t: network(x / torch.hypot(path.sigma(t), torch.tensor(0.7).double()), t)
    ours = integrate(grid, start, scaled, solver="euler", kind="F")
    assert torch.allclose(found, ours, rtol=1e-5, atol=1e-5)
    assert float(exported.scheduler.timesteps[0]) == pytest.approx(0.25 * math.log(72.0), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_scheduler(Grid([0.9, 0.1], RectifiedFlow()), kind="velocity"), "^grid: got 'a last time of 0.1'"),
        (lambda: to_scheduler(shifted(4, 1.0), kind="x0"), "^kind: got 'x0'"),
        (lambda: to_scheduler(shifted(4, 1.0), kind="velocity", solver="heun"), "^solver: got 'heun'"),
        (lambda: to_scheduler(ddim(4, VP.betas()), kind="noise", solver="euler"), "^solver: got 'euler'"),
        (lambda: to_scheduler(spaced(4, VP()), kind="noise"), "^grid: got"),
        (lambda: to_scheduler(karras(4), kind="x0"), "^kind: got 'x0'"),
        (lambda: from_scheduler(diffusers.PNDMScheduler()), "scheduler.*'PNDMScheduler'"),
        (lambda: from_scheduler(diffusers.EulerDiscreteScheduler()), "^scheduler: got 'one that is not set'"),
    ],
)
def test_what_no_scheduler_has_is_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
