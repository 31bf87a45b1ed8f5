"""Train HSTU (arXiv 2402.17152) to tell a user's next item among all items, as the paper does on MovieLens-1M.

    python recipes/train_hstu_next_item.py                                          # the demo, one process
    torchrun --standalone --nproc_per_node 2 recipes/train_hstu_next_item.py demo   # two
    python recipes/train_hstu_next_item.py ml-1m                                    # synthetic, of MovieLens-1M's size
    python recipes/train_hstu_next_item.py ml-1m --data prepared/ml-1m-histories    # of data/events/prepare.py
                                                                                    # --input ml-1m
Expected: the demo takes a minute on 2 CPU cores and ranks each user's next item among all 510 with HR@10 0.557 to
0.577 and NDCG@10 0.324 to 0.332; the best possible is 0.592 to 0.609 and 0.356 to 0.363, and popularity alone gives
0.057 and 0.026.
On MovieLens-1M's own ratings, the paper reports HR@10 .3294 and NDCG@10 .1893 among all movies for HSTU-large. Preset
ml-1m is that, but tells all items of a batch from the same 512, where the published code draws 128 for each item.
Next: quantize_dlrm.py makes a package, which answers with the best items of a user by their values.
What differs from train_hstu.py: rows are the items that come, the metrics rank all items, and the presets.
"""

from dataclasses import asdict, dataclass, field, replace

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.datasets.synthetic.specs import browsing_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.models.hstu.config import ML_1M, HSTUConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import automatic, fit_to_rows

SAMPLES = SamplesConfig(history=50, held_out="last", batch_by="rows")
SIZES = HSTUConfig(dim=32, most_tokens=51, positions=51, input_dropout=0.1, dropout=0.1)


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder of histories, or 'synthetic' for users who browse shelves.
    shape: Suppress[DatasetSpec] = field(default_factory=browsing_spec)  # Shape of the synthetic histories.
    rows: int = 10_000  # Number of synthetic users; a prepared folder has its own.
    epochs: int = 12  # Passes over the training samples, one of each user; 0 means by their number.
    batch_size: int = 128  # Samples of a global batch, over all ranks together; 0 means by their number.
    draws: int = 0  # Items drawn for a batch, from which its next items are told; 0 means that all items are taken.
    eval_every: int = 400  # Steps between evaluations; 0 means only at the end.
    run_dir: str = "runs/train_hstu_next_item"  # Folder of runs; the preset's name is appended.
    baseline: str = ""  # Folder of a finished run, whose metrics are shown beside this run's; empty means none.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig()  # How tables are stored: plain or compositional.
    samples: SamplesConfig = SAMPLES  # How histories are cut into samples.
    hstu: HSTUConfig = SIZES  # The sizes of the dense part.
    sparse: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.03)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


PRESETS = {
    "demo": automatic(Config()),  # prepared histories by the number of items told, synthetic ones as above
    # MovieLens is not ours to hand on: its 6,040 users and 3,706 items are synthetic unless you name it with --data.
    "ml-1m": Config(  # HSTU-large as the paper trains it, on its leave-one-out split; 72 minutes on a CPU core
        shape=browsing_spec(items=3_706), rows=6_040, epochs=101, draws=512, hstu=ML_1M,
        samples=SamplesConfig(history=200, held_out="last", batch_by="rows"), eval_every=480,
        sparse=OptimizerConfig(kind="adam", lr=0.001), dense=OptimizerConfig(kind="adam", lr=0.001),
        schedule=Schedule()),
}  # fmt: skip

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.sequences.browsing import BrowsingStream
from dlrm_torchrec.datasets.sequences.next_items import next_item_spec
from dlrm_torchrec.datasets.sequences.open import open_next_items, summarise_next_items
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.models.hstu.next_item import HSTUNextItem
from dlrm_torchrec.models.hstu.next_item_model import NextItemModel, NextItemScores
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
from dlrm_torchrec.train.metrics.next_item import evaluate, known_rankings
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import NextItemTask, RankingTask
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, nn.Module]:
    spec = next_item_spec(spec)
    dim = -(-cfg.hstu.dim // 4) * 4  # FBGEMM's rows have a multiple of 4 numbers; the model leaves out those beyond
    tables = build_sequence_tables(spec.tables(dim=dim), cfg.tables)
    sizes = cfg.hstu.holding(cfg.samples.tokens)
    score = NextItemScores(HSTUNextItem(sizes), *(feature.name for feature in spec.sparse))
    optimize_tables_in_backward(tables, cfg.sparse)
    return NextItemTask(NextItemModel(tables, score), world_size, spec.label_names, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    data = summarise_next_items(cfg.data, cfg.shape, cfg.samples)  # refuses data that cannot be trained on or judged
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
        streams = open_next_items(
            cfg.data, spec, ranks, cfg.samples, draws=cfg.draws, users=cfg.rows, epochs=cfg.epochs, seed=cfg.seed
        )
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
        if isinstance(val, BrowsingStream):
            final |= known_rankings(val.rankings())
        return log.finish(final | baseline)


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
