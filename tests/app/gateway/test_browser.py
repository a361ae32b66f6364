"""The pages as a person sees them, in a headless Chromium; pictures of them are left in ``build/web``."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pydicom
import pytest

from app.gateway import service
from app.gateway.jobs import State
from app.gateway.service import TABLE
from operators.software import RESEARCH_NOTICE
from tests.app.gateway import stand_ins
from tests.app.gateway.peers import free_port, send, sending, wait_until
from tests.app.gateway.site import Site
from tests.app.tiny_run import write_lungs, write_models
from tests.builders import write_series

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser

PICTURES = Path(__file__).resolve().parents[3] / "build" / "web"
_CHROMIUM = "/usr/bin/chromium"
_SCRIPT = "<script>document.title = 'taken over'</script>"
_OTHERS = [
    ("2.25.322901347613054876542397865439123", State.FAILED, 400.0, "the run took longer than 1800 s", 1800.0),
    ("1.2.276.0.7230010.3.1.2.296485376.1.1521713414.1848", State.FAILED, 300.0, "pacs: status A700", 41.2),
    ("1.3.6.1.4.1.14519.5.2.1.99.1071.7351", State.REFUSED, 5000.0, _SCRIPT, 3.6),
    *((f"1.2.826.0.1.3680043.8.498.{number}", State.COMMITTED, 9000.0 + number, "", 38.4) for number in range(220)),
]
"""Studies that have ended, seconds ago."""


@dataclass
class Looking:
    """A gateway with studies in several states, and what a browser complained of."""

    address: str
    table: Path
    study: str
    browser: Browser
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def page(self, width: int, scheme: str) -> Page:
        """Open the queue in a window of its own."""
        context = self.browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(self.address)
        return page


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looking]:
    """Run the application on one study, have it refuse one, and let one arrive."""
    playwright = pytest.importorskip("playwright.sync_api")
    folder = tmp_path_factory.mktemp("site")
    write_models(folder / "models")
    write_lungs(folder / "lungs")
    lungs = sorted((folder / "lungs").iterdir())
    flat = write_series(folder / "flat", np.zeros((3, 8, 8)), study="flat")
    arriving = write_series(folder / "arriving", np.zeros((3, 8, 8)), study="arriving")
    web = free_port()
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "TICK", 0.05)
        site = Site(folder, stack)
        site.start(stand_ins.application, folder / "models", web={"port": web})
        send(site.port, lungs)
        send(site.port, flat)
        wait_until(lambda: sorted(site.states()) == [State.COMMITTED, State.REFUSED])
        _add(folder / "spool" / TABLE, _OTHERS)
        association = stack.enter_context(sending(site.port, arriving))
        association.send_c_store(pydicom.dcmread(arriving[0]))
        running = stack.enter_context(playwright.sync_playwright())
        browser = running.chromium.launch(executable_path=_CHROMIUM)
        stack.callback(browser.close)
        study = str(pydicom.dcmread(lungs[0]).StudyInstanceUID)
        yield Looking(f"http://127.0.0.1:{web}/", folder / "spool" / TABLE, study, browser)


def _add(table: Path, studies: Iterable[tuple[str, State, float, str, float]]) -> None:
    """Put studies into the table in states that the gateway does not leave."""
    now = time.time()
    with closing(sqlite3.connect(table)) as database, database:
        database.executemany(
            "INSERT INTO studies VALUES (?, ?, 1, 3, 0.0, ?, 'CT_SCANNER_2', ?, ?, ?, ?)",
            [
                (uid, state, now - ago, reason, now - ago - 90, now - ago, took)
                for uid, state, ago, reason, took in studies
            ],
        )


def _save(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png", animations="disabled")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 800, 360])
def test_the_queue_and_a_study_can_be_read(looking: Looking, width: int, scheme: str) -> None:
    page = looking.page(width, scheme)
    assert page.get_by_text(RESEARCH_NOTICE).first.is_visible()
    for state, number in (("receiving", 1), ("committed", 221), ("refused", 2), ("failed", 2), ("running", 0)):
        crowd = page.locator(".crowds a", has=page.locator(f".{state}"))
        assert crowd.is_visible()
        assert crowd.locator(".number").inner_text() == str(number)
    assert page.get_by_role("columnheader").all_inner_texts()[:2] == ["Study Instance UID", "State"]
    assert page.get_by_text("pacs: status A700").is_visible()
    assert page.get_by_text(_SCRIPT).is_visible()
    assert page.title() == "Queue · COVIDCT"
    _check_fits(page)
    _check_contrast(page)
    _save(page, f"queue-{width}-{scheme}")
    page.get_by_role("link", name=looking.study).click()
    page.wait_for_url(f"**/studies/{looking.study}")
    _check_study(page)
    _check_fits(page)
    _check_contrast(page)
    _save(page, f"study-{width}-{scheme}")
    page.get_by_role("link", name="← queue").click()
    page.wait_for_url(looking.address)
    page.context.close()
    assert looking.complaints == []
    assert [url for url in looking.asked if not url.startswith(looking.address)] == []


def _check_study(page: Page) -> None:
    picture = page.get_by_role("img", name=re.compile("Summary page"))
    picture.wait_for()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    assert picture.evaluate("image => image.naturalWidth") == 1400
    (row,) = page.locator(".deliveries tbody tr").all()
    name, stored, kept = re.split(r"\s*\t\s*", row.inner_text())
    assert name == "pacs"
    assert stored == kept
    assert re.fullmatch(r"(\d+) of \1 ✓", stored)


def _check_fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def _check_contrast(page: Page) -> None:
    """Check that every text stands out from its ground as WCAG 2.2 asks of small text (1.4.3)."""
    faint = page.evaluate(_FAINT)
    assert faint == []


def test_older_studies_and_those_of_a_state_are_a_link_away(looking: Looking) -> None:
    page = looking.page(1400, "light")
    page.get_by_role("link", name="older →").click()
    page.wait_for_url("**/?page=2")
    assert len(page.locator("tbody tr").all()) == 26
    page.locator(".crowds a", has=page.locator(".failed")).click()
    page.wait_for_url("**/?state=failed")
    assert len(page.locator("tbody tr").all()) == 2
    assert page.locator(".crowds [aria-current]").inner_text().split() == ["2", "✕", "failed"]
    _save(page, "failed-1400-light")
    page.get_by_role("link", name="show all").click()
    page.wait_for_url(looking.address)
    page.context.close()
    assert looking.complaints == []


def test_the_queue_follows_what_happens(looking: Looking) -> None:
    page = looking.page(1400, "light")
    new = page.get_by_role("link", name="1.2.3.4.5", exact=True)
    assert new.count() == 0
    _add(looking.table, [("1.2.3.4.5", State.DROPPING, 0.0, "", 1.0)])
    new.wait_for()
    page.context.close()


_FAINT = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = color => rgb(color).slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (rgb(color)[3] === 255) return color;
    }
    return 'white';
  };
  const faint = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const [low, high] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((a, b) => a - b);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(element.outerHTML);
  }
  return faint;
}"""
