"""The page on terms says of every system what it composes, and names only what there is."""

import re
from pathlib import Path

import pytest

import distillrs as dr
from distillrs import knowledge, ops, recipes, schedule
from distillrs.knowledge import forms

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "knowledge-terms.md"
NAME = re.compile(r"`([A-Za-z_.0-9]+)[^`]*`")
HOMES = (knowledge, ops, recipes, schedule, forms, dr)


def table(heading):
    """The rows of the table that begins with a heading, its first cell and the rest."""
    lines = PAGE.read_text().split(f"| {heading} |", 1)[1].splitlines()[2:]
    rows = [line.strip("|").split("|", 1) for line in lines[: lines.index("") if "" in lines else None]]
    return {first.strip(): rest for first, rest in rows}


def is_there(name):
    for home in HOMES:
        found = home
        for part in name.removeprefix("distillrs.").removeprefix("dr.").split("."):
            found = getattr(found, part, None)
        if found is not None:
            return True
    return False


@pytest.mark.parametrize("heading", ["part", "system"])
def test_what_it_names_is_there(heading):
    absent = {name for rest in table(heading).values() for name in NAME.findall(rest) if not is_there(name)}
    assert not absent
    assert is_there("forms.Elastic")
    assert not is_there("forms.Elastics")


def test_every_system_has_parts():
    found = table("system")
    assert len(found) == 36
    assert all(NAME.findall(rest) for rest in found.values())
    assert {"distiller-mi-alpha", "optin", "pld-plackett-luce", "masking-kd-vlm"} <= set(found)
