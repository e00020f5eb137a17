"""Every code block of the documentation does what the page says: commands at toy size, Python as it stands."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from anchor_robust import quickstart
from anchor_robust.cli import main
from anchor_robust.cli.arguments import parser
from anchor_robust.errors import Refusal
from anchor_robust.recipe import built_in, from_mapping, settle
from pages import NOT_RUN, Block, Command, blocks, commands, expanded, outside, toy

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
BEFORE_ANY_RUN = ("README.md", "tour.md")  # other pages begin with the runs of the tour
STARTERS, OURS = ("torchrun", "srun"), ("anchor", "anchor_robust")  # of several processes, and what they start
RECIPE_KEYS = {"data", "model", "threat", "attack", "objective", "optimise", "validation"}


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader stands after the tour."""
    folder = tmp_path_factory.mktemp("tour")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("pgd-at", "anchor"):
            assert call(["train", f"digits-{method}", "--out", f"runs/{method}"])[0] == 0
            assert call(["evaluate", f"runs/{method}"])[0] == 0
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page(page: Path, tour: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(tour, folder) if page.name not in BEFORE_ANY_RUN else folder.mkdir()
    (folder / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ANCHOR_DATA", raising=False)
    monkeypatch.setattr(quickstart, "settle", lambda name: settle(name, toy(["train"])[1:]))
    modules = set(sys.modules)
    reader = Reader(page, folder, monkeypatch)
    try:
        reader.read(page.read_text(encoding="utf-8"))
    finally:
        for name in set(sys.modules) - modules:
            if str(folder) in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


class Reader:
    """Someone who types what a page says, in one folder and one Python session."""

    def __init__(self, page: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.page, self.folder, self.patch = page, folder, patch
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self.printed: str | None = None

    def read(self, page: str) -> None:
        for block in blocks(page):
            self.follow(block)

    def follow(self, block: Block) -> None:
        where = f"{self.page.relative_to(ROOT)}:{block.line}"
        before, self.printed = self.printed, None
        if block.language == "text":
            if not block.title:
                assert before is not None, f"{where}: output without a block before it that prints it"
                assert stripped(before) == stripped(block.text), f"{where}: something else is printed"
        elif block.language == "python":
            self.printed = self.python(block, where)
        elif block.language == "sh":
            told = [self.type(command, block.not_run, where) for command in commands(block.text)]
            self.printed = "".join(told)
        elif block.language == "yaml":
            self.yaml(block)
        else:
            pytest.fail(f"{where}: {block.language or 'no language'} is none of sh, python, yaml, text")

    def python(self, block: Block, where: str) -> str:
        if block.title.endswith(".py"):
            self.save(block)
            return ""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, where, "exec"), self.namespace)
        return printed.getvalue()

    def save(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")

    def yaml(self, block: Block) -> None:
        content = yaml.safe_load(block.text)
        if block.title:
            self.save(block)
        if content.keys() & RECIPE_KEYS:
            from_mapping({"name": "page"} | content)
        for job in content.get("jobs", {}).values():
            for step in job["steps"]:
                for command in commands(step.get("run", "")):
                    checked(command.words)

    def type(self, command: Command, not_run: bool, where: str) -> str:
        """Run one line, or check what can be checked of it; returns what it printed."""
        words = expanded(command.words, self.folder)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            self.patch.setenv(name, value)
            if name == "PYTHONPATH":
                self.patch.syspath_prepend(str(self.folder / value))
            return ""
        if words[0] != "anchor" or not_run:
            checked(words)
            return ""
        status, printed = call(words[1:])
        assert status == command.status, f"{where}: {' '.join(words)} ended with {status}"
        if command.into:
            (self.folder / command.into).write_text(printed, encoding="utf-8")
            return ""
        return printed


def call(words: list[str]) -> tuple[int, str]:
    """Exit status and standard output of an `anchor` command at toy size."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            return main(toy(words)), printed.getvalue()
        except SystemExit as leaving:  # --help
            return int(leaving.code or 0), printed.getvalue()


def checked(words: list[str]) -> None:
    """What can be said of a command without running it."""
    if words[0] == "anchor":
        asked, rest = parser().parse_known_args(words[1:])
        assert not rest or asked.takes_settings, f"{rest} of {words} is not understood"
        if asked.takes_settings and asked.recipe in built_in():
            settle(asked.recipe, rest)
    elif words[0] in STARTERS:
        checked(["anchor", *words[next(place for place, word in enumerate(words) if word in OURS) + 1 :]])
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True, env=os.environ)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [word.partition("[")[2].rstrip("]") for word in words[2:] if "[" in word]
        assert set(named) <= set(extras), f"{words} names an extra that is not there"
    else:
        assert words[0] in ("git", "cd", "ls", "python", "python3"), f"no way to check {words}"


def stripped(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_hides_outside_the_blocks(page: Path) -> None:
    for number, line in outside(page.read_text(encoding="utf-8")):
        first = line.split()[0] if line.strip() else ""
        code = line.startswith("    ") and first in ("anchor", "make", "pip", "from", "import")
        hidden = code or first.startswith("```")
        assert not hidden, f"{page.name}:{number} is code that no test runs"


def test_what_is_not_run_says_so_where_the_reader_sees_it() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.not_run:
                assert block.language == "sh", f"{page.name}:{block.line}: only commands can do without being run"
                assert len(block.title) > len(NOT_RUN) + 5, f"{page.name}:{block.line}: say why"


UNRUN = '```sh title="Not run by the tests: takes long"'
WRONG = {
    "a flag that is not there": f"{UNRUN}\nanchor evaluate RUN --atacks clean\n```",
    "a setting that is not there": f"{UNRUN}\nanchor train digits-anchor --objective.hard 1\n```",
    "a wrong flag behind what starts processes": f"{UNRUN}\nsrun --nodes 2 anchor evaluate --atacks clean\n```",
    "a command that fails": "```sh\nanchor evaluate nowhere\n```",
    "a command that should fail and does not": "```sh\nanchor --version  # exit status 2\n```",
    "a target that is not there": "```sh\nmake quickstrat\n```",
    "an extra that is not there": "```sh\npip install '.[swep]'\n```",
    "a program that nobody checks": "```sh\ncurl example.org\n```",
    "another output": "```python\nprint(1)\n```\n\n```text\n2\n```",
    "an output of nothing": "```text\n2\n```",
    "Python that fails": "```python\nimport anchor_robusst\n```",
    "a recipe with an unknown key": "```yaml\nobjective: {name: anchor, hard: 1}\n```",
    "a wrong flag in a workflow": "```yaml\njobs: {a: {steps: [{run: anchor evaluate --atacks clean}]}}\n```",
    "a language that nobody reads": "```bash\nanchor --help\n```",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_block_is_noticed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(ROOT / "README.md", tmp_path, monkeypatch)
    noticed = (AssertionError, pytest.fail.Exception, Refusal, ImportError, subprocess.CalledProcessError)
    with pytest.raises(noticed):
        reader.read(WRONG[what])
