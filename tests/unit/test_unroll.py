import gc

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.condense import FunctionalNetwork, Target, Unroll, segments
from distillrs.condense.unroll import memory_of_states


def problem(dtype=torch.float64, steps=6, width=16, count=5):
    network = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 3)).to(dtype)
    call = FunctionalNetwork(network)
    start = call.layout.flatten(network)
    images = torch.randn(count, 8, dtype=dtype, requires_grad=True)
    labels = torch.arange(count) % 3
    targets = {steps: Target(start + 0.1 * torch.randn(call.size, dtype=dtype), 0.8)}
    return call, start, images, labels, targets


class SavedBytes:
    """The largest number of bytes that graphs held at one time, states of the unroll apart."""

    def __init__(self):
        self.now = self.peak = 0

    def __enter__(self):
        counter = self

        class Held:
            def __init__(self, tensor):
                self.tensor = tensor
                self.size = tensor.numel() * tensor.element_size()
                counter.now += self.size
                counter.peak = max(counter.peak, counter.now)

            def __del__(self):
                counter.now -= self.size

        self.hooks = torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *failure):
        self.hooks.__exit__(*failure)


def graph_bytes(steps, gradient, **options):
    call, start, images, labels, targets = problem(torch.float32, steps)
    rate = torch.tensor(0.1, requires_grad=True)
    gc.collect()
    with SavedBytes() as saved:
        Unroll(steps, gradient, **options)(call, start, images, labels, rate, targets).loss.backward()
    return saved.peak


@pytest.mark.parametrize(("gradient", "least", "most"), [("full", 8, 30), ("adjoint", 1, 1.3), ("truncated", 1, 1.3)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_graph_memory_grows_with_the_length_only_where_all_graphs_are_kept(gradient, least, most, momentum):
    growth = graph_bytes(80, gradient, momentum=momentum) / graph_bytes(5, gradient, momentum=momentum)
    assert least <= growth <= most


def test_graph_memory_grows_with_the_number_of_graphs_that_are_asked_for():
    one, four = (graph_bytes(20, "adjoint", graph_steps=count) for count in (1, 4))
    assert 2 < four / one < 6
    assert graph_bytes(80, "adjoint", graph_steps=4) / four < 1.3


def test_as_many_graphs_are_held_as_fit_into_the_budget(monkeypatch):
    one, six, default = (graph_bytes(20, "adjoint", graph_steps=count) for count in (1, 6, None))
    assert default == six
    monkeypatch.setattr(segments, "GRAPH_BYTES", 1)
    assert graph_bytes(20, "adjoint") == one


def test_what_makes_a_step_may_not_hold_parameters_of_its_own():
    call, start, images, labels, targets = problem()
    hidden = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def loss(logits, target):
        return nn.functional.cross_entropy(logits + hidden, target)

    with pytest.raises(dr.errors.ArgumentError, match=r"^network, transform or loss: got .*detach"):
        Unroll(6)(call, start, images, labels, 0.1, targets, loss=loss)
    for gradient in ("full", "truncated"):
        torch.autograd.grad(Unroll(6, gradient)(call, start, images, labels, 0.1, targets, loss=loss).loss, images)
    assert hidden.grad is None


def test_a_call_without_gradients_keeps_no_graph_and_gives_the_same_loss():
    call, start, images, labels, targets = problem()
    for gradient in ("full", "adjoint", "truncated"):
        unroll = Unroll(6, gradient)
        with torch.no_grad(), SavedBytes() as saved:
            free = unroll(call, start, images, labels, 0.1, targets)
        assert saved.now == 0
        assert not free.loss.requires_grad
        torch.testing.assert_close(free.loss, unroll(call, start, images, labels, 0.1, targets).loss.detach())


def test_the_truncated_gradient_is_not_the_gradient():
    call, start, images, labels, targets = problem()
    found = {}
    for gradient in ("full", "truncated"):
        result = Unroll(6, gradient)(call, start, images, labels, 0.5, targets)
        found[gradient] = torch.autograd.grad(result.loss, images)[0].flatten()
    cosine = torch.cosine_similarity(found["full"], found["truncated"], dim=0)
    assert 0.5 < cosine < 0.9999


def test_only_what_is_asked_for_gets_a_gradient():
    call, start, images, labels, targets = problem()
    rate = torch.tensor(0.1, dtype=torch.float64)
    loss = Unroll(6)(call, start, images, labels, rate, targets).loss
    loss.backward()
    assert images.grad is not None
    assert rate.grad is None
    assert start.grad is None


def test_an_example_that_no_minibatch_takes_has_no_gradient():
    call, start, images, labels, targets = problem()
    batches = [torch.tensor([0, 2])] * 6
    for gradient in ("full", "adjoint", "truncated"):
        loss = Unroll(6, gradient)(call, start, images, labels, 0.1, targets, batches=batches).loss
        (grad,) = torch.autograd.grad(loss, images)
        assert grad[[0, 2]].abs().sum() > 0
        assert torch.count_nonzero(grad[[1, 3, 4]]) == 0


def test_minibatches_may_differ_in_size_and_repeat_rows():
    call, start, images, labels, targets = problem(steps=3)
    targets = {3: targets[3]}
    batches = [torch.tensor([0, 0, 1]), torch.tensor([2]), torch.tensor([3, 4])]
    grads = [
        torch.autograd.grad(
            Unroll(3, gradient)(call, start, images, labels, 0.1, targets, batches=batches).loss, images
        )[0]
        for gradient in ("full", "adjoint")
    ]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-12)


def test_a_second_derivative_is_refused_clearly_and_full_has_one():
    call, start, images, labels, targets = problem(steps=2)
    targets = {2: targets[2]}
    for gradient in ("adjoint", "truncated"):
        loss = Unroll(2, gradient)(call, start, images, labels, 0.1, targets).loss
        with pytest.raises(dr.DistillrsError, match=r"gradient='full'.*create_graph"):
            torch.autograd.grad(loss, images, create_graph=True)
    loss = Unroll(2, "full")(call, start, images, labels, 0.1, targets).loss
    (first,) = torch.autograd.grad(loss, images, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), images)
    assert bool(torch.isfinite(second).all())


def test_bfloat16_autocast_is_replayed_as_it_was():
    call, start, images, labels, targets = problem(torch.float32)
    results = {}
    for gradient in ("full", "adjoint"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = Unroll(6, gradient)(call, start, images, labels, 0.1, targets)
        results[gradient] = (result.loss.detach(), *torch.autograd.grad(result.loss, images))
    plain = Unroll(6)(call, start, images, labels, 0.1, targets).loss
    assert results["full"][0].dtype == torch.float32
    assert not torch.equal(results["full"][0], plain.detach())
    for mine, theirs in zip(results["adjoint"], results["full"], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=1e-4)


def test_bfloat16_steps_do_not_depend_on_checkpoints():
    call, start, images, labels, targets = problem(torch.float32)
    gradients = []
    for every in (None, 4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = Unroll(6, checkpoint_every=every)(call, start, images, labels, 0.1, targets).loss
        gradients.append(torch.autograd.grad(loss, images)[0])
    assert torch.equal(*gradients)


def test_float16_autocast_is_refused_with_the_reason():
    call, start, images, labels, targets = problem(torch.float32)
    with (
        pytest.raises(dr.errors.ArgumentError, match=r"^autocast: got 'float16'.*underflow"),
        torch.autocast("cpu", dtype=torch.float16),
    ):
        Unroll(6)(call, start, images, labels, 0.1, targets)


def test_a_users_inner_loss_is_used():
    call, start, images, labels, targets = problem()

    def squared(logits, target):
        return (logits - nn.functional.one_hot(target, 3)).square().mean()

    losses = {}
    for gradient in ("full", "adjoint"):
        result = Unroll(6, gradient)(call, start, images, labels, 0.1, targets, loss=squared)
        losses[gradient] = torch.autograd.grad(result.loss, images)[0]
    torch.testing.assert_close(losses["full"], losses["adjoint"], rtol=1e-10, atol=1e-12)
    default = Unroll(6)(call, start, images, labels, 0.1, targets)
    assert not torch.equal(torch.autograd.grad(default.loss, images)[0], losses["adjoint"])
    with pytest.raises(dr.errors.ArgumentError, match=r"^loss: got"):
        Unroll(6)(call, start, images, labels, 0.1, targets, loss=lambda logits, target: logits)


def test_one_step_against_the_closed_form():
    """A linear network under a squared loss: theta_1 = theta_0 - beta X'(X theta_0 - y) / n, all in closed form."""
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 1, dtype=torch.float64)
    start, target = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    beta = 0.3

    def network(theta, inputs):
        return inputs @ theta[:, None]

    def loss(prediction, wanted):
        return (prediction - wanted).square().sum() / 2

    found = Unroll(1)(network, start, x, y, beta, {1: Target(target, 2.0)}, loss=loss)
    theta = start - beta * x.detach().T @ (x.detach() @ start - y[:, 0])
    torch.testing.assert_close(found.final, theta)
    residual = theta - target
    torch.testing.assert_close(found.loss.detach(), residual.square().sum() / 2)
    error = x.detach() @ start - y[:, 0]
    expected = -beta * (torch.outer(error, residual) + torch.outer(x.detach() @ residual, start))
    torch.testing.assert_close(torch.autograd.grad(found.loss, x)[0], expected)


def test_states_need_less_memory_between_checkpoints():
    assert memory_of_states(Unroll(80), 1000) == 80 * 4000
    assert memory_of_states(Unroll(80, checkpoint_every=9), 1000) == (9 + 8) * 4000
    assert memory_of_states(Unroll(80, graph_steps=4), 1000) == 20 * 4000
    assert memory_of_states(Unroll(80, graph_steps=4, checkpoint_every=20, momentum=0.9), 1000) == 2 * (4 + 4) * 4000


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"steps": 0}, "steps"), ({"steps": True}, "steps"), ({"steps": 3, "gradient": "exact"}, "gradient"),
     ({"steps": 3, "momentum": 1.0}, "momentum"), ({"steps": 3, "momentum": float("nan")}, "momentum"),
     ({"steps": 3, "graph_steps": 0}, "graph_steps"), ({"steps": 3, "graph_steps": 1.0}, "graph_steps"),
     ({"steps": 3, "gradient": "full", "graph_steps": 2}, "graph_steps"),
     ({"steps": 3, "checkpoint_every": 0}, "checkpoint_every"),
     ({"steps": 9, "checkpoint_every": True}, "checkpoint_every"),
     ({"steps": 3, "gradient": "full", "checkpoint_every": 2}, "checkpoint_every")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(arguments, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        Unroll(**arguments)


def test_arguments_that_do_not_fit_are_refused_by_name():
    call, start, images, labels, targets = problem()
    good = {"start": start, "images": images, "labels": labels, "rate": 0.1, "targets": targets}
    bad = {
        "start": start[None],
        "images": images.float(),
        "labels": labels[1:],
        "rate": torch.ones(2),
        "targets": {7: targets[6]},
        "batches": [torch.arange(2)] * 5,
    }
    for name, value in bad.items():
        with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
            Unroll(6)(call, **(good | {name: value}))
    for wrong in ({}, {0: targets[6]}, {6: Target(start[1:])}):
        with pytest.raises(dr.errors.ArgumentError, match=r"^targets: got"):
            Unroll(6)(call, **(good | {"targets": wrong}))


@pytest.mark.parametrize("gradient", ["adjoint", "truncated"])
@pytest.mark.parametrize("part", ["vector", "normaliser"])
def test_targets_that_require_a_gradient_are_refused_where_they_would_get_none(gradient, part):
    call, start, images, labels, targets = problem(torch.float64, 3)
    target = targets[3]
    learned = {"vector": target.vector.clone(), "normaliser": torch.tensor(2.0, dtype=torch.float64)}
    learned[part].requires_grad_()
    with pytest.raises(dr.errors.ArgumentError, match=r"^targets: got.*gradient='full'"):
        Unroll(3, gradient)(call, start, images, labels, 0.1, {3: Target(**learned)})
    Unroll(3, "full")(call, start, images, labels, 0.1, {3: Target(**learned)}).loss.backward()
    assert learned[part].grad is not None
