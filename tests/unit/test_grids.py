import math
import pickle

import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.schedule import EDM, VP, Grid, RectifiedFlow, Trig, ddim, karras, shifted, spaced


def test_karras_grid_is_edms():
    grid = karras(18, sigma_min=0.002, sigma_max=80.0, rho=7.0, path=EDM())
    levels = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert grid.steps == 18
    assert grid.times.shape == (19,)
    assert torch.allclose(grid.sigmas, torch.tensor([*levels, 0.0], dtype=torch.float64), rtol=1e-12, atol=0)
    assert float(grid.sigmas[-1]) == 0
    assert karras(18) == grid
    assert karras(1).sigmas.tolist() == [80.0, 0.0]
    on_vp = karras(10, 0.01, 20.0, path=VP())
    assert float(on_vp.ratios[0]) == pytest.approx(20.0, rel=1e-12)
    assert float(on_vp.ratios[-2]) == pytest.approx(0.01, rel=1e-10)


def test_equal_steps_of_any_clock():
    assert spaced(4, RectifiedFlow()).times.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    grid = spaced(5, EDM(), of="log_snr", start=1.0, end=0.002 / 80)
    assert torch.allclose(grid.log_snr.diff(), grid.log_snr.diff().mean(), rtol=1e-12)
    grid = spaced(6, EDM(), of="log_sigma", end=1e-4, then_data=True)
    assert grid.steps == 6
    assert float(grid.times[-1]) == 0
    assert torch.allclose(grid.sigmas[:-1].log().diff(), grid.sigmas[:-1].log().diff().mean(), rtol=1e-12)
    angles = spaced(3, RectifiedFlow(), of="angle")
    assert torch.allclose(
        RectifiedFlow().clock(angles.times, to="angle").diff() * 6 / math.pi, torch.tensor(-1.0).double()
    )


def test_shifted_grids_are_shifted_once():
    grid = shifted(4, 3.0)
    plain = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert torch.allclose(grid.times, 3 * plain / (1 + 2 * plain))
    assert shifted(4, 1.0) == spaced(4, RectifiedFlow())


def test_rows_of_ddim_tables():
    path = VP.betas()
    rows = lambda grid: path.clock(grid.times, to="index").round().int().tolist()
    assert rows(ddim(4, path)) == [999, 749, 499, 249, -1]
    assert rows(ddim(4, path, spacing="leading")) == [750, 500, 250, 0, -1]
    assert rows(ddim(4, path, spacing="leading", offset=1, last="first_row")) == [751, 501, 251, 1, 0]
    assert rows(ddim(4, path, spacing="linspace")) == [999, 666, 333, 0, -1]
    assert float(ddim(4, path).times[-1]) == 0


def test_grids_compare_travel_and_move_between_paths():
    grid = karras(5)
    assert pickle.loads(pickle.dumps(grid)) == grid
    assert hash(karras(5)) == hash(grid)
    moved = grid.on(Trig(0.5))
    assert torch.allclose(moved.log_snr[:-1], grid.log_snr[:-1])
    assert float(moved.times[-1]) == 0
    assert "Grid([1, " in repr(grid)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Grid([1.0], EDM()), "^times: got"),
        (lambda: Grid([0.5, 0.5], EDM()), "^times: got '0.5 after 0.5'"),
        (lambda: Grid([0.0, 1.0], EDM()), "^times: got '1.0 after 0.0'"),
        (lambda: Grid([1.5, 0.0], EDM()), "^times: got 1.5"),
        (lambda: Grid([math.nan, 0.0], EDM()), "^times: got nan"),
        (lambda: Grid([1.0, 0.0], "edm"), "^path: got 'edm'"),
        (lambda: karras(0), "^steps: got 0"),
        (lambda: karras(4.0), "^steps: got 4.0"),
        (lambda: karras(4, rho=0.0), "^rho"),
        (lambda: karras(4, 3.0, 2.0), "^sigma_min: got 3.0"),
        (lambda: karras(4, 0.1, 90.0, path=EDM()), "^sigma: got 90"),
        (lambda: spaced(4, EDM(), start=0.2, end=0.3), "^end: got 0.3"),
        (lambda: spaced(4, EDM(), of="log_snr"), "^end: got 0.0.*log_snr"),
        (lambda: spaced(4, RectifiedFlow(), of="ratio"), "^start: got 1.0"),
        (lambda: spaced(1, EDM(), end=0.1, then_data=True), "^steps: got 1"),
        (lambda: shifted(4, 0.0), "^shift"),
        (lambda: ddim(4, EDM()), "^clock: got 'index'"),
        (lambda: ddim(1001, VP.betas()), "^steps: got 1001"),
        (lambda: ddim(4, VP.betas(), spacing="even"), "^spacing: got 'even'"),
        (lambda: ddim(4, VP.betas(), offset=1), "^offset: got 1"),
        (lambda: ddim(4, VP.betas(), spacing="leading", offset=999), "^offset: got 999"),
        (lambda: ddim(4, VP.betas(), last="row"), "^last: got 'row'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
