"""The times by which planners compare plans."""

from __future__ import annotations

from copy import deepcopy

from dlrm_torchrec.sharding.planner.enumerator import StepPerf


def test_a_deep_copy_keeps_the_ids_way_in_the_total() -> None:
    perf = StepPerf(fwd_compute=1.0, fwd_comms=1.0, bwd_compute=1.0, bwd_comms=1.0, input_dist_comms=5.0)
    for copy in (deepcopy(perf), deepcopy([perf])[0]):
        assert type(copy) is StepPerf
        assert copy.total == perf.total == 9.0
        assert vars(copy) == vars(perf)
