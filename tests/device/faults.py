"""Faults that only a GPU would show, planted one at a time in a copy of the project, and the test that finds each."""

from __future__ import annotations

from typing import NamedTuple

EMBEDDINGS, MODULES = "dlrm_torchrec/embeddings/compositional", "dlrm_torchrec/sharding/modules"
META, WAITS, OPERATORS, OVERLAP = (f"tests/device/test_{name}.py" for name in ("meta", "waits", "operators", "overlap"))


class Fault(NamedTuple):
    what: str
    file: str
    right: str  # stands once in the file
    wrong: str
    test: str  # file
    keyword: str  # of the tests in it that find the fault


FAULTS = [
    Fault(
        "a constant without its device",
        f"{EMBEDDINGS}/row_map.py",
        "widths=torch.tensor(last - first, device=device)",
        "widths=torch.tensor(last - first)",
        META,
        "test_operations and Add",
    ),
    Fault(
        "a range without its device",
        f"{EMBEDDINGS}/paths/grouped.py",
        "each = torch.arange(num_classes, device=device)",
        "each = torch.arange(num_classes)",
        META,
        "test_operations and Path",
    ),
    Fault(
        "offsets without their device",
        f"{EMBEDDINGS}/table_group.py",
        "torch.arange(len(both) + 1, device=both.device)",
        "torch.arange(len(both) + 1)",
        WAITS,
        "test_table_wise and Mult",
    ),
    Fault(
        ".cpu() of the lengths of bags",
        f"{EMBEDDINGS}/pooling.py",
        "bags.lengths.clamp(min=1)[:, None]",
        "bags.lengths.cpu().clamp(min=1)[:, None].to(pooled.device)",
        META,
        "test_operations and Mult",
    ),
    Fault(
        "a branch on values",
        f"{EMBEDDINGS}/bags.py",
        "not vectors.is_cuda and bool(",
        "bool(",
        META,
        "test_operations and Mult",
    ),
    Fault(
        "tolist() of counts that the host knows",
        f"{EMBEDDINGS}/row_map.py",
        "counts.tolist() if bags.per_feature is None else bags.per_feature",
        "counts.tolist()",
        META,
        "test_operations and Add",
    ),
    Fault(
        "counts by NumPy",
        f"{EMBEDDINGS}/table_group.py",
        "counts = bags.lengths.view(self.num_features, -1).sum(1)\n",
        "counts = torch.from_numpy(bags.lengths.view(self.num_features, -1).numpy().sum(1))\n",
        WAITS,
        "test_other_sharding_types and row_wise",
    ),
    Fault(
        "nonzero() to find bad ids",
        f"{EMBEDDINGS}/row_map.py",
        "torch._assert_async(good.all())",
        "assert len((~good).nonzero()) == 0",
        META,
        "test_operations and Add",
    ),
    Fault(
        "constants that are copied in every step",
        f"{EMBEDDINGS}/row_map.py",
        "if values.device not in self._tensors:",
        "if values.device.type:",
        WAITS,
        "test_table_wise and Add",
    ),
    Fault(
        "unique() of ids",
        f"{EMBEDDINGS}/operations.py",
        'if bags.values.device.type == "cpu":\n            ids, places',
        "if len(bags.values):\n            ids, places",
        META,
        "test_operations and Path",
    ),
    Fault(
        "a mask that chooses elements",
        f"{EMBEDDINGS}/paths/grouped.py",
        "blocks.view(num_blocks * block, -1)[slots]",
        "blocks.view(num_blocks * block, -1)[slots[slots >= 0]]",
        META,
        "test_operations and Path",
    ),
    Fault(
        "counts of a sharded table's features, read from the device",
        f"{MODULES}/composed_kernels.py",
        "features.length_per_key(),",
        "features.lengths().view(len(features.keys()), -1).sum(1).tolist(),",
        WAITS,
        "test_table_wise and Mult",
    ),
    Fault(
        "counts of features that a sharded table's kernel does not get",
        f"{MODULES}/rows_of_features.py",
        "ids.weights_or_none(), ids.length_per_key()))\n    keys",
        "ids.weights_or_none()))\n    keys",
        WAITS,
        "test_table_wise and Concat",
    ),
    Fault(
        "numbers of the host among rows that ranks share",
        f"{MODULES}/spread_group.py",
        'lengths = self._kept("own lengths", device, lambda: self._own_lengths)',
        "lengths = self._own_lengths",
        WAITS,
        "test_other_sharding_types and row_wise",
    ),
    Fault(
        "item() of the loss",
        "dlrm_torchrec/train/task.py",
        "return loss, (loss.detach(), outputs.detach(), batch.global_rows)",
        "return loss, (loss.detach() * (loss.item() < 1e9), outputs.detach(), batch.global_rows)",
        META,
        "test_recipes and train_dlrm and clicks",
    ),
    Fault(
        "labels that are known, counted on the host",
        "dlrm_torchrec/train/task.py",
        "known = (~labels.isnan()).float()",
        "known = torch.ones_like(labels) if not labels.isnan().any() else (~labels.isnan()).float()",
        META,
        "test_recipes and data",
    ),
    Fault(
        "numbers of tokens that move to the device",
        "dlrm_torchrec/datasets/sequences/batch.py",
        'if name not in ("lengths", "num_candidates")}',
        "if name}",
        WAITS,
        "histories and train_hstu_next_item",
    ),
    Fault(
        "indices of sequences that are not copied from pinned memory",
        "dlrm_torchrec/models/hstu/attention/layout.py",
        "tensor.pin_memory().to(device, non_blocking=True)",
        "tensor.to(device, non_blocking=True)",
        WAITS,
        "histories and train_hstu_next_item",
    ),
    Fault(
        "a kernel for each table",
        f"{MODULES}/composed_kernels.py",
        'return f"{config.operation}, {len(config.stack.sizes)}',
        'return f"{config.name}, {config.operation}, {len(config.stack.sizes)}',
        OPERATORS,
        "kaggle and quotient_remainder and mult",
    ),
    Fault(
        "vectors that are sent after all tables were read",
        f"{MODULES}/concurrent.py",
        'if any(features.device().type != "cpu" for features in input):',
        "if not input:",
        OVERLAP,
        "test_order",
    ),
]
