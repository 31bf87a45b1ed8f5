"""Ways to store tables that are compared with each other, by name. No torch, so that ``--help`` is quick."""

from __future__ import annotations

from functools import partial

from dlrm_torchrec.embeddings.config import TablesConfig

QR = partial(TablesConfig, kind="quotient_remainder")
PAPERS = {  # the ways of the two papers
    "plain": TablesConfig(),
    "hash": TablesConfig(kind="hash"),
    "qr-concat": QR(operation="concat"),
    "qr-add": QR(operation="add"),
    "qr-mult": QR(operation="mult"),
    "qr-features": QR(operation="feature_generation"),
    "crt-mult": TablesConfig(kind="chinese_remainder", partitions=0),
    "radix3-mult": TablesConfig(kind="mixed_radix", partitions=3),
    **{f"path-{hidden}": QR(operation="path", hidden=hidden) for hidden in (0, 16, 32, 64, 128)},
    "mixed-dims": TablesConfig(kind="mixed_dimension"),
}
WAYS = PAPERS | {
    "hot-cold": TablesConfig(kind="hot_cold"),
    "hot-hash": TablesConfig(kind="hot_cold", tail="hash"),
    "hot-concat": TablesConfig(kind="hot_cold", tail="hashes", partitions=4, operation="concat"),
    "hashes-add": TablesConfig(kind="hashes", operation="add"),  # arXiv 1709.03933
    "hashes-concat": TablesConfig(kind="hashes", partitions=4, operation="concat"),  # arXiv 2108.02191
    "tensor-train": TablesConfig(kind="mixed_radix", partitions=3, operation="tensor_train"),  # arXiv 2101.11714
    **{f"managed-{policy}": TablesConfig(kind="managed", policy=policy) for policy in ("lru", "lfu", "distance")},
}
FRONTIER = (
    "plain", "hash", "hashes-add", "hashes-concat", "qr-mult", "path-16", "crt-mult", "mixed-dims", "hot-hash",
    "hot-concat", "hot-cold",
)  # fmt: skip
ENDLESS = ("hash", "hashes-add", "managed-lru", "managed-lfu", "managed-distance")  # ways that any ids can have
