"""The tasks as objects, that every model conforms to its task, and that the checks catch one that lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import load, random_domains
from torch import nn

from recbole_cdr_ext.data.sequences import EpochBatches, TrainingSequences
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics, ValueMetrics
from recbole_cdr_ext.model.recommender import CrossDomainRecommender, Phase
from recbole_cdr_ext.registry.models import list_models
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.settings.reading import TASKS
from recbole_cdr_ext.splits.split import TrainingData
from recbole_cdr_ext.tasks import get_task
from recbole_cdr_ext.testing import NotConformant, Subject, checks_of, outcomes


def test_every_task_of_the_settings_is_an_object():
    assert [get_task(name).name for name in TASKS] == list(TASKS)
    with pytest.raises(CDRError, match="task='ranking' should be one of next_item, rating"):
        get_task("ranking")


@pytest.mark.parametrize(
    ("model", "task", "splits", "metrics", "short"),
    [
        ("I2VAE", "next_item", ["user", "leave_one_out", "published"], RankingMetrics, {"epochs": 3}),
        ("SCDR", "rating", ["cold_start"], ValueMetrics, {"epochs": 3, "pretrain_epochs": 3}),
    ],
)
def test_a_task_knows_its_splits_metrics_and_keys(model, task, splits, metrics, short):
    config, of = CDRConfig(model, "toy"), get_task(task)
    assert config["task"] == task and config["split"] in of.splits() == splits
    assert isinstance(of.metrics(config), metrics)
    assert of.short(3) == short
    assert {*of.split_keys, *of.shared_keys, *of.epoch_keys} <= config.to_dict().keys()


def test_questions_are_what_settings_do_not_say():
    setting = {
        "eval_args": {"mode": {"valid": "uni99", "test": "full"}},
        "source": None,
        "target": "films",
        "beta": 0.2,
    }.get
    assert get_task("next_item").questions(setting, {}) == {"candidates": "full"}
    asked = get_task("rating").questions(setting, {"source": "books"})
    assert asked == {"source": "books", "target": "films", "beta": 0.2}


@pytest.mark.parametrize("split", ["user", "leave_one_out"])
def test_a_split_leaves_dataset_and_settings_as_they_are(tmp_path, split):
    loaded = load(tmp_path, random_domains(), split=split)
    dataset, config, task = loaded.dataset, loaded.config, get_task("next_item")
    attributes, settings, report = dict(vars(dataset)), config.to_dict(), dict(dataset.report)
    again = task.make_split(config, dataset)
    TrainingData.of(dataset, again)
    assert vars(dataset).keys() == attributes.keys()
    assert all(vars(dataset)[name] is value for name, value in attributes.items())
    assert (dataset.report, config.to_dict()) == (report, settings)
    assert again.report == loaded.split.report and not hasattr(dataset, "split")


# Smaller than the defaults, which are made for thousands of users.
SMALL = {
    # An epoch of the two episodes that the default batches make is nothing but noise.
    "TMCDR": {"train_batch_size": 32, "pretrain_learning_rate": 0.05},
    # Few users make few updates, and the latents' alignment is learnt by these.
    "SAVAE": {"train_batch_size": 16, "total_anneal_steps": 100},
    # After a long warm-up the specific part explains the warm users, and nothing is left for the shared one to learn.
    "DisenCDR": {"embedding_size": 32, "warmup_epochs": 1, "kl_weight": 0.001, "stopping_step": 20},
    "I2VAE": {"embedding_size": 32, "inner_size": 32, "psg_settings": {"epochs": 20}},
}
# RecBole's models that stand in the tables; its others are looked at by `pytest -m slow`.
IN_TABLES = ("Pop", "ItemKNN", "BPR", "MultiVAE", "SASRec")

INFOS = list_models()
OWN = [info for info in INFOS if info.origin == "recbole_cdr_ext" and info.name != "OrderPop"]
# What these call so is a setting of all runs here, and they are refused.
CLASHES = {"LINE": "order"}
OTHERS = [info for info in INFOS if info.origin == "recbole" and info.name not in (*IN_TABLES, *CLASHES)]


# RecBole adds random noise to these models' scores.
NOISY = pytest.mark.xfail(reason="its scores are drawn anew each time", strict=False)


def parameters(infos):
    return [
        pytest.param(
            info.name,
            info.task,
            check,
            id=f"{info.name}-{info.task}-{check.__name__}",
            marks=[NOISY] if info.name in ("ADMMSLIM", "Random") else [],
        )
        for info in infos
        for check in checks_of(info.name, info.task)
    ]


@pytest.fixture(scope="module")
def subject_of(tmp_path_factory):
    kept: dict[tuple[str, str], Subject] = {}

    def find(name: str, task: str) -> Subject:
        if (name, task) not in kept:
            kept.clear()  # one at a time is enough: checks come model by model
            folder = tmp_path_factory.mktemp(f"{name}-{task}")
            kept[name, task] = Subject(name, folder, task=task, **SMALL.get(name, {}))
        return kept[name, task]

    return find


@pytest.mark.parametrize(
    ("name", "task", "check"), parameters([*OWN, *(info for info in INFOS if info.name in IN_TABLES)])
)
def test_a_model_conforms(subject_of, name, task, check):
    check(subject_of(name, task))


@pytest.mark.parametrize(("name", "setting"), CLASHES.items())
def test_a_model_with_another_meaning_of_a_setting_is_refused(tmp_path, name, setting):
    with pytest.raises(CDRError, match=f"{name} can't be used here, its '{setting}' means something else"):
        Subject(name, tmp_path).config()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task", "check"), parameters(OTHERS))
def test_recboles_other_models_conform(subject_of, name, task, check):
    check(subject_of(name, task))


# -- models that do one thing wrong ------------------------------------------------------------------------------


class Honest(CrossDomainRecommender):
    """The mean of all histories' item vectors, against all items of the target's domain."""

    cold_start = True
    paper = "none"

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.items = nn.Embedding(self.n_items, 16, padding_idx=0)

    def read(self, batch):
        return torch.cat([batch.history(k) for k in range(self.n_domains)], 1)

    def encode(self, batch):
        history = self.read(batch)
        return self.items(history).sum(1) / (history != 0).sum(1, keepdim=True).clamp(min=1)

    def item_vectors(self, domain):
        return self.items.weight[self.item_slice(domain)]

    def calculate_loss(self, interaction):
        span = self.item_slice(interaction.target_domain)
        logits = self.encode(interaction) @ self.item_vectors(interaction.target_domain).T
        return F.cross_entropy(logits, interaction.targets - span.start)


class NeverLearns(Honest):
    def calculate_loss(self, interaction):
        return 1.0 + 0.0 * super().calculate_loss(interaction)


class Unseeded(Honest):
    def start_epoch(self, phase, epoch):
        with torch.no_grad():
            self.items.weight[1:] += torch.from_numpy(np.random.default_rng().normal(size=(1, 16))).float()


class Forgetful(Honest):
    """What it counts in training is no buffer."""

    seen = 0.0

    def calculate_loss(self, interaction):
        self.seen = self.seen + 1.0
        return super().calculate_loss(interaction)

    def item_vectors(self, domain):
        items = super().item_vectors(domain)
        return items if self.training else items * (1 + self.seen)


class SeesEverything(Honest):
    """Its popularity counts what is held out."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        counts = np.bincount(dataset.split.touched.items, minlength=self.n_items)
        self.register_buffer("counts", torch.from_numpy(counts).float())

    def score(self, batch, candidates=None):
        scores = super().score(batch, candidates)
        return (
            scores + self.counts[self.item_slice(batch.target_domain) if candidates is None else candidates]
        )


class ReadsTheTarget(Honest):
    def encode(self, batch):
        return super().encode(batch) + self.items(batch.targets)


class Noisy(Honest):
    def encode(self, batch):
        return F.dropout(super().encode(batch), 0.5, training=True)


class LooksAround(Honest):
    def encode(self, batch):
        vectors = super().encode(batch)
        return vectors - vectors.mean(0)


class CountsPadding(Honest):
    def read(self, batch):
        return batch.own_history

    def encode(self, batch):
        return self.items(batch.own_history).mean(1) + super().encode(batch)

    cold_start = False


class DividesByNothing(Honest):
    def encode(self, batch):
        history = self.read(batch)
        return self.items(history).sum(1) / (history != 0).sum(1, keepdim=True)


class Infinite(Honest):
    def score(self, batch, candidates=None):
        return super().score(batch, candidates) / 0.0


class RanksCandidatesBackwards(Honest):
    def score(self, batch, candidates=None):
        scores = super().score(batch, candidates)
        return scores if candidates is None else -scores


class SaysItServesCold(Honest):
    def read(self, batch):
        return batch.own_history


class HidesThatItServesCold(Honest):
    cold_start = False


class SaysItNeedsOverlap(Honest):
    needs_overlap = True


class HidesThatItNeedsOverlap(Honest):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        lengths = dataset.split.train.lengths > 0
        if not (lengths.sum(1) > 1).any():
            raise CDRError("No user has a history in two domains.")


class SaysItTakesAnyNumber(Honest):
    def read(self, batch):
        return torch.cat([batch.history(k) for k in (0, 1)], 1)


class SaysNothing(Honest):
    paper = ""


class Sequences(Honest):
    """In one pass: a position reads what stands before it."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.sequences = TrainingSequences(dataset.split.train_events, self.max_history_length)

    def phases(self):
        return [Phase(batches=self.sequence_batches, loss=self.sequence_loss)]

    def sequence_batches(self, rng):
        parts = self.sequences.parts(int(self.config["train_batch_size"]), rng)
        return EpochBatches([(0, part) for part in parts], lambda tag, rows: self.sequences.batch(rows, tag))

    def states(self, items):
        count = torch.arange(1, items.shape[1] + 1).unsqueeze(1)
        return self.items(items).cumsum(1) / count

    def sequence_loss(self, batch):
        asked = batch.targets != 0
        logits = self.states(batch.items)[asked] @ self.items.weight[1:].T
        return F.cross_entropy(logits, batch.targets[asked] - 1)


class LooksAhead(Sequences):
    def states(self, items):
        return super().states(items) + self.items(items).mean(1, keepdim=True)


class OnlySinglePrecision(Honest):
    def calculate_loss(self, interaction):
        return super().calculate_loss(interaction) + (torch.eye(2) @ torch.eye(2)).dtype.itemsize


LIARS = {
    "loss_falls": [NeverLearns],
    "trains_in_mixed_precision": [OnlySinglePrecision],
    "same_seed_same_model": [Unseeded],
    "survives_a_checkpoint": [Forgetful],
    "held_out_targets_change_nothing": [SeesEverything],
    "positions_are_blind_to_what_follows": [LooksAhead],
    "scores_are_repeatable_finite_and_blind_to_the_target": [ReadsTheTarget, Noisy, Infinite],
    "candidates_are_scored_as_in_the_full_ranking": [RanksCandidatesBackwards],
    "a_batch_scores_as_its_rows_do": [LooksAround],
    "padding_changes_nothing": [CountsPadding],
    "an_empty_history_has_scores": [DividesByNothing],
    "cold_start_is_true": [SaysItServesCold, HidesThatItServesCold],
    "needs_overlap_is_true": [SaysItNeedsOverlap, HidesThatItNeedsOverlap],
    "domains_is_true": [SaysItTakesAnyNumber],
    "says_where_it_comes_from": [SaysNothing],
}


@pytest.mark.parametrize("model", [Honest, Sequences])
def test_honest_models_pass(tmp_path, model):
    assert [found for found in outcomes(model, tmp_path) if found[1]] == []


@pytest.mark.parametrize(
    ("check", "model"), [(check, model) for check, models in LIARS.items() for model in models]
)
def test_a_check_catches_who_it_is_for(tmp_path, check, model):
    (function,) = (f for f in checks_of(model) if f.__name__ == check)
    with pytest.raises((NotConformant, IndexError, KeyError)):
        function(Subject(model, tmp_path))


def test_a_setting_that_a_model_cannot_have_is_one_error(tmp_path):
    with pytest.raises(CDRError, match="embedding_size=0 should be at least 1"):
        next(outcomes("BPR", tmp_path, embedding_size=0))


def test_every_check_has_its_liar():
    assert {check.__name__ for check in checks_of(Honest)} == set(LIARS)
