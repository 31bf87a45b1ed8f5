"""Train HSTU (arXiv 2402.17152), which reads a user's history as a sequence: will the user like the next item?

    python recipes/train_hstu.py                                          # the demo, one process
    torchrun --standalone --nproc_per_node 2 recipes/train_hstu.py demo   # two
    python recipes/train_hstu.py demo --history pooled                    # the floor: the history as a bag of events
    python recipes/train_hstu.py demo --data prepared/log                 # of data/events/prepare.py

Expected: the demo takes a minute and a half on 2 CPU cores and reaches 97.4 % (seeds 0 to 2: 96.8 to 97.7) of the best
possible gain over AUC 0.5; the history as a bag of events reaches 64.8 %.
What differs from train_dlrm.py: the samples, the model, the tables of single ids, and the presets.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.sequences.config import DEMO_SAMPLES, SamplesConfig
from dlrm_torchrec.datasets.sequences.yambda import TWIN_SAMPLES, YAMBDA_SAMPLES, yambda_spec, yambda_twin_spec
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.models.hstu.config import DEMO, MLPERF, MLPERF_TWIN, HSTUConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import automatic, fit_to_rows


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder of histories, or 'synthetic' for users with changing interests.
    shape: Suppress[DatasetSpec] = field(default_factory=interests_spec)  # Shape of the synthetic histories.
    rows: int = 50_000  # Number of synthetic users; a prepared folder has its own.
    epochs: int = 1  # Number of passes over the training samples; 0 means by their number.
    batch_size: int = 128  # Samples of a global batch on average, over all ranks; 0 means by their number.
    dim: int = 32  # Numbers of a row of a table.
    history: Literal["hstu", "pooled"] = "hstu"  # Read the history as a sequence, or as a bag of events.
    eval_every: int = 800  # Steps between evaluations; 0 means only at the end.
    run_dir: str = "runs/train_hstu"  # Folder of runs; the preset's name is appended.
    baseline: str = ""  # Folder of a finished run, whose metrics are shown beside this run's; empty means none.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig()  # How tables are stored: plain or compositional.
    samples: SamplesConfig = DEMO_SAMPLES  # How histories are cut into samples.
    hstu: HSTUConfig = DEMO  # The sizes of the dense part.
    sparse: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.004)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


PRESETS = {
    "demo": automatic(Config()),  # prepared histories by the number of candidates, synthetic ones as above
    "mlperf": Config(  # dlrm_v4_hstu of MLPerf training v6.1: AUC 0.75 on a later day; rates in proportion to batches
        data="prepared/yambda-5b", shape=yambda_spec(), batch_size=8192, dim=512, samples=YAMBDA_SAMPLES, hstu=MLPERF,
        clip_norm=1.0, speed=("bf16",), sparse=OptimizerConfig(kind="rowwise_adagrad", lr=1e-6),
        dense=OptimizerConfig(kind="adam", lr=1e-6, betas=(0.95, 0.999)), schedule=Schedule(warmup_steps=24_000)),
    "mlperf-twin": Config(shape=yambda_twin_spec(), rows=100, batch_size=256, samples=TWIN_SAMPLES, hstu=MLPERF_TWIN,
        sparse=OptimizerConfig(kind="rowwise_adagrad", lr=0.1), eval_every=0),  # small: 2 minutes on 2 idle CPU cores
}  # fmt: skip

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.sequences.log import history_of
from dlrm_torchrec.datasets.sequences.open import open_sequences, summarise_samples
from dlrm_torchrec.datasets.sequences.synthetic import InterestStream
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.pooled import PooledRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.baseline import read_baseline
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.identity import identity_of
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.log import RunLog, prefixed
from dlrm_torchrec.train.metrics.candidates import evaluate
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import CandidateTask, RankingTask
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, nn.Module]:
    history = history_of(spec)
    tables = build_sequence_tables(spec.tables(dim=cfg.dim), cfg.tables)
    kind = HSTURanker if cfg.history == "hstu" else PooledRanker
    sizes = cfg.hstu.holding(cfg.samples.tokens + len(spec.context))
    score = kind(sizes, history.events, spec.context, table_dim=cfg.dim, num_actions=len(history.actions))
    score.expect(**cfg.samples.sizes(spec))  # how large a batch is, for plans
    optimize_tables_in_backward(tables, cfg.sparse)
    return CandidateTask(SequenceRanker(tables, score), world_size, spec.label_names, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    data = summarise_samples(cfg.data, cfg.shape, cfg.samples)  # refuses data that cannot be trained on or judged
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
        speed = set_speed(cfg, model, log, data, kept=checkpoints.newest(), sorting_pays=lambda: True)
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
        identity = identity_of(cfg, spec.to_json(), data_digest=data.digest, users=cfg.rows)
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        if progress.step == 0:
            initialize_tables(model, optimizer, seed=cfg.seed, pretrained=cfg.tables.pretrained, say=log.say)
        progress = replace(progress, plan=plan_to_json(plan), speed=speed)

        # open the data at that step; what a rank reads is a function of the step alone
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        streams = open_sequences(cfg.data, spec, ranks, cfg.samples, users=cfg.rows, epochs=cfg.epochs, seed=cfg.seed)
        train, val = streams["train"], streams["val"]
        watch = Watch(log.say, cfg.schedule, data)
        batches = train.batches(progress.step)

        # train: the pipeline sends the next batch's ids while this batch is trained
        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, train.num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        files = Verification(data.files, world, log.say)
        stop = StopRequest(world, checkpoints.overdue, files, verify=cfg.checkpoint.verify)
        log.start(progress.step, train.num_steps, watch)
        while not progress.ended(train.num_steps, cfg.checkpoint.early_stop) and not stop.agreed():
            learning_rate.set(progress.step)
            world.seed_step(cfg.seed, progress.step)  # for dropout
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
        if isinstance(val, InterestStream):
            final["teacher/auc"] = val.best_auc()
        return log.finish(final | baseline)


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
