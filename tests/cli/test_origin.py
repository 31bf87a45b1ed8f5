"""Copies of recipes: what becomes of them when they are edited, and when the package moves on."""

from __future__ import annotations

import importlib.resources
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dlrm_torchrec import __version__
from dlrm_torchrec.cli import merge, origin
from dlrm_torchrec.cli.main import BAD_ARGUMENTS, main
from dlrm_torchrec.cli.merge import upgrade
from dlrm_torchrec.cli.origin import copies, copy_recipe, read_copy
from dlrm_torchrec.cli.shipped import find

ORIGINAL = (
    '"""Count.\n\n    python recipes/count.py\n"""\n\nfirst = 1\nsecond = 2\nthird = 3\nfourth = 4\nprint(first)\n'
)


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipes of another package, which holds count.py, in place of the installed ones."""
    package = tmp_path_factory.mktemp("package")
    (package / "recipes").mkdir()
    (package / "recipes" / "count.py").write_text(ORIGINAL)
    monkeypatch.setattr(importlib.resources, "files", lambda _: package)
    return package / "recipes"


@pytest.fixture
def copied(installed: Path, tmp_path: Path) -> Path:
    """A fresh copy of count.py."""
    assert installed.exists()
    return copy_recipe(find("count"), tmp_path / "mine" / "count.py", force=False)


def change(path: Path, old: str, new: str) -> None:
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def install_version_2(recipes: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    change(recipes / "count.py", old, new)
    for module in (origin, merge):
        monkeypatch.setattr(module, "__version__", "2.0")


def test_a_copy_is_the_recipe_and_runs(copied: Path) -> None:
    first, rest = copied.read_text().split("\n", 1)
    assert first.startswith(f"# dlrm-recipes: count {__version__} sha256=")
    assert rest == ORIGINAL
    assert subprocess.run([sys.executable, copied], check=True, capture_output=True, text=True).stdout == "1\n"
    assert read_copy(copied).text == ORIGINAL
    assert read_copy(copied).status() == f"{copied}: unchanged (count {__version__})"


def test_a_copy_goes_into_a_folder_by_its_name(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "new" / "one"):
        assert copy_recipe(find("train_dlrm"), folder, force=False) == folder / "train_dlrm.py"
        assert [copy.name for copy in copies([folder])] == ["train_dlrm"]


def test_nothing_is_overwritten_unless_told(copied: Path) -> None:
    change(copied, "second = 2", "second = 22")
    before = copied.read_bytes()
    for destination in (copied, copied.parent):
        with pytest.raises(
            ValueError, match=r"must be a new file: .* exists; name another, or overwrite it with --force"
        ):
            copy_recipe(find("count"), destination, force=False)
    assert copied.read_bytes() == before
    copy_recipe(find("count"), copied, force=True)
    assert read_copy(copied).text == ORIGINAL


def test_links_are_refused(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installed.exists()
    (tmp_path / "target.py").write_text("precious\n")
    (tmp_path / "link.py").symlink_to("target.py")
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    for name in ("link.py", "dangling.py"):
        for force in ([], ["--force"]):
            assert main(["cp", "count", str(tmp_path / name), *force]) == BAD_ARGUMENTS
            assert "must be a file of its own: got a link to" in capsys.readouterr().err
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "target.py").read_text() == "precious\n"
    assert not (tmp_path / "nowhere.py").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / ".dlrm-recipes").symlink_to(tmp_path / "other")
    assert main(["cp", "count", str(tmp_path / "mine.py")]) == BAD_ARGUMENTS
    assert list((tmp_path / "other").iterdir()) == []


def test_a_copy_says_how_to_run_it(installed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert installed.exists()
    assert main(["cp", "count", str(tmp_path / "mine.py")]) == 0
    assert f"`torchx run -s local_cwd dlrm.train -j 1x2 {tmp_path}/mine.py` as a job" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "diff"])
def test_control_characters_are_shown_and_never_sent(
    command: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;pwn\x07"
    change(copied, f"count {__version__} ", f"count {evil} ")
    change(copied, "second = 2", "second = '\x9b31m'")
    copied = copied.rename(copied.with_name(f"{evil}.py"))
    assert main([command, str(copied)]) == 0
    said = capsys.readouterr()
    assert "\\x1b]0;pwn\\x07" in said.out
    assert all(each.isprintable() or each in "\n\t" for each in said.out + said.err)
    assert main([command, str(copied.with_name(f"{evil}{evil}.py"))]) == BAD_ARGUMENTS
    said = capsys.readouterr()
    assert all(each.isprintable() or each in "\n\t" for each in said.out + said.err)


def test_status_tells_whose_change_it_is(
    copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied.parent / "other.py").write_text("not a copy\n")
    monkeypatch.chdir(copied.parent)

    def said() -> str:
        assert main(["status"]) == 0
        return capsys.readouterr().out

    assert said() == f"count.py: unchanged (count {__version__})\n"
    change(copied, "second = 2", "second = 22")
    assert said() == f"count.py: edited (count {__version__})\n"
    install_version_2(installed, monkeypatch, "third = 3", "third = 33")
    assert said() == f"count.py: edited and behind (count {__version__}; 2.0 is installed, see `upgrade`)\n"
    change(copied, "second = 22", "second = 2")
    assert said() == f"count.py: behind (count {__version__}; 2.0 is installed, see `upgrade`)\n"
    (installed / "count.py").unlink()
    assert said() == f"count.py: unchanged (count {__version__}, which is no longer installed)\n"


def test_diff_is_against_the_original_or_the_installed(
    copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied, "second = 2", "second = 22")
    install_version_2(installed, monkeypatch, "fourth = 4", "fourth = 44")

    def changed(*options: str) -> list[str]:
        assert main(["diff", str(copied), *options]) == 0
        return [line for line in capsys.readouterr().out.splitlines()[2:] if line[0] in "+-"]

    assert changed() == ["-second = 2", "+second = 22"]
    assert changed("--new") == ["-second = 2", "+second = 22", "-fourth = 44", "+fourth = 4"]


def test_upgrade_keeps_both_changes(copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(copied, "first = 1", "first = 11")
    copied.chmod(0o755)
    install_version_2(installed, monkeypatch, "fourth = 4", "fourth = 44")
    edited = read_copy(copied)
    conflicts, backup = upgrade(edited)
    assert conflicts == 0
    upgraded = read_copy(copied)
    assert upgraded.text == ORIGINAL.replace("first = 1", "first = 11").replace("fourth = 4", "fourth = 44")
    assert (upgraded.version, upgraded.edited, upgraded.behind) == ("2.0", True, False)
    assert upgraded.original() == find("count").text
    assert backup.read_text() == edited.text
    assert copied.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in copied.parent.iterdir()) == [".dlrm-recipes", "count.py"]


def test_upgrade_of_an_unchanged_copy_is_the_installed_recipe(
    copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_version_2(installed, monkeypatch, "first = 1", "first = 1\nzeroth = 0")
    assert main(["upgrade", str(copied)]) == 0
    assert read_copy(copied).text == find("count").text
    before = copied.read_bytes()
    assert main(["upgrade", str(copied)]) == 0
    assert capsys.readouterr().out.endswith("count.py: up to date\n")
    assert copied.read_bytes() == before


def test_conflicts_are_marked_and_said(
    copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied, "second = 2", "second = 22")
    install_version_2(installed, monkeypatch, "second = 2", "second = 222")
    mine = read_copy(copied).text
    assert main(["upgrade", str(copied)]) == 1
    said = capsys.readouterr().out
    assert "upgraded, with conflicts to resolve between <<<<<<< and >>>>>>>: 1; the copy before the upgrade: " in said
    marks = "<<<<<<< yours\nsecond = 22\n=======\nsecond = 222\n>>>>>>> count 2.0\n"
    assert read_copy(copied).text == ORIGINAL.replace("second = 2\n", marks)
    assert Path(said.rpartition(": ")[2].strip()).read_text() == mine


def test_nothing_changes_where_a_merge_is_impossible(
    copied: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_version_2(installed, monkeypatch, "second = 2", "second = 222")
    before = copied.read_bytes()
    (kept,) = (copied.parent / ".dlrm-recipes").iterdir()
    original = kept.read_text()
    kept.write_text("no longer it")
    with pytest.raises(ValueError, match=r"must hold count .* as it was copied: got no such text; restore the file"):
        upgrade(read_copy(copied))
    kept.write_text(original)
    with monkeypatch.context() as without_git:
        without_git.setenv("PATH", "/nonexistent")
        with pytest.raises(ValueError, match="git must be on PATH"):
            upgrade(read_copy(copied))
    (installed / "count.py").unlink()
    with pytest.raises(ValueError, match="recipe must be one of"):
        upgrade(read_copy(copied))
    assert copied.read_bytes() == before


def test_a_file_that_is_no_copy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(ORIGINAL)
    with pytest.raises(ValueError, match=r"must be a copied recipe: got no line '# dlrm-recipes: \.\.\.'"):
        read_copy(tmp_path / "mine.py")
    with pytest.raises(ValueError, match="must be a copied recipe"):
        copies([tmp_path / "mine.py"])
    assert copies([tmp_path]) == []


def test_status_passes_over_links_that_lead_nowhere_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost.py").symlink_to("/nowhere")
    (tmp_path / "folder.py").mkdir()
    assert main(["cp", "train_dlrm", "mine.py"]) == 0
    capsys.readouterr()
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("mine.py: unchanged (train_dlrm ")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m dlrm_torchrec.cli.main ls | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
