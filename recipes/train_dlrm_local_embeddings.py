"""Train DLRM with node-local tables: each node learns tables of its own, and only the MLPs are synchronised.

    torchrun --standalone --nproc_per_node 2 recipes/train_dlrm_local_embeddings.py   # two nodes of one process
    torchrun --standalone --nproc_per_node 2 recipes/train_dlrm_local_embeddings.py --average-every 100
    torchx run dist.ddp -j 2x8 recipes/train_dlrm_local_embeddings.py criteo-kaggle --node-size 8   # two hosts

Expected: two nodes end the demo, in about a minute, at 97.4 to 97.9 % of the way from AUC 0.5 to the teacher's, and at
98.1 to 98.3 % by the mean of their probabilities, as val/auc has it; a rank sends 33 kB a step, in place of 775 for
whole tables on single ranks. Averages every 100 steps: within 0.0003 of that one model's AUC, 51 kB.
A small diff of train_dlrm.py: nodes in place of the plan and DistributedModelParallel, and what they report.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torchrec.models.dlrm import DLRM
from tyro.conf import Suppress

from dlrm_torchrec.datasets.criteo import criteo_kaggle_spec
from dlrm_torchrec.datasets.open import load_spec, open_streams
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.clicks import SyntheticStream
from dlrm_torchrec.datasets.synthetic.specs import demo_spec
from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.recipe import parse
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.config import ShardingConfig
from dlrm_torchrec.sharding.node_local import Nodes
from dlrm_torchrec.sharding.plan import describe_plan, plan_to_json
from dlrm_torchrec.train.checkpoints.checkpoint import Checkpoints, Progress, identity_of
from dlrm_torchrec.train.checkpoints.state import run_tensors
from dlrm_torchrec.train.config import CheckpointConfig, LogConfig, OptimizerConfig, Schedule
from dlrm_torchrec.train.log import RunLog, prefixed
from dlrm_torchrec.train.nodes import evaluate_nodes, node_tensors
from dlrm_torchrec.train.optimizers import build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import ScheduledLearningRate
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.timing.wire import WireCounts
from dlrm_torchrec.train.world import join_world


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # a prepared folder (see data/), or 'synthetic' rows with a known teacher
    shape: Suppress[DatasetSpec] = field(default_factory=demo_spec)  # of the synthetic rows
    rows: int = 2_457_600  # synthetic training rows per epoch
    epochs: int = 1
    batch_size: int = 2048  # rows of a global batch, over all ranks
    bottom: tuple[int, ...] = (64, 16)  # widths of the bottom MLP; the last one is the tables' dim
    top: tuple[int, ...] = (64, 32, 1)  # widths of the top MLP
    tables: TablesConfig = TablesConfig()  # how tables are stored: plain, or compositional, or of mixed dims
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.1)  # optimizer of the tables
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # optimizer of everything else
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # of both learning rates
    bf16: bool = False  # autocast the dense parts to bfloat16
    node_size: int = 1  # neighbouring ranks that share tables; all ranks: what train_dlrm.py does
    average_every: int = 0  # steps between averages of the nodes' tables; 0: never, as published
    sharding: ShardingConfig = ShardingConfig()  # which rank of a node holds which of its tables
    eval_every: int = 300  # steps between evaluations; 0: only at the end
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run_dir: str = "runs/train_dlrm_local_embeddings"  # the preset's name is appended
    seed: int = 0


SGD = partial(OptimizerConfig, kind="sgd")
PRESETS = {
    "demo": Config(),
    "criteo-kaggle": Config(  # arXiv 1906.00091, section 5.1: accuracy 0.789 on the last day's test half
        data="prepared/criteo-kaggle", shape=criteo_kaggle_spec(), batch_size=128, bottom=(512, 256, 64, 16),
        top=(512, 256, 1), sparse=SGD(lr=0.1), dense=SGD(lr=0.1), schedule=Schedule(), eval_every=10_240,
        checkpoint=CheckpointConfig(every=10_240)),
}  # fmt: skip


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[BinaryRankingTask, Tables]:
    tables = build_tables(spec.tables(dim=cfg.bottom[-1]), cfg.tables, device)
    dlrm = DLRM(tables, len(spec.dense), list(cfg.bottom), list(cfg.top), dense_device=device)
    optimize_tables_in_backward(tables, cfg.sparse)
    return BinaryRankingTask(dlrm, world_size, autocast=torch.bfloat16 if cfg.bf16 else None), tables


@record
def main(preset: str, cfg: Config) -> dict[str, float]:
    spec = load_spec(cfg.data, cfg.shape)
    with join_world(cfg.seed) as world:
        ranks, run_dir = Ranks(cfg.batch_size, world.rank, world.size), f"{cfg.run_dir}/{preset}"
        log = RunLog(run_dir, cfg.log, world, {"preset": preset, **asdict(replace(cfg, shape=spec))})
        model, tables = build(cfg, spec, world.size, world.device)
        nodes = Nodes(world.rank, world.size, size=cfg.node_size, local_size=world.local_size, device=world.device)
        share = cfg.batch_size // world.size
        plan = nodes.plan(model, tables, share, cfg.sharding, spec=spec, group=world.control)
        log.say(f"each of {nodes.count} nodes:\n{describe_plan(plan, tables, nodes.size)}")
        model = nodes.shard(model, plan, init_data_parallel=world.needs_ddp)
        initialize_tables(model, cfg.seed, cfg.tables.pretrained)
        optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
        identity = {**identity_of(spec.to_json(), asdict(cfg)), "nodes": nodes.count}
        checkpoints = Checkpoints(f"{run_dir}/checkpoints", cfg.checkpoint, world, partial(node_tensors, nodes.number))
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        progress = replace(progress, plan=plan_to_json(plan))
        own = Ranks(cfg.batch_size, nodes.place, nodes.size)  # every node sees all rows of an evaluation
        streams, evaluated = (
            open_streams(cfg.data, spec, each, cfg.rows, cfg.epochs, cfg.seed, progress.lanes) for each in (ranks, own)
        )
        train, val = streams["train"], evaluated["val"]

        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, train.num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        batches = train.batches(progress.step)
        evaluate = partial(evaluate_nodes, world=world, nodes=nodes.count)
        stop, wire = StopRequest(world), WireCounts()
        log.start(progress.step, train.num_steps)
        while progress.step < train.num_steps and not stop.agreed():
            learning_rate.set(progress.step)
            with wire.count("step"):
                loss, _, global_rows = pipeline.progress(batches)
            step = progress.step + 1
            if cfg.average_every and step % cfg.average_every == 0:
                with wire.count("average", cfg.average_every):
                    nodes.average(run_tensors(model, optimizer))
            progress = replace(progress, step=step)
            log.step(step, loss, global_rows)
            if step == train.num_steps or (cfg.eval_every and step % cfg.eval_every == 0):
                with log.paused():
                    found = evaluate(pipeline.detach(), val.batches(), learned=cfg.schedule.settled(step))
                    pipeline.attach()
                    progress = progress.validated(found | nodes.distance(run_tensors(model, optimizer)))
                log.write(step, prefixed("val/", progress.last))
            if cfg.checkpoint.every and step % cfg.checkpoint.every == 0:
                log.flush(step)
                with log.paused():
                    checkpoints.save(model, optimizer, progress)
        stop.settle()
        log.stop(progress.step)
        checkpoints.finish(model, optimizer, progress)

        metrics = {**prefixed("val/", progress.last), **prefixed("best/val/", progress.best), "steps": progress.step}
        metrics["step_bytes"] = wire.per_step(world.control)  # a rank sends, of ids, vectors, gradients and tables
        if "test" in evaluated and progress.step == train.num_steps:
            metrics |= prefixed("test/", evaluate(pipeline.detach(), evaluated["test"].batches(), learned=False))
        if isinstance(val, SyntheticStream):
            metrics["teacher/auc"] = val.best_auc()
        return log.finish(metrics)


if __name__ == "__main__":
    main(*parse(PRESETS))
