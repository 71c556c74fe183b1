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
