"""The page of a map: a feature's values in a plane, which tells a point's value where it is pointed at."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from pathlib import Path
from typing import Any

import torch

from dlrm_torchrec.cli.vectors.colours import Colouring, by_file, by_frequency
from dlrm_torchrec.cli.vectors.plane import By, Plane, plane
from dlrm_torchrec.cli.vectors.source import CHUNK_IDS, Source
from dlrm_torchrec.pages.quantities import share
from dlrm_torchrec.pages.render import render

TEMPLATE = Path(__file__).with_name("map.html")
SCRIPT = Path(__file__).with_name("map.js")
MOST_POINTS = 20_000  # that a browser draws while one points at them
LISTED = 50  # values in the table below the map
NO_COLOUR = -1
SHADES = 100  # of a scale


def page(source: Source, *, by: By, colour: str) -> str:
    """One HTML document of a map, which needs nothing else; ``colour`` is a file to colour by, or empty.

    Raises ValueError when there are too few values, or when the file does not have them.
    """
    chosen, available = source.most_frequent(MOST_POINTS)
    ids = chosen.tolist()
    colouring = by_file(colour, source.values, ids) if colour else by_frequency(source.values, source.counts, ids)
    vectors = torch.cat([source.read(part) for part in torch.from_numpy(chosen).split(CHUNK_IDS)]) if ids else None
    drawn = plane(torch.empty(0, 1) if vectors is None else vectors, by)
    names, counts = [source.values.name(id) for id in ids], source.counts
    seen = [] if counts is None else [f"{times:,}" for times in counts.times[chosen].tolist()]
    script = SCRIPT.read_text()
    return render(
        TEMPLATE,
        title=source.values.feature.name,
        source=source.title,
        script=script,
        digest=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        ratio=_ratio(drawn),
        points=_points(drawn, colouring, names, seen),
        shown=len(ids),
        available=available,
        whole=source.values.feature.rows,
        counted=counts is not None or source.values.by_frequency,
        least=source.least_seen if counts is not None else 0,
        hashed=source.values.feature.encoding == "hash",
        dim=0 if vectors is None else vectors.size(1),
        method=by,
        shares=[share(each, 1) for each in drawn.shares],
        both=share(sum(drawn.shares), 1),
        colouring=colouring,
        missing=sum(number is None for number in colouring.numbers),
        basis="" if counts is None else str(counts),
        rows=_rows(drawn, colouring, names, seen),
    )


def _ratio(drawn: Plane) -> float:
    """Width by height of the sheet: that of the map, unless it is extreme."""
    across, upwards = map(float, drawn.places.amax(0) - drawn.places.amin(0))
    return min(2.0, max(0.8, across / (upwards or 1e-9)))


def _points(drawn: Plane, colouring: Colouring, names: list[str], seen: list[str]) -> dict[str, Any]:
    """What the script draws: places with the larger extent from 0 to 1, y upwards, and the texts of each point."""
    places = drawn.places - drawn.places.amin(0)
    places = places / (places.max() or 1)
    most = 1 if colouring.kinds else SHADES
    return {
        "x": [round(each, 4) for each in places[:, 0].tolist()],
        "y": [round(each, 4) for each in places[:, 1].tolist()],
        "names": names,
        "seen": seen,
        "title": colouring.title,
        "texts": colouring.texts if colouring.title and colouring.texts != seen else [],
        "colours": [NO_COLOUR if each is None else round(most * each) for each in colouring.numbers],
        "kinds": len(colouring.kinds),
        "shades": SHADES,
    }


def _rows(drawn: Plane, colouring: Colouring, names: list[str], seen: list[str]) -> list[list[str]]:
    """The cells of the table: name, times seen, what it is coloured by, and its place."""
    cells = zip(names, seen or [""] * len(names), colouring.texts, drawn.places.tolist(), strict=True)
    return [
        [name, times, text, *(f"{each:.3f}" for each in place)] for name, times, text, place in list(cells)[:LISTED]
    ]
