"""``recbole-cdr analyse``: from runs to tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_cdr_ext.analysis.bridge_analyses import analyse_fgsm, analyse_landscape, analyse_lipschitz
from recbole_cdr_ext.analysis.latents import analyse_latents
from recbole_cdr_ext.analysis.output import Options
from recbole_cdr_ext.analysis.sensitivity import analyse_sensitivity
from recbole_cdr_ext.pages.figures import require
from recbole_cdr_ext.settings.command_options import analysis_options, read_options
from recbole_cdr_ext.settings.declaration import documented
from recbole_cdr_ext.settings.run_settings import RunSettings

_ANALYSES: Mapping[str, Callable[[Options, Sequence[str]], Path]] = {
    "fgsm": analyse_fgsm,
    "landscape": analyse_landscape,
    "latents": analyse_latents,
    "lipschitz": analyse_lipschitz,
    "sensitivity": analyse_sensitivity,
}


# What every analysis takes beside its own options, as a run does.
_SHARED = [documented(RunSettings)[key] for key in ("checkpoint_dir", "show_progress")]


def analyse(
    kind: str,
    runs: str | Path | Sequence[str | Path] | None = None,
    *,
    words: Sequence[str] = (),
    **options: Any,
) -> Path:
    """Makes one analysis: writes KIND.csv, KIND.png and KIND.html, prints the table.

    Args:
        kind: one of :data:`recbole_cdr_ext.settings.command_options.ANALYSIS_OPTIONS`.
        runs: the runs that are analysed: folders, or their names in ``checkpoint_dir``; sensitivity, which trains
            runs of its own, takes none.
        words: for sensitivity, the settings of its runs as command-line words, ``--epochs=5``.
        options: those of the kind, ``checkpoint_dir`` and ``show_progress``; what is left out has its default, and
            a list may stand where the command line has text with commas.

    Returns:
        The folder of the files: ``out``, or a name made of what is analysed, in ``analyses/``.

    Raises:
        CDRError: something the user can mend; raised before any work where that is possible.
    """
    declared = analysis_options(kind)
    arguments = options if runs is None else {"runs": runs, **options}
    values = read_options(f"analyse {kind}", (*declared, *_SHARED), arguments)
    require()
    return _ANALYSES[kind](values, words)
