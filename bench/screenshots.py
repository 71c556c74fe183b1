"""Takes the pictures of the page for docs/serve.md: `python -m bench.screenshots CHECKPOINT CLIP`.

A server of the checkpoint answers in Debian's Chromium: the clip, light and dark, and a file that is no clip.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .checkout import ROOT
from .serve import running

OUT = ROOT / "docs/serve"
_SIZE = (860, 640)
_COLOURS = 256  # of a picture: a third of the bytes, and every colour as good as its own


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.screenshots", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--out", type=Path, default=OUT, help="folder (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with running(options.checkpoint) as (address, _), tempfile.TemporaryDirectory() as folder:
        wrong = Path(folder, "notes.mp4")
        wrong.write_text("Not a film, but a text that was given the name of one.")
        for name, scheme, clip in (
            ("light", "light", options.clip),
            ("dark", "dark", options.clip),
            ("error", "light", wrong),
        ):
            picture = _taken(address, scheme, clip)
            (options.out / f"{name}.png").write_bytes(picture)
            print(f"{options.out / name}.png: {len(picture) / 1e3:.0f} kB")
    return 0


def _taken(address: str, scheme: Any, clip: Path) -> bytes:
    """The page after a clip was given, as the bytes of a PNG."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            base_url=address,
            color_scheme=scheme,
            viewport={"width": _SIZE[0], "height": _SIZE[1]},
            reduced_motion="reduce",
        )
        page.goto("/")
        page.locator("#bounds", has_text="At most").wait_for()
        page.get_by_label("Choose clips").set_input_files(clip)
        page.locator("article").wait_for()
        page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
        whole = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        browser.close()
    file = io.BytesIO()
    whole.quantize(_COLOURS).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
