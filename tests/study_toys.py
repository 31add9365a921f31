"""Runs, studies, reports and analyses to test with: texts and folders, what makes them, and what reads pages back."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_cdr_ext.analysis.bridges import ratings_of
from recbole_cdr_ext.cli.main import main
from recbole_cdr_ext.evaluation.result_table import write_instances
from recbole_cdr_ext.pages.figures import require
from recbole_cdr_ext.reports.groups import collect
from recbole_cdr_ext.runs.finished import default_settings
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.serving.recommendation import load_model
from recbole_cdr_ext.studies.cells import make_cells
from recbole_cdr_ext.studies.definition import read_study
from recbole_cdr_ext.studies.state import State

# -- studies, whose runs the stand-in of study_child.py makes ---------------------------------------------------------


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
ANALYSED = f"{RATED}analyses:\n  fgsm: {{epsilons: [0, 1]}}\n  sensitivity: {{rhos: [1, 5]}}\n"


def study_file(folder: Path, text: str, name: str = "mine") -> str:
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
    assert main(["study", study_file(Path.cwd(), text, name), *QUIET, *words]) == status
    out = next(
        (word.removeprefix("--out=") for word in words if word.startswith("--out=")), f"results/{name}"
    )
    return (Path(out) / "tables.md").read_text(encoding="utf-8")


def cells(tmp_path: Path, text: str, **passed):
    return make_cells(
        read_study(study_file(tmp_path, text)), {"data_path": str(ROOT / "dataset_atomic"), **passed}
    )


def state(text: str, out: str = "results/mine") -> State:
    found = read_study(study_file(Path.cwd(), text))
    made = make_cells(found, {"data_path": str(ROOT / "dataset_atomic")})
    return State.of(found, made, Path(out), Path("saved"))


# -- folders as runs leave them, made without training, and reports on them -------------------------------------------


N = 40  # test users in each domain


def write_run(
    root: Path,
    model: str = "BPR",
    seed: int = 1,
    *,
    name: str | None = None,
    dataset: str = "toy",
    shift: float = 0.0,
    instances: bool = True,
    changes: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """Writes a finished next-item run; the larger ``shift``, the lower its ranks.

    Args:
        changes: what stands in ``result.json`` in place of what a run writes.
        settings: other settings than the defaults.
    """
    folder = root / (name or f"{model}-{seed}-{len(list(root.glob('*')))}")
    folder.mkdir(parents=True)
    frame = ranked(np.random.default_rng(seed), shift)
    # What BPR has stands in for what a model has that isn't known here.
    known = default_settings(model, dataset, "next_item") or default_settings("BPR", "toy", "next_item")
    all_settings = {**known, "seed": seed, **settings, "model": model, "dataset": dataset}
    test = {
        domain: {group: _means(rows[rows[group]]) for group in ("all", "cold")}
        for domain, rows in frame.groupby("domain", sort=False)
    }
    result = {
        "model": model, "task": "next_item", "dataset": dataset, "simulated": False, "seed": seed,
        "split": all_settings["split"], "run_id": folder.name, "best_valid_score": 0.25, "valid": test, "test": test,
        "popularity": {d: {g: {**c, "ndcg@10": 0.01, "hit@10": 0.02} for g, c in t.items()} for d, t in test.items()},
        "fallback": {"test": {d: dict.fromkeys(t, 0) for d, t in test.items()}}, "stopped": "early", "epochs_run": 3,
        "history": [{"phase": "train", "epoch": e, "loss": [1.0], "valid_score": 0.2 + 0.02 * e} for e in range(3)],
        "seconds": {"training": 3.0, "total": 4.5}, "settings": all_settings, "versions": {"python": "3.11"},
        "notes": [], "report": {"leak: held-out pairs among training interactions": 0}, **(changes or {}),
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(all_settings))
    if instances:
        write_instances(frame, folder)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def ranked(rng: np.random.Generator, shift: float) -> pd.DataFrame:
    """A per-instance table of two domains."""
    rank = np.maximum(1, np.round(rng.integers(1, 40, 2 * N) - shift)).astype(int)
    return pd.DataFrame(
        {
            **{
                "part": "test",
                "user": [f"u{i % N}" for i in range(2 * N)],
                "domain": ["books"] * N + ["films"] * N,
            },
            **{"target": [f"i{i}" for i in range(2 * N)], "all": True, "cold": np.arange(2 * N) % 4 == 0},
            **{"candidates": 1000, "rank": rank, "fallback": False},
        }
    )


def _means(rows: pd.DataFrame) -> dict[str, Any]:
    rank = rows["rank"].to_numpy()
    gain = np.where(rank <= 10, 1 / np.log2(rank + 1), 0)
    return {
        "n": len(rows),
        "ndcg@10": round(float(gain.mean()), 6),
        "hit@10": round(float((rank <= 10).mean()), 6),
    }


def only_group(root: Path):
    (group,) = collect(None, root).groups
    return group


def report_files(root: Path, out: Path, *words: str) -> dict[str, str]:
    assert main(["report", f"--checkpoint_dir={root}", f"--out={out}", *words]) == 0
    return {path.name: path.read_text(encoding="utf-8") for path in out.iterdir()}


# -- saved runs to analyse --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Folder of runs on toy: SCDR; EMCDR, a matrix without biases; TGT; and SCDR on another split."""
    require()  # imported once, in no test's time
    folder = tmp_path_factory.mktemp("analysis")
    shared = {
        "task": "rating", "show_progress": False, "tensorboard": False, "use_gpu": False, "epochs": 2,
        "pretrain_epochs": 2, "seed": 1, "state": "ERROR", "data_path": str(ROOT / "dataset_atomic"),
        "checkpoint_dir": str(folder / "saved"), "cache_dir": str(folder / "cache"),
    }  # fmt: skip
    own = {
        "sharp": ("SCDR", {}),
        "linear": ("EMCDR", {"mapping": "linear", "biases": False}),
        "cold": ("TGT", {}),
        "split": ("SCDR", {"split_seed": 7}),
    }
    for name, (model, settings) in own.items():
        run_recbole_cdr(model, "toy", config_dict={**shared, **settings, "run_id": name})
    return folder / "saved"


@pytest.fixture
def sharp(saved):
    return load_model(saved / "sharp")


@pytest.fixture
def linear(saved):
    """An experiment whose ratings are ⟨W u, v⟩, and of every third item the mean."""
    experiment = load_model(saved / "linear")
    experiment.model.known_items[::3] = False
    return experiment


def in_numpy(experiment):
    """Returns u (B, d), g = Wᵀ v (B, d), ratings (B,), and which items are known, of a linear run's test ratings."""
    model, batch = experiment.model, ratings_of(experiment, "test")
    weight = model.mapping.weight.detach().double().numpy()
    user = model.source_users.weight.detach().double().numpy()[batch.user]
    item = model.target_items.double().numpy()[batch.item]
    return user, item @ weight, batch.rating.double().numpy(), model.known_items.numpy()[batch.item]


def analyse(kind: str, saved: Path, out: Path, *words: str) -> int:
    return main(
        ["analyse", kind, f"--checkpoint_dir={saved}", f"--out={out}", "--show_progress=False", *words]
    )


def check_figures(out: Path, kind: str, *texts: str) -> None:
    """Checks that the image is one, not blank, and that the page names what it shows."""
    from matplotlib.image import imread

    image = imread(out / f"{kind}.png")
    assert min(image.shape[:2]) > 300
    assert image[..., :3].std() > 0.02
    page = (out / f"{kind}.html").read_text(encoding="utf-8")
    for text in texts:
        assert json.dumps(text)[1:-1] in page  # as plotly writes it
    assert not list(out.glob(".*"))


# -- pages read back --------------------------------------------------------------------------------------------------


EVIL = "</script><img src=x onerror=alert(1)><script>alert(1)</script>"
EMPTY = ("meta", "link", "img")


class Page(HTMLParser):
    """What stands in a page: tags with attributes, and text outside of scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.title, self.open = "", "", []
        self.figures: dict[str, dict] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data
        if "title" in self.open:
            self.title += data
        if "script" in self.open and self.tags[-1][1].get("type") == "application/json":
            self.figures[self.tags[-1][1]["id"]] = json.loads(data)

    @property
    def scripts(self) -> int:
        """How many elements hold a script that runs."""
        return sum(tag == "script" and "type" not in attributes for tag, attributes in self.tags)

    @property
    def policy(self) -> str:
        """The content security policy."""
        (policy,) = [
            of["content"] for tag, of in self.tags if of.get("http-equiv") == "Content-Security-Policy"
        ]
        return policy


def check_harmless(page: Page, images: int = 0) -> None:
    """Checks that a page is whole, fetches nothing, and that nothing in it became markup."""
    assert not page.open  # every element was closed
    assert page.scripts == 2  # plotly's and the page's own
    assert page.policy.startswith("default-src 'none'; ") and "http" not in page.policy
    assert sum(tag == "img" for tag, _ in page.tags) == images
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    places = [attributes["data-figure"] for _, attributes in page.tags if "data-figure" in attributes]
    assert places == list(page.figures)
