"""The command line: ``recbole-cdr COMMAND --key=value``.

Every command imports what it needs when it runs, so that ``--help`` and a misspelt command answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from recbole_cdr_ext.cli.commands import COMMANDS
from recbole_cdr_ext.cli.help import PROGRAM, command_help, overview
from recbole_cdr_ext.errors import CDRError, did_you_mean
from recbole_cdr_ext.versions import versions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after the program's name; None: those of the process.

    Returns:
        The exit status: 0, 1 if some runs of a study failed, 2 for an error that the user can mend, 130 if the user
        interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except CDRError as error:
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{PROGRAM}: {stop.args[0] if stop.args else 'interrupted.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `recbole-cdr models | head`; what is left to flush has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _dispatch(words: Sequence[str]) -> int:
    asks_help = any(word in ("-h", "--help") for word in words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview(COMMANDS))
        return 0
    if words[0] in ("--version", "version"):
        print("\n".join(f"{name} {version}" for name, version in versions().items()))
        return 0
    name, rest = words[0], [word for word in words[1:] if word not in ("-h", "--help")]
    if name not in COMMANDS:
        raise CDRError(
            f"Unknown command '{name}'.{did_you_mean(name, COMMANDS)} `{PROGRAM} --help` lists them."
        )
    if asks_help:
        print(command_help(name, COMMANDS[name], rest))
        return 0
    return COMMANDS[name](rest) or 0
