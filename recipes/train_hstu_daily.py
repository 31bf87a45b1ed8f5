"""Train HSTU day after day: judge it by what users do each new day, train on that day, save it, and publish it.

    python recipes/train_hstu_daily.py                                      # thirty days of synthetic users
    torchrun --standalone --nproc_per_node 2 recipes/train_hstu_daily.py demo
    python recipes/train_hstu_daily.py demo --data prepared/log --publish.folder published   # of data/events/prepare.py

Expected: the demo takes about a minute on 2 CPU cores; on the last day, it has 91 to 95 % of the best possible
gain over AUC .5. Run the same command again to resume in the middle of a day. Histories reach back over all days before
a candidate.
What differs from train_dlrm_daily.py: windows of histories, and the model and its tables, which are train_hstu.py's.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.sequences.config import DEMO_SAMPLES, SamplesConfig
from dlrm_torchrec.datasets.synthetic.specs import interests_spec
from dlrm_torchrec.datasets.windows.config import SequenceWindowsConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.inference.config import PublishConfig
from dlrm_torchrec.models.hstu.config import DEMO, HSTUConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import refuse_marks


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A prepared folder of histories, or 'synthetic' for users with changing interests.
    shape: Suppress[DatasetSpec] = field(default_factory=interests_spec)  # Shape of the synthetic histories.
    rows: int = 50_000  # Number of synthetic users; a prepared folder has its own.
    epochs: int = 1  # Number of passes over the samples of a window.
    batch_size: int = 32  # Samples of a global batch on average, over all ranks together.
    dim: int = 32  # Numbers of a row of a table.
    start_from: str = ""  # Run, or checkpoint of one, whose model this run begins with; empty means random weights.
    run_dir: str = "runs/train_hstu_daily"  # Folder of runs; the preset's name is appended.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig()  # How tables are stored: plain or compositional.
    samples: SamplesConfig = DEMO_SAMPLES  # How histories are cut into samples.
    hstu: HSTUConfig = DEMO  # The sizes of the dense part.
    windows: SequenceWindowsConfig = SequenceWindowsConfig()  # Which windows there are, and if one may be missing.
    publish: PublishConfig = PublishConfig()  # How the model is published after each window.
    sparse: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.004)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.0015)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved besides the ends of windows, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


PRESETS = {"demo": Config()}

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel

from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.sequences.log import history_of
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.windows.histories import sequence_windows, summarise_windows
from dlrm_torchrec.datasets.windows.open import remaining
from dlrm_torchrec.datasets.windows.row_maps import row_maps
from dlrm_torchrec.datasets.windows.seen import SeenIds
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import build_sequence_tables
from dlrm_torchrec.inference.quantization import load_trained
from dlrm_torchrec.inference.window_publisher import WindowPublisher
from dlrm_torchrec.models.hstu.model import SequenceRanker
from dlrm_torchrec.models.hstu.ranker import HSTURanker
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.identity import identity_of
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.metrics.candidates import evaluate
from dlrm_torchrec.train.metrics.progressive import opened, progressive_metrics, told
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import between_streams, train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import CandidateTask, RankingTask
from dlrm_torchrec.train.warm_start import warm_start
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, nn.Module]:
    history = history_of(spec)
    tables = build_sequence_tables(spec.tables(dim=cfg.dim), cfg.tables)
    sizes = cfg.hstu.holding(cfg.samples.tokens + len(spec.context))
    score = HSTURanker(sizes, history.events, spec.context, table_dim=cfg.dim, num_actions=len(history.actions))
    score.expect(**cfg.samples.sizes(spec))  # how large a batch is, for plans
    optimize_tables_in_backward(tables, cfg.sparse)
    return CandidateTask(SequenceRanker(tables, score), world_size, spec.label_names, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    refuse_marks(cfg)
    spec, listed = sequence_windows(cfg.data, cfg.shape, cfg.samples, cfg.windows, users=cfg.rows, seed=cfg.seed)
    data, run_dir = summarise_windows(cfg.data, listed, spec), f"{cfg.run_dir}/{preset}"
    with join_world(cfg.seed) as world:
        log = RunLog(run_dir, cfg.log, world, {"preset": preset, **asdict(replace(cfg, shape=spec))})
        seen = SeenIds(spec, world.control, beside=run_tensors)
        checkpoints = Checkpoints(f"{run_dir}/checkpoints", cfg.checkpoint, world, seen.tensors, say=log.say)
        load = partial(load_trained, build, cfg, spec)
        publish = WindowPublisher(cfg.publish, checkpoints, load, samples=cfg.samples, say=log.say)

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
        identity = identity_of(cfg, spec.to_json(), passes=cfg.epochs, users=cfg.rows)
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        if progress.step == 0:
            initialize_tables(model, optimizer, seed=cfg.seed, pretrained=cfg.tables.pretrained, say=log.say)
            warm_start(model, optimizer, cfg.start_from, partial(row_maps, spec=spec, data=cfg.data), log=log)
        progress = replace(progress, plan=plan_to_json(plan), speed=speed)

        # open the data at that step; what a rank reads is a function of the step alone
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        left = remaining(progress.windows, listed, cfg.windows, is_open=progress.window_open)
        num_steps = progress.window_start + sum(each.steps(cfg.batch_size, epochs=cfg.epochs) for each in left)
        watch = Watch(log.say, cfg.schedule, data)

        # train: the pipeline sends the next batch's ids while this batch is trained
        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        files = Verification(data.files, world, log.say)
        stop = StopRequest(world, checkpoints.overdue, files, verify=cfg.checkpoint.verify)
        log.start(progress.step, num_steps, watch, more="bring the next window")
        progress = publish.again(progress, listed)
        while left and not stop.agreed():
            window = left.pop(0)
            train = window.train(ranks, epochs=cfg.epochs, seed=cfg.seed)

            # at the start of each window: evaluate, with the model of the windows before
            if not progress.window_open:
                began = bool(progress.step or cfg.start_from)  # with a model that has learned something
                with log.paused(), between_streams(pipeline) as detached:
                    rows = seen.watch(window.evaluation(ranks).batches())
                    settled = cfg.schedule.settled(progress.step)
                    metrics = evaluate(detached, rows, world, learned=settled, one_class=began)
                metrics = metrics if began else {}
                progress = opened(progress, window, metrics, unseen=seen.end_window(), steps=train.num_steps)
                log.say(f"{window.name} begins: {told(progress)}")
            batches = train.batches(progress.step - progress.window_start)
            while progress.window_open and not stop.agreed():
                learning_rate.set(progress.step)
                world.seed_step(cfg.seed, progress.step)  # for dropout
                loss, _, global_rows = pipeline.progress(batches)
                step = progress.step + 1
                progress = replace(progress, step=step)
                log.step(step, loss, global_rows)

                # once in a while, and at the end of each window: save, and publish
                if not progress.window_open or checkpoints.due(progress, overdue=stop.overdue):
                    log.flush(step)
                    if not progress.window_open:
                        log.write(step, progress.windows[-1]["metrics"])
                    with log.paused():
                        checkpoints.save(model, optimizer, progress)
                        progress = publish(progress, window)  # at the end of the window

        # the end, or a signal: save, so that the same command goes on from here
        stop.settle()
        log.stop(progress.step, is_over=progress.ended(num_steps))
        checkpoints.finish(model, optimizer, progress)
        return log.finish(progressive_metrics(progress) | {"steps": progress.step})


if __name__ == "__main__":
    run(main, *COMMAND_LINE)
