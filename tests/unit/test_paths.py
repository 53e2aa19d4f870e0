import math
import pickle

import pytest
import torch

from distillrs.errors import ArgumentError
from distillrs.schedule import EDM, VP, AlphaTable, CosineAlpha, Path, RectifiedFlow, Residual, SubVP, Table, Trig
from distillrs.testing import check_path

ALL = [
    EDM(), RectifiedFlow(), Trig(), Trig(0.5), VP(), VP.cosine(), VP.betas("linear"), VP.betas(), VP.betas("cosine"),
    SubVP(), SubVP(CosineAlpha()), Residual(),
]  # fmt: skip
x0 = torch.tensor([1.0, -2.0], dtype=torch.float64)
noise = torch.tensor([0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("path", ALL, ids=str)
def test_the_check_for_paths_accepts_ours(path):
    check_path(path)


@pytest.mark.parametrize("path", ALL, ids=str)
def test_paths_compare_by_content_and_can_be_pickled(path):
    copy = pickle.loads(pickle.dumps(path))
    assert copy == path
    assert hash(copy) == hash(path)
    assert torch.equal(copy.log_snr(0.3), path.log_snr(0.3))


def test_the_published_coefficients():
    time = 0.37
    assert float(EDM().sigma(time)) == 80 * time
    assert float(RectifiedFlow().alpha(time)) == 1 - time
    assert float(Trig(0.5).sigma(time)) == pytest.approx(0.5 * math.sin(math.pi * time / 2), rel=1e-15)
    exponent = -0.25 * time**2 * 19.9 - 0.5 * time * 0.1
    assert float(VP().alpha(time)) == pytest.approx(math.exp(exponent), rel=1e-14)
    assert float(VP().sigma(time)) == pytest.approx(math.sqrt(1 - math.exp(2 * exponent)), rel=1e-14)
    assert float(SubVP().sigma(time)) == pytest.approx(1 - math.exp(2 * exponent), rel=1e-14)
    cosine = math.cos((time + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    assert float(VP.cosine().alpha(time)) == pytest.approx(cosine, rel=1e-14)


def test_tables_of_betas_are_their_cumulative_products():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    path = VP.betas("scaled_linear")
    rows = torch.tensor([0.0, 1.0, 500.0, 999.0], dtype=torch.float64)
    times = path.clock(rows, of="index")
    expected = (1 - betas).cumprod(0)[rows.long()]
    assert torch.allclose(path.alpha(times) ** 2, expected, rtol=1e-12)
    assert torch.allclose(path.clock(times, to="index"), rows, atol=1e-10)
    assert float(VP.betas("linear", 10, 0.1, 0.2).alpha(0.1)) == pytest.approx(math.sqrt(0.9), rel=1e-14)
    last = VP.betas("cosine")
    assert float(last.alpha(1.0) / last.alpha(0.999)) == pytest.approx(math.sqrt(0.001), rel=1e-9)


def test_the_levels_of_residual_shifting_are_the_published_ones():
    path = Residual(levels=15, kappa=2.0, power=0.3)
    first = min((0.04 / 2) ** 2, 0.001)
    base = math.exp(math.log(0.999 / first) / 2 / 14)
    for level in range(1, 16):
        root = math.sqrt(first) * base ** (((level - 1) / 14) ** 0.3 * 14)
        assert float(path.sigma(level / 15)) == pytest.approx(2 * root, rel=1e-12)
        assert float(path.alpha(level / 15)) == pytest.approx(1 - root**2, rel=1e-9)
    reference = torch.tensor([4.0, 4.0], dtype=torch.float64)
    end = path.corrupt(x0, noise, 1.0, reference=reference)
    assert torch.allclose(end, 0.001 * x0 + 0.999 * reference + 2 * math.sqrt(0.999) * noise, rtol=1e-12)


def test_the_velocity_between_two_images_is_the_slope_of_the_state():
    path, time, step = Residual(), 0.41, 1e-6
    reference = torch.tensor([4.0, -1.0], dtype=torch.float64)
    ahead, state, behind = (path.corrupt(x0, noise, t, reference=reference) for t in (time + step, time, time - step))
    found = path.convert(x0, state, time, kind="x0", to="velocity", reference=reference)
    assert torch.allclose(found, (ahead - behind) / (2 * step), rtol=1e-6)
    assert torch.allclose(path.convert(found, state, time, kind="velocity", to="x0", reference=reference), x0)


def test_at_time_0_the_state_is_the_data():
    for path in ALL:
        reference = 7 * noise if isinstance(path, Residual) else None
        assert torch.equal(path.corrupt(x0, noise, 0.0, reference=reference), x0)
        assert math.isinf(float(path.log_snr(0.0)))
        assert float(path.time_of_log_snr(math.inf)) == 0.0


@pytest.mark.parametrize("path", [RectifiedFlow(), Trig(), VP.cosine(), SubVP(CosineAlpha())], ids=str)
def test_at_time_1_of_a_path_without_signal_the_state_is_noise(path):
    assert float(path.alpha(1.0)) == 0.0
    assert torch.equal(path.corrupt(x0, noise, 1.0), noise)
    assert float(path.log_snr(1.0)) == -math.inf
    assert float(path.time_of_log_snr(-math.inf)) == pytest.approx(1.0, abs=1e-15)


@pytest.mark.parametrize("path", [EDM(), RectifiedFlow(), Trig(), VP(), VP.cosine(), VP.betas(), SubVP()], ids=str)
def test_limits_at_the_data_end(path):
    """Everything but the data themselves tells the data where there is no noise; they tell nothing about the noise."""
    for kind in ("noise", "velocity", "score"):
        assert torch.equal(path.convert(noise, x0, 0.0, kind=kind, to="x0"), x0)
    assert torch.allclose(path.convert(noise, x0, 0.0, kind="v", to="x0"), x0)
    assert torch.allclose(path.convert(noise, x0, 0.0, kind="v", to="noise"), noise)
    assert torch.equal(path.convert(x0, x0, 0.0, kind="x0", to="x0"), x0)
    for to in ("noise", "score", "velocity", "v"):
        assert bool(path.convert(x0, x0, 0.0, kind="x0", to=to).isnan().all())
    expected = 0 * noise
    if not isinstance(path, VP):
        drift, growth = path.alpha_derivative(0.0), path.sigma_derivative(0.0)
        expected = (noise - drift * x0) / growth
    # A finite velocity where the path's is infinite for any noise means no noise.
    assert torch.allclose(path.convert(noise, x0, 0.0, kind="velocity", to="noise"), expected)


@pytest.mark.parametrize("path", [RectifiedFlow(), Trig(), VP.cosine(), SubVP(CosineAlpha())], ids=str)
def test_limits_at_the_noise_end(path):
    value = x0
    assert torch.allclose(path.convert(value, noise, 1.0, kind="x0", to="noise"), noise)
    assert torch.allclose(path.convert(value, noise, 1.0, kind="x0", to="score"), -noise)
    found = path.convert(value, noise, 1.0, kind="x0", to="velocity")
    expected = path.alpha_derivative(1.0) * value + path.sigma_derivative(1.0) * noise
    assert torch.allclose(found, expected)
    assert torch.allclose(path.convert(found, noise, 1.0, kind="velocity", to="x0"), value)
    assert torch.allclose(path.convert(value, noise, 1.0, kind="x0", to="v"), -value)
    assert torch.allclose(path.convert(-value, noise, 1.0, kind="v", to="x0"), value)
    for kind in ("noise", "score"):
        for to in ("x0", "velocity", "v"):
            assert not bool(path.convert(noise, noise, 1.0, kind=kind, to=to).isfinite().any())
    assert torch.allclose(path.convert(noise, noise, 1.0, kind="noise", to="score"), -noise)
    assert torch.allclose(path.convert(noise, noise, 1.0, kind="score", to="noise"), -noise)


def test_the_network_of_edm_is_that_of_its_preconditioning_and_minus_that_of_trigflow():
    sigma, deviation = 3.0, 0.5
    path = EDM(80.0, deviation)
    state = x0 + sigma * noise
    network = torch.tensor([0.2, -0.7], dtype=torch.float64)
    skip = deviation**2 / (sigma**2 + deviation**2)
    out = sigma * deviation / math.sqrt(sigma**2 + deviation**2)
    denoised = skip * state + out * network
    assert torch.allclose(path.convert(network, state, sigma / 80, kind="F", to="x0"), denoised, rtol=1e-13)
    trig = Trig(deviation)
    moved = path.move(state, sigma / 80, trig)
    assert float(trig.clock(moved.time, to="angle")) == pytest.approx(math.atan(sigma / deviation), rel=1e-14)
    assert torch.allclose(trig.convert(-network, moved.x, moved.time, kind="F", to="x0"), denoised, rtol=1e-12)
    with pytest.raises(ArgumentError, match=r"^kind: got 'F'.*RectifiedFlow"):
        RectifiedFlow().convert(network, state, 0.5, kind="F", to="x0")


def test_clocks_name_the_same_level():
    path = EDM()
    sigma = torch.tensor([0.002, 1.0, 80.0], dtype=torch.float64)
    assert torch.allclose(path.clock(sigma, of="sigma"), sigma / 80)
    assert torch.allclose(path.clock(sigma, of="sigma", to="log_snr"), -2 * sigma.log())
    assert torch.allclose(path.clock(sigma, of="ratio", to="angle"), (sigma / 0.5).atan())
    assert float(RectifiedFlow().clock(250.0, of="thousand")) == 0.25
    assert float(RectifiedFlow().clock(0.25, to="ratio")) == pytest.approx(1 / 3)
    assert float(RectifiedFlow().clock(0.25, to="sigma")) == 0.25
    names = ("thousand", "sigma", "log_sigma", "ratio", "log_snr", "angle")
    times = torch.linspace(0.05, 0.9, 7, dtype=torch.float64)
    for path in ALL:
        for of in names:
            for to in names:
                there = path.clock(path.clock(times, to=of), of=of, to=to)
                assert torch.allclose(path.clock(there, of=to), times, atol=1e-9), (path, of, to)
    assert RectifiedFlow().clock([0.0, 1.0][0], to="ratio") == 0
    assert math.isinf(float(RectifiedFlow().clock(1.0, to="ratio")))
    assert float(RectifiedFlow().clock(math.pi / 2, of="angle")) == pytest.approx(1.0, abs=1e-15)


def test_paths_work_under_vmap_and_nested_forward_derivatives():
    path = VP()
    times = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    mapped = torch.func.vmap(path.log_snr)(times)
    assert torch.allclose(mapped, path.log_snr(times))
    rates = torch.func.vmap(torch.func.grad(path.log_snr))(times)
    expected = 2 * (path.alpha_derivative(times) / path.alpha(times) - path.sigma_derivative(times) / path.sigma(times))
    assert torch.allclose(rates, expected)
    table = VP.betas()
    assert torch.allclose(torch.func.vmap(table.log_snr)(times), table.log_snr(times))
    assert torch.allclose(torch.func.vmap(table.time_of_log_snr)(table.log_snr(times)), times)


def test_strided_and_empty_tensors():
    wide = torch.randn(4, 6, dtype=torch.float64)
    path = Trig()
    state = path.corrupt(wide.T, wide.T.contiguous(), 0.3)
    assert torch.equal(state, path.corrupt(wide.T.contiguous(), wide.T.contiguous(), 0.3))
    empty = torch.empty(0, 3)
    assert path.corrupt(empty, empty, torch.empty(0)).shape == (0, 3)
    assert path.convert(empty, empty, 0.5, kind="x0", to="v").shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RectifiedFlow().alpha(1.5), r"^t: got 1\.5, allowed is times from 0 to 1"),
        (lambda: RectifiedFlow().alpha(math.nan), "^t: got nan"),
        (lambda: RectifiedFlow().alpha(torch.tensor([0.5, 500.0])), "^t: got 500"),
        (lambda: RectifiedFlow().alpha(torch.tensor([1])), "^t: got 'a tensor of torch.int64'"),
        (lambda: RectifiedFlow().alpha("x"), "^t: got 'x'"),
        (lambda: RectifiedFlow().corrupt(x0, noise[:1], 0.5), "^noise: got 'shape"),
        (lambda: RectifiedFlow().corrupt(x0.long(), noise, 0.5), "^x0: got 'a tensor of torch.int64'"),
        (lambda: RectifiedFlow().corrupt(x0, noise, torch.rand(3)), r"^t: got 'a tensor of shape \(3,\)'"),
        (lambda: RectifiedFlow().corrupt(x0, noise, torch.rand(2, 1)), r"^t: got 'a tensor of shape \(2, 1\)'"),
        (lambda: RectifiedFlow().corrupt(x0, noise, 0.5, reference=x0), "^reference: got 'a tensor'"),
        (lambda: RectifiedFlow().convert(x0, noise, 0.5, kind="eps", to="x0"), "kind.*'eps'"),
        (lambda: RectifiedFlow().convert(x0, x0, 2.0, kind="x0", to="x0"), "^t: got 2"),
        (lambda: RectifiedFlow().convert(x0, x0, torch.rand(5), kind="x0", to="x0"), "^t: got"),
        (lambda: RectifiedFlow().clock(0.5, of="logsnr"), "clock.*'logsnr'.*log_snr"),
        (lambda: RectifiedFlow().clock(3.0, of="index"), "^clock: got 'index'.*RectifiedFlow"),
        (lambda: VP().clock(3.0, of="index"), "^clock: got 'index'.*VP"),
        (lambda: VP.betas().clock(1000.0, of="index"), "^value: got 1000"),
        (lambda: RectifiedFlow().clock(1001.0, of="thousand"), "^value: got 1001"),
        (lambda: EDM().time_of_log_snr(-20.0), "^log_snr: got -20.0.*EDM"),
        (lambda: EDM().clock(81.0, of="sigma"), "^sigma: got 81.0"),
        (lambda: RectifiedFlow().move(noise, 1.0, EDM()), "^log_snr: got -inf"),
        (lambda: Residual().corrupt(x0, noise, 0.5), "^reference: got None"),
        (lambda: Residual().convert(x0, x0, 0.5, kind="x0", to="x0"), "^reference: got None"),
        (lambda: Residual(levels=1), "^levels: got 1"),
        (lambda: Residual(first=1.0), "^first"),
        (lambda: Residual(last=1.0), "^last: got 1.0"),
        (lambda: Residual(kappa=0.0), "^kappa: got 0.0"),
        (lambda: EDM(sigma_max=0.0), "^sigma_max: got 0.0"),
        (lambda: EDM(sigma_data=math.nan), "^sigma_data"),
        (lambda: Trig(-1.0), "^sigma_data: got -1.0"),
        (lambda: VP.linear(1.0, 0.5), "^beta_max: got 0.5"),
        (lambda: VP.linear(0.0), "^beta_min: got 0.0"),
        (lambda: VP.cosine(0.0), "^offset"),
        (lambda: VP.table([0.9, 0.0]), "^alphas_cumprod"),
        (lambda: VP.table([0.9, 0.9]), "^alphas_cumprod: got 'values that"),
        (lambda: AlphaTable.of([]), "^alphas_cumprod"),
        (lambda: VP.betas("quadratic"), "table of betas.*'quadratic'"),
        (lambda: VP.betas(steps=1), "^steps: got 1"),
        (lambda: VP.betas("cosine", start=0.1), "^start"),
        (lambda: VP.betas(start=-0.1), "^start"),
        (lambda: Table("values", [1.0]), "^values: got '1 values'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_path_that_lies_about_its_slope_fails_the_check():
    class Lying(RectifiedFlow):
        def _alpha_derivative(self, t):
            return -0.9 * torch.ones_like(t)

    with pytest.raises(AssertionError, match="alpha_derivative"):
        check_path(Lying())

    class Backwards(RectifiedFlow):
        def _time_of_log_snr(self, log_snr):
            return torch.sigmoid(log_snr / 2)

    with pytest.raises(AssertionError, match="come back from log_snr"):
        check_path(Backwards())


OWN_FORMS = [
    *((RectifiedFlow(), kind) for kind in ("velocity", "v", "noise")),
    *((Trig(deviation), kind) for deviation in (0.5, 1.0) for kind in ("F", "velocity", "v", "noise")),
]


@pytest.mark.parametrize(("path", "kind"), OWN_FORMS, ids=str)
def test_what_a_path_writes_in_closed_form_is_the_general_form(path, kind):
    t = torch.linspace(0.03, 0.97, 17, dtype=torch.float64)
    r = t.flip(0) * 0.9
    found, wanted = path._jump(kind, t, r), Path._jump(path, kind, t, r)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)
    torch.testing.assert_close(path._deviation(t), Path._deviation(path, t), rtol=0, atol=1e-14)
    torch.testing.assert_close(path._angle(t), Path._angle(path, t), rtol=0, atol=1e-14)
    torch.testing.assert_close(path._time_of_angle(path._angle(t)), t, rtol=0, atol=1e-14)


def test_the_angle_of_a_trigonometric_path_reaches_both_ends():
    path = Trig(0.5)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    angles = path.clock(ends, to="angle")
    assert angles.tolist() == [0.0, math.pi / 2]
    assert path.clock(angles, of="angle").tolist() == [0.0, 1.0]
