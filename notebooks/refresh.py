"""Run the notebooks' text twins and write the notebooks, with outputs that are small and the same on every machine.

``python notebooks/refresh.py`` runs all of them, ``python notebooks/refresh.py first_tour`` one.
"""

import argparse
import base64
import io
import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def refresh(twin):
    """Run a twin and write its notebook."""
    notebook = jupytext.read(twin)
    NotebookClient(
        notebook,
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    notebook.metadata = {
        "jupytext": {"formats": notebook.metadata["jupytext"]["formats"]},
        "kernelspec": KERNEL,
        "language_info": {"name": "python"},  # the rest is this Python's version
    }
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = smaller(data["image/png"])
    nbformat.write(notebook, twin.with_suffix(".ipynb"))


def smaller(png):
    """The same figure with 64 colours, which is enough for lines and takes a quarter of the space."""
    figure = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64).save(figure, "png", optimize=True)
    return base64.b64encode(figure.getvalue()).decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="default: all")
    names = parser.parse_args().names or [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # as in the tests
    os.environ.pop("MPLBACKEND", None)  # or figures would not be shown
    for name in names:
        refresh(FOLDER / f"{name}.py")
