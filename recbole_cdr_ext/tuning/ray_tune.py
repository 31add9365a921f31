"""The part of a sweep that Ray Tune does: starting or joining Ray, proposing settings, running trials, ending them.

Whoever imports this has Ray; see :func:`recbole_cdr_ext.tuning.sweep.require`.
"""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np

# Read by Ray when it is imported, or begins.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",
    # Ray's state is small, and what it has not written is what a killed driver forgets.
    "TUNE_GLOBAL_CHECKPOINT_S": "0.5",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
os.environ.update({name: value for name, value in _QUIET.items() if name not in os.environ})

import ray
from ray import tune
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining

from recbole_cdr_ext.errors import CDRError
from recbole_cdr_ext.tuning.records import (
    Record,
    best_first,
    end_trial,
    records,
    score,
    shown,
    state,
    trial_table,
)
from recbole_cdr_ext.tuning.space import Parameter, Space
from recbole_cdr_ext.tuning.trial import Shared, run_trial

if TYPE_CHECKING:
    from recbole_cdr_ext.tuning.sweep import Sweep

RAY = "ray"  # the folder of Ray's own state
REDUCTION = 3  # of the trials that reach a rung of asha, one in this many goes on
RESTARTS = 3  # of a trial whose process was killed
CLUSTER_TIMEOUT = 5.0  # seconds
SECONDS_BETWEEN_TABLES = 10.0


# -- Ray ------------------------------------------------------------------------------------------------------------


def check_address(address: str) -> None:
    """Makes sure that somebody answers at a cluster's address; Ray itself would wait for minutes.

    Raises:
        CDRError: nobody does, or it is no HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise CDRError(f"ray_address={address} should be HOST:PORT, as `ray start --head` prints it.")
    try:
        socket.create_connection((host, int(port)), CLUSTER_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise CDRError(
            f"No Ray cluster answers at {address} ({error}): start one with `ray start --head`, mend --ray_address, "
            "or leave it out to compute on this machine."
        ) from error


@contextmanager
def _connected(options: Mapping[str, Any], use_gpu: bool) -> Iterator[None]:
    """Has Ray running for as long as a sweep lasts; one that runs already is used, and left running."""
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if options["ray_address"]:
            ray.init(address=str(options["ray_address"]), **quiet)
        else:
            processors = len(os.sched_getaffinity(0))
            requested = math.ceil((options["jobs"] or 1) * options["cpus_per_trial"])
            with _import_path():
                ray.init(
                    address="local",
                    num_cpus=max(processors, requested),
                    num_gpus=None if use_gpu else 0,
                    include_dashboard=bool(options["dashboard"]),
                    dashboard_host="127.0.0.1",
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        hint = ""
        if options["ray_address"] and os.environ.get("RAY_AUTH_MODE") != "token":
            hint = (
                ". Newer clusters ask for a token: if this one does, put the head's ~/.ray/auth_token in the same "
                "place here and set RAY_AUTH_MODE=token"
            )
        raise CDRError(f"Ray could not be started or joined: {' '.join(str(error).split())}{hint}") from error
    try:
        if options["dashboard"]:
            print(f"Ray's dashboard: http://{ray.get_runtime_context().worker.node.webui_url}")
        yield
    finally:
        ray.shutdown()


@contextmanager
def _import_path() -> Iterator[None]:
    """Has processes that are started meanwhile find what this one can import, a checkout or a user's own model."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _check_resources(options: Mapping[str, Any]) -> None:
    """Raises a CDRError where no machine has what a trial asks for: Ray would wait for one to come."""
    for key, name in (("cpus_per_trial", "CPU"), ("gpus_per_trial", "GPU")):
        most = max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
        if options[key] > most:
            raise CDRError(f"{key}={options[key]:g}, and the largest machine has {most:g}.")


# -- the search -----------------------------------------------------------------------------------------------------


def search(sweep: Sweep, shared: Shared, n_trials: int) -> None:
    """Runs trials until all have ended, from where the sweep in the folder stood."""
    options = sweep.options
    with _connected(options, bool(sweep.machine["use_gpu"])):
        _check_resources(options)
        trainable = tune.with_resources(
            tune.with_parameters(_trial, shared=shared, proposal=_Proposal.of(sweep)),
            {"cpu": options["cpus_per_trial"], "gpu": options["gpus_per_trial"]},
        )
        _tuner(sweep, trainable, n_trials).fit()


def _tuner(sweep: Sweep, trainable: Any, n_trials: int) -> Tuner:
    place = sweep.folder / RAY
    if Tuner.can_restore(str(place)) and any(place.glob("experiment_state-*.json")):
        try:
            return Tuner.restore(str(place), trainable, resume_unfinished=True)
        except Exception as error:  # a state that was cut short: whatever Ray's reading of it raises
            logging.getLogger().warning("Ray's state in %s is not used: %s", place, error)
    options, mode = sweep.options, "max" if sweep.larger_is_better else "min"
    kinds: dict[str, Any] = {}
    param_space: dict[str, Any] = {}
    if sweep.plan:
        param_space = {"number": tune.grid_search(list(range(len(sweep.plan))))}
        n_trials = 1
    elif options["search"] == "optuna":
        kinds["search_alg"] = _optuna(sweep, mode)
    if options["scheduler"] == "asha":
        longest = _longest(sweep)
        kinds["scheduler"] = AsyncHyperBandScheduler(
            time_attr="epoch",
            max_t=longest,
            grace_period=min(int(options["grace_epochs"]), longest),
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
    elif options["scheduler"] == "pbt":
        random.seed(int(options["search_seed"]))
        kinds["scheduler"] = PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=int(options["grace_epochs"]),
            hyperparam_mutations={"settings": _mutations(sweep.space, int(options["search_seed"]))},
            custom_explore_fn=_Clip(sweep.space),
            require_attrs=False,
        )
    return Tuner(
        trainable,
        param_space=param_space,
        tune_config=TuneConfig(
            metric="score",
            mode=mode,
            num_samples=n_trials,
            max_concurrent_trials=options["jobs"],
            # A process that has imported torch takes the next trial.
            reuse_actors=True,
            **kinds,
        ),
        run_config=RunConfig(
            name=RAY,
            storage_path=str(sweep.folder),
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=4 if options["scheduler"] == "pbt" else None),
            callbacks=[Watch(sweep.folder, tuple(sweep.space.keys), sweep.larger_is_better)],
            verbose=0,
        ),
    )


def _longest(sweep: Sweep) -> int:
    """Returns the most epochs that a trial can take, by ``epochs``."""
    searched = [p for p in sweep.space.parameters if p.key == "epochs"]
    return max(1, int(max(searched[0].extremes()) if searched else sweep.config["epochs"]))


def _optuna(sweep: Sweep, mode: str) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(sweep.options["search_seed"])
    sampler = optuna.samplers.TPESampler(seed=seed)
    return OptunaSearch(space=_Suggest(sweep.space, sweep.fixed), metric="score", mode=mode, sampler=sampler)


@dataclass(frozen=True)
class _Suggest:
    """Asks Optuna for the settings whose conditions hold."""

    space: Space
    fixed: Mapping[str, Any]

    def __call__(self, trial: Any) -> dict[str, Any]:
        return {
            f"settings/{key}": value
            for key, value in self.space.choose(
                lambda parameter: _suggested(trial, parameter), self.fixed
            ).items()
        }


def _suggested(trial: Any, parameter: Parameter) -> Any:
    name = f"settings/{parameter.key}"
    if parameter.kind == "int":
        return trial.suggest_int(name, *parameter.values)
    if parameter.kind in ("uniform", "loguniform"):
        return trial.suggest_float(name, *parameter.values, log=parameter.kind == "loguniform")
    listed = parameter.listed() or []
    if parameter.kind == "quniform":
        return listed[trial.suggest_int(name, 0, len(listed) - 1)]
    # By place: Optuna's categories are numbers and text, and a setting may be a list.
    return listed[trial.suggest_categorical(name, list(range(len(listed))))]


def _mutations(space: Space, seed: int) -> dict[str, Any]:
    """Returns what PBT draws settings from: lists, along which it steps, and functions, whose values it scales."""
    rng = np.random.default_rng(seed)
    return {p.key: p.listed() or _Draw(p, rng) for p in space.parameters}


@dataclass(frozen=True)
class _Draw:
    parameter: Parameter
    rng: np.random.Generator

    def __call__(self) -> Any:
        return self.parameter.draw(self.rng)


@dataclass(frozen=True)
class _Clip:
    """Brings settings that PBT has scaled back into the space."""

    space: Space

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        values = config["settings"]
        config["settings"] = {p.key: p.clip(values[p.key]) for p in self.space.parameters}
        return config


# -- a trial --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Proposal:
    """How a trial reads what Ray proposes."""

    space: Space
    fixed: Mapping[str, Any]
    gpus: float
    moves: bool  # whether trials go on from one another's checkpoints

    @classmethod
    def of(cls, sweep: Sweep) -> _Proposal:
        gpus = float(sweep.options["gpus_per_trial"])
        return cls(sweep.space, sweep.fixed, gpus, sweep.options["scheduler"] == "pbt")


def _trial(config: dict[str, Any], shared: Shared, proposal: _Proposal) -> None:
    """Runs one trial in a process of Ray's."""
    name = trial_name(config, tune.get_context().get_trial_id())
    if "number" in config:
        searched = shared.plan[config["number"]]
    else:
        proposed = config["settings"]
        searched = proposal.space.choose(lambda parameter: proposed[parameter.key], proposal.fixed)
    if proposal.gpus and shared.machine["use_gpu"]:
        # Ray says which one is this trial's.
        mine = os.environ.get("CUDA_VISIBLE_DEVICES", str(shared.machine["gpu_id"]))
        shared = replace(shared, machine={**shared.machine, "gpu_id": mine})

    def report(progress: dict[str, Any]) -> None:
        if "failed" in progress:
            progress = {"epoch": 0, "score": math.nan, **progress}
        moves = proposal.moves and "failed" not in progress and (shared.folder / name / "last.pth").exists()
        tune.report(
            progress, checkpoint=tune.Checkpoint.from_directory(shared.folder / name) if moves else None
        )

    donor = tune.get_checkpoint() if proposal.moves else None
    if donor is None:
        run_trial(shared, name, searched, report)
    else:
        with donor.as_directory() as folder:
            run_trial(shared, name, searched, report, Path(folder))


def trial_name(config: Mapping[str, Any], trial_id: str) -> str:
    """Returns a trial's name: its number, which no restart changes, where settings are drawn beforehand; or Ray's."""
    return f"{config['number']:04d}" if "number" in config else trial_id


# -- what is seen of it ---------------------------------------------------------------------------------------------


class Watch(Callback):
    """Notes what has ended, and says so; on a terminal it shows a table now and then.

    Ray stores it with its own state, and takes it from there when a sweep goes on.
    """

    def __init__(self, folder: Path, keys: tuple[str, ...], larger_is_better: bool):
        self.folder, self.keys, self.larger_is_better = folder, keys, larger_is_better
        self._shown = 0.0
        self._changed = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": 0.0, "_changed": False}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Has Ray start nothing again that raised: it would raise again. What was killed is started again."""
        self._changed = True
        if "failed" in result:
            trial.max_failures = 0

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Has Ray start a trial once more at most that could not even begin, for what is no killed process."""
        if not _process_died(_error_text(trial)):
            trial.max_failures = 0

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Notes a trial that has ended by itself, or was ended by the scheduler."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Notes a trial that has failed."""
        self._end(trial, _reason(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Shows the table, if that is due."""
        now = monotonic()
        if not self._changed or not sys.stdout.isatty() or now - self._shown < SECONDS_BETWEEN_TABLES:
            return
        self._shown, self._changed = now, False
        print(
            trial_table(best_first(records(self.folder), self.larger_is_better), self.keys) + "\n", flush=True
        )

    def _end(self, trial: Trial, reason: str = "") -> None:
        record = end_trial(self.folder, trial_name(trial.config, trial.trial_id), reason)
        if record is not None:
            print(self._line(record), flush=True)

    def _line(self, record: Record) -> str:
        settings = ", ".join(
            f"{key}={shown(record.settings[key])}" for key in self.keys if key in record.settings
        )
        return f"trial {record.trial}: {score(record)} after {record.epochs} epochs, {state(record)} ({settings})"


def _reason(trial: Trial) -> str:
    """Returns why Ray gave a trial up that has noted no reason itself."""
    text = _error_text(trial)
    if "OutOfMemoryError" in text:
        return "out of memory: the machine had none left, and Ray ended the trial's process"
    if _process_died(text):
        return f"its process died {RESTARTS + 1} times (killed, out of memory, or a crash outside of Python)"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "Ray gave it up"


def _process_died(text: str) -> bool:
    return any(sign in text for sign in ("ActorDied", "ActorUnavailable", "died unexpectedly", "actor died"))


def _error_text(trial: Trial) -> str:
    """Returns what Ray has noted of a trial's last failure."""
    try:
        text = Path(trial.error_file or "").read_text(encoding="utf-8")
    except OSError:
        return ""
    return text[text.rfind("Failure #") :]
