"""Places of vectors in a plane: principal components, or UMAP where its package is installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

By = Literal["pca", "umap"]


@dataclass(frozen=True)
class Plane:
    """Places (N, 2) of vectors; ``shares`` of their variance lie along the two axes, and are empty for UMAP."""

    places: torch.Tensor
    shares: tuple[float, ...]


def check_umap() -> None:
    """Raises ValueError where the package is missing."""
    if not find_spec("umap"):
        raise ValueError("a map by umap must have umap-learn: got none; pip install umap-learn, or leave out --by")


def plane(vectors: torch.Tensor, by: By) -> Plane:
    """Places of ``vectors`` (N, D). Raises ValueError for fewer than 3 vectors, or when a number is not finite."""
    if len(vectors) < 3 or not bool(vectors.isfinite().all()):
        raise ValueError(
            f"a map must have at least 3 vectors of finite numbers: got {len(vectors)}; take a feature with more "
            "values, an earlier step, or a lower --seen"
        )
    if by == "umap":
        import umap  # an optional dependency

        placed = umap.UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(vectors.numpy())
        return Plane(torch.from_numpy(placed), ())
    return principal_components(vectors)


def principal_components(vectors: torch.Tensor) -> Plane:
    """The two directions with the most variance; each points to where its largest weight is positive.

    A table of one column has a second coordinate of 0.
    """
    centred = vectors.double() - vectors.double().mean(0)
    if centred.size(1) == 1:
        centred = torch.nn.functional.pad(centred, (0, 1))
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    first_two = directions[:, -2:].flip(1)
    largest = first_two.gather(0, first_two.abs().argmax(0, keepdim=True))
    total = float(variances.sum()) or 1.0
    shares = tuple(float(each) / total for each in variances[-2:].flip(0).clamp(min=0))
    return Plane((centred @ (first_two * largest.sign())).float(), shares)
