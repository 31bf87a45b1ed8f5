"""The windows by which the model of a checkpoint can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dlrm_torchrec.datasets.windows.histories import SequenceWindow, sequence_windows
from dlrm_torchrec.datasets.windows.open import list_windows
from dlrm_torchrec.datasets.windows.window import Window
from dlrm_torchrec.schema import DatasetSpec

NEWEST = "val"


def windows_by_name(
    trained: Any, data: str, begun: Sequence[Mapping[str, Any]]
) -> tuple[DatasetSpec, Mapping[str, Window | SequenceWindow]]:
    """The spec of ``data``, and the windows there that can judge a model, by name; the newest is also "val".

    Args:
        trained: the config of the run, which goes over windows
        data: folders of windows, a prepared folder of histories, or ``synthetic``
        begun: the windows that the model was trained on
    """
    shape, config, rows, seed = trained.shape, trained.windows, trained.rows, trained.seed
    if hasattr(trained, "samples"):
        spec, listed = sequence_windows(data, shape, trained.samples, config, users=rows, seed=seed)
        return spec, {each.name: each for each in listed} | {NEWEST: listed[-1]}
    spec, of_rows = list_windows(data, shape, config, rows=rows, seed=seed)
    return spec, judging_windows(of_rows, begun)


def judging_windows(listed: Sequence[Window], begun: Sequence[Mapping[str, Any]]) -> dict[str, Window]:
    """Those of the windows ``listed`` whose ids mean what they mean to the model, by name, and the newest as "val".

    ``begun`` are the windows that the model was trained on. A window with other values in a row of a table would be
    judged by vectors of values that it does not have. Raises ValueError when no window is left.
    """
    fitting = {}
    for window in listed:
        with suppress(ValueError):  # values have other ids there
            if not any(map(len, window.fresh_rows(begun).values())):
                fitting[window.name] = window
    if not fitting:
        names = [window.name for window in listed]
        raise ValueError(
            "windows to judge by must give ids the meaning that they have to the model: got "
            f"{names}, of which none does; name the data of the run, or an earlier checkpoint"
        )
    return fitting | {NEWEST: next(reversed(fitting.values()))}
