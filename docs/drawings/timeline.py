"""What came before and after DLRM."""

from __future__ import annotations

from drawings.kit import Drawing

YEARS = (
    ("2009", "matrix factorisation with biases", "table"),
    ("2010", "factorisation machines", "table"),
    ("2017", "NeuMF, DeepFM, DCN: networks join in", "dense"),
    ("2019", "DLRM; quotient-remainder tables", "result"),
    ("2020", "RMC1 to RMC3; DLRM in MLPerf", "result"),
    ("2021", "ROBE, tensor trains: 100 x smaller", "table"),
    ("2022", "TorchRec: tables sharded by a planner", "plain"),
    ("2023", "MLPerf moves to DLRM-DCNv2; CAFE, CCE", "dense"),
    ("2024", "HSTU: a user's history as a sequence", "ids"),
)


def draw() -> Drawing:
    picture = Drawing(30 + 30 * len(YEARS), "From matrix factorisation in 2009 to sequence recommenders in 2024")
    picture.line((52, 14), (52, 16 + 30 * len(YEARS)))
    for number, (year, told, kind) in enumerate(YEARS):
        y = 16 + 30 * number
        picture.text((10, y + 14), year, look="strong")
        picture.box((46, y + 4), (12, 12), kind=kind)
        picture.text((68, y + 14), told, size=12)
    return picture
