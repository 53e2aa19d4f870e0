"""PEEK: the ranking loss and the stratified picks by brute force, batches by their limits, the scorer's masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillrs import random, recipes, select
from distillrs.errors import ArgumentError
from distillrs.knowledge import Entry, ListMLE, Objective, Output, SelfTeacher, Term

numbers = st.integers(-3, 3).map(float)


class Given(torch.nn.Module):
    """Scores that are parameters."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(scores)

    def forward(self, **batch):
        return self.scores


def loss_of(student, teacher, mask=None):
    network = Given(student)
    objective = Objective(
        network,
        SelfTeacher(),
        [Term(Output("logits"), Entry("scores"), divergence=ListMLE(None if mask is None else "mask"))],
        withheld=("scores",),
    )
    batch = {"scores": teacher} if mask is None else {"scores": teacher, "mask": mask}
    total = objective(batch).total
    total.backward()
    return total.item(), network.scores.grad


def by_hand(student, teacher, mask):
    """Every row apart, every sum apart."""
    total = 0 * student.sum()
    for scores, marks, there in zip(student, teacher.tolist(), mask.tolist(), strict=True):
        order = sorted((place for place in range(len(marks)) if there[place]), key=lambda place: -marks[place])
        for at, place in enumerate(order):
            total = total + (torch.logsumexp(scores[order[at:]], 0) - scores[place]) / len(order)
    return total / len(student)


@given(data=st.data())
def test_the_loss_of_a_list_is_its_definition(data):
    rows, items = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))

    def drawn(of):
        return torch.tensor([[data.draw(of) for _ in range(items)] for _ in range(rows)])

    student, teacher, mask = drawn(numbers).double(), drawn(numbers).double(), drawn(st.booleans())
    value, gradient = loss_of(student, teacher, mask)
    own = student.clone().requires_grad_()
    expected = by_hand(own, teacher, mask)
    assert value == pytest.approx(expected.item(), abs=1e-12)
    if mask.any():
        (wanted,) = torch.autograd.grad(expected, own, allow_unused=True, materialize_grads=True)
        assert torch.allclose(gradient, wanted, atol=1e-12)
    else:
        assert not gradient.any()


def test_the_loss_knows_the_order_alone_and_holds_for_wide_scores():
    student = 5 * random.normal(4, 9, step=0, name="s", dtype=torch.float64)
    teacher = random.normal(4, 9, step=0, name="t", dtype=torch.float64)
    everything = torch.ones(4, 9, dtype=torch.bool)
    assert loss_of(student, teacher)[0] == pytest.approx(loss_of(student, teacher.exp() * 7 - 3, everything)[0])
    wide = torch.tensor([[800.0, -800.0, 0.0]])
    mask = torch.tensor([[True, True, False]])
    value, gradient = loss_of(wide, torch.tensor([[0.0, 1.0, 2.0]]), mask)
    assert value == pytest.approx(1600 / 2)
    assert gradient.tolist() == [[0.5, -0.5, 0.0]]
    # A teacher may rule an item out; it still comes before what is not there.
    value, _ = loss_of(torch.zeros(1, 3), torch.tensor([[0.0, -torch.inf, 5.0]]), torch.tensor([[True, True, False]]))
    assert value == pytest.approx(0.5 * torch.tensor(2.0).log().item())
    with pytest.raises(ArgumentError, match="mask"):
        loss_of(student, teacher, everything[:, :3])


@given(scores=st.lists(numbers, max_size=12), data=st.data())
def test_the_best_of_each_stretch_is_picked(scores, data):
    k, n = data.draw(st.integers(0, len(scores))), len(scores)
    picks = select.stratified(torch.tensor(scores, dtype=torch.float32), k)
    expected = []
    for stretch in range(k):
        rows = range(stretch * n // k, (stretch + 1) * n // k)
        expected.append(max(rows, key=lambda row: (scores[row], -row)))
    assert picks.ids.tolist() == expected
    assert picks.gains.tolist() == [scores[row] for row in expected]


def test_stratified_picks_refuse_what_they_cannot_rank():
    for bad, message in (
        (torch.tensor([1.0, torch.nan]), "scores: got 'nan at 1'"),
        (torch.tensor([1, 2]), "scores"),
        (torch.zeros(2, 2), "scores"),
        ([1.0], "scores"),
    ):
        with pytest.raises(ArgumentError, match=message):
            select.stratified(bad, 1)
    with pytest.raises(ArgumentError, match="k"):
        select.stratified(torch.zeros(3), 4)


@given(seed=st.integers(0, 30), lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_batches_hold_stretches_of_the_videos(seed, lengths):
    features = [torch.arange(float(n))[:, None] + 1000 * place for place, n in enumerate(lengths)]
    scores = [own[:, 0] * 2 for own in features]
    batch = recipes.peek_batch(features, scores, step=seed)
    assert batch["frames"].shape[:2] == batch["scores"].shape == batch["mask"].shape
    for place, n in enumerate(lengths):
        there = batch["mask"][place]
        rows = batch["frames"][place][there][:, 0] - 1000 * place
        assert there.tolist() == sorted(there.tolist(), reverse=True)
        assert bool((rows.diff() > 0).all())
        assert 0 <= int(rows[0]) <= int(rows[-1]) < n
        assert min(n, 6) <= len(rows) <= min(n, 32)
        # Of a stretch of at least .7 at most a quarter is dropped.
        assert len(rows) >= min(32, int(0.7 * n * 0.75))
        assert torch.equal(batch["scores"][place][there], 2 * batch["frames"][place][there][:, 0])
        assert not batch["frames"][place][~there].any()
        assert not batch["scores"][place][~there].any()


def test_a_video_is_cut_alike_in_any_batch():
    features = [random.normal(n, 3, step=0, name="x") for n in (20, 40, 30)]
    scores = [own[:, 0] for own in features]
    whole = recipes.peek_batch(features, scores, step=5)
    alone = recipes.peek_batch(features[1:2], scores[1:2], step=5, first_unit=1)
    assert torch.equal(whole["scores"][1][whole["mask"][1]], alone["scores"][0][alone["mask"][0]])
    later = recipes.peek_batch(features, scores, step=6)
    assert whole["scores"].tolist() != later["scores"].tolist()
    everything = recipes.peek_batch(features, scores, step=5, crop=1.0, drop=(0.0, 0.0), most=40)
    assert torch.equal(everything["frames"][1], features[1])
    for bad in ({"crop": 0.0}, {"drop": (0.5, 0.1)}, {"least": 50}):
        with pytest.raises(ArgumentError, match=next(iter(bad))):
            recipes.peek_batch(features, scores, step=0, **bad)
    with pytest.raises(ArgumentError, match="scores"):
        recipes.peek_batch(features, scores[::-1], step=0)
    with pytest.raises(ArgumentError, match=r"^features: got 'shape \(40, 2\) at 1'"):
        recipes.peek_batch([features[0], features[1][:, :2], features[2]], scores, step=0)


def test_a_scorer_looks_at_places_and_not_at_padding():
    network = recipes.FrameScorer(6, 8, heads=2, hidden=16, seed=1).double()
    frames = random.normal(2, 7, 6, step=0, name="x", dtype=torch.float64)
    mask = torch.arange(7)[None] < torch.tensor([[7], [4]])
    objective = recipes.peek(network)
    batch = {"frames": frames, "mask": mask, "scores": frames[..., 0]}
    before = objective(batch, 0).total  # in training mode
    assert before.requires_grad
    network.eval()
    found = network(frames, mask)
    other = frames.clone()
    other[1, 4:] += 9
    assert torch.allclose(network(other, mask)[1, :4], found[1, :4])
    assert torch.allclose(network(frames[1:, :4])[0], found[1, :4])
    assert not torch.allclose(network(frames.flip(1)).flip(1), network(frames))
    assert objective(batch).total.item() == pytest.approx(by_hand(found, frames[..., 0], mask).item(), rel=1e-9)
    for bad, name in (((6, 9), "width"), ((6, 8, 0), "layers"), ((6, 8, 1, 0), "heads"), ((0,), "features")):
        with pytest.raises(ArgumentError, match=f"^{name}: got"):
            recipes.FrameScorer(*bad)
    for bad, name in (((frames[..., :3],), "frames"), ((frames[0],), "frames"), ((frames, mask[:, :3]), "mask")):
        with pytest.raises(ArgumentError, match=f"^{name}: got"):
            network(*bad)
    with pytest.raises(ArgumentError, match=r"^dropout: got 1\.5"):
        recipes.FrameScorer(6, dropout=1.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_places_of_a_long_video_are_told_apart_in_half_precision(dtype):
    seen = []
    for kind in (torch.float32, dtype):
        network = recipes.FrameScorer(6, 16, layers=1, heads=2, hidden=16, seed=1).to(kind).eval()
        network.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
        network(torch.zeros(1, 600, 6, dtype=kind))
    torch.testing.assert_close(seen[1], seen[0], atol=0.02, rtol=0)
    assert len(seen[1][0].unique(dim=0)) == 600
