"""The notebook: kept without outputs, and run to its end."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "colorize.ipynb"


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")


@pytest.mark.slow
def test_it_runs_to_its_end():
    nbclient, nbformat = (pytest.importorskip(name, reason="needs requirements-dev.txt") for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason="needs requirements-dev.txt")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()  # raises what a cell raises
    drawn = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(drawn) == 3
