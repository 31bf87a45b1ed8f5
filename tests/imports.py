"""What the processes of ``run_ranks`` have imported before they start: this library, and what its tests use."""

from __future__ import annotations

import gc
import importlib
import pkgutil

import hypothesis  # noqa: F401  # by the modules of tests that ranks import to find their function
import pytest  # noqa: F401  # likewise
import torch

import dlrm_torchrec

torch.set_num_threads(1)  # OpenMP's threads are not forked, and a child that looks for its parent's waits for ever
for module in pkgutil.walk_packages(dlrm_torchrec.__path__, "dlrm_torchrec."):
    importlib.import_module(module.name)

gc.freeze()  # or every process would go through all that is imported to find garbage in it
