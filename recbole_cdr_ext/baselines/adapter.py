"""RecBole's own general, traditional and sequential models as baselines on our instances.

:func:`adapt` turns any of them into a :class:`CrossDomainRecommender`: same command, split, candidates and table.
``baseline_scope: target`` builds one RecBole model per domain, which sees that domain's items and events alone;
``baseline_scope: all`` builds one on the union of the domains. Candidates are the target domain's either way.

How a model is served follows from what it scores with (the kinds in ``general``, ``history`` and ``sequential``, on
what ``baseline`` has for all):

======================  ==================================  =======================================================
RecBole model           learns from                         scores with
======================  ==================================  =======================================================
general (BPR, ...)      training events and negatives       the user's id: users with events in the scope
auto-encoder            users                               the instance's own history: unseen users as well
MultiVAE                users                               the same; an empty history is the zero vector
item-item (ItemKNN)     all events, at construction         the instance's own history
Pop, Random             all events, at construction         nothing: every instance
sequential (SASRec)     training instances                  the instance's own history (``all``: merged)
======================  ==================================  =======================================================
"""

from __future__ import annotations

import functools
import inspect
import re
import sys

import torch
from recbole.model.abstract_recommender import AbstractRecommender, AutoEncoderMixin
from recbole.utils import ModelType

from recbole_cdr_ext import compat
from recbole_cdr_ext.baselines.baseline import RecBoleBaseline
from recbole_cdr_ext.baselines.general import FactorBaseline, GraphBaseline, UserBaseline
from recbole_cdr_ext.baselines.history import (
    AutoEncoderBaseline,
    CountedPop,
    ItemItemBaseline,
    LeanItemKNN,
    PopularityBaseline,
)
from recbole_cdr_ext.baselines.multivae import MultiVAEBaseline
from recbole_cdr_ext.baselines.sequential import SequenceDotBaseline, SequentialBaseline
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.recommender import CrossDomainRecommender

# Models of a kind that is served which need what our instances do not hold, or a trainer of their own.
_UNSERVED = {
    "DIEN": "it reads item features",
    "DIN": "it reads item features",
    "FDSA": "it reads item features",
    "FEARec": "it looks up sequences with the same target in RecBole's augmented data set",
    "GRU4RecF": "it reads item features",
    "GRU4RecKG": "it reads pretrained knowledge-graph embeddings",
    "KSR": "it reads pretrained knowledge-graph embeddings",
    "LDiffRec": "it reads pretrained item embeddings",
    "NCL": "it clusters users and items in a trainer of its own",
    "RaCT": "it is pretrained in a trainer of its own",
    "RecVAE": "it alternates between encoder and decoder in a trainer of its own",
    "S3Rec": "it reads item features and is pretrained in a trainer of its own",
    "SASRecF": "it reads item features",
}
_KINDS = {
    ModelType.CONTEXT: "context-aware models read features",
    ModelType.KNOWLEDGE: "knowledge-aware models read a knowledge graph",
    ModelType.DECISIONTREE: "decision trees read features",
}
# Models whose scores are a dot product: only the candidates are scored.
_DOT_PRODUCTS: dict[str, type[RecBoleBaseline]] = {
    "BPR": FactorBaseline,
    "LightGCN": GraphBaseline,
    "MultiVAE": MultiVAEBaseline,
    "GRU4Rec": SequenceDotBaseline,
    "SASRec": SequenceDotBaseline,
}
# RecBole's models that are built in another way.
_VARIANTS: dict[str, type[AbstractRecommender]] = {"Pop": CountedPop, "ItemKNN": LeanItemKNN}


@functools.cache
def adapt(recbole_class: type[AbstractRecommender]) -> type[CrossDomainRecommender]:
    """Returns the baseline that runs a RecBole model on our instances, under the same name.

    Raises:
        CDRError: the model is of a kind that needs more than interactions, or a trainer of its own.
    """
    name, kind = recbole_class.__name__, recbole_class.type
    compat.apply_to(name)
    if kind in _KINDS or name in _UNSERVED:
        why = _UNSERVED.get(name) or _KINDS[kind]
        raise CDRError(f"RecBole's {name} cannot serve as a baseline here: {why}. See 'recbole-cdr models'.")
    # RecBole's SINE switches anomaly detection on for the whole process when its module is imported, which every
    # other sequential model's import does; it doubles the time of all training.
    torch.autograd.set_detect_anomaly(False)
    if kind == ModelType.SEQUENTIAL:
        base: type[RecBoleBaseline] = SequentialBaseline
    elif issubclass(recbole_class, AutoEncoderMixin):
        base = AutoEncoderBaseline
    elif kind == ModelType.TRADITIONAL:
        base = PopularityBaseline if name in ("Pop", "Random") else ItemItemBaseline
    else:
        base = UserBaseline
    attributes = {
        "__doc__": f"RecBole's {name} as a baseline: {inspect.getdoc(recbole_class) or name}",
        "__module__": __name__,
        "recbole_class": _VARIANTS.get(name, recbole_class),
        "paper": _reference(recbole_class),
    }
    return type(name, (_DOT_PRODUCTS.get(name, base),), attributes)


def _reference(recbole_class: type) -> str:
    """Returns the paper that the head of RecBole's module names, else "RecBole"."""
    text = inspect.cleandoc(sys.modules[recbole_class.__module__].__doc__ or "")
    reference = re.search(r"Reference:\s*\n(.+?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    return " ".join(reference.group(1).split()) if reference else "RecBole"
