"""Yambda-5b as MLPerf Training v6.1 trains on it in dlrm_v4_hstu: its tables, and how histories are cut.

Sources: README.MD and yambda_5b.gin in the folder ``recommendation`` of mlcommons/training, read in November 2026; the
data are those of arXiv 2505.22238. No torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.schema import Cross, DatasetSpec, History, SparseFeature
from dlrm_torchrec.sequence_schema import HOUR

ROWS = {
    "item": 9_390_624,
    "artist": 1_293_395,
    "album": 3_367_692,
    "uid": 1_000_001,
    "user_x_artist": 100_000_000,
    "user_x_album": 40_000_000,
    "user_x_hour": 24_000_000,
    "item_x_hour": 40_000_000,
    "artist_x_hour": 32_000_000,
    "user_x_is_organic": 2_000_000,
    "user_x_artist_x_hour": 40_000_000,
}
EVENTS = ("item", "artist", "album")
PARTS = {"user": "uid", "hour": HOUR}  # what crosses call them, and their columns
LISTENED, LIKED, SKIPPED = "listen_plus", "like", "skip"  # listened to half of it at least; pressed; less than half

# A candidate is a listen after 4,086 events at least. Its history is the last 1,362 events of each of three pools
# within the last 20,000, so a sequence has at most 4,087 events beside its 8 entries of context.
YAMBDA_SAMPLES = SamplesConfig(
    history=4086, candidates=1, least=4086, within=20_000, pools=(LISTENED, LIKED, SKIPPED),
    anchors=(LISTENED, SKIPPED), batch_by="rows", shuffle=False,
)  # fmt: skip


def yambda_spec() -> DatasetSpec:
    """The spec of MLPerf's dlrm_v4_hstu: 293,051,712 rows.

    The mean number of events of a history is published for likes alone, 105 of 1,362. So the ids per sample are those of
    the longest history, as in the reference's own count of operations: an upper bound of memory and of time.
    """
    tokens = float(YAMBDA_SAMPLES.tokens)
    crosses = tuple(
        Cross(name=name, of=tuple(PARTS.get(part, part) for part in name.split("_x_")))
        for name in ROWS
        if "_x_" in name
    )
    crossed = {cross.name for cross in crosses}
    return DatasetSpec(
        name="yambda-5b",
        label=LISTENED,
        dense=(),
        sparse=tuple(
            SparseFeature(
                name=name,
                rows=rows,
                encoding="hash" if name in crossed else "id",
                multi_hot=name in EVENTS,
                pooling_factor=tokens if name in EVENTS else 1.0,
            )
            for name, rows in ROWS.items()
        ),
        history=History(
            events=EVENTS,
            marks=("is_organic",),
            actions=(LISTENED, LIKED, SKIPPED, "dislike", "unlike", "undislike"),
            positive=(LISTENED,),
            crosses=crosses,
        ),
    )
