"""Compare ways to store embedding tables (arXiv 1909.02107, 1909.11810): the same DLRM on the same rows with each.

    python recipes/compare_embeddings.py                                            # the demo, on synthetic rows
    torchrun --standalone --nproc_per_node 2 recipes/compare_embeddings.py sweep    # every way, size and threshold
    python recipes/compare_embeddings.py frontier     # equal bytes, from 2 to 10,000 times fewer, in half an hour
    python recipes/compare_embeddings.py drift        # ids that come and go: managed tables and hashes at equal bytes
    python recipes/compare_embeddings.py criteo-kaggle --data synthetic --count     # sizes alone, of a preset's shape

It writes results.md, quality.png and results.jsonl; the same command resumes from results.jsonl.
Expected: AUC of the demo, ± .001 to .003, in five minutes on 2 CPU cores: plain and mixed-dims .819, crt-mult .815,
qr-mult .814, radix3-mult .812, path-64 .808, qr-features .800, qr-concat (half the parameters) and qr-add .794, hash
.792. The model that labels the demo's rows draws the effect of every id separately, so every id needs a vector of its
own. Mult and path give one. Concat, add and features become sums over the classes once they reach the dots, so they
do not; on Criteo they do well. The labelling model has two numbers per id, so dim 4 loses nothing.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.synthetic.specs import Drift, demo_spec, drift_spec
from dlrm_torchrec.datasets.windows.config import WindowsConfig
from dlrm_torchrec.embeddings.comparison.sweep import Sweep
from dlrm_torchrec.embeddings.comparison.ways import ENDLESS, FRONTIER, PAPERS, WAYS
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule

# primes, which no number of collisions divides, on both sides of each of the paper's thresholds
STAGE = partial(demo_spec, one_hot=(13, 151, 499, 997, 2003, 5003, 10_007, 20_011), multi_hot=(997,))
MILLION = (13, 151, 997, 3001, 10_007, 30_011, 100_003, 300_007, 1_000_003)
LARGE = partial(demo_spec, one_hot=MILLION, multi_hot=(997,), encoding="vocab")  # ids in order of frequency


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder (see data/), or 'synthetic' for rows labelled by a known model.
    shape: Suppress[DatasetSpec] = field(default_factory=STAGE)  # Shape of the synthetic rows.
    data_seed: int = 0  # Seed of the synthetic rows and of the model that labels them, or of the order of rows.
    grouped: float = 0.0  # Share of synthetic ids' effects that ids of a hidden group have in common; 0 means none.
    days: int = 0  # Synthetic days, each judged by the model of the days before it; 0 means one set of rows.
    drift: Drift = Drift()  # How synthetic days differ from each other.
    rows: int = 819_200  # Number of synthetic training rows per epoch and day; a prepared folder has its own.
    epochs: int = 1  # Number of passes over the training rows.
    batch_size: int = 2048  # Rows of a global batch, over all ranks together.
    bottom: tuple[int, ...] = (64, 16)  # Widths of the bottom MLP's layers; the last one is the dim of the tables.
    top: tuple[int, ...] = (64, 32, 1)  # Widths of the top MLP's layers; the last one is 1, the logit.
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.1)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # Warm-up and decay.
    sweep: Sweep = Sweep()  # Which ways to store tables are compared, at which sizes.
    seeds: tuple[int, ...] = (0, 1, 2)  # Seeds of the initial weights; every variant is trained once with each.
    count: bool = False  # Print how many parameters the variants have, and train nothing.
    save: bool = False  # Save a checkpoint of each run, from which recipes/cluster_tables.py makes clusters.
    run_dir: str = "runs/compare_embeddings"  # Folder of runs; the preset's name is appended.
    debug: bool = False  # Show the call stack of every error.


SWEEP = Sweep(
    ways=tuple(PAPERS), collisions=(2, 3, 4, 5, 6, 7, 60), thresholds=(20, 200, 2000, 20_000),
    alphas=(0.05, 0.1, 0.2, 0.3),
)  # fmt: skip
ADAGRAD = OptimizerConfig(kind="adagrad", lr=0.01, eps=1e-10)
PRESETS = {
    "demo": Config(sweep=Sweep(ways=tuple(way for way in PAPERS if way == "path-64" or "path" not in way))),
    "sweep": Config(sweep=SWEEP),
    "frontier": Config(shape=LARGE(), rows=1_638_400, sweep=Sweep(ways=FRONTIER, ratios=(2, 10, 30, 100, 1000, 10000))),
    "drift": Config(  # ids that come and go, and have no end
        shape=drift_spec(encoding="managed"), days=15, rows=102_400, batch_size=512,
        dense=OptimizerConfig(kind="adam", lr=0.002), schedule=Schedule(warmup_steps=50),
        sweep=Sweep(ways=ENDLESS, ratios=(2, 4, 8))),
    "criteo-kaggle": Config(  # arXiv 1909.02107, section 5
        data="prepared/criteo-kaggle", shape=criteo_kaggle_spec(), batch_size=128, bottom=(512, 256, 64, 16),
        top=(512, 256, 1), sparse=ADAGRAD, dense=ADAGRAD, schedule=Schedule(), sweep=SWEEP, seeds=(0, 1, 2, 3, 4)),
}  # fmt: skip

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

from itertools import pairwise, product
from statistics import mean

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.open import load_spec, open_streams
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.drift import DayStream
from dlrm_torchrec.datasets.windows.open import list_windows
from dlrm_torchrec.embeddings.comparison.report import to_markdown, write_report
from dlrm_torchrec.embeddings.comparison.variants import Runs, Variant, variants
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.terminal.closing import say_closing
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.log import RunLog, prefixed
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import between_streams, train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import World, join_world


def train(
    cfg: Config, spec: DatasetSpec, variant: Variant, *, seed: int, world: World, log: RunLog
) -> dict[str, float]:
    torch.manual_seed(seed)
    tables = build_tables(spec.tables(dim=cfg.bottom[-1]), variant.tables)
    dlrm = DLRM(tables, len(spec.dense), list(cfg.bottom), list(cfg.top))
    model = BinaryRankingTask(dlrm, world.size, device=world.device)
    optimize_tables_in_backward(tables, cfg.sparse)
    topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
    share = cfg.batch_size // world.size  # rows of one rank
    plan = make_plan(model, tables, topology, ShardingConfig(), batch_size=share, spec=spec, group=world.control)
    model = DistributedModelParallel(
        model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
    )
    initialize_tables(model, seed=seed)
    optimizer = build_optimizer(model, cfg.sparse, cfg.dense)

    ranks = Ranks(cfg.batch_size, world.rank, world.size)
    if cfg.days:
        shape = WindowsConfig(days=cfg.days, drift=cfg.drift)
        _, days = list_windows(cfg.data, spec, shape, rows=cfg.rows, seed=cfg.data_seed)
        parts = [
            (day.train(ranks, epochs=cfg.epochs, seed=cfg.data_seed, lanes=world.size), after.evaluation(ranks))
            for day, after in pairwise(days)
        ]
    else:
        streams = open_streams(
            cfg.data, spec, ranks, rows=cfg.rows, epochs=cfg.epochs, seed=cfg.data_seed, lanes=world.size,
            grouped=cfg.grouped,
        )  # fmt: skip
        parts = [(streams["train"], streams["val"])]
    num_steps, step, found = sum(stream.num_steps for stream, _ in parts), 0, []
    learning_rate, pipeline = (
        ScheduledLearningRate(optimizer, cfg.schedule, num_steps),
        train_pipeline(model, optimizer, world),
    )
    log.start(0, num_steps)
    for stream, val in parts:
        batches = stream.batches()
        for _ in range(stream.num_steps):
            learning_rate.set(step)
            loss, _, global_rows = pipeline.progress(batches)
            step += 1
            log.step(step, loss, global_rows)
        with log.paused(), between_streams(pipeline) as detached:
            scores = evaluate(detached, val.batches(), world, learned=cfg.schedule.settled(step))
        best = {"teacher/auc": val.best_auc()} if isinstance(val, SyntheticStream | DayStream) else {}
        found.append(prefixed("val/", scores) | best)
    log.stop(num_steps, is_over=True)
    if cfg.save:
        end = Progress(identity={}, lanes=world.size, step=num_steps)
        Checkpoints(f"{log.folder}/checkpoints", CheckpointConfig(), world, say=log.say).finish(model, optimizer, end)
    metrics = {name: mean(each[name] for each in found) for name in found[0]} | {"steps": num_steps}
    return log.finish(metrics)


def main(preset: str, cfg: Config) -> dict[str, float]:
    spec = load_spec(cfg.data, cfg.shape)
    require(spec, "compare_embeddings", weights=True)
    compared = variants(cfg.sweep, WAYS, spec.tables(dim=cfg.bottom[-1]))
    if cfg.count:
        print(to_markdown(compared))
        return {variant.name: variant.parameters for variant in compared}
    run_dir = f"{cfg.run_dir}/{preset}"
    with join_world(cfg.data_seed) as world:
        alike = asdict(replace(cfg, shape=spec, sweep=Sweep(), seeds=(), run_dir=""))  # what all runs have in common
        del alike["debug"], alike["save"]
        alike |= {"ranks": world.size, "device": world.device.type}
        runs = Runs(run_dir, alike, cfg.seeds, write=world.is_main)
        for seed, variant in product(cfg.seeds, compared):
            if not runs.finished(variant, seed):
                folder = f"{run_dir}/{variant.name}/seed-{seed}"
                log = RunLog(folder, LogConfig(every=200), world, {**alike, **asdict(variant), "seed": seed})
                log.say(f"{variant.name}, seed {seed}: {variant.parameters:,} parameters of tables")
                runs.add(variant, seed, train(cfg, spec, variant, seed=seed, world=world, log=log))
        metrics = {variant.name: mean(runs.values(variant, "val/auc")) for variant in compared}
        if world.is_main:
            print(write_report(run_dir, compared, runs))
            say_closing(wrote=[f"{run_dir}/results.md", f"{run_dir}/quality.png"])
            print(json.dumps(metrics))
        return metrics


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
