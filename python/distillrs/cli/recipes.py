"""``distillrs recipes``: the published systems that ``--method`` takes."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from distillrs.cli import exit_codes
from distillrs.registry import RecipeCard, find_recipe, recipe_cards


@dataclass(frozen=True)
class Recipes:
    """List the methods; with a name: its equation, source, deviations from the publication, and options."""

    name: Annotated[
        str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help="One method.", help_behavior_hint="")
    ] = None
    json: Annotated[bool, tyro.conf.arg(help="Print JSON for programs.", help_behavior_hint="")] = False

    def run(self, output: Console, messages: Console) -> int:
        """Prints the list or the page."""
        cards = recipe_cards() if self.name is None else [find_recipe(self.name)]
        if self.json:
            pages = [describe(card) for card in cards]
            output.out(json.dumps(pages if self.name is None else pages[0], indent=2), highlight=False)
        elif self.name is None:
            table = Table("method", "source", box=None, pad_edge=False, header_style="bold")
            for card in cards:
                table.add_row(f"[bold]{card.id}", card.source)
            output.print(table, highlight=False)
        else:
            show(describe(cards[0]), output)
        return exit_codes.SUCCESS


def describe(card: RecipeCard) -> dict[str, Any]:
    """Everything that a recipe says of itself, as JSON values."""
    from distillrs.cli.options import options_by_part

    return {
        "id": card.id,
        "source": card.source,
        "equation": card.equation,
        "deviations": list(card.deviations),
        "optimisers": {name: dict(rates) for name, rates in card.optimisers.items()},
        "options": {
            part: {
                name: {"takes": option.describe(), "default": None if option.required else _show(option.default)}
                for name, option in options.items()
            }
            for part, options in options_by_part(card).items()
        },
        "documentation": inspect.getdoc(card.function) or "",
    }


def _show(default: object) -> str:
    if isinstance(default, range):
        return f"[{default.start}, {default.stop}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def show(page: dict[str, Any], output: Console) -> None:
    """One recipe for people."""
    output.print(f"[bold]{page['id']}[/]  ", end="")
    output.print(page["source"], highlight=False, markup=False)
    output.print(f"  {page['equation']}", highlight=False, markup=False)
    for deviation in page["deviations"]:
        output.print(f"  differs from the publication: {deviation}", highlight=False, markup=False)
    titles = {
        "options": "options (--set NAME=VALUE)",
        "experts": "options of its experts",
        "initial": "options of its initialisation",
        "views": "options of its labels' views",
    }
    for part, options in page["options"].items():
        if not options:
            continue
        table = Table(titles[part], "default", "takes", box=None, pad_edge=False, header_style="bold")
        for name, option in options.items():
            table.add_row(name, option["default"] or "", option["takes"])
        output.print()
        output.print(table, highlight=False, markup=False)
