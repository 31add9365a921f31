"""Reads out of the installed RecBole what :mod:`recbole_settings` keeps, which a version of RecBole needs once.

``python -m recbole_cdr_ext.settings.recbole_source`` writes it, and a test compares.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from recbole_cdr_ext.registry.models import recbole_modules
from recbole_cdr_ext.settings.recbole_settings import FILE, VERSION

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
