"""Neural matrix factorisation."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import nn
from torchrec.modules.mlp import MLP


class NeuMF(nn.Module):
    """h · [p_u ⊙ q_i ‖ MLP([p'_u ‖ q'_i])] + b: matrix factorisation and an MLP (arXiv 1708.05031, equation 12).

    ``mlp`` begins with the width of its input [p'_u ‖ q'_i]; every layer ends in a ReLU. A row of a table holds the
    ``gmf_dim`` numbers of p and then the ``mlp[0] / 2`` numbers of p', so one lookup fetches both. Weights start as in
    MLPerf: Glorot's initialisation in the MLP, LeCun's in h.
    """

    def __init__(self, gmf_dim: int, mlp: Sequence[int], device: torch.device | None = None) -> None:
        super().__init__()
        if len(mlp) < 2 or mlp[0] % 2:
            raise ValueError(
                f"widths of the MLP must be an even input width and at least one layer: got {tuple(mlp)}; try 32 16 8"
            )
        self.gmf_dim = gmf_dim
        self.table_dim = gmf_dim + mlp[0] // 2
        self.mlp = MLP(mlp[0], list(mlp[1:]), device=device)
        self.output = nn.Linear(gmf_dim + mlp[-1], 1, device=device)
        for name, parameter in self.mlp.named_parameters():
            nn.init.xavier_uniform_(parameter) if name.endswith("weight") else nn.init.zeros_(parameter)
        limit = sqrt(3 / self.output.in_features)
        nn.init.uniform_(self.output.weight, -limit, limit)
        nn.init.zeros_(self.output.bias)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1) from the row of the user and the row of the item, (B, ``table_dim``) each."""
        gmf = user[:, : self.gmf_dim] * item[:, : self.gmf_dim]
        hidden = self.mlp(torch.cat([user[:, self.gmf_dim :], item[:, self.gmf_dim :]], dim=1))
        logits: torch.Tensor = self.output(torch.cat([gmf, hidden], dim=1))
        return logits
