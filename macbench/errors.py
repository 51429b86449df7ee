"""The one exception a user is meant to see."""


class MacbenchError(Exception):
    """A problem the user can solve: one sentence that says what is wrong and what to do.

    The command line prints the sentence and exits with code 2; nothing already measured is lost.
    """


def nearest(name: str, known: list[str]) -> str:
    """The ` did you mean …?` tail of an unknown-name sentence, or the list of what exists."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}."
