"""Every repair that RecBole 1.2.0 needs to run on today's numpy, scipy and pandas.

RecBole 1.2.0 was written against numpy 1, scipy below 1.13 and pandas below 3. Each function here mends one breakage,
says what breaks and what will make the mend superfluous; ``tests/test_recbole.py`` fails once that has happened.
:func:`apply` runs them all; whatever imports RecBole calls it first.

Left alone on purpose: RecBole's ``torch.load`` of its own pickled checkpoints, which torch refuses since 2.6
(``weights_only`` became the default). The library writes tensors and JSON instead and never calls that code.
"""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

# The Python types that numpy 1 offered under these names. RecBole reads float, bool, long and str; its plug-ins and
# the models derived from it read the others.
NUMPY_1_NAMES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "complex": complex,
    "object": object,
    "str": str,
    "unicode": str,
    "long": int,
}


def apply() -> None:
    """Mends numpy, scipy and RecBole, once; calling it again changes nothing."""
    numpy_aliases()
    config_numpy_names()
    dok_update()
    fill_missing_values()
    read_missing_sequences()


def numpy_aliases() -> None:
    """Gives numpy back the aliases of Python's types that 1.24 removed.

    ``recbole.evaluator.metrics``, ``data.interaction`` and ``data.dataset`` read ``np.float``, ``model.layers`` reads
    ``np.long``, ``trainer.hyper_tuning`` reads ``np.str``. A name that numpy defines itself (``np.bool`` and
    ``np.long`` came back in 2.0 with a new meaning) is left as it is.

    Ends when RecBole no longer reads them.
    """
    for name, kind in NUMPY_1_NAMES.items():
        # vars() and not hasattr(): numpy's module-level __getattr__ would warn about the names it removed.
        if name not in vars(np):
            setattr(np, name, kind)


def config_numpy_names() -> None:
    """Lets ``Config`` start under numpy 2.

    ``Config.compatibility_settings`` reads ``np.float_``, which numpy 2 removed, so that every ``Config`` raises
    ``AttributeError``; and it would overwrite names that numpy 2 defines itself.

    Ends when RecBole's own ``compatibility_settings`` runs under numpy 2.
    """
    from recbole.config import Config

    Config.compatibility_settings = lambda self: numpy_aliases()


def dok_update() -> None:
    """Gives ``scipy.sparse.dok_matrix`` back its private ``_update``, which scipy 1.13 removed.

    LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN and MCCLK of RecBole fill their adjacency matrix with it, because the
    public ``update`` checks each of millions of keys in Python.

    Ends when RecBole builds those matrices from coordinates.
    """
    if not hasattr(sp.dok_matrix, "_update"):
        sp.dok_matrix._update = _dok_update


def _dok_update(matrix: sp.dok_matrix, entries: dict[tuple[int, int], float]) -> None:
    matrix._dict.update(entries)


def fill_missing_values() -> None:
    """Makes ``Dataset._fill_nan`` fill.

    It calls ``feat[field].fillna(..., inplace=True)``. Under pandas 3's copy-on-write ``feat[field]`` is a copy, so
    that the call does nothing and missing values reach the model as NaN.

    Ends when RecBole assigns the filled column.
    """
    from recbole.data.dataset import Dataset

    _wrap(Dataset, "_fill_nan", _filling_first)


def _filling_first(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def fill_nan(dataset: Dataset) -> None:
        for name in dataset.feat_name_list:
            _fill_columns(getattr(dataset, name), dataset.field2type)
        # What is left for RecBole's own code are the sequence fields, which it assigns.
        _without_chained_assignment_warning(original, dataset)

    return fill_nan


def _fill_columns(frame: pd.DataFrame, types_of: dict[str, Any]) -> None:
    """Fills tokens with 0, the padding, and floats with their mean, as RecBole documents it."""
    from recbole.utils import FeatureType

    for field in frame:
        if types_of[field] == FeatureType.TOKEN:
            frame[field] = frame[field].fillna(0)
        elif types_of[field] == FeatureType.FLOAT:
            frame[field] = frame[field].fillna(frame[field].mean())


def read_missing_sequences() -> None:
    """Lets ``Dataset._load_feat`` read a file with an empty field of type ``token_seq`` or ``float_seq``.

    It replaces missing values by ``fillna("", inplace=True)`` on a column, which does nothing under pandas 3, and
    then splits NaN: ``AttributeError``. Its module's ``pd`` becomes a view of pandas whose ``read_csv`` has filled
    those columns already; pandas itself stays as it is.

    Ends when RecBole assigns the filled column.
    """
    import recbole.data.dataset.dataset as module

    if isinstance(module.pd, _SequenceFillingPandas):
        return
    module.pd = _SequenceFillingPandas("pandas")
    _wrap(module.Dataset, "_load_feat", _quietly)


class _SequenceFillingPandas(types.ModuleType):
    """pandas, but for a ``read_csv`` that returns empty text for missing sequences of an atomic file."""

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)

    @staticmethod
    def read_csv(*args: Any, **kwargs: Any) -> pd.DataFrame:
        frame = pd.read_csv(*args, **kwargs)
        return frame.fillna({column: "" for column in frame.columns if str(column).endswith("_seq")})


def _quietly(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> object:
        return _without_chained_assignment_warning(original, *args, **kwargs)

    return method


def _without_chained_assignment_warning(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls RecBole's code whose in-place fill has become a no-op, without pandas warning about it each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.ChainedAssignmentError)
        return function(*args, **kwargs)


# -- RecBole's own models: mended when one of them is asked for, for importing them takes seconds ---------------------


def apply_to(model: str) -> None:
    """Mends one of RecBole's models, if it needs a mend, once.

    Args:
        model: the name of its class.
    """
    if model in MODEL_MENDS:
        MODEL_MENDS[model]()


def ngcf_message_dropout() -> None:
    """Has NGCF drop messages in training alone.

    Its ``forward`` makes a new ``nn.Dropout`` for each layer, which is in training mode whatever the model is in: its
    scores are drawn anew in every evaluation.

    Ends when RecBole makes the dropout once, in the constructor.
    """
    from recbole.model.general_recommender.ngcf import NGCF

    _wrap(NGCF, "forward", _without_dropout_in_evaluation)


def _without_dropout_in_evaluation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(model: Any) -> object:
        if model.training:
            return original(model)
        dropout, model.message_dropout = model.message_dropout, 0.0
        try:
            return original(model)
        finally:
            model.message_dropout = dropout

    return forward


def dgcf_samples() -> None:
    """Has DGCF sample no more users, or items, than there are.

    It samples as many of both as the larger of the two numbers asks for: ``ValueError`` where the other is smaller
    than that, as with few batches and many more users than items.

    Ends when RecBole bounds the two samples apart.
    """
    from recbole.model.general_recommender import dgcf

    _wrap(dgcf, "sample_cor_samples", _bounded_samples)


def _bounded_samples(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sample(n_users: int, n_items: int, size: int) -> object:
        if size <= min(n_users, n_items):
            return original(n_users, n_items, size)
        return original(n_users, n_users, min(size, n_users))[0], original(
            n_items, n_items, min(size, n_items)
        )[1]

    return sample


def stamp_padding() -> None:
    """Has STAMP's padding be nothing.

    Its initialisation draws the padding's row of the item table as well, and its loss over all items trains it, so that
    the sums over a sequence count it as often as the batch is longer than the sequence.

    Ends when RecBole masks those sums.
    """
    from recbole.model.sequential_recommender.stamp import STAMP

    _wrap(STAMP, "forward", _with_zero_padding)


def _with_zero_padding(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def forward(model: Any, item_seq: Any, item_seq_len: Any) -> object:
        model.item_embedding.weight.data[0].zero_()
        return original(model, item_seq, item_seq_len)

    return forward


MODEL_MENDS: dict[str, Callable[[], None]] = {
    "NGCF": ngcf_message_dropout,
    "DGCF": dgcf_samples,
    "STAMP": stamp_padding,
}


def _wrap(owner: Any, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Replaces a method, or a module's function, by ``wrapper`` of it, once; it stays reachable as ``__wrapped__``."""
    method = getattr(owner, name)
    if not hasattr(method, "__wrapped__"):
        setattr(owner, name, wrapper(method))
