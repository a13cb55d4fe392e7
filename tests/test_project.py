"""The project's own files agree with each other."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_both_tested_sets_differ_in_transformer_lens_only() -> None:
    old, new = pins("constraints.txt"), pins("constraints-tl4.txt")
    assert old.pop("transformer-lens").startswith("3.9.")
    assert new.pop("transformer-lens").startswith("4.")
    assert old["torch"] == "2.13.0"
    del old["better-abc"]  # a dependency of transformer-lens 3 only
    assert old == new


def test_every_dependency_is_pinned() -> None:
    names = {re.split(r"[<>=\[ ]", line)[0] for line in PROJECT["dependencies"]}
    assert names <= set(pins("constraints.txt"))


def test_no_file_of_the_build_names_a_host() -> None:
    for name in ("constraints.txt", "constraints-tl4.txt", "pyproject.toml", ".ci/run"):
        lines = (ROOT / name).read_text().splitlines()
        text = "\n".join(line for line in lines if not line.startswith("Repository = "))
        assert "://" not in text, name
        assert "index-url" not in text, name


def test_readme_gives_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "python -m pip install -c constraints.txt . && lens-slt demo" in readme
    assert 'python -m pip install -c constraints.txt -e ".[test]" && python -m pytest' in readme


def test_version_and_extras() -> None:
    assert PROJECT["requires-python"] == ">=3.11"
    assert set(PROJECT["optional-dependencies"]) >= {"test", "bench", "docs", "notebooks"}
