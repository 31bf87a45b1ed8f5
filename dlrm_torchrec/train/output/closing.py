"""The last words of a run: what it reached, where that is, how long it took, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlrm_torchrec.terminal import commands
from dlrm_torchrec.terminal.closing import block
from dlrm_torchrec.terminal.words import duration
from dlrm_torchrec.train.checkpoints.folder import complete_steps, step_path
from dlrm_torchrec.train.checkpoints.progress import DECISIVE

NAMED = 4  # of the windows that were not published
RANKS_ITEMS = "hr@10"  # a run with this metric has no rows with labels to ablate
OF_WINDOWS = "windows/"  # a run with metrics of this prefix judges, and publishes, window after window itself


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended; ``total_s`` is the time of this process, ``train_s`` that of its training steps alone."""

    folder: str
    step: int
    num_steps: int
    begun_at: int  # the step at which this process took over
    is_over: bool  # no steps are left, or it was ended early
    total_s: float
    train_s: float
    tensorboard: bool


def main_metric(metrics: Mapping[str, float], prefix: str = "val/") -> str:
    """The name of the metric that a run is judged by, without ``prefix``; empty if it has none."""
    return next((name for name in DECISIVE if f"{prefix}{name}" in metrics), "")


def describe(ended: Ended, metrics: Mapping[str, float]) -> str:
    """The closing block of a run, or one line where no checkpoint was saved, as for the runs of a comparison."""
    steps = complete_steps(f"{ended.folder}/checkpoints")
    saved = step_path(f"{ended.folder}/checkpoints", steps[-1]) if steps else ""
    place = f"step {ended.step:,} of {ended.num_steps:,}"
    if not ended.is_over:
        kept = f"saved at {saved}" if saved else "nothing is saved"
        advice = "run the same command again to resume" if saved else "the same command begins anew"
        reached = [f"at {place}, {kept}; {advice}"]
    elif ended.step < ended.num_steps:
        go_on = "without --early-stop, the same command trains on"
        reached = [f"ended early at {place}; {go_on}", *_reached(metrics)]
    else:
        reached = _reached(metrics) or [place]
    reached += _not_published(metrics)
    if not saved:
        reached[0] = reached[0] if ended.is_over else f"stopped {reached[0]}"
        return "; ".join([*reached, f"took {duration(ended.total_s)}", f"see {ended.folder}"])
    files = "config.json, metrics.jsonl" + (", TensorBoard events" if ended.tensorboard else "")
    return block(
        [
            ("reached" if ended.is_over else "stopped", reached),
            ("took", [_took(ended)]),
            ("run", [f"{ended.folder} with {files}"]),
            ("saved", [saved if ended.is_over else ""]),
            ("next", _next(ended, metrics) if ended.is_over else []),
        ]
    )


def _reached(metrics: Mapping[str, float]) -> list[str]:
    name = main_metric(metrics)
    if not name:
        return []
    reached = metrics[f"val/{name}"]
    lines = [f"val/{name} {reached:.4f}"]
    if f"teacher/{name}" in metrics:
        lines[0] += f"; the best possible {name.upper()} is {metrics[f'teacher/{name}']:.4f}"
    if f"popularity/{name}" in metrics:
        lines[0] += f"; popularity alone reaches {metrics[f'popularity/{name}']:.4f}"
    if f"baseline/{name}" in metrics:
        floor = metrics[f"baseline/{name}"]
        lines.append(
            f"val/{name} {reached:.4f}; that of the baseline is {floor:.4f}, a difference of {reached - floor:+.4f}"
        )
    best = metrics.get(f"best/val/{name}", reached)
    if best != reached:
        lines.append(f"best val/{name} {best:.4f}, at an earlier step")
    if f"test/{name}" in metrics:
        lines.append(f"test/{name} {metrics[f'test/{name}']:.4f}")
    return lines


def _not_published(metrics: Mapping[str, float]) -> list[str]:
    """A line that names the windows of a run that were to be published and were not, if there are any."""
    names = [name.removeprefix(OF_WINDOWS).rpartition("/")[0] for name in metrics if name.endswith("/published")]
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    listed = f"{', '.join(names[:NAMED])}{more}"
    return [f"not published, because quantising cost too much quality: {listed}"] if names else []


def _took(ended: Ended) -> str:
    steps = ended.step - ended.begun_at
    if not steps:
        return f"{duration(ended.total_s)}; no step was {'left to train' if ended.is_over else 'trained'}"
    return f"{duration(ended.total_s)}, of which {duration(ended.train_s)} trained {steps:,} steps"


def _next(ended: Ended, metrics: Mapping[str, float]) -> list[str]:
    of_run = (commands.this_recipe(), ended.folder)
    served = (commands.start("quantize_dlrm", *of_run), "a package for serving")
    if main_metric(metrics) == RANKS_ITEMS:
        exported = (commands.start("export_tables", ended.folder, "--output", f"{ended.folder}/tables"), "vectors")
        lines = [served, exported]
    elif any(name.startswith(OF_WINDOWS) for name in metrics):
        lines = [(commands.start("evaluate", *of_run), "all metrics of the newest window")]
    else:
        lines = [(commands.start("evaluate", *of_run, "--ablation"), "what each feature is worth"), served]
    lines.append((commands.show(ended.folder), "its curves"))
    width = max(len(line) for line, _ in lines)
    return [f"{line:{width}}  # {purpose}" for line, purpose in lines]
