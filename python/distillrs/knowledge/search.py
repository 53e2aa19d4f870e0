"""Search of a space of a user's own: students, configurations, anything that can be drawn, changed and scored."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from distillrs import random
from distillrs.checks import check_instance
from distillrs.errors import argument_error
from distillrs.knowledge.numerics import is_number
from distillrs.step import Step

Candidate = TypeVar("Candidate")


@dataclass(frozen=True, slots=True)
class Scored(Generic[Candidate]):
    """A candidate that was looked at.

    Attributes:
        candidate: As it was drawn.
        score: Its score; more is better.
        cost: Its cost, or ``None`` if nothing is asked for it.
    """

    candidate: Candidate
    score: float
    cost: float | None


class Evolution(Generic[Candidate]):
    """Regularised evolution: the best of a few is changed a little, and the oldest of the population dies.

    First ``population`` candidates are drawn. Each one after that is a changed copy of the best of ``tournament``
    different ones (of equal ones the youngest) out of the population, which are the ``population`` youngest: that even
    the best die of age keeps a lucky score from staying for ever. Candidates above the budget are drawn again. Source:
    Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019.

    ``draw`` and ``mutate`` get a :class:`~distillrs.Step` whose index differs at every call: with draws from
    :mod:`distillrs.random` at that step a run is a function of the seed alone, and one that goes on from
    :meth:`state_dict` equals one that was never interrupted. Candidates are plain values (numbers, strings, lists,
    dictionaries), if the state is to be saved without pickle.

    Args:
        draw: Gives a candidate.
        mutate: Gives a changed one; it gets a copy and may change that.
        score: More is better; minus infinity for a candidate that is of no use.
        cost: What the budget limits: parameters, FLOPs.
        budget: Largest cost.
        population: How many live at a time.
        tournament: Out of how many a parent is chosen, at most ``population``.
        tries: How many candidates in a row may be above the budget.
        seed: Of the run.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    def __init__(
        self,
        draw: Callable[[Step], Candidate],
        mutate: Callable[[Candidate, Step], Candidate],
        score: Callable[[Candidate], float],
        *,
        cost: Callable[[Candidate], float] | None = None,
        budget: float | None = None,
        population: int = 50,
        tournament: int = 10,
        tries: int = 1000,
        seed: int = 0,
    ) -> None:
        functions = {"draw": draw, "mutate": mutate, "score": score} | ({} if cost is None else {"cost": cost})
        for name, function in functions.items():
            if not callable(function):
                raise argument_error(name, function, "a function")
        for name, value in (("population", population), ("tournament", tournament), ("tries", tries)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise argument_error(name, value, "a positive integer")
        if tournament > population:
            raise argument_error("tournament", tournament, f"at most the population, {population}")
        if budget is not None and not is_number(budget):
            raise argument_error("budget", budget, "None or a finite number")
        if (budget is None) != (cost is None):
            raise argument_error("budget", budget, "a number together with cost=, or neither")
        self.draw = draw
        self.mutate = mutate
        self.score = score
        self.cost = cost
        self.budget = budget
        self.population = population
        self.tournament = tournament
        self.tries = tries
        self.seed = Step(0, seed=seed).seed
        self.history: list[Scored[Candidate]] = []
        self._draws = 0

    @property
    def best(self) -> Scored[Candidate]:
        """The candidate of the highest score so far, of several the first.

        Raises:
            ArgumentError: Nothing was looked at yet.
        """
        if not self.history:
            raise argument_error("history", "nothing", "a run of at least one evaluation before")
        return max(self.history, key=lambda each: each.score)

    def run(
        self, evaluations: int, callback: Callable[[Scored[Candidate]], bool | None] | None = None
    ) -> Scored[Candidate]:
        """Goes on until so many candidates were looked at in all.

        Args:
            evaluations: Length of the whole run, with those of earlier calls.
            callback: Called after each evaluation; the run ends when it returns ``True``.

        Returns:
            The best so far.

        Raises:
            ArgumentError: A score or a cost that is no number, or a budget that ``tries`` candidates exceed.
        """
        if isinstance(evaluations, bool) or not isinstance(evaluations, int) or evaluations < 1:
            raise argument_error("evaluations", evaluations, "a positive integer")
        while len(self.history) < evaluations:
            candidate, cost = self._next()
            score = self.score(candidate)
            if not is_number(score) and score != -math.inf:
                raise argument_error("score", score, "a finite number, or minus infinity, for every candidate")
            self.history.append(Scored(candidate, float(score), cost))
            if callback is not None and callback(self.history[-1]):
                break
        return self.best

    def _next(self) -> tuple[Candidate, float | None]:
        number = len(self.history)
        parent: Scored[Candidate] | None = None
        if number >= self.population:
            living = self.history[-self.population :]
            chosen = random.choice(
                len(living), self.tournament, step=Step(number, seed=self.seed), name="evolution/tournament"
            )
            parent = living[max(chosen.tolist(), key=lambda place: (living[place].score, place))]
        least = math.inf
        for _ in range(self.tries):
            step = Step(self._draws, seed=self.seed)
            self._draws += 1
            candidate = self.draw(step) if parent is None else self.mutate(copy.deepcopy(parent.candidate), step)
            if self.cost is None or self.budget is None:
                return candidate, None
            cost = self.cost(candidate)
            if not is_number(cost):
                raise argument_error("cost", cost, "a finite number for every candidate")
            if cost <= self.budget:
                return candidate, float(cost)
            least = min(least, float(cost))
        allowed = f"one that some of {self.tries} candidates keep; the cheapest of them costs {least:g}"
        raise argument_error("budget", self.budget, allowed)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on."""
        return {
            "seed": self.seed,
            "population": self.population,
            "tournament": self.tournament,
            "draws": self._draws,
            "history": [(copy.deepcopy(each.candidate), each.score, each.cost) for each in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            ArgumentError: The state of another search.
        """
        check_instance("state", state, Mapping, "what state_dict() gave")
        for name in ("seed", "population", "tournament"):
            if state.get(name) != getattr(self, name):
                raise argument_error(name, getattr(self, name), f"{state.get(name)}, with which the state was made")
        for name in ("draws", "history"):
            if name not in state:
                raise argument_error("state", f"one without {name!r}", "what state_dict() gave")
        self._draws = int(state["draws"])
        self.history = [
            Scored(copy.deepcopy(candidate), float(score), None if cost is None else float(cost))
            for candidate, score, cost in state["history"]
        ]
