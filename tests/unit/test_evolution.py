"""Search by regularised evolution: what is kept, what dies, and runs that go on."""

import io

import pytest
import torch

import distillrs as dr
from distillrs.errors import ArgumentError
from distillrs.knowledge import Evolution


def draw(step):
    return dr.random.integers(1, 10, 8, step=step, name="draw")[0].tolist()


def mutate(candidate, step):
    place, value = dr.random.integers(1, 8, step=step, name="place"), dr.random.integers(1, 10, step=step, name="value")
    candidate[int(place)] = int(value)
    return candidate


def score(candidate):
    return -float(sum((value - goal) ** 2 for value, goal in zip(candidate, (7, 1, 9, 3, 2, 8, 5, 0), strict=True)))


def search(**options):
    return Evolution(draw, mutate, score, **({"population": 12, "tournament": 4} | options))


def test_it_finds_more_than_drawing_at_random_does():
    found, drawn = search(), search(population=300, tournament=4)
    best, random = found.run(300), drawn.run(300)
    assert best.score > random.score
    assert best.score > 0.3 * random.score
    assert best == max(found.history, key=lambda each: each.score)
    assert len(found.history) == 300


def test_parents_are_the_best_of_a_few_of_the_living_and_age_kills():
    made = []

    def noted(candidate, step):
        made.append(tuple(candidate))
        return mutate(candidate, step)

    found = Evolution(draw, noted, score, population=5, tournament=5)
    found.run(40)
    history = found.history
    for number, parent in enumerate(made, start=5):
        living = history[number - 5 : number]
        best = max(each.score for each in living)
        assert parent == tuple(next(each.candidate for each in reversed(living) if each.score == best))
    # A copy is changed, never the parent.
    assert all(each.score == score(each.candidate) for each in history)
    few = Evolution(draw, mutate, score, population=5, tournament=1)
    few.run(40)
    assert [each.candidate for each in few.history[:5]] == [each.candidate for each in history[:5]]
    assert few.history != history


def test_a_run_is_a_function_of_the_seed_and_goes_on_from_its_state():
    whole = search(seed=3)
    whole.run(60)
    for cut in (4, 12, 37):
        part = search(seed=3)
        part.run(cut)
        buffer = io.BytesIO()
        torch.save(part.state_dict(), buffer)
        rest = search(seed=3)
        rest.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        rest.run(60)
        assert rest.history == whole.history
    other = search(seed=4)
    other.run(60)
    assert other.history != whole.history
    with pytest.raises(ArgumentError, match=r"^seed: got 4, allowed is 3"):
        other.load_state_dict(whole.state_dict())
    with pytest.raises(ArgumentError, match=r"^population: got 12"):
        whole.load_state_dict(search(seed=3, population=13).state_dict())
    state = whole.state_dict()
    state["history"][0][0][0] = 99
    assert whole.history[0].candidate[0] != 99


def test_the_budget_holds_for_every_candidate_that_is_scored_and_a_hopeless_one_is_refused():
    scored = []

    def noted(candidate):
        scored.append(candidate)
        return score(candidate)

    found = Evolution(draw, mutate, noted, cost=sum, budget=28, population=8, tournament=3)
    best = found.run(50)
    assert all(sum(candidate) <= 28 for candidate in scored)
    assert len(scored) == 50
    assert best.cost == sum(best.candidate)
    with pytest.raises(ArgumentError, match=r"^budget: got -1, allowed is .* 20 candidates keep; the cheapest"):
        search(cost=sum, budget=-1, tries=20).run(1)


def test_a_callback_ends_the_run_which_may_then_go_on():
    found = search()
    found.run(50, lambda each: len(found.history) == 20)
    assert len(found.history) == 20
    found.run(50)
    whole = search()
    whole.run(50)
    assert found.history == whole.history
    found.run(10)
    assert len(found.history) == 50


def test_configurations_of_a_distillation_are_a_space_like_any_other():
    options = {"alpha": [0.1, 0.5, 0.9], "layer": ["first", "last"], "weight": [0.0, 1.0, 10.0]}

    def chosen(step, name):
        values = options[name]
        return values[int(dr.random.integers(1, len(values), step=step, name=name))]

    def change(configuration, step):
        name = sorted(options)[int(dr.random.integers(1, len(options), step=step, name="which"))]
        return configuration | {name: chosen(step, name)}

    found = Evolution(
        lambda step: {name: chosen(step, name) for name in options},
        change,
        lambda made: made["weight"] - made["alpha"] + (made["layer"] == "last"),
        population=6,
        tournament=3,
    ).run(60)
    assert found.candidate == {"alpha": 0.1, "layer": "last", "weight": 10.0}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Evolution(3, mutate, score), "draw"),
        (lambda: Evolution(draw, None, score), "mutate"),
        (lambda: Evolution(draw, mutate, 0.5), "score"),
        (lambda: search(cost=3, budget=1), "cost"),
        (lambda: search(population=0), "population"),
        (lambda: search(tournament=13), "tournament"),
        (lambda: search(tries=0), "tries"),
        (lambda: search(budget=3), "budget"),
        (lambda: search(cost=sum), "budget"),
        (lambda: search(cost=sum, budget="a"), "budget"),
        (lambda: search(seed=-1), "seed"),
        (lambda: search().best, "history"),
        (lambda: search().run(0), "evaluations"),
        (lambda: Evolution(draw, mutate, lambda made: float("nan")).run(1), "score"),
        (lambda: Evolution(draw, mutate, lambda made: torch.ones(1)).run(1), "score"),
        (lambda: search(cost=lambda made: None, budget=1).run(1), "cost"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, name):
    with pytest.raises(ArgumentError, match=f"^{name}: got"):
        make()


def test_a_candidate_of_no_use_may_have_minus_infinity():
    found = Evolution(draw, mutate, lambda made: -float("inf") if made[0] else score(made), population=3, tournament=2)
    assert found.run(30).score > -float("inf")
