"""Saves figures of matplotlib."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from avemo.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_LABEL = 24


def save_picture(path: Path, draw: Callable[[], Figure], dpi: int) -> bool:
    """Draws a figure and saves it; one that cannot be drawn is told and stops nothing.

    Text is shown as it is: names, labels and paths are no markup, whatever the user's settings of
    matplotlib say.

    Args:
        path: of the picture; its suffix is the format.
        draw: makes the figure.
        dpi: dots per inch.

    Returns:
        Whether there is a picture.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    try:
        with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False}):
            figure = draw()
            FigureCanvasAgg(figure)
            figure.savefig(path, dpi=dpi)
    except Exception as error:  # the numbers are what counts
        reason = printable(f"{path}: no picture: {type(error).__name__}: {error}")
        print(reason, file=sys.stderr)
        return False
    return True
