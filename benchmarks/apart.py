"""The plain way in a process of its own.

What the product sets for its whole process, above all that freed memory is kept (a quarter of a plain step on two
cores), would serve the plain way as well, which public code does without.
"""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import torch

Way = Callable[..., Any]
PATIENCE = 60  # seconds for the other process to end


@contextlib.contextmanager
def apart(make: Callable[..., Way], *given: Any) -> Iterator[Way]:
    """`make(*given)` there, as a function here: arguments and results are pickled. Idle between the calls."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, torch.get_num_threads(), make, given))
    process.start()
    there.close()

    def way(*arguments: Any) -> Any:
        here.send(arguments)
        result, error = here.recv()
        if error:
            raise error
        return result

    try:
        yield way
    finally:
        here.close()
        # Its readers may hang, and nobody may be there to see that.
        process.join(PATIENCE)
        process.kill()


def serve(there: Connection, threads: int, make: Callable[..., Way], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    way = make(*given)
    # The other side closes the pipe when it is done.
    with contextlib.suppress(EOFError):
        while True:
            arguments = there.recv()
            try:
                there.send((way(*arguments), None))
            except Exception as error:
                there.send((None, error))
