"""A trained model as one function of tensors, which checks ids and returns predictions, and its TorchScript form."""

import warnings

import torch
import torchrec.fx
from torch import nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from dlrm_torchrec.inference.tables.stored import STORED, stored_tensors
from dlrm_torchrec.schema import DatasetSpec

UNSEEN = {"vocab": 1}  # the id of unseen values; other encodings use the id of missing values, 0
_WHOLE = ["TableLookup", "DynamicLinear", "StaticLinear", "SparseProduct", "ColumnScales"]  # which TorchScript compiles
_WHOLE += ["IdLookup", "ServedAttention"]  # of models of histories
_WHOLE += ["NextItems", "UserItems"]  # of models that rank items


class Scorer(nn.Module):
    """Predictions for samples: probabilities, or numbers if the labels are numbers; ids may be out of range."""

    ids: torch.Tensor
    replacement: torch.Tensor

    def __init__(self, model: nn.Module, spec: DatasetSpec) -> None:
        """``model`` maps (dense (B, D), sparse KeyedJaggedTensor) to logits, or numbers, (B, L) of the L labels."""
        super().__init__()
        self.model = model
        self.keys = [feature.name for feature in spec.sparse]
        self.num_labels = len(spec.labels)
        self.binary = spec.target == "binary"
        self.weighted = any(feature.weights for feature in spec.sparse)
        self.register_buffer("ids", torch.tensor([feature.ids for feature in spec.sparse]))
        self.register_buffer("replacement", torch.tensor([UNSEEN.get(each.encoding, 0) for each in spec.sparse]))

    def forward(
        self, dense: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions (B, L), and how many ids of each feature (F,) are outside its table and count as unseen.

        ``dense`` is (B, D) float32. ``ids`` (N,) int64 holds the ids of all features, one feature after another.
        ``lengths`` (F * B,) holds the number of ids of each feature in each sample. ``weights`` (N,) float32 has a
        weight for each id; it is needed if a feature of the spec has weights, and else left out.
        """
        feature = torch.repeat_interleave(lengths.view(len(self.keys), -1).sum(1))
        outside = (ids < 0) | (ids >= self.ids[feature])
        unseen = torch.zeros_like(self.ids).index_add(0, feature, outside.long())
        ids = torch.where(outside, self.replacement[feature], ids)
        bags = KeyedJaggedTensor(
            keys=self.keys, values=ids, lengths=lengths, weights=weights if self.weighted else None
        )
        predictions = self.model(dense, bags).reshape(-1, self.num_labels)
        return torch.sigmoid(predictions) if self.binary else predictions, unseen


def script(scorer: nn.Module) -> torch.jit.ScriptModule:
    """The same function as TorchScript, which a process without this library can load and run.

    Its tables stay attributes, so that their rows can be stored and changed apart from it; the attribute ``stored``
    lists them. Equal models have equal code.
    """
    module, stored = traced(scorer), stored_tensors(scorer)
    kept = [path for tensor in stored for path in (tensor.buffer, tensor.starts, tensor.order) if path]
    if stored:
        setattr(module, STORED, [tuple(tensor) for tensor in stored])
        kept.append(STORED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of FBGEMM's annotations and of TorchScript's age; LOG.md says why it is used
        return _frozen(torch.jit.script(module), [*dict.fromkeys(kept)])


def traced(module: nn.Module) -> torch.fx.GraphModule:
    """The same function without the Python that TorchScript cannot compile."""
    graph = torchrec.fx.Tracer(leaf_modules=_WHOLE).trace(module.eval())
    for node in graph.nodes:
        if isinstance(node.type, str):  # of a file that postpones annotations; what has none is a tensor
            node.type = None
    _unpack_bags(graph)
    return torch.fx.GraphModule(module, graph)


def _frozen(program: torch.jit.ScriptModule, kept: list[str]) -> torch.jit.ScriptModule:
    """``program`` with all attributes but ``kept`` as constants, simplified until nothing changes.

    Freezing once simplifies the same program now more and now less, because TorchScript orders some sets by addresses.
    """
    code = ""
    while program.code != code:
        code = program.code
        program = torch.jit.freeze(program.eval(), kept)
    return program


def _unpack_bags(graph: torch.fx.Graph) -> None:
    """Pass the tensors of bags around without their class, whose code takes nine tenths of the time to load a model."""
    for bags in [node for node in graph.nodes if node.target is KeyedJaggedTensor]:
        for use in [use for use in bags.users if use.op == "call_method"]:
            part = {"values": "values", "lengths": "lengths", "weights_or_none": "weights"}.get(use.target)
            if part is not None:
                use.replace_all_uses_with(bags.kwargs[part])
                graph.erase_node(use)
        if not bags.users:
            graph.erase_node(bags)
