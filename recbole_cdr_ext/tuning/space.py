"""Search spaces: which settings are searched, over what values, and under which conditions.

Two syntaxes are read, neither by evaluating anything:

- typed YAML (``.yaml``, ``.yml``), one setting a line::

      learning_rate: {loguniform: [1e-4, 1e-2]}
      n_layers: {int: [1, 3]}
      dropout: {uniform: [0.0, 0.6]}
      embedding_size: {choice: [64, 128]}
      train_neg_num: {choice: [512, 2048], if: {loss_type: [sampled, BCE]}}

- RecBole's hyper files (any other name), in which the limits of ``loguniform`` are natural logarithms::

      learning_rate loguniform -8,0
      dropout_prob quniform 0.0,0.5,0.1
      n_layers choice [1, 2, 3]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.settings.reading import parse_value, properties_dir, read_mapping

Settings = dict[str, Any]

# Kinds by how many numbers they take; a choice takes any values.
KINDS: Mapping[str, int] = {"choice": 0, "uniform": 2, "loguniform": 2, "quniform": 3, "int": 2}
_RECBOLE_KINDS = ("choice", "uniform", "loguniform", "quniform")


@dataclass(frozen=True)
class Parameter:
    """A searched setting.

    Attributes:
        kind: one of :data:`KINDS`.
        values: of a choice, its values; else (low, high), or (low, high, step) of quniform.
        condition: values of other settings with which this one is searched; with others it keeps its default.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    condition: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def draw(self, rng: np.random.Generator) -> object:
        """Returns a value drawn from the setting's distribution."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values[:2]
        if self.kind == "int":
            return int(rng.integers(low, high + 1))
        if self.kind == "loguniform":
            return self.clip(math.exp(rng.uniform(math.log(low), math.log(high))))
        return self.clip(float(rng.uniform(low, high)))

    def clip(self, value: Any) -> object:
        """Returns the possible value that is nearest to a number; of a choice, the value itself."""
        if self.kind == "choice":
            return value
        low, high = self.values[:2]
        if self.kind == "int":
            return int(min(max(round(value), low), high))
        if self.kind != "quniform":
            return float(min(max(value, low), high))
        listed = self.listed()
        assert listed is not None
        return min(listed, key=lambda possible: abs(possible - value))

    def listed(self) -> list[Any] | None:
        """Returns every possible value, in order; None where they are a continuum."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values[:2]
        if self.kind == "int":
            return list(range(low, high + 1))
        if self.kind == "quniform":
            step = self.values[2]
            # Multiples of the step, as hyperopt draws them; whole numbers stay whole, for settings of type int.
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            whole = float(step).is_integer()
            return [int(i * step) if whole else round(i * step, 12) for i in range(first, last + 1)]
        return None

    def extremes(self) -> list[Any]:
        """Returns the values that stand for all others in checks: all of a choice, else the lowest and highest."""
        listed = self.listed()
        if self.kind == "choice":
            return list(self.values)
        low, high = (listed[0], listed[-1]) if listed else (float(self.values[0]), float(self.values[1]))
        return [low] if low == high else [low, high]


@dataclass(frozen=True)
class Space:
    """A search space: parameters, each after those that its condition names.

    Attributes:
        source: the file it was read from, for messages.
    """

    parameters: tuple[Parameter, ...]
    source: str

    @property
    def keys(self) -> list[str]:
        """The searched settings."""
        return [parameter.key for parameter in self.parameters]

    def choose(self, value_of: Callable[[Parameter], Any], fixed: Mapping[str, Any]) -> Settings:
        """Returns settings whose conditions hold.

        Args:
            value_of: gives a parameter's value; asked for those alone whose conditions hold.
            fixed: what is not searched, which conditions may name as well.
        """
        chosen: Settings = {}
        searched = set(self.keys)
        for parameter in self.parameters:
            # A searched setting that another condition has left out is at its default, and meets no condition.
            if all(
                key in chosen and _among(chosen[key], allowed)
                if key in searched
                else _among(fixed.get(key), allowed)
                for key, allowed in parameter.condition.items()
            ):
                chosen[parameter.key] = value_of(parameter)
        return chosen

    def sample(self, n: int, seed: int, fixed: Mapping[str, Any]) -> list[Settings]:
        """Returns n different settings drawn at random; fewer where there are no more."""
        rng = np.random.default_rng(seed)
        points: dict[str, Settings] = {}
        misses = 0
        while len(points) < n and misses < 1000:
            # All are drawn, so that a condition does not shift what follows it.
            drawn = {parameter.key: parameter.draw(rng) for parameter in self.parameters}
            settings = self.choose(_looked_up(drawn), fixed)
            misses = misses + 1 if repr(settings) in points else 0
            points.setdefault(repr(settings), settings)
        return list(points.values())

    def grid(self, fixed: Mapping[str, Any]) -> list[Settings]:
        """Returns all combinations whose conditions hold, each once.

        Raises:
            CDRError: a setting is searched over a continuum.
        """
        for parameter in self.parameters:
            if parameter.listed() is None:
                raise CDRError(
                    f"{self.source}: search=grid needs listed values, and {parameter.key} is {parameter.kind}. "
                    "Say choice, int or quniform there, or --search=random."
                )
        points: dict[str, Settings] = {}
        for values in itertools.product(*(parameter.listed() or [] for parameter in self.parameters)):
            row = dict(zip(self.keys, values, strict=True))
            settings = self.choose(_looked_up(row), fixed)
            points.setdefault(repr(settings), settings)
        return list(points.values())

    def probes(self, fixed: Mapping[str, Any]) -> list[Settings]:
        """Returns settings in which every extreme value of every parameter stands once, its conditions met.

        Raises:
            CDRError: a condition can never hold.
        """
        points: dict[str, Settings] = {}
        for parameter in self.parameters:
            enabling = self._enabling(parameter)
            for value in parameter.extremes():
                fixed_values = {**enabling, parameter.key: value}
                values = {
                    other.key: fixed_values.get(other.key, other.extremes()[0]) for other in self.parameters
                }
                settings = self.choose(_looked_up(values), fixed)
                if parameter.key not in settings:
                    raise CDRError(
                        f"{self.source}: the condition of '{parameter.key}' never holds: "
                        f"{_condition_text(parameter.condition)}."
                    )
                points.setdefault(repr(settings), settings)
        return list(points.values())

    def _enabling(self, parameter: Parameter) -> Settings:
        """Returns values of other parameters with which the condition of one holds."""
        by_key = {other.key: other for other in self.parameters}
        enabling: Settings = {}
        for key, allowed in parameter.condition.items():
            if key in by_key:
                enabling |= self._enabling(by_key[key])
                enabling[key] = next(value for value in by_key[key].values if _among(value, allowed))
        return enabling


# -- reading --------------------------------------------------------------------------------------------------------


def find_space(name: str | Path | None, model: str) -> Path:
    """Returns the file of a search space: a path, or one of properties/hyper; by default the model's.

    Raises:
        CDRError: there is none.
    """
    folder = properties_dir() / "hyper"
    known = {path.name: path for path in sorted(folder.glob("*"))}
    if name is None:
        if f"{model}.yaml" in known:
            return known[f"{model}.yaml"]
        raise CDRError(
            f"Which settings are to be searched? {model} has no file in properties/hyper: say --space=FILE "
            "(docs/tuning.md shows how one is written)."
        )
    path = Path(name)
    if path.is_file():
        return path
    for candidate in (path.name, f"{path.name}.yaml"):
        if candidate in known:
            return known[candidate]
    raise CDRError(
        f"The search space '{name}' exists neither here nor in properties/hyper.{did_you_mean(path.name, known)}"
    )


def read_space(path: str | Path) -> Space:
    """Returns the search space that a file describes.

    Raises:
        CDRError: the file cannot be read, is empty, or contradicts itself.
    """
    path = Path(path)
    parameters = _read_yaml(path) if path.suffix in (".yaml", ".yml") else _read_recbole(path)
    if not parameters:
        raise CDRError(f"{path} is empty: it names no setting to search.")
    return Space(_in_order(parameters, path), str(path))


def _read_yaml(path: Path) -> list[Parameter]:
    parameters = []
    for key, text in read_mapping(path).items():
        where = f"{path}: {key}"
        if not isinstance(text, Mapping):
            raise CDRError(
                f"{where}: expected one of {', '.join(KINDS)}, such as {{choice: [1, 2]}}, not {text!r}."
            )
        kinds = [kind for kind in text if kind != "if"]
        if len(kinds) != 1 or kinds[0] not in KINDS:
            unknown = next((kind for kind in kinds if kind not in KINDS), None)
            hint = did_you_mean(unknown, KINDS) if unknown else ""
            raise CDRError(
                f"{where}: expected one of {', '.join(KINDS)}, not {', '.join(map(str, kinds))}.{hint}"
            )
        values = text[kinds[0]]
        if not isinstance(values, list):
            raise CDRError(f"{where}: {kinds[0]} takes a list, not {values!r}.")
        parameters.append(_parameter(where, key, kinds[0], values, text.get("if", {})))
    return parameters


def _read_recbole(path: Path) -> list[Parameter]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CDRError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    parameters: dict[str, Parameter] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(words) < 3 or words[1] not in _RECBOLE_KINDS:
            raise CDRError(
                f"{where}: expected 'setting kind values' with a kind among {', '.join(_RECBOLE_KINDS)}, not '{line}'."
            )
        key, kind, text = words
        if key in parameters:
            raise CDRError(f"{where}: the setting '{key}' stands here a second time.")
        values = parse_value(text if kind == "choice" else f"[{text}]")
        if not isinstance(values, list):
            raise CDRError(f"{where}: {kind} takes a list, not '{text}'.")
        if kind == "loguniform" and all(map(_is_number, values)):
            if any(value > 700 for value in values):
                raise CDRError(
                    f"{where}: the limits of loguniform are natural logarithms here; {text} is too large."
                )
            values = [math.exp(value) for value in values]
        parameters[key] = _parameter(where, key, kind, values, {})
    return list(parameters.values())


def _parameter(where: str, key: str, kind: str, values: Sequence[Any], condition: Any) -> Parameter:
    """Returns a parameter whose values make sense by themselves."""
    if kind == "choice":
        if not values:
            raise CDRError(f"{where}: choice has no value.")
        if len({repr(value) for value in values}) < len(values):
            raise CDRError(f"{where}: a value of choice stands there twice.")
    else:
        _check_numbers(where, kind, values)
    if not isinstance(condition, Mapping):
        raise CDRError(f"{where}: 'if' takes settings and their values, such as {{loss_type: sampled}}.")
    allowed = {str(other): tuple(of) if isinstance(of, list) else (of,) for other, of in condition.items()}
    if key in allowed:
        raise CDRError(f"{where}: its condition names the setting itself.")
    return Parameter(key, kind, tuple(values), allowed)


def _check_numbers(where: str, kind: str, values: Sequence[Any]) -> None:
    if len(values) != KINDS[kind] or not all(map(_is_number, values)):
        raise CDRError(f"{where}: {kind} takes {KINDS[kind]} numbers, not {list(values)}.")
    low, high = values[:2]
    if low > high:
        raise CDRError(f"{where}: the lowest value {low} of {kind} is above the highest, {high}.")
    if kind == "loguniform" and low <= 0:
        raise CDRError(f"{where}: loguniform has to begin above 0, not at {low}.")
    if kind == "int" and not all(isinstance(value, int) for value in values):
        raise CDRError(f"{where}: int takes whole numbers, not {list(values)}.")
    if kind == "quniform":
        if values[2] <= 0:
            raise CDRError(f"{where}: the step of quniform has to be above 0, not {values[2]}.")
        if not Parameter("", kind, tuple(values)).listed():
            raise CDRError(f"{where}: no multiple of {values[2]} lies between {low} and {high}.")


def _in_order(parameters: Sequence[Parameter], path: Path) -> tuple[Parameter, ...]:
    """Returns the parameters, each after those that its condition names."""
    left = {parameter.key: parameter for parameter in parameters}
    ordered: dict[str, Parameter] = {}
    while left:
        ready = [key for key, parameter in left.items() if not set(parameter.condition) & set(left)]
        if not ready:
            raise CDRError(f"{path}: the conditions of {', '.join(left)} wait for one another.")
        ordered |= {key: left.pop(key) for key in ready}
    for parameter in ordered.values():
        for key, allowed in parameter.condition.items():
            if key not in ordered:
                continue
            if ordered[key].kind != "choice":
                raise CDRError(f"{path}: a condition can name a choice only; '{key}' is {ordered[key].kind}.")
            if not any(_among(value, allowed) for value in ordered[key].values):
                raise CDRError(
                    f"{path}: the condition of '{parameter.key}' never holds: {_condition_text({key: allowed})}, and "
                    f"{key} is searched over {list(ordered[key].values)}."
                )
    return tuple(ordered.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _among(value: Any, allowed: Collection[Any]) -> bool:
    # True is 1 to Python, and another setting.
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed)


def _condition_text(condition: Mapping[str, tuple[Any, ...]]) -> str:
    return ", ".join(f"{key} = {' or '.join(map(str, allowed))}" for key, allowed in condition.items())


# -- against a model's settings -------------------------------------------------------------------------------------


def check_space(
    space: Space,
    settings_with: Callable[[Settings], Mapping[str, Any]],
    *,
    user_keys: Collection[str],
    shared: Collection[str],
    known: Collection[str],
) -> Space:
    """Returns the space with its values as the settings' types read them, after making sure that they can be tried.

    Args:
        settings_with: returns all settings with some changed; raises a CDRError for what cannot be.
        user_keys: settings that the user gave besides.
        shared: settings that all trials of a sweep share.
        known: all settings of the model.

    Raises:
        CDRError: something cannot be searched, or not so.
    """
    for parameter in space.parameters:
        key = parameter.key
        if key in user_keys:
            raise CDRError(
                f"{space.source} searches '{key}', and --{key}=... is given: leave out one of the two."
            )
        if key in shared:
            raise CDRError(
                f"{space.source}: '{key}' can't be searched: it decides the data, what is asked of the model, or where "
                "things lie, which all trials share. Make one sweep per value."
            )
        for other in parameter.condition:
            if other not in known and other not in space.keys:
                raise CDRError(
                    f"{space.source}: the condition of '{key}' names the unknown setting '{other}'."
                    f"{did_you_mean(other, known)}"
                )

    def tried(settings: Settings) -> Mapping[str, Any]:
        try:
            return settings_with(settings)
        except CDRError as error:
            assignments = ", ".join(f"{key}={value}" for key, value in settings.items())
            raise CDRError(f"{space.source}: {assignments} can't be tried: {error}") from error

    parameters = []
    for parameter in space.parameters:
        if parameter.kind == "choice" and any(isinstance(value, str) for value in parameter.values):
            # RecBole's files write lists as text; a type check reads them.
            typed = tuple(
                tried({parameter.key: value})[parameter.key] if isinstance(value, str) else value
                for value in parameter.values
            )
            parameter = replace(parameter, values=typed)
        parameters.append(parameter)
    space = replace(space, parameters=tuple(parameters))
    fixed = settings_with({})
    for settings in space.probes(fixed):
        tried(settings)
    return space


def _looked_up(values: Mapping[str, Any]) -> Callable[[Parameter], Any]:
    return lambda parameter: values[parameter.key]
