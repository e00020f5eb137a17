"""The command `anchor`: every error becomes one line and an exit status."""

import errno
import io
import sys
from collections.abc import Sequence

from ..console import silence
from ..errors import Refusal, one_line
from .arguments import TAKING_SETTINGS, parser
from .commands import DONE

FAULT, REFUSED, INTERRUPTED = 1, 2, 130
# What a system says of places that the user has named: not allowed, no such form, full.
USERS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `anchor`; returns the exit status: 0 done, 1 a claim refuted or our fault, 2 refused, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may have what a terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        words, settings = settings_apart([word for word in words if word != "--debug"])
        asked, rest = parser().parse_known_args(words)
        rest += settings
        if rest and not asked.takes_settings:
            raise Refusal(f"{' '.join(rest)!r} is not understood; anchor {asked.name} --help shows what is allowed")
        asked.settings = rest
        status = asked.command(asked) or DONE
        if sys.stdout is not None:  # None where it was closed before we began
            sys.stdout.flush()
        return status
    except Refusal as refusal:
        return failed(REFUSED, one_line(refusal), debug)
    except KeyboardInterrupt as interruption:
        return failed(INTERRUPTED, str(interruption) or "interrupted", debug)
    except BrokenPipeError:
        silence(sys.stdout)  # its reader has gone; nothing more can or need be said
        return DONE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in USERS:
            return failed(REFUSED, unusable(error), debug)
        if out_of_memory(error):
            told = (
                "memory does not suffice; take fewer images at once: --optimise.micro_batch N to train, --batch-size N"
            )
            return failed(REFUSED, f"{told} to evaluate ({one_line(error)[:200]})", debug)
        told = f"this is a fault of anchor: {type(error).__name__}: {one_line(error)}; --debug shows where"
        return failed(FAULT, told, debug)


def settings_apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words without the settings of a recipe among them, and those settings: --section.key=value, --section.key value.

    The parser knows no settings, and would take the value of one that stands before the recipe for the recipe. Of those
    that stand in no section other commands have one of their own, --seed.
    """
    top = ("--name", "--seed") if words and words[0] in TAKING_SETTINGS else ()
    others: list[str] = []
    settings: list[str] = []
    awaited = False
    for word in words:
        key = word.partition("=")[0]
        setting = key in top or (key.startswith("--") and "." in key)
        (settings if setting or (awaited and not word.startswith("--")) else others).append(word)
        awaited = setting and "=" not in word
    return others, settings


def unusable(error: OSError) -> str:
    """What the system said of a file or folder; without a name it is standard output that cannot be written."""
    if error.filename is None:
        silence(sys.stdout)
    where = error.filename or "standard output"
    return f"{where!s:.200} cannot be used: {error.strerror}; name another, or mend what the system says of it"


def out_of_memory(error: Exception) -> bool:
    """Whether the device or the system has no memory left; told by name, as no command has to wait for torch here."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def failed(status: int, message: str, debug: bool) -> int:
    if debug:
        raise
    print(f"anchor: {message}", file=sys.stderr)
    return status
