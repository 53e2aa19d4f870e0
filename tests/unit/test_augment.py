from __future__ import annotations

import math

import pytest
import torch

from distillrs import Step
from distillrs.augment import Augmentation, AugmentationPlan, Draw, apply
from distillrs.errors import ArgumentError, UnknownNameError

ALL = "color_crop_cutout_flip_scale_rotate"
SHAPE = (3, 9, 8)


def images(count: int = 4, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    values = torch.linspace(-1, 2, count * math.prod(shape), dtype=dtype)
    return (7 * values).sin().reshape(count, *shape)


def one(operation: str, *parameters: float) -> AugmentationPlan:
    return AugmentationPlan((Draw(operation, torch.tensor([parameters], dtype=torch.float64)),), None, SHAPE)


def test_brightness_adds_a_constant() -> None:
    x = images()
    torch.testing.assert_close(apply(x, one("color", 0.3, 1.0, 1.0)), x + 0.3)


def test_saturation_zero_leaves_the_mean_of_the_channels() -> None:
    x = images()
    torch.testing.assert_close(apply(x, one("color", 0.0, 0.0, 1.0)), x.mean(1, keepdim=True).expand_as(x))


def test_contrast_scales_about_the_mean_of_the_image() -> None:
    x = images()
    y = apply(x, one("color", 0.0, 1.0, 1.4))
    torch.testing.assert_close(y.mean((1, 2, 3)), x.mean((1, 2, 3)))
    torch.testing.assert_close(y - y.mean((1, 2, 3), keepdim=True), 1.4 * (x - x.mean((1, 2, 3), keepdim=True)))


def test_crop_shifts_and_fills_with_zeros() -> None:
    x = images()
    y = apply(x, one("crop", 2, -1))
    torch.testing.assert_close(y[:, :, :-2, 1:], x[:, :, 2:, :-1], rtol=0, atol=0)
    assert y[:, :, -2:].abs().sum() == 0
    assert y[:, :, :, 0].abs().sum() == 0


def test_cutout_zeroes_its_rectangle_and_nothing_else() -> None:
    x = images()
    y = apply(x, one("cutout", -1, 3, 4, 6))
    expected = x.clone()
    expected[:, :, 0:4, 3:6] = 0
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_flip_is_an_involution() -> None:
    x = images()
    once = apply(x, one("flip", 1))
    torch.testing.assert_close(once, x.flip(3), rtol=0, atol=0)
    torch.testing.assert_close(apply(once, one("flip", 1)), x, rtol=0, atol=0)
    torch.testing.assert_close(apply(x, one("flip", 0)), x, rtol=0, atol=0)


def test_a_quarter_turn_moves_pixels_and_four_of_them_nothing() -> None:
    x = images(shape=(3, 8, 8))
    plan = AugmentationPlan((Draw("rotate", torch.tensor([[math.pi / 2]], dtype=torch.float64)),), None, (3, 8, 8))
    turned = apply(x, plan)
    assert any(torch.allclose(turned, x.rot90(k, (2, 3)), atol=1e-12) for k in (1, 3))
    for _ in range(3):
        turned = apply(turned, plan)
    torch.testing.assert_close(turned, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("operation", "parameters", "matrix"),
    [
        ("scale", (0.87, 1.19), [[1.19, 0.0, 0.0], [0.0, 0.87, 0.0]]),
        ("rotate", (0.21,), None),
    ],
)
def test_bilinear_sampling_equals_torchs_grid_sample(
    operation: str, parameters: tuple[float, ...], matrix: list[list[float]] | None
) -> None:
    shape = (3, 8, 8)
    x = images(shape=shape)
    if matrix is None:
        c, s = math.cos(parameters[0]), math.sin(parameters[0])
        matrix = [[c, -s, 0.0], [s, c, 0.0]]
    theta = torch.tensor(matrix, dtype=torch.float64).expand(len(x), 2, 3)
    grid = torch.nn.functional.affine_grid(theta, list(x.shape), align_corners=False)
    expected = torch.nn.functional.grid_sample(x, grid, align_corners=False)
    plan = AugmentationPlan((Draw(operation, torch.tensor([parameters], dtype=torch.float64)),), None, shape)
    torch.testing.assert_close(apply(x, plan), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("operation", [*ALL.split("_"), ALL])
def test_first_and_second_derivatives_equal_finite_differences(operation: str) -> None:
    augmentation = Augmentation(operation, combine="all")
    plan = augmentation.plan(2, step=Step(3, seed=5), shape=(2, 5, 4))
    x = images(2, shape=(2, 5, 4)).requires_grad_()
    # Squared, so that the second derivative is not zero everywhere.
    assert torch.autograd.gradcheck(lambda value: augmentation.apply(value, plan) ** 2, (x,))
    assert torch.autograd.gradgradcheck(lambda value: augmentation.apply(value, plan) ** 3, (x,))


def test_the_empty_strategy_is_the_identity() -> None:
    x = images()
    augmentation = Augmentation("")
    assert augmentation.apply(x, augmentation.plan(len(x), step=0, shape=SHAPE)) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    augmentation = Augmentation(ALL, combine="all")
    x = images(dtype=dtype)
    y = augmentation.apply(x, augmentation.plan(len(x), step=1, shape=SHAPE))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_a_plan_repeats_from_seed_and_step_alone() -> None:
    augmentation = Augmentation(ALL)
    x = images(16)
    first = augmentation.apply(x, augmentation.plan(16, step=Step(4, seed=9), shape=SHAPE))
    torch.manual_seed(123)
    again = augmentation.apply(x, augmentation.plan(16, step=Step(4, seed=9), shape=SHAPE))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    for other in (Step(5, seed=9), Step(4, seed=10)):
        assert not torch.equal(first, augmentation.apply(x, augmentation.plan(16, step=other, shape=SHAPE)))
    assert not torch.equal(first, apply(x, augmentation.plan(16, step=Step(4, seed=9), shape=SHAPE, name="other")))


def test_torchs_own_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Augmentation(ALL).plan(8, step=0, shape=SHAPE)
    assert torch.equal(before, torch.get_rng_state())


def test_a_siamese_plan_does_the_same_to_every_image_of_sets_of_any_size() -> None:
    augmentation = Augmentation(ALL, siamese=True, combine="all")
    plan = augmentation.plan(2, step=Step(7, first_unit=40), shape=SHAPE)
    x = images(1).expand(5, *SHAPE)
    y = augmentation.apply(x, plan)
    torch.testing.assert_close(y, y[:1].expand_as(y), rtol=0, atol=0)
    torch.testing.assert_close(augmentation.apply(x[:2], plan), y[:2], rtol=0, atol=0)
    elsewhere = augmentation.plan(64, step=Step(7, first_unit=0), shape=SHAPE)
    torch.testing.assert_close(augmentation.apply(x, elsewhere), y, rtol=0, atol=0)


def test_each_image_gets_exactly_one_operation_and_all_of_them_occur() -> None:
    plan = Augmentation(ALL).plan(600, step=0, shape=SHAPE)
    rows = [draw.rows for draw in plan.draws]
    assert {draw.operation for draw in plan.draws} == set(ALL.split("_"))
    taken = torch.cat([each for each in rows if each is not None])
    assert torch.equal(taken.sort().values, torch.arange(600))
    for each in rows:
        assert each is not None
        assert 60 <= len(each) <= 140  # 100 expected, standard deviation 9


def test_draws_keep_to_their_ranges_and_reach_their_ends() -> None:
    augmentation = Augmentation(ALL, combine="all")
    plan = augmentation.plan(2000, step=0, shape=(1, 16, 12))
    drawn = {draw.operation: draw.parameters for draw in plan.draws}
    brightness, saturation, contrast = drawn["color"].unbind(1)
    for values, low, high in (
        (brightness, -0.5, 0.5),
        (saturation, 0.0, 2.0),
        (contrast, 0.5, 1.5),
        (drawn["scale"], 1 / 1.2, 1.2),
        (drawn["rotate"], -math.radians(15), math.radians(15)),
    ):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
    assert set(drawn["crop"][:, 0].tolist()) == set(range(-2, 3))
    assert set(drawn["crop"][:, 1].tolist()) == set(range(-2, 3))  # 1.5 pixels count as 2
    assert 0.45 < drawn["flip"].mean() < 0.55
    top, left, bottom, right = drawn["cutout"].unbind(1)
    assert torch.equal(bottom - top, torch.full_like(top, 8))
    assert torch.equal(right - left, torch.full_like(left, 6))
    assert set(top.tolist()) == set(range(-4, 13))
    assert set(left.tolist()) == set(range(-3, 10))


@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 3, 4, 5), (3, 0, 8)])
def test_shapes_that_are_no_images_are_refused_with_what_is_allowed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"shape: got .*\(channels, height, width\)"):
        Augmentation(ALL).plan(2, step=0, shape=shape)


def test_images_that_do_not_fit_the_plan_are_refused() -> None:
    augmentation = Augmentation(ALL)
    plan = augmentation.plan(4, step=0, shape=SHAPE)
    with pytest.raises(ArgumentError, match="images: got '3 images', allowed is 4"):
        augmentation.apply(images(3), plan)
    with pytest.raises(ArgumentError, match=r"images: got \(4, 3, 8, 9\)"):
        augmentation.apply(images(4).transpose(2, 3), plan)
    with pytest.raises(ArgumentError, match="floating images"):
        augmentation.apply(images(4).to(torch.int64), plan)


def test_an_unknown_operation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cutout'"):
        Augmentation("color_cutuot")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("combine", "two"),
        ("brightness", -1.0),
        ("saturation", math.nan),
        ("crop", 1.5),
        ("cutout", -0.1),
        ("flip", 2.0),
        ("scale", 0.9),
        ("rotate", math.inf),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got"):
        Augmentation("color", **{name: value})  # type: ignore[arg-type]  # wrong on purpose


def test_a_repeated_operation_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at most once"):
        Augmentation("flip_flip")


def test_half_precision_places_are_exact_on_wide_images() -> None:
    # In half precision column 2049 would be 2048.
    x = torch.arange(4096, dtype=torch.float64).remainder(7).reshape(1, 1, 1, 4096)
    plan = AugmentationPlan((Draw("scale", torch.ones(1, 2, dtype=torch.float64)),), None, (1, 1, 4096))
    torch.testing.assert_close(apply(x.bfloat16(), plan), x.bfloat16(), rtol=0, atol=0)
