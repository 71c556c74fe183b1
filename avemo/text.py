"""Text that comes from users, made fit to be shown."""


def printable(text: str, longest: int | None = None) -> str:
    """One line of a name, label or path, whatever is in it.

    Args:
        text: line breaks, control characters and bytes that are no UTF-8 become escapes.
        longest: of the result; the middle of a longer one is left out.
    """
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
    if longest is None or len(shown) <= longest:
        return shown
    head = (longest - 1) // 2
    return f"{shown[:head]}…{shown[head + 1 - longest :]}"


def items(text: str) -> tuple[str, ...]:
    """What stands between the commas of "a, b"; nothing for an empty text."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pairs(argument: str, text: str) -> dict[str, str]:
    """The names and values of "a=b, c=d".

    Args:
        argument: its name, for the error.
        text: the pairs.

    Raises:
        ValueError: a part is no pair, or a name occurs twice.
    """
    parts = [part.partition("=") for part in items(text)]
    names = {name.strip(): value.strip() for name, _, value in parts}
    if len(names) < len(parts) or not all(name and value for name, value in names.items()):
        raise ValueError(f"{argument} must be like a=b,c=d, each name once, got {text!r}")
    return names
