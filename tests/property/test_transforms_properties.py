import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import transforms
from distillrs.transforms import Identity, Standardise, Zca

SHAPES = st.sampled_from([(5,), (1, 3, 3), (3, 2, 4), (2, 7)])


@st.composite
def examples(draw):
    shape = draw(SHAPES)
    count = draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-3, 3))
    offset = draw(st.floats(-10, 10)) * scale
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64) * scale + offset


def fitted(kind, x):
    regularisation = 0.1 * float(x.var()) + 1e-6
    return {"identity": Identity(), "standardise": Standardise.fit(x), "zca": Zca.fit(x, regularisation)}[kind]


@given(examples(), st.sampled_from(["identity", "standardise", "zca"]))
def test_the_inverse_undoes_the_transform_both_ways(x, kind):
    transform = fitted(kind, x)
    size = float(x.abs().max()) + 1e-9
    assert float((transform.inverse(transform.forward(x)) - x).abs().max()) < 1e-4 * size
    seen = transform.forward(x)
    again = transform.forward(transform.inverse(seen))
    assert float((again - seen).abs().max()) < 1e-4 * (1 + float(seen.abs().max()) + size / float(x.std()))


@given(examples(), st.sampled_from(["standardise", "zca"]), st.data())
def test_one_example_is_transformed_like_all(x, kind, data):
    transform = fitted(kind, x)
    row = data.draw(st.integers(0, len(x) - 1))
    torch.testing.assert_close(transform.forward(x)[row], transform.forward(x[row : row + 1])[0])


@given(examples(), st.sampled_from(["identity", "standardise", "zca"]))
def test_a_restored_transform_is_the_same_function(x, kind):
    transform = fitted(kind, x)
    again = transforms.restore(transform.describe(), transform.tensors())
    assert torch.equal(again.forward(x), transform.forward(x))
    assert torch.equal(again.inverse(x), transform.inverse(x))


@given(examples())
def test_the_transforms_are_differentiable(x):
    seen = x.clone().requires_grad_()
    for kind in ("standardise", "zca"):
        transform = fitted(kind, x)
        (gradient,) = torch.autograd.grad(transform.forward(seen).square().sum(), seen)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
