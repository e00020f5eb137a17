"""Words for a reader that may leave before the end: `| head` closes the pipe, and no command fails for that."""

import os
from typing import IO

import rich.console


class Console(rich.console.Console):
    """Rich's console, which goes on in silence where Rich would end the program with status 1."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(self.file)


def silence(file: IO[str]) -> None:
    """Let what is still to be written to a standard stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
