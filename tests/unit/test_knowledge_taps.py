"""Tensors from inside a network: found, removed again, and the same under every wrapper."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import distillrs as dr
from distillrs.knowledge import Inputs, Output, Tap, record, release
from distillrs.knowledge.taps import find_module, unwrapped


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.linear(x)), x.sum()


class Network(nn.Module):
    def __init__(self, reentrant=None):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 3)
        self.reentrant = reentrant

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)[0] if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant)[0]
        return {"logits": self.head(x), "hidden_states": (x, 2 * x)}


# Where a compiled graph breaks, torch looks at the gradient of a tensor within, and warns of it.
BREAKS = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

X = torch.linspace(-1, 1, 8).reshape(2, 4)


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_paths_sides_and_fields_are_read_and_hooks_are_gone_afterwards():
    network = Network()
    taps = [Tap("layers.1"), Tap("layers.1", field=1), Tap("layers.1", "input"), Output(), Output("hidden_states", -1)]
    function = lambda run: run.output["logits"] + run.inputs.args[0].sum()
    found = record(network, [*taps, function], Inputs((X,)))
    hidden = network.layers[0](X)[0]
    torch.testing.assert_close(found.values[taps[0]], network.layers[1](hidden)[0])
    torch.testing.assert_close(found.values[taps[1]], hidden.sum())
    torch.testing.assert_close(found.values[taps[2]], hidden)
    torch.testing.assert_close(found.values[taps[4]], 2 * network.layers[1](hidden)[0])
    torch.testing.assert_close(found.values[function], found.values[taps[3]] + X.sum())
    assert hooks(network) == 0


def test_hooks_are_removed_when_the_network_raises():
    network = Network()
    with pytest.raises(RuntimeError):
        record(network, [Tap("layers.0")], Inputs((torch.ones(2, 7),)))
    assert hooks(network) == 0


@pytest.mark.parametrize("prefix", ["module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_paths_are_those_of_the_unwrapped_network(prefix):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.add_module(prefix, inner)

        def forward(self, *args):
            return self._modules[prefix](*args)

    network = Network()
    network.layers[1] = Wrapper(network.layers[1])
    outer = Wrapper(network)
    expected = record(network, [Tap("layers.1.linear")], Inputs((X,)))
    if prefix != "_orig_mod":  # that one is told by its type below
        found = record(outer, [Tap("layers.1.linear")], Inputs((X,)))
        assert torch.equal(found.values[Tap("layers.1.linear")], expected.values[Tap("layers.1.linear")])
    assert find_module(outer, "layers.1.linear") is network.layers[1]._modules[prefix].linear
    if prefix != "module":
        assert unwrapped(outer) is network


def test_a_network_of_its_own_child_called_module_is_no_wrapper():
    network = nn.ModuleDict({"module": nn.ModuleDict({"a": nn.Linear(1, 1)})})
    assert find_module(network, "module.a") is network["module"]["a"]


@BREAKS
def test_a_compiled_network_is_tapped_at_every_call_and_released():
    torch._dynamo.reset()
    network = Network()
    expected = record(network, [Tap("layers.0")], Inputs((X,))).values[Tap("layers.0")]
    compiled = torch.compile(network, backend="aot_eager")
    for _ in range(3):
        found = record(compiled, [Tap("layers.0"), Output()], Inputs((X,)))
        torch.testing.assert_close(found.values[Tap("layers.0")], expected)
    gradient = torch.autograd.grad(found.values[Tap("layers.0")].sum(), network.layers[0].linear.weight)[0]
    assert gradient.abs().sum() > 0
    assert hooks(network) == 1
    release(compiled)
    assert hooks(network) == 0
    torch._dynamo.reset()


def test_a_tap_that_comes_after_the_compiler_is_refused_with_the_remedy():
    torch._dynamo.reset()
    compiled = torch.compile(Network(), backend="eager")
    compiled(X)
    with pytest.raises(dr.errors.ArgumentError, match=r"'layers.0': got 'no call'.*first call"):
        record(compiled, [Tap("layers.0")], Inputs((X,)))
    torch._dynamo.reset()


def test_a_recomputation_is_not_tapped_twice_and_gradients_are_those_without_it():
    plain, saved = Network(), Network(reentrant=False)
    saved.load_state_dict(plain.state_dict())
    gradients = []
    for network in (plain, saved):
        found = record(network, [Tap("layers.0"), Output()], Inputs((X,)))
        loss = found.values[Tap("layers.0")].square().sum() + found.values[Output()].square().sum()
        loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_reentrant_checkpointing_cuts_the_graph_inside_the_region_and_is_refused_there():
    network = Network(reentrant=True)
    inputs = Inputs((X.clone().requires_grad_(),))
    with pytest.raises(dr.errors.ArgumentError, match=r"student tap 'layers.0.linear': got .*use_reentrant"):
        record(network, [Tap("layers.0.linear")], inputs, who="student")
    at_the_border = record(network, [Tap("layers.0")], inputs).values[Tap("layers.0")]
    at_the_border.sum().backward()
    assert network.layers[0].linear.weight.grad.abs().sum() > 0


def test_a_call_within_a_call_stays_out_of_the_outer_record():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Network()

        def forward(self, x):
            self.seen = record(self.inner, [Tap("head")], Inputs((x,)))
            return self.inner(x + 1)

    network = Outer()
    found = record(network, [Tap("inner.head")], Inputs((X,)))
    torch.testing.assert_close(found.values[Tap("inner.head")], network.inner(X + 1)["logits"])
    torch.testing.assert_close(network.seen.values[Tap("head")], network.inner(X)["logits"])


def test_a_module_that_is_called_often_needs_the_number_of_the_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    network = Twice()
    with pytest.raises(dr.errors.ArgumentError, match="got '2 calls in one forward pass'"):
        record(network, [Tap("layer")], Inputs((X,)))
    found = record(network, [Tap("layer", call=0), Tap("layer", call=1)], Inputs((X,)))
    torch.testing.assert_close(found.values[Tap("layer", call=0)], network.layer(X))
    torch.testing.assert_close(found.values[Tap("layer", call=1)], network(X))
    with pytest.raises(dr.errors.ArgumentError, match="call 2 of 2"):
        record(network, [Tap("layer", call=2)], Inputs((X,)))


def test_what_is_not_there_is_refused_with_the_nearest_names():
    with pytest.raises(dr.errors.UnknownNameError, match=r"student tap: got 'layers.2'.*'layers\.[01]'"):
        record(Network(), [Tap("layers.2")], Inputs((X,)), who="student")
    with pytest.raises(dr.errors.UnknownNameError, match=r"output: got 'logit'.*did you mean 'logits'"):
        record(Network(), [Output("logit")], Inputs((X,)))
    with pytest.raises(dr.errors.ArgumentError, match="entry 2"):
        record(Network(), [Output("hidden_states", 2)], Inputs((X,)))
    with pytest.raises(dr.errors.ArgumentError, match=r"'layers.0\[x\]'|layers"):
        record(Network(), [Tap("layers.0", field="x")], Inputs((X,)))


@dataclass
class Answer:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


Pair = namedtuple("Pair", ["logits", "cache"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, x + 1),
        lambda x: {"logits": x, "other": x + 1},
        lambda x: Answer(x),
        lambda x: Pair(x, 3),
    ],
)
def test_logits_are_found_in_every_usual_output(wrap):
    class Plain(nn.Module):
        def forward(self, x):
            return wrap(x)

    assert record(Plain(), [Output("logits")], Inputs((X,))).values[Output("logits")] is X


def test_model_outputs_of_transformers_are_read():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Plain(nn.Module):
        def forward(self, x):
            return outputs.CausalLMOutput(logits=x, hidden_states=(x, x + 1))

    found = record(Plain(), [Output(), Output("hidden_states", 1)], Inputs((X,)))
    assert found.values[Output()] is X
    assert torch.equal(found.values[Output("hidden_states", 1)], X + 1)
    with pytest.raises(dr.errors.UnknownNameError, match="attentions"):
        record(Plain(), [Output("attentions")], Inputs((X,)))
    with pytest.raises(dr.errors.ArgumentError, match="a plain tensor"):
        record(nn.Identity(), [Output("hidden_states")], Inputs((X,)))


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda: Tap(""), "path"), (lambda: Tap("a", "both"), "side"), (lambda: Tap("a", call=-1), "call")],
)
def test_taps_that_make_no_sense_are_refused(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()
