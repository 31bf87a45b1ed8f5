"""Loads a package and tests it before it is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlrm_torchrec.inference.predictor import Predictor

WARM_UP_RUNS = 3  # TorchScript observes the first runs of a model and compiles it in the next ones


class PackageError(ValueError):
    """Says why a package cannot be served."""


def load_package(path: Path) -> Predictor:
    """The predictor of a folder, after it has predicted a row of missing values; PackageError when that fails."""
    try:
        predictor = Predictor.load(path)
        row = predictor.encode({column: [None] for column in predictor.columns})
        for _ in range(WARM_UP_RUNS):
            predictions = predictor.run(row).predictions
    except ValueError as error:
        raise PackageError(str(error)) from error
    except Exception as error:  # libraries raise all kinds of errors for a damaged file
        raise PackageError(f"package {path} must give predictions: got {error!r}; export it again") from error
    if predictions.shape != (1, len(predictor.labels)) or not np.isfinite(predictions).all():
        raise PackageError(
            f"package {path} must give a number for each row and label: got {predictions}; export it again"
        )
    return predictor
