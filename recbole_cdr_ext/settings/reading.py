"""Reading settings: property files, command-line words, values, and the words for their types.

Imports nothing heavy, so that ``recbole-cdr --help`` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.paths import properties_dir

TASKS = ("next_item", "rating")

# libyaml's parser where PyYAML has it: a run reads some fifty files, for itself and for each of its stages.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Loader(_SafeLoader):
    """YAML's safe loader, with RecBole's reading of numbers, Python's ``None``, and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands here a second time", key.start_mark
                )
            seen.add(str(key.value))
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


# YAML 1.1 takes 1e-4 for text because it has no dot; RecBole's users write it everywhere.
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def parse_value(text: str) -> Any:
    """Returns what a setting's text means: a number, a truth value, None, a list, a dict, or else the text itself."""
    try:
        return yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that no calendar has
        return text


def text_of(value: Any) -> str:
    """Returns a setting's value on one line; equal values give equal text."""
    if isinstance(value, str):
        return value
    return "-" if value is None else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)


def short(value: Any, letters: int = 28) -> str:
    """Returns the text of a value, or its beginning."""
    text = text_of(value)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def as_argument(value: Any) -> str:
    """Returns the text that a command line reads as this value."""
    if isinstance(value, str):
        return value if parse_value(value) == value else json.dumps(value, ensure_ascii=False)
    return "None" if value is None else str(value) if isinstance(value, bool) else json.dumps(value)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Returns the settings in a property file; none for an empty file.

    Raises:
        CDRError: the file can't be read, is no YAML, gives a key twice, or holds something else than ``key: value``.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise CDRError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CDRError(f"{path}{line}: {getattr(error, 'problem', None) or 'no valid YAML'}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise CDRError(f"{path}: expected lines of the form 'key: value'.")
    return content


def find_config_file(name: str | Path) -> Path:
    """Returns the file that a user names: as a path, or else one of the package's property files.

    ``properties/model/I2VAE_paper.yaml``, ``model/I2VAE_paper.yaml``, ``I2VAE_paper.yaml`` and ``I2VAE_paper`` all
    find the package's file, wherever the package is installed.

    Raises:
        CDRError: neither exists (with the nearest name).
    """
    path = Path(name)
    if path.is_file():
        return path
    parts = [part for part in path.parts if part != "properties"]
    wanted = Path(*parts).with_suffix(".yaml").as_posix() if parts else str(name)
    root = properties_dir()
    # The files in hyper/ are search spaces, and named as the models are; those in study/ are studies.
    known = {
        file.relative_to(root).as_posix(): file
        for file in sorted(root.rglob("*.yaml"))
        if file.parent.name not in ("hyper", "study")
    }
    for relative, file in known.items():
        if relative == wanted or relative.endswith("/" + wanted):
            return file
    hint = did_you_mean(wanted, known) or did_you_mean(
        Path(wanted).name, [file.name for file in known.values()]
    )
    raise CDRError(
        f"The settings file '{name}' exists neither here nor among the package's property files.{hint}"
    )


# Settings whose value is a name, so that the key alone, which means True, is a slip.
_NAMED = ("model", "dataset", "config_files", "resume", "run_id", "task", "split", "source", "target", "raw")


def parse_arguments(argv: Iterable[str]) -> dict[str, str]:
    """Returns the settings in command-line words of the form ``--key=value``; ``--key`` alone is True.

    Raises:
        CDRError: a word has another form, a key stands there twice with different values, or alone where only a name
            makes sense.
    """
    settings: dict[str, str] = {}
    last = ""
    for word in argv:
        if not word.startswith("--"):
            if last == "config_files":  # RecBole's way: --config_files=a.yaml b.yaml
                settings[last] += f" {word}"
                continue
            raise CDRError(f"'{word}' is not of the form --key=value.")
        last, equals, value = word[2:].partition("=")
        if not equals and last in _NAMED:
            raise CDRError(f"'{word}' stands alone: say --{last}=NAME.")
        value = value if equals else "True"
        if not last or settings.get(last, value) != value:
            raise CDRError(f"'{word}': give each key once, as --key=value.")
        settings[last] = value
    return settings


def words_in(text: Any) -> list[str]:
    """Returns the words of a text with commas between; none for None."""
    return [word.strip() for word in str(text if text is not None else "").split(",") if word.strip()]


def file_names(files: Sequence[str | Path] | str | Path | None) -> list[str | Path]:
    """Returns the names of files given as a list, or as text with commas or blanks between them."""
    if files is None:
        return []
    if isinstance(files, Path):
        return [files]
    if isinstance(files, str):
        return [files] if Path(files).is_file() else [name for name in re.split(r"[,\s]+", files) if name]
    return list(files)


@dataclass(frozen=True)
class Documented:
    """A setting or an option as help texts and pages describe it.

    Attributes:
        section: the heading above it.
        default: the default as it is written; "" for a block.
        types: what stands in brackets, "" where nothing does.
        meaning: the rest of the comment.
    """

    key: str
    default: str
    types: str
    meaning: str
    section: str


_KINDS: Mapping[str, type | None] = {
    "int": int, "float": float, "str": str, "string": str, "bool": bool, "list": list, "dict": dict, "None": None,
}  # fmt: skip


def types_in(text: str) -> set[type | None]:
    """Returns the types that words such as ``list of int or None`` names; words it doesn't know are skipped."""
    words: Iterable[str] = re.split(r"\s+or\s+|,", text)
    heads = [word.split()[0] for word in words if word.split()]
    return {_KINDS[head] for head in heads if head in _KINDS}
