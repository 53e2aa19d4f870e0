"""DED: few traces of reasoning, from the teacher that suits the student, for questions that it cannot yet answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

from distillrs import select
from distillrs.checks import check_callable, check_instance
from distillrs.errors import argument_error
from distillrs.registry import recipe

Example = TypeVar("Example")
Student = TypeVar("Student")


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """What the students of some teachers reached.

    Attributes:
        best: The teacher whose student scored best; of equals the first that was given.
        scores: Each teacher's student's score.
    """

    best: str
    scores: dict[str, float]


def ded_teacher(
    answers: Mapping[str, Sequence[Example]],
    train: Callable[[Sequence[Example]], Student],
    score: Callable[[Student], float],
) -> SmokeTest:
    """Chooses the teacher whose answers make the best student, whatever the teacher itself scores.

    Args:
        answers: Of each teacher, its answers to the same small set of questions.
        train: Trains a fresh copy of the student on answers.
        score: The student's score on validation questions, more is better.

    Raises:
        ArgumentError: No teacher, answers of different numbers, or a score that is not a number.
    """
    check_instance("answers", answers, Mapping, "a mapping from teacher to its answers")
    for teacher, own in answers.items():
        if not isinstance(own, Sized) or isinstance(own, str | bytes):
            raise argument_error("answers", f"{type(own).__name__} of {teacher!r}", "a list of answers of each teacher")
    check_callable("train", train, "a function that trains a student on answers")
    check_callable("score", score, "a function that gives a student's score")
    sizes = {name: len(own) for name, own in answers.items()}
    if not sizes or len(set(sizes.values())) > 1:
        raise argument_error("answers", sizes, "at least one teacher, each with one answer to every question")
    scores = {}
    for name, own in answers.items():
        scores[name] = float(score(train(own)))
        if math.isnan(scores[name]):
            raise argument_error("score", f"{scores[name]} for the student of {name!r}", "a number")
    return SmokeTest(max(scores, key=lambda name: scores[name]), scores)


@dataclass(frozen=True, slots=True)
class DiverseTraces:
    """Keeps questions that a student does not solve, and for each some verified traces that differ most.

    Attributes:
        traces: Most traces of a question.
        questions: Most questions: those with the lowest pass rates, of equals the first; ``None`` for all.
        solved: Questions with a pass rate above this are dropped, from 0 to 1.
        longest: Most characters of a trace; ``None`` sets no limit.
        valid: Says of (number of the question, trace) whether the trace is well formed and right; ``None`` lets all
            pass.

    Raises:
        ArgumentError: A value that is not allowed.
    """

    traces: int = 4
    questions: int | None = None
    solved: float = 0.5
    longest: int | None = None
    valid: Callable[[int, str], bool] | None = None

    def __post_init__(self) -> None:
        for name, least in (("traces", 1), ("questions", 0), ("longest", 0)):
            value = getattr(self, name)
            missing = value is None and name != "traces"
            if not missing and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise argument_error(name, value, f"an integer from {least}")
        _check_rate("solved", self.solved)

    def __call__(self, traces: Sequence[Sequence[str]], pass_rates: Sequence[float]) -> list[tuple[int, int]]:
        """What is to be trained on.

        Args:
            traces: The teacher's traces of each question.
            pass_rates: Share of the student's own tries that solve each question, from 0 to 1.

        Returns:
            (question, trace) by their numbers: questions in their order, of each the shortest trace first, then the
            one that is farthest from all before it, by the fewest edits over the longer length.

        Raises:
            ArgumentError: Rates that are not one for each question, or out of range; traces that are not texts.
        """
        for name, given in (("traces", traces), ("pass_rates", pass_rates)):
            if not isinstance(given, Sized) or isinstance(given, str | bytes | Mapping):
                raise argument_error(name, type(given).__name__, "a sequence with an entry for each question")
        if len(traces) != len(pass_rates):
            raise argument_error("pass_rates", f"{len(pass_rates)} rates", f"one for each of {len(traces)} questions")
        kept: list[tuple[float, int, list[int]]] = []
        for question, (own, rate) in enumerate(zip(traces, pass_rates, strict=True)):
            # A text is a sequence of texts, too: of its characters.
            if isinstance(own, str) or not all(isinstance(text, str) for text in own):
                got = f"{type(own).__name__} for question {question}"
                raise argument_error("traces", got, "a sequence of texts for each question")
            _check_rate("pass_rates", rate)
            if rate > self.solved:
                continue
            places = [place for place, text in enumerate(own) if self._passes(question, text)]
            if places:
                kept.append((rate, question, places))
        # Sorted by rate alone, so that equals keep their order.
        chosen = sorted(kept, key=lambda each: each[0])[: self.questions]
        found = []
        for _, question, places in sorted(chosen, key=lambda each: each[1]):
            texts = [traces[question][place] for place in places]
            shortest = min(range(len(texts)), key=lambda place: len(texts[place]))
            count = min(self.traces, len(texts))
            picks = select.max_min(texts, count, metric="normalised_levenshtein", start=shortest)
            found += [(question, places[pick]) for pick in picks.ids.tolist()]
        return found

    def _passes(self, question: int, text: str) -> bool:
        if self.longest is not None and len(text) > self.longest:
            return False
        return self.valid is None or bool(self.valid(question, text))


@recipe(
    id="ded",
    source="Wu and others: Beyond Scaling Law: A Data-Efficient Distillation Framework for Reasoning, 2025",
    equation="teacher = argmax_T score(student trained on T's answers); questions with pass rate <= solved; of each "
    "the traces t_1 = shortest, t_j = argmax_t min_{i < j} lev(t, t_i) / max(|t|, |t_i|); loss = -log p(traces)",
    deviations=[
        "How many traces are sampled and kept for a question, and the threshold of the pass rate, are starting points "
        "of this library.",
        "Which trace comes first is not known of the paper: here the shortest.",
    ],
    engine="select",
)
def ded(
    traces: int = 4,
    questions: int | None = None,
    solved: float = 0.5,
    longest: int | None = None,
    valid: Callable[[int, str], bool] | None = None,
) -> DiverseTraces:
    """Few traces that are worth training on; there is no loss of its own, the student learns them by likelihood.

    ::

        best = recipes.ded_teacher(answers, train, score).best                # a smoke test of some 50 questions
        kept = recipes.ded(questions=800, valid=check)(traces[best], pass_rates)
        text = [traces[best][question][trace] for question, trace in kept]

    Args:
        traces: Most traces of a question.
        questions: Most questions, hardest first.
        solved: Questions that the student solves more often than this are dropped.
        longest: Most characters of a trace.
        valid: Whether (number of the question, trace) is well formed and right, by a rule or a judge.

    Returns:
        The transform, from traces and pass rates to numbers of questions and traces.

    Raises:
        ArgumentError: A value that is not allowed.
    """
    return DiverseTraces(traces, questions, solved, longest, valid)


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise argument_error(name, value, "a number from 0 to 1")
