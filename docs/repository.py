"""For mkdocs: links from pages to files of the repository.

A page links to such a file by its place, as in ``../tests/test_layers.py``, which leads there on
any code host. The site has no such file: its link is to the address in pyproject.toml, or, while
there is none, no link.
"""

from __future__ import annotations

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def address() -> str | None:
    """Of the repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def on_config(config: Any) -> None:
    """The link at the top of every page."""
    config.repo_url = address()


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that leave the documentation."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))
    there = address()

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        place = posixpath.normpath(posixpath.join(folder, target))
        if place.startswith("docs/"):
            return match[0]
        return f"[{text}]({there}/blob/main/{place})" if there else text

    return LINK.sub(link, markdown)
