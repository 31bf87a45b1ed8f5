"""The scripted scorer: it returns the trained model's probabilities for any ids."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.embeddings.config import TablesConfig
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection
from dlrm_torchrec.embeddings.tables import Tables, build_tables
from dlrm_torchrec.inference.scoring import Scorer, script
from dlrm_torchrec.inference.tables.serve import serve_tables, table_weights
from dlrm_torchrec.models.dlrm_cat import DLRMCat
from dlrm_torchrec.models.factorization_machine import DeepFM, FactorizationMachine
from dlrm_torchrec.models.heads import add_heads
from dlrm_torchrec.schema import DatasetSpec, DenseFeature, Label, SparseFeature

ROWS, BATCH = 50, 6
SPEC = DatasetSpec(
    name="small",
    label="click",
    dense=tuple(DenseFeature(name=f"d{i}") for i in range(5)),
    sparse=tuple(
        SparseFeature(name=f"s{i}", rows=ROWS, multi_hot=i == 1, encoding="vocab" if i == 2 else "id") for i in range(4)
    ),
)
FEATURES = [feature.name for feature in SPEC.sparse]
MODELS: dict[str, Callable[[Tables], nn.Module]] = {
    "dlrm": lambda tables: DLRM(tables, 5, [16, 8], [16, 1]),
    "dcn": lambda tables: DLRM_DCN(tables, 5, [16, 8], [16, 1], 2, 4),
    "cat": lambda tables: DLRMCat(tables, 5, [16, 8], [16, 1]),
    "fm": lambda tables: FactorizationMachine(tables, 5),
    "deepfm": lambda tables: DeepFM(tables, 5, [8, 1]),
}
KINDS = {
    "plain": TablesConfig(),
    "qr": TablesConfig(kind="quotient_remainder", threshold=10),
    "mixed": TablesConfig(kind="mixed_dimension", threshold=10),
}


def build(model: str, kind: str) -> tuple[nn.Module, Tables]:
    torch.manual_seed(0)
    tables = build_tables(SPEC.tables(8), KINDS[kind], torch.device("cpu"))
    (tables.tables if isinstance(tables, MixedDimensionEmbeddingBagCollection) else tables).to_empty(device="cpu")
    for weight in table_weights(tables).values():
        nn.init.normal_(weight.data, std=0.3)
    return MODELS[model](tables).eval(), tables


def sample(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dense columns, ids and lengths: one-hot features, and bags of none to three."""
    torch.manual_seed(seed)
    lengths = torch.ones(4, BATCH, dtype=torch.int32)
    lengths[1] = torch.randint(0, 4, (BATCH,))
    return torch.randn(BATCH, 5), torch.randint(ROWS, (int(lengths.sum()),)), lengths.flatten()


def reloaded(model: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(model, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


@pytest.mark.parametrize(
    ("model", "kind"), [*((model, "plain") for model in MODELS), ("dlrm", "qr"), ("deepfm", "qr"), ("dcn", "mixed")]
)
def test_its_probabilities_are_the_trained_models(model: str, kind: str) -> None:
    module, tables = build(model, kind)
    dense, ids, lengths = sample()
    with torch.inference_mode():
        logits = module(dense, KeyedJaggedTensor(keys=FEATURES, values=ids, lengths=lengths))
    serve_tables(module, tables, dict.fromkeys(table_weights(tables), "fp32"), FEATURES)
    served = reloaded(script(Scorer(module, SPEC)))
    with torch.inference_mode():
        for _ in range(3):  # TorchScript compiles anew in its second call
            probabilities, unseen = served(dense, ids, lengths)
    assert logits.std() > 0.01
    torch.testing.assert_close(probabilities, torch.sigmoid(logits), rtol=0, atol=1e-5)
    assert unseen.tolist() == [0, 0, 0, 0]


RICH = DatasetSpec(
    name="any names",
    label="click",
    more_labels=(Label(name="buy.2"), Label(name="../z")),
    target="number",
    dense=SPEC.dense,
    sparse=(
        SparseFeature(name="user.city", rows=ROWS, table="../towns"),
        SparseFeature(name="home town/ø", rows=ROWS, table="../towns", multi_hot=True, weights="w"),
        SparseFeature(name=" ", rows=ROWS, column="x"),
        SparseFeature(name="a#b%c", rows=ROWS, dim=4),
    ),
)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_several_labels_with_weights_of_ids_under_any_names(kind: str) -> None:
    torch.manual_seed(0)
    sparse = tuple(replace(each, dim=0) if kind == "qr" else each for each in RICH.sparse)
    spec = replace(RICH, sparse=sparse)
    tables = build_tables(spec.tables(8), KINDS[kind], torch.device("cpu"))
    (tables.tables if isinstance(tables, MixedDimensionEmbeddingBagCollection) else tables).to_empty(device="cpu")
    for weight in table_weights(tables).values():
        nn.init.normal_(weight.data, std=0.3)
    module = DLRM(tables, 5, [16, 8], [16, 1]).eval()
    add_heads(module, [0.0, 0.0, 0.0])
    dense, ids, lengths = sample()
    weights = torch.randn(len(ids))
    names = [feature.name for feature in spec.sparse]
    with torch.inference_mode():
        expected = module(dense, KeyedJaggedTensor(keys=names, values=ids, lengths=lengths, weights=weights))
        unweighted = module(dense, KeyedJaggedTensor(keys=names, values=ids, lengths=lengths, weights=weights.sign()))
    serve_tables(module, tables, dict.fromkeys(table_weights(tables), "fp32"), names)
    served = reloaded(script(Scorer(module, spec)))
    with torch.inference_mode():
        for _ in range(3):
            predictions, unseen = served(dense, ids, lengths, weights)
    assert predictions.shape == (BATCH, 3)
    assert (predictions - unweighted).abs().max() > 0.01
    torch.testing.assert_close(predictions, expected, rtol=0, atol=1e-5)
    assert unseen.tolist() == [0, 0, 0, 0]


def test_ids_outside_of_a_table_count_as_unseen_and_other_rows_keep_their_probability() -> None:
    module, tables = build("dlrm", "qr")
    serve_tables(module, tables, dict.fromkeys(table_weights(tables), "int8"), FEATURES)
    served = script(Scorer(module, SPEC))
    dense, ids, lengths = sample()
    given, known = ids.clone(), ids.clone()
    for place, value, in_its_place in ((0, ROWS, 0), (len(ids) - BATCH - 1, 2**62, 1), (-1, -1, 0)):
        given[place], known[place] = value, in_its_place  # of the first, the third (vocab), the last feature
    with torch.inference_mode():
        found, unseen = served(dense, given, lengths)
        expected, _ = served(dense, known, lengths)
    assert torch.equal(found, expected)
    assert unseen.tolist() == [1, 0, 1, 1]


def test_any_number_of_rows() -> None:
    module, tables = build("dlrm", "plain")
    serve_tables(module, tables, dict.fromkeys(table_weights(tables), "int4"), FEATURES)
    served = script(Scorer(module, SPEC))
    dense, ids, lengths = sample()
    bags = ids.split(lengths.tolist())
    with torch.inference_mode():
        whole, _ = served(dense, ids, lengths)
        for row in range(BATCH):
            own = [bags[feature * BATCH + row] for feature in range(4)]
            one, _ = served(dense[row : row + 1], torch.cat(own), torch.tensor([len(bag) for bag in own]).int())
            torch.testing.assert_close(one, whole[row : row + 1], rtol=0, atol=1e-5)
