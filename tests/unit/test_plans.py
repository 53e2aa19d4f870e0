import numpy as np
import pytest

import distillrs as dr
from distillrs.errors import ArgumentError
from distillrs.schedule import Grid, Move, RectifiedFlow, RolloutPlan, shifted, spaced

GRID = spaced(4, RectifiedFlow())


def test_a_trajectory_is_every_step_of_its_grid():
    plan = RolloutPlan.trajectory(GRID)
    assert [(move.level, move.to) for move in plan.moves] == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    assert [move.gradient for move in plan.moves] == [False, False, False, True]
    assert plan.evaluations == 4
    assert plan.gradient_evaluations == 1
    assert RolloutPlan.trajectory(GRID, "all").gradient_evaluations == 4
    assert RolloutPlan.trajectory(GRID, "none").gradient_evaluations == 0
    one = RolloutPlan.trajectory(Grid([1.0, 0.0], RectifiedFlow()))
    assert one.moves == (Move(0, 0, 1.0, 0.0, gradient=True),)


def test_a_simulated_rollout_leaves_at_a_drawn_call_that_every_rank_shares():
    exits = []
    for index in range(2000):
        plan = RolloutPlan.simulated(GRID, step=dr.Step(index, seed=4))
        other_rank = RolloutPlan.simulated(GRID, step=dr.Step(index, seed=4, first_unit=512))
        assert plan == other_rank
        assert plan.moves[-1].to == 0.0
        assert [move.gradient for move in plan.moves] == [False] * (plan.evaluations - 1) + [True]
        assert [move.level for move in plan.moves] == GRID.times[: plan.evaluations].tolist()
        exits.append(plan.evaluations)
    for calls in (1, 2, 3, 4):
        assert exits.count(calls) / 2000 == pytest.approx(0.25, abs=0.04)


def test_an_autoregressive_rollout_fills_the_cache_after_each_unit_without_a_gradient():
    plan = RolloutPlan.autoregressive(shifted(4, 5.0), 3, step=7, context_level=0.1)
    calls = RolloutPlan.simulated(shifted(4, 5.0), step=7).evaluations
    assert plan.units == 3
    writes = [move for move in plan.moves if move.cache == "write"]
    assert [move.unit for move in writes] == [0, 1]
    assert all(not move.gradient and move.level == move.to == 0.1 and move.step == calls for move in writes)
    assert plan.evaluations == 3 * calls + 2
    assert plan.gradient_evaluations == 3
    assert all(move.cache == "read" for move in plan.moves if move not in writes)
    assert all(move.to == 0.0 for move in plan.moves if move.gradient)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RolloutPlan(()), "^moves: got"),
        (lambda: RolloutPlan((Move(0, 1, 1.0, 0.0),)), "^moves: got 'unit 0, step 1 after"),
        (lambda: RolloutPlan((Move(0, 0, 1.0, 0.0), Move(2, 0, 1.0, 0.0))), "^moves: got 'unit 2"),
        (lambda: Move(-1, 0, 1.0, 0.0), "^unit: got -1"),
        (lambda: Move(0, True, 1.0, 0.0), "^step: got True"),
        (lambda: Move(0, 0, 1.5, 0.0), "^level: got 1.5"),
        (lambda: Move(0, 0, 0.5, 0.6), "^to: got 0.6"),
        (lambda: Move(0, 0, 0.5, 0.5, gradient=True, cache="write"), "^gradient: got True"),
        (lambda: Move(0, 0, 0.5, 0.5, cache="keep"), "cache operation.*'keep'"),
        (lambda: RolloutPlan.trajectory(GRID, "first"), "^gradient: got 'first'"),
        (lambda: RolloutPlan.autoregressive(GRID, 0, step=0), "^units: got 0"),
        (lambda: RolloutPlan.autoregressive(GRID, 2, step=0, context_level=2.0), "^context_level: got 2.0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_a_plan_that_is_made_once_does_not_keep_the_types_that_it_was_asked_with():
    grid = Grid([0.9, 0.6, 0.3, 0.0], RectifiedFlow())
    RolloutPlan.autoregressive(grid, np.int64(2), step=0, context_level=np.float64(0.125))
    again = RolloutPlan.autoregressive(grid, 2, step=0, context_level=0.125)
    assert {type(move.level) for move in again.moves} == {float}
    assert {type(move.unit) for move in again.moves} == {int}
