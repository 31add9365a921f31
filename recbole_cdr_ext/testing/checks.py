"""The checks. Each takes a :class:`Subject`, and raises :class:`NotConformant` with what was found instead."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_cdr_ext.data.instances import Batch, Instances
from recbole_cdr_ext.data.sequences import SequenceBatch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.registry.models import get_model
from recbole_cdr_ext.settings.reading import TASKS
from recbole_cdr_ext.tasks.rating import RatingExperiment
from recbole_cdr_ext.tasks.task import Experiment
from recbole_cdr_ext.testing import subject as planted
from recbole_cdr_ext.testing.subject import (
    Subject,
    all_scores,
    as_next_item,
    as_rating,
    on_topic,
    scores,
    test_batches,
)
from recbole_cdr_ext.trainer.trainer import seed_everything

Check = Callable[[Subject], None]

# Shares of the own topic among the best items: chance is 0.25, a model that found the topic has nearly 1.
FOUND, MISSED = 0.6, 0.45
# Sums in another order differ by some roundings.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


class NotConformant(AssertionError):
    """A model is not what a model should be, or not what it says of itself."""


# The tasks, as _check is told for which one a check is.
_NEXT_ITEM, _RATING = TASKS
_CHECKS: dict[str, list[Check]] = {task: [] for task in TASKS}


def _check(*tasks: str) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        for task in tasks:
            _CHECKS[task].append(function)
        return function

    return register


def checks_of(model: str | type, task: str | None = None) -> list[Check]:
    """Returns the checks for a model's task, in the order in which they should run.

    Raises:
        CDRError: there is no such model.
    """
    return list(_CHECKS[task or get_model(model).task])


def outcomes(
    model: str | type, folder: Path, task: str | None = None, **settings: Any
) -> Iterator[tuple[str, str]]:
    """Runs all checks; yields each one's name, and what is wrong ("" if nothing is), as soon as it is known.

    Raises:
        CDRError: there is no such model, or it can't have these settings.
    """
    subject = Subject(model, folder, task=task, **settings)
    subject.config()  # whose error would be every check's
    for check in checks_of(model, task):
        try:
            check(subject)
        except NotConformant as error:
            yield check.__name__, str(error)
        except Exception as error:  # whatever a model under test raises is a finding
            yield check.__name__, f"{type(error).__name__}: {error}"
        else:
            yield check.__name__, ""


def _same(
    scored: list[torch.Tensor], expected: list[torch.Tensor], what: str, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Raises if two lists of scores differ."""
    for one, other in zip(scored, expected, strict=True):
        if one.shape != other.shape or not torch.allclose(one, other, rtol, atol):
            apart = float((one - other).abs().max()) if one.shape == other.shape else float("nan")
            raise NotConformant(f"{what} (by up to {apart:.3g})")


def _predictions(experiment: Experiment) -> list[torch.Tensor]:
    """Returns all that a model says of the test part, of either task."""
    if isinstance(experiment, RatingExperiment):
        return [torch.from_numpy(experiment.predict("test"))]
    return all_scores(experiment)


# -- training --------------------------------------------------------------------------------------------------------


@_check(_NEXT_ITEM, _RATING)
def loss_falls(subject: Subject) -> None:
    """In every phase some epoch has a lower loss than the first."""
    _ = subject.trained
    by_phase: dict[str, list[float]] = {}
    for entry in subject.history:
        loss = entry["loss"]
        by_phase.setdefault(entry["phase"], []).append(float(np.sum(loss)))
    for phase, losses in by_phase.items():
        if len(losses) > 1 and min(losses[1:]) >= losses[0]:
            raise NotConformant(
                f"phase '{phase}': the loss begins at {losses[0]:.4g} and never falls below it in {len(losses)} epochs"
            )


@_check(_NEXT_ITEM, _RATING)
def same_seed_same_model(subject: Subject) -> None:
    """Two trainings with the same seed end in equal scores."""
    one, other = (_predictions(subject.fitted(**subject.short(2))) for _ in range(2))
    _same(
        one,
        other,
        "two trainings with one seed differ: something is drawn from a generator that nobody seeds",
    )


@_check(_NEXT_ITEM, _RATING)
def trains_in_mixed_precision(subject: Subject) -> None:
    """``enable_amp`` rounds the losses of the first epoch, and changes nothing else."""
    single, mixed = (subject.fit(subject.build(**subject.short(1), enable_amp=amp)) for amp in (False, True))
    for one, other in zip(single, mixed, strict=True):
        losses = [float(np.sum(entry["loss"])) for entry in (one, other)]
        if not abs(losses[1] - losses[0]) <= 0.05 * abs(losses[0]):  # nor where one is no number
            raise NotConformant(
                f"phase '{one['phase']}': the first loss is {losses[0]:.4g}, with enable_amp {losses[1]:.4g}"
            )


@_check(_NEXT_ITEM, _RATING)
def survives_a_checkpoint(subject: Subject) -> None:
    """The state dict holds all that was learned."""
    trained = subject.trained
    other = subject.build()  # with the same seed, as stages depend on it
    other.model.load_state_dict(copy.deepcopy(trained.model.state_dict()))
    _same(
        _predictions(other),
        _predictions(trained),
        "a model with the loaded state dict scores otherwise: something that is learned is no parameter or buffer, or "
        "what was computed from former weights is kept",
    )


@_check(_NEXT_ITEM)
def held_out_targets_change_nothing(subject: Subject) -> None:
    """Other targets of the test users leave what is learned, and their scores, as they are."""
    if not (subject.folder / "altered").exists():
        _write_altered(subject)
    short = {"epochs": 2}
    one, other = (as_next_item(subject.fitted(data, **short)) for data in ("topics", "altered"))
    assert (one.split.test.target != other.split.test.target).all(), "the altered data have the same targets"
    # One domain's target may stand in the history of another's later one: those histories differ.
    is_alike = torch.from_numpy(_same_histories(one.split.test, other.split.test))
    rows = [is_alike[batch["index"]] for batch in test_batches(one)]
    _same(
        [scored[alike] for scored, alike in zip(all_scores(other), rows, strict=True)],
        [scored[alike] for scored, alike in zip(all_scores(one), rows, strict=True)],
        "other test targets give other scores: the model sees what is held out (learn from split.train and "
        "split.train_events alone)",
    )


def _same_histories(one: Instances, other: Instances) -> np.ndarray:
    domains = range(one.start.shape[1])
    return np.array(
        [
            all(np.array_equal(one.history(i, k), other.history(i, k)) for k in domains)
            for i in range(len(one))
        ]
    )


def _write_altered(subject: Subject) -> None:
    """Writes the topics with each test instance's target exchanged for another item that the user does not have."""
    dataset, split = subject.instances("topics")
    test, rows = split.test, planted.topics(2)
    rng = np.random.default_rng(1)
    for user, domain, target in zip(test.user, test.domain, test.target, strict=True):
        name, who = dataset.domains[domain], dataset.id2token(dataset.uid_field, int(user))
        old = str(dataset.item_token(np.array([target]))[0])
        has = {item for u, item, _ in rows[name] if u == who}
        new = rng.choice(sorted({item for _, item, _ in rows[name]} - has))
        rows[name] = [(u, str(new) if (u, i) == (who, old) else i, t) for u, i, t in rows[name]]
    planted.write(subject.folder / "altered", rows, "timestamp")
    other, _ = subject.instances("altered")
    for k in range(dataset.n_domains):
        items = np.arange(*dataset.item_offset[k : k + 2])
        assert (dataset.item_token(items) == other.item_token(items)).all(), "the ids moved"


@_check(_NEXT_ITEM)
def positions_are_blind_to_what_follows(subject: Subject) -> None:
    """Where whole sequences are trained at once, no position's loss depends on later items."""
    experiment = subject.trained
    model = experiment.model
    for phase in model.phases():
        if phase.batches is None:
            continue
        batch = next(iter(phase.batches(np.random.default_rng(0))))
        if not isinstance(batch, SequenceBatch) or batch.items.shape[1] < 4:
            continue
        cut = batch.items.shape[1] // 2
        losses = []
        for shift in (0, 1):
            tensors = {name: tensor.clone() for name, tensor in batch.interaction.items()}
            late, real = tensors["item_seq"][:, cut:], batch.items[:, cut:] != 0
            # Another item of the same domain: the next id, around the domain's end.
            for k in range(model.n_domains):
                span = model.item_slice(k)
                in_domain = real & (late >= span.start) & (late < span.stop)
                late[in_domain] = (late[in_domain] - span.start + shift) % (
                    span.stop - span.start
                ) + span.start
            for name in tensors.keys() - {"item_seq"}:  # what is asked there
                tensors[name][:, cut:] = -1 if name == "event" else 0
            seed_everything(0)
            model.eval()
            with torch.no_grad():
                loss = (phase.loss or model.calculate_loss)(SequenceBatch(tensors, batch.tag))
            losses.append(float(torch.stack([*loss]).sum() if isinstance(loss, tuple) else loss))
        if not np.isclose(losses[0], losses[1], rtol=1e-4):
            raise NotConformant(
                f"phase '{phase.name}': the loss of the first positions is {losses[0]:.6g}, and {losses[1]:.6g} with "
                "other items behind them"
            )


# -- scores ----------------------------------------------------------------------------------------------------------


@_check(_NEXT_ITEM)
def scores_are_repeatable_finite_and_blind_to_the_target(subject: Subject) -> None:
    """Scoring twice gives the same; nothing is infinite; the batch's target and negatives are not looked at."""
    experiment = subject.trained
    for batch in test_batches(experiment):
        scored = scores(experiment.model, batch)
        if not torch.isfinite(scored).all():
            raise NotConformant("some scores are infinite or not a number")
        _same(
            [scores(experiment.model, batch)],
            [scored],
            "scoring twice gives other scores: noise is on in evaluation",
        )
        span = experiment.model.item_slice(batch.target_domain)
        other = (batch.targets - span.start + 1) % (span.stop - span.start) + span.start
        changed = batch.with_fields(item_id=other, neg_item_id=other.unsqueeze(1))
        _same([scores(experiment.model, changed)], [scored], "scores depend on the batch's target")


@_check(_NEXT_ITEM)
def candidates_are_scored_as_in_the_full_ranking(subject: Subject) -> None:
    """``score(batch, candidates)`` orders candidates as ``score(batch)`` does."""
    experiment = subject.trained
    model = experiment.model.eval()
    for batch in test_batches(experiment):
        span = model.item_slice(batch.target_domain)
        generator = torch.Generator().manual_seed(0)
        some = torch.randint(span.start, span.stop, (len(batch), 7), generator=generator).to(
            batch.users.device
        )
        with torch.no_grad():
            full, some_scores = model.score(batch), model.score(batch, some)
        expected = full.gather(1, some - span.start)
        # Only the order within a row counts, so scores may be shifted and scaled: compare differences' signs.
        first, second = (x.unsqueeze(1) - x.unsqueeze(2) for x in (some_scores, expected))
        scale = second.abs().amax() + 1e-12
        if ((first.sign() != second.sign()) & (second.abs() > 1e-4 * scale)).any():
            raise NotConformant("candidates are ordered otherwise than in the full ranking")


@_check(_NEXT_ITEM)
def a_batch_scores_as_its_rows_do(subject: Subject) -> None:
    """What else is in a batch does not matter."""
    experiment = subject.trained
    for batch in test_batches(experiment):
        together = scores(experiment.model, batch)[:8]
        rows = [torch.tensor([row], device=batch.users.device) for row in range(min(8, len(batch)))]
        alone = torch.cat([scores(experiment.model, batch.rows(row)) for row in rows])
        _same([alone], [together], "an instance alone scores otherwise than in a batch", **CLOSE)


@_check(_NEXT_ITEM)
def padding_changes_nothing(subject: Subject) -> None:
    """Histories that are padded wider score the same."""
    experiment = subject.trained
    for batch in test_batches(experiment):
        names = [name for name in batch.interaction if name.startswith(("history_", "merged", "pseudo"))]
        wider = {name: torch.nn.functional.pad(batch[name], (3, 0)) for name in names}
        scored = scores(experiment.model, batch.with_fields(**wider))
        _same([scored], [scores(experiment.model, batch)], "more padding gives other scores", **CLOSE)


@_check(_NEXT_ITEM)
def an_empty_history_has_scores(subject: Subject) -> None:
    """An instance without any history is disowned, or has finite scores."""
    experiment = subject.trained
    for batch in test_batches(experiment):
        scored = scores(experiment.model, _without_history(batch))
        if not torch.isfinite(scored).all():
            raise NotConformant("an instance without any history has scores that are no numbers")


def _without_history(batch: Batch) -> Batch:
    names = [n for n in batch.interaction if n.startswith(("history_", "merged", "pseudo", "recalled"))]
    return batch.with_fields(**{name: torch.zeros_like(batch[name]) for name in names})


# -- what a model says of itself -----------------------------------------------------------------------------------


@_check(_NEXT_ITEM)
def cold_start_is_true(subject: Subject) -> None:
    """A model that serves cold-start users finds their topic, which only the other domain shows; no other does."""
    says, share = subject.model_class.cold_start, on_topic(subject.trained, cold=True)
    if says and share < FOUND and not _alike_for_all(subject):
        raise NotConformant(
            f"cold_start is True, but of the best items for cold-start users {share:.0%} are of their topic (chance: "
            f"{1 / planted.N_TOPICS:.0%})"
        )
    if not says and share > MISSED:
        raise NotConformant(
            f"cold_start is False, but of the best items for cold-start users {share:.0%} are of their topic: it "
            "serves them, and should say so"
        )


def _alike_for_all(subject: Subject) -> bool:
    """Returns whether a model scores everybody alike, as popularity does: it serves cold-start users as well as any."""
    return all(bool((scored == scored[:1]).all()) for scored in all_scores(subject.trained))


@_check(_NEXT_ITEM)
def needs_overlap_is_true(subject: Subject) -> None:
    """A model that needs overlapping users refuses data without any, and cannot do without; all others can."""
    says = subject.model_class.needs_overlap
    if not says:
        try:
            experiment = subject.fitted("apart", epochs=2)
        except CDRError as error:
            raise NotConformant(f"needs_overlap is False, but without overlapping users: {error}") from None
        if not all(torch.isfinite(scored).all() for scored in all_scores(experiment)):
            raise NotConformant("needs_overlap is False, but without overlapping users scores are no numbers")
        return
    with contextlib.suppress(CDRError):
        subject.build("apart")
        raise NotConformant("needs_overlap is True, but data without overlapping users are not refused")
    with _saying(subject.model_class, needs_overlap=False):
        try:
            share = on_topic(subject.fitted("apart"), cold=False)
        except Exception:  # whichever way it fails, it could not do without
            return
    if share >= FOUND:
        raise NotConformant(
            f"needs_overlap is True, but without overlapping users it ranks well ({share:.0%} of the best items are of "
            "the user's topic)"
        )


@contextlib.contextmanager
def _saying(model_class: type, **attributes: Any) -> Iterator[None]:
    """Gives the class other attributes for a while."""
    before = {name: model_class.__dict__.get(name) for name in attributes}
    for name, value in attributes.items():
        setattr(model_class, name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            delattr(model_class, name) if old is None else setattr(model_class, name, old)


@_check(_NEXT_ITEM)
def domains_is_true(subject: Subject) -> None:
    """A model runs on as many domains as it says, and data with others are refused."""
    says = subject.model_class.domains
    able = {"any number": ("one", "three"), "two or more": ("three",), "two": (), "one": ("one",)}.get(says)
    if able is None:
        raise NotConformant(f"domains={says!r} should be one of any number, two or more, two, one")
    for data in ("one", "three"):
        if data in able:
            experiment = subject.fitted(data, epochs=1)
            if not all(torch.isfinite(scored).all() for scored in all_scores(experiment)):
                raise NotConformant(f"domains={says!r}, but scores on {data} domain(s) are no numbers")
            continue
        with contextlib.suppress(CDRError):
            subject.build(data)
            raise NotConformant(f"domains={says!r}, but data of {data} domain(s) are not refused")


@_check(_NEXT_ITEM, _RATING)
def says_where_it_comes_from(subject: Subject) -> None:
    """``paper`` is given, and so is a docstring."""
    for name, value in (("paper", subject.model_class.paper), ("a docstring", subject.model_class.__doc__)):
        if not value:
            raise NotConformant(f"{name} is missing")


# -- ratings ---------------------------------------------------------------------------------------------------------


@_check(_RATING)
def predictions_are_finite_and_one_by_one_the_same(subject: Subject) -> None:
    """A rating is predicted as it is among others."""
    experiment = as_rating(subject.trained)
    together = _predictions(experiment)[0]
    if not torch.isfinite(together).all():
        raise NotConformant("some predictions are infinite or not a number")
    batch = experiment.batch("test")
    with torch.no_grad():
        experiment.model.eval()
        alone = torch.cat([experiment.model.predict(batch.take(slice(i, i + 1))) for i in range(8)])
    _same([alone.cpu()], [together[:8]], "a rating alone is predicted otherwise than among others", **CLOSE)


@_check(_RATING)
def source_ratings_matter(subject: Subject) -> None:
    """A model of cold-start users' ratings depends on what they rated in the source domain."""
    experiment, says = as_rating(subject.trained), subject.model_class.cold_start
    split, predicted = experiment.split, _predictions(experiment)[0].numpy()
    by_user = [predicted[split.test.user == user] for user in np.unique(split.test.user)]
    items = [split.test.item[split.test.user == user] for user in np.unique(split.test.user)]
    ratings_of_item: dict[int, set[float]] = {}
    for row, values in zip(items, by_user, strict=True):
        for item, value in zip(row, values, strict=True):
            ratings_of_item.setdefault(int(item), set()).add(round(float(value), 5))
    personal = any(len(values) > 1 for values in ratings_of_item.values())
    if says and not personal:
        raise NotConformant("cold_start is True, but all cold-start users are told the same of an item")
    if not says and personal:
        raise NotConformant("cold_start is False, but cold-start users are told apart")
