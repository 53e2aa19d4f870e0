"""Ends of paths and heads, empty batches, wrapped networks: where objectives of flow maps could go wrong in silence."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distillrs import random, recipes
from distillrs.diffusion import (
    Batch,
    Central,
    Cosine,
    Data,
    Diagonal,
    DiffusersNetwork,
    Endpoint,
    Eulerian,
    FlowMap,
    Guided,
    Jump,
    LatentBoundary,
    MaskNonFinite,
    Network,
    Teacher,
)
from distillrs.errors import ArgumentError
from distillrs.evaluate.beds import KernelDensity
from distillrs.schedule import EDM, VP, Prediction, RectifiedFlow, Triangle
from distillrs.step import Step

X0 = random.normal(6, 3, step=0, name="data", dtype=torch.float64)
STEP = Step(3, seed=1, total=10)


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x, t, r, **condition):
        return self.layers(torch.cat([x, t[:, None], r[:, None]], 1))


@pytest.mark.parametrize("path", [VP.cosine(), VP.betas()])
@pytest.mark.parametrize("kind", ["v", "x0"])
def test_maps_to_the_data_have_finite_losses_on_every_path(path, kind):
    objective = FlowMap(
        Network(Net()),
        path=path,
        head=Jump(kind),
        source=Data(),
        residual=Eulerian(scale="state"),
        pairs=Triangle(diagonal=0.0, endpoint=1.0),
    )
    loss = objective(Batch(X0), STEP).total
    loss.backward()
    assert torch.isfinite(loss)
    assert all(
        torch.isfinite(each.grad).all() for each in objective.parameter_groups()["student"] if each.grad is not None
    )


def test_a_head_that_ends_in_the_data_learns_the_data():
    seen = []

    def metric(found, target, *rest):
        seen.append(target.detach())
        return (found - target).square().flatten(1).sum(1)

    noise = random.normal(6, 3, step=0, name="noise", dtype=torch.float64)
    objective = FlowMap(
        Network(Net()),
        path=VP.cosine(),
        head=LatentBoundary("v"),
        residual=Endpoint(space="state"),
        pairs=Triangle(diagonal=0.0),
        metric=metric,
    )
    objective(Batch(X0, noise=noise), STEP)
    torch.testing.assert_close(seen[0], X0)


def test_an_empty_batch_gives_zero():
    loss = recipes.shortcut(Net())(Batch(X0[:0]), STEP)
    assert float(loss.total.detach()) == 0
    assert all(float(value) == 0 for value in loss.terms.values())


def test_masked_rows_are_not_in_the_terms():
    class Holed(Net):
        def forward(self, x, t, r, **condition):
            found = super().forward(x, t, r)
            return torch.where(torch.arange(len(x))[:, None] == 2, torch.nan, found)

    objective = FlowMap(
        Network(Holed()),
        path=RectifiedFlow(),
        residual=Diagonal(Data()),
        pairs=Triangle(diagonal=1.0),
        metric=Cosine(),
        balance=MaskNonFinite(),
    )
    loss = objective(Batch(X0), STEP)
    torch.testing.assert_close(loss.terms["loss"], loss.terms["weighted"])


def test_differences_never_reach_the_level_without_noise():
    told = []

    class Logs(Net):
        def forward(self, x, t, r, **condition):
            told.append(t)
            return super().forward(x, t, r)

    network = Network(Logs(), clock="log_sigma", path=EDM())
    objective = FlowMap(
        network,
        path=EDM(),
        head=Jump("x0"),
        source=Teacher(Network(Net()), "x0"),
        residual=Eulerian(Central(5e-3), scale="state"),
        pairs=Triangle(diagonal=0.0),
    )
    objective(Batch(X0), STEP)
    assert all(torch.isfinite(each).all() for each in told)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_networks_of_diffusers_hear_the_exact_row_of_their_table(dtype):
    heard = []

    class Module(nn.Module):
        def forward(self, sample, timestep, **rest):
            heard.append(timestep)
            return (sample,)

    adapter = DiffusersNetwork(Module(), times="t", clock="index", path=VP.betas())
    rows = torch.tensor([999, 981, 501], dtype=torch.float64)
    t = VP.betas().clock(rows, of="index", to="time")
    adapter(torch.zeros(3, 3, dtype=dtype), t, t)
    torch.testing.assert_close(heard[0].double(), rows, rtol=0, atol=1e-3)


def test_rows_without_a_condition_are_not_guided_for_any_source():
    class Score:
        def predict(self, x, t, condition=None):
            return Prediction(x * condition["y"][:, None].to(x), "velocity")

    other = {"y": torch.ones(6, dtype=torch.int64)}
    objective = FlowMap(
        Network(Net()),
        path=RectifiedFlow(),
        source=Guided(Score(), 2.0, null=other),
        residual=Diagonal(),
        pairs=Triangle(diagonal=1.0),
        condition_dropout=1.0,
        metric=lambda found, target, *rest: target.flatten(1).sum(1),
    )
    condition, null = {"y": torch.full((6,), 3)}, {"y": torch.full((6,), 7)}
    unguided = FlowMap(
        Network(Net()),
        path=RectifiedFlow(),
        source=Score(),
        residual=Diagonal(),
        pairs=Triangle(diagonal=1.0),
        condition_dropout=1.0,
        metric=lambda found, target, *rest: target.flatten(1).sum(1),
    )
    batch = Batch(X0, condition=condition, null_condition=null)
    torch.testing.assert_close(objective(batch, STEP).total, unguided(batch, STEP).total)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: recipes.progressive_distillation(Net(), Net(), kind="noise"), "^kind: got 'noise'"),
        (lambda: recipes.instaflow(Net(), "reflow")(Batch(X0), STEP), "^noise: got None"),
        (lambda: recipes.consistency_training(Net(), steps=0)(Batch(X0), STEP), "^steps: got 0"),
        (lambda: Batch(torch.tensor(1.0)), "^x0: got"),
    ],
)
def test_what_would_train_the_wrong_thing_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_density_of_classes_answers_for_no_rows_and_names_an_empty_class():
    bed = KernelDensity(X0, 0.3, labels=torch.tensor([0, 0, 0, 2, 2, 2]))
    alpha = sigma = torch.ones(0, dtype=torch.float64)
    label = {"label": torch.zeros(0, dtype=torch.int64)}
    assert bed.denoise(X0[:0], alpha, sigma, label).shape == (0, 3)
    with pytest.raises(ArgumentError, match=r"^condition: got 'the label 1'"):
        bed.denoise(X0[:1], torch.ones(1).double(), torch.ones(1).double(), {"label": torch.ones(1, dtype=torch.int64)})


def test_mean_flow_trains_a_network_wrapped_for_data_parallelism(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, inner = Net(), Net()
        wrapped = DistributedDataParallel(inner)
        objective = recipes.mean_flow(plain)
        for index in range(3):
            step = Step(index, seed=1, total=10)
            mine, theirs = objective(Batch(X0), step), objective(Batch(X0), step, student=wrapped)
            torch.testing.assert_close(mine.total, theirs.total)
            mine.total.backward()
            theirs.total.backward()
        for one, other in zip(plain.parameters(), inner.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
    finally:
        torch.distributed.destroy_process_group()
