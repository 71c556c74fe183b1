"""The page in a browser: Debian's Chromium, where it is installed, as in CI."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avemo.serve.service import Service
from tests.avemo.serve import running

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="Debian's chromium is not installed"),
]

# A camera and a microphone of the browser's own; nothing is fetched in the background.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip


PATIENCE = 180_000  # milliseconds: machines that run tests are busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(service: Service, clip: Path) -> Iterator[str]:
    with running.running(service, root=clip.parent) as given:
        yield given


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, loaded; nothing is asked of anyone but the server."""
    context = browser.new_context(base_url=address)
    context.set_default_timeout(PATIENCE)
    made = context.new_page()
    asked: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    made.goto("/")
    made.locator("#bounds", has_text="At most").wait_for()
    yield made
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []
    context.close()


def test_a_clip_is_shown(page: Any, clip: Path) -> None:
    page.get_by_label("Choose clips").set_input_files(clip)
    article = page.locator("article")
    article.wait_for()
    assert article.locator("h3").inner_text() == "clip.mp4"
    rows = article.locator("tbody tr").all_inner_texts()
    assert len(rows) == len(running.CLASSES)
    best = article.locator(".emotion").inner_text()
    assert best.split(",")[0] == rows[0].split()[0]
    assert page.get_by_role("status").inner_text() == f"clip.mp4: {best}"
    picture = article.locator("img")
    assert picture.evaluate("i => i.decode().then(() => i.naturalWidth)") > 0
    assert "clip.mp4" in picture.get_attribute("alt")


def test_what_is_wrong_with_a_clip(page: Any, tmp_path: Path) -> None:
    bad = tmp_path / "<img src=x>.mp4"
    bad.write_text("nothing")
    page.get_by_label("Choose clips").set_input_files(bad)
    article = page.locator("article.refused")
    article.wait_for()
    assert article.locator("h3").inner_text() == bad.name
    assert article.locator(".reason").inner_text() == "not a media file"
    assert "ffmpeg" in article.locator(".advice").inner_text()


def test_dropped(page: Any, clip: Path) -> None:
    data = list(clip.read_bytes())
    page.evaluate(
        """(bytes) => {
          const data = new DataTransfer();
          data.items.add(new File([new Uint8Array(bytes)], "dropped.mp4"));
          const drop = new DragEvent("drop", { dataTransfer: data, cancelable: true });
          document.querySelector("#drop").dispatchEvent(drop);
        }""",
        data,
    )
    page.locator("article").wait_for()
    assert page.locator("article h3").inner_text() == "dropped.mp4"


def test_by_path_one_bad_one_good(page: Any) -> None:
    page.get_by_label("Or paths in the server's folder").fill("../clip.mp4\nclip.mp4\n")
    page.get_by_role("button", name="Read them").click()
    page.locator("article .emotion").wait_for()
    assert page.locator("article h3").all_inner_texts() == ["clip.mp4", "../clip.mp4"]


def test_recorded_from_the_camera(page: Any) -> None:
    """What the browser's own camera shows has no face, and its microphone beeps at times: that is the answer."""
    page.get_by_role("button", name="Record from the camera").click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop recording").click()
    article = page.locator("article.refused")
    article.wait_for()
    assert article.locator("h3").inner_text() == "recording"
    assert article.locator(".reason").inner_text() in ("no face", "silent audio")


def test_by_keyboard_alone(page: Any) -> None:
    """All that can be used is reached by Tab, in the order of the page, and shows that it is."""
    seen = []
    for _ in range(6):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
        width = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
        assert width == "3px", seen
    assert seen[0].startswith("Skip")
    assert seen[1:] == ["file", "record", "paths", "Read them", "JSON API"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, address: str, clip: Path, scheme: str) -> None:
    """Texts on their ground have at least the 4.5 to 1 of WCAG 2.2 AA."""
    page = browser.new_page(base_url=address, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto("/")
    page.get_by_label("Choose clips").set_input_files(clip)
    page.locator("article").wait_for()
    found = page.evaluate(
        """() => {
          const numbers = (color) => color.match(/[0-9.]+/g).map(Number);
          const ground = (e) => {
            for (; e; e = e.parentElement) {
              const [r, g, b, a = 1] = numbers(getComputedStyle(e).backgroundColor);
              if (a > 0) return [r, g, b];
            }
            return [255, 255, 255];
          };
          return [...document.querySelectorAll("p, h1, h2, h3, th, td, a, button, caption, label")]
            .filter((e) => e.checkVisibility() && e.textContent.trim())
            .map((e) => [e.textContent.trim(), numbers(getComputedStyle(e).color).slice(0, 3), ground(e)]);
        }"""
    )
    assert len(found) > 10
    assert [text for text, ink, ground in found if _contrast(ink, ground) < 4.5] == []
    page.close()


def _contrast(one: list[float], other: list[float]) -> float:
    """The contrast ratio of WCAG 2.2."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: list[float]) -> float:
    parts = [c / 255 for c in color]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_token_is_asked_for_and_kept(browser: Any, service: Service, clip: Path) -> None:
    with running.running(service, token="secret") as address:
        page = browser.new_page(base_url=address)
        page.set_default_timeout(PATIENCE)
        page.goto("/")
        field = page.get_by_label("Token of this server")
        for token in ("wrong", "secret"):
            field.wait_for()
            field.fill(token)
            page.get_by_role("button", name="Use it").click()
            page.locator(
                "#status", has_text={"wrong": "asks for a token", "secret": ""}[token]
            ).wait_for(state="attached")
        page.get_by_label("Choose clips").set_input_files(clip)
        page.locator("article .emotion").wait_for()
        page.close()


def test_the_api_page_is_drawn_without_help_from_elsewhere(browser: Any, address: str) -> None:
    page = browser.new_page(base_url=address)
    page.set_default_timeout(PATIENCE)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/docs")
    page.locator(".opblock").first.wait_for()
    assert page.locator(".opblock").count() == 3
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    page.close()
