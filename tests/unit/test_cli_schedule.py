from __future__ import annotations

import importlib.util
import json
import math

import pytest
import safetensors.torch
import torch

from distillrs import cli, random, schedule
from distillrs.cli import exit_codes, pictures, schedule_picture
from distillrs.cli.schedule import CONFIG, FILE, PICTURE, describe, headline, make_grid, make_path
from distillrs.errors import ArgumentError, DataError
from distillrs.evaluate.beds import Gaussian

# Theirs are not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None


def run(capsys, *words):
    code = cli.main(["schedule", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def page_of(capsys, *words):
    code, text, err = run(capsys, *words, "--json")
    assert code == exit_codes.SUCCESS, err
    return json.loads(text)


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    path, bed = schedule.RectifiedFlow(), Gaussian((1.0, -2.0), (0.2, 0.7))
    score = bed.on(path)

    def velocity(x, t):
        value, kind = score.predict(x, t.expand(len(x)))
        return path.convert(value, x, t, kind=kind, to="velocity")

    noise = random.normal(16, 2, step=0, name="noise", dtype=torch.float64)
    recorded = schedule.Trajectories.record(schedule.spaced(40, path), noise, velocity)
    file = tmp_path_factory.mktemp("trajectories") / "teacher" / "paths.safetensors"
    recorded.save(file)
    return file, recorded


def test_the_default_grid_is_the_one_of_edm(capsys):
    page = page_of(capsys)
    expected = schedule.karras(8)
    assert page["path"] == "edm"
    assert page["times"] == expected.times.tolist()
    assert page["sigmas"] == expected.sigmas.tolist()
    assert page["log_snr"][-1] is None
    assert page["log_snr"][0] == pytest.approx(-2 * math.log(80))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--path", "edm", "--rho", 5, "--sigma-max", 20), schedule.karras(4, rho=5.0, sigma_max=20.0)),
        (("--path", "flow"), schedule.spaced(4, schedule.RectifiedFlow())),
        (("--path", "flow", "--shift", 3), schedule.shifted(4, 3.0)),
        (("--path", "trig", "--spacing", "angle"), schedule.spaced(4, schedule.Trig(), of="angle")),
        (("--path", "vp-table"), schedule.ddim(4, schedule.VP.betas())),
        (("--path", "vp"), schedule.spaced(4, schedule.VP.linear())),
        (("--path", "flow", "--spacing", "karras"), schedule.karras(4, path=schedule.RectifiedFlow())),
        (("--path", "edm", "--sigma-min", 0.1), schedule.karras(4, 0.1)),
        (("--path", "edm", "--spacing", "time", "--sigma-max", 20), schedule.spaced(4, schedule.EDM(20.0))),
    ],
)
def test_each_path_and_spacing(words, expected, capsys):
    assert page_of(capsys, *words, "--steps", 4)["times"] == expected.times.tolist()


def test_equal_steps_of_log_snr_end_in_the_data(capsys):
    page = page_of(capsys, "--path", "vp-cosine", "--spacing", "log-snr", "--steps", 6, "--sigma-min", 0.01)
    assert page["times"][-1] == 0
    levels = torch.tensor(page["log_snr"][:-1])
    assert torch.allclose(levels.diff(), levels.diff().mean().expand(5), rtol=1e-5)
    assert page["log_snr"][-2] == pytest.approx(-2 * math.log(0.01))
    assert page["log_snr"][0] == pytest.approx(-2 * math.log(80))


def test_people_see_a_row_for_each_point_and_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, text, _ = run(capsys, "--path", "flow", "--steps", 4)
    assert code == exit_codes.SUCCESS
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [float(row[1]) for row in rows] == [1.0, 0.75, 0.5, 0.25, 0.0]
    places = [row[-1].index("o") for row in rows]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0, 31)
    assert len({len(row[-1]) for row in rows}) == 1


def test_the_folder_holds_the_grid_its_picture_and_the_scheduler(capsys, tmp_path):
    page = page_of(capsys, "--path", "flow", "--steps", 4, "--out", tmp_path / "grid")
    names = {FILE} | ({PICTURE} if pictures.available() else set()) | ({CONFIG} if HAS_DIFFUSERS else set())
    assert {path.name for path in (tmp_path / "grid").iterdir()} == names == set(page["files"])
    kept = json.loads((tmp_path / "grid" / FILE).read_text())
    assert kept == page
    assert schedule.Grid(kept["times"], schedule.RectifiedFlow()) == schedule.spaced(4, schedule.RectifiedFlow())


@pytest.mark.parametrize("name", ["edm", "vp-table"])
def test_the_title_of_the_picture_fits(name):
    pytest.importorskip("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    grid = make_grid(make_path(name), 20, "table" if name == "vp-table" else "karras")
    figure = schedule_picture.draw(grid, headline(describe(grid, name)))
    canvas = FigureCanvasAgg(figure)
    title = figure.texts[0].get_window_extent(canvas.get_renderer())
    assert 0 < title.x0 < title.x1 < figure.bbox.width


@pytest.mark.parametrize(
    "words", [("--path", "flow"), ("--path", "edm"), ("--path", "vp-table", "--prediction", "v")], ids=lambda w: w[1]
)
def test_the_exported_scheduler_has_the_grid(words, capsys, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from distillrs.integrations.diffusers import from_scheduler

    page = page_of(capsys, *words, "--steps", 5, "--out", tmp_path)
    scheduler = getattr(diffusers, page["scheduler"]["class"]).from_pretrained(tmp_path)
    call = page["scheduler"]["call"]
    if page["path"] == "edm":
        call = {name: torch.tensor(value) for name, value in call.items()}
    scheduler.set_timesteps(**call)
    assert torch.allclose(from_scheduler(scheduler).ratios[:-1], torch.tensor(page["sigmas"][:-1]).double() /
                          torch.tensor(page["alphas"][:-1]).double(), rtol=1e-5)  # fmt: skip


def test_what_diffusers_cannot_say_is_a_remark_and_no_failure(capsys, tmp_path):
    code, _, err = run(capsys, "--path", "trig", "--out", tmp_path)
    assert code == exit_codes.SUCCESS
    assert "no scheduler of diffusers" in err
    assert not (tmp_path / CONFIG).exists()


def test_a_grid_is_chosen_from_trajectories(trajectories, capsys):
    file, recorded = trajectories
    words = ("--path", "flow", "--steps", 4, "--solver", "euler", "--optimise", file)
    found = schedule.optimise_grid(recorded, steps=(4,), solver="euler")[4]
    page = page_of(capsys, *words)
    assert page["times"] == found.grid.times.tolist()
    assert page["error"] == pytest.approx(found.error)
    assert page["times"] != schedule.spaced(4, schedule.RectifiedFlow()).times.tolist()
    code, text, _ = run(capsys, *words)
    assert code == exit_codes.SUCCESS
    assert f"{found.error:.4g}" in text


def test_trajectories_come_back_as_they_were(trajectories):
    file, recorded = trajectories
    back = schedule.Trajectories.load(file, schedule.RectifiedFlow())
    assert back.grid == recorded.grid
    assert torch.equal(back.states, recorded.states)
    assert torch.equal(back.velocities, recorded.velocities)


def test_trajectories_of_another_path_or_kind_are_refused(trajectories, tmp_path):
    file, recorded = trajectories
    with pytest.raises(ArgumentError, match=r"^path: got .*Trig.*, allowed is that of the trajectories"):
        schedule.Trajectories.load(file, schedule.Trig())
    with pytest.raises(DataError, match="there is no file"):
        schedule.Trajectories.load(tmp_path / "none.safetensors", schedule.RectifiedFlow())
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no tensors at all")
    with pytest.raises(ArgumentError, match=r"^trajectories: got"):
        schedule.Trajectories.load(bad, schedule.RectifiedFlow())
    safetensors.torch.save_file({"times": recorded.grid.times, "states": recorded.states}, bad)
    with pytest.raises(ArgumentError, match="without velocities"):
        schedule.Trajectories.load(bad, schedule.RectifiedFlow())
    tensors = {"times": recorded.grid.times, "states": recorded.states, "velocities": recorded.states.clone()}
    safetensors.torch.save_file(tensors, bad)
    with pytest.raises(ArgumentError, match=r"^velocities: got 'shape"):
        schedule.Trajectories.load(bad, schedule.RectifiedFlow())
    tensors |= {"velocities": recorded.velocities}
    for times in (recorded.grid.times[:, None], torch.arange(41), recorded.grid.times * math.nan):
        safetensors.torch.save_file(tensors | {"times": times.contiguous()}, bad)
        with pytest.raises(ArgumentError, match=r"^times: got"):
            schedule.Trajectories.load(bad, schedule.RectifiedFlow())


def page_in(file):
    with safetensors.safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["distillrs"])


def test_paths_are_compared_by_their_levels_and_not_by_their_words(tmp_path):
    """80 and 80.0 are one; two tables of equal ends are told apart, though both are written in short."""
    file = tmp_path / "paths.safetensors"

    def record(path):
        grid = schedule.spaced(6, path, start=1.0, end=0.1)
        schedule.Trajectories.record(grid, torch.ones(2, 3), lambda x, t: x).save(file)

    record(schedule.EDM(80))
    assert schedule.Trajectories.load(file, schedule.EDM(80.0)).grid.path == schedule.EDM(80)
    with pytest.raises(ArgumentError, match=r"^path: got 'EDM\(sigma_max=20.0"):
        schedule.Trajectories.load(file, schedule.EDM(20.0))
    one, other = (torch.linspace(0.99, 0.01, 12).double() for _ in range(2))
    other[5] += 0.03
    assert repr(schedule.VP.table(one)) == repr(schedule.VP.table(other))
    record(schedule.VP.table(one))
    assert schedule.Trajectories.load(file, schedule.VP.table(one)).grid.steps == 6
    with pytest.raises(ArgumentError, match=r"^path: got"):
        schedule.Trajectories.load(file, schedule.VP.table(other))


def test_what_a_file_of_trajectories_says_of_itself_is_checked(trajectories, tmp_path):
    file, recorded = trajectories
    page, bad, path = page_in(file), tmp_path / "bad.safetensors", schedule.RectifiedFlow()
    tensors = {"times": recorded.grid.times, "states": recorded.states, "velocities": recorded.velocities}

    def load(page):
        safetensors.torch.save_file(tensors, bad, None if page is None else {"distillrs": page})
        return schedule.Trajectories.load(bad, path)

    words_alone = {name: value for name, value in page.items() if name not in ("alphas", "sigmas")}
    for said in (None, "{", "[" * 100_000, "3", "{}", json.dumps(page), json.dumps(words_alone)):
        assert load(said).grid == recorded.grid
    for change, argument in (
        ({"version": 2}, "trajectories"),
        ({"alphas": 3}, "path"),
        ({"alphas": page["alphas"][1:]}, "path"),
        ({"sigmas": ["a"] * 41}, "path"),
        ({"sigmas": [None] * 41}, "path"),
    ):
        with pytest.raises(ArgumentError, match=f"^{argument}: got"):
            load(json.dumps(page | change))
    with pytest.raises(ArgumentError, match=r"^path: got"):
        load(json.dumps(words_alone | {"path": "Trig()"}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--path", "edn"), "path: got 'edn'"),
        (("--steps", 0), "steps: got 0"),
        (("--spacing", "log"), "spacing: got 'log'"),
        (("--path", "flow", "--spacing", "table"), "spacing: got 'table'"),
        (("--spacing", "karras", "--shift", 3), "shift: got 3.0"),
        (("--sigma-min", 90), "sigma_min: got 90"),
        (("--path", "vp-table", "--spacing", "log-snr", "--sigma-max", 500), "sigma_max: got 500.0"),
        (("--path", "flow", "--prediction", "noise"), "prediction: got 'noise'"),
        (("--path", "trig", "--prediction", "v"), "prediction: got 'v', allowed is what a scheduler"),
        (("--path", "flow", "--sigma-max", 20), "sigma_max: got 20.0, allowed is nothing with the spacing time"),
        (("--path", "flow", "--spacing", "angle", "--sigma-min", 0.1), "sigma_min: got 0.1, allowed is nothing"),
        (("--path", "flow", "--spacing", "log-snr", "--rho", 3), "rho: got 3.0, allowed is nothing"),
        (("--path", "edm", "--shift", 3, "--sigma-min", 0.1), "sigma_min: got 0.1, allowed is nothing"),
        (("--path", "vp-table", "--sigma-max", 3), "sigma_max: got 3.0, allowed is nothing with the spacing table"),
        (("--path", "flow", "--spacing", "log-snr", "--sigma-max", "inf"), "sigma_max: got inf"),
    ],
)
def test_wrong_arguments_name_themselves(words, message, capsys):
    if "--prediction" in words and not HAS_DIFFUSERS:
        pytest.skip("diffusers is not installed")
    code, out, err = run(capsys, *words)
    assert code == exit_codes.USAGE
    assert out == ""
    assert message in err


def test_choices_that_the_optimiser_makes_itself_are_refused(trajectories, capsys):
    code, _, err = run(capsys, "--path", "flow", "--optimise", trajectories[0], "--spacing", "time")
    assert code == exit_codes.USAGE
    assert "spacing: got 'time'" in err
    code, _, err = run(capsys, "--path", "flow", "--optimise", trajectories[0], "--rho", 3)
    assert code == exit_codes.USAGE
    assert "rho: got 3.0, allowed is nothing with --optimise" in err
    code, _, err = run(capsys, "--path", "flow", "--optimise", "no/such/file")
    assert code == exit_codes.MISSING
    assert "no/such/file" in err
