"""docs/keep_a_model_fresh.md: each thing that may happen to a day happens here, and is answered as the guide says."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from dlrm_torchrec.inference.serving.app import Service
from tests.inference.deltas.test_offline import damage
from tests.inference.deltas.test_reload import in_service, outcome
from tests.preparation.prepared_folders import contents
from tests.recipe import ROOT
from tests.scripts import run_python

PAGE = (ROOT / "docs/keep_a_model_fresh.md").read_text()


def sayings(heading: str) -> dict[str, str]:
    """What is said when something happened, by the first cell of the rows of a table; empty for nothing."""
    part = PAGE.split(f"\n### {heading}\n")[1].split("\n#")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines() if line[:1] == "|"]
    return {what: said.strip("`") if said.startswith("`") else "" for what, said, _ in rows[2:]}


def check(heading: str, heard: dict[str, str]) -> None:
    """Fails unless each sentence of a table, ``...`` for anything, is in what was ``heard`` in its case."""
    wanted = sayings(heading)
    assert wanted.keys() == heard.keys()
    for what, sentence in wanted.items():
        pattern = ".*".join(map(re.escape, sentence.split("..."))) if sentence else r"\A\Z"
        assert re.search(pattern, " ".join(heard[what].split())), (what, heard[what])


class Log:
    """A folder with the made-up clicks of some days, and what is prepared and trained from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.heard = ""  # from the last command
        self.must("data/practice/generate.py", "--by_day", "--rows", "4200", "--output", "clicks.csv")
        self.must("-m", "dlrm_torchrec.preparation.propose", "clicks-01.csv", "--output", "spec.json")
        first = ("--spec", "spec.json", "--keep_counts", "--headroom", "0.5", "--max_age", "2")
        assert self.prepare("day-01", "clicks-01.csv", *first) == ""
        for number in (2, 3, 4):
            clicks, before = f"clicks-0{number}.csv", f"day-0{number - 1}"
            assert self.prepare(f"day-0{number}", clicks, "--after", before) == ""

    def told(self, *words: str, timeout_s: float = 240) -> str:
        """Why a command refused; empty if it did what it was told."""
        script = [str(ROOT / words[0]), *words[1:]] if words[0] != "-m" else [*words]
        done = run_python(script, self.folder, timeout_s)
        assert "Traceback" not in done.stderr, done.stderr
        self.heard = done.stderr
        return done.stderr if done.returncode else ""

    def must(self, *words: str) -> None:
        assert self.told(*words) == ""

    def prepare(self, output: str, clicks: str, *options: str, timeout_s: float = 240) -> str:
        """Why the day in the file ``clicks`` was not prepared to the folder ``output``."""
        options = ("--input", clicks, "--output", output, "--val_share", "0", *options)
        return self.told("data/criteo/prepare.py", "table", *options, timeout_s=timeout_s)

    def train(self, run: str, *days: str, skip: bool = False, most: float = 1) -> str:
        """Why ``days``, each a folder or a folder as another, were not all trained on and published."""
        data = Path(tempfile.mkdtemp(dir=self.folder))
        for day in days:
            source, _, name = day.partition(" as ")
            shutil.copytree(self.folder / source, data / (name or source))
        small = ("--batch-size", "64", "--bottom", "16", "8", "--top", "16", "1", "--speed", "exact")
        publish = ("--publish.folder", f"{run}/published", f"--publish.quantization.max-auc-loss={most}")
        return self.told(
            "recipes/train_dlrm_daily.py", "demo", "--data", str(data), "--run-dir", run, *small, *publish,
            *(("--windows.missing", "skip") if skip else ()),
        )  # fmt: skip


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return Log(tmp_path_factory.mktemp("log"))


def test_days_that_are_prepared(log: Log) -> None:
    folder, after_first = log.folder, ("--after", "day-01")
    heard = {"a day is missing": log.prepare("skipped/day-03", "clicks-03.csv", *after_first)}

    chain = ("day-01", "day-02", "skipped/day-03")
    heard["a day comes late"] = log.told("-m", "dlrm_torchrec.datasets.windows.chain", *chain)
    assert log.prepare("late/day-02-at-last", "clicks-02.csv", "--after", "skipped/day-03") == ""
    log.must("-m", "dlrm_torchrec.datasets.windows.chain", "day-01", "skipped/day-03", "late/day-02-at-last")

    shutil.copy(folder / "clicks-01.csv", folder / "again.csv")
    heard["a day is given twice"] = log.prepare("twice/day-02", "again.csv", *after_first)

    spec = json.loads((folder / "spec.json").read_text())
    other = [each | {"min_count": 7} if each["encoding"] == "vocab" else each for each in spec["sparse"]]
    (folder / "other.json").write_text(json.dumps(spec | {"sparse": other}))
    heard["the spec is another one"] = log.prepare("o/day-02", "clicks-02.csv", *after_first, "--spec", "other.json")

    with suppress(TimeoutError):
        log.prepare("killed/day-02", "clicks-02.csv", *after_first, timeout_s=0.1)
    heard["the preparation was interrupted"] = log.prepare("killed/day-02", "clicks-02.csv", *after_first)
    assert contents(folder / "killed/day-02") == contents(folder / "day-02")

    header, *rows = (folder / "clicks-02.csv").read_text().splitlines()
    (folder / "bad.csv").write_text("\n".join([header, *rows[:-10], *(f"{row},more" for row in rows[-10:])]))
    heard["raw rows are malformed"] = log.prepare("bad/day-02", "bad.csv", *after_first)

    shutil.copytree(folder / "day-01", folder / "changed/day-01")
    damage(min((folder / "changed/day-01/counts").glob("*.parquet")))
    heard["a file of `counts/` changed"] = log.prepare("changed/day-02", "clicks-02.csv", "--after", "changed/day-01")
    check("While days are prepared", heard)


@pytest.fixture(scope="module")
def trained(log: Log) -> Log:
    """Three days on which a run was trained, first on two of them."""
    assert log.train("run", "day-01", "day-02") == ""
    shutil.copytree(log.folder / "run", log.folder / "two")
    assert log.train("run", "day-01", "day-02", "day-03") == ""
    return log


@pytest.mark.slow
def test_days_that_are_trained_on(trained: Log) -> None:
    heard = {
        "a window is missing": trained.train("two", "day-01", "day-02", "day-04"),
        "a window is given twice": trained.train("two", "day-01", "day-02", "day-02 as day-03"),
        "a window changed after it was trained on": trained.train("two", "day-01", "day-03 as day-02"),
    }
    shutil.copytree(trained.folder / "day-03", trained.folder / "damaged")
    damage(min((trained.folder / "damaged/train").glob("*.parquet")))
    heard["a file of a window is damaged"] = trained.train("two", "day-01", "day-02", "damaged as day-03")
    first = ("--spec", "spec.json", "--keep_counts", "--headroom", "0.5", "--max_age", "2")
    assert trained.prepare("alone", "clicks-03.csv", *first) == ""
    heard["a day was prepared without `--after`"] = trained.train("two", "day-01", "day-02", "alone as day-03")

    shutil.copytree(trained.folder / "two", trained.folder / "coarse")
    assert trained.train("coarse", "day-01", "day-02", "day-03", most=-1) == ""
    heard["8 bits cost too much quality"] = trained.heard
    assert "not published, because quantising cost too much quality: day-03\n" in trained.heard

    shutil.copytree(trained.folder / "two", trained.folder / "other")
    assert trained.train("other", "day-01", "day-02", "day-04", skip=True) == ""
    heard["a window comes late"] = trained.train("other", "day-01", "day-02", "day-03", "day-04")
    assert trained.train("other", "day-01", "day-02", "day-03", "day-04", skip=True) == ""
    check("While days are trained on", heard)


def test_deltas_that_a_server_follows(trained: Log, tmp_path: Path) -> None:
    published, served, heard = trained.folder / "run/published", tmp_path / "served", dict[str, str]()
    deltas = {number: published / f"delta-{number:04}" for number in (1, 2)}
    shutil.copytree(published / "base-0000", served / "base-0000")
    damaged, other = (shutil.copytree(deltas[1], tmp_path / name) for name in ("damaged", "other"))
    damage(min((damaged / "tables").glob("*.rows.npy")))
    facts = json.loads((other / "delta.json").read_text())
    (other / "delta.json").write_text(json.dumps(facts | {"predecessor": "0" * 32}))

    async def work(service: Service) -> None:
        models = service.models

        async def said(path: Path) -> str:
            return str(await outcome(models.apply(path)))

        heard["a delta comes too early"] = await said(deltas[2])
        heard["a delta is damaged"] = await said(damaged)
        heard["a delta is of another model"] = await said(other)
        assert await said(deltas[1]) == "1"
        heard["a delta comes twice"] = await said(deltas[1])
        shutil.copytree(deltas[2], served / "delta-0002")
        heard["a delta is missing"] = str(await outcome(models.load()))
        assert models.served is not None
        assert models.served.predictor.manifest["version"] == 1
        shutil.copytree(deltas[1], served / "delta-0001")
        assert await outcome(models.load()) == 2

    in_service(served, work)
    check("While a server follows", heard)
