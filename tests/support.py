"""Small data sets, raw files, sweeps and the pieces of a run, for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import Field
from toy_models import ToyMLP

from recbole_cdr_ext.data import atomic
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.prepare import prepare
from recbole_cdr_ext.runs.run import run_recbole_cdr
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.declaration import Settings
from recbole_cdr_ext.splits.maker import make_split
from recbole_cdr_ext.splits.split import Split, TrainingData
from recbole_cdr_ext.tuning import sweep
from recbole_cdr_ext.tuning.sweep import DEFAULTS

Rows = list[tuple[str, str, float]]


@dataclass
class Loaded:
    config: CDRConfig
    dataset: CrossDomainDataset
    split: Split

    @property
    def data(self) -> TrainingData[Split]:
        """What a model is built on."""
        return TrainingData.of(self.dataset, self.split)

    def id_of(self, domain: str, token: str) -> int:
        """The global id of an item."""
        return int(self.dataset.item_ids(self.dataset.domains.index(domain), [token])[0])

    def user(self, token: str) -> int:
        """The id of a user."""
        return int(self.dataset.token2id("user_id", token))


def write_domains(folder: Path, domains: dict[str, Rows], value: str = "timestamp") -> Path:
    """Writes each domain's (user, item, value) rows as an atomic file; the values are times, or ratings."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in domains.items():
        frame = pd.DataFrame(rows, columns=["user_id", "item_id", value])
        atomic.write_inter(folder / f"{name}.inter", frame.astype({value: float}))
    return folder


def here(root: Path) -> dict[str, object]:
    """Settings of a quiet run that reads and writes below ``root`` alone."""
    return {
        "data_path": str(root),
        "checkpoint_dir": str(root / "saved"),
        "cache_dir": str(root / "cache"),
        "show_progress": False,
        "tensorboard": False,
        "use_gpu": False,
    }


def load(tmp_path: Path, domains: dict[str, Rows], model: str = "I2VAE", **settings) -> Loaded:
    """Writes, loads and splits a data set made in a test."""
    write_domains(tmp_path / "mini", domains)
    return load_written(tmp_path, list(domains), model, **settings)


def load_written(
    root: Path, domains: list[str], model: str = "I2VAE", dataset: str = "mini", **settings
) -> Loaded:
    """Loads and splits ``root/dataset``."""
    given = {**here(root), "domains": domains, "order": "clock", **settings}
    config = CDRConfig(model=model, dataset=dataset, config_dict=given)
    data = CrossDomainDataset(config)
    return Loaded(config, data, make_split(config, data))


def random_domains(
    *, n_users: int = 60, n_items: int = 30, length: int = 8, names=("books", "films"), seed: int = 0
) -> dict[str, Rows]:
    """Users with distinct uniform items at distinct times in every domain; every fifth user in one domain only."""
    rng = np.random.default_rng(seed)
    rows: dict[str, Rows] = {name: [] for name in names}
    for u in range(n_users):
        present = [names[u // 5 % len(names)]] if u % 5 == 4 else list(names)
        for name in present:
            for item in rng.choice(n_items, rng.integers(2, length + 1), replace=False):
                rows[name].append((f"u{u}", f"{name[0]}{item}", float(rng.integers(0, 10**6))))
    return rows


# -- ratings -----------------------------------------------------------------------------------------------------


def write_ratings(folder: Path, domains: dict[str, Rows]) -> Path:
    """Writes each domain's (user, item, rating) rows as an atomic file without time."""
    return write_domains(folder, domains, "rating")


def rating_config(root: Path, domains: list[str], model: str = "SCDR", **settings) -> CDRConfig:
    """Settings of a rating model on ``root/mini``, quick ones unless others are given."""
    quick = {"pretrain_epochs": 2, "epochs": 2}
    given = {**here(root), "task": "rating", "domains": domains, "order": "none", **quick, **settings}
    return CDRConfig(model=model, dataset="mini", config_dict=given)


def random_ratings(
    *, n_users: int = 60, n_items: int = 30, length: int = 8, names=("books", "films"), seed: int = 0
) -> dict[str, Rows]:
    """Ratings 1 to 5 that depend on user and item; every fifth user rates in one domain only."""
    rng = np.random.default_rng(seed)
    of_user, of_item = rng.normal(0, 0.7, n_users), rng.normal(0, 0.7, (len(names), n_items))
    rows: dict[str, Rows] = {name: [] for name in names}
    for u in range(n_users):
        for k, name in enumerate(names):
            if u % 5 == 4 and u // 5 % len(names) != k:
                continue
            for item in rng.choice(n_items, rng.integers(3, length + 1), replace=False):
                value = 3.3 + of_user[u] + of_item[k, item] + rng.normal(0, 0.3)
                rows[name].append((f"u{u:03d}", f"{name[0]}{item}", float(np.clip(np.round(value), 1, 5))))
    return rows


TABLE = {
    "domains": ["food", "kitchen"],
    "task": "rating",
    "order": "clock",
    "source": {
        "kind": "table",
        "files": {"food": "food.csv", "kitchen": "kitchen.csv"},
        "columns": {"user_id": "who", "item_id": "what", "rating": "stars", "timestamp": "when"},
    },
}


@pytest.fixture(autouse=True)
def _no_raw_folder_from_outside(request, monkeypatch):
    if "real_raw" not in request.fixturenames:
        monkeypatch.delenv("RECBOLE_CDR_RAW", raising=False)


@pytest.fixture
def table_raw(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    # Columns in another order, one that is not needed, ids that look numeric, 'NA', a repeated pair, an empty
    # user.
    (raw / "food.csv").write_text(
        'when,what,note,who,stars\n100,0012,"a, b",7,5\n101,NA,,7,4\n'
        "102,0012,x,7,2\n103,5,x,,3\n104,5,x,8,3.5\n"
    )
    (raw / "kitchen.csv").write_text("who,what,stars,when\n8,5,1,90\n9,k,2,91\n9,k,2,92\n")
    return raw


def _nothing_left(folder):
    return not folder.exists() or list(folder.iterdir()) == []


def _facts(folder):
    return json.loads((folder / "statistics.json").read_text())["facts"]


def _prepare(name, description, raw, out, **options):
    return prepare(name, description=description, raw=raw, data_path=out, progress=False, **options)


def _altered(description, **source):
    return {**description, "source": {**description["source"], **source}}


ROOT = Path(__file__).parents[1]
QUICK = {
    "data_path": str(ROOT / "dataset_atomic"), "epochs": 4, "train_targets": "last", "train_batch_size": 128,
    "eval_args": {"mode": "uni50"},
}  # fmt: skip
LEARNING_RATES = "learning_rate: {choice: [0.01, 0.003]}\n"


class TroubledSettings(Settings):
    """What goes wrong."""

    trouble: str | None = Field(None, description="none, raises, memory or nan.")


class Troubled(ToyMLP):
    """Learns, or does not, as its setting ``trouble`` says."""

    settings_class = TroubledSettings

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.trouble = config["trouble"]

    def calculate_loss(self, interaction):
        """Returns the loss, unless there is trouble."""
        loss = super().calculate_loss(interaction)
        if self.trouble == "raises":
            raise ValueError("this one\nraises")
        if self.trouble == "memory":
            raise MemoryError
        return loss * float("nan") if self.trouble == "nan" else loss


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {**QUICK, "cache_dir": str(tmp_path / "cache")}


def space_file(tmp_path, text=LEARNING_RATES):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def prepared(tmp_path, quick, model=ToyMLP, space=LEARNING_RATES, dataset="toy", **options):
    options = {
        **DEFAULTS,
        "search": "grid",
        "out": str(tmp_path / "sweep"),
        "space": space_file(tmp_path, space),
        **options,
    }
    made = sweep.prepare(model, dataset, options, None, quick)
    made.folder.mkdir(exist_ok=True)
    return made


def score_of_run(folder, model):
    """The validation score of a run with best.yaml alone."""
    quiet = {"show_progress": False, "tensorboard": False, "save_instances": False, "torch_threads": 1}
    return run_recbole_cdr(model, "toy", [str(folder / sweep.BEST)], quiet)["best_valid_score"]
