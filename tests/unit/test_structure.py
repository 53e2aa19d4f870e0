"""The house keeps its floors: imports go down only, and optional packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "distillrs"

# What each room may import from the package. A name that is missing here is a new room: give it a floor.
BASE = {"_core", "checks", "errors", "step", "frozen", "files", "objective", "registry", "configuration", "low_rank"}
GROUND = BASE | {
    "random",
    "graphs",
    "transforms",
    "augment",
    "training",
    "fitting",
    "schedule",
    "select",
    "trajectory",
    "ops",
}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **dict.fromkeys(GROUND - BASE, GROUND),
    "condense": GROUND | {"condense"},
    "diffusion": GROUND | {"diffusion"},
    "knowledge": GROUND | {"knowledge"},
    "evaluate": GROUND | {"evaluate"},
    "testing": GROUND | {"testing", "condense", "evaluate"},
    "recipes": GROUND | {"recipes", "condense", "diffusion", "knowledge"},
    "integrations": GROUND | {"integrations", "condense", "diffusion", "knowledge"},
    "cli": GROUND | {"cli", "condense", "diffusion", "evaluate", "recipes", "testing", "integrations"},
    "__main__": {"cli"},
    "experimental": GROUND | {"experimental"},
    "__init__": BASE | {"fitting", "random"},
}
REQUIRED = {"torch", "numpy", "safetensors", "tyro", "rich"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "distillrs":
            names = [f"distillrs.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head == "distillrs" and rest:
                yield node, rest.split(".")[0]


def is_type_checking_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_floors(path):
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} has no floor yet"
    tree = ast.parse(path.read_text())
    if room == "__init__":
        tree.body = [node for node in tree.body if not is_type_checking_block(node)]
    rooms = {room_of(file) for file in FILES}
    for node, imported in imported_rooms(tree):
        if imported in rooms:
            assert imported in MAY_IMPORT[room], (
                f"{path.name}:{node.lineno} imports {imported} from a higher or other room"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_used(path):
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            head = name.split(".")[0]
            optional = head not in sys.stdlib_module_names and head not in REQUIRED | {"distillrs"}
            if room_of(path) == "testing" and head == "hypothesis":
                continue  # distillrs.testing is the room of that extra
            assert not optional, f"{path.name}:{node.lineno} imports {name} at module level"


def test_importing_the_package_imports_neither_extras_nor_the_command_line():
    code = (
        "import sys, torch; before = set(sys.modules); import distillrs;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    new = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    foreign = {name for name in new if name not in sys.stdlib_module_names and not name.startswith("_")} - {"distillrs"}
    assert not foreign, f"import distillrs also imports {sorted(foreign)}"
