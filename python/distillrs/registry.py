"""Published systems by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

from distillrs.errors import argument_error, unknown_name_error

P = ParamSpec("P")
R = TypeVar("R")
Needs = Literal["experts", "data", "teachers"]
ViewLabelling = Literal["asked", "mixed"]


@dataclass(frozen=True, slots=True)
class RecipeCard:
    """What a recipe says of itself.

    Attributes:
        id: The name in the catalogue and on the command line.
        source: Title, authors or venue, and year of the publication.
        equation: The system's equation in one line of plain text.
        deviations: Each known difference from the paper or from the authors' code, with its reason.
        function: The recipe itself.
        experts: For recipes over trajectories: makes the experts' training from (network, training settings).
        initial: Makes the synthetic set to start from out of real examples; ``None`` draws them at random.
        optimisers: The paper's learning rate ("lr") and momentum for each parameter group of the objective; or, for
            Adam, "betas"; and "schedule" where the rate falls.
        training: Settings of the experts' training that belong to the method, by the names of
            :class:`~distillrs.training.TrainingSettings`; what is not named is for the user to choose.
        engine: The engine whose parts it puts together: "condense", "diffusion", "knowledge", "select" for systems that
            choose among real data, "graphs" for those that turn graphs into a condensed set of them, "pairs" for those
            that condense pairs of two modalities, "gradients" for those that distil statistics of gradients, or
            "latents" for those that make new examples in a latent space.
        needs: Of a recipe that condenses, what it works from: "experts" (function of store, network, synthetic),
            "data" (of x, y, networks, synthetic) or "teachers" (of teachers, synthetic).
        views: Of a recipe whose labels belong to views: gives their plan.
        view_labels: Of a recipe with views: "asked": its teachers label each of them; "mixed": they label each image,
            and a view's label is the mixture of those of the images in it.
        voice: Of a recipe whose teachers label otherwise than by their vote in evaluation mode: from the teachers to a
            function from images [n, ...] to logits [n, C].
        network: Of a recipe that is for one kind of network: its "name" and "options".
        least_per_class: Of a recipe whose set takes a least room: from the numbers of classes and of teachers to the
            fewest images of each class, so that less is refused before anything is trained.
        moves: Of a recipe that condenses, whether it gives an objective that moves a synthetic set; else it gives the
            finished set, as a function of x, y, per_class, teachers.
    """

    id: str
    source: str
    equation: str
    deviations: tuple[str, ...]
    function: Callable[..., Any]
    experts: Callable[..., Any] | None = None
    initial: Callable[..., Any] | None = None
    optimisers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "condense"
    needs: Needs = "experts"
    moves: bool = True
    views: Callable[..., Any] | None = None
    network: Mapping[str, Any] | None = None
    voice: Callable[..., Any] | None = None
    view_labels: ViewLabelling = "asked"
    least_per_class: Callable[[int, int], int] | None = None


_cards: dict[str, RecipeCard] = {}


def recipe(
    *,
    id: str,
    source: str,
    equation: str,
    deviations: Sequence[str] = (),
    experts: Callable[..., Any] | None = None,
    initial: Callable[..., Any] | None = None,
    optimisers: Mapping[str, Mapping[str, Any]] | None = None,
    training: Mapping[str, Any] | None = None,
    engine: str = "condense",
    needs: Needs = "experts",
    moves: bool = True,
    views: Callable[..., Any] | None = None,
    network: Mapping[str, Any] | None = None,
    voice: Callable[..., Any] | None = None,
    view_labels: ViewLabelling = "asked",
    least_per_class: Callable[[int, int], int] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Registers a function as a published system.

    Args:
        id: The name under which :func:`find_recipe` and ``--method`` know it.
        source: Title, authors or venue, and year of the publication.
        equation: The system's equation in one line of plain text.
        deviations: Each known difference from the paper or from the authors' code, with its reason.
        experts: See :class:`RecipeCard`.
        initial: See :class:`RecipeCard`.
        optimisers: See :class:`RecipeCard`.
        training: See :class:`RecipeCard`.
        engine: See :class:`RecipeCard`.
        needs: See :class:`RecipeCard`.
        moves: See :class:`RecipeCard`.
        views: See :class:`RecipeCard`.
        network: See :class:`RecipeCard`.
        voice: See :class:`RecipeCard`.
        view_labels: See :class:`RecipeCard`.
        least_per_class: See :class:`RecipeCard`.

    Returns:
        A decorator that returns the function unchanged but for its ``card`` attribute.

    Raises:
        ArgumentError: Another function already has this ``id``.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        if not function.__module__.startswith("distillrs."):
            # The library's own names are taken, whoever is imported first.
            importlib.import_module("distillrs.recipes")
        known = _cards.get(id)
        if known is not None and _place(known.function) != _place(function):
            raise argument_error("id", id, f"a name that {_place(known.function)} does not already have")
        card = RecipeCard(
            id,
            source,
            equation,
            tuple(deviations),
            function,
            experts,
            initial,
            optimisers or {},
            training or {},
            engine,
            needs,
            moves,
            views,
            network,
            voice,
            view_labels,
            least_per_class,
        )
        _cards[id] = card
        function.card = card  # type: ignore[attr-defined]  # functions take attributes; the type system does not say so
        return function

    return register


def _place(function: Callable[..., Any]) -> str:
    # By name and not by identity: a notebook's cell or a reloaded module defines the same recipe again.
    return f"{function.__module__}:{function.__qualname__}"


def find_recipe(name: str) -> RecipeCard:
    """The recipe of that name.

    Args:
        name: An ``id``, or ``package.module:function`` for a recipe outside this library.

    Raises:
        UnknownNameError: Nothing has this name; the nearest one is suggested.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            function = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError, TypeError, ValueError) as failure:
            raise argument_error("method", name, f"an importable package.module:function ({failure})") from failure
        card = getattr(function, "card", None)
        if not isinstance(card, RecipeCard):
            raise argument_error("method", name, "a function decorated with @distillrs.recipe(...)")
        return card
    importlib.import_module("distillrs.recipes")
    if name not in _cards:
        raise unknown_name_error("method", name, list(_cards))
    return _cards[name]


def recipe_cards(engine: str | None = None) -> list[RecipeCard]:
    """All registered recipes, by name.

    Args:
        engine: Those of one engine alone.
    """
    importlib.import_module("distillrs.recipes")
    return [_cards[name] for name in sorted(_cards) if engine in (None, _cards[name].engine)]
