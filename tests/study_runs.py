"""Studies for tests: texts of small ones, and what runs them with the stand-in of study_child.py."""

from __future__ import annotations

from pathlib import Path

from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.studies.cells import make_cells
from recbole_cdr_ext.studies.definition import read_study
from recbole_cdr_ext.studies.state import State

ROOT = Path(__file__).resolve().parents[1]
CHILD = ROOT / "tests" / "study_child.py"
DATA = f"--data_path={ROOT / 'dataset_atomic'}"
QUIET = [DATA, "--show_progress=False", "--jobs=2"]
TWO = """
title: Two models
task: next_item
datasets: [toy]
seeds: [1, 2]
rows:
  Popular: {model: Pop}
  Neighbours: {model: ItemKNN, k: 5}
baseline: Popular
"""
VARIED = f"{TWO}vary: {{density: [0.5, 1.0]}}\nmetrics: [hit@10]\ngroups: [cold, all]\n"
RATED = """
task: rating
scenes: {books → films: {dataset: toy, source: books, target: films}}
seeds: [0, 1]
settings: {split_seed: seed}
models: [EMCDR, SCDR]
"""


def written(folder: Path, text: str, name: str = "mine") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def calls() -> list[str]:
    """What was told to the runs since the last look."""
    path = Path("calls.txt")
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def go(text: str, *words: str, name: str = "mine", status: int = 0) -> str:
    """Runs a study to its end; returns its Markdown."""
    assert main(["study", written(Path.cwd(), text, name), *QUIET, *words]) == status
    out = next(
        (word.removeprefix("--out=") for word in words if word.startswith("--out=")), f"results/{name}"
    )
    return (Path(out) / "tables.md").read_text(encoding="utf-8")


def cells(tmp_path: Path, text: str, **passed):
    return make_cells(
        read_study(written(tmp_path, text)), {"data_path": str(ROOT / "dataset_atomic"), **passed}
    )


def state(text: str, out: str = "results/mine") -> State:
    found = read_study(written(Path.cwd(), text))
    made = make_cells(found, {"data_path": str(ROOT / "dataset_atomic")})
    return State.of(found, made, Path(out), Path("saved"))
