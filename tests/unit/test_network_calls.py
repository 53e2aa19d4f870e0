"""How networks are called: plain functions as modules, and a warning where their products are rounded."""

import copy
import warnings

import pytest
import torch
from torch import nn

from distillrs.diffusion import (
    JVP,
    Batch,
    Central,
    Data,
    Eulerian,
    FlowMap,
    FunctionModule,
    Network,
    Score,
    Self,
    Source,
    precision,
)
from distillrs.errors import ArgumentError
from distillrs.schedule import RectifiedFlow

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
T = torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
R = T / 2
LABEL = torch.arange(4)


class Odd(nn.Module):
    """Times first, the state by a keyword, the label under another name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = nn.Linear(6, 3), nn.Dropout(0.5)

    def forward(self, begin, end, *, image, y):
        told = torch.stack([begin, end, y.to(image)], 1)
        return self.dropout(self.layer(torch.cat([image, told], 1)))


def called(net, x, t, r, label):
    return net(t, r, image=x, y=label)


def test_a_function_gives_a_network_its_own_order_and_keywords():
    net = Odd().eval()
    adapter = Network(FunctionModule(called, net))
    expected = net(T.float(), R.float(), image=X, y=LABEL)
    assert torch.equal(adapter(X, T, R, {"label": LABEL}), expected)
    other = Network(FunctionModule(lambda net, x, t, gap, label: net(gap, t, image=x, y=label), net), times="t_gap")
    assert torch.equal(other(X, T, R, {"label": LABEL}), net((T - R).float(), T.float(), image=X, y=LABEL))


def test_its_parameters_and_its_mode_are_those_of_its_modules():
    net = Odd()
    module = FunctionModule(called, net)
    assert [value is own for value, own in zip(module.parameters(), net.parameters(), strict=True)] == [True, True]
    module.eval()
    assert not net.dropout.training
    objective = FlowMap(Network(module), path=RectifiedFlow(), source=Data(), residual=Eulerian(Central(1e-2)))
    objective(Batch(X, {"label": LABEL}), 0).total.backward()
    assert net.layer.weight.grad is not None
    assert float(net.layer.weight.grad.abs().sum()) > 0


def test_a_copy_calls_its_own_modules():
    module = FunctionModule(called, Odd().eval())
    before = module(X, T.float(), R.float(), label=LABEL)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.parts[0].layer.bias.add_(1.0)
    assert torch.equal(module(X, T.float(), R.float(), label=LABEL), before)
    torch.testing.assert_close(twin(X, T.float(), R.float(), label=LABEL), before + 1)


def test_a_function_in_closed_form_needs_no_module():
    adapter = Network(FunctionModule(lambda x, t, r: x * (t - r)[:, None]))
    torch.testing.assert_close(adapter(X, T, R), X * (T - R).float()[:, None])
    assert not list(adapter.module.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Network(lambda x, t, r: x), r"^module: got 'function', allowed is a torch module; FunctionModule\("),
        (lambda: FunctionModule(3), r"^function: got 'int'"),
        (lambda: FunctionModule(nn.Linear(3, 3)), r"^function: got 'Linear'"),
        (lambda: FunctionModule(called, called), r"^modules: got 'function'"),
    ],
)
def test_refusals_of_functions(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_sources_are_bound_and_what_they_are_bound_to_is_a_score():
    for source in (Data(), Self()):
        assert isinstance(source, Source)
        assert not isinstance(source, Score)


@pytest.fixture
def rounded(monkeypatch):
    monkeypatch.setattr(precision, "_told", set())
    monkeypatch.setattr(precision, "_multiplies_in_float32", lambda x: True)
    monkeypatch.setattr(precision, "_matrices_in_tf32", lambda: True)
    monkeypatch.setattr(precision, "_convolutions_in_tf32", lambda: True)
    return monkeypatch


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x, t, r):
        return self.layer(x[:, None])[:, 0] * t[:, None]


def update(derivative, module):
    objective = FlowMap(Network(module), path=RectifiedFlow(), source=Data(), residual=Eulerian(derivative))
    return objective(Batch(X), 0).total


@pytest.mark.parametrize("derivative", [JVP(), Central(1e-2)])
def test_rounded_products_are_told_once_with_the_setting_that_mends_them(rounded, derivative):
    plain = FunctionModule(lambda x, t, r: x * t[:, None])
    with pytest.warns(UserWarning, match=r"products of matrices are in TF32.*torch\.backends\.cuda\.matmul\.fp32_prec"):
        update(derivative, plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(derivative, plain)
    with pytest.warns(UserWarning, match=r"products of convolutions.*torch\.backends\.cudnn\.conv\.fp32_prec"):
        update(derivative, Convolution())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(derivative, Convolution())


def test_exact_products_are_not_told(rounded):
    rounded.setattr(precision, "_matrices_in_tf32", lambda: False)
    rounded.setattr(precision, "_convolutions_in_tf32", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(JVP(), Convolution())
    assert precision._told == set()


def test_on_a_processor_nothing_is_asked(monkeypatch):
    def refuse():
        raise AssertionError

    monkeypatch.setattr(precision, "_matrices_in_tf32", refuse)
    update(JVP(), Convolution())


def test_the_settings_are_read_as_torch_has_them():
    assert precision._matrices_in_tf32() is False
    assert isinstance(precision._convolutions_in_tf32(), bool)
