"""``recbole-cdr study``: a paper's table or figure from a small file that says what is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def study(name: str | Path, options: Mapping[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Runs a study, or what is left of it, and writes its tables: what ``recbole-cdr study NAME`` does.

    Args:
        name: of a file in ``properties/study``, or a path.
        options: those of :data:`recbole_cdr_ext.settings.command_options.STUDY_OPTIONS`; anything else is a setting
            of all runs. Lists may stand where the command line has text with commas.
        settings: the same as keywords, above ``options``.

    Returns:
        ``folder``, ``groups`` (as reports have them, with all runs that are done), ``done``, ``missing`` (the names of
        the runs that are not) and ``failed`` (the reasons by name).

    Raises:
        CDRError: something the user can mend, before any run.
        KeyboardInterrupt: Ctrl-C or SIGTERM; its text says how to go on.
    """
    from recbole_cdr_ext.studies.execution import run_study

    return run_study(name, {**(options or {}), **settings})
