"""The one exception a user of the command line can cause."""

from __future__ import annotations

from collections.abc import Iterable

from ..sharing.values import closest


class RecipeError(ValueError):
    """A recipe, a flag or a missing package that the user can put right.

    The message is one line that names the key, the value and the remedy; the command line prints it without a
    traceback and exits with status 2. What a terminal would take for a command is escaped: the value may come from
    somebody else's recipe.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))


def printable(text: str) -> str:
    r"""Return `text` with every character that is not printable as its escape, such as `\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name closest to `name`, or an empty string."""
    close = closest(name, known)
    return f" (did you mean '{close}'?)" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the error's type when it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
