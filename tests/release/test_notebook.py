"""The notebook runs from top to bottom, with a tiny budget."""

from pathlib import Path

import pytest

from tests.helpers.environment import required

pytestmark = pytest.mark.release
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "rpe_d2_shapes.ipynb"
DOCS = "-e '.[docs]'"  # what installs nbclient, nbformat and ipykernel


def test_the_notebook_trains_evaluates_and_shows_pictures(tmp_path, monkeypatch):
    nbclient = required("nbclient", DOCS)
    nbformat = required("nbformat", DOCS)
    required("ipykernel", DOCS)
    monkeypatch.setenv("RPE_D2_NOTEBOOK_ITERATIONS", "8")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.get("text", "") for output in outputs)
    assert len(pictures) == 3  # the training pictures, and two of the trained model
    assert "segm {'AP'" in printed


def test_the_notebook_is_committed_without_outputs():
    nbformat = required("nbformat", DOCS)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)
