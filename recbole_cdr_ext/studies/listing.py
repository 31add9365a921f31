"""What studies there are, and what one is, in words. Imports nothing heavy: ``--help`` reads it."""

from __future__ import annotations

from recbole_cdr_ext.studies.definition import read_study, shipped_studies


def studies() -> list[dict[str, object]]:
    """Returns name, title and number of runs of each of the package's studies."""
    found = (read_study(path) for path in shipped_studies().values())
    return [{"study": one.name, "title": one.title, "runs": one.n_runs} for one in found]


def summary(name: str) -> str:
    """Returns what a study runs."""
    study = read_study(name)
    lines = [
        f"{study.title}: {study.n_runs} runs ({study.path})",
        f"  seeds: {study.seeds_in_words}",
    ]
    for label, block in (("scenes", study.scenes), ("rows", study.rows)):
        lines.append(f"  {label}: {'; '.join(block)}")
    lines += [
        f"  varied, one at a time: {key} in {', '.join(map(str, of))}" for key, of in study.vary.items()
    ]
    lines += [f"  analysis: {kind}" for kind in study.analyses]
    return "\n".join(lines)
