"""The three gradients of the unrolled training against each other, over random networks and settings."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distillrs.condense import FunctionalNetwork, Target, Unroll
from distillrs.training import classification_loss

CLASSES = 3


@st.composite
def networks(draw):
    """A small network in float64 and the shape of its examples."""
    activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[draw(st.sampled_from(["relu", "gelu", "tanh"]))]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        width = draw(st.integers(1, 6))
        inputs = draw(st.integers(1, 5))
        return nn.Sequential(nn.Linear(inputs, width), activation(), nn.Linear(width, CLASSES)).double(), (inputs,)
    channels = draw(st.integers(1, 2))
    norm = draw(st.sampled_from(["instance", "group", "none"]))
    norms = {"instance": nn.InstanceNorm2d(4, affine=True), "group": nn.GroupNorm(2, 4), "none": nn.Identity()}
    body = [nn.Conv2d(channels, 4, 3, padding=1), norms[norm], activation(), nn.AvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(16, CLASSES)).double(), (channels, 4, 4)


@st.composite
def problems(draw, max_steps=8):
    """Everything that an unrolled training takes, as a function of the way to differentiate it."""
    network, shape = draw(networks())
    call = FunctionalNetwork(network)
    steps = draw(st.integers(1, max_steps))
    momentum = draw(st.sampled_from([0.0, 0.5, 0.9]))
    count = draw(st.integers(1, 5))
    soft, changed, scale = draw(st.booleans()), draw(st.booleans()), draw(st.sampled_from([1.0, 0.4]))
    size = draw(st.none() | st.integers(1, count))
    middle = draw(st.lists(st.integers(1, steps), max_size=3, unique=True))
    last = draw(st.sampled_from([steps, max(1, steps - 1)]))
    graphs = draw(st.none() | st.integers(1, 4))
    every = draw(st.none() | st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*dims):
        return torch.randn(*dims, generator=generator, dtype=torch.float64)

    start = call.layout.flatten(network)
    images, logits = normal(count, *shape), normal(count, CLASSES)
    classes = torch.randint(CLASSES, (count,), generator=generator)
    targets = {
        step: Target(start + 0.3 * normal(call.size), 0.5 + place, 0.25 + place)
        for place, step in enumerate({last, *(step for step in middle if step <= last)})
    }
    batches = None
    if size is not None:
        batches = [torch.randperm(count, generator=generator)[:size] for _ in range(steps)]
    noise = normal(steps, *shape)

    def transform(x, i):
        return x * (1 + 0.1 * i) + noise[i] if i % 2 else x.flip(-1)

    def run(gradient, upstream=1.0):
        inputs = [start.clone(), images.clone(), logits.clone(), torch.tensor(0.2, dtype=torch.float64)]
        theta, x, y, rate = (each.requires_grad_() for each in inputs)
        unroll = Unroll(steps, gradient, momentum, *([] if gradient == "full" else [graphs, every]))
        labels = y.softmax(1) if soft else classes
        result = unroll(
            call,
            theta,
            x,
            labels,
            rate,
            targets,
            batches=batches,
            transform=transform if changed else None,
            scale=scale,
        )
        wanted = [theta, x, rate, *([y] if soft else [])]
        return result, torch.autograd.grad(upstream * result.loss, wanted)

    return run


@given(problems(), st.sampled_from([1.0, -2.5]))
def test_the_adjoint_equals_automatic_differentiation_through_all_steps(run, upstream):
    full, expected = run("full", upstream)
    adjoint, found = run("adjoint", upstream)
    torch.testing.assert_close(adjoint.loss, full.loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adjoint.final, full.final, rtol=1e-12, atol=1e-12)
    assert adjoint.distances.keys() == full.distances.keys()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@given(problems(max_steps=1))
def test_with_one_step_nothing_is_truncated_but_the_way_back_to_the_start(run):
    _, expected = run("full")
    _, found = run("truncated")
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.integers(1, 6), st.sampled_from([0.0, 0.9]), st.booleans())
def test_the_truncated_gradient_equals_the_published_formula(seed, steps, momentum, soft):
    """d/dX = -(2 beta / D) sum_i d<r, g_i>/dX with theta_i fixed; momentum gives each g_i its share in the end."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    call = FunctionalNetwork(network)
    start = call.layout.flatten(network)
    images = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.randn(4, CLASSES, dtype=torch.float64).softmax(1) if soft else torch.arange(4) % CLASSES
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    target, normaliser = start + 0.1 * torch.randn(call.size, dtype=torch.float64), 0.7
    batches = [torch.randperm(4)[:2] for _ in range(steps)]
    result = Unroll(steps, "truncated", momentum)(
        call, start, images, labels, rate, {steps: Target(target, normaliser)}, batches=batches
    )
    found = torch.autograd.grad(result.loss, [images, rate])

    theta, velocity, points = start, torch.zeros_like(start), []
    for rows in batches:
        point = theta.clone().requires_grad_()
        points.append(point)
        gradient = torch.autograd.grad(classification_loss(call(point, images[rows]), labels[rows]), point)[0]
        velocity = momentum * velocity + gradient
        theta = theta - rate.detach() * velocity
    residual = theta.detach() - target
    grad_images, grad_rate = torch.zeros_like(images), torch.zeros_like(rate)
    for i, (point, rows) in enumerate(zip(points, batches, strict=True)):
        share = sum(momentum**k for k in range(steps - i))
        value = classification_loss(call(point, images[rows]), labels[rows])
        gradient = torch.autograd.grad(value, point, create_graph=True)[0]
        product = torch.dot(residual, gradient)
        grad_rate -= 2 * share * product.detach() / normaliser
        grad_images -= 2 * rate.detach() * share / normaliser * torch.autograd.grad(product, images)[0]
    torch.testing.assert_close(found[0], grad_images, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found[1], grad_rate, rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(problems())
def test_gradients_are_the_same_bits_at_every_call(run):
    for gradient in ("full", "adjoint", "truncated"):
        first, second = run(gradient)[1], run(gradient)[1]
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@settings(max_examples=15)
@given(st.integers(0, 2**16), st.integers(1, 5), st.sampled_from([0.0, 0.7]))
def test_the_full_gradient_equals_finite_differences(seed, steps, momentum):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()
    call = FunctionalNetwork(network)
    theta = call.layout.flatten(network)
    targets = {steps: Target(theta + 0.2, 0.9), max(1, steps // 2): Target(theta - 0.1, 1.3, 0.5)}
    images = torch.randn(3, 3, dtype=torch.float64)
    logits = torch.randn(3, CLASSES, dtype=torch.float64)
    rate = torch.tensor(0.4, dtype=torch.float64)

    def loss(start, x, y, beta):
        return Unroll(steps, "full", momentum)(call, start, x, y.softmax(1), beta, targets).loss

    inputs = tuple(each.requires_grad_() for each in (theta, images, logits, rate))
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)
