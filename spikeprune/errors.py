"""The one exception a user may cause. Its message says what is wrong, where, and what to do."""

Problem = tuple[tuple[str, ...], str]  # keys of a configuration, the first one to blame, and what is wrong with them


class InputError(ValueError):
    """Bad input or an unusable environment: the command line prints the message and exits with code 2."""


def nearest(name: str, choices) -> str:
    """`a, b, c` with a hint at the closest one: `(did you mean b?)`; for messages about a wrong name."""
    import difflib

    choices = [str(c) for c in choices]
    close = difflib.get_close_matches(str(name), choices, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return ", ".join(choices) + hint


def known(what: str, name: str, choices) -> None:
    """Raises ValueError with the right names unless `name` is one of `choices`."""
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; known: {nearest(name, choices)}")
