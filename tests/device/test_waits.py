"""Steps on the double of a GPU: the CPU's numbers, and nothing for which the host waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchrec.modules.embedding_configs import PoolingType

from dlrm_torchrec.embeddings.compositional.collection import CompositionalEmbeddingBagCollection
from dlrm_torchrec.embeddings.mixed_dimensions import MixedDimensionEmbeddingBagCollection
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.modules.composed_shardings import refusal
from dlrm_torchrec.train.optimizers import build_optimizer
from tests.device.cases import OPERATIONS, Case, Trained, batch_of, moved, some_of_operation, trained
from tests.device.double import META, Double, Wait
from tests.device.histories import Read, batches_of, read, spec_of
from tests.device.on_device import gradients, lookup_on_device, numbers_of, one_rank, shard, stand_in
from tests.recipe import load_recipe

# Lines that may make the host wait in a step, and why. All are in the stage of TorchRec's pipeline that sends ids.
ORDER = ("torchrec/distributed/dist_data.py", "return torch.tensor(recat, device=device, dtype=torch.int32)")
COUNTS = ("torchrec/sparse/jagged_tensor.py", "cpu_buf.copy_(src, non_blocking=True)")
COUNTS_1_6 = ("torchrec/sparse/jagged_tensor.py", ").tolist()")  # how TorchRec 1.6 reads the same counts
EXCEPTIONS = {ORDER: "TorchRec copies the order in which a batch's features come to the device"}
IF_ROW_WISE = dict.fromkeys(
    (COUNTS, COUNTS_1_6), "TorchRec reads how many ids each feature has, once ids were dealt to the ranks of their rows"
)


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    with one_rank():
        yield


def refuse(waits: Iterable[Wait], exceptions: Mapping[tuple[str, str], str] = EXCEPTIONS) -> None:
    """AssertionError for a wait that is no exception."""
    others = {wait for wait in waits if (wait.file, wait.line) not in exceptions}
    assert not others, "\n".join(f"{name} at {file}:{number}: {line}" for name, file, line, number in others)


def compare(case: Case, kind: str) -> None:
    """AssertionError unless vectors and gradients are those of the unsharded tables on the CPU, without a wait."""
    tables = CompositionalEmbeddingBagCollection(case.configs(), case.weights != "no")
    features = case.batch()
    expected = tables(features)
    towards = torch.randn_like(expected.values())
    (expected.values() * towards).sum().backward()
    weights = {name.split(".")[1]: weight for name, weight in tables.state_dict().items()}
    with Double() as device:
        model, kernels = lookup_on_device(device, case.configs(), kind, weights, weighted=case.weights != "no")
        to_vectors = towards.to(META)
        for _ in range(2):  # the first one copies constants
            for kernel in kernels:
                kernel.gradient.zero_()
            ids = moved(features)
            factors = ids.weights_or_none()
            device.clear()
            pooled = model(ids)
            vectors = torch.cat([pooled[key] for key in expected.keys()], dim=1)  # noqa: SIM118  # not a dictionary
            (vectors * to_vectors).sum().backward()
    refuse(device.waits, EXCEPTIONS | IF_ROW_WISE if kind == "row_wise" else EXCEPTIONS)
    torch.testing.assert_close(numbers_of(vectors).detach(), expected.values().detach(), rtol=1e-4, atol=1e-5)
    if kind == "column_wise":
        return  # FBGEMM puts columns in order by an operator whose gradient only a real GPU has
    found = gradients(kernels)
    for name, parameter in tables.named_parameters():
        torch.testing.assert_close(found[name.split(".")[1]], parameter.grad, rtol=1e-3, atol=1e-5)
    if factors is not None and factors.requires_grad:
        torch.testing.assert_close(numbers_of(factors.grad), features.weights().grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_table_wise(operation: Any) -> None:
    for case in some_of_operation(operation):
        compare(case, "table_wise")


@pytest.mark.parametrize("kind", ["column_wise", "row_wise", "data_parallel"])
def test_other_sharding_types(kind: str) -> None:
    for operation in OPERATIONS:
        case = Case(operation, PoolingType.SUM, "no", 3)
        if all(refusal(config, kind) is None for config in physical(case)):
            compare(case, kind)


def physical(case: Case) -> Any:
    return CompositionalEmbeddingBagCollection(case.configs(), device=META).physical_configs()


@pytest.mark.parametrize("case", trained(), ids=str)
def test_recipes(case: Trained) -> None:
    config = case.config(load_recipe(case.recipe))
    train(case.recipe, config, case.spec, [batch_of(case.spec)] * 2)


@pytest.mark.parametrize("case", read(), ids=str)
def test_recipes_that_read_histories(case: Read) -> None:
    config = case.config(load_recipe(case.recipe))
    train(case.recipe, config, spec_of(config), batches_of(config))


def train(name: str, config: Any, spec: DatasetSpec, batches: Sequence[Any]) -> None:
    """AssertionError if the host waits in the last of the batches that a recipe's model is trained on."""
    recipe = load_recipe(name)
    with Double() as device:
        task, tables = recipe.build(config, spec, 1, META)
        stored = tables.tables if isinstance(tables, MixedDimensionEmbeddingBagCollection) else tables
        model = shard(task, stored, "table_wise", torch.optim.SGD).to(META)
        stand_in(model, device)
        dense = replace(config.dense, kind="adagrad")  # a GPU's Adam is one kernel, which meta tensors do not have
        optimizer = build_optimizer(model, config.sparse, dense, clip_norm=1.0)
        for batch in batches:
            moved_batch = batch.to(META)
            device.clear()
            optimizer.zero_grad()
            loss, _ = model(moved_batch)
            loss.backward()
            optimizer.step()
    refuse(device.waits)
    assert torch.isfinite(numbers_of(loss))


def test_waits_are_noticed() -> None:
    with Double() as device:
        numbers, where = torch.arange(4, device=META), torch.tensor([True, False, True, True], device=META)
        device.clear()
        for wait in (
            lambda: numbers.tolist(),
            lambda: numbers[0].item(),
            lambda: bool((numbers > 2).any()),
            lambda: numbers.cpu(),
            lambda: torch.unique(numbers),
            lambda: numbers.nonzero(),
            lambda: numbers[where],
            lambda: numbers.masked_select(where),
            lambda: torch.tensor([1, 2], device=META),
            lambda: torch.arange(2).to(META),
            lambda: torch.arange(2).to(META, non_blocking=True),
            lambda: torch.arange(2).pin_memory().to(META),
            lambda: numbers[torch.tensor([1])],
            lambda: torch.repeat_interleave(numbers, numbers),
            lambda: torch.bincount(numbers),
            lambda: torch.equal(numbers, numbers),
        ):
            before = len(device.waits)
            wait()
            assert len(device.waits) == before + 1
        for refused in (
            lambda: numbers + torch.ones(4),
            lambda: numbers.numpy(),
            lambda: torch.rand(3, generator=torch.Generator(), device=META),
        ):
            with pytest.raises(RuntimeError, match=r"device|subclasses"):
                refused()
        before = len(device.waits)
        torch.arange(2).pin_memory().to(META, non_blocking=True)
        numbers.repeat_interleave(numbers, output_size=6)
        numbers.mul(2.0).sum().sqrt()
        assert len(device.waits) == before
