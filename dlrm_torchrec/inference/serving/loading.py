"""What becomes of a package before it is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm_torchrec.inference.predictor import Predictor

WARM_UP_RUNS = 3  # TorchScript observes the first runs of a model, and compiles it in those that follow


class PackageError(ValueError):
    """Says why a package cannot be served."""


def load_package(path: Path) -> Predictor:
    """The predictor of a folder, once it has answered for a row without values; PackageError when it cannot."""
    try:
        predictor = Predictor.load(path)
        row = predictor.encode({feature: [None] for feature in predictor.features})
        for _ in range(WARM_UP_RUNS):
            probabilities = predictor.run(row).probabilities
    except ValueError as error:
        raise PackageError(str(error)) from error
    except Exception as error:  # whatever the libraries that read it make of a damaged file
        raise PackageError(f"package {path} must answer: got {error!r}; export it again") from error
    if probabilities.shape != (1,) or not np.isfinite(probabilities).all():
        raise PackageError(f"package {path} must give a probability for each row: got {probabilities}; export it again")
    return predictor
