"""RecBole: what is built on in it is still there, and each mend of it works and is still needed."""

from __future__ import annotations

import collections
import inspect
import json
import logging
import pkgutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recbole
import scipy.sparse as sp

# Nothing that mends: the probes below also run in a process without.
from recbole_cdr_ext.settings.recbole_1_2_0 import FILE, HOOKS, VERSION, keys_read_by, recbole_settings

# -- what is built on ----------------------------------------------------------------------------------------------


# This package's subclasses of RecBole's classes, by these.
SUBCLASSES = {
    "recbole.config:Config": "recbole_cdr_ext.settings.config:CDRConfig",
    "recbole.data.dataset:Dataset": "recbole_cdr_ext.data.dataset:CrossDomainDataset",
    "recbole.sampler:Sampler": "recbole_cdr_ext.splits.sampler:CrossDomainSampler",
    "recbole.trainer:Trainer": "recbole_cdr_ext.trainer.trainer:CrossDomainTrainer",
}


def test_the_version_is_the_one_that_was_read():
    assert recbole.__version__.lstrip("v") == VERSION


@pytest.mark.parametrize(
    ("owner", "method"), [(owner, name) for owner, names in HOOKS.items() for name in names]
)
def test_a_hook_has_the_arguments_that_it_had(owner, method):
    function = inspect.unwrap(getattr(pkgutil.resolve_name(owner), method))
    if method != "compatibility_settings":  # which compat replaces
        assert str(inspect.signature(function)) == HOOKS[owner][method]


@pytest.mark.parametrize("owner", SUBCLASSES)
def test_every_private_method_that_is_overridden_is_named(owner):
    base, subclass = pkgutil.resolve_name(owner), pkgutil.resolve_name(SUBCLASSES[owner])
    private = {name for name in vars(subclass) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in private if hasattr(base, name) and callable(getattr(base, name))} <= set(
        HOOKS[owner]
    )


def test_the_kept_settings_are_those_of_the_installed_recbole():
    assert FILE.read_text(encoding="utf-8") == recbole_settings()


def test_keys_that_a_model_reads_without_declaring_them_are_known_to_it_and_its_heirs():
    from recbole_cdr_ext.registry import models as model_registry
    from recbole_cdr_ext.settings.config import CDRConfig

    bpr = model_registry.recbole_class("BPR")
    assert bpr is not None
    assert keys_read_by(bpr) == keys_read_by(type("Mine", (bpr,), {})) == {"embedding_size"}
    assert keys_read_by(CDRConfig("I2VAE", "toy").model_class) == set()


# -- probes: RecBole's own code, one per mend; each returns what a mended RecBole makes of its input ---------------


def probe_numpy_aliases():
    from recbole.data.interaction import _convert_to_tensor

    return _convert_to_tensor([1.5, 2.5]).tolist()


def probe_config_numpy_names():
    from recbole.config import Config

    Config.compatibility_settings(object())
    return "started"


def probe_dok_update():
    from recbole.model.general_recommender import LightGCN

    # Users 0 and 1, item 0; user 0 has the item: the normalised entry is 1 / sqrt(1 * 1), on either side.
    model = types.SimpleNamespace(
        n_users=2, n_items=1, interaction_matrix=sp.coo_matrix(([1.0], ([0], [0])), shape=(2, 1))
    )
    matrix = LightGCN.get_norm_adj_mat(model).to_dense()
    return [[round(float(value), 3) for value in row] for row in matrix]


def probe_fill_missing_values():
    from recbole.data.dataset import Dataset
    from recbole.utils import FeatureType

    frame = pd.DataFrame({"token": [3.0, np.nan], "value": [1.0, np.nan], "other": [np.nan, 5.0]})
    kinds = dict.fromkeys(frame, FeatureType.FLOAT) | {"token": FeatureType.TOKEN}
    dataset = types.SimpleNamespace(
        feat_name_list=["inter_feat"], inter_feat=frame, field2type=kinds, logger=logging.getLogger("probe")
    )
    Dataset._fill_nan(dataset)
    filled = dataset.inter_feat.fillna(-1).to_dict(orient="list")
    if -1 in filled["token"] or -1 in filled["value"]:
        raise ValueError("NaN is left")
    return filled


def probe_read_missing_sequences():
    from recbole.data.dataset import Dataset

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.item"
        path.write_text("item_id:token\tgenres:token_seq\ni1\ta b\ni2\t\n", encoding="utf-8")
        dataset = types.SimpleNamespace(
            logger=logging.getLogger("probe"),
            config={"field_separator": "\t", "seq_separator": " ", "encoding": "utf-8", "seq_len": None},
            field2source={}, field2type={}, field2seqlen={}, field2bucketnum=collections.defaultdict(int),
            _get_load_and_unload_col=lambda source: (None, None),
        )  # fmt: skip
        frame = Dataset._load_feat(dataset, str(path), "item")
    return [list(map(str, genres)) for genres in frame["genres"]]


def probe_ngcf_message_dropout():
    import torch
    from recbole.model.general_recommender.ngcf import NGCF

    class Layer(torch.nn.Module):
        def forward(self, matrix, eye, vectors):
            return vectors

    model = types.SimpleNamespace(
        training=False, node_dropout=0, norm_adj_matrix=None, eye_matrix=None, message_dropout=0.5,
        get_ego_embeddings=lambda: torch.ones(2, 64), GNNlayers=[Layer()], n_users=1, n_items=1,
    )  # fmt: skip
    users, _ = NGCF.forward(model)
    if (users == 0).any():
        raise ValueError("messages were dropped in evaluation")
    assert model.message_dropout == 0.5
    return users[0, ::64].tolist()


def probe_dgcf_samples():
    from recbole.model.general_recommender import dgcf

    users, items = dgcf.sample_cor_samples(5, 2, 4)
    return [len(set(users)), sorted(items)]


def probe_stamp_padding():
    import torch
    from recbole.model.sequential_recommender.stamp import STAMP

    config = {
        "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_", "device": "cpu",
        "ITEM_LIST_LENGTH_FIELD": "length", "MAX_ITEM_LIST_LENGTH": 5, "embedding_size": 4, "loss_type": "CE",
    }  # fmt: skip
    model = STAMP(config, types.SimpleNamespace(num=lambda field: 6))
    length = torch.tensor([2])
    short = model(torch.tensor([[3, 4]]), length)
    long = model(torch.tensor([[3, 4, 0, 0, 0]]), length)
    if not torch.allclose(short, long, rtol=1e-4, atol=0):
        raise ValueError("padding counts")
    return bool(short.any())


PROBES = {
    name.removeprefix("probe_"): probe for name, probe in list(globals().items()) if name.startswith("probe_")
}
MENDED = {
    "numpy_aliases": [1.5, 2.5],
    "config_numpy_names": "started",
    "dok_update": [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
    "fill_missing_values": {"token": [3, 0], "value": [1, 1], "other": [5, 5]},
    "read_missing_sequences": [["a", "b"], []],
    "ngcf_message_dropout": [1, pytest.approx(0.125)],
    "dgcf_samples": [4, [0, 1]],
    "stamp_padding": True,
}
NEEDED_FROM = {
    "numpy_aliases": (np, (1, 24)),
    "config_numpy_names": (np, (2, 0)),
    "dok_update": (sp, (1, 13)),
    "fill_missing_values": (pd, (3, 0)),
    "read_missing_sequences": (pd, (3, 0)),
    "ngcf_message_dropout": (np, (0, 0)),
    "dgcf_samples": (np, (0, 0)),
    "stamp_padding": (np, (0, 0)),
}


@pytest.fixture(scope="module")
def unmended() -> dict[str, str]:
    """What each probe raises in a process that never heard of the mends; "" where it does not."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", __file__], capture_output=True, text=True, timeout=300, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("mend", PROBES)
def test_is_mended(mend):
    from recbole_cdr_ext import compat

    compat.apply()
    compat.apply()  # a second time changes nothing
    for model in compat.MODEL_MENDS:
        compat.apply_to(model)
        compat.apply_to(model)
    assert PROBES[mend]() == MENDED[mend]


@pytest.mark.parametrize("mend", PROBES)
def test_is_still_needed(mend, unmended):
    package, since = NEEDED_FROM[mend]
    version = sys.modules[package.__name__.split(".")[0]].__version__
    if tuple(map(int, version.split(".")[:2])) < since:
        pytest.skip(f"{package.__name__} {version} is older than what the mend is for")
    assert unmended[mend], f"RecBole runs without compat.{mend}(): delete the mend, its probe and its tests."


def test_every_mend_has_a_probe():
    import inspect

    from recbole_cdr_ext import compat

    mends = {
        name
        for name, function in inspect.getmembers(compat, inspect.isfunction)
        if function.__module__ == compat.__name__
        and not name.startswith("_")
        and name not in ("apply", "apply_to")
    }
    assert mends == set(PROBES) == set(MENDED) == set(NEEDED_FROM)


def test_nothing_that_numpy_defines_is_shadowed():
    code = (
        "import numpy as np; before = dict(vars(np)); from recbole_cdr_ext import compat; compat.apply();"
        "from recbole.config import Config; Config.compatibility_settings(object());"
        "changed = [name for name, value in before.items() if vars(np)[name] is not value]; assert not changed, changed"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, cwd=Path(__file__).parent.parent)


def test_pandas_itself_is_left_alone():
    from recbole_cdr_ext import compat

    read_csv = pd.read_csv
    compat.apply()
    assert pd.read_csv is read_csv
    assert type(pd) is types.ModuleType


def _outcome(probe) -> str:
    try:
        probe()
    except Exception as error:  # whichever it is, it is what the mend is for
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    print(json.dumps({name: _outcome(probe) for name, probe in PROBES.items()}))
