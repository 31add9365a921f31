"""What this library builds on in RecBole 1.2.0: private methods, names of settings, and what RecBole says of them.

:data:`HOOKS` names each private method that a class here overrides or calls, as it was read in that version;
``tests/test_recbole.py`` compares it with the RecBole that is installed. RecBole says the types and meanings of its
settings in comments of its property files, and the keys that its models read without declaring them nowhere but in its
source: both stand in ``recbole_1_2_0.json``, which ``python -m recbole_cdr_ext.settings.recbole_1_2_0`` writes.
What RecBole itself breaks on newer libraries is in :mod:`recbole_cdr_ext.compat`.

Imports nothing heavy: ``--help`` reads it.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from recbole_cdr_ext.settings.reading import Documented

# -- hooks and names -----------------------------------------------------------------------------------------------


# By RecBole's class, its private methods and their arguments, in the order in which it calls them.
HOOKS: Mapping[str, Mapping[str, str]] = {
    "recbole.config:Config": {
        "compatibility_settings": "(self)",
        "_init_parameters_category": "(self)",
        "_build_yaml_loader": "(self)",
        "_load_config_files": "(self, file_list)",
        "_load_variable_config_dict": "(self, config_dict)",
        "_load_cmd_line": "(self)",
        "_merge_external_config_dict": "(self)",
        "_get_model_and_dataset": "(self, model, dataset)",
        "_load_internal_config_dict": "(self, model, model_class, dataset)",
        "_get_final_config_dict": "(self)",
        "_set_default_parameters": "(self)",
        "_init_device": "(self)",
        "_set_train_neg_sample_args": "(self)",
    },
    "recbole.data.dataset:Dataset": {
        "_from_scratch": "(self)",
        "_get_preset": "(self)",
        "_get_field_from_config": "(self)",
        "_filter_by_field_value": "(self)",
        "_filter_by_inter_num": "(self)",
        "_fill_nan": "(self)",
        "_load_feat": "(self, filepath, source)",
        "_remap": "(self, remap_list)",  # another method's name here: RecBole's is not called
    },
    "recbole.sampler:Sampler": {
        "_uni_sampling": "(self, sample_num)",
    },
    "recbole.trainer:Trainer": {
        "_build_optimizer": "(self, **kwargs)",
        "_train_epoch": "(self, train_data, epoch_idx, loss_func=None, show_progress=False)",
        "_valid_epoch": "(self, valid_data, show_progress=False)",
        "_generate_train_loss_output": "(self, epoch_idx, s_time, e_time, losses)",
    },
}

# RecBole-CDR's blocks of settings, source first.
BLOCKS = ("source_domain", "target_domain")
# Keys that RecBole or this library reads and that no property file declares.
UNDECLARED_KEYS = {
    "model", "dataset", "config_files", "encoding", "benchmark_filename", "tail_ratio", "shuffle",
    "local_rank", "nproc", "world_size", "offset", "ip", "port", *BLOCKS,
}  # fmt: skip
# Keys of RecBole-CDR's domain blocks that RecBole itself doesn't know.
DOMAIN_KEYS = {"data_path", "drop_filter_field", "drop_preload_weight", "encoding", "seq_separator"}
# What RecBole and RecBole-CDR call settings that have another name here.
RENAMED = {
    "neg_sampling": "train_neg_num",
    "training_neg_sample_num": "train_neg_num",
    "train_epochs": "epochs",
    "max_len": "max_history_length",
}
# What RecBole computes from the settings, or finds on the machine: no settings of their own.
DERIVED_KEYS = {
    "MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_metric_bigger", "valid_neg_sample_args",
    "test_neg_sample_args", "device", "single_spec", "local_rank", "nproc", "world_size", "offset", "ip", "port",
    "data_root",
}  # fmt: skip


# -- types, meanings and keys --------------------------------------------------------------------------------------


VERSION = "1.2.0"
FILE = Path(__file__).with_name("recbole_1_2_0.json")


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def recbole_rows(file: str) -> dict[str, Documented]:
    """Returns the keys of one of RecBole's property files, such as ``model/BPR.yaml``, with types and meanings."""
    rows = _content()["files"].get(file, {})
    return {
        key: Documented(key, default, types, meaning, section="")
        for key, (default, types, meaning) in rows.items()
    }


def keys_read_by(model: type) -> set[str]:
    """Returns the keys that a model of RecBole's, or one derived from it, reads from its configuration."""
    reads = _content()["reads"]
    bases = [base for base in model.__mro__ if base.__module__.startswith("recbole.model.")]
    return {key for base in bases for key in reads.get(base.__name__, ())}


# -- reading them out of the installed RecBole ---------------------------------------------------------------------


_KEY = re.compile(r"^(\w+):[ \t]*(.*?)[ \t]*(?:#[ \t]*(?:\(([^)]*)\))?[ \t]*(.*))?$")
_SHARED = ("overall.yaml", "dataset/sample.yaml", *(
    f"quick_start_config/sequential{kind}.yaml" for kind in ("", "_DIN", "_embedding_model")
))  # fmt: skip
# Types of which RecBole takes more than its comments mention.
_TYPES = {
    "gpu_id": "str or int or list",
    "train_neg_sample_args": "dict or None",
    "user_inter_num_interval": "str or None",
    "item_inter_num_interval": "str or None",
    "load_col": "dict or None",
    "topk": "list or int or None",
}


def recbole_settings() -> str:
    """Returns the text of ``recbole_1_2_0.json`` for the RecBole that is installed."""
    from recbole_cdr_ext.registry.models import recbole_modules

    spec = importlib.util.find_spec("recbole")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    properties = root / "properties"
    files = [
        *_SHARED,
        *sorted(path.relative_to(properties).as_posix() for path in properties.glob("model/*.yaml")),
    ]
    reads = {}
    for name, module in recbole_modules().items():
        source = root.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        reads[name] = sorted(set(re.findall(r"config\[[\"'](\w+)[\"']\]", source)))
    content = {
        "version": VERSION,
        "files": {file: _rows(properties / file) for file in files},
        "reads": reads,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # A key's row, and a model's list, on one line.
    return re.sub(r"\[[^\[\]]*\]", lambda match: re.sub(r"\n\s*", " ", match[0]), text) + "\n"


def _rows(path: Path) -> dict[str, tuple[str, str, str]]:
    """Returns default, types and meaning, as they are written, of each top-level key of a property file."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _KEY.match(line):
            key, default, types, meaning = (part or "" for part in match.groups())
            # A None that nothing explains may become anything.
            rows[key] = (default, _TYPES.get(key, types) if types or default != "~" else "", meaning.strip())
    return rows


if __name__ == "__main__":
    FILE.write_text(recbole_settings(), encoding="utf-8")
