"""Yambda-5b as MLPerf Training v6.1 trains on it in dlrm_v4_hstu: tables, and how histories are cut; and a small twin.

Sources: README.MD and yambda_5b.gin in the folder ``recommendation`` of mlcommons/training, read in November 2026; the
data are those of arXiv 2505.22238. No torch, so that ``--help`` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping

from dlrm_torchrec.datasets.sequences.config import SamplesConfig
from dlrm_torchrec.schema import Cross, DatasetSpec, History, SparseFeature
from dlrm_torchrec.sequence_schema import HOUR, Mark

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


# The twin has a ten thousandth of the rows of each table, and a 128th of the events of a history.
TWIN_ROWS, TWIN_EVENTS = 10_000, 128
TWIN_SAMPLES = SamplesConfig(
    history=round(4086 / TWIN_EVENTS), candidates=1, least=round(4086 / TWIN_EVENTS), batch_by="rows", shuffle=False
)


def yambda_spec() -> DatasetSpec:
    """The spec of MLPerf's dlrm_v4_hstu: 293,051,712 rows.

    The mean number of events of a history is published for likes alone, 105 of 1,362. So the ids per sample are those
    of the longest history, as in the reference's own count of operations: an upper bound of memory and of time.
    """
    actions = (LISTENED, LIKED, SKIPPED, "dislike", "unlike", "undislike")
    return _spec("yambda-5b", ROWS, YAMBDA_SAMPLES, actions)


def yambda_twin_spec() -> DatasetSpec:
    """The spec of the twin, for the synthetic users of ``crossed``; they press no like, which are 2 % of the events."""
    rows = {name: round(count / TWIN_ROWS) for name, count in ROWS.items()}
    return _spec("yambda-twin", rows, TWIN_SAMPLES, (SKIPPED, LISTENED))


def _spec(name: str, rows: Mapping[str, int], samples: SamplesConfig, actions: tuple[str, ...]) -> DatasetSpec:
    crosses = {each: tuple(PARTS.get(part, part) for part in each.split("_x_")) for each in rows if "_x_" in each}
    return DatasetSpec(
        name=name,
        label=LISTENED,
        dense=(),
        sparse=tuple(
            SparseFeature(
                name=feature,
                rows=count,
                encoding="hash" if feature in crosses else "id",
                multi_hot=feature in EVENTS,
                pooling_factor=float(samples.tokens) if feature in EVENTS else 1.0,
            )
            for feature, count in rows.items()
        ),
        history=History(
            events=EVENTS,
            user="uid",
            marks=(Mark(name="is_organic", rows=2),),
            actions=actions,
            positive=(LISTENED,),
            crosses=tuple(Cross(name=each, of=of) for each, of in crosses.items()),
        ),
    )
