import io

import pytest
import torch
from torch import nn

import distillrs as dr
from distillrs.condense import Guard, HardLabels, Synthetic, TrajectoryMatching, Unroll, Windows
from distillrs.fitting import Progress, fit, sgd
from distillrs.trajectory import ParameterLayout
from memory_store import MemoryStore, walk

RATES = {"images": {"lr": 0.5, "momentum": 0.5}, "inner_lr": 1e-4}


def objective(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    layout = ParameterLayout.of(model)
    store = MemoryStore({str(seed): walk(layout, model, seed=seed, size=0.02) for seed in range(3)})
    made = Synthetic(torch.randn(6, 5), HardLabels(torch.arange(6) % 3), inner_lr=0.2, average=0.9)
    return TrajectoryMatching(store, model, made, unroll=Unroll(4), windows=Windows(2, range(5)), **options)


class Adversaries(nn.Module):
    """Two turns with a parameter each: the critic three times as often."""

    def __init__(self):
        super().__init__()
        self.values = nn.ParameterDict({"critic": torch.tensor(1.0), "generator": torch.tensor(1.0)})
        self.called = []

    def forward(self, batch, step, *, turn=None):
        self.called.append((dr.Step.of(step).index, turn, batch))
        value = self.values[turn].square()
        return dr.Loss(value, {"value": value.detach()})

    def turns(self, step):
        return ("critic", "generator") if dr.Step.of(step).index % 3 == 2 else ("critic",)

    def parameter_groups(self):
        return {name: [self.values[name]] for name in self.values}


def test_it_descends():
    made = objective()
    first = [made(None, dr.Step(i, total=60)).terms["matching"] for i in range(20)]
    result = fit(made, RATES, 60)
    last = [made(None, dr.Step(i, total=60)).terms["matching"] for i in range(20)]
    assert torch.stack(last).mean() < torch.stack(first).mean()
    assert (result.next, result.skipped) == (60, 0)
    assert result.terms["synthetic"].keys() >= {"matching", "inner_lr"}


def test_it_equals_a_loop_written_by_hand():
    ours, theirs = objective(), objective()
    fit(ours, RATES, 5, seed=3)
    optimiser = torch.optim.SGD(
        [
            {"params": [theirs.synthetic.images], "lr": 0.5, "momentum": 0.5},
            {"params": [theirs.synthetic.inner_lr], "lr": 1e-4},
        ],
        lr=0.0,
    )
    for index in range(5):
        optimiser.zero_grad()
        theirs(None, dr.Step(index, seed=3, total=5)).total.backward()
        optimiser.step()
        theirs.after_step()
    assert torch.equal(ours.synthetic.images, theirs.synthetic.images)
    assert torch.equal(ours.synthetic.inner_lr, theirs.synthetic.inner_lr)
    assert torch.equal(ours.synthetic.examples(averaged=True), theirs.synthetic.examples(averaged=True))


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_continued_run_equals_one_that_was_never_interrupted(cut):
    whole, parts = objective(), objective()
    fit(whole, RATES, 7, seed=1)
    kept = {}

    def stop(progress):
        file = io.BytesIO()
        torch.save(progress.state(), file)
        kept["file"] = file
        return progress.step.index + 1 == cut

    assert fit(parts, RATES, 7, seed=1, callback=stop).next == cut
    kept["file"].seek(0)
    state = torch.load(kept["file"], weights_only=True)
    other = objective()
    other.synthetic.images.data.zero_()
    assert fit(other, RATES, 7, seed=1, state=state).next == 7
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in other.state_dict().items())


def test_a_state_is_a_copy():
    made, states = objective(), []
    fit(made, RATES, 3, callback=lambda progress: states.append(progress.state()))
    images = [state["objective"]["synthetic.images"] for state in states]
    assert not torch.equal(images[0], images[2])


def test_a_skipped_step_moves_nothing_in_spite_of_momentum():
    made = objective()
    kept = []

    def close(progress):
        kept.append((progress.skipped, made.synthetic.images.detach().clone(), made.synthetic.examples(averaged=True)))
        if progress.step.index == 1:
            made.guard = Guard(1e-9)

    result = fit(made, RATES, 5, callback=close)
    assert [skipped for skipped, _, _ in kept] == [False, False, True, True, True]
    assert result.skipped == 3
    assert not torch.equal(kept[0][1], kept[1][1])
    for _, images, average in kept[2:]:
        assert torch.equal(images, kept[1][1])
        assert torch.equal(average, kept[1][2])


def test_turns_are_stepped_in_order_each_by_its_optimiser():
    made = Adversaries()
    optimisers = {name: torch.optim.SGD([value], lr=0.25) for name, value in made.values.items()}
    fit(made, optimisers, 6, batches=iter("abcdef"))
    assert made.called == [
        (0, "critic", "a"), (1, "critic", "b"), (2, "critic", "c"), (2, "generator", "c"),
        (3, "critic", "d"), (4, "critic", "e"), (5, "critic", "f"), (5, "generator", "f"),
    ]  # fmt: skip
    assert made.values["critic"].item() == pytest.approx(0.5**6)
    assert made.values["generator"].item() == pytest.approx(0.5**2)


def test_batches_may_be_a_function_of_the_step():
    made = Adversaries()
    optimisers = {name: torch.optim.SGD([value], lr=0.25) for name, value in made.values.items()}
    fit(made, optimisers, 2, batches=lambda step: step.index * 10)
    assert [batch for _, _, batch in made.called] == [0, 10]


def test_the_callback_sees_each_step():
    seen = []
    made = objective()
    optimiser = sgd(made, RATES)
    fit(made, optimiser, 3, callback=seen.append)
    assert [progress.step for progress in seen] == [dr.Step(i, total=3) for i in range(3)]
    assert all(isinstance(progress, Progress) and progress.optimisers["synthetic"] is optimiser for progress in seen)


@pytest.mark.parametrize(
    ("optimisers", "says"),
    [
        ({"images": 1.0}, "optimisers: got .*'inner_lr'"),
        ({"images": 1.0, "inner_lr": 1.0, "image": 1.0}, "optimisers: got 'image'.*did you mean 'images'"),
        ({"images": {"momentum": 0.5}, "inner_lr": 1.0}, "'lr'"),
        ({"images": -1.0, "inner_lr": 1.0}, "options of torch.optim.SGD"),
        ({"images": {"lr": 1.0, "rate": 3.0}, "inner_lr": 1.0}, "rate"),
        ({"critic": torch.optim.SGD([torch.zeros(1)], lr=0.1)}, "the turn 'synthetic'"),
    ],
)
def test_optimisers_that_do_not_fit_are_refused(optimisers, says):
    with pytest.raises(dr.errors.ArgumentError, match=says):
        fit(objective(), optimisers, 2)


def test_one_optimiser_or_rates_need_a_single_turn():
    made = Adversaries()
    with pytest.raises(dr.errors.ArgumentError, match=r"^optimisers: got .*the turn 'generator'"):
        fit(made, {"critic": 0.1, "generator": 0.1}, 3)
    with pytest.raises(dr.errors.ArgumentError, match=r"^optimisers: got .*the turn 'generator'"):
        fit(made, torch.optim.SGD(made.parameters(), lr=0.1), 3)


def test_other_arguments_that_make_no_sense_are_refused():
    made, states = objective(), []
    fit(made, RATES, 2, callback=lambda progress: states.append(progress.state()))
    with pytest.raises(dr.errors.ArgumentError, match=r"^steps: got"):
        fit(made, RATES, 0)
    with pytest.raises(dr.errors.ArgumentError, match=r"^seed: got 1, allowed is 0"):
        fit(made, RATES, 2, seed=1, state=states[0])
    with pytest.raises(dr.errors.ArgumentError, match=r"^batches: got"):
        fit(made, RATES, 2, state=states[0], batches=[1, 2])


def test_too_few_batches_are_named_and_do_not_end_a_callers_generator():
    with pytest.raises(dr.errors.ArgumentError, match=r"^batches: got '2 items'"):
        fit(objective(), RATES, 3, batches=[None, None])


def test_a_step_without_a_turn_is_passed_over():
    class Late(Adversaries):
        def turns(self, step):
            return ("critic",) if dr.Step.of(step).index else ()

    late, seen = Late(), []
    optimisers = {"critic": torch.optim.SGD([late.values["critic"]], lr=0.1)}
    fit(late, optimisers, 3, callback=lambda at: seen.append(at.step.index))
    assert [index for index, _, _ in late.called] == [1, 2]
    assert seen == [1, 2]
