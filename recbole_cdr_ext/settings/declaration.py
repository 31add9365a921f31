"""Declared settings: a key's type, range, default and meaning, said once, in a class.

A model declares its settings directly above itself, and names the class::

    class MyModelSettings(Settings):
        \"\"\"MyModel (Doe, 2026), with the values of its paper.\"\"\"

        embedding_size: Size = Field(64, description="Width d of the vectors.")
        deviation: Literal["published", "softplus"] = Field("softplus", description="...")


    class MyModel(CrossDomainRecommender):
        settings_class = MyModelSettings

From it come the checks of a run, ``properties/model/MyModel.yaml`` with its comments (``make properties``), the help
of ``run`` and the table in the model's page; and ``MyModelSettings.of(config)`` is an object with typed attributes.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from recbole_cdr_ext.settings.reading import Documented, parse_value

_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())
_ONE_VALUE = ConfigDict(strict=True, allow_inf_nan=False)
T = TypeVar("T")


class Readable(Protocol):
    """Whatever gives a setting by its key, as a configuration does."""

    def __getitem__(self, item: str) -> Any: ...


class Settings(BaseModel):
    """The settings of a model or of every run; the docstring heads the property file.

    A field's annotation is its type, with None only where None means something; ``Field`` gives the default and the
    meaning. ``Field(section=...)`` is said by :func:`section`.
    """

    model_config = _STRICT

    @classmethod
    def of(cls, config: Readable) -> Self:
        """Returns the settings of this class as a configuration has them, typed.

        Raises:
            pydantic.ValidationError: a value has been put into the configuration without its checks.
        """
        return cls.model_validate({key: _as_list(config[key]) for key in cls.model_fields})


# What a model's class names: ``type`` alone is RecBole's kind of a model there.
SettingsClass = type[Settings]


def section(title: str) -> dict[str, Any]:
    """Returns what a field's ``json_schema_extra`` says where a new section of the property file begins."""
    return {"section": title}


# -- ranges that many settings have ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """A condition on a value that no bound can say; ``text`` ends the sentence "KEY=VALUE should be ..."."""

    holds: Callable[[Any], bool]
    text: str

    def __call__(self, value: T) -> T:
        if not self.holds(value):
            raise ValueError(self.text)
        return value


def _three_shares(value: list[float]) -> bool:
    return len(value) == 3 and all(share > 0 for share in value) and math.isclose(sum(value), 1, abs_tol=1e-6)


Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, AfterValidator(Condition(lambda value: 0 <= value < 2**32, "between 0 and 2**32 - 1"))]
Shares = Annotated[
    list[float], AfterValidator(Condition(_three_shares, "three numbers above 0 whose sum is 1"))
]
Sizes = Annotated[
    list[int],
    AfterValidator(
        Condition(lambda value: all(size >= 1 for size in value), "a list of sizes, each at least 1")
    ),
]
Learner = Literal["adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"]
Reduction = Literal["sum", "mean"]


# -- what a class declares ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Declared:
    """One key of a class of settings.

    Attributes:
        types: the types that a value may have, None among them where the value may be None; empty for any.
        words: these as the property file writes them, such as ``float or None``.
        range: what a value of these types should be as well, ending the sentence "KEY=VALUE should be ...".
        section: the heading above it, "" without one.
    """

    key: str
    default: Any
    types: frozenset[type | None]
    words: str
    range: str
    meaning: str
    section: str
    adapter: TypeAdapter[Any]

    def holds(self, value: Any) -> bool:
        """Returns whether a value is of the declared type and range."""
        try:
            self.adapter.validate_python(_as_list(value))
        except ValidationError:
            return False
        return True

    def documented(self) -> Documented:
        """Returns the row of help texts and pages."""
        default = "" if isinstance(self.default, dict) and self.default else yaml_text(self.default)
        return Documented(self.key, default, self.words, self.meaning, self.section)


@cache
def declared(settings: type[Settings]) -> Mapping[str, Declared]:
    """Returns what a class declares by key, in its order."""
    rows: dict[str, Declared] = {}
    heading = ""
    for key, field in settings.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict):
            heading = str(extra.get("section", heading))
        kinds = list(dict.fromkeys(_kinds(field.annotation)))
        rows[key] = Declared(
            key=key,
            default=field.default,
            types=frozenset(kinds),
            words=" or ".join("None" if kind is None else kind.__name__ for kind in kinds),
            range=_range_text([*_constraints(field.annotation), *field.metadata]),
            meaning=field.description or "",
            section=heading,
            adapter=_adapter(field),
        )
    return rows


def defaults(settings: type[Settings]) -> dict[str, Any]:
    """Returns the default of each key; lists and blocks are copies, which may be changed."""
    return {key: copy.deepcopy(row.default) for key, row in declared(settings).items()}


def documented(settings: type[Settings]) -> dict[str, Documented]:
    """Returns the rows of help texts and pages by key, in the class's order."""
    return {key: row.documented() for key, row in declared(settings).items()}


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    """Returns what validates one field alone."""
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = Annotated[annotation, constraint]
    return TypeAdapter(annotation, config=_ONE_VALUE)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _kinds(annotation: Any) -> Iterator[type | None]:
    """Yields the types that a value of an annotation may have."""
    origin = get_origin(annotation)
    if annotation is None or annotation is NoneType:
        yield None
    elif origin in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(choice) for choice in get_args(annotation))
    elif isinstance(origin or annotation, type):
        yield origin or annotation


def _constraints(annotation: Any) -> Iterator[Any]:
    """Yields the choices, bounds and conditions anywhere in an annotation."""
    if get_origin(annotation) is Literal:
        yield Condition(lambda value: True, "one of " + ", ".join(map(str, get_args(annotation))))
        return
    if get_origin(annotation) is Annotated:
        for item in get_args(annotation)[1:]:
            yield from item.metadata if isinstance(item, FieldInfo) else [item]
    for part in get_args(annotation):
        yield from _constraints(part)


def _range_text(constraints: list[Any]) -> str:
    bounds: dict[str, Any] = {}
    for item in constraints:
        condition = getattr(item, "func", item)
        if isinstance(condition, Condition):
            return condition.text
        bounds |= {name: getattr(item, name) for name in ("ge", "gt", "le", "lt") if hasattr(item, name)}
    if bounds.keys() == {"ge", "le"}:
        return f"between {bounds['ge']} and {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{word} {bounds[name]}" for name, word in words.items() if name in bounds)


# -- the property file ----------------------------------------------------------------------------------------------

_COLUMN, _WIDTH = 32, 118


def yaml_text(value: Any) -> str:
    """Returns a default on one line of YAML."""
    if value is None:
        return "~"
    if isinstance(value, str):
        return value if parse_value(value) == value else f"'{value}'"
    if isinstance(value, float):
        plain = format(Decimal(repr(value)), "f")  # YAML 1.1 takes 1e-05 for text
        return plain if "." in plain else f"{plain}.0"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(yaml_text, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_text(item)}" for key, item in value.items()) + "}"
    return str(value) if isinstance(value, bool) else json.dumps(value)


def property_file(settings: type[Settings]) -> str:
    """Returns the text of the property file that a class stands for, with a comment for each key."""
    lines = _comment("", inspect.cleandoc(settings.__doc__ or "").replace("\n", " "), "# ", "# ")
    heading = ""
    for row in declared(settings).values():
        if row.section != heading:
            heading = row.section
            lines += ["", f"# {heading}"]
        documented = row.documented()
        head = f"{row.key}: {documented.default}".rstrip().ljust(_COLUMN - 1) + " "
        text = f"({row.words}) {row.meaning}" if row.words else row.meaning
        lines += _comment(head, text, "# ", " " * _COLUMN + "#   ")
        if not documented.default:
            lines += [f"  {key}: {yaml_text(value)}" for key, value in row.default.items()]
    return "\n".join(lines) + "\n"


def _comment(head: str, text: str, mark: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=head + mark,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
