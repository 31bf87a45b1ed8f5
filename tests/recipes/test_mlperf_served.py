"""MLPerf's dlrm_v4_hstu, as its small twin, from training to a server: its crosses read a mark of each candidate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dlrm_torchrec.datasets.sequences.open import open_sequences
from dlrm_torchrec.datasets.stream import Ranks
from dlrm_torchrec.inference.predictor import Predictor
from dlrm_torchrec.inference.quantization import load_trained
from dlrm_torchrec.recipe import load_scoring_recipe, read_config
from dlrm_torchrec.train.checkpoints.folder import checkpoint_path
from tests.inference.serving.served import Server
from tests.recipe import load_recipe, run_recipe

SCORED = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_recipe("train_hstu", ["mlperf-twin", "--rows=2", "--eval-every=0", f"--run-dir={folder}"], 1)
    return folder / "mlperf-twin"


@pytest.mark.timeout(600)  # TorchScript compiles the program in the package and in the server
def test_a_package_of_int8_scores_candidates_by_their_marks(run: Path) -> None:
    module = load_recipe("quantize_dlrm")
    report = module.main(module.Config(recipe="train_hstu", run=str(run), calibration_batches=2))
    recipe = load_scoring_recipe("train_hstu")
    config = read_config(recipe, str(run))
    spec = config.shape
    stream = open_sequences("synthetic", spec, Ranks(SCORED, 0, 1), config.samples, users=2, epochs=1, seed=0)["val"]
    model = load_trained(recipe.build, config, spec, checkpoint_path(f"{run}/checkpoints", None)).model
    batch = next(iter(stream.batches()))
    with torch.no_grad():
        expected = torch.sigmoid(model(batch)).squeeze(1).numpy()

    log, requests = stream.samples.log, list[dict[str, Any]]()
    for user, time in zip(batch.users.tolist(), batch.times[batch.lengths.cumsum(0) - 1].tolist(), strict=True):
        first, end = log.starts[user], log.starts[user + 1]
        (place,) = first + np.flatnonzero(log.times[first:end] == time)
        past = slice(max(first, place - 2 * config.samples.history), place)  # all would be megabytes
        names = ("item", "artist", "album", "is_organic")
        request = {"uid": int(log.users["uid"][user]), "time": log.times[past].tolist(), "candidates.time": time}
        request |= {name: log.events[name][past].tolist() for name in names}
        request |= {"action": [spec.history.actions[action - 1] for action in log.actions[past]]}
        requests.append(request | {f"candidates.{name}": [int(log.events[name][place])] for name in names})
    predictor = Predictor.load(run / "package")
    found = predictor({name: [request[name] for request in requests] for name in requests[0]})
    assert found.unseen == {}
    assert np.abs(found.probabilities - expected).max() <= report["largest_change"] + 1e-6 < 0.05
    assert np.corrcoef(found.probabilities, expected)[0, 1] > 0.99

    server = Server(run / "package").wait()
    try:
        status, answer = server.predict(json.dumps({"rows": requests}).encode())
        assert status == 200, answer
        assert np.concatenate(answer["probabilities"]) == pytest.approx(found.probabilities, abs=1e-6)
        unmarked = {name: value for name, value in requests[0].items() if name != "candidates.is_organic"}
        for wrong, message in (
            (unmarked, "columns must be the raw ones of 'yambda-twin': got no ['candidates.is_organic']; send all"),
            ({**requests[0], "candidates.is_organic": [2]}, "column 'candidates.is_organic' must hold values that the"),
        ):
            status, answer = server.predict(json.dumps({"rows": [wrong]}).encode())
            assert (status, answer["error"][: len(message)]) == (422, message)
    finally:
        server.stop()
