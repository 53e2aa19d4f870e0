"""One frozen base in several roles: the adapter travels with the call."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distillrs import random
from distillrs.diffusion import (
    Batch,
    Critic,
    Jump,
    LowRank,
    Match,
    Matcher,
    MeanAbsolute,
    Network,
    SharedBase,
    StateMap,
    Teacher,
    simulated,
)  # fmt: skip
from distillrs.errors import ArgumentError
from distillrs.frozen import Frozen
from distillrs.schedule import RectifiedFlow

X = random.normal(6, 3, step=0, name="x", dtype=torch.float64)
T = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 32, dtype=torch.float64), nn.Linear(32, 16, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(16, dtype=torch.float64)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    """Blocks that may be computed again in the backward pass."""

    def __init__(self, mode=None):
        super().__init__()
        torch.manual_seed(3)
        self.mode = mode
        self.first, self.last = nn.Linear(4, 16, dtype=torch.float64), nn.Linear(16, 3, dtype=torch.float64)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x, t):
        hidden = self.first(torch.cat([x, t[:, None]], 1))
        for block in self.blocks:
            hidden = block(hidden) if self.mode is None else checkpoint(block, hidden, use_reentrant=self.mode)
        return self.last(hidden)


def shared(mode=None, **ranks):
    base = SharedBase(Net(mode).eval(), {name: LowRank(rank, seed=1) for name, rank in ranks.items()})
    torch.manual_seed(5)
    for parameter in base.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return base


def test_the_view_without_an_adapter_is_the_base_bit_for_bit():
    plain = Net().eval()
    expected = plain(X, T)
    base = SharedBase(plain, {"student": LowRank(2), "critic": LowRank(4)})
    assert torch.equal(base(X, T), expected)
    # Adapters begin as no change.
    assert torch.equal(base(X, T, adapter="critic"), expected)
    optimiser = torch.optim.SGD(base.parameters(), lr=0.5)
    for _ in range(3):
        (base(X, T, adapter="student").square().sum() + base(X, T, adapter="critic").sum()).backward()
        optimiser.step()
        base.train()
        base.view("student").train()
    assert torch.equal(base(X, T), expected)
    assert torch.equal(base.view(None)(X, T), expected)
    assert not torch.allclose(base(X, T, adapter="student"), expected)
    assert not torch.allclose(base(X, T, adapter="student"), base(X, T, adapter="critic"))
    assert all(value.grad is None and not value.requires_grad for value in plain.parameters())


def test_an_adapter_is_its_merged_weights():
    base = shared(student=3)
    merged = Net().eval()
    view = base.view("student")
    with torch.no_grad():
        for name, part in view.adapted.items():
            merged.get_submodule(name).weight.add_(part.factor * part.delta[1].weight @ part.delta[0].weight)
    assert torch.allclose(base(X, T, adapter="student"), merged(X, T), atol=1e-12)


@pytest.mark.parametrize("mode", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputation_replays_the_adapter_of_its_call(mode):
    """All calls are made before any is differentiated: a switch would stand at the last one."""
    gradients = []
    for kind in (None, mode):
        base = shared(kind, student=2, critic=4)
        x = X.clone().requires_grad_()
        student, critic, real = (base(x, T, adapter=name) for name in ("student", "critic", None))
        (student.square().sum() + (2 * critic).sin().sum() + real.cos().sum()).backward()
        gradients.append([x.grad, *(value.grad for value in base.parameters())])
    assert all(value is not None and float(value.abs().sum()) > 0 for value in gradients[0])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mode", [None, False], ids=["stored", "recomputed"])
def test_one_base_in_all_three_roles(mode):
    base, path = shared(mode, student=2, critic=4), RectifiedFlow()
    frozen = copy.deepcopy(Net()).eval()

    def matcher(student, real, critic):
        return Matcher(
            StateMap(Network(student, times="t"), path, Jump("velocity")),
            real=Teacher(Network(real, times="t"), "velocity"), critic=Critic(Network(critic, times="t"), "velocity"),
            rollout=simulated((1.0, 0.6)), terms=[Match(weights=MeanAbsolute())], shape=(3,),
        )  # fmt: skip

    views = matcher(base.view("student"), base.view(None), base.view("critic"))
    plain = shared(None, student=2, critic=4)
    copies = matcher(*(copy.deepcopy(part) for part in (plain.view("student"), Frozen(frozen), plain.view("critic"))))
    assert {len(group) for group in views.parameter_groups().values()} == {len(base.view("critic").adapted) * 2}
    for turn in views.turns(0):
        losses = [each(Batch(size=5), 3, turn=turn).total for each in (views, copies)]
        found, expected = (
            torch.autograd.grad(loss, each.parameter_groups()[turn])
            for loss, each in zip(losses, (views, copies), strict=True)
        )
        assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-10)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
            assert float(one.abs().max()) > 0


def test_the_state_is_the_adapters_alone():
    base = shared(student=2, critic=4)
    state = base.state_dict()
    assert len(state) == 2 * 2 * 6
    assert sum(value.numel() for value in base.parameters()) == sum(value.numel() for value in state.values())
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    other = SharedBase(Net().eval(), {"student": LowRank(2), "critic": LowRank(4)})
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(X, T, adapter="critic"), base(X, T, adapter="critic"))


def test_a_move_takes_base_views_and_adapters():
    base = shared(student=2)
    base.float()
    for name in (None, "student"):
        assert base(X.float(), T.float(), adapter=name).dtype == torch.float32
    own = dict(base.view(None).module.named_parameters())
    adapted = base.view("student").module.first.layer
    assert adapted.weight is own["first.weight"]
    assert base.view("student").module.blocks[0].norm.running_mean is base.view(None).module.blocks[0].norm.running_mean


def test_convolutions_and_chosen_layers():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 1)).double()
    base = SharedBase(network, {"one": LowRank(2, alpha=4.0, targets=("0",)), "all": LowRank(2)})
    assert list(base.view("one").adapted) == ["0"]
    assert base.view("one").adapted["0"].factor == 2.0
    assert list(base.view("all").adapted) == ["0", "2"]
    x = random.normal(2, 3, 9, 9, step=0, name="i", dtype=torch.float64)
    assert torch.equal(base(x, adapter="all"), network(x))
    base(x, adapter="all").sum().backward()
    assert all(value.grad is not None for value in base.view("all").parameters() if value.requires_grad)
    assert base.view("all").adapted["0"].in_channels == 3
    with pytest.raises(AttributeError, match="absent"):
        _ = base.view("all").adapted["0"].absent
    whole = SharedBase(nn.Linear(3, 3), {"a": LowRank(1)})
    assert whole(torch.ones(2, 3), adapter="a").shape == (2, 3)


def test_a_layer_in_several_places_is_one_layer_in_all_of_them():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(3, 3)
            self.inner = nn.ModuleList([self.first, nn.Tanh(), self.first])

        def forward(self, x):
            for part in self.inner:
                x = part(x)
            return self.first(x)

    base = SharedBase(Twice(), {"a": LowRank(2)})
    down, up = base.adapters["a"]["first"]
    with torch.no_grad():
        up.weight.normal_()
    assert [name for name, _ in base.named_parameters()] == ["adapters.a.first.0.weight", "adapters.a.first.1.weight"]
    merged = Twice()
    with torch.no_grad():
        merged.first.weight.add_(up.weight @ down.weight)
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    assert torch.allclose(base(x, adapter="a"), merged(x), atol=1e-5)
    assert torch.equal(base(x), Twice()(x))
    base.double()
    assert torch.allclose(base(x.double(), adapter="a"), merged(x).double(), atol=1e-5)


def test_weights_that_are_taken_without_a_call_have_the_change_in_them():
    """Attention's own projection, and the fused layer that runs where no gradient is asked."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64).eval()
    base = SharedBase(layer, {"a": LowRank(2)})
    assert sorted(base.view("a").adapted) == ["linear1", "linear2", "self_attn.out_proj"]
    x = random.normal(3, 5, 8, step=0, name="a", dtype=torch.float64)
    with torch.no_grad():
        for value in base.parameters():
            value.add_(0.3)
        fused = base(x, adapter="a")
    found = base(x, adapter="a")
    assert torch.allclose(found, fused, atol=1e-12)
    assert not torch.allclose(found, base(x), atol=1e-3)
    found.pow(3).sum().backward()
    assert all(float(value.grad.abs().max()) > 0 for value in base.parameters())
    convolution = SharedBase(nn.Conv2d(3, 4, 3, dtype=torch.float64), {"a": LowRank(2, alpha=3.0)})
    with torch.no_grad():
        for value in convolution.parameters():
            value.add_(0.3)
    part, image = convolution.view("a").module, random.normal(2, 3, 6, 6, step=0, name="i", dtype=torch.float64)
    assert torch.allclose(part(image), nn.functional.conv2d(image, part.weight, part.bias), atol=1e-12)


def test_a_critic_of_a_lower_rank_is_warned_of():
    base = shared(student=4, critic=2)
    build = lambda: Matcher(
        StateMap(Network(base.view("student"), times="t"), RectifiedFlow(), Jump("velocity")),
        real=Teacher(Network(base.view(None), times="t"), "velocity"),
        critic=Critic(Network(base.view("critic"), times="t"), "velocity"), terms=[Match()],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="rank 2, the student's 4"):
        build()
    base = shared(student=2, critic=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SharedBase("net", {}), "^base: got 'str'"),
        (lambda: SharedBase(nn.Linear(2, 2), ["a"]), "^adapters: got 'list'"),
        (lambda: SharedBase(nn.Linear(2, 2), {"a": 4}), "^adapters: got 'a: int'"),
        (lambda: SharedBase(nn.Linear(2, 2), {"keys": LowRank(1)}), "^adapters: got 'keys'"),
        (lambda: LowRank(1, alpha="a"), "^alpha: got 'a'"),
        (lambda: LowRank(0), "^rank: got 0"),
        (lambda: LowRank(2, alpha=float("nan")), "^alpha: got nan"),
        (lambda: LowRank(2, targets="first"), "^targets: got 'first'"),
        (lambda: SharedBase(Net(), {"a.b": LowRank(1)}), "^adapters: got 'a.b'"),
        (lambda: SharedBase(Net(), {"a": LowRank(1, targets=("frist",))}), r"^targets: got \('frist'"),
        (lambda: SharedBase(nn.Tanh(), {"a": LowRank(1)}), "^targets: got 'every layer'"),
        (lambda: SharedBase(nn.Conv2d(4, 4, 3, groups=2), {"a": LowRank(1)}), "^targets: got 'a convolution in 2"),
        (lambda: shared(critic=1)(X, T, adapter="critik"), "^adapter: got 'critik'.*did you mean 'critic'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
