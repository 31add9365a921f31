"""Reading settings: where property files lie, what stands in them and on a command line, and of which types it is.

Imports nothing heavy, so that ``recbole-cdr --help`` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recbole_cdr_ext.errors import CDRError, did_you_mean

TASKS = ("next_item", "rating")


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


# -- values ----------------------------------------------------------------------------------------------------------


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


def parse_value(text: str) -> object:
    """Returns what a setting's text means: a number, a truth value, None, a list, a dict, or else the text itself."""
    try:
        value: object = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that no calendar has
        return text
    return value


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


def words_in(text: Any) -> list[str]:
    """Returns the words of a text with commas between; none for None."""
    return [word.strip() for word in str(text if text is not None else "").split(",") if word.strip()]


# -- types -----------------------------------------------------------------------------------------------------------


_KINDS: Mapping[str, type | None] = {
    "int": int, "float": float, "str": str, "string": str, "bool": bool, "list": list, "dict": dict, "None": None,
}  # fmt: skip


def types_in(text: str) -> set[type | None]:
    """Returns the types that words such as ``list of int or None`` names; words it doesn't know are skipped."""
    words: Iterable[str] = re.split(r"\s+or\s+|,", text)
    heads = [word.split()[0] for word in words if word.split()]
    return {_KINDS[head] for head in heads if head in _KINDS}


def check_type(
    key: str, value: Any, allowed: Collection[type | None], origin: str, *, is_text: bool
) -> object:
    """Returns the value of a setting in one of its types.

    Args:
        allowed: the types, None among them where the value may be None; empty for any.
        origin: where the value was given, for the message.
        is_text: whether ``value`` is text to be read as YAML, as it comes from a command line.

    Raises:
        CDRError: it has none of these types.
    """
    read = parse_value(value) if is_text else value
    if isinstance(read, str) and is_text and value[:1] not in ("'", '"'):
        read = value  # as it stands: YAML would take " #" for a comment
    if not allowed or _has_type(read, allowed):
        return read
    if is_text and str in allowed and (read is not None or not value.strip()):
        return value  # "[5,inf)", a run_id of digits and a separating blank are text, whatever YAML makes of them
    if is_text and list in allowed and re.fullmatch(r"\(.*\)", value.strip(), re.DOTALL):
        return check_type(key, f"[{value.strip()[1:-1]}]", allowed, origin, is_text=True)  # a Python tuple
    expected = " or ".join(sorted("None" if kind is None else kind.__name__ for kind in allowed))
    raise CDRError(f"{key}={value!r} ({origin}) should be of type {expected}.")


def _has_type(value: Any, allowed: Collection[type | None]) -> bool:
    if value is None:
        return None in allowed
    if isinstance(value, bool):  # a bool is an int to Python, and a mistake here
        return bool in allowed
    if isinstance(value, int):
        return int in allowed or float in allowed
    if isinstance(value, tuple):
        return list in allowed
    return isinstance(value, tuple(kind for kind in allowed if kind is not None))


def type_of(value: Any) -> type | None:
    """Returns the type of a value as :func:`check_type` names types: None for None."""
    return None if value is None else type(value)


# -- property files --------------------------------------------------------------------------------------------------


PREPARED = "statistics.json"  # what `prepare` writes of a dataset, in its folder
_PACKAGE = Path(__file__).resolve().parent.parent


def properties_dir() -> Path:
    """Returns the folder of property files: inside the package in a wheel, beside it in a checkout.

    Raises:
        CDRError: neither exists, so the installation is damaged.
    """
    for folder in (_PACKAGE / "properties", _PACKAGE.parent / "properties"):
        if (folder / "dataset").is_dir():
            return folder
    raise CDRError(
        f"the property files are missing: neither {_PACKAGE / 'properties'} nor "
        f"{_PACKAGE.parent / 'properties'} exists; install recbole_cdr_ext again."
    )


def model_property_file(folder: Path, name: str, task: str) -> Path | None:
    """Returns the property file of a model in ``folder``: NAME_TASK.yaml, else NAME.yaml, None without either."""
    candidates = (folder / f"{stem}.yaml" for stem in (f"{name}_{task}", name))
    return next((path for path in candidates if path.is_file()), None)


def dataset_property_files() -> dict[str, Path]:
    """Returns the property file of each described dataset, by dataset name, in alphabetical order."""
    return {path.stem: path for path in sorted((properties_dir() / "dataset").glob("*.yaml"))}


def prepared_order(folder: str | Path) -> str | None:
    """Returns the order that a prepared dataset was described with; None where nothing says so."""
    try:
        report = json.loads((Path(folder) / PREPARED).read_text(encoding="utf-8"))
        order: str = report["order"]
        return order
    except (OSError, ValueError, TypeError, KeyError):  # atomic files that someone else wrote
        return None


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
    relative_name = Path(*parts).with_suffix(".yaml").as_posix() if parts else str(name)
    root = properties_dir()
    # The files in hyper/ are search spaces, and named as the models are; those in study/ are studies.
    known = {
        file.relative_to(root).as_posix(): file
        for file in sorted(root.rglob("*.yaml"))
        if file.parent.name not in ("hyper", "study")
    }
    for relative, file in known.items():
        if relative == relative_name or relative.endswith("/" + relative_name):
            return file
    hint = did_you_mean(relative_name, known) or did_you_mean(
        Path(relative_name).name, [file.name for file in known.values()]
    )
    raise CDRError(
        f"The settings file '{name}' exists neither here nor among the package's property files.{hint}"
    )


def file_names(files: Sequence[str | Path] | str | Path | None) -> list[str | Path]:
    """Returns the names of files given as a list, or as text with commas or blanks between them."""
    if files is None:
        return []
    if isinstance(files, Path):
        return [files]
    if isinstance(files, str):
        return [files] if Path(files).is_file() else [name for name in re.split(r"[,\s]+", files) if name]
    return list(files)


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


# -- the command line ------------------------------------------------------------------------------------------------


# Settings whose value is a name, so that the key alone, which means True, is a slip.
_NAMED = ("model", "dataset", "config_files", "resume", "run_id", "task", "split", "source", "target", "raw")


def parse_arguments(argv: Iterable[str], flags: Collection[str] = ()) -> dict[str, str]:
    """Returns the settings in command-line words of the form ``--key=value``; ``--key`` alone is True.

    Args:
        flags: keys that may stand alone here, though elsewhere a name belongs to them (``resume`` of a sweep).

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
        if not equals and last in _NAMED and last not in flags:
            raise CDRError(f"'{word}' stands alone: say --{last}=NAME.")
        value = value if equals else "True"
        if not last or settings.get(last, value) != value:
            raise CDRError(f"'{word}': give each key once, as --key=value.")
        settings[last] = value
    return settings
