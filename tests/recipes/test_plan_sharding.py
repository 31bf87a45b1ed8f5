"""recipes/plan_sharding.py, as typed: plans for machines that are not there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from math import prod
from pathlib import Path
from typing import Any

import pytest
from torchx.specs.builders import materialize_appdef

from dlrm_torchrec.datasets.criteo import criteo_1tb_multi_hot_spec
from tests.recipe import ROOT, load_recipe, run_recipe
from tests.scripts import run_python
from torchx_components import dlrm


def plan(folder: Path, *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The estimates in plan.json, and what was printed, for a command line."""
    output, printed = folder / "plan.json", io.StringIO()
    outputs = [f"--output={output}", f"--page={folder}/plan.html", f"--fit-output={folder}/tables.json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            found = load_recipe("plan_sharding").command([arguments[0], *outputs, *arguments[1:]])
        except SystemExit as ended:  # tyro's, for options that do not exist
            found = ended.code
    assert found == code, printed.getvalue()
    return json.loads(output.read_text()) if output.exists() else [], printed.getvalue()


def recipe(*arguments: str, code: int = 0) -> str:
    """What a command line printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            found = load_recipe("plan_sharding").command(list(arguments))
        except SystemExit as ended:
            found = ended.code
    assert found == code, printed.getvalue()
    return printed.getvalue()


def test_as_a_command_from_another_folder(tmp_path: Path) -> None:
    recipe, topologies = str(ROOT / "recipes/plan_sharding.py"), ["1x2:cpu", "1x1:a100-40"]
    done = run_python([recipe, "train_dlrm", "--topology", *topologies, "--", "--bottom", "64", "16"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [estimate["topology"] for estimate in json.loads((tmp_path / "plan.json").read_text())] == topologies


def rank_bytes(estimate: dict[str, Any]) -> list[int]:
    total = [0] * len(estimate["hbm_capacity"])
    for table in estimate["tables"]:
        for shard in table["shards"]:
            total[shard["rank"]] += shard["hbm_bytes"]
    return total


def test_two_topologies_of_mlperf(tmp_path: Path) -> None:
    estimates, printed = plan(tmp_path, "train_dcnv2", "--preset=mlperf", "--topology", "2x8:h100", "1x8:a100-80")
    features = criteo_1tb_multi_hot_spec().sparse
    for estimate, (name, ranks) in zip(estimates, [("2x8:h100", 16), ("1x8:a100-80", 8)], strict=True):
        assert estimate["version"] == 2
        assert estimate["topology"] == name
        assert estimate["batch_size"] == 65_536 // ranks
        assert len(estimate["hbm_capacity"]) == ranks
        assert all(
            used < capacity for used, capacity in zip(rank_bytes(estimate), estimate["hbm_capacity"], strict=True)
        )
        tables = {table["name"]: table for table in estimate["tables"]}
        for feature in features:
            table = tables[f"t_{feature.name}"]
            assert (table["rows"], table["dim"]) == (feature.rows, 128)
            assert table["pooling_factors"] == [feature.pooling_factor]
            copies = ranks if table["sharding_type"] == "data_parallel" else 1
            assert sum(prod(shard["size"]) for shard in table["shards"]) == copies * feature.rows * 128
            weights = sum(4 * prod(shard["size"]) for shard in table["shards"])
            assert sum(shard["hbm_bytes"] for shard in table["shards"]) >= 2 * weights  # Adagrad keeps as much again
            assert all(sum(shard["milliseconds"].values()) > 0 for shard in table["shards"])
    lines = {line.split()[0]: line for line in printed.splitlines() if line.startswith(("2x8:h100 ", "1x8:a100-80 "))}
    assert f" {max(rank_bytes(estimates[0])) / 1e9:.3f} " in lines["2x8:h100"]
    assert printed.count("<- critical") == 2


def test_the_recipe_s_options_shrink_its_tables(tmp_path: Path) -> None:
    options = ["--", "--tables.kind=quotient_remainder", "--tables.collisions=4", "--batch-size=16384"]
    (estimate,), _ = plan(tmp_path, "train_dlrm", "--preset=criteo-1tb", "--topology", "1x8:h100", *options)
    tables = {table["name"]: table for table in estimate["tables"]}
    assert tables["t_cat_0"]["rows"] == 10_000_000 + 4
    assert tables["t_cat_0"]["pooling_factors"] == [2]
    assert estimate["batch_size"] == 2048
    assert not {"row_wise", "table_row_wise", "grid_shard"} & {tables["t_cat_0"]["sharding_type"]}


CHANGES = {  # by the words of the refusal: what a user would add to the command
    "more ranks": "--topology",
    "weights of half the bytes": "--tables.data-type",
    "a smaller optimizer": "--sparse.kind",
    "the host's memory": "--sharding.host-memory",
    "compression": "--tables.kind",
}


@pytest.mark.parametrize(
    ("preset", "topology", "offered"),
    [
        ("mlperf", "1x1:a100-40", {"more ranks", "the host's memory", "compression"}),
        ("mlperf", "2x1:h100", {"more ranks", "a smaller optimizer", "weights of half the bytes", "the host's memory"}),
    ],
)
def test_a_refusal_names_changes_that_do_fit(tmp_path: Path, preset: str, topology: str, offered: set[str]) -> None:
    command = ["train_dcnv2", f"--preset={preset}"]
    estimates, printed = plan(tmp_path, *command, "--topology", topology, "1x8:a100-80", code=3)
    assert [estimate["topology"] for estimate in estimates] == ["1x8:a100-80"]
    (refusal,) = [line for line in printed.splitlines() if line.startswith(f"{topology}: tables must fit the memory")]
    assert re.search(r"got [\d,]+\.\d{3} GB too many, because .*table.* each planned:$", refusal)
    text = printed.split(refusal)[1]
    changes = re.findall(r"^  ([a-z][a-z' ]+) \((--[^,)]+)[^)]*\): ([\d.]+) of [\d.]+ GB", text, re.MULTILINE)
    assert offered <= {what for what, _, _ in changes}
    for what, option, fullest in changes:
        words = option.split()
        assert words[0] == CHANGES[what]
        tail = words if what == "more ranks" else ["--topology", topology, "--", *words]
        (estimate,), _ = plan(tmp_path, *command, *tail)
        assert max(rank_bytes(estimate)) / 1e9 == pytest.approx(float(fullest), abs=0.006)


def test_a_fitted_model_is_planned_and_trained(tmp_path: Path) -> None:
    mlperf = ["train_dcnv2", "--preset=mlperf", "--topology=1x1:a100-40"]
    (fitted,), printed = plan(tmp_path, *mlperf, "--fit")
    assert 29e9 < rank_bytes(fitted)[0] < 34e9  # 40 GB, of which 15 % and what batches need are reserved
    own = json.loads((tmp_path / "tables.json").read_text())
    large = {f"t_cat_{number}" for number in (0, 9, 10, 19, 20, 21)}  # 3 M rows, and 40 M each of the others
    assert {name for name, changed in own.items() if changed} == large
    assert "lookups per sample read rows of other ids" in printed
    (again,), _ = plan(tmp_path, *mlperf, "--", f"--tables.file={tmp_path}/tables.json")
    assert again == fitted

    (small,), _ = plan(tmp_path, "train_dlrm", "--topology=1x2:cpu", "--fit", "--fit-bytes=9e5", "--", *SMALL)
    held = sum(shard["weight_bytes"] for table in small["tables"] for shard in table["shards"])
    assert sum(4 * table["rows"] * table["dim"] for table in small["tables"]) <= 9e5 <= held * 1.6
    options = [f"--tables.file={tmp_path}/tables.json", f"--plan={tmp_path}/plan.json", f"--run-dir={tmp_path}/run"]
    assert run_recipe("train_dlrm", ["demo", *SMALL, *options], 2)["steps"] == 20
    (saved,) = (tmp_path / "run/demo/checkpoints").glob("*/checkpoint.json")
    assert shards(json.loads(saved.read_text())["plan"]) == shards(small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train_dlmr"], ": got 'train_dlmr'; try train_dlrm"),
        (
            ["compare_embeddings"],
            "recipe must define build: got 'compare_embeddings', which does not; Tra",
        ),
        (
            ["train_dlrm", "--preset=criteo"],
            "preset must be one of demo, census, criteo-kaggle, criteo-1tb, criteo-x1: got 'criteo'",
        ),
        (["train_dlrm", "--topology", "1x8:h1000"], "h1000"),
        (
            ["train_dlrm", "--topology", "1024x8:h100"],
            "one row for each of 8,192 ranks: got 2,048; raise it, or plan for",
        ),
        (["train_dlrm", "--topologies", "1x8:h100"], "--topologies"),
        (
            ["train_dlrm", "--topology", "1x1:cpu", "1x2:cpu", "--fit"],
            "tables must be fitted to one topology at a time",
        ),
        (
            ["train_dlrm", "--topology", "1x1:cpu", "--fit", "--fit-bytes=9e3"],
            "bytes to fit must be at least 52,836 for these tables: got 9,000; raise them",
        ),
    ],
)
def test_bad_arguments_end_with_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    _, printed = plan(tmp_path, *arguments, code=2)
    assert message in printed


def test_the_closing_lines_name_the_files_and_commands_that_work(tmp_path: Path) -> None:
    _, printed = plan(tmp_path, "train_dlrm", "--topology", "3x8:h100", "2x2:h100", "--", "--batch-size", "4800")
    assert re.search(rf"^wrote  {tmp_path}/plan.json, {tmp_path}/plan.html \(open it in a browser\)$", printed, re.M)
    explained, trained = (shlex.split(line[6:]) for line in printed.splitlines()[-2:])
    start = ["dlrm-recipes", "run", "plan_sharding", "--"]
    assert explained[:4] == start
    assert f"{explained[5]} on 3x8:h100: 50 x 16" in recipe(*explained[4:])
    assert trained[:3] == ["torchx", "run", "dlrm.train"]
    (role,) = materialize_appdef(dlrm.train, trained[3:]).roles
    assert "--nnodes 3 --nproc_per_node 8 " in role.args[-1]
    assert role.args[-1].endswith(f"train_dlrm demo --batch-size 4800 --plan {tmp_path}/plan.json")


def test_a_copied_recipe_is_planned_by_its_path(tmp_path: Path) -> None:
    copy = tmp_path / "mine.py"
    copy.write_text(
        (ROOT / "recipes/train_dlrm.py")
        .read_text()
        .replace("bottom: tuple[int, ...] = (64, 16)", "bottom: tuple[int, ...] = (64, 32)")
    )
    (estimate,), _ = plan(tmp_path, str(copy), "--topology", "1x2:cpu")
    assert {table["dim"] for table in estimate["tables"]} == {32}


SMALL = ["--rows=20480", "--batch-size=1024", "--eval-every=0", "--sparse.kind=sgd", "--sparse.lr=0.5"]


def shards(plan: dict[str, Any]) -> dict[str, Any]:
    """Type and shards of every table, of an estimate or of a checkpoint's plan."""
    tables = plan["tables"] if "tables" in plan else [{"name": name, **table} for name, table in plan.items()]
    return {
        table["name"]: (table["sharding_type"], [(s["rank"], s["offset"], s["size"]) for s in table["shards"]])
        for table in tables
        if table["sharding_type"] != "data_parallel"
    }


def test_the_plan_of_the_dry_run_is_the_plan_that_is_trained(tmp_path: Path) -> None:
    columns = [
        "--sharding.tables",
        "t_id_6",
        "column_wise",
        "t_id_5",
        "table_column_wise",
    ]  # cut by the plan's options alone
    (planned,), _ = plan(tmp_path, "train_dlrm_compositional", "--topology", "1x2:cpu", "--", *SMALL, *columns)
    assert len(next(table for table in planned["tables"] if table["name"] == "t_id_6")["shards"]) == 2
    plan_file = tmp_path / "plan.json"
    moved = json.loads(plan_file.read_text())
    for table in moved[0]["tables"]:  # what no planner would choose: every rank in the other's place
        for shard in table["shards"]:
            shard["rank"] = 1 - shard["rank"]
    plan_file.write_text(json.dumps(moved))
    options = ["demo", *SMALL, f"--plan={plan_file}", f"--run-dir={tmp_path}/run"]
    assert run_recipe("train_dlrm_compositional", options, 2)["steps"] == 20
    (saved,) = (tmp_path / "run/demo/checkpoints").glob("*/checkpoint.json")
    trained = json.loads(saved.read_text())["plan"]
    assert shards(trained) == shards(moved[0])
    assert shards(trained) != shards(planned)


@pytest.mark.parametrize(
    ("options", "world_size", "message"),
    [
        (
            [],
            1,
            r"plan .*plan.json must hold one plan for 1 ranks: got plans for \['2 of 1x2:cpu'\]; plan only one",
        ),
        (
            ["--bottom", "64", "32"],
            2,
            r"table 't_.*' of the plan .* must have the shards of this model on these hosts: got",
        ),
    ],
)
def test_a_plan_of_another_model_or_size_is_refused(
    tmp_path: Path, options: list[str], world_size: int, message: str
) -> None:
    plan(tmp_path, "train_dlrm", "--topology", "1x2:cpu", "--", *SMALL)
    arguments = ["demo", *SMALL, *options, f"--plan={tmp_path}/plan.json", f"--run-dir={tmp_path}/run"]
    with pytest.raises(RuntimeError, match=message):
        run_recipe("train_dlrm", arguments, world_size)


def test_a_table_is_explained_and_an_older_plan_compared(tmp_path: Path) -> None:
    arguments = ["train_dlrm", "--preset=demo", "--topology", "1x4:h100"]
    (estimate,), printed = plan(tmp_path, *arguments, "--explain", "t_id_7")
    (table,) = [table for table in estimate["tables"] if table["name"] == "t_id_7"]
    ways = table["alternatives"]
    assert len({(way["sharding_type"], way["compute_kernel"]) for way in ways}) == len(ways) >= 4
    assert ways == sorted(ways, key=lambda way: way["slowest_shard_ms"])
    (chosen,) = [way for way in ways if way["sharding_type"] == table["sharding_type"]]
    slowest = max(sum(shard["milliseconds"].values()) for shard in table["shards"])
    assert chosen["slowest_shard_ms"] == pytest.approx(slowest)
    (line,) = [line for line in printed.splitlines() if line.endswith("<- chosen")]
    assert line.split()[0] == table["sharding_type"]
    assert f"{slowest:.4f}" in line
    assert recipe("explain", "t_id_7", f"{tmp_path}/plan.json") in printed

    (tmp_path / "plan.json").rename(tmp_path / "old.json")
    plan(tmp_path, *arguments)
    assert recipe("diff", f"{tmp_path}/old.json", f"{tmp_path}/plan.json") == "1x4:h100\nthe same plan\n"
    plan(tmp_path, *arguments, "--", "--tables.kind=hash", "--tables.threshold=10000")
    printed = recipe("diff", f"{tmp_path}/old.json", f"{tmp_path}/plan.json")
    (changed,) = [line for line in printed.splitlines() if line.startswith("t_id_7: ")]
    assert changed.startswith("t_id_7: 20,000 x 16 ")
    assert "-> 5,000 x 16 " in changed
    assert "slowest rank: " in printed

    (tmp_path / "plan.json").rename(tmp_path / "old.json")
    (other,), _ = plan(tmp_path, "train_dlrm", "--topology=1x2:a100-40")
    printed = recipe("diff", f"{tmp_path}/old.json", f"{tmp_path}/plan.json")
    assert printed.startswith("1x4:h100 -> 1x2:a100-40\n")
    (changed,) = [line for line in printed.splitlines() if line.startswith("t_id_7: 5,000 x 16 ")]
    assert "-> 20,000 x 16 " in changed
    slowest = max(
        sum(
            sum(shard["milliseconds"].values())
            for table in other["tables"]
            for shard in table["shards"]
            if shard["rank"] == rank
        )
        for rank in range(2)
    )
    assert f" -> {slowest:.3f} ms; fullest: " in printed
    plan(tmp_path, "train_dlrm", "--topology", "1x2:a100-40", "1x2:h100")
    printed = recipe("diff", f"{tmp_path}/old.json", f"{tmp_path}/plan.json")
    assert printed == "1x4:h100: only before\n1x2:a100-40: only after\n1x2:h100: only after\n"


def test_a_line_of_a_table_has_the_bytes_of_all_shards_and_the_time_of_the_slowest(tmp_path: Path) -> None:
    (estimate,), printed = plan(tmp_path, "train_dlrm", "--topology=1x4:h100", "--", "--sharding.kind=row_wise")
    for table in estimate["tables"]:
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{table['name']} ")]
        held = sum(shard["hbm_bytes"] + shard["ddr_bytes"] for shard in table["shards"])
        slowest = max(sum(shard["milliseconds"].values()) for shard in table["shards"])
        assert line.split()[-3:] == [f"{held / 1e9:.3f}", f"{slowest:.3f}", "0-3"]


def test_a_node_that_learns_tables_of_its_own_is_planned_alone(tmp_path: Path) -> None:
    arguments = ["train_dlrm_local_embeddings", "--topology", "2x4:h100", "--"]
    (node,), _ = plan(tmp_path, *arguments, "--node-size=2")
    assert (node["topology"], node["batch_size"]) == ("2x4:h100, a node of 2", 2048 // 8)
    assert len(node["hbm_capacity"]) == 2
    assert {table["sharding_type"] for table in node["tables"]} <= {"table_wise", "row_wise"}
    (whole,), _ = plan(tmp_path, *arguments, "--node-size=8")
    (plain,), _ = plan(tmp_path, "train_dlrm", "--topology", "2x4:h100")
    assert whole == plain
    _, printed = plan(tmp_path, *arguments, "--node-size=3", code=2)
    assert "must divide the 8 ranks of 2x4:h100 and be whole hosts or part of one host: got 3" in printed


def test_a_table_that_could_lie_in_one_way_only_says_so(tmp_path: Path) -> None:
    arguments = ["train_dlrm", "--topology", "1x2:cpu", "--explain", "t_id_7", "--", "--sharding.kind=row_wise"]
    assert "chosen: it is the only way that the topology and the options allow" in plan(tmp_path, *arguments)[1]


def test_an_unknown_table_cannot_be_explained(tmp_path: Path) -> None:
    _, printed = plan(tmp_path, "train_dlrm", "--topology", "1x2:cpu", "--explain", "t_id_8", code=2)
    assert "explained table must be in the plan: got 't_id_8'; the plan has ['t_id_0'," in printed


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('[{"version": 0}]')
    printed = recipe("explain", "t_id_7", f"{tmp_path}/old.json", code=2)
    assert "must have version 2: got ['0']; plan again with this release" in printed
    assert "nowhere.json must be a file that recipes/plan_sharding.py wrote: got [Errno 2]" in recipe(
        "explain", "t_id_7", f"{tmp_path}/nowhere.json", code=2
    )


GOLDEN = Path(__file__).parent / "printed_plans"


@pytest.mark.parametrize("topology", ["2x8:h100", "1x8:a100-80", "4x2:cpu"])
def test_the_printed_plan_is_as_it_was(tmp_path: Path, topology: str) -> None:
    _, printed = plan(tmp_path, "train_dcnv2", "--preset=mlperf", "--topology", topology, "--explain=t_cat_0")
    assert printed.partition("wrote  ")[0] == (GOLDEN / f"{topology.replace(':', '-')}.txt").read_text()


def test_many_ranks_share_lines_and_the_slowest_are_shown(tmp_path: Path) -> None:
    arguments = ["train_dcnv2", "--preset=mlperf", "--topology=16x8:h100"]
    (estimate,), printed = plan(tmp_path, *arguments)
    _, every = plan(tmp_path, *arguments, "--all-ranks")
    shown, lines = (
        [line for line in text.splitlines() if re.match(r" *[\d,-]+  +\d+\.", line)] for text in (printed, every)
    )
    assert len(shown) <= 16 < len(lines)
    milliseconds = [0.0] * 128
    for table in estimate["tables"]:
        for shard in table["shards"]:
            milliseconds[shard["rank"]] += sum(shard["milliseconds"].values())
    (critical,) = [line for line in shown if line.endswith("<- critical")]
    assert f"  {max(milliseconds):.3f}  " in critical
