"""The documentation: links lead somewhere, commands are accepted and executed, numbers stand in RESULTS.md."""

from __future__ import annotations

import argparse
import contextlib
import doctest
import functools
import importlib
import inspect
import os
import posixpath
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
from torch.distributed.run import get_args_parser
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig_run
from torchx.cli.cmd_run import CmdRun
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

from dlrm_torchrec.cli.main import command_line
from dlrm_torchrec.command_line import parse
from dlrm_torchrec.recipe import load_recipe
from tests import test_packaging, test_readme
from tests.locks import lock
from tests.recipe import ROOT

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
GUIDES = [name for name in PAGES if not name.startswith("schedulers/")]  # tests/launch/ has the schedulers
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
DATA_SETS = sorted(path.parent.name for path in (ROOT / "data").glob("*/prepare.py"))
CLUSTER = "# on the cluster"  # a command with this comment needs machines: its options are checked, it is not executed
COPIES = {"my_copy.py": "recipes/train_dlrm.py"}  # that guides make, and what they are copies of
# Options that make a command short where it would take minutes, by how it begins.
SHORT = {
    r"python recipes/compare_embeddings.py frontier": " --rows 40960 --seeds 0 --sweep.ways plain --run-dir runs/short",
    r"python benchmarks/production_shapes.py": " --shapes rmc3 --sizes 1 --seconds 0.1",
    r"python benchmarks/roofline.py": " --shapes rmc3 --sizes 1 --rounds 1 --rows-share 1e-3",
    r"python benchmarks/colocation.py": " --shapes rmc3 --forms int8 --rows-share 1e-3 --seconds 0.1 --rounds 1",
    r"python benchmarks/memory_traffic.py": " --shapes rmc3 --rows-share 1e-3 --lookups 1 --rounds 1",
    r"python benchmarks/int8_gemm.py": " --shapes rmc1 --sizes 1 --rounds 1",
    r"python benchmarks/fm_pairs.py": " --features 8 16 32 64 --rounds 2",
    r"python -m benchmarks.quality.(unseen_pairs|width_and_depth)": " --rows 4096 --judged 2000 --seeds 0",
    r"python -m benchmarks.quality.family": " --events 30 --epochs 1 --seeds 0 --contenders MF DLRM",
    r".*recipes/train_\w+.py(?!.*(--help|--rows|--data|--dryrun))": " --rows 163840",
}
TRAINED = {"tutorial.md"}  # pages that show the digits of trained models, which depend on the processor
FRACTION = re.compile(r"[+-]?\d+\.\d+")
project = test_readme.project


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    shell = "".join(block for language, block in blocks(text) if language == "sh").replace("\\\n", " ")
    return [line for line in shell.splitlines() if line.strip()]


def images(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]+\]\((?:\.\./)?figures/([^)]+)\)", text)


@pytest.fixture(scope="module")
def gathered() -> tuple[dict[str, str], dict[str, Path]]:
    """The pages of the site and its other files, by their path in it."""
    return script("site_pages").gather()


@pytest.fixture
def pages(gathered: tuple[dict[str, str], dict[str, Path]]) -> dict[str, str]:
    return gathered[0]


def script(name: str) -> ModuleType:
    """A script of docs/ as a module (they are not a package)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module(name)


def broken_links(pages: dict[str, str], exists: Callable[[str], bool]) -> list[str]:
    """The relative links of Markdown pages that lead to no file or to no heading of a page."""
    broken = []
    for name, text in pages.items():
        text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for target, anchor in re.findall(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]+))?\)", text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) if target else name
            if not exists(path) or (anchor and path in pages and anchor not in anchors(pages[path])):
                broken.append(f"{name}: {target}#{anchor}")
    return broken


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    written = {f"docs/{name}": text for name, text in PAGES.items()}
    linked = {str(path.relative_to(ROOT)): path.read_text() for path in ROOT.glob("*.md")}
    assert len(written) >= 6
    assert broken_links(linked | written, lambda path: (ROOT / path).exists()) == []


def test_every_link_leads_somewhere_in_the_site_too(gathered: tuple[dict[str, str], dict[str, Path]]) -> None:
    pages, files = gathered
    assert broken_links(pages, lambda path: path in pages or path in files) == []
    assert [path for path in files.values() if not path.is_file()] == []
    assert re.search(r"\]\(recipes/\w+\.md\)", pages["four_bottlenecks.md"])


def test_a_broken_link_is_found() -> None:
    pages = {"a.md": "# One\n[x](b.md#two) [y](#one) [z](c.md) [w](b.md#three)", "b.md": "# Two"}
    assert broken_links(pages, pages.__contains__) == ["a.md: c.md#", "a.md: b.md#three"]


def test_pages_link_to_every_term_of_the_glossary() -> None:
    terms = re.findall(r"^### (.+)$", PAGES["glossary.md"], re.MULTILINE)
    pages = [path.read_text() for path in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("data/*/README.md"))]
    linked = {anchor for page in pages for anchor in re.findall(r"glossary\.md#([\w-]+)\)", page)}
    assert len(terms) == len(set(terms)) >= 50
    assert [term for term in terms if not anchors(f"# {term}") & linked] == []


def test_every_quoted_number_stands_in_results() -> None:
    results = (ROOT / "RESULTS.md").read_text()
    quoted = [text for page in PAGES.values() for text in re.findall(r"\[([^\]]+)\]\((?:\.\./)+RESULTS\.md#", page)]
    assert len(quoted) >= 10
    assert [text for text in quoted if text not in results] == []


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if ">>> " in text])
def test_examples(page: str) -> None:
    source = "\n".join(block for language, block in blocks(PAGES[page]) if language == "python")
    example = doctest.DocTestParser().get_doctest(source, {}, page, page, 0)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_picture_is_drawn_by_commands_that_its_page_names() -> None:
    figures = script("figures")
    with pytest.raises(ValueError, match=r"pictures must be among plan.png, .*: got nothing.png; name some"):
        figures.main(["nothing.png"])
    assert {name for text in PAGES.values() for name in images(text)} == set(figures.FIGURES)
    for name, (*drawn, _) in figures.FIGURES.items():
        assert (figures.FOLDER / name).stat().st_size <= figures.MAX_BYTES
        (page,) = [text for text in PAGES.values() if name in images(text)]
        assert [each for each in drawn if "chromium" not in each and each not in commands(page)] == []


# Pages of recipes -----------------------------------------------------------------------------------------------------


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without quotes."""
    part = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.parametrize("name", RECIPES)
def test_page_of_a_recipe_shows_all_of_it(name: str, pages: dict[str, str]) -> None:
    recipe, page = load_recipe(name), pages[f"recipes/{name}.md"]
    assert page.startswith(f"# {name}\n")
    typed = re.findall(r"^    (\w+ .*)$", recipe.__doc__ or "", re.MULTILINE)
    assert [line for line in typed if line.strip() not in page] == []
    assert f"[{name}]({name}.md)" in pages["recipes/index.md"]
    assert set(option_strings(recipe.Config)) == set(documented(name, pages))


def option_strings(config: type) -> list[str]:
    parser = tyro.extras.get_parser(config)
    return [text.replace("_", "-") for action in parser._actions for text in action.option_strings if is_option(text)]


def is_option(text: str) -> bool:
    return text.startswith("--") and not text.startswith(("--help", "--no-")) and ".no-" not in text


def documented(name: str, pages: dict[str, str]) -> list[str]:
    """The options that the page of a recipe shows, those of nested configs on the page that they share."""
    found: list[str] = []

    def add(table: list[list[str]], prefix: str) -> None:
        for option, *_ in table[2:]:
            nested = re.fullmatch(r"\[`(--.+\.)\*`\]\(options\.md#(\w+)\)", option)
            if nested:
                (heading,) = re.findall(rf"^## ({nested[2]})$", pages["recipes/options.md"], re.M | re.I)
                add(rows(pages["recipes/options.md"], heading), nested[1])
            elif option.startswith("--"):
                found.extend(text.replace("--*.", prefix) for text in option.split("`, `"))

    add(rows(pages[f"recipes/{name}.md"], "Options"), "--")
    return found


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if "\nPRESETS =" in (ROOT / f"recipes/{name}.py").read_text()]
)
def test_table_of_presets_is_what_one_would_type(name: str, pages: dict[str, str]) -> None:
    presets = load_recipe(name).PRESETS
    first, *others = presets
    if not others:
        return
    table = rows(pages[f"recipes/{name}.md"], "Presets")[2:]  # nothing where only shapes differ
    for column, preset in enumerate(presets, start=1):
        arguments = [word for row in table if row[0].startswith("--") for word in as_typed(row[0], row[column])]
        _, config = parse(presets, [first, *arguments])
        same = {field.name: getattr(presets[preset], field.name) for field in fields(config) if field.name == "shape"}
        assert replace(config, **same) == presets[preset]


def as_typed(option: str, value: str) -> list[str]:
    if value in ("True", "False"):
        head, dot, last = option[2:].rpartition(".")
        return [f"--{head}{dot}{'' if value == 'True' else 'no-'}{last}"]
    return [option, *shlex.split(value)]


def test_navigation_leads_to_every_page(pages: dict[str, str]) -> None:
    listed = re.findall(
        r"^([\w/]+)$", "".join(re.findall(r":caption:.*?```", pages["index.md"], re.DOTALL)), re.MULTILINE
    )
    assert sorted(listed) == sorted({name.removesuffix(".md") for name in pages} - {"index"})
    parts = script("site_pages").sections()
    assert parts["Learn it"][0] == "tutorial.md"
    assert "shard_your_own_module.md" in parts["Do it"]
    assert parts["Understand it"][:2] == ["deep_dive/index.md", "deep_dive/why.md"]


def test_reference_has_every_command_and_every_module(pages: dict[str, str]) -> None:
    for verb in ("serve", "delta make", "neighbours"):
        code = "import sys; from dlrm_torchrec.cli.main import main; sys.exit(main())"
        told = [sys.executable, "-c", code, *verb.split(), "--help"]
        done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True)
        options = set(re.findall(r"^  (--[\w-]+)", done.stdout, re.MULTILINE))
        assert options
        part = pages["commands.md"].split(f"\n### dlrm-recipes {verb}\n")[1].split("\n### ")[0]
        assert options == set(re.findall(r"^\| `(--[\w-]+)", part, re.MULTILINE)), verb
    scripts = {f"python data/{name}/prepare.py" for name in DATA_SETS}
    assert scripts <= set(re.findall(r"^### (.+)$", pages["commands.md"], re.MULTILINE))
    library = "".join(text for name, text in pages.items() if name.startswith("library/"))
    modules = set(re.findall(r"automodule:: ([\w.]+)$", library, re.MULTILINE))
    assert {"dlrm_torchrec.schema", "dlrm_torchrec.sharding.modules.compositional"} <= modules
    for part in (path.parent.name for path in (ROOT / "dlrm_torchrec").glob("*/__init__.py")):
        assert f"[{part}]({part}.md)" in pages["library/index.md"]


# Commands -------------------------------------------------------------------------------------------------------------


class AcceptedError(Exception):
    """Raised in place of what a command would do, once its options were parsed."""


def accept(command: str) -> None:
    """Fails unless the program of the command exists and takes its options. Nothing is executed."""
    try:
        parse_command(command)
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{command}: {error!r}") from error


def parse_command(command: str) -> None:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in (";", "&&", "||", "|", ">", ">>"):
            break
        words.append(word)
    while "=" in words[0]:
        words.pop(0)
    program, *arguments = words
    match program:
        case "python":
            accept_python(arguments)
        case "torchrun":
            parsed = get_args_parser().parse_args(arguments)
            accept_python([parsed.training_script, *parsed.training_script_args])
        case "torchx":
            assert arguments.pop(0) == "run"
            parser = argparse.ArgumentParser()
            CmdRun().add_arguments(parser)
            for action in (torchxconfig_run, ArgOnceAction):
                action.called_args.clear()  # TorchX refuses an option twice in one process
            component, *rest = parser.parse_args(arguments).component_name_and_args
            materialize_appdef(get_component(component).fn, rest)
            if component == "dlrm.prepare":
                start = next(place for place, word in enumerate(rest) if word in DATA_SETS)
                accept_python([f"data/{rest[start]}/prepare.py", *rest[start + 1 :]])
                return
            start = next(place for place, word in enumerate(rest) if Path(word).stem in RECIPES)
            accept_python([f"recipes/{Path(rest[start]).stem}.py", *rest[start + 1 :]])
        case "dlrm-recipes":
            command_line().parse_args(arguments)
        case "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def accept_python(arguments: list[str]) -> None:
    module = arguments[0] == "-m"
    name, *options = arguments[1:] if module else arguments
    name = COPIES.get(name, name)
    if name == "recipes/plan_sharding.py":
        if options[0] in ("explain", "diff"):
            assert len(options) == 3
            return
        if "--" in options:
            accept_python([f"recipes/{options[0]}.py", *options[options.index("--") + 1 :]])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [name, *options])
        patch.setattr(tyro, "cli", parsed_only(tyro.cli))
        patch.setattr(tyro.extras, "subcommand_cli_from_dict", parsed_only(tyro.extras.subcommand_cli_from_dict))
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed_only(argparse.ArgumentParser.parse_args))
        with pytest.raises((AcceptedError, SystemExit)) as found:
            (runpy.run_module if module else runpy.run_path)(name, run_name="__main__")
        exited = found.value
        assert isinstance(exited, AcceptedError) or (isinstance(exited, SystemExit) and exited.code == 0)  # --help


def parsed_only(parse: Callable[..., Any]) -> Callable[..., Any]:
    """A parser of options that ends in AcceptedError where it would return, or call the function that they are for."""

    def never(function: Any) -> Any:
        if isinstance(function, dict):
            return {name: never(each) for name, each in function.items()}
        if not inspect.isfunction(function):
            return function

        @functools.wraps(function)
        def stop(*_: Any, **__: Any) -> None:
            raise AcceptedError

        return stop

    def parsed(first: Any, *others: Any, **options: Any) -> None:
        parse(never(first), *others, **options)
        raise AcceptedError

    return parsed


@pytest.mark.parametrize("page", GUIDES)
def test_commands_are_accepted(page: str) -> None:
    for command in commands(PAGES[page]):
        accept(command)


@pytest.mark.parametrize(
    "command",
    [
        "python recipes/train_nothing.py",
        "python recipes/train_dlrm.py nothing",
        "python recipes/train_dlrm.py demo --nothing 1",
        "OMP_NUM_THREADS=1 python recipes/train_dlrm.py demo --rows many",
        "torchrun --standalone --nproc_per_node 2 recipes/train_dlrm.py --nothing 1",
        "torchrun --nothing recipes/train_dlrm.py",
        "torchx run dist.ddp -j 1x2 recipes/train_dlrm.py --nothing 1",
        "torchx run dist.nothing -j 1x2 recipes/train_dlrm.py",
        "torchx run dlrm.train -j 1x2 train_dlrm demo --nothing 1",
        "torchx run dlrm.prepare -j 1x2 criteo kaggle --nothing 1",
        "python recipes/plan_sharding.py train_dlrm -- --nothing 1",
        "python -m dlrm_torchrec.datasets.profile --nothing",
        "python -m dlrm_torchrec.traces.trace fit --nothing",
        "python data/criteo/prepare.py kaggle --nothing",
        "dlrm-recipes nothing",
    ],
)
def test_a_wrong_command_is_found(command: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(command)):
        accept(command)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", GUIDES)
def test_guide_as_typed(page: str, project: Path) -> None:
    """The commands of a guide in their order, and the lines that it shows of their output."""
    for made in ("prepared", "runs"):  # by another guide
        shutil.rmtree(project / made, ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks", project / "benchmarks", dirs_exist_ok=True)
    (project / "serve.pid").unlink(missing_ok=True)
    try:
        follow(page, project)
    except BaseException:
        if (project / "serve.pid").exists():  # of a server that the guide did not come to end
            with contextlib.suppress(ProcessLookupError):
                os.kill(int((project / "serve.pid").read_text()), signal.SIGKILL)
        raise


def follow(page: str, project: Path) -> None:
    output = ""
    for language, block in blocks(PAGES[page]):
        if language == "sh":
            shell = block.replace("\\\n", " ").splitlines()
            output = "".join(test_readme.typed(short(line), project) for line in shell if CLUSTER not in line)
        elif language == "text" and output:
            assert [line for line in block.splitlines() if not printed(line, output, near=page in TRAINED)] == []


def printed(line: str, output: str, *, near: bool) -> bool:
    """Whether an output has a line of a guide, in which ``...`` stands for anything.

    If ``near``, a fraction may differ by a thousandth of itself and 0.001 more; all other numbers are as shown.
    """
    pattern = ".*".join(map(re.escape, line.split("...")))
    fractions = [float(each) for each in FRACTION.findall(line)] if near else []
    if fractions:
        pattern = re.sub(r"(\\[+-])?\d+\\\.\d+", lambda _: f"({FRACTION.pattern})", pattern)
    found = [[float(each) for each in match.groups()] for match in re.finditer(pattern, output)]
    return any(numbers == pytest.approx(fractions, rel=1e-3, abs=1e-3) for numbers in found)


def test_a_line_that_was_not_printed_is_found() -> None:
    output = "took 3.1 s\nval/auc 0.7881; a difference of -0.0011\n5 rows"
    assert printed("val/auc 0.78...; a difference of -0.0011", output, near=False)
    assert printed("val/auc 0.7889; a difference of +0.0002", output, near=True) is False
    assert printed("val/auc 0.7889; a difference of -0.0004", output, near=True)
    assert not printed("val/auc 0.7889; a difference of -0.0011", output, near=False)
    assert not printed("val/auc 0.7981; ...", output, near=True)
    assert not printed("6 rows", output, near=True)


def short(command: str) -> str:
    command, _, _ = command.partition("  #")
    return command + next((more for begin, more in SHORT.items() if re.match(begin, command)), "")


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path, pages: dict[str, str]) -> None:
    build = [sys.executable, "docs/site_pages.py", "--output", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [name for name in pages if not (tmp_path / "html" / name).with_suffix(".html").exists()] == []
    page = (tmp_path / "html/recipes/train_dlrm.html").read_text()
    assert "DistributedModelParallel" in page
    assert "criteo-kaggle" in page


@pytest.mark.slow
def test_lock_of_the_generator_is_what_it_needs_beyond_the_others() -> None:
    needed = {name for package in ("sphinx", "myst-parser", "furo") for name in test_packaging.closure(package)}
    assert set(lock("docs.txt")) == needed - set(lock("cpu.txt"))
