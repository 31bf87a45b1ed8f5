"""Synthetic users of ``synthetic``'s kind, whose likes also depend on crosses: the small twin of Yambda-5b.

Items belong to albums, and these to artists; an interest has all the items of a quarter of the artists. The logit of a
listen is the sum of a large number that says whether the artist is of the user's interest, and of an effect for the
item, one for the user and one for each cross. Effects belong to the ids that a cross is made of, and not to its hash:
ids that share a row of a table have effects of their own, and a model can at best learn the mean of these.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlrm_torchrec.datasets.random import counter
from dlrm_torchrec.datasets.random.normal import normals
from dlrm_torchrec.datasets.sequences.collate import hashes
from dlrm_torchrec.datasets.sequences.log import EventLog, Ids, history_of
from dlrm_torchrec.datasets.sequences.synthetic import FITS, FITS_NOT, INTERESTS, Floats, Interests
from dlrm_torchrec.datasets.synthetic.zipf import Zipf

BIAS = 1.2  # so that three of five songs are listened to
QUALITY, TASTE, CROSSED = 0.5, 0.5, 0.7  # deviations of the effects of items, users and crosses


class CrossedInterests(Interests):
    """The users of a spec with the features item, artist, album and uid, the mark is_organic, and crosses."""

    least_events: ClassVar[int] = 4_763  # Yambda's mean
    most_events: ClassVar[int] = 4_763
    visit_gap_s: ClassVar[int] = 86_400  # so that 300 days go by, as in Yambda

    def _events(self, keys: counter.Words) -> dict[str, Ids]:
        rows = self._rows()
        items = Zipf(rows["item"], 1.1).ids(counter.uniforms(counter.words(keys, 4)))
        albums = (counter.words(self._key(3), items) % np.uint64(rows["album"])).astype(np.int32)
        artists = (counter.words(self._key(4), albums) % np.uint64(rows["artist"])).astype(np.int32)
        organic = (counter.words(keys, 6) % np.uint64(2)).astype(np.int32)
        return {"item": items.astype(np.int32), "artist": artists, "album": albums, "is_organic": organic}

    def _users(self) -> dict[str, Ids]:
        return {"uid": (np.arange(self.users) % self._rows()["uid"]).astype(np.int32)}

    def _logits(self, log: EventLog) -> Floats:
        rows, every = self._rows(), np.arange(len(log))
        known = BIAS + QUALITY * self._normals(1, rows["item"])[log.events["item"]]
        known += TASTE * self._normals(2, rows["uid"])[log.users["uid"][log.user_of]]
        for number, cross in enumerate(history_of(self.spec).crosses):
            effects = counter.words(self._key(5 + number), hashes(cross, log, every))
            known += CROSSED * normals(effects[:, None])[:, 0]
        belongs = log.events["artist"][:, None] % INTERESTS == np.arange(INTERESTS)
        logits: Floats = np.where(belongs, FITS, FITS_NOT) + known[:, None]
        return logits
