"""The type of a setting's value, wherever the value comes from."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.settings.reading import parse_value


def check_type(key: str, value: Any, allowed: Collection[type | None], origin: str, *, is_text: bool) -> Any:
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
