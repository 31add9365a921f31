"""How fast the same SASRec weights are evaluated: RecBole's two ways and ours, in one run on one machine.

(a) RecBole's ``uni999``: its ``NegSampleEvalDataLoader`` repeats each user's sequence 1,000 times and its
    ``Trainer`` encodes every copy. Timed on a sample of users, as it manages a few a second.
(b) RecBole's ``full``: one encoding per user, all items scored and ranked.
(c) Ours: one encoding per user, the target and 999 negatives scored in one gathered product. The candidates
    are exact (never an item that the user touched) and drawn once; that time is shown by itself.

All use the same test users of one domain, history length, weights and number of threads. RecBole's parts are
its own, at its default batch size, on a ``SequentialDataset`` that it reads from an atomic file made for it.
Before any time is shown, (a) and (c) rank the *same* candidates, and their NDCG@10 and Hit@10 must agree.

    python benchmarks/evaluation_speed.py --dataset=food_kitchen

The dataset must be prepared (``recbole-cdr prepare food_kitchen --raw=DIR``). About a minute on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from recbole_cdr_ext import compat
from recbole_cdr_ext.splits.split import TrainingData

compat.apply()

from recbole.config import Config
from recbole.data import create_dataset, create_samplers
from recbole.data.dataloader import FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer

from recbole_cdr_ext.baselines.adapter import adapt
from recbole_cdr_ext.data.dataset import CrossDomainDataset
from recbole_cdr_ext.data.instances import Instances
from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.evaluation.metric_tables import RankingMetrics
from recbole_cdr_ext.evaluation.ranking import evaluate, popularity_scores
from recbole_cdr_ext.settings.config import CDRConfig
from recbole_cdr_ext.splits.loader import CrossDomainLoader
from recbole_cdr_ext.splits.maker import make_split
from recbole_cdr_ext.splits.sampler import Candidates, CrossDomainSampler
from recbole_cdr_ext.splits.split import Split

METRICS = ("ndcg@10", "hit@10")
# Two batchings of the same sums differ in the last bits, so a target may change places with its neighbour.
TOLERANCE = 1e-4
FILLER = "every item"


def main() -> None:
    """Runs the benchmark and prints the table."""
    arguments = parse_arguments()
    del sys.argv[1:]  # RecBole reads the command line of whatever runs it
    torch.set_num_threads(arguments.threads)
    data_path = arguments.data_path.resolve()
    ours = Ours(arguments, data_path)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
    ):  # RecBole writes logs where it runs
        theirs = Theirs(arguments, ours, Path(folder))
        ours.train(arguments.train_steps)
        theirs.take_weights(ours.wrapped)
        print_agreement(ours, theirs)
        # Each has run on a few users by now, so nothing is timed cold.
        sampled = theirs.seconds_sampled()
        full = statistics.median(theirs.seconds_full() for _ in range(arguments.repeat))
    drawing, candidates = timed(lambda: ours.candidates(ours.instances))
    ranking = statistics.median(ours.seconds(ours.instances, candidates) for _ in range(arguments.repeat))
    n = len(ours.instances)
    print_table(
        [
            ("(a) RecBole uni999", theirs.n_sample, sampled),
            ("(b) RecBole full", n, full),
            ("(c) ours, uni999", n, ranking),
            ("    with drawing the candidates", n, ranking + drawing),
        ]
    )
    print_memory(ours, candidates)


def parse_arguments() -> argparse.Namespace:
    """Returns the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="food_kitchen", help="a prepared dataset (default: %(default)s)")
    parser.add_argument(
        "--data-path", type=Path, default=Path("dataset_atomic"), help="its folder (default: %(default)s)"
    )
    parser.add_argument("--domain", help="which domain's items are ranked (default: the last one)")
    parser.add_argument("--split", default="leave_one_out", help="default: %(default)s")
    parser.add_argument(
        "--users-sample", type=int, default=60, help="users that (a) is timed on (default: %(default)s)"
    )
    parser.add_argument("--history", type=int, default=20, help="items of a history (default: %(default)s)")
    parser.add_argument("--hidden-size", type=int, default=128, help="d (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="medians of (b) and (c) over so many (default: %(default)s)"
    )
    parser.add_argument(
        "--train-steps", type=int, default=100, help="so that metrics are above 0 (default: %(default)s)"
    )
    return parser.parse_args()


# -- ours --------------------------------------------------------------------------------


class Ours:
    """Our data, SASRec in its adapter, and evaluation of one domain's test instances.

    Those with fewer than two items of history are left out: RecBole does not test them.
    """

    def __init__(self, arguments: argparse.Namespace, data_path: Path):
        self.config = CDRConfig(
            "SASRec",
            arguments.dataset,
            config_dict={
                "data_path": str(data_path),
                "split": arguments.split,
                "hidden_size": arguments.hidden_size,
                "inner_size": 4 * arguments.hidden_size,
                "max_history_length": arguments.history,
                "hidden_dropout_prob": 0.2,
                "attn_dropout_prob": 0.2,
                "use_gpu": False,
                "show_progress": False,
            },
        )
        self.dataset = CrossDomainDataset(self.config)
        self.split: Split = make_split(self.config, self.dataset)
        cls = adapt(SASRec)
        torch.manual_seed(2024)
        self.model = cls(self.config, TrainingData.of(self.dataset, self.split))
        self.domain = self.dataset.domain_index(arguments.domain or self.dataset.domains[-1])
        test = self.split.test
        self.instances = test.take((test.domain == self.domain) & (test.own_length >= 2))
        self.sampler = CrossDomainSampler(self.split, int(self.config["candidate_seed"]))
        self.popularity = popularity_scores(self.split)

    @property
    def wrapped(self) -> SASRec:
        """RecBole's model of the domain."""
        return self.model.wrapped[self.domain]

    def train(self, steps: int) -> None:
        """Trains for a few steps, so that targets are found at all."""
        own = self.split.train.take(self.split.train.domain == self.domain)
        loader = CrossDomainLoader(self.config, own, self.model, training=True)
        optimiser = torch.optim.Adam(self.wrapped.parameters(), lr=1e-3)
        self.model.train()
        with tqdm(total=steps, desc="training", ncols=80) as bar:
            for epoch in range(steps):
                loader.set_epoch(0, epoch)
                for batch in loader:
                    loss = self.model.calculate_loss(batch)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    bar.update()
                    if bar.n >= steps:
                        self.model.eval()
                        return

    def candidates(self, instances: Instances) -> Candidates:
        """Draws each instance's target and 999 negatives."""
        return self.sampler.candidates(instances, "uni999")

    def ranks(self, instances: Instances, candidates: Candidates) -> np.ndarray:
        """Returns the targets' ranks, (n,)."""
        loader = CrossDomainLoader(self.config, instances, self.model)
        return evaluate(self.model, instances, candidates, loader, self.popularity, self.config).rank

    def seconds(self, instances: Instances, candidates: Candidates) -> float:
        """Returns the time of ranking all instances and computing the metrics."""
        return timed(lambda: self.metrics(self.ranks(instances, candidates)))[0]

    def metrics(self, rank: np.ndarray) -> dict[str, float]:
        """Returns the means of the metrics."""
        values = RankingMetrics(self.config).per_instance(rank)
        return {name: float(np.mean(values[name])) for name in METRICS}


# -- RecBole's ---------------------------------------------------------------------------


class Theirs:
    """RecBole's data set, loaders, trainer and SASRec on the same users, histories and items."""

    def __init__(self, arguments: argparse.Namespace, ours: Ours, folder: Path):
        self._ours = ours
        name = ours.dataset.domains[ours.domain]
        write_atomic_file(ours, arguments.history, folder / name / f"{name}.inter")
        self.config = Config(
            model="SASRec",
            dataset=name,
            config_dict={
                "data_path": str(folder),
                "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
                "MAX_ITEM_LIST_LENGTH": arguments.history,
                "train_neg_sample_args": None,
                "eval_args": {"mode": "uni999", "order": "TO", "split": {"LS": "test_only"}},
                "metrics": ["NDCG", "Hit"],
                "topk": [10],
                "valid_metric": "NDCG@10",
                "metric_decimal_place": 6,
                "hidden_size": arguments.hidden_size,
                "inner_size": 4 * arguments.hidden_size,
                "use_gpu": False,
                "gpu_id": "",
                "state": "ERROR",
                "show_progress": False,
            },
        )
        torch.set_num_threads(arguments.threads)
        dataset = create_dataset(self.config)
        built = dataset.build()
        self.test = built[2]
        self._sampler = create_samplers(self.config, dataset, built)[2]
        self.model = SASRec(self.config, dataset)
        self.trainer = Trainer(self.config, self.model)
        # RecBole numbers items and users in the order in which it met them: to ours and back.
        tokens = dataset.field2id_token
        self.to_ours = np.array([0, *map(int, tokens["item_id"][1:])])
        self.to_theirs = np.argsort(self.to_ours)
        rows = [-1 if token in ("[PAD]", FILLER) else int(token) for token in tokens["user_id"]]
        self.row_of_user = np.array(rows)
        kept = self.row_of_user[self.test.inter_feat["user_id"].numpy()] >= 0
        self.test = self.test.copy(self.test.inter_feat[torch.from_numpy(kept)])
        if len(self.test) != len(ours.instances):
            raise CDRError(f"RecBole made {len(self.test)} test users of {len(ours.instances)}.")
        chosen = np.random.default_rng(0).permutation(len(self.test))[: arguments.users_sample]
        self.sample = self.test.copy(self.test.inter_feat[torch.from_numpy(np.sort(chosen))])
        self.sample_rows = self.row_of_user[self.sample.inter_feat["user_id"].numpy()]
        self.n_sample = len(self.sample)

    def take_weights(self, weights: SASRec) -> None:
        """Copies our weights, each item's vector to RecBole's id of the item."""
        state = weights.state_dict()
        state["item_embedding.weight"] = state["item_embedding.weight"][torch.from_numpy(self.to_ours)]
        self.model.load_state_dict(state)
        self.model.eval()

    def sampled_loader(self, sampler) -> NegSampleEvalDataLoader:
        """RecBole's loader for uni999 over the sample."""
        return NegSampleEvalDataLoader(self.config, self.sample.copy(self.sample.inter_feat), sampler)

    def seconds_sampled(self) -> float:
        """Returns the time that RecBole takes for uni999 on the sample."""
        loader = self.sampled_loader(self._sampler)
        print(f"RecBole's uni999 on {self.n_sample} users ...", file=sys.stderr)
        return timed(lambda: self.trainer.evaluate(loader, load_best_model=False, show_progress=True))[0]

    def seconds_full(self) -> float:
        """Returns the time that RecBole takes to rank all items for all users."""
        loader = FullSortEvalDataLoader(self.config, self.test, self._sampler)
        return timed(lambda: self.trainer.evaluate(loader, load_best_model=False, show_progress=True))[0]

    def metrics_on(self, candidates: np.ndarray) -> dict[str, float]:
        """Returns RecBole's metrics on given candidates, (n_sample, 1000) of our ids, the target first."""
        own_first = self._ours.dataset.item_range(self._ours.domain).start
        negatives = self.to_theirs[candidates[:, 1:] - own_first + 1]
        sampler = GivenNegatives(
            dict(zip(self.sample_rows.tolist(), negatives, strict=True)), self.row_of_user
        )
        return dict(self.trainer.evaluate(self.sampled_loader(sampler), load_best_model=False))


class GivenNegatives:
    """Takes the place of RecBole's sampler, and hands out negatives that were drawn before."""

    phase = "test"

    def __init__(self, negatives: dict[int, np.ndarray], row_of_user: np.ndarray):
        self._negatives, self._row_of_user = negatives, row_of_user

    def sample_by_user_ids(self, user_ids, item_ids, num):
        """RecBole's interface; RecBole asks for one user at a time."""
        (user,) = user_ids
        return torch.from_numpy(self._negatives[int(self._row_of_user[user])][:num])


def write_atomic_file(ours: Ours, max_length: int, path: Path) -> None:
    """Writes what RecBole cuts our instances from: each row's history and its target, as one user's sequence.

    A user is called by the row of the instance, an item by its number within the domain. One more user
    touches every item, so that RecBole knows all of them.
    """
    path.parent.mkdir()
    first = ours.dataset.item_range(ours.domain).start
    n_items = ours.dataset.n_domain_items(ours.domain)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"{FILLER}\t{item}\t{item}" for item in range(1, n_items + 1)]
    for row in range(len(ours.instances)):
        history = ours.instances.history(row, ours.domain)[-max_length:]
        sequence = np.append(history, ours.instances.target[row]) - first + 1
        lines += [f"{row}\t{item}\t{place}" for place, item in enumerate(sequence)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- measuring and printing --------------------------------------------------------------


def timed(function: Callable) -> tuple[float, object]:
    """Returns (seconds, result)."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def print_agreement(ours: Ours, theirs: Theirs) -> None:
    """Compares the metrics of both on the same candidates, and stops if they differ."""
    instances = ours.instances.take(theirs.sample_rows)
    candidates = ours.candidates(instances)
    block = candidates.block(np.arange(len(instances)))
    if (block == 0).any():
        raise CDRError(
            "The domain has fewer than 1,000 items for some user: RecBole would draw other candidates."
        )
    mine, other = ours.metrics(ours.ranks(instances, candidates)), theirs.metrics_on(block)
    print(f"\nThe same candidates, {len(instances)} users: ours / RecBole's")
    for name in METRICS:
        print(f"  {name:8} {mine[name]:.6f} / {float(other[name]):.6f}")
        if abs(mine[name] - float(other[name])) > TOLERANCE:
            raise CDRError(f"{name} differs: the two do not evaluate the same thing.")


def print_table(rows: list[tuple[str, int, float]]) -> None:
    """Prints users per second, and ratios to RecBole's two ways."""
    speed = [n / seconds for _, n, seconds in rows]
    print(f"\n{'':34}{'users':>8}{'seconds':>10}{'users/s':>12}{'× (a)':>10}{'× (b)':>8}")
    for (name, n, seconds), rate in zip(rows, speed, strict=True):
        print(f"{name:34}{n:8,}{seconds:10.2f}{rate:12,.1f}{rate / speed[0]:10,.0f}{rate / speed[1]:8.2f}")


def print_memory(ours: Ours, candidates: Candidates) -> None:
    """Prints how the peak of private memory during (c) grows when the number of users is doubled."""
    doubled = ours.instances.take(np.tile(np.arange(len(ours.instances)), 2))
    peaks = []
    for instances, drawn in ((ours.instances, candidates), (doubled, ours.candidates(doubled))):
        with peak_memory() as peak:
            ours.ranks(instances, drawn)
        peaks.append(peak[0])
    if min(peaks) == 0:
        print("\nMemory is only measured on Linux, whose /proc/self/status tells it.")
        return
    print(
        f"\nPeak private memory of the process during (c): {peaks[0]:,.0f} MiB for {len(ours.instances):,} "
        f"users, {peaks[1]:,.0f} MiB for {len(doubled):,} ({peaks[1] - peaks[0]:+.1f}).\n"
        "The candidates lie in a mapped file."
    )


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Gives a list whose one entry is, on leaving, the peak of the process's private memory in MiB."""
    peak, done = [_private_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _private_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _private_memory() -> float:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next(
        (int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0.0
    )


if __name__ == "__main__":
    try:
        main()
    except CDRError as error:
        sys.exit(f"error: {error}")
