"""What a dataset's property file says about where its data comes from, checked before any work begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import TASKS, dataset_property_files, prepared_order, properties_dir
from recbole_cdr_ext.settings.run_settings import RunSettings

ORDERS = ("clock", "merged", "none")
LAYOUTS = ("users", "rows")

# Per kind of source: the keys that its block must have, and those that it may have besides.
_FILES = ({"files"}, {"urls"})
KINDS: dict[str, tuple[set[str], set[str]]] = {
    "rows": ({"files", "columns"}, {"urls"}),
    "table": ({"files", "columns"}, {"urls", "separator", "header", "own_item_ids"}),
    "amazon_ratings": _FILES,
    "amazon_5core": _FILES,
    "movielens": ({"genres"}, {"single_domain_users", "seed"}),
    "simulate": (
        {"users", "items", "mean_length"},
        {
            "seed", "min_length", "topics", "own_topics", "interests", "shared", "spread", "drift", "zipf",
            "first_time", "days",
        },
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Description:
    """One dataset, as its property file describes it.

    Args:
        name: the dataset, and the name of its folder.
        domains: names of its domains; each is the name of a file.
        tasks: what it can be used for, of ``next_item`` and ``rating``.
        order: what the timestamps mean: ``clock``, ``merged`` (positions in the merged sequence) or ``none``.
        source: the ``source`` block of the property file: its ``kind`` and what that kind needs.
        homepage: where a person can read about the data and get it.
        origin: the property file, for messages.
    """

    name: str
    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    order: str
    source: Mapping[str, Any] = field(repr=False)
    homepage: str | None = None
    origin: str = "the description"

    @property
    def kind(self) -> str:
        return str(self.source["kind"])

    @property
    def layouts(self) -> tuple[str, ...]:
        """The layouts that the source can be prepared in."""
        return LAYOUTS if self.kind == "rows" else LAYOUTS[:1]

    @property
    def files(self) -> dict[str, str]:
        """Raw file names by domain (published rows: by part, train and test); empty where none is needed."""
        return dict(self.source.get("files", {}))

    @property
    def urls(self) -> dict[str, str]:
        """Public addresses of the raw files, by the same keys; empty where none is known."""
        return dict(self.source.get("urls", {}))

    @property
    def simulated(self) -> bool:
        return self.kind == "simulate"


def load_description(name: str, description: Mapping[str, Any] | None = None) -> Description:
    """Returns the description of a dataset.

    Args:
        name: the dataset.
        description: the contents of its property file; None looks for the file in the package.

    Raises:
        CDRError: the dataset is unknown, or its description is incomplete or contradicts itself.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise CDRError(
            f"'{name}' cannot be a dataset: the name is also a folder's, so use letters, digits, '_', '-'."
        )
    if description is not None:
        return _checked(name, description, f"the description of '{name}'")
    known = dataset_property_files()
    if name not in known:
        raise CDRError(
            f"unknown dataset '{name}': there is no property file {name}.yaml in "
            f"{properties_dir() / 'dataset'}; known are {', '.join(known)}.{did_you_mean(name, known)}"
        )
    return _checked(name, read_property_file(known[name]), str(known[name]))


def read_property_file(path: Path) -> dict[str, Any]:
    """Returns the mapping in a property file.

    Raises:
        CDRError: the file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CDRError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise CDRError(f"{path}{line}: is no valid YAML: {getattr(error, 'problem', error)}.") from error
    if not isinstance(content, dict):
        raise CDRError(f"{path}: a property file is a list of 'key: value' lines, this one is not.")
    return content


# Keys of a property file that say what a dataset is.
_KEYS = ("domains", "task", "order", "source", "homepage")


def _checked(name: str, content: Mapping[str, Any], origin: str) -> Description:
    # The file may hold any setting of a run as well, which the run checks; only a slip in one of these is found here.
    for key in content:
        hint = "" if key in (*_KEYS, *TASKS, *RunSettings.model_fields) else did_you_mean(str(key), _KEYS)
        if hint:
            raise CDRError(f"{origin}: unknown key '{key}'.{hint}")
    domains = tuple(str(domain) for domain in _as_list(content.get("domains")))
    tasks = tuple(str(task) for task in _as_list(content.get("task")))
    order = str(content.get("order", "none"))  # YAML reads 'none' as text, unlike '~' and 'null'
    _check_domains(domains, origin)
    for task in tasks:
        _one_of(task, TASKS, "task", origin)
    _one_of(order, ORDERS, "order", origin)
    source = content.get("source")
    if not isinstance(source, Mapping):
        raise CDRError(
            f"{origin}: there is no 'source' block, so nothing says how '{name}' is prepared; add one "
            "(properties/dataset/food_kitchen.yaml is an example), or put the .inter files in place yourself."
        )
    described = Description(name, domains, tasks or TASKS[:1], order, source, content.get("homepage"), origin)
    _check_source(described)
    return described


def _check_domains(domains: tuple[str, ...], origin: str) -> None:
    if len(domains) < 2 or len(set(domains)) != len(domains):
        raise CDRError(
            f"{origin}: 'domains' must name two different domains or more, as in 'domains: [food, kitchen]'."
        )
    for domain in domains:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", domain) or domain == "rows":
            raise CDRError(
                f"{origin}: '{domain}' cannot be a domain, because it is also a file's name: use letters, "
                "digits, '_' and '-', and not 'rows'."
            )


def _check_source(described: Description) -> None:
    source, where = described.source, f"{described.origin}: the 'source' block"
    kind = str(source.get("kind"))
    _one_of(kind, KINDS, "kind of the 'source' block", described.origin)
    required, optional = KINDS[kind]
    for key in source:
        if key not in required | optional | {"kind"}:
            known = sorted(required | optional | {"kind"})
            raise CDRError(
                f"{where} has an unknown key '{key}'; for kind '{kind}' the keys are {', '.join(known)}."
                f"{did_you_mean(key, known)}"
            )
    for key in sorted(required):
        if key not in source:
            raise CDRError(f"{where} lacks the key '{key}', which kind '{kind}' needs.")
    if "files" in source:
        _check_files(described, where)


def _check_files(described: Description, where: str) -> None:
    entry_names = ("train", "test") if described.kind == "rows" else described.domains
    for block in ("files", "urls"):
        entries = described.source.get(block)
        if entries is None:
            continue
        if (
            not isinstance(entries, Mapping)
            or sorted(map(str, entries)) != sorted(entry_names)
            or not all(entries.values())
        ):
            raise CDRError(
                f"{where}: '{block}' must have exactly one entry for each of {', '.join(entry_names)}."
            )
    for file in described.files.values():
        if Path(str(file)).name != str(file):
            raise CDRError(f"{where}: '{file}' must be a bare file name; --raw says where the files lie.")


def _one_of(value: str, known: Any, what: str, origin: str) -> None:
    if value not in known:
        raise CDRError(
            f"{origin}: '{value}' is no {what}; use one of {', '.join(known)}.{did_you_mean(value, known)}"
        )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def list_datasets(data_path: str | Path = "dataset_atomic") -> list[dict[str, Any]]:
    """Lists all datasets that there are: described in property files, or lying as atomic files under ``data_path``.

    Returns:
        By name: ``name``, ``domains``, ``tasks``, ``order``, ``prepared`` (in any layout), ``layouts`` (those
        that are prepared), ``simulated``, ``homepage``. A folder without property file has no tasks or order.
    """
    data_path = Path(data_path)
    entries = {}
    for name in dataset_property_files():
        described = load_description(name)
        entries[name] = {
            "name": name,
            "domains": list(described.domains),
            "tasks": list(described.tasks),
            "order": described.order,
            **_prepared(data_path / name, described.domains),
            "simulated": described.simulated,
            "homepage": described.homepage,
        }
    for name in prepared_folders(data_path):
        if name not in entries:
            domains = sorted(path.stem for path in (data_path / name).glob("*.inter"))
            entries[name] = {
                "name": name,
                "domains": domains,
                "tasks": [],
                "order": prepared_order(data_path / name),
            }
            entries[name] |= {**_prepared(data_path / name, domains), "simulated": False, "homepage": None}
    return [entries[name] for name in sorted(entries)]


def prepared_folders(data_path: Path) -> list[str]:
    """Names of the folders that hold at least two ``.inter`` files (hidden ones left aside)."""
    if not data_path.is_dir():
        return []
    folders = (
        path for path in sorted(data_path.iterdir()) if path.is_dir() and not path.name.startswith(".")
    )
    return [path.name for path in folders if len(list(path.glob("*.inter"))) >= 2]


def _prepared(folder: Path, domains: Any) -> dict[str, Any]:
    layouts = [layout for layout in LAYOUTS if has_layout(folder, domains, layout)]
    return {"prepared": bool(layouts), "layouts": layouts}


def has_layout(folder: Path, domains: Any, layout: str) -> bool:
    """Returns whether a dataset's folder holds all files of a layout."""
    inside = folder / "rows" if layout == "rows" else folder
    stems = [*domains, "rows"] if layout == "rows" else list(domains)
    return all((inside / f"{stem}.inter").is_file() for stem in stems)
