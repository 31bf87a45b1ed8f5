"""Rows of few bits: their sizes, their rounding, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.serve import ServedTables, check_types
from dlrm_torchrec.inference.tables.types import TABLE_TYPES, packed, rounded, row_bytes


def collection(dim: int = 64) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        [EmbeddingBagConfig(name="t", num_embeddings=1000, embedding_dim=dim, feature_names=["f"])]
    )


@pytest.mark.parametrize(("kind", "share"), [("fp16", 0.5), ("int8", 0.2656), ("int4", 0.1406), ("int2", 0.0781)])
def test_sizes_at_dim_64_without_padding(kind: TableType, share: float) -> None:
    """int8 is below the 28.1 % of FBGEMM's older rows, as scale and offset are float16 here."""
    served = ServedTables(collection(), {"t": kind}, ["f"])
    sums: Any = served.lookup.parts[0]
    stored = sums.lookup.weights.numel()
    assert 0 <= stored - 1000 * row_bytes(kind, 64) < 128  # a table ends at a cache line
    assert row_bytes(kind, 64) / row_bytes("fp32", 64) == pytest.approx(share, abs=1e-4)


@pytest.mark.parametrize("kind", TABLE_TYPES)
def test_rounding_is_that_of_the_closed_form(kind: TableType) -> None:
    weight = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    weight[3] = 0.25  # a row of one value
    exact, found = weight.double(), rounded(weight, kind).double()
    if kind.startswith("fp"):
        assert torch.equal(found, exact if kind == "fp32" else weight.half().double())
        return
    levels = 2 ** int(kind[3:]) - 1
    low = exact.amin(1, keepdim=True).half().double()
    step = (exact.amax(1, keepdim=True) - low) / levels
    # half a step, and what float16 takes from the scale and the offset
    bound = step / 2 + 2.0**-11 * (levels * step + exact.abs().amax(1, keepdim=True)) + 2.0**-24 * levels
    assert ((found - exact).abs() <= bound).all()
    assert all(len(row.unique()) <= levels + 1 for row in found)


def test_what_cannot_be_stored_is_refused() -> None:
    def refused(message: str, tables: EmbeddingBagCollection, kinds: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=message):
            check_types(tables, kinds)

    refused(
        "type of table 't' must be one of fp32, fp16, int8, int4, int2: got 'bfloat16'; choose fp16 instead of",
        collection(),
        {"t": "bfloat16"},
    )
    refused("got 'fp8'; choose fp16 .*, or int8 instead of fp8", collection(), {"t": "fp8"})
    refused("dim of int4 table 't' must be a multiple of 4 because rows .*: got 6;", collection(6), {"t": "int4"})
    refused(
        r"types must name every table and no others: got \['t', 'u'\] on only one side", collection(), {"u": "int8"}
    )
    mean = replace(collection().embedding_bag_configs()[0], pooling=PoolingType.MEAN)
    weighted = EmbeddingBagCollection([mean], is_weighted=True)
    refused("weighted tables must add up rows to be served: got a mean; train them with sums", weighted, {"t": "int8"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_float16_cannot_hold_are_refused(value: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = value
    with pytest.raises(
        ValueError, match=r"weights of a int8 table must be finite and at most 65504: got (nan|inf|1e\+06)"
    ):
        packed(weight, "int8")
