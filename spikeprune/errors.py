"""The one exception a user may cause. Its message says what is wrong, where, and what to do."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
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


def in_a_line(error: BaseException) -> str:
    """The beginning of another library's message, for a sentence."""
    return " ".join(str(error).split())[:200]


def check_format(found: object, own: int, place: str, remedy: str) -> None:
    """Raises InputError for files in another version of a format than this program's `own`; `remedy`: for older
    ones."""
    if found == own and not isinstance(found, bool):
        return
    newer = isinstance(found, int) and found > own
    step = "a newer version of spikeprune has made it: install that one" if newer else remedy
    raise InputError(f"{place}: is in format {found!r} and this version reads format {own}; {step}")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; on the CPU torch says so in an ordinary RuntimeError."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


MEMORY = (
    "the memory is not enough; in a new run.dir lower data.batch_size, data.max_length or data.eval_batch_size, or "
    "train with run.precision=bf16-mixed"
)


def collect(problems: list[str], make: Callable[..., T], *args: Any) -> T | None:
    """The result of `make`; None after an InputError, which is added to the problems."""
    try:
        return make(*args)
    except InputError as error:
        problems.append(str(error))
        return None


def known(what: str, name: str, choices) -> None:
    """Raises ValueError with the right names unless `name` is one of `choices`."""
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; known: {nearest(name, choices)}")


def check_share(what: str, value: float) -> None:
    """Raises ValueError unless `value` is a share that can be kept."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{what} = {value!r}: must be from 0 to 1, the share that is kept")


def check_counts(least: int, **values: int) -> None:
    """Raises ValueError unless all of the `values` are whole numbers of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} = {value!r}: must be a whole number of at least {least}")
