"""Train DLRM with compositional tables (arXiv 1909.02107): a quarter of the rows, sharded like any other table.

    python recipes/train_dlrm_compositional.py                                          # one process
    torchrun --standalone --nproc_per_node 2 recipes/train_dlrm_compositional.py demo   # two
    python recipes/train_dlrm_compositional.py --tables.kind hash                       # the baseline that it beats

Expected: with 29 % of the rows, the demo reaches 97.8 % of the best possible gain over AUC 0.5; plain tables reach
98.3 %, and hashed tables of the same size 96.3 %.
What differs from train_dlrm.py: the default of 'tables', and the presets. Every training recipe takes --tables.*.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.protocols import criteo_1tb_spec, criteo_kaggle_spec
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import automatic, fit_to_rows


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder (see data/), or 'synthetic' for rows labelled by a known model.
    shape: Suppress[DatasetSpec] = field(default_factory=demo_spec)  # Shape of the synthetic rows.
    rows: int = 2_457_600  # Number of synthetic training rows per epoch; a prepared folder has its own.
    epochs: int = 1  # Number of passes over the training rows; 0 means by their number.
    batch_size: int = 2048  # Rows of a global batch, over all ranks together; 0 means by the number of rows.
    bottom: tuple[int, ...] = (64, 16)  # Widths of the bottom MLP's layers; the last one is the dim of the tables.
    top: tuple[int, ...] = (64, 32, 1)  # Widths of the top MLP's layers, to 1; none means by the number of rows.
    interaction: Literal["dot", "cat"] = "dot"  # Input of the top MLP: dot products of all pairs, or the vectors.
    eval_every: int = 300  # Steps between evaluations; 0 means only at the end.
    run_dir: str = "runs/train_dlrm_compositional"  # Folder of runs; the preset's name is appended.
    baseline: str = ""  # Folder of a finished run, whose metrics are shown beside this run's; empty means none.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig(kind="quotient_remainder", collisions=4, threshold=900)  # How they are stored.
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.1)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


SGD = partial(OptimizerConfig, kind="sgd")
PRESETS = {
    "demo": automatic(Config()),  # prepared data by the number of rows, synthetic data as above
    "criteo-kaggle": Config(  # 135 M parameters for 540 M
        data="prepared/criteo-kaggle", shape=criteo_kaggle_spec(), batch_size=128, bottom=(512, 256, 64, 16),
        top=(512, 256, 1), sparse=SGD(lr=0.1), dense=SGD(lr=0.1), schedule=Schedule(), eval_every=10_240,
        checkpoint=CheckpointConfig(every=10_240)),
    "criteo-1tb": Config(data="prepared/criteo-1tb",  # 6.5 billion parameters for 26
        shape=criteo_1tb_spec(), batch_size=55_296, bottom=(512, 256, 128), top=(1024, 1024, 512, 256, 1),
        sparse=SGD(lr=24.0), dense=SGD(lr=24.0), checkpoint=CheckpointConfig(every=3793, asynchronous=True),
        schedule=Schedule(warmup_steps=2750, decay_start=49_315, decay_steps=27_772), eval_every=3793),
}  # fmt: skip

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.open import first_outputs, open_streams
from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.models.dlrm_cat import DLRMCat
from dlrm_torchrec.models.heads import add_heads
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.modules.fastest_update import sorting_pays
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.baseline import read_baseline
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.identity import identity_of
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.log import RunLog, prefixed
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import TASKS, RankingTask
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, Tables]:
    tables = build_tables(spec.tables(dim=cfg.bottom[-1]), cfg.tables)
    kind = DLRM if cfg.interaction == "dot" else DLRMCat
    model = kind(tables, len(spec.dense), list(cfg.bottom), list(cfg.top))
    add_heads(model, first_outputs(cfg.data, spec))
    optimize_tables_in_backward(tables, cfg.sparse)
    return TASKS[spec.target](model, world_size, spec.label_names, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    data = summarise(cfg.data, cfg.shape)  # refuses data that cannot be trained on or judged
    cfg, reasons = fit_to_rows(cfg, data)
    spec, run_dir, baseline = data.spec, f"{cfg.run_dir}/{preset}", read_baseline(cfg.baseline, data.digest)
    with join_world(cfg.seed) as world:
        log = RunLog(run_dir, cfg.log, world, {"preset": preset, **asdict(replace(cfg, shape=spec))})
        log.say(reasons)
        checkpoints = Checkpoints(f"{run_dir}/checkpoints", cfg.checkpoint, world, say=log.say)

        # build the model with its tables on meta, plan who holds which piece of them, and only then allocate them
        model, tables = build(cfg, spec, world.size, world.device)
        share = cfg.batch_size // world.size  # rows of one rank
        log.model(describe_model(model, tables, spec, sparse=cfg.sparse.kind, dense=cfg.dense.kind))
        sorting = partial(sorting_pays, tables, spec, share)
        speed = set_speed(cfg, model, log, data, kept=checkpoints.newest(), sorting_pays=sorting)
        topology = live_topology(world.device, world_size=world.size, local_size=world.local_size)
        plan = make_plan(
            model, tables, topology, cfg.sharding, speed=speed, batch_size=share, spec=spec, group=world.control
        )
        log.say(describe_plan(plan, tables, world.size))
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        optimizer = build_optimizer(model, cfg.sparse, cfg.dense, clip_norm=cfg.clip_norm)

        # resume from the newest checkpoint of this run, or begin at step 0
        identity = identity_of(cfg, spec.to_json(), data_digest=data.digest)
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        if progress.step == 0:
            initialize_tables(model, optimizer, seed=cfg.seed, pretrained=cfg.tables.pretrained, say=log.say)
        progress = replace(progress, plan=plan_to_json(plan), speed=speed)

        # open the data at that step; what a rank reads is a function of the step alone
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        streams = open_streams(
            cfg.data, spec, ranks, rows=cfg.rows, epochs=cfg.epochs, seed=cfg.seed, lanes=progress.lanes
        )
        train, val = streams["train"], streams["val"]
        watch = Watch(log.say, cfg.schedule, data)
        batches = watch.columns(train.batches(progress.step))

        # train: the pipeline sends the next batch's ids while this batch is trained
        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, train.num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        files = Verification(data.files, world, log.say)
        stop = StopRequest(world, checkpoints.overdue, files, verify=cfg.checkpoint.verify)
        log.start(progress.step, train.num_steps, watch)
        while not progress.ended(train.num_steps, cfg.checkpoint.early_stop) and not stop.agreed():
            learning_rate.set(progress.step)
            loss, _, global_rows = pipeline.progress(batches)
            step = progress.step + 1
            progress = replace(progress, step=step)
            log.step(step, loss, global_rows)

            # once in a while, and at the end: evaluate
            if step == train.num_steps or (cfg.eval_every and step % cfg.eval_every == 0):
                with log.paused():
                    metrics = evaluate(pipeline.detach(), val.batches(), world, learned=cfg.schedule.settled(step))
                    pipeline.attach()
                    progress = progress.validated(metrics)
                log.write(step, prefixed("val/", progress.last))

            # once in a while: save
            if checkpoints.due(progress, overdue=stop.overdue):
                log.flush(step)
                with log.paused():
                    checkpoints.save(model, optimizer, progress)

        # the end, or a signal: save, so that the same command goes on from here
        stop.settle()
        over = log.stop(progress.step, is_over=progress.ended(train.num_steps, cfg.checkpoint.early_stop))
        checkpoints.finish(model, optimizer, progress)

        # report
        final: dict[str, float] = {**progress.metrics(), "steps": progress.step}
        if "test" in streams and over:
            final |= prefixed("test/", evaluate(pipeline.detach(), streams["test"].batches(), world, learned=False))
        if isinstance(val, SyntheticStream):
            final["teacher/auc"] = val.best_auc()
        return log.finish(final | baseline)


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
