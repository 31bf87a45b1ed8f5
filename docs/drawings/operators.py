"""The same DLRM with the operators that compute its parts."""

from __future__ import annotations

from drawings.dlrm import frame
from drawings.kit import Drawing


def draw() -> Drawing:
    picture = Drawing(
        404, "DLRM with the operator of each part: addmm, embedding bag, bmm, addmm, binary cross-entropy"
    )
    frame(
        picture,
        dense=("aten::addmm", "TorchRec: MLP"),
        tables=("fbgemm:: (many tables)", "EmbeddingBagCollection"),
        interaction=("aten::cat, aten::bmm, index", "TorchRec: InteractionArch"),
        top=("aten::addmm", "TorchRec: OverArch, an MLP"),
        end=("binary_cross_entropy", "with logits: sigmoid and loss in one"),
    )
    return picture
