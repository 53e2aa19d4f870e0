from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from distillrs.cli import pictures
from distillrs.errors import ArgumentError

PNG = b"\x89PNG\r\n\x1a\n"


def grid(examples, labels, classes=("zero", "one", "two"), **options):
    return pictures.Grid(np.asarray(examples, dtype=np.float32), np.asarray(labels), classes, "title", **options)


def test_one_example_per_class_is_a_block_in_class_order():
    layout = pictures.arrange(np.array([2, 0, 1, 5, 3, 4]))
    assert (layout.rows, layout.columns) == (2, 5)
    assert [index for _, _, index in layout.cells] == [1, 2, 0, 4, 5, 3]
    assert layout.row_classes == ()
    assert layout.left_out == 0


def test_several_examples_per_class_stand_in_the_row_of_their_class():
    layout = pictures.arrange(np.array([1, 0, 1, 0, 1]))
    assert layout.row_classes == (0, 1)
    assert layout.cells == ((0, 0, 1), (0, 1, 3), (1, 0, 0), (1, 1, 2), (1, 2, 4))


def test_what_finds_no_place_is_counted():
    labels = np.repeat(np.arange(100), 50)
    layout = pictures.arrange(labels)
    assert len(layout.cells) + layout.left_out == len(labels)
    assert len(layout.cells) == 200
    assert layout.columns == 10
    single = pictures.arrange(np.arange(1000))
    assert len(single.cells) == 200
    assert single.left_out == 800


def test_pixels_are_scaled_from_their_bounds_and_cut_off_outside():
    grey = pictures.as_pixels(np.array([[[-1.0, 0.0, 4.0, 8.0, 9.0]]]), (0.0, 8.0))
    np.testing.assert_allclose(grey, [[0, 0, 0.5, 1, 1]])
    colour = pictures.as_pixels(np.arange(12.0).reshape(3, 2, 2), (0.0, 11.0))
    assert colour.shape == (2, 2, 3)
    np.testing.assert_allclose(colour[1, 0] * 11, [2, 6, 10])
    assert pictures.as_pixels(np.zeros(7), (0.0, 1.0)) is None
    assert pictures.as_pixels(np.zeros((5, 4, 4)), (0.0, 1.0)) is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7), (8, 8), (30,), (4, 5, 6)])
def test_any_shape_is_drawn_and_saved_whole(shape, tmp_path):
    examples = np.linspace(-1, 2, 6 * int(np.prod(shape))).reshape(6, *shape)
    figure = pictures.draw_grid(grid(examples, [0, 0, 1, 1, 2, 2], subtitle="a subtitle"))
    pictures.save(figure, tmp_path / "condensed.png")
    assert (tmp_path / "condensed.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["condensed.png"]


def test_every_class_name_is_in_the_picture():
    figure = pictures.draw_grid(grid(np.zeros((3, 1, 4, 4)), [0, 1, 2]))
    assert {axes.get_title() for axes in figure.axes} == {"zero", "one", "two"}
    rows = pictures.draw_grid(grid(np.zeros((6, 1, 4, 4)), [0, 1, 2] * 2))
    assert {text.get_text() for axes in rows.axes for text in axes.texts} == {"zero", "one", "two"}


def test_names_lie_within_the_page():
    long = ["a class with a remarkably long name", "b"]
    figure = pictures.draw_grid(grid(np.zeros((4, 1, 4, 4)), [0, 1, 0, 1], classes=long))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes:
        for text in axes.texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width


def test_equal_data_give_equal_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        pictures.save(pictures.draw_grid(grid(np.ones((1, 1, 4, 4)), [1])), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def curve(**changes):
    values = {
        "steps": range(50),
        "losses": [1 / (step + 1) for step in range(50)],
        "validation": [(0, 0.2), (25, 0.5), (49, 0.4)],
        "best_step": 25,
        "references": {"random real": 0.3},
        "title": "curve",
    }
    return pictures.Curve(**(values | changes))


def test_curve_marks_the_kept_step_and_the_references():
    upper, lower = pictures.draw_curve(curve()).axes
    kept = next(line for line in lower.lines if line.get_label() == "kept")
    assert (list(kept.get_xdata()), list(kept.get_ydata())) == ([25], [0.5])
    assert any(line.get_label() == "random real" for line in lower.lines)
    assert upper.get_yscale() == "log"


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": [], "losses": [], "validation": [], "best_step": None, "references": {}},
        {"losses": [float("nan")] * 50},
        {"losses": [0.0] * 50},
        {"validation": [(3, 0.5)], "best_step": 3},
    ],
)
def test_curve_of_odd_runs_is_drawn(changes, tmp_path):
    pictures.save(pictures.draw_curve(curve(**changes)), tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)


def test_running_mean_is_over_the_last_values():
    np.testing.assert_allclose(pictures.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2), [1, 2, 4, 6])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 1, 4, 4)), [0]), "labels"),
        ((np.zeros((2, 1, 4, 4)), [0, 3]), "labels"),
        ((np.zeros((0, 1, 4, 4)), []), "examples"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        grid(*arguments)
    with pytest.raises(ArgumentError, match="bounds"):
        grid(np.zeros((1, 1, 4, 4)), [0], bounds=(1.0, 1.0))


def test_importing_pictures_does_not_import_matplotlib():
    code = "import sys, distillrs.cli.pictures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
