"""Train DLRM day after day: judge it by each new day, train on that day, save it, and publish it.

    python recipes/train_dlrm_daily.py                                      # thirty synthetic days, with drift
    torchrun --standalone --nproc_per_node 2 recipes/train_dlrm_daily.py demo
    python recipes/train_dlrm_daily.py demo --data days --publish.folder published   # a folder of prepared folders

Expected: the demo takes about a minute on 2 CPU cores; on the last day, its AUC is within .03 of the best possible one.
Run the same command again to resume in the middle of a day, or when another day has come. Copy this file and change it.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

from tyro.conf import Suppress

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.synthetic.specs import drift_spec
from dlrm_torchrec.datasets.windows.config import WindowsConfig
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.inference.config import PublishConfig
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule, Speed
from dlrm_torchrec.train.fit import refuse_marks


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # A folder of prepared folders, one prepared folder, or 'synthetic' for known drift.
    shape: Suppress[DatasetSpec] = field(default_factory=drift_spec)  # Shape of the synthetic rows.
    rows: int = 102_400  # Number of rows of a synthetic day.
    epochs: int = 1  # Number of passes over the rows of a window.
    batch_size: int = 512  # Rows of a global batch, over all ranks together.
    bottom: tuple[int, ...] = (64, 16)  # Widths of the bottom MLP's layers; the last one is the dim of the tables.
    top: tuple[int, ...] = (64, 32, 1)  # Widths of the top MLP's layers, to 1.
    start_from: str = ""  # Run, or checkpoint of one, whose model this run begins with; empty means random weights.
    restart_rates: bool = False  # Let the schedule begin anew with each window; otherwise it spans all of them.
    run_dir: str = "runs/train_dlrm_daily"  # Folder of runs; the preset's name is appended.
    seed: int = 0  # Seed of the initial weights, the synthetic rows and the order of rows.
    clip_norm: float = 0.0  # Maximum norm of the dense gradients; 0 means no limit.
    speed: Speed = ("auto",)  # Auto measures what is faster, exact is float32; or any of tf32, bf16, compile, sorted.
    tables: TablesConfig = TablesConfig()  # How tables are stored: plain, managed, compositional, or of mixed dims.
    windows: WindowsConfig = WindowsConfig()  # Which rows a window holds, and what happens when one is missing.
    publish: PublishConfig = PublishConfig()  # How the model is published after each window.
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.1)  # The optimizer of the tables.
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.002)  # The optimizer of all other parameters.
    schedule: Schedule = Schedule(warmup_steps=50)  # Warm-up and decay.
    sharding: ShardingConfig = ShardingConfig()  # Which rank holds which piece of which table.
    checkpoint: CheckpointConfig = CheckpointConfig()  # When the run is saved besides the ends of windows, and how.
    log: LogConfig = LogConfig()  # What is written about the run.


PRESETS = {
    "demo": Config(),
    "managed": Config(shape=drift_spec(encoding="managed")),  # ids without end, in as many rows
}

if __name__ == "__main__":
    COMMAND_LINE = parse(PRESETS)  # before torch is imported, so that --help and mistakes are answered at once

import torch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.models.dlrm import DLRM

from dlrm_torchrec.datasets.open import first_outputs
from dlrm_torchrec.datasets.prepared.verification import Verification
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.summary import Summary
from dlrm_torchrec.datasets.windows.folders import first_folder
from dlrm_torchrec.datasets.windows.open import agreed, list_windows, remaining
from dlrm_torchrec.datasets.windows.row_maps import row_maps
from dlrm_torchrec.datasets.windows.seen import SeenIds
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.restart import restart_rows
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.inference.quantization import load_trained
from dlrm_torchrec.inference.window_publisher import WindowPublisher
from dlrm_torchrec.models.heads import add_heads
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.modules.fastest_update import sorting_pays
from dlrm_torchrec.sharding.modules.managed.report import managed_report
from dlrm_torchrec.sharding.plan import make_plan
from dlrm_torchrec.sharding.plan_description import describe_plan, plan_to_json
from dlrm_torchrec.terminal.failure import run
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints
from dlrm_torchrec.train.checkpoints.identity import identity_of
from dlrm_torchrec.train.checkpoints.progress import Progress
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.log import RunLog
from dlrm_torchrec.train.metrics.labels import evaluate
from dlrm_torchrec.train.metrics.progressive import opened, progressive_metrics, told
from dlrm_torchrec.train.metrics.watch import Watch
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import between_streams, train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.speed import set_speed
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import TASKS, RankingTask
from dlrm_torchrec.train.warm_start import warm_start
from dlrm_torchrec.train.world import join_world


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[RankingTask, Tables]:
    tables = build_tables(spec.tables(dim=cfg.bottom[-1]), cfg.tables)
    model = DLRM(tables, len(spec.dense), list(cfg.bottom), list(cfg.top))
    add_heads(model, first_outputs(first_folder(cfg.data), spec))
    optimize_tables_in_backward(tables, cfg.sparse)
    return TASKS[spec.target](model, world_size, spec.label_names, device=device), tables


def main(preset: str, cfg: Config) -> dict[str, float]:
    refuse_marks(cfg)
    spec, listed = list_windows(cfg.data, cfg.shape, cfg.windows, rows=cfg.rows, seed=cfg.seed)
    data, run_dir = Summary(spec=spec, rows={"train": sum(each.rows for each in listed)}), f"{cfg.run_dir}/{preset}"
    with join_world(cfg.seed) as world:
        log = RunLog(run_dir, cfg.log, world, {"preset": preset, **asdict(replace(cfg, shape=spec))})
        seen = SeenIds(spec, world.control, beside=run_tensors)
        checkpoints = Checkpoints(f"{run_dir}/checkpoints", cfg.checkpoint, world, seen.tensors, say=log.say)
        publish = WindowPublisher(cfg.publish, checkpoints, partial(load_trained, build, cfg, spec), say=log.say)

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
        identity = identity_of(cfg, spec.to_json(), passes=cfg.epochs)
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        if progress.step == 0:
            initialize_tables(model, optimizer, seed=cfg.seed, pretrained=cfg.tables.pretrained, say=log.say)
            warm_start(model, optimizer, cfg.start_from, partial(row_maps, spec=spec, data=cfg.data), log=log)
        progress = replace(progress, plan=plan_to_json(plan), speed=speed)

        # open the data at that step; what a rank reads is a function of the step alone
        ranks = Ranks(cfg.batch_size, world.rank, world.size)
        left = remaining(progress.windows, agreed(listed, world), cfg.windows, is_open=progress.window_open)
        num_steps = progress.window_start + sum(each.steps(cfg.batch_size, epochs=cfg.epochs) for each in left)
        watch = Watch(log.say, cfg.schedule, data)

        # train: the pipeline sends the next batch's ids while this batch is trained
        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        stop = StopRequest(world, checkpoints.overdue)
        log.start(progress.step, num_steps, watch, more="bring the next window")
        progress = publish.again(progress, listed)
        while left and not stop.agreed():
            window = left.pop(0)
            stop.verify(Verification(window.files, world, log.say))  # before any row of it is read
            train = window.train(ranks, epochs=cfg.epochs, seed=cfg.seed, lanes=progress.lanes)

            # at the start of each window: evaluate, with the model of the windows before
            if not progress.window_open:
                restart_rows(model, optimizer, seen.forget(window.fresh_rows(progress.windows)), seed=cfg.seed)
                began, settled = bool(progress.step or cfg.start_from), cfg.schedule.settled(progress.step)
                with log.paused(), between_streams(pipeline) as detached:
                    rows = seen.watch(window.evaluation(ranks).batches())
                    metrics = evaluate(detached, rows, world, learned=settled, one_class=began)
                metrics = metrics if began else {}  # of a model that has learned something
                progress = opened(progress, window, metrics, unseen=seen.end_window(), steps=train.num_steps)
                log.say(f"{window.name} begins: {told(progress)}")
            batches = watch.columns(train.batches(progress.step - progress.window_start))
            if cfg.restart_rates:
                learning_rate.num_steps = train.num_steps
                log.restart_rates(progress.window_start, train.num_steps)
            while progress.window_open and not stop.agreed():
                learning_rate.set(progress.step - cfg.restart_rates * progress.window_start)
                loss, _, global_rows = pipeline.progress(batches)
                progress = replace(progress, step=progress.step + 1)
                log.step(progress.step, loss, global_rows)

                # once in a while, and at the end of each window: save, and publish
                if not progress.window_open or checkpoints.due(progress, overdue=stop.overdue):
                    log.flush(progress.step)
                    if not progress.window_open:
                        log.write(progress.step, progress.windows[-1]["metrics"], managed_report(model))
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
