"""What is done to a piece of HTML after it is made: names become links, words get their meaning."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from lens_slt.report.glossary import GLOSSARY
from lens_slt.text import html_text

_MARKUP = re.compile(r"<script\b.*?</script>|<style\b.*?</style>|<[^>]*>", re.S)
_NO_LINKS = ("a", "button", "summary", "h1", "select")  # elements that take no links
_NO_WORDS = ("button", "nav")


def linked(markup: str, places: Mapping[str, str]) -> str:
    """HTML in which every name is a link; the first of each name is a stop of the Tab key.

    Args:
        markup: made by :mod:`lens_slt.report.page`.
        places: names with the ids of what they lead to.
    """
    if not places:
        return markup
    longest_first = sorted(map(re.escape, places), key=len, reverse=True)
    names = re.compile(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)")
    met: set[str] = set()

    def link(match: re.Match[str]) -> str:
        name = match[0]
        stop = ' tabindex="-1"' if name in met else ""
        met.add(name)
        return f'<a href="#{places[name]}"{stop}>{name}</a>'

    return _with_texts(markup, lambda text: names.sub(link, text), _NO_LINKS)


def defined(markup: str, known: set[str]) -> str:
    """A list of the words that stand in a piece of HTML for the first time, "" if there are none.

    ``known`` are those that were met before; what is met here is added.
    """
    said: list[str] = []

    def keep(text: str) -> str:
        said.append(text)
        return text

    _with_texts(markup, keep, _NO_WORDS)
    text = "\n".join(said)
    new = {
        word: meaning
        for word, (form, meaning) in GLOSSARY.items()
        if word not in known and re.search(form, text)
    }
    known.update(new)
    rows = "".join(
        f"<div><dt>{html_text(word)}</dt><dd>{html_text(meaning)}</dd></div>"
        for word, meaning in new.items()
    )
    return f'<dl class="words" aria-label="Words used here">{rows}</dl>' if rows else ""


def _with_texts(markup: str, change: Callable[[str], str], left: tuple[str, ...]) -> str:
    """HTML with its texts changed, but those inside of the elements ``left``."""
    parts, inside, last = [], 0, 0
    for match in _MARKUP.finditer(markup):
        text = markup[last : match.start()]
        parts += [change(text) if text and not inside else text, match[0]]
        last = match.end()
        name = re.match(r"</?(\w+)", match[0])
        if name is not None and name[1] in left:
            inside += -1 if match[0].startswith("</") else 1
    text = markup[last:]
    return "".join([*parts, change(text) if text and not inside else text])
