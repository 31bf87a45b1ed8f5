"""Train matrix factorisation with biases: which item does a user take next? r_ui = mu + b_u + b_i + <p_u, q_i>.

    python recipes/train_mf.py                                        # the demo, one process
    torchrun --standalone --nproc_per_node 2 recipes/train_mf.py      # two
    python recipes/train_mf.py ml-1m                                  # of data/movielens/prepare.py --task implicit
                                                                      # --split leave_one_out --negatives 0
Expected: the demo, 49,153 parameters and 15 MACs per sample, ends in 20 seconds on 2 CPU cores. Of each user's next
item among 99 others it reaches HR@10 0.858 +- 0.004 and NDCG@10 0.643 +- 0.004 (seeds 0 to 2); the best there is
0.865 and 0.649, and popularity alone 0.523 and 0.296. A diff of train_dlrm.py: the model, the negatives, the metrics.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import partial

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from torchrec.distributed.model_parallel import DistributedModelParallel
from tyro.conf import Suppress

from dlrm_torchrec.datasets.open import load_spec, open_interactions
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.datasets.synthetic.interactions import InteractionStream, interactions_spec
from dlrm_torchrec.embeddings.initialize import initialize_tables
from dlrm_torchrec.embeddings.tables import Tables, TablesConfig, build_tables
from dlrm_torchrec.models.matrix_factorization import MatrixFactorization
from dlrm_torchrec.models.user_item import UserItemModel
from dlrm_torchrec.recipe import parse
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.cluster.topology import live_topology
from dlrm_torchrec.sharding.plan import ShardingConfig, describe_plan, make_plan, plan_to_json
from dlrm_torchrec.train.checkpoints.checkpoint import CheckpointConfig, Checkpoints, Progress
from dlrm_torchrec.train.log import LogConfig, RunLog, prefixed
from dlrm_torchrec.train.metrics.leave_one_out import evaluate_leave_one_out, known_rankings
from dlrm_torchrec.train.optimizers import OptimizerConfig, build_optimizer, optimize_tables_in_backward
from dlrm_torchrec.train.pipeline import train_pipeline
from dlrm_torchrec.train.schedule import Schedule, ScheduledLearningRate
from dlrm_torchrec.train.stop import StopRequest
from dlrm_torchrec.train.task import BinaryRankingTask
from dlrm_torchrec.train.world import join_world


@dataclass(frozen=True, kw_only=True)
class Config:
    data: str = "synthetic"  # a prepared folder (see data/movielens), or 'synthetic' interactions in latent groups
    shape: Suppress[DatasetSpec] = field(default_factory=interactions_spec)  # of the synthetic rows
    rows: int = 1_536_000  # synthetic training rows per epoch
    epochs: int = 1
    columns: tuple[str, str] = ("user", "movie")  # the sparse features
    negatives: int = 4  # drawn for each interaction, other ones in every epoch; 0: the data has its own
    batch_size: int = 2560  # rows of a global batch, over all ranks: interactions and negatives
    dim: int = 16  # numbers per user and item: one less factors, and a bias
    tables: TablesConfig = TablesConfig()  # how tables are stored: plain, or compositional, or of mixed dims
    sparse: OptimizerConfig = OptimizerConfig(kind="rowwise_adagrad", lr=0.3)  # optimizer of the tables
    dense: OptimizerConfig = OptimizerConfig(kind="adam", lr=0.01)  # optimizer of everything else
    schedule: Schedule = Schedule(warmup_steps=50, decay_start=50, decay_steps=-1, power=1)  # of both learning rates
    sharding: ShardingConfig = ShardingConfig()  # who holds which table
    eval_every: int = 200  # steps between evaluations; 0: only at the end
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    run_dir: str = "runs/train_mf"  # the preset's name is appended
    seed: int = 0


IDENTITY = ("batch_size", "columns", "negatives", "dim", "tables", "seed")  # same in its checkpoints
PRESETS = {
    "demo": Config(),
    # MovieLens is not ours to hand on: sizes and steps per epoch are its own, results have not been measured.
    "ml-100k": Config(data="prepared/ml-100k", epochs=20, batch_size=1280, eval_every=384),  # evaluated every epoch
    "ml-1m": Config(data="prepared/ml-1m", epochs=20, dim=32, eval_every=1930),
    "ml-20m": Config(data="prepared/ml-20m", epochs=10, batch_size=20_480, dim=64, eval_every=4816),
}


def build(cfg: Config, spec: DatasetSpec, world_size: int, device: torch.device) -> tuple[BinaryRankingTask, Tables]:
    both = [table for table in spec.tables(cfg.dim) if table.features[0] in cfg.columns]
    tables = build_tables(both, cfg.tables, device)
    optimize_tables_in_backward(tables, cfg.sparse)
    model = UserItemModel(tables, *cfg.columns, MatrixFactorization(device))
    return BinaryRankingTask(model, world_size), tables


@record
def main(preset: str, cfg: Config) -> dict[str, float]:
    spec = load_spec(cfg.data, cfg.shape)
    with join_world(cfg.seed) as world:
        ranks, run_dir = Ranks(cfg.batch_size, world.rank, world.size), f"{cfg.run_dir}/{preset}"
        log = RunLog(run_dir, cfg.log, world, {"preset": preset, **asdict(replace(cfg, shape=spec))})
        model, tables = build(cfg, spec, world.size, world.device)
        topology = live_topology(world.size, world.local_size, world.device)
        plan = make_plan(model, tables, topology, cfg.batch_size // world.size, cfg.sharding, spec, world.control)
        log.say(describe_plan(plan, tables, world.size))
        model = DistributedModelParallel(
            model, device=world.device, plan=plan, sharders=plan.sharders, init_data_parallel=world.needs_ddp
        )
        initialize_tables(model, cfg.seed, cfg.tables.pretrained)
        optimizer = build_optimizer(model, cfg.sparse, cfg.dense)
        identity = {"spec": spec.to_json(), **{name: asdict(cfg)[name] for name in IDENTITY}}
        checkpoints = Checkpoints(f"{run_dir}/checkpoints", cfg.checkpoint, world)
        progress = checkpoints.load(model, optimizer, identity) or Progress(identity=identity, lanes=world.size)
        progress = replace(progress, plan=plan_to_json(plan))
        streams = open_interactions(
            cfg.data, spec, cfg.columns, cfg.negatives, ranks, cfg.rows, cfg.epochs, cfg.seed, progress.lanes
        )
        train, val = streams["train"], streams["val"]
        evaluate = partial(evaluate_leave_one_out, world=world, user=cfg.columns[0])

        learning_rate = ScheduledLearningRate(optimizer, cfg.schedule, train.num_steps)
        pipeline = train_pipeline(model, optimizer, world, log.timing(progress))
        batches = train.batches(progress.step)
        stop = StopRequest(world)
        log.start(progress.step, train.num_steps)
        while progress.step < train.num_steps and not stop.agreed():
            learning_rate.set(progress.step)
            loss, _, global_rows = pipeline.progress(batches)
            step = progress.step + 1
            progress = replace(progress, step=step)
            log.step(step, loss, global_rows)
            if step == train.num_steps or (cfg.eval_every and step % cfg.eval_every == 0):
                with log.paused():
                    found = evaluate(pipeline.detach(), val.batches(), learned=cfg.schedule.settled(step))
                    pipeline.attach()
                    progress = progress.validated(found)
                log.write(step, prefixed("val/", progress.last))
            if cfg.checkpoint.every and step % cfg.checkpoint.every == 0:
                log.flush(step)
                with log.paused():
                    checkpoints.save(model, optimizer, progress)
        stop.settle()
        log.stop(progress.step)
        checkpoints.finish(model, optimizer, progress)

        metrics = {**prefixed("val/", progress.last), **prefixed("best/val/", progress.best), "steps": progress.step}
        if "test" in streams and progress.step == train.num_steps:
            metrics |= prefixed("test/", evaluate(pipeline.detach(), streams["test"].batches(), learned=False))
        if isinstance(val, InteractionStream):
            metrics |= known_rankings(*val.rankings())
        return log.finish(metrics)


if __name__ == "__main__":
    main(*parse(PRESETS))
