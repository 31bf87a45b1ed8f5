"""The patterns by which reproduce.py reads numbers, against lines as the benchmarks print them."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.data import load_script
from tests.recipe import ROOT

script = load_script(ROOT / "benchmarks/reproduce.py")
# The checks whose number stands in a printed line, not in the JSON of a recipe.
PRINTED = {check.row: check for check in script.CHECKS if isinstance(check.read, script.Printed)}


class Line(NamedTuple):
    """What a program prints, with lines that a pattern could take for the right one, and the number to be read."""

    program: str  # a benchmark; empty for a recipe
    text: str
    number: float


COSTS = """parameters
                     embedding            bottom       interaction               top   in MLPs and interaction
FM                 540,201,232               208                 1                 0                     0.00%

multiply-adds of a sample
                     embedding            bottom       interaction               top   in MLPs and interaction
LR                         104                 0                 0                13                    11.11%
FM                         416               208               600                 0                    66.01%
DeepFM                     312               156               440           492,000                    99.94%

model                        RMC1              RMC2              RMC3
top FC                      4 - 1             2 - 1             8 - 4
tables                          1                 4              1.25
rows                            1             0.125               0.5
"""
PLANNER = """2x8:h100, 5 rounds, medians: dry run 0.43 s (0.43 to 0.61), TorchRec's planner 0.42 s: 1.04 of its time
fullest rank 11.66 GB, slowest 3.09 ms, with TorchRec's plan 3.62 ms
50 tables on 2x8:h100: 0.5 s, slowest rank 8.43 ms; TorchRec's planner 2.0 s, 8.73 ms
100 tables on 2x8:h100: 2.3 s, slowest rank 14.51 ms; TorchRec's planner 6.5 s, 15.11 ms
"""
PLAN = """  15       0.654       0.654    1.418 /   80.0    0.000 /  250.0     2.997             1.059        0.287

topology              ranks  GB, fullest      of  ms, slowest  rows/s of tables
2x8:h100                 16       11.659    80.0        3.426  19,128,307
wrote  plan.json, plan.html (open it in a browser)
"""
FIT = """ids per row          bytes   equally    fitted  estimated  ratio
          2    969,012,344    1.2020    0.0840     0.0861  0.07
          4    484,506,172    2.0312    0.1821     0.1790  0.09
"""
PAIRS = """     512     0.511       0.832    43.744      66.837    79.76 (79.91)
square of a sum: n^0.54; from 64 features on n^0.79
pair by pair: n^1.62; from 64 features on n^2.38
"""
INTEGERS = """| threads | product | ms | Gops/s | of torch's time |
| 1 | int64_matmul | 36.9 | 58.2 | 1.04 |
| 2 | torch | 35.8 | 60.0 | 1.00 |
| 2 | int64_matmul | 28.1 | 76.4 | 0.78 |
"""
LAYERS = """| layers | batch | fp32 us | Gop/s | static | dynamic | bf16 | product |
| rmc3 | 16 | 1,016 | 101.2 | 0.31 | 0.19 | 0.60 | 0.15 |
| rmc3 | 64 | 4,024 | 102.4 | 0.20 | 0.15 | 0.40 | 0.13 |
"""
LATENCY = """| model | batch | contender | p50 ms | p95 | p99 | items/s | of fp32 eager |
| dlrm | 64 | fp32 eager | 1.890 | 2.034 | 2.048 | 33,862 | 1.00 |
| dlrm | 64 | int8 tables | 1.230 | 1.333 | 1.439 | 52,032 | 0.65 |
| dlrm | 64 | int8 tables + int8 MLP | 0.470 | 0.481 | 0.484 | 136,170 | 0.25 |
| dlrm | 512 | int8 tables + int8 MLP | 3.800 | 3.881 | 3.984 | 134,736 | 0.34 |
| rmc1 | 64 | int8 tables | 0.830 | 0.905 | 0.912 | 77,127 | 0.59 |
| rmc1 | 64 | int8 tables + int8 MLP | 0.590 | 0.705 | 0.712 | 108,474 | 0.42 |
"""
LOAD = """| model | contender | queries/s | items/s | p95 ms | of fp32 eager |
| dlrm | fp32 eager | 112 | 18,480 | 24.1 | 1.00 |
| dlrm | int8 tables | 116 | 19,140 | 24.4 | 1.04 |
| dlrm | int8 tables + int8 MLP | 461 | 76,065 | 24.9 | 4.12 |
"""
TRAFFIC = """kB for a sample; a cache of 32 MB
| model | ids | rows | rows' bytes | lines | from memory | in all | in all, of fp32 | us | us, of fp32 | counted |
| rmc1 | uniform | fp32 | 81.9 | 81.9 | 78.0 | 97.0 | 1.00 | 1,421 | 1.00 | - |
| rmc1 | uniform | int8 | 23.0 | 61.4 | 52.1 | 71.2 | 0.73 | 1,021 | 0.72 | - |
| rmc1 | frequent | int8 | 23.0 | 61.4 | 20.1 | 39.2 | 0.77 | 821 | 0.70 | - |
| rmc2 | uniform | int8 | 261.1 | 491.5 | 480.2 | 510.3 | 0.47 | 2,565 | 0.57 | - |
| rmc2 | uniform | int4 | 138.2 | 368.6 | 350.1 | 372.0 | 0.34 | 4,320 | 0.96 | - |
"""
ROOF = """one core: 42.0 GB/s copied in order, 102 Gop/s in a product

| model | part | batch | us | operations/byte | GB/s | Gop/s | of its roof | rows read GB/s, of it |
| rmc1 | lookups | 64 | 1,421 | 0.25 | 3.3 | 0.9 | 0.85 | 4.2, 0.80 |
| rmc1 | lookups | 256 | 5,668 | 0.25 | 3.7 | 0.9 | 0.88 | 4.2, 0.89 |
| rmc1 | MLPs | 256 | 542 | 31.00 | 3.1 | 94.9 | 0.93 |  |
"""
PLACES = """2 cores
| model | form | processes | cores | ms alone | latency | core time | throughput |
| rmc2 | fp32 | 2 | 2 | 3.10 | 1.02 (1.01 to 1.04) | 1.00 (0.99 to 1.03) | 1.96 (1.94 to 1.98) |
| rmc2 | fp32 | 2 | 1 | 3.10 | 2.70 (2.50 to 2.90) | 1.33 (1.30 to 1.40) | 0.76 (0.74 to 0.80) |
| rmc2 | fp16 | 2 | 2 | 2.40 | 1.00 (0.99 to 1.04) | 1.00 (0.99 to 1.03) | 1.97 (1.94 to 1.98) |
"""
SHARES = """shape   work      batch        ms samples/s       lookups          FC interaction       other
rmc1    inference   512     10.20     50196         84.3%       10.1%        1.1%        4.5%
rmc1    training    512     30.20     16953         80.1%       12.1%        1.1%        6.7%
rmc1: most time in lookups; published: lookups
"""
DISK = """peak memory of saving over training: 1.04 (goal: at most 1.1)
peak memory of loading over training: 1.05
"""
PLANNED = """row_wise over table_wise: 1x2:cpu 1.77; by table_wise 1.60; tables, timed 1.80; step, timed 1.50
data_parallel over table_wise: 1x2:cpu 4.75; by table_wise 4.99; tables, timed 4.64; step, timed 2.50
"""
PRECISION = """forward  backward      ids  vectors  gradients     MLPs     ms     AUC  log-loss
fp32     fp32      40,960  983,040    983,040   90,000    9.1  0.8369  0.46212
fp16     bf16      40,960  491,520    491,520   90,000    9.4  0.8370  0.46213
fp16     fp16      40,960  491,520    491,520   90,000    9.4  0.8368  0.46214
int8     fp16      40,960  368,640    491,520   90,000    9.9  0.8367  0.46215
"""
ATTENTION = """{"variant": "mlperf", "mean": 50, "users": 327, "longest": 918, "tokens": 16011, "jagged_ms": 201, \
"padded_ms": 6633, "ratio": 33.0, "peak_megabytes": [311, 681, 989]}
{"variant": "mlperf", "mean": 200, "ratio": 23.0, "peak_megabytes": [379, 635, 1082]}
{"variant": "paper", "mean": 50, "ratio": 28.0, "peak_megabytes": [303, 743, 1141]}
"""
STALE = """{"progressive/auc": 0.9, "windows/day-0001/val/auc": 0.7}
{"tables": "plain", "mbytes": 7.04, "progressive_auc": 0.80939, "from_scratch": {"10": 0.79}, "behind_scratch": 0.016, \
"staleness": {"0": 0.0, "1": 0.0088, "3": 0.0278, "7": 0.0741}, "auc": {"1": 0.76}}
"""
UNSEEN = """AUC                                    pairs seen      never seen      parameters  learning rate
logistic regression                    .6947 ± .0061   .6799 ± .0055          731            0.3
factorisation machine                  .8455 ± .0046   .8441 ± .0060        5,841            1.0
best                                   .8484 ± .0040   .8475 ± .0050
"""
COMPARED = (
    '{"plain": 0.8194, "hash-4-collisions-threshold-20": 0.7919, "qr-features-4-collisions-threshold-20": 0.7997, \
"qr-mult-4-collisions-threshold-20": 0.8141, "crt-mult-4-collisions-threshold-20": 0.8146, \
"path-64-4-collisions-threshold-20": 0.8075}'
)
COMPOSED = """
kaggle-like, sgd, table_wise, 2 ranks, batch 2048, 7 rounds of 8 steps
  plain                    10.0 ms   1.00 of plain (1.00 to 1.00)
  mult                     11.0 ms   1.10 of plain (1.00 to 1.17)

kaggle-like, rowwise_adagrad, table_wise, 2 ranks, batch 2048, 7 rounds of 8 steps
  plain                    10.0 ms   1.00 of plain (1.00 to 1.00)
  plain, equal lookups     12.0 ms   1.20 of plain (1.10 to 1.30)
  mult                     10.5 ms   1.05 of plain (0.94 to 1.17)
  add                      10.3 ms   1.03 of plain (0.94 to 1.17)
"""
FITTED = """tables                          bytes    loss  AUC by seed (best possible)
equally, 4 ids per row        158,784   1.234  0.8324 (0.8411), 0.8325 (0.8411), 0.8323 (0.8411); mean 0.8324
fitted to the bytes of 4      158,760   0.834  0.8354 (0.8411), 0.8355 (0.8411), 0.8353 (0.8411); mean 0.8354
"""
TRAINED = """
kaggle-like, sgd, batch 2048, 11 rounds of 8 steps

speed-up: kaggle-like sgd 2.83, kaggle-like rowwise_adagrad 2.84, rm-like sgd 2.26, rm-like rowwise_adagrad 2.04
"""
FACTORS = """  all rows  plain                      0.8680 ± 0.0001
  256 rows  hash                       0.5590 ± 0.0010
  256 rows  2 hashes, added            0.6260 ± 0.0020
 2048 rows  hash                       0.7440 ± 0.0010
"""
STEPS = "step time, recipe over bare loop: median 1.060 (0.990 to 1.090, 10 pairs of 400 steps, torch 2.13.0+cpu)\n"
WEIGHTS = (
    "initial weights: 23.0 GB/s on 2 threads, 0.36 of the 64.0 GB/s at which they write zeros (goal: at least 0.5)\n"
)
WAITED = (
    "criteo-kaggle, batches of 2048 on 2 cores: a step takes 4.20 ms, 0.35% of it waiting for the batch; relative to "
    "batches in memory: 1.050\n"
)
WIRE = """ids: the ranks send 61,440, 61,440 bytes; mean 61,440
vectors: the ranks send 491,520, 491,520 bytes; mean 491,520
B F d 4 (W - 1) / W^2 = 491,520 bytes; drawn in all_to_all.svg
"""
LINES = {
    "multiply-adds of a sample": Line("model_costs", COSTS, 600),
    "sizes of RMC2; RMC3": Line("model_costs", COSTS, 4),
    "bytes of vectors that a rank sends": Line("all_to_all", WIRE, 491_520),
    "planned milliseconds of MLPerf's tables": Line("", PLAN, 3.426),
    "a factorisation machine's pairs": Line("fm_pairs", PAIRS, 0.79),
    "number of lookups that read rows of other ids": Line("table_fit", FIT, 0.07),
    "planner dry run": Line("planner", PLANNER, 3.09),
    "the same for 50; 100; 1,000 tables": Line("planner", PLANNER, 8.43),
    "exact int64 product": Line("int64_gemm", INTEGERS, 0.78),
    "FBGEMM's int8 layers": Line("int8_gemm", LAYERS, 0.20),
    "DLRM's queries of 165 items": Line("inference", LOAD, 4.12),
    "bytes that memory moves for a sample": Line("memory_traffic", TRAFFIC, 0.73),
    "the same with ids that are frequent by Zipf's law": Line("memory_traffic", TRAFFIC, 0.77),
    "time of RMC2's lookups in int8": Line("memory_traffic", TRAFFIC, 0.57),
    "lookups of RMC1; RMC2; RMC3": Line("roofline", ROOF, 0.89),
    "MLPs of RMC1; RMC2; RMC3": Line("roofline", ROOF, 0.93),
    "processes that serve RMC2; RMC3": Line("colocation", PLACES, 1.02),
    "the same, two that take turns on one core": Line("colocation", PLACES, 1.33),
    "shares of a forward pass": Line("production_shapes", SHARES, 84.3),
    "a step of `train_dlrm` without further options": Line("step_overhead", STEPS, 1.06),
    "initial weights of 4 GB": Line("startup", WEIGHTS, 0.36),
    "saving 2 GB of tables": Line("checkpoints", DISK, 1.04),
    "loading and verifying": Line("checkpoints", DISK, 1.05),
    "ratio of planned milliseconds": Line("planned_versus_measured", PLANNED, 1.77),
    "demo with quantised": Line("quantized_comms", PRECISION, 0.8368),
    "HSTU's layers": Line("hstu_attention", ATTENTION, 33),
    "MiB that a step of these layers adds": Line("hstu_attention", ATTENTION, 311),
    "a step of `train_dlrm` criteo-kaggle": Line("reading", WAITED, 0.35),
    script.STALE: Line("staleness", STALE, 0.80939),
    "the same: AUC that a model loses": Line("staleness", STALE, 0.0088),
    "AUC on rows whose pairs of values": Line("quality/unseen_pairs", UNSEEN, 0.8441),
    "`compare_embeddings` demo": Line("", COMPARED, 0.8141),
    "the same of Chinese remainder mult;": Line("", COMPARED, 0.8146),
    "the same of path with 64 hidden units": Line("", COMPARED, 0.8075),
    "the same of QR feature generation": Line("", COMPARED, 0.7997),
    "step with QR tables": Line("compositional_step", COMPOSED, 1.05),
    "DLRM 26 x 40,000 x 64": Line("inference", LATENCY, 0.25),
    "[RMC1, RMC2, RMC3]": Line("inference", LATENCY, 0.42),
    "int8 tables with float32 MLPs": Line("inference", LATENCY, 0.65),
    "`train_dlrm`, [half a demo]": Line("table_fit_quality", FITTED, 0.8354),
    "training, [kaggle-like]": Line("cpu_training", TRAINED, 2.83),
    "training, kaggle-like, row-wise": Line("cpu_training", TRAINED, 2.84),
    "training, [rm-like]": Line("cpu_training", TRAINED, 2.26),
    "training, rm-like, row-wise": Line("cpu_training", TRAINED, 2.04),
    "matrix factorisation of made-up": Line("user_item_tables", FACTORS, 0.559),
    "the same with 2,048 rows": Line("user_item_tables", FACTORS, 0.744),
}


def test_each_printed_number_has_its_line() -> None:
    assert PRINTED.keys() == LINES.keys()


@pytest.mark.parametrize("row", LINES)
def test_the_number_is_read(row: str) -> None:
    assert PRINTED[row].read(LINES[row].text) == LINES[row].number


@pytest.mark.parametrize("row", [row for row, line in LINES.items() if line.program])
def test_the_words_of_a_pattern_are_those_of_its_program(row: str) -> None:
    code = (ROOT / "benchmarks" / f"{LINES[row].program}.py").read_text()
    words = re.findall(r"(?<!\\)[a-z]{4,}", PRINTED[row].read.pattern)
    assert [word for word in words if word not in code] == []
