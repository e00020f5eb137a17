"""Code blocks of the documentation: found, and run as a reader would run them, at toy size."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(?P<info>.*)$")
TITLE = re.compile(r'title="(?P<title>[^"]*)"')
NOT_RUN = "Not run by the tests: "
STATUS = re.compile(r"# exit status (\d+)\s*$")
# What makes a command of a page small.
TOY = {
    "train": ("--optimise.epochs=1", "--attack.steps=1", "--validation.steps=1"),
    "sweep": ("--optimise.epochs=1", "--attack.steps=1", "--validation.steps=1"),
    "evaluate": ("--limit=12",),
    "embedding": ("--limit=100",),
    "second-stage": ("--epochs=1",),
}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its title, its text, and the line of the page where it begins."""

    language: str
    title: str
    text: str
    line: int

    @property
    def not_run(self) -> bool:
        return self.title.startswith(NOT_RUN)


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    opened: tuple[str, int] | None = None
    held: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and opened is None:
            opened, held = (fence["info"], number), []
        elif fence and opened is not None:
            info, start = opened
            title = TITLE.search(info)
            found.append(Block(info.split(" ")[0], title["title"] if title else "", "\n".join(held) + "\n", start))
            opened = None
        elif opened is not None:
            held.append(line)
    assert opened is None, f"a block that begins in line {opened} has no end"
    return found


def outside(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page that are in no block."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


@dataclass(frozen=True)
class Command:
    """One line of a shell block: its words, the file that `>` names, and the exit status that its comment promises."""

    words: list[str]
    into: str = ""
    status: int = 0


def commands(text: str) -> list[Command]:
    """The lines of a shell block; no other syntax than comments, quotes, `\\` at the end and `> FILE` is known."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        assert not set(words) & {"|", "&&", "||", ";", "&", "<", ">>"}, f"write one command a line: {line}"
        status = STATUS.search(line)
        into = words[words.index(">") + 1] if ">" in words else ""
        words = words[: words.index(">")] if into else words
        found.append(Command(words, into, int(status[1]) if status else 0))
    return found


def toy(words: Sequence[str]) -> list[str]:
    """The words of an `anchor` command and what makes it small; of two settings the last one counts."""
    return [*words] if "--resume" in words else [*words, *TOY.get(words[0], ())]


def expanded(words: Sequence[str], folder: Path) -> list[str]:
    """The words with `*` replaced by the files that fit, as a shell does it."""
    found: list[str] = []
    for word in words:
        if "*" not in word:
            found.append(word)
            continue
        fitting = sorted(str(path.relative_to(folder)) for path in folder.glob(word))
        assert fitting, f"{word} names nothing"
        found += fitting
    return found
