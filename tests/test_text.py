"""Text made harmless for each place, read back by what reads it there."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from html.parser import HTMLParser

import pytest

from lens_slt.text import dot_text, figure_text, html_text, script_data, visible

TEXTS = (
    "</script><img src=x onerror=alert(1)><!--<script>",
    "<b>bold</b> & &lt; \"quoted\" 'single'",
    "[/1] [red]x[/red] \\",
    "$\\href{javascript:alert(1)}{x}$ %{x} %%{y} \\N \\n",
    "ordinary text: λ̂ ± é 漢字 👩‍👩‍👧 ␛",
)
CONTROL = "a\x1b[31mb\x9b2Jc\x00d\x7fe\u202ef\u2028g\udc80h\ri"


@pytest.mark.parametrize("text", TEXTS)
def test_html_is_read_as_the_text(text: str) -> None:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(f"tag {tag} {attrs}")

        def handle_data(self, data: str) -> None:
            found.append(data)

    reader = Reader()
    reader.feed(f'<p title="{html_text(text)}">{html_text(text)}</p>')
    reader.close()
    assert found == [f"tag p {[('title', text)]}", text]


@pytest.mark.parametrize("text", TEXTS)
def test_figures_get_neither_tags_nor_formulas_nor_fields(text: str) -> None:
    made = figure_text(text)
    assert not {"<", ">", "$"} & set(made) and "%{" not in made
    assert html.unescape(made) == text
    known = re.findall(r"&(?!#\d+;)(\w+);", made)  # plotly reads no others by name
    assert set(known) <= {"amp", "lt", "gt"}


@pytest.mark.parametrize("text", [*TEXTS, CONTROL])
def test_data_of_a_script_cannot_end_it(text: str) -> None:
    made = script_data({"a": [text, 1.5, None]})
    assert made.isascii() and not {"<", ">", "&"} & set(made)
    assert json.loads(made) == {"a": [text, 1.5, None]}


@pytest.mark.parametrize("text", TEXTS)
def test_dot_strings_end_where_they_should(text: str) -> None:
    made = dot_text(text, "second")
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*"', made)
    first, second = re.split(r"(?<!\\)(?:\\\\)*\\n", made[1:-1])[0], "second"
    assert made.endswith(f'\\n{second}"')
    if "\\" not in text:
        assert html.unescape(first.replace('\\"', '"')) == text


def test_backslashes_are_no_escapes_of_dot() -> None:
    assert dot_text("\\N") == '"\\\\N"'
    assert dot_text("ends in \\") == '"ends in \\\\"'
    assert dot_text("&lt;") == '"&amp;lt;"'


def test_control_characters_become_signs() -> None:
    made = visible(CONTROL)
    assert made == "a␛[31mb\\x9b2Jc␀d␡e\\u202ef\\u2028g\\udc80h␍i"
    assert not any(unicodedata.category(sign) in ("Cc", "Cs") for sign in made)
    assert visible("two\nlines") == "two\nlines"
    assert visible(TEXTS[-1]) == TEXTS[-1]
    assert "\x1b" not in figure_text(CONTROL) + html_text(CONTROL) + dot_text(CONTROL)
