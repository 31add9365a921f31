"""The one kind of error that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CDRError(Exception):
    """Something the user can mend: the message says what is wrong, where, and how to mend it.

    The command line prints it as one line and exits with status 2; a traceback would only hide it.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'X'?"`` for the known name nearest to ``name``, or an empty string."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), folded, n=1, cutoff=0.6)
    return f" Did you mean '{folded[near[0]]}'?" if near else ""
