import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.augment import Augmentation
from distillrs.condense import (
    Guard,
    HardLabels,
    SoftLabels,
    Synthetic,
    TrajectoryMatching,
    Unroll,
    Windows,
    inner_batches,
    intermediate_targets,
)
from distillrs.schedule import ExpandingWindow
from distillrs.training import classification_loss
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk


def network(dtype=torch.float64):
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def bed(experts=3, epochs=8, dtype=torch.float64, **options):
    model = network(dtype)
    layout = ParameterLayout.of(model)
    store = MemoryStore(
        {f"expert-{seed}": walk(layout, network(dtype), epochs, seed) for seed in range(experts)},
        {"layout": layout.to_dict()},
    )
    made = Synthetic(torch.randn(6, 5, dtype=dtype), HardLabels(torch.arange(6) % 3), inner_lr=0.2)
    defaults = {"unroll": Unroll(4), "windows": Windows(2, range(5))}
    return TrajectoryMatching(store, model, made, **(defaults | options))


def gradients(objective, step):
    loss = objective(None, step)
    groups = objective.parameter_groups()
    wanted = [parameter for group in groups.values() for parameter in group]
    return loss, torch.autograd.grad(loss.total, wanted, allow_unused=True)


def test_it_is_an_objective():
    objective = bed()
    assert isinstance(objective, dr.Objective)
    assert objective.turns(0) == ("synthetic",)
    assert list(objective.parameter_groups()) == ["images", "inner_lr"]
    assert {id(p) for p in objective.parameters()} == {id(p) for p in objective.synthetic.parameters()}
    assert all(name.startswith("synthetic.") for name in objective.state_dict())


def test_the_loss_is_the_normalised_distance_after_plain_gradient_descent():
    """Against ordinary training of the network itself by torch's optimiser."""
    objective = bed()
    step = dr.Step(3, seed=5)
    loss = objective(None, step)
    key, s = objective.windows.draw(objective.store, step)
    records = objective.store.trajectories[key]
    model = network()
    objective.network.layout.load(model, records[s])
    optimiser = torch.optim.SGD(model.parameters(), lr=objective.synthetic.inner_lr.item())
    for _ in range(4):
        optimiser.zero_grad()
        classification_loss(model(objective.synthetic.images.detach()), objective.synthetic.targets()).backward()
        optimiser.step()
    end = objective.network.layout.flatten(model)
    expected = (end - records[s + 2]).square().sum() / (records[s] - records[s + 2]).square().sum()
    torch.testing.assert_close(loss.total.detach(), expected)
    torch.testing.assert_close(loss.terms["matching"], expected)
    assert loss.terms["start"] == s
    assert loss.terms["inner_lr"] == pytest.approx(0.2)
    assert not any(term.requires_grad for term in loss.terms.values())


def test_a_step_gives_the_same_loss_and_gradient_at_every_call():
    objective = bed(batch=2)
    step = dr.Step(11, seed=2)
    first_loss, first = gradients(objective, step)
    objective(None, dr.Step(12, seed=2))
    again_loss, again = gradients(objective, step)
    assert torch.equal(first_loss.total, again_loss.total)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_plain_number_takes_the_objectives_seed():
    objective = bed(seed=7)
    assert torch.equal(objective(None, 4).total, objective(None, dr.Step(4, seed=7)).total)


def test_all_experts_and_all_starts_are_drawn_and_the_seed_decides():
    objective = bed()
    drawn = [objective.windows.draw(objective.store, dr.Step(i)) for i in range(200)]
    assert {key for key, _ in drawn} == {"expert-0", "expert-1", "expert-2"}
    assert {start for _, start in drawn} == set(range(5))
    other = [objective.windows.draw(objective.store, dr.Step(i, seed=1)) for i in range(200)]
    assert drawn != other


def test_ranks_draw_windows_of_their_own():
    objective = bed()
    drawn = [
        [objective.windows.draw(objective.store, dr.Step(i, first_unit=rank)) for i in range(50)] for rank in (0, 1)
    ]
    assert drawn[0] != drawn[1]


def test_the_item_count_normalises_the_loss():
    objective = bed()
    whole, part = objective(None, dr.Step(2)), objective(None, dr.Step(2, items=4))
    torch.testing.assert_close(part.total, whole.total / 4)
    assert torch.equal(part.terms["matching"], whole.terms["matching"])


def test_reading_into_reused_buffers_does_not_change_a_graph_that_is_still_held():
    """Two losses are formed before either is differentiated, as gradient accumulation does."""
    for gradient in ("full", "adjoint", "truncated"):
        objective = bed(dtype=torch.float32, unroll=Unroll(4, gradient))
        steps = [dr.Step(0), dr.Step(1)]
        apart = [gradients(objective, step)[1][0] for step in steps]
        held = [objective(None, step).total for step in steps]
        together = [torch.autograd.grad(total, objective.synthetic.images)[0] for total in held]
        assert all(torch.equal(one, other) for one, other in zip(apart, together, strict=True))
        outs = objective.store.window_outs
        assert outs[0] is None
        assert all(out is outs[1] for out in outs[1:])


def test_the_networks_own_parameters_are_never_touched():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    layout = ParameterLayout.of(model)
    store = MemoryStore({"a": walk(layout, network())})
    made = Synthetic(torch.randn(3, 5, dtype=torch.float64), HardLabels(torch.arange(3)))
    TrajectoryMatching(store, model, made, unroll=Unroll(2), windows=Windows()).forward(None, 0).total.backward()
    assert all(torch.equal(old, new) and new.grad is None for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("gradient", ["full", "adjoint", "truncated"])
def test_a_guarded_call_has_gradients_of_exactly_zero(gradient):
    calm = bed(unroll=Unroll(4, gradient))
    value = calm(None, 0).terms["matching"].item()
    for threshold, skipped in ((value * 0.99, 1), (value * 1.01, 0)):
        calm.guard = Guard(threshold)
        loss, found = gradients(calm, 0)
        assert loss.terms["skipped"] == skipped
        assert loss.terms["matching"].item() == value
        assert loss.total.item() == (0 if skipped else value)
        assert all(bool((torch.count_nonzero(each) == 0) == bool(skipped)) for each in found)


@pytest.mark.parametrize("gradient", ["full", "adjoint", "truncated"])
def test_a_loss_that_is_not_finite_leaves_no_trace(gradient):
    objective = bed(unroll=Unroll(4, gradient))
    objective.inner_scale = lambda start: 1e308
    loss, found = gradients(objective, 0)
    assert not torch.isfinite(loss.terms["matching"])
    assert loss.total == 0
    assert loss.terms["skipped"] == 1
    assert all(torch.count_nonzero(each) == 0 and bool(torch.isfinite(each).all()) for each in found)


def test_late_windows_blow_up_the_loss_and_the_guard_holds_them():
    """An expert that hardly moves any more makes the normaliser tiny."""
    model = network()
    layout = ParameterLayout.of(model)
    records = walk(layout, model, epochs=4)
    records += [records[-1] + 1e-4 * i * torch.randn_like(records[-1]) for i in range(1, 5)]
    store = MemoryStore({"a": records})
    made = Synthetic(torch.randn(3, 5, dtype=torch.float64), HardLabels(torch.arange(3)), inner_lr=0.5)
    early, late = (
        TrajectoryMatching(store, model, made, unroll=Unroll(4), windows=Windows(2, start), guard=Guard(5.0))
        for start in (range(1), range(5, 7))
    )
    assert early(None, 0).terms["skipped"] == 0
    assert late(None, 0).terms["matching"] > 1e3
    assert late(None, 0).terms["skipped"] == 1


def test_aliased_snapshots_are_refused_with_the_reason():
    model = network()
    vector = ParameterLayout.of(model).flatten(model)
    store = MemoryStore({"a": [vector] * 8})
    made = Synthetic(torch.randn(3, 5, dtype=torch.float64), HardLabels(torch.arange(3)))
    objective = TrajectoryMatching(store, model, made, unroll=Unroll(2), windows=Windows())
    with pytest.raises(dr.errors.DataError, match=r"expert 'a'.*share memory"):
        objective(None, 0)


def test_starts_whose_window_ends_outside_the_trajectory_are_refused():
    """With nine records, the last window of span 2 starts at record 6."""
    bed(windows=Windows(2, range(7)))
    with pytest.raises(dr.errors.ArgumentError, match=r"^start: got .*starts up to 6"):
        bed(windows=Windows(2, range(8)))
    later = bed(windows=Windows(2, ExpandingWindow(0, 7, 8, steps=10)))
    later(None, 0)
    with pytest.raises(dr.errors.ArgumentError, match=r"starts up to 6"):
        later(None, 10)


def test_an_empty_store_is_refused():
    with pytest.raises(dr.errors.ArgumentError, match=r"^store: got 'no complete trajectory'"):
        bed(experts=0)


def test_a_curriculum_gives_the_starts_of_each_step():
    objective = bed(windows=Windows(2, ExpandingWindow(1, 2, 5, steps=10)))
    assert {objective(None, dr.Step(0, seed=seed)).terms["start"].item() for seed in range(20)} == {1}
    assert {objective(None, dr.Step(10, seed=seed)).terms["start"].item() for seed in range(60)} == {1, 2, 3, 4}


def test_intermediate_targets_are_the_records_on_the_way():
    assert intermediate_targets(40, 3) == {13: (1, 1.0), 26: (2, 1.0), 40: (3, 1.0)}
    assert intermediate_targets(7, 2, weight="share") == {3: (1, 0.5), 7: (2, 1.0)}
    assert intermediate_targets(5, 1) == {5: (1, 1.0)}
    objective = bed(unroll=Unroll(6), windows=Windows(3, range(4)), targets=intermediate_targets(6, 3, weight="share"))
    loss = objective(None, 1)
    parts = {name: term for name, term in loss.terms.items() if name.startswith("matching/")}
    assert list(parts) == ["matching/2", "matching/4", "matching/6"]
    expected = parts["matching/2"] / 3 + parts["matching/4"] * 2 / 3 + parts["matching/6"]
    torch.testing.assert_close(loss.total.detach(), expected)
    _, s = objective.windows.draw(objective.store, dr.Step(1))
    alone = bed(unroll=Unroll(2), windows=Windows(1, range(s, s + 1)))
    alone.store, alone.synthetic = objective.store, objective.synthetic
    key, _ = objective.windows.draw(objective.store, dr.Step(1))
    alone.store = MemoryStore({key: objective.store.trajectories[key]})
    torch.testing.assert_close(alone(None, 1).terms["matching"], parts["matching/2"])


def test_a_perturbation_moves_the_start_and_nothing_else():
    calls = []

    def shifted(vector, layout, *, step):
        calls.append((layout.size, step))
        return vector + 0.05

    plain, moved = bed(), bed(perturbation=shifted)
    moved.store, moved.synthetic = plain.store, plain.synthetic
    assert not torch.equal(plain(None, 0).total, moved(None, 0).total)
    assert calls == [(plain.network.size, dr.Step(0))]
    moved.synthetic.inner_lr.data.fill_(1e-6)
    key, s = moved.windows.draw(moved.store, dr.Step(0))
    records = moved.store.trajectories[key]
    expected = (records[s] + 0.05 - records[s + 2]).square().sum() / (records[s] - records[s + 2]).square().sum()
    torch.testing.assert_close(moved(None, 0).terms["matching"], expected, rtol=1e-4, atol=0)


def test_the_inner_scale_of_a_window_acts_like_a_rate():
    objective = bed()
    _, s = objective.windows.draw(objective.store, dr.Step(0))
    objective.inner_scale = lambda start: {s: 2.5}.get(start, 0.0)
    scaled = objective(None, 0).total.detach()
    objective.inner_scale = None
    objective.synthetic.inner_lr.data.mul_(2.5)
    torch.testing.assert_close(objective(None, 0).total.detach(), scaled)


def test_expert_labels_are_the_predictions_at_the_windows_end():
    objective = bed()
    images = torch.randn(6, 5, dtype=torch.float64)
    made = Synthetic(images, SoftLabels(torch.zeros(6, 3, dtype=torch.float64), learn=False), inner_lr=0.2)
    labelled = TrajectoryMatching(
        objective.store, network(), made, unroll=Unroll(4), windows=Windows(2, range(5)), labels="expert"
    )
    loss = labelled(None, 6)
    key, s = labelled.windows.draw(labelled.store, dr.Step(6))
    logits = labelled.network(labelled.store.trajectories[key][s + 2], images)
    torch.testing.assert_close(made.labels.logits, logits)
    own = TrajectoryMatching(
        objective.store,
        network(),
        Synthetic(images, SoftLabels(logits), inner_lr=0.2),
        unroll=Unroll(4),
        windows=Windows(2, range(5)),
    )
    torch.testing.assert_close(loss.total.detach(), own(None, 6).total.detach())
    assert list(labelled.parameter_groups()) == ["images", "inner_lr"]
    with pytest.raises(dr.errors.ArgumentError, match=r"^labels: got 'expert'.*learn=False"):
        bed(labels="expert")


def test_learned_labels_get_a_gradient():
    objective = bed()
    made = Synthetic(torch.randn(6, 5, dtype=torch.float64), SoftLabels(torch.zeros(6, 3, dtype=torch.float64)))
    learned = TrajectoryMatching(objective.store, network(), made, unroll=Unroll(3), windows=Windows())
    _, found = gradients(learned, 0)
    assert list(learned.parameter_groups()) == ["images", "labels", "inner_lr"]
    assert found[1].abs().sum() > 0
    torch.testing.assert_close(found[1].sum(1), torch.zeros(6, dtype=torch.float64))


def test_the_rate_and_the_box_are_projected_before_they_are_used():
    objective = bed()
    objective.synthetic.inner_lr.data.fill_(-3.0)
    loss = objective(None, 0)
    assert loss.terms["inner_lr"] == pytest.approx(1e-6)


def test_inner_minibatches_go_through_the_whole_set_before_they_repeat():
    batches = inner_batches(10, 4, 7, dr.Step(3))
    assert [len(rows) for rows in batches] == [4, 4, 2, 4, 4, 2, 4]
    for turn in (batches[:3], batches[3:6]):
        assert sorted(torch.cat(turn).tolist()) == list(range(10))
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:6]).tolist()
    assert inner_batches(10, None, 7, dr.Step(3)) is None
    assert inner_batches(10, 10, 7, dr.Step(3)) is None
    again = inner_batches(10, 4, 7, dr.Step(3))
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


def image_bed(gradient, batch=None):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 3)).double()
    layout = ParameterLayout.of(model)
    store = MemoryStore({"a": walk(layout, model)})
    made = Synthetic(torch.randn(6, 1, 8, 8, dtype=torch.float64), HardLabels(torch.arange(6) % 3), inner_lr=0.1)
    strategy = Augmentation("color_crop_cutout_flip_scale_rotate")
    return TrajectoryMatching(
        store, model, made, unroll=Unroll(4, gradient), windows=Windows(), augmentation=strategy, batch=batch
    )


@pytest.mark.parametrize("batch", [None, 4])
def test_augmentations_are_replayed_as_they_were(batch):
    full = gradients(image_bed("full", batch), 2)
    adjoint = gradients(image_bed("adjoint", batch), 2)
    torch.testing.assert_close(full[0].total, adjoint[0].total, rtol=1e-12, atol=1e-12)
    for one, other in zip(full[1], adjoint[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    plain = image_bed("adjoint", batch)
    plain.augmentation = None
    assert not torch.equal(plain(None, 2).total, adjoint[0].total)


def test_every_inner_step_has_its_own_augmentation():
    objective = image_bed("adjoint")
    transform = objective._transform(dr.Step(2), None, 6)
    images = objective.synthetic.images.detach()
    assert torch.equal(transform(images, 0), transform(images, 0))
    assert not torch.equal(transform(images, 0), transform(images, 1))


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"batch": 0}, "batch"),
        ({"labels": "mine"}, "labels"),
        ({"augmentation": Augmentation("flip")}, "augmentation"),
        ({"targets": {5: (2, 1.0)}}, "targets"),
        ({"targets": {4: (3, 1.0)}}, "targets"),
        ({"guard": "1.0"}, "guard"),
    ],
)
def test_what_is_refused_names_itself(options, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        bed(**options)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Windows(0), "span"),
        (lambda: Windows(2, range(3, 3)), "start"),
        (lambda: Windows(2, range(-1, 3)), "start"),
        (lambda: Windows(2, 3), "start"),
        (lambda: Guard(0.0), "threshold"),
        (lambda: Guard(float("nan")), "threshold"),
        (lambda: intermediate_targets(2, 3), "steps"),
        (lambda: intermediate_targets(6, 3, weight="two"), "weight"),
        (lambda: bed()(None, 0, turn="critic"), "turn"),
    ],
)
def test_parts_that_make_no_sense_are_refused(make, name):
    with pytest.raises(dr.errors.ArgumentError, match=f"^{name}: got"):
        make()


def test_a_network_or_a_store_that_does_not_fit_is_named():
    objective = bed()
    wide = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    options = {"unroll": Unroll(2), "windows": Windows()}
    with pytest.raises(dr.errors.SchemaMismatch):
        TrajectoryMatching(objective.store, wide, objective.synthetic, **options)
    anonymous = MemoryStore(objective.store.trajectories)
    with pytest.raises(dr.errors.ArgumentError, match=r"^network: got .*\[1, 3\]"):
        TrajectoryMatching(anonymous, wide, objective.synthetic, **options)
    other = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    with pytest.raises(dr.errors.ArgumentError, match=r"^store: got .*network's size"):
        TrajectoryMatching(anonymous, other, objective.synthetic, **options)(None, 0)
