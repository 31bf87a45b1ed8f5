"""K-means and its levels against planted clusters, a plain float64 loop, and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlrm_torchrec.embeddings.clustering import kmeans
from dlrm_torchrec.embeddings.clustering.kmeans import k_means
from dlrm_torchrec.embeddings.clustering.levels import class_means, collisions, residual_k_means
from dlrm_torchrec.embeddings.compositional.partitions.arithmetic import Hash
from dlrm_torchrec.embeddings.compositional.partitions.assigned import Assigned
from dlrm_torchrec.embeddings.compositional.partitions.together import Together


def planted(seed: int, classes: int = 7, rows: int = 400, dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centers = 20 * torch.randn(classes, dim, generator=generator)
    own = torch.randint(0, classes, (rows,), generator=generator)
    return centers[own] + 0.1 * torch.randn(rows, dim, generator=generator), own


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed: int) -> None:
    vectors, own = planted(seed)
    found = k_means(vectors, 7, seed=seed)
    assert len({(int(a), int(b)) for a, b in zip(found.codes, own, strict=True)}) == 7  # the same, but for their names
    for code in range(7):
        torch.testing.assert_close(found.centroids[code], vectors[found.codes == code].mean(0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_end_is_a_fixed_point_of_plain_weighted_lloyd(seed: int) -> None:
    generator = np.random.default_rng(seed)
    vectors, weights = generator.normal(3, 1, (300, 4)), generator.integers(0, 9, 300).astype(float)
    found = k_means(
        torch.tensor(vectors, dtype=torch.float32), 12, weights=torch.tensor(weights), seed=seed, steps=1000
    )
    codes = found.codes.numpy()
    assert set(codes) == set(range(12))
    centroids = np.stack([np.average(vectors[codes == c], 0, weights[codes == c]) for c in range(12)])
    np.testing.assert_allclose(found.centroids, centroids, atol=1e-5)
    nearest = ((vectors[:, None] - centroids) ** 2).sum(2).argmin(1)
    assert (nearest == codes).all()
    # better than clusters drawn at random, by far
    random = vectors[generator.choice(300, 12, replace=False)]
    loss, of_random = (
        (weights * ((vectors[:, None] - c) ** 2).sum(2).min(1)).sum() for c in (found.centroids.numpy(), random)
    )
    assert loss < of_random


def test_the_same_for_the_same_seed_and_in_any_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = planted(0)
    one = k_means(vectors, 20, seed=3)
    monkeypatch.setattr(kmeans, "_CHUNK", 60)
    other = k_means(vectors, 20, seed=3)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.centroids, other.centroids)
    assert not torch.equal(k_means(vectors, 20, seed=4).codes, one.codes)


def test_frequent_rows_place_the_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "_ROWS_PER_CLASS", 3)
    vectors = torch.cat([torch.tensor([[0.0], [0.2], [0.4], [9.0], [9.2], [9.4]]), torch.full((50, 1), 4.0)])
    weights = torch.tensor([2.0] * 6 + [1.0] * 50)
    found = k_means(vectors, 2, weights=weights)
    torch.testing.assert_close(found.centroids.sort(0).values, torch.tensor([[0.2], [9.2]]))
    assert len(found.codes[6:].unique()) == 1


def test_fewer_clusters_where_fewer_rows_differ() -> None:
    found = k_means(torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]), 5)
    assert len(found.centroids) == 2
    assert torch.equal(found.centroids[found.codes], torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]]))
    with pytest.raises(ValueError, match="k-means must have a row and a class at least: got 3 rows and 0 classes; rai"):
        k_means(torch.ones(3, 2), 0)


def test_levels_explain_variance_and_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (scale * torch.randn(6, 3, generator=generator) for scale in (10, 1))
    a, b = (torch.randint(0, 6, (500,), generator=generator) for _ in range(2))
    vectors, weights = coarse[a] + fine[b], torch.rand(500, generator=generator)
    found = residual_k_means(vectors, [6, 36], weights=weights)
    rebuilt = sum(c[k] for c, k in zip(found.centroids, found.codes, strict=True))
    w = weights.double().numpy()[:, None]
    x = vectors.double().numpy()
    total = (w * (x - (w * x).sum(0) / w.sum()) ** 2).sum()
    after = [(w * (x - found.centroids[0][found.codes[0]].double().numpy()) ** 2).sum()]
    after.append((w * (x - torch.as_tensor(rebuilt).double().numpy()) ** 2).sum())
    assert found.explained == pytest.approx([1 - after[0] / total, (after[0] - after[1]) / total], abs=1e-6)
    assert found.explained[0] > 0.95
    assert sum(found.explained) > 0.999


def test_means_of_classes_by_hand() -> None:
    values, codes = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0], [8.0, 0.0]]), torch.tensor([0, 0, 2, 2])
    means = class_means(values, codes, torch.tensor([1.0, 3.0, 0.0, 0.0]))
    assert means.tolist() == [[2.5, 3.5], [0.0, 0.0], [6.5, 3.5]]
    assert class_means(values[:, 0], codes, torch.ones(4)).tolist() == [2.0, 0.0, 6.5]


def test_collisions_are_those_of_all_classes() -> None:
    assigned = Assigned([torch.tensor([0, 0, 1, 1, 1, 2])], complementary=False)
    report = collisions(assigned, assigned)
    assert report == {
        "ids": 6,
        "classes": [3],
        "ids_per_class": [2.0],
        "most_ids_of_a_class": [3],
        "shared_ids": 0.8333,
    }
    assert collisions(Together((assigned, Hash(6, 2))), assigned)["shared_ids"] == round(2 / 6, 4)
