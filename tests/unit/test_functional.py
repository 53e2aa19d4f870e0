import copy

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.condense import FunctionalNetwork
from distillrs.condense.functional import require_layout
from distillrs.trajectory import ParameterLayout


class Scaled(nn.Module):
    """A network with a constant buffer, and one whose every call leaves a trace."""

    def __init__(self, counts=False):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([2.0, 0.5]))
        self.register_buffer("calls", torch.zeros(()))
        self.counts = counts

    def forward(self, x):
        if self.counts:
            self.calls += 1
        return self.linear(x) * self.scale


def test_a_call_on_a_vector_equals_a_call_of_the_network():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    call = FunctionalNetwork(network)
    x = torch.randn(5, 2, 4, 4)
    torch.testing.assert_close(call(call.layout.flatten(network), x), network(x))


def test_gradients_in_the_vector_are_those_in_the_parameters():
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    call = FunctionalNetwork(network)
    vector = call.layout.flatten(network).requires_grad_()
    x = torch.randn(6, 3)
    (found,) = torch.autograd.grad(call(vector, x).square().sum(), vector)
    network(x).square().sum().backward()
    torch.testing.assert_close(found, torch.cat([p.grad.flatten() for p in network.parameters()]))


def test_the_given_network_is_never_touched():
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    before = copy.deepcopy(network.state_dict())
    call = FunctionalNetwork(network)
    call(torch.randn(call.size, requires_grad=True), torch.randn(2, 3)).sum().backward()
    assert network.training
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_dropout_is_off_so_that_a_replayed_step_is_the_same_function():
    network = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.9), nn.Linear(64, 2)).train()
    call = FunctionalNetwork(network)
    vector, x = call.layout.flatten(network), torch.randn(4, 3)
    assert torch.equal(call(vector, x), call(vector, x))
    torch.testing.assert_close(call(vector, x), network.eval()(x))


def test_it_owns_no_parameters_and_no_state():
    call = FunctionalNetwork(nn.Linear(3, 2))
    assert not list(call.parameters())
    assert not call.state_dict()


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.InstanceNorm1d(4, track_running_stats=True)])
def test_running_statistics_are_refused_with_the_reason_and_the_remedy(norm):
    with pytest.raises(dr.errors.ArgumentError, match=r"(?s)running_mean.*parameters only.*GroupNorm"):
        FunctionalNetwork(nn.Sequential(nn.Linear(3, 4), norm))


def test_batch_statistics_without_memory_are_accepted():
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    call = FunctionalNetwork(network)
    x = torch.randn(5, 3)
    torch.testing.assert_close(call(call.layout.flatten(network), x), network(x))


def test_a_network_whose_call_leaves_a_trace_is_refused():
    with pytest.raises(dr.errors.ArgumentError, match="calls"):
        FunctionalNetwork(Scaled(counts=True))(torch.zeros(8), torch.zeros(1, 3))


def test_constant_buffers_follow_the_vectors_type():
    network = Scaled()
    call = FunctionalNetwork(network)
    x = torch.randn(4, 3)
    vector = call.layout.flatten(network).double()
    found = call(vector, x.double())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, network(x).double(), rtol=1e-5, atol=1e-6)


def test_tied_parameters_stand_once_in_the_vector():
    network = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    network[2].weight = network[0].weight
    call = FunctionalNetwork(network)
    assert call.size == 9 + 3 + 3
    x = torch.randn(2, 3)
    torch.testing.assert_close(call(call.layout.flatten(network), x), network(x))


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.recurrent(x)[0][:, -1])


def test_recurrent_networks_follow_the_vector():
    network = Last()
    call = FunctionalNetwork(network)
    x = torch.randn(2, 5, 3)
    vector = torch.randn(call.size, requires_grad=True)
    expected = torch.func.functional_call(network, call.layout.unflatten(vector), (x,))
    torch.testing.assert_close(call(vector, x), expected)
    (grad,) = torch.autograd.grad(call(vector, x).sum(), vector)
    assert torch.count_nonzero(grad) == call.size
    torch.testing.assert_close(call(call.layout.flatten(network), x), network(x))


def test_a_call_that_fails_leaves_the_copy_as_it_was():
    call = FunctionalNetwork(nn.Linear(3, 2))
    before = dict(call.skeleton.module.named_parameters())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        call(torch.zeros(8), torch.zeros(1, 7))
    after = dict(call.skeleton.module.named_parameters())
    assert all(after[name] is parameter for name, parameter in before.items())
    with pytest.raises(dr.errors.ArgumentError, match=r"^vector: got"):
        call(torch.zeros(9), torch.zeros(1, 3))


def test_a_compiled_network_is_taken_out_of_its_wrapper():
    network = nn.Linear(3, 2)
    call = FunctionalNetwork(torch.compile(network, backend="eager"))
    assert call.layout.fingerprint == ParameterLayout.of(network).fingerprint


def test_a_store_of_another_architecture_is_refused():
    layout = ParameterLayout.of(nn.Linear(3, 2))
    require_layout(None, layout)
    require_layout(layout.to_dict(), layout)
    with pytest.raises(dr.errors.SchemaMismatch, match="weight"):
        require_layout(ParameterLayout.of(nn.Linear(4, 2)).to_dict(), layout)
    for nonsense in ("text", {"parameters": 3}):
        with pytest.raises(dr.errors.ArgumentError, match=r"^store: got"):
            require_layout(nonsense, layout)
