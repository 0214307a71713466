"""Enforce the one-way order of the rooms, what each may import, and the size of files and functions."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

ORDER = [  # a room may import itself and what stands before it
    {"config", "errors"},
    {"command"},
    {"video", "model", "styles"},
    {"weights"},
    {"streaming"},
    {"pipeline"},
    {"runtime"},
    {"loading"},
    {"serving"},
    {"zerogpu", "cluster"},
    {"ui"},
    {"cli", "client"},
    {"__init__", "__main__", "app"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
LEAVES = {
    "training",
    "evaluation",
    "benchmark",
    "gpucheck",
}  # may import what is before ui, and cli; imported by none
GRADIO_ROOMS = {"ui", "zerogpu", "app"}
PUBLIC = {"Live2DiffPipeline", "STYLES", "Stream", "load"}  # what the package itself offers
LIBRARY_NAMES = {"_dynamo", "_exit", "_version"}  # torch and os document them, or use them across modules
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LONGEST_FILE, LONGEST_FUNCTION, MOST_ATTRIBUTES = 400, 60, 16

FILES = [*sorted((ROOT / "live2diff").rglob("*.py")), ROOT / "app.py"]
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))


def room_of(path: Path) -> str:
    """Return the room of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if len(parts) > 1 else parts[0]


def imports(path: Path) -> Iterator[str]:
    """Yield all that a file imports as dotted names, those for type checking and in functions included."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of the package that a file imports."""
    names = (name.split(".") for name in imports(path))
    return {parts[1] for parts in names if parts[0] == "live2diff" and len(parts) > 1} - PUBLIC


@every_file
def test_rooms_import_only_what_stands_before_them(path: Path) -> None:
    room = room_of(path)
    before = {name for name in RANK if RANK[name] < RANK.get(room, RANK["ui"])} | {room}
    if room in LEAVES:
        before |= LEAVES | {"cli"}
    assert imported_rooms(path) <= before


@every_file
def test_gradio_is_imported_for_the_page_only_and_torch_not_for_clips(path: Path) -> None:
    libraries = {name.split(".")[0] for name in imports(path)}
    assert "app" not in libraries
    assert "gradio" not in libraries or room_of(path) in GRADIO_ROOMS
    assert "torch" not in libraries or room_of(path) != "video"


@every_file
def test_private_names_stay_in_their_file(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.attr for node in attributes if isinstance(node.ctx, ast.Store)} | LIBRARY_NAMES
    own |= {
        node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in attributes} | {name.split(".")[-1] for name in imports(path)}
    assert not {name for name in used - own if name.startswith("_") and not name.startswith("__")}


@every_file
def test_files_functions_and_classes_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, FUNCTIONS):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name
        if isinstance(node, ast.ClassDef):
            fields = {
                child.target.id
                for child in node.body
                if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name)
            }
            fields |= {
                child.attr
                for child in ast.walk(node)
                if isinstance(child, ast.Attribute)
                and isinstance(child.ctx, ast.Store)
                and isinstance(child.value, ast.Name)
                and child.value.id == "self"
            }
            assert len(fields) <= MOST_ATTRIBUTES, node.name
