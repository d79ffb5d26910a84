"""The house: who may know whom, and that nothing needed at training drags matplotlib in."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
# Each row may import rows before its own, and in its own only what stands before it.
ROWS = [
    ["errors", "options", "color", "images", "losses", "convolutions"],
    ["dataset", "networks", "metrics", "logs", "devices"],
    ["pipeline", "model"],
    ["bundle", "checkpoint", "calibration"],
    ["training", "report", "evaluation", "colorization",
     "turing_score", "turing_trials", "turing_window", "turing_web", "turing"],
]
ORDER = [room for row in ROWS for room in row]


def imports(path):
    """(room, at top level?) of every import of ours, and the names of all modules imported at top level."""
    tree = ast.parse(path.read_text())
    ours, top = [], set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"src.{alias.name}" for alias in node.names] if node.module == "src" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        ours += [name.split(".")[1] for name in names if name.startswith("src.")]
        if node in tree.body:
            top |= {name.split(".")[0] for name in names}
    return ours, top


def test_every_room_has_its_place():
    assert {path.stem for path in SRC.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("room", ORDER)
def test_imports_go_one_way(room):
    ours, top = imports(SRC / f"{room}.py")
    for other in ours:
        assert ORDER.index(other) < ORDER.index(room), f"{room} imports {other}"
    assert "matplotlib" not in top
    if room in ROWS[0][:1] + ["options", "images", "dataset"]:
        assert not top & {"tensorflow", "keras"}  # else --help would wait for it


def test_only_the_last_row_sees_the_options_object():
    for room in ORDER[:ORDER.index("bundle")]:
        if room not in ("options", "dataset"):
            assert "options." not in (SRC / f"{room}.py").read_text(), room


def test_each_file_says_what_it_is():
    for path in SRC.glob("*.py"):
        if path.name != "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path
