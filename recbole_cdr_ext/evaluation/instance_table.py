"""The table of instances that a run leaves to compute with: written, read, and what its columns are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.evaluation.ranking import Ranks
from recbole_cdr_ext.files import replacing


def instance_frame(
    dataset: CrossDomainDataset,
    instances: Instances,
    ranks: Ranks,
    metrics: RankingMetrics,
    groups: Mapping[str, np.ndarray],
    part: str,
) -> pd.DataFrame:
    """Returns one row per instance, in external ids: what significance tests and plots read.

    Columns: part, user, domain, target; one boolean per group; ``history_DOMAIN`` lengths (the target not
    counted); candidates, rank; each metric that an instance has for itself; fallback (ranked by popularity).
    """
    names = np.array(dataset.domains, dtype=object)
    columns: dict[str, Any] = {
        "part": np.full(len(instances), part, dtype=object),
        "user": dataset.id2token(dataset.uid_field, instances.user),
        "domain": names[instances.domain],
        "target": dataset.item_token(instances.target),
        **groups,
        **{f"history_{name}": instances.lengths[:, k] for k, name in enumerate(dataset.domains)},
        "candidates": ranks.candidates,
        "rank": ranks.rank,
        **metrics.per_instance(ranks.rank),
        "fallback": ranks.fallback,
    }
    return pd.DataFrame(columns)


def write_instances(frame: pd.DataFrame, folder: str | Path, name: str = "instances") -> Path:
    """Writes a per-instance table as parquet, as CSV without pyarrow; returns the file's path.

    Raises:
        CDRError: it cannot be written.
    """
    parquet = importlib.util.find_spec("pyarrow") is not None
    path = Path(folder) / f"{name}.{'parquet' if parquet else 'csv'}"
    with replacing(path) as temporary:
        if parquet:
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False)
    return path


def read_instances(folder: str | Path, name: str = "instances") -> pd.DataFrame:
    """Returns a per-instance table that :func:`write_instances` wrote.

    Raises:
        CDRError: there is none, or it can't be read.
    """
    parquet, csv = (Path(folder) / f"{name}.{kind}" for kind in ("parquet", "csv"))
    path = parquet if parquet.exists() else csv
    if not path.exists():
        raise CDRError(f"{folder} has no per-instance table ({parquet.name} or {csv.name}).")
    try:
        if path == parquet:
            return pd.read_parquet(path)
        # Names are text, also those that look like numbers or like what pandas takes for a gap.
        names = dict.fromkeys(("part", "user", "domain", "target", "item"), str)
        return pd.read_csv(path, dtype=names, keep_default_na=False)
    except ImportError as error:
        raise CDRError(
            f"reading {path} takes pyarrow: pip install 'recbole_cdr_ext[parquet]' (or pip install pyarrow)."
        ) from error
    except (OSError, ValueError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise CDRError(f"{path} can't be read: {' '.join(str(error).split())}") from error
