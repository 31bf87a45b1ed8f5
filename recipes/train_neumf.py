"""Train NeuMF (arXiv 1708.05031), MLPerf's first recommender: matrix factorisation beside an MLP.

    python recipes/train_neumf.py                                        # the demo, one process
    torchrun --standalone --nproc_per_node 2 recipes/train_neumf.py      # two
    python recipes/train_neumf.py ml-1m                                  # of data/movielens/prepare.py --task implicit
                                                                         # --split leave_one_out --negatives 0
Expected: the demo, 150,097 parameters and 2,608 MACs per sample, takes 20 seconds on 2 CPU cores. It ranks each user's
next item among 99 others with HR@10 0.852 +- 0.005 and NDCG@10 0.639 +- 0.005 (seeds 0 to 2); the best possible is
0.865 and 0.649, and ranking by popularity alone gives 0.523 and 0.296.
What differs from train_mf.py: the model, three fields of the config, and the presets.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.synthetic.specs import interactions_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import fit_to_rows


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder (see data/movielens), or 'synthetic' for users in known groups.
    shape: Suppress[DatasetSpec] = field(default_factory=interactions_spec)  # Shape of the synthetic rows.
    rows: int = 1_536_000  # Number of synthetic training rows per epoch; a prepared folder has its own.
    epochs: int = 1  # Number of passes over the training rows.
    columns: tuple[str, str] = ("user", "movie")  # The sparse features of the user and of the item.
    negatives: int = 4  # Items drawn for each interaction, new ones in every epoch; 0 means the data has its own.
    batch_size: int = 2560  # Rows of a global batch, over all ranks together: interactions and negatives.
    gmf_dim: int = 16  # Number of factors of generalised matrix factorisation.
    mlp: tuple[int, ...] = (64, 32, 16)  # Widths of the MLP's layers; the first is its input, half user and half item.
    eval_every: int = 200  # Steps between evaluations; 0 means only at the end.
    run_dir: str = "runs/train_neumf"  # Folder of runs; the preset's name is appended.
    baseline: str = ""  # Folder of a finished run, whose metrics are shown beside this run's; empty means none.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig()  # How tables are stored: plain, compositional, or of mixed dims.
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.3)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


ADAM = OptimizerConfig(kind="adam", lr=0.0045, betas=(0.25, 0.5))
PRESETS = {
    "demo": Config(),
    # MovieLens is not ours to hand on: sizes and steps per epoch are its own, results have not been measured.
    "ml-100k": Config(data="prepared/ml-100k", epochs=20, batch_size=1280, eval_every=384),  # evaluated every epoch
    "ml-1m": Config(data="prepared/ml-1m", epochs=20, eval_every=1930),
    # MLPerf training v0.5, whose target is HR@10 0.635 among 999 negatives, in about 15 epochs; on GPUs, as Adam is for
    # tables. 31.8 M parameters, 106,688 MACs per sample. Tables begin as U(+-1 / sqrt(rows)), MLPerf's as N(0, 0.01).
    "ml-20m": Config(
        data="prepared/ml-20m", epochs=20, batch_size=1_048_560, gmf_dim=64, mlp=(256, 256, 128, 64),
        sparse=ADAM, dense=ADAM, schedule=Schedule(), eval_every=95),
}  # fmt: skip

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.open import open_interactions
from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.spec_checks import require
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.datasets.synthetic.interactions import InteractionStream
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.models.neumf import NeuMF
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.models.user_item import UserItemModel
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
from dlrm_torchrec.train.metrics.leave_one_out import evaluate_leave_one_out, known_rankings
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[BinaryRankingTask, Tables]:
    require(spec, "train_neumf", id_weights=False)
    score = NeuMF(cfg.gmf_dim, cfg.mlp)
    both = [table for table in spec.tables(dim=score.table_dim) if table.features[0] in cfg.columns]
    tables = build_tables(both, cfg.tables)
    optimize_tables_in_backward(tables, cfg.sparse)
    model = UserItemModel(tables, *cfg.columns, score)
    return BinaryRankingTask(model, world_size, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    data = summarise(cfg.data, cfg.shape, positives_only=True)  # refuses data that cannot be trained on or judged
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
        streams = open_interactions(
            cfg.data, spec, ranks, columns=cfg.columns, negatives=cfg.negatives,
            rows=cfg.rows, epochs=cfg.epochs, seed=cfg.seed, lanes=progress.lanes,
        )  # fmt: skip
        train, val = streams["train"], streams["val"]
        watch = Watch(log.say, cfg.schedule, data)
        batches = watch.columns(train.batches(progress.step))

        # train: the pipeline sends the next batch's ids while this batch is trained
        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, train.num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        evaluate = partial(evaluate_leave_one_out, world=world, user=cfg.columns[0])
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
                    metrics = evaluate(pipeline.detach(), val.batches(), learned=cfg.schedule.settled(step))
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
            final |= prefixed("test/", evaluate(pipeline.detach(), streams["test"].batches(), learned=False))
        if isinstance(val, InteractionStream):
            final |= known_rankings(*val.rankings())
        return log.finish(final | baseline)


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
