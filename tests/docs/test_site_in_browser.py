"""The documentation's site as a browser shows it, on a desk and on a phone. Needs selenium, Chromium and its driver."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

webdriver = pytest.importorskip("selenium.webdriver")
if not (shutil.which("chromium") and shutil.which("chromedriver")):
    pytest.skip("Chromium and its driver are not installed", allow_module_level=True)
pytestmark = pytest.mark.slow

SEEN = """
const pictures = [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src);
const loaded = performance.getEntriesByType("resource").map(e => e.name);
const elsewhere = loaded.filter(name => !name.startsWith(location.origin) && !name.startsWith("data:"));
const wide = [...document.querySelectorAll(".md-content__inner > *")]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + " " + e.className);
return {pictures, elsewhere, wide, overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth)};
"""
"""What is wrong with a page: pictures that do not show, what came from elsewhere, what is wider than the window."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("width", [390, 1300])
def test_pages_as_they_are_seen(site: Path, address: str, width: int) -> None:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        device = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
        for path in sorted(site.rglob("*.html")):
            browser.get(f"{address}/{path.relative_to(site)}")
            seen = browser.execute_script(SEEN)
            assert seen == {"pictures": [], "elsewhere": [], "wide": [], "overflow": 0}, path.name
            errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
            assert not errors, path.name
    finally:
        browser.quit()
