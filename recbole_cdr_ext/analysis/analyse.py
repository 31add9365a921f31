"""``recbole-cdr analyse``: from runs to tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recbole_cdr_ext.analysis.bridge_analyses import analyse_fgsm, analyse_landscape, analyse_lipschitz
from recbole_cdr_ext.analysis.latents import analyse_latents
from recbole_cdr_ext.analysis.output import Options
from recbole_cdr_ext.analysis.sensitivity import analyse_sensitivity
from recbole_cdr_ext.pages.figures import require

_ANALYSES: Mapping[str, Callable[[Options, Sequence[str]], Path]] = {
    "fgsm": analyse_fgsm,
    "landscape": analyse_landscape,
    "latents": analyse_latents,
    "lipschitz": analyse_lipschitz,
    "sensitivity": analyse_sensitivity,
}


def analyse(kind: str, options: Options, words: Sequence[str] = ()) -> Path:
    """Makes one analysis: writes KIND.csv, KIND.png and KIND.html, prints the table.

    Args:
        kind: one of :data:`recbole_cdr_ext.settings.command_options.ANALYSIS_OPTIONS`.
        options: all options of that kind by name, of their types.
        words: for sensitivity, the settings of the runs as command-line words.

    Returns:
        The folder of the files: ``out``, or a name made of what is analysed, in ``analyses/``.

    Raises:
        CDRError: something the user can mend; raised before any work where that is possible.
    """
    require()
    return _ANALYSES[kind](options, words)
