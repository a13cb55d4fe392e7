"""The browser in which reports are tested, where there is one."""

from __future__ import annotations

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
DRAWN = ".plot[data-drawn] .main-svg, .plotly-graph-div .main-svg, [id^=circuits-vis] canvas"
ALL_DRAWN = "!document.querySelector('section:not(.sheet) .plot:not([data-drawn])')"

needs_browser = pytest.mark.skipif(
    BROWSER is None and not os.environ.get("CI"), reason="needs a Chromium on the path"
)
