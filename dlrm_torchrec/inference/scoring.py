"""A trained model as one function of tensors, which checks ids and returns probabilities, and its TorchScript form."""

import warnings

import torch
import torchrec.fx
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.schema import DatasetSpec

UNSEEN = {"vocab": 1}  # the id of unseen values; other encodings use the id of missing values, 0


class Scorer(nn.Module):
    """Probabilities of samples; ids may be out of range."""

    rows: torch.Tensor
    replacement: torch.Tensor

    def __init__(self, model: nn.Module, spec: DatasetSpec) -> None:
        """``model`` maps (dense (B, D), sparse KeyedJaggedTensor) to logits (B, 1)."""
        super().__init__()
        self.model = model
        self.keys = [feature.name for feature in spec.sparse]
        self.register_buffer("rows", torch.tensor([feature.rows for feature in spec.sparse]))
        self.register_buffer("replacement", torch.tensor([UNSEEN.get(each.encoding, 0) for each in spec.sparse]))

    def forward(
        self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities (B,), and how many ids of each feature (F,) are outside its table and count as unseen.

        ``dense`` is (B, D) float32. ``ids`` (N,) int64 holds the ids of all features, one feature after another.
        ``lengths`` (F * B,) holds the number of ids of each feature in each sample.
        """
        feature = torch.repeat_interleave(lengths.view(len(self.keys), -1).sum(1))
        outside = (ids < 0) | (ids >= self.rows[feature])
        unseen = torch.zeros_like(self.rows).index_add(0, feature, outside.long())
        ids = torch.where(outside, self.replacement[feature], ids)
        logits = self.model(dense, KeyedJaggedTensor(keys=self.keys, values=ids, lengths=lengths))
        return torch.sigmoid(logits).flatten(), unseen


def script(scorer: Scorer) -> torch.jit.ScriptModule:
    """The same function as TorchScript, which a process without this library can load and run."""
    whole = ["ServedTables", "DynamicLinear", "StaticLinear", "SparseProduct", "ColumnScales"]
    graph = torchrec.fx.Tracer(leaf_modules=whole).trace(scorer.eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of FBGEMM's annotations and of TorchScript's age; LOG.md says why it is used
        scripted: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(torch.fx.GraphModule(scorer, graph)))
    return scripted
