"""What the site has of the repository outside of docs/: three pages, and the files that pages link to.

Links are written for readers of the repository; here they are made to lead to the same things within the site.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}

_LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
_CODE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Adds the pages and what any page links to."""
    root = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text("utf-8")))
    for page in files.documentation_pages():
        for _, target in _LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            if (root / path).is_file() and files.get_file_from_path(_in_site(path)) is None:
                files.append(File.generated(config, path, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turns links; one to a folder, of which a site has no page, becomes its text."""
    root, source = Path(config.config_file_path).parent, page.file.src_uri

    def turn(match: re.Match[str]) -> str:
        text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = _in_repository(source, target).partition("#")
        if (root / path).is_dir():
            return text.lstrip("!").strip("[]")
        relative = posixpath.relpath(_in_site(path), posixpath.dirname(source) or ".")
        return f"{text}({relative}{'#' * bool(anchor)}{anchor})"

    parts, end = [], 0
    for code in _CODE.finditer(markdown):  # what is code stays as it is
        parts += [_LINK.sub(turn, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join(parts) + _LINK.sub(turn, markdown[end:])


def _in_repository(page: str, target: str) -> str:
    """Where a link of a page leads, from the repository's root."""
    sources = {name: source for source, name in PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(folder, target))


def _in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))
