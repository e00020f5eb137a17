"""The one exception that a user sees as a line of text instead of a traceback."""


class Refusal(ValueError):
    """What was asked cannot be done, through no fault of ours (exit status 2).

    The message is one line: what was given, what is allowed, what to do.
    """


def one_line(error: BaseException) -> str:
    """Another library's message, fit for the one line of a Refusal."""
    said = " ".join(str(error).split())
    # Some say nothing, and a KeyError nothing but the key.
    return f"{type(error).__name__} {said}".strip() if not said or isinstance(error, KeyError) else said
