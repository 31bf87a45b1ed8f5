"""How torch's threads wait for work: for a moment, so that the threads of lookups get the cores.

libgomp lets a thread spin for several milliseconds after each parallel region, which costs lookups half of a core. It
reads the number of turns once, when torch is imported.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "50000")
