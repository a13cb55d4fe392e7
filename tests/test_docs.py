"""The documentation: every public name on one page, links that lead somewhere, code that parses."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import lens_slt as ls

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_NAME = re.compile(r"`ls\.(\w+)")
MEASURED = re.compile(r"(−?[\d.]*\d)( %)?<!-- ([\w-]+)\.(\w+) -->")


def page_ids() -> list[str]:
    return [str(page.relative_to(DOCS)) for page in PAGES]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """mkdocs.yml, its ``!relative`` as plain text."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!relative", lambda loader, node: loader.construct_scalar(node))
    return yaml.load((ROOT / "mkdocs.yml").read_text("utf-8"), Loader)


def names_of(path: str) -> str | None:
    """The public name that a ``:::`` line documents, None for a module.

    A name that a package shares, such as a function ``report``, stands there with its module.
    """
    *module, name = path.split(".")
    if name not in ls.__all__:
        return None
    home = getattr(getattr(ls, name), "__module__", "lens_slt")
    return name if ".".join(module) in ("lens_slt", home) else None


def test_every_public_name_is_on_exactly_one_api_page() -> None:
    found: dict[str, list[str]] = {name: [] for name in ls.__all__}
    for page in sorted((DOCS / "api").glob("*.md")):
        for path in DIRECTIVE.findall(page.read_text("utf-8")):
            name = names_of(path)
            if name is not None:
                found[name].append(page.name)
    wrong = {name: pages for name, pages in found.items() if len(pages) != 1}
    assert not wrong, f"on no page, or on several: {wrong}"


def test_all_other_directives_are_modules() -> None:
    for page in sorted((DOCS / "api").glob("*.md")):
        for path in DIRECTIVE.findall(page.read_text("utf-8")):
            known = names_of(path) is not None or importlib.util.find_spec(path) is not None
            assert known, f"{page.name}: {path} is neither a public name nor a module"


def nav_files(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        yield from nav_files(part)


def test_navigation_holds_every_page_once(config: dict[str, Any]) -> None:
    assert sorted(nav_files(config["nav"])) == sorted(page.as_posix() for page in relative_pages())


def relative_pages() -> list[Path]:
    return [page.relative_to(DOCS) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=page_ids())
def test_internal_links_lead_to_files(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "#")):
            continue
        there = page.parent / target.partition("#")[0]
        assert there.exists(), f"{target} is not there"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (None, "in tests"),
        ("https://a.b/c", "in [tests](https://a.b/c/blob/main/tests/test_docs.py)"),
    ],
)
def test_links_into_the_repository_lead_to_its_address_if_there_is_one(
    address: str | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("repository", DOCS / "repository.py")
    assert spec is not None and spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    monkeypatch.setattr(hook, "address", lambda: address)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-to/a.md"))
    within = "[here](../limits.md)"
    made = hook.on_page_markdown(f"{within} in [tests](../../tests/test_docs.py)", page=page)
    assert made == f"{within} {shown}"


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    """In pyproject.toml, and in notebooks that are made from it."""
    files = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*.cff"), *ROOT.glob("*.yml")]
    files += [*(ROOT / "tutorials").glob("*.py"), *(ROOT / "tutorials").glob("*.md")]
    for file in files:
        assert not re.search(r"//git\w+\.\w+/[\w-]+/lens[-_]slt", file.read_text("utf-8")), file


@pytest.mark.parametrize("page", PAGES, ids=page_ids())
def test_code_parses_and_uses_public_names(page: Path) -> None:
    text = page.read_text("utf-8")
    for language, code in FENCE.findall(text):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "ls" or node.attr in ls.__all__, f"ls.{node.attr}"
    for name in INLINE_NAME.findall(text):
        known = name in ls.__all__ or any(one.startswith(name) for one in ls.__all__ if "_" in name)
        assert known, f"ls.{name} is not public"


def test_ten_lines_are_the_same_everywhere() -> None:
    """The shortest useful program: in the README, on the first page, in the package's docstring."""

    def after(title: str, path: Path) -> str:
        found = FENCE.search(path.read_text("utf-8").partition(title)[2])
        assert found is not None, f"{path.name}: no code after {title!r}"
        return found[2]

    readme = after("## Ten lines", ROOT / "README.md")
    assert after("## Ten lines", DOCS / "index.md") == readme
    assert textwrap.indent(readme, "    ") in (ls.__doc__ or "")
    assert len([line for line in readme.splitlines() if line]) == 10


def test_nothing_is_fetched_from_elsewhere(config: dict[str, Any]) -> None:
    assert config["theme"]["font"] is False
    for key in ("extra_css", "extra_javascript"):
        assert all(not path.startswith("http") for path in config.get(key, []))


def test_citation_names_the_version_and_the_papers() -> None:
    made = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert made["cff-version"] == "1.2.0"
    assert f'version = "{made["version"]}"' in (ROOT / "pyproject.toml").read_text("utf-8")
    values = [one["value"] for paper in made["references"] for one in paper["identifiers"]]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(values) >= 3
    assert all(value.removeprefix("arXiv:") in readme for value in values)


def test_changelog_holds_the_version_of_the_package() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert version is not None
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "## Unreleased" in text
    assert f"## {version[1]} - " in text


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("material") is None,
    reason="mkdocs-material is not installed: pip install '.[docs]'",
)
def test_site_builds_strictly(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    sampling = (tmp_path / "api/sampling/index.html").read_text("utf-8")
    assert 'id="lens_slt.sample"' in sampling
    assert "&gt;&gt;&gt;" in sampling, "examples are no code"  # but quotes in quotes in quotes
    assert "as far from the given weights as the prior allows; excluded</td>" in sampling
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r":(func|class|mod):|={4,}", text), f"{page}: markup of docstrings"
        loaded = re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?://[^"]+)', text)
        assert not loaded, f"{page} loads {loaded}"


def test_numbers_of_benchmarks_are_those_that_were_measured() -> None:
    """A number before ``<!-- FILE.FIGURE -->`` is that figure of docs/measured/FILE.json."""
    checked = set()
    for page in [ROOT / "README.md", *PAGES]:
        for shown, percent, file, figure in MEASURED.findall(page.read_text("utf-8")):
            figures = json.loads((DOCS / "measured" / f"{file}.json").read_text("utf-8"))["figures"]
            value = figures[figure] * (100 if percent else 1)
            digits = len(shown.partition(".")[2])
            where = f"{page.name}: {file}.{figure}"
            assert shown.replace("−", "-") == f"{value:.{digits}f}", where
            checked.add(file)
    files = list((DOCS / "measured").glob("*.json"))
    assert checked == {file.stem for file in files}
    for file in files:  # no path of the machine that measured
        assert " /" not in json.loads(file.read_text("utf-8"))["command"]
