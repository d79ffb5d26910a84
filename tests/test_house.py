"""The house: who may know whom, and that nothing needed at training drags matplotlib in."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
# A file may import the files of rows before its own, of its own package, and in its own row what stands before it.
ROWS = [
    ["errors", "files", "signals", "options", "backend", "color", "losses"],
    ["data", "networks", "metrics", "logs", "devices"],
    ["model"],
    ["checkpoints"],
    ["training", "evaluation", "colorization", "turing", "export"],
]
DEFERRED = [("model", "colorization")]  # inside a method only: Model.colorize_photo, for who works from Python
ORDER = [room for row in ROWS for room in row]
WITHOUT_TENSORFLOW = ("errors", "files", "options", "data")  # what --help imports
PIPELINE = SRC / "data" / "pipeline.py"


def room(path):
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(path):
    """Rooms that are imported, but for DEFERRED inside functions, and the names of all modules imported at top level."""
    tree = ast.parse(path.read_text())
    ours, top = [], set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"src.{alias.name}" for alias in node.names] if node.module == "src" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found = [name.split(".")[1] for name in names if name.startswith("src.")]
        ours += [other for other in found if node in tree.body or (room(path), other) not in DEFERRED]
        if node in tree.body:
            top |= {name.split(".")[0] if name != "src.backend" else "tensorflow" for name in names}
    return ours, top


FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_one_way(path):
    ours, top = imports(path)
    for other in ours:
        assert other == room(path) or ORDER.index(other) < ORDER.index(room(path)), f"{path} imports {other}"
    assert "matplotlib" not in top
    if room(path) in WITHOUT_TENSORFLOW and path != PIPELINE:
        assert not top & {"tensorflow", "keras"}  # else --help would wait for it


def test_only_the_last_row_sees_the_options_object():
    for path in FILES:
        if room(path) in ORDER[: ORDER.index("checkpoints")] and room(path) != "options":
            assert "options." not in path.read_text(), path


def test_each_file_says_what_it_is():
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text())), path
