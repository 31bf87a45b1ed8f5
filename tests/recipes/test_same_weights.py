"""Dense weights are drawn on the CPU, so that they are the same whatever the device; then they are on the device."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dlrm_torchrec.command_line import parse
from dlrm_torchrec.datasets.summary import summarise
from dlrm_torchrec.train.fit import fit_to_rows
from tests.recipe import ROOT, load_recipe

TABLE = re.compile(r"\.embedding_bags\.|\.tables\.embeddings\.")
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("name", sorted(Path(path).stem for path in ROOT.glob("recipes/train_*.py")))
def test_a_device_gets_the_weights_that_the_cpu_draws(name: str) -> None:
    recipe = load_recipe(name)
    cfg, _ = fit_to_rows(parse(recipe.PRESETS, ["demo"])[1], summarise("synthetic", recipe.Config().shape))
    drawn = {}
    for device in (CPU, META):
        torch.manual_seed(7)
        task, _ = recipe.build(cfg, cfg.shape, 1, device)
        drawn[device] = torch.get_rng_state()  # a device with a generator of its own would leave the CPU's alone
        places = {value.device for key, value in task.named_parameters() if not TABLE.search(key)}
        places |= {value.device for value in task.buffers()} - {META}
        assert places == {device}
    assert drawn[CPU].equal(drawn[META])
