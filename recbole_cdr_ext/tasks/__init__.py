"""The tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.tasks.next_item import NextItem
from recbole_cdr_ext.tasks.rating import Rating
from recbole_cdr_ext.tasks.task import Task

_TASKS: Mapping[str, Task[Any]] = {task.name: task for task in (NextItem(), Rating())}


def get_task(name: str) -> Task[Any]:
    """Returns a task.

    Raises:
        CDRError: there is no such task.
    """
    if name not in _TASKS:
        raise CDRError(f"task={name!r} should be one of {', '.join(_TASKS)}.{did_you_mean(name, _TASKS)}")
    return _TASKS[name]
