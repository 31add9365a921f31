"""PiNet against its equations: by plain loops, in one pass, and blind to what follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import load, random_domains

from recbole_cdr_ext.data.instances import Batch, make_batch
from recbole_cdr_ext.data.sequences import SequenceBatch
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.model.next_item.pinet import FilterUnit, PiNet, Recurrence
from recbole_cdr_ext.model.parts.layers import Dropout
from recbole_cdr_ext.splits.loader import CrossDomainLoader

SMALL = {
    "embedding_size": 8,
    "n_members": 3,
    "dropout": 0.0,
    "split": "leave_one_out",
    "train_targets": "all",
    "max_history_length": 60,
    "train_batch_size": 100,
}
# What is compared here position by position is one order; tests/test_reorder.py has those of the epochs.
NO_ORDER = {"order": "none", "split": "user", "reorder": False}
FORMS = [{}, NO_ORDER]


def build(tmp_path, domains=None, **settings):
    """A model whose every parameter, biases included, is random."""
    loaded = load(tmp_path, domains or random_domains(), "PiNet", **{**SMALL, **settings})
    torch.manual_seed(0)
    model = PiNet(loaded.config, loaded.data).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
        model.item_embedding.weight[0] = 0
    return loaded, model


def held_out_batches(loaded, model):
    return list(CrossDomainLoader(loaded.config, loaded.split.test, model))


def ask(model, x, *histories):
    """A batch of users with the given merged timelines, for targets in ``x``."""
    width = max(1, *(len(h) for h in histories))
    merged = torch.tensor([[0] * (width - len(h)) + list(h) for h in histories])
    fields = {
        "merged": merged,
        "user_id": torch.arange(len(merged)),
        "item_id": torch.ones(len(merged)).long(),
    }
    for k in range(model.n_domains):
        span = model.item_slice(k)
        fields[f"history_{k}"] = merged * ((merged >= span.start) & (merged < span.stop))
    return Batch(fields, x, model.n_domains)


def gru_step(gru, x, h):
    """One step of Cho's GRU from the weights of torch's."""
    d = len(h)
    from_x = gru.weight_ih_l0 @ x + gru.bias_ih_l0
    from_h = gru.weight_hh_l0 @ h + gru.bias_hh_l0
    reset, update = (from_x[: 2 * d] + from_h[: 2 * d]).sigmoid().chunk(2)
    candidate = torch.tanh(from_x[2 * d :] + reset * from_h[2 * d :])
    return (1 - update) * candidate + update * h


def by_loops(model, x, history):
    """The vector [r; h^X; 1] by the equations of the header, event by event and member by member."""
    unit, d = model.filter[x], model.item_embedding.embedding_dim
    h = [torch.zeros(d) for _ in range(model.n_domains)]
    s = r = torch.zeros(d)
    for item in history:
        k = next(k for k in range(model.n_domains) if item < model.item_offsets[k + 1])
        h[k] = gru_step(model.encoder[k].gru, model.item_embedding.weight[item], h[k])
        if k == x:
            continue
        mixed = []
        for m in unit.members:
            f = torch.sigmoid(unit.w_f(torch.cat([h[k], h[x], s])) + unit.v_f.weight @ m)
            c = torch.tanh(unit.w_s(torch.cat([h[k], s])) + unit.v_s.weight @ m)
            mixed.append(f * s + (1 - f) * c)
        s = sum(mixed) / len(mixed)
        r = gru_step(model.transfer[x].gru, s, r)
    return torch.cat([r, h[x], torch.ones(1)])


def positions(model, hide=False):
    """All that one pass over the training data trains: {(history, target): (domain, vector)}."""
    found = {}
    for batch in model.training_sequences.batches(np.random.default_rng(0)):
        encoded = model.read(batch.items)
        for x in range(model.n_domains) if model.ordered else [batch.tag]:
            span, vectors = model.item_slice(x), model.vectors(encoded, x, hide)
            for row, place in (
                ((batch.targets >= span.start) & (batch.targets < span.stop)).nonzero().tolist()
            ):
                history = tuple(batch.items[row, : place + 1].tolist())
                found[history, int(batch.targets[row, place])] = x, vectors[row, place]
    return found


@pytest.mark.parametrize("n_domains", [2, 3])
@torch.no_grad()
def test_states_are_those_of_the_equations(tmp_path, n_domains):
    names = ("books", "films", "games")[:n_domains]
    _, model = build(tmp_path, random_domains(names=names, n_users=20))
    histories = [[1], [35, 1], [2, 33, 40, 5, 6, 36], [30, 29, 31, 31, 3]]
    histories += [[65, 1, 70, 34]] if n_domains == 3 else []
    for x in range(n_domains):
        expected = torch.stack([by_loops(model, x, history) for history in histories])
        torch.testing.assert_close(model.encode(ask(model, x, *histories)), expected)
        scores = expected[:, :-1] @ model.output.weight[model.item_slice(x), :-1].T
        scores = scores + model.output.weight[model.item_slice(x), -1]
        torch.testing.assert_close(model.score(ask(model, x, *histories)), scores)


@pytest.mark.parametrize("n_domains", [2, 3])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_one_pass_is_asking_at_each_position(tmp_path, form, n_domains):
    names = ("books", "films", "games")[:n_domains]
    loaded, model = build(tmp_path, random_domains(names=names), **form)
    found, train = positions(model), loaded.split.train
    assert len(found) == len(train)
    for x in range(n_domains):
        batch = make_batch(train, np.flatnonzero(train.domain == x), max_length=60, merged=True)
        if form:
            others = [batch.history(k) for k in range(n_domains) if k != x]
            histories = torch.cat([*others, batch.own_history], 1)
        else:
            histories = batch["merged"]
        for history, target, vector in zip(histories, batch.targets, model.encode(batch), strict=True):
            domain, expected = found[tuple(history[history != 0].tolist()), int(target)]
            assert domain == x
            torch.testing.assert_close(vector, expected)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_loss_is_the_sum_of_the_domains_means(tmp_path, form):
    loaded, model = build(tmp_path, train_batch_size=10**6, **form)
    found = positions(model).items()
    expected = 0.0
    for x in range(2):
        vectors = torch.stack([vector for _, (domain, vector) in found if domain == x])
        target = torch.tensor([t - model.item_offsets[x] for (_, t), (domain, _) in found if domain == x])
        expected += F.cross_entropy(vectors @ model.item_vectors(x).T, target)
    batches = list(model.training_sequences.batches(np.random.default_rng(0)))
    torch.testing.assert_close(sum(model.sequence_loss(batch) for batch in batches), expected)
    # Instances: each domain's mean as well.
    expected = 0.0
    for x in range(2):
        rows = np.flatnonzero(loaded.split.train.domain == x)
        expected += model.calculate_loss(make_batch(loaded.split.train, rows, max_length=60, merged=True))
    torch.testing.assert_close(sum(model.sequence_loss(batch) for batch in batches), expected)


@torch.no_grad()
def test_what_follows_changes_no_earlier_position(tmp_path):
    _, model = build(tmp_path)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    cut = batch.items.shape[1] // 2
    changed = batch.items.clone()
    changed[:, cut:] = torch.where(
        changed[:, cut:] != 0, 1 + (changed[:, cut:] + 30) % (model.n_items - 1), 0
    )
    for x in range(2):
        before, after = (model.vectors(model.read(items), x) for items in (batch.items, changed))
        torch.testing.assert_close(before[:, :cut], after[:, :cut])
        assert not torch.allclose(before[:, cut:], after[:, cut:])


@torch.no_grad()
def test_an_event_is_filtered_by_what_stood_before_it(tmp_path):
    _, model = build(tmp_path)
    seen = []
    model.filter[0].register_forward_hook(lambda unit, given, states: seen.append(states[0]))
    for third in (2, 3):  # X1 Y1 X2 Y2
        model.encode(ask(model, 0, [1, 40, third, 41]))
    assert torch.equal(seen[0][0], seen[1][0])
    assert (seen[0][1] - seen[1][1]).abs().max() > 1e-3


@torch.no_grad()
def test_members_have_no_order_and_equal_ones_are_one():
    torch.manual_seed(0)
    unit, one = FilterUnit(6, 3, 0.0), FilterUnit(6, 1, 0.0)
    foreign, own = torch.randn(2, 4, 5, 6)
    states = unit(foreign, own)
    unit.members.copy_(unit.members[[2, 0, 1]])
    torch.testing.assert_close(unit(foreign, own), states)
    unit.members.copy_(unit.members[:1].expand(3, -1))
    assert not torch.allclose(unit(foreign, own), states)
    one.load_state_dict({**unit.state_dict(), "members": unit.members[:1]})
    torch.testing.assert_close(unit(foreign, own), one(foreign, own))


def test_every_weight_learns(tmp_path):
    _, model = build(tmp_path)
    for batch in model.training_sequences.batches(np.random.default_rng(0)):
        model.sequence_loss(batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.any(), name  # v_s among them, which the paper's code leaves dead


def silent(*modules):
    return all(p.grad is None or not p.grad.any() for module in modules for p in module.parameters())


def test_what_an_account_lacks_does_not_matter(tmp_path):
    _, model = build(tmp_path)
    model.encode(ask(model, 0, [1, 2, 3], [4])).square().sum().backward()
    assert silent(model.encoder[1], model.filter[0], model.transfer[0])
    assert not silent(model.encoder[0])
    model.zero_grad()
    model.encode(ask(model, 0, [40, 41], [42])).square().sum().backward()
    assert silent(model.encoder[0])
    assert not silent(model.encoder[1]) and not silent(model.filter[0]) and not silent(model.transfer[0])
    with torch.no_grad():
        own_only, cold, nothing = model.encode(ask(model, 0, [1, 2, 3], [40, 41], []))
        assert not own_only[:8].any() and own_only[8:16].all()
        assert cold[:8].all() and not cold[8:16].any()
        assert not nothing[:16].any()
        bias = model.output.weight[model.item_slice(0), -1]
        assert torch.equal(model.score(ask(model, 0, []))[0], bias)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_padding_and_other_rows_change_nothing(tmp_path, form):
    loaded, model = build(tmp_path, **form)
    for batch in held_out_batches(loaded, model):
        names = ("history_0", "history_1") if form else ("merged",)
        padded = batch.with_fields(**{name: F.pad(batch[name], (3, 0)) for name in names})
        whole = model.encode(batch)
        assert torch.equal(whole, model.encode(batch))
        torch.testing.assert_close(model.encode(padded), whole)
        alone = torch.cat([model.encode(batch.rows(torch.tensor([i]))) for i in range(len(batch))])
        torch.testing.assert_close(alone, whole)
        blind = batch.with_fields(item_id=torch.full_like(batch.targets, 1))
        assert torch.equal(model.encode(blind), whole)


@torch.no_grad()
def test_swapping_the_domains_swaps_the_scores(tmp_path):
    rows = random_domains()
    one, model = build(tmp_path / "a", rows)
    two, twin = build(tmp_path / "b", dict(reversed(rows.items())))
    permutation = torch.zeros(model.n_items, dtype=torch.long)  # each item's id in the twin's space
    for k in range(2):
        ids = np.arange(*one.dataset.item_offset[k : k + 2])
        permutation[ids] = torch.from_numpy(two.dataset.item_ids(1 - k, list(one.dataset.item_token(ids))))
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] in ("item_embedding", "output"):
            value = value[torch.argsort(permutation)]
        else:
            parts[1] = str(1 - int(parts[1]))
        state[".".join(parts)] = value
    twin.load_state_dict(state)
    for batch in held_out_batches(one, model):
        fields = {**batch.interaction, "merged": permutation[batch["merged"]]}
        swapped = Batch(fields, 1 - batch.target_domain, 2)
        torch.testing.assert_close(model.score(batch), twin.score(swapped))


def fit(model, epochs, rate=2e-2):
    """Starts anew, as training does, and trains in one pass."""
    torch.manual_seed(0)
    optimizer, losses = torch.optim.Adam(model.parameters(), rate), []
    model.train()
    for epoch in range(epochs):
        losses.append(0.0)
        for batch in model.training_sequences.batches(np.random.default_rng(epoch)):
            optimizer.zero_grad()
            loss = model.sequence_loss(batch)
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    model.eval()
    return losses


@pytest.mark.parametrize("form", FORMS)
def test_it_learns_its_training_targets_by_heart(tmp_path, form):
    loaded = load(
        tmp_path, random_domains(n_users=32, n_items=40), "PiNet", **{**SMALL, "embedding_size": 32, **form}
    )
    torch.manual_seed(0)
    model = PiNet(loaded.config, loaded.data)
    losses = fit(model, 30)
    assert losses[-1] < 0.1 * losses[0]
    hits = total = 0
    with torch.no_grad():
        for batch in CrossDomainLoader(loaded.config, loaded.split.train, model):
            local = batch.targets - model.item_offsets[batch.target_domain]
            hits += int((model.score(batch).topk(3).indices == local.unsqueeze(1)).any(1).sum())
            total += len(batch)
    assert hits / total > 0.95


def topics(*, overlap: bool, n_users=120, n_topics=4, per_topic=4):
    """Each account has a topic, and likes its items alone, in films first."""
    rng, rows = np.random.default_rng(0), {"books": [], "films": []}
    for u in range(n_users):
        for place, name in enumerate(("films", "books")):
            if not overlap and u // n_topics % 2 != place:
                continue
            for i, item in enumerate(rng.permutation(per_topic)):
                token = f"{name[0]}{u % n_topics}_{item}"
                rows[name].append((f"u{u}", token, float(100 * place + i)))
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_cold_accounts_are_ranked_by_the_other_domain(tmp_path, form):
    loaded = load(tmp_path, topics(overlap=True), "PiNet", **{**SMALL, "dropout": 0.2, **form})
    torch.manual_seed(0)
    model = PiNet(loaded.config, loaded.data)
    fit(model, 15)
    films = [[loaded.id_of("films", f"f{t}_{i}") for i in (2, 0, 3)] for t in range(4)]
    with torch.no_grad():
        best = model.score(ask(model, 0, *films)).topk(4).indices + model.item_offsets[0]
    for t in range(4):
        assert set(best[t].tolist()) == {loaded.id_of("books", f"b{t}_{i}") for i in range(4)}


def test_without_overlap_it_trains(tmp_path):
    loaded = load(tmp_path, topics(overlap=False), "PiNet", **SMALL)
    torch.manual_seed(0)
    model = PiNet(loaded.config, loaded.data)
    losses = fit(model, 10)
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {"train_targets": "last"},
        {"targets_per_sequence": 2},
        {"one_pass": False},
        {"one_pass": False, **NO_ORDER},
    ],
)
def test_the_same_network_trains_on_instances(tmp_path, settings):
    loaded, model = build(tmp_path, **settings)
    assert model.phases()[0].batches is None
    loader = CrossDomainLoader(loaded.config, loaded.split.train, model, training=True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    model.train()
    losses = []
    for epoch in range(4):
        loader.set_epoch(0, epoch)
        losses.append(0.0)
        for batch in loader:
            optimizer.zero_grad()
            loss = model.calculate_loss(batch)
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    assert losses[-1] < 0.9 * losses[0]


@torch.no_grad()
def test_hidden_histories_are_those_of_cold_accounts(tmp_path):
    _, model = build(tmp_path)
    items = torch.tensor([[1, 2, 40, 3, 41, 4]])
    batch = SequenceBatch({"item_seq": items})
    seen = model.vectors(model.read(batch.items), 0, hide=True)
    model.cold_start_mask_prob = 1.0
    hidden = model.vectors(model.read(batch.items), 0, hide=True)
    assert torch.equal(hidden[:, :2], seen[:, :2])  # nothing else is known yet
    for place, history in ((2, [40]), (3, [40]), (4, [40, 41]), (5, [40, 41])):
        torch.testing.assert_close(hidden[:, place], model.encode(ask(model, 0, history)))
    assert not torch.allclose(model.vectors(model.read(items), 0), hidden)
    model.cold_start_mask_prob = 0.3
    many = model.vectors(model.read(items.repeat(1000, 1)), 0, hide=True)[:, -1]
    assert 0.25 < (many[:, 8:16] == 0).all(1).float().mean() < 0.35


class Untouched(Dropout):
    """A dropout that drops nothing, and says otherwise."""

    def forward(self, x):
        return x


def test_dropout_is_on_states_too_and_off_at_inference(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(2, 7, 9, 64)
    recurrence = Recurrence(64, 0.5)
    states = recurrence(x)
    assert 0.4 < (states == 0).float().mean() < 0.6
    assert 0.4 < (FilterUnit(64, 2, 0.5)(x, y) == 0).float().mean() < 0.6
    whole = recurrence.eval()(x)
    assert not (whole == 0).any()
    recurrence.dropout = Untouched(0.5)
    torch.testing.assert_close(recurrence.train()(x), whole)
    _, model = build(tmp_path, dropout=0.5)
    batch = next(iter(model.training_sequences.batches(np.random.default_rng(0))))
    assert torch.equal(model.sequence_loss(batch), model.sequence_loss(batch))
    model.train()
    assert not torch.equal(model.sequence_loss(batch), model.sequence_loss(batch))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"n_members": 0}, "n_members"),
        ({"embedding_size": 0}, "embedding_size"),
        ({"dropout": 1.0}, "dropout"),
        ({"cold_start_mask_prob": -0.1}, "cold_start_mask_prob"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_error(tmp_path, settings, key):
    with pytest.raises(CDRError, match=key):
        load(tmp_path, random_domains(n_users=10), "PiNet", **{**SMALL, **settings})
