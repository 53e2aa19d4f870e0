"""Denoisers of diffusers in their adapter: their own calls, as a student and as a teacher."""

import math
import os
import warnings

import pytest
import torch

from distillrs import random
from distillrs.diffusion import Batch, Central, DiffusersNetwork, Eulerian, FlowMap, Jump, StateMap, Teacher, sample
from distillrs.errors import ArgumentError
from distillrs.frozen import Frozen
from distillrs.schedule import VP, LogitNormal, RectifiedFlow, Triangle, Uniform, spaced

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install distillrs[diffusers]")

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs are not ours to mend
X = random.normal(3, 1, 8, 8, step=0, name="x")
T = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)


def unet(**changes):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, **changes,
    ).eval()  # fmt: skip


def transformer():
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=1,
    ).eval()  # fmt: skip


def test_a_unet_is_called_with_the_row_of_its_table():
    path, network = VP.betas(), unet()
    rows = path.clock(T, to="index")
    adapter = DiffusersNetwork(network, times="t", clock="index", path=path)
    assert torch.equal(adapter(X, T, T), network(X, rows.float()).sample)
    flow = DiffusersNetwork(network, times="t", clock="thousand")
    assert torch.allclose(flow(X, T, T), network(X, (1000 * T).float()).sample)


def test_a_unet_takes_a_second_time():
    network = unet(class_embed_type="timestep")
    torch.nn.init.normal_(network.class_embedding.linear_2.weight)
    adapter = DiffusersNetwork(network, times="t_gap", clock="thousand", second="class_labels")
    r = torch.tensor([0.1, 0.5, 0.0], dtype=torch.float64)
    expected = network(X, (1000 * T).float(), class_labels=(1000 * (T - r)).float()).sample
    assert torch.allclose(adapter(X, T, r), expected, atol=1e-6)
    assert not torch.allclose(adapter(X, T, r), adapter(X, T, T), atol=1e-4)
    assert adapter.two_times


def test_a_transformer_drops_its_variance_and_takes_classes():
    network = transformer()
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.1)
    label = torch.tensor([0, 3, 1])
    adapter = DiffusersNetwork(network, times="t", clock="thousand", learned_variance=True)
    expected = network(X, timestep=(1000 * T).float(), class_labels=label).sample[:, :1]
    assert torch.allclose(adapter(X, T, T, {"class_labels": label}), expected, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"^network: got"):
        DiffusersNetwork(network, times="t", clock="thousand")(X, T, T, {"class_labels": label})


def test_a_unet_is_distilled_and_sampled():
    path = RectifiedFlow()
    student, teacher = unet(class_embed_type="timestep"), unet()
    adapter = DiffusersNetwork(student, times="t_gap", clock="thousand", second="class_labels")
    score = Teacher(DiffusersNetwork(Frozen(teacher), times="t", clock="thousand"), "velocity")
    objective = FlowMap(
        adapter, path=path, source=score, residual=Eulerian(Central(5e-3)), pairs=Triangle(0.5, law=LogitNormal())
    )
    before = float(objective(Batch(X), 0).total.detach())
    optimiser = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(15):
        optimiser.zero_grad()
        loss = objective(Batch(X), 0)
        loss.total.backward()
        optimiser.step()
    assert float(objective(Batch(X), 0).total.detach()) < before
    assert all(parameter.grad is None for parameter in teacher.parameters())
    found = sample(objective.map, X, spaced(2, path))
    assert found.shape == X.shape
    assert bool(found.isfinite().all())


def test_forward_derivatives_of_a_unet():
    """Its convolutions and norms have them; the loss is that of differences."""
    adapter = DiffusersNetwork(unet().double(), times="t", clock="thousand")
    score = Teacher(DiffusersNetwork(unet().double(), times="t", clock="thousand"), "noise")
    losses = [
        float(
            FlowMap(
                adapter, path=VP(), head=Jump("noise"), source=score, pairs=Triangle(0.0, law=Uniform(0.3, 0.7)),
                residual=residual,
            )(Batch(X.double()), 0).total.detach()
        )
        for residual in (Eulerian(scale="state"), Eulerian(Central(1e-4), scale="state"))
    ]  # fmt: skip
    assert math.isfinite(losses[0])
    # Its sines of the time are single precision, whatever the rest is.
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert StateMap(adapter, VP(), Jump("noise"))(X.double(), T, T).allclose(X.double())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DiffusersNetwork(unet(), times="t_gap", clock="thousand"), "^second: got None"),
        (lambda: DiffusersNetwork(unet(), times="t", clock="thousand", second="class_labels"), "^second: got 'class"),
        (
            lambda: DiffusersNetwork(
                unet(class_embed_type="timestep"), times="t_r", clock="thousand", second="class_labels"
            )(X, T, T, {"class_labels": T}),
            "^condition: got 'class_labels'",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
