"""OHIF in a headless Chromium, used as a reader at the screen would."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import ConsoleMessage, Page, Route, sync_playwright

from tests.pacs.server import HTTP_PORT

Picture = npt.NDArray[np.uint8]

_SERVER = f"http://127.0.0.1:{HTTP_PORT}"
_CHROMIUM = "/usr/bin/chromium"
_WEBGL_WITHOUT_GPU = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
_SETTINGS = Path(__file__).with_name("app-config.js")
_NO_TOUR = "localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour']))"
_PATIENCE = 600
"""Tenths of a second after which what is not shown will not be shown."""

# OHIF hands out its services for scripts.
_SCROLL = """async instance => {
    const active = services.viewportGridService.getState().activeViewportId;
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(active);
    const index = viewport.getImageIds().findIndex(each => each.includes(instance));
    if (index < 0) return false;
    await viewport.setImageIdIndex(index);
    return true;
}"""
_CANVAS = "[data-cy='viewport-pane'] .cornerstone-canvas"


class ViewerFailed(Exception):
    """OHIF does not show what it should."""


class Viewer:
    """OHIF with one study."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._errors: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self._errors.append(str(error)))

    def open(self, study: str) -> None:
        """Load a study; its CT is shown."""
        self._page.goto(f"{_SERVER}/viewer?StudyInstanceUIDs={study}")
        self._page.locator(_CANVAS).wait_for()

    def show_series(self, number: int) -> None:
        """Load a series by a double click on it."""
        self._page.locator(f"[data-series='{number}']").dblclick()

    def wait_for_image(self, instance: str, right: Callable[[Picture], bool]) -> None:
        """Scroll to an image of the series in the viewport and wait until its pixels are right."""
        # What OHIF does on its own while it loads may scroll elsewhere, therefore again each time.
        self._wait(f"image {instance}", lambda: self._page.evaluate(_SCROLL, instance) and right(self._picture()))

    def segments(self) -> list[str]:
        """Open the list of segments and read it."""
        self._page.locator("[data-cy='panelSegmentation-btn']").click()
        titles = self._page.locator("[data-cy='data-row-title']")
        titles.first.wait_for()
        return titles.all_inner_texts()

    def save(self, path: Path) -> None:
        """Save a picture of the whole window."""
        self._page.screenshot(path=path, animations="disabled")

    def wait_for_complaint(self) -> None:
        """Wait until OHIF says that something is wrong."""
        self._wait("an error", lambda: bool(self.complaints()))

    def complaints(self) -> list[str]:
        """All errors that OHIF has shown or logged."""
        notices = self._page.locator("[data-sonner-toast][data-type='error']").all_inner_texts()
        return [" ".join(error.split()) for error in (*self._errors, *notices)]

    def _picture(self) -> Picture:
        """Pixels of the viewport without the texts over it."""
        encoded = self._page.locator(_CANVAS).evaluate("canvas => canvas.toDataURL()").partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(b64decode(encoded))).convert("RGB"))

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        for _ in range(_PATIENCE):
            if condition():
                return
            self._page.wait_for_timeout(100)
        raise ViewerFailed(f"{what} is not shown, or not as it should be; {self.complaints()}")

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._errors.append(message.text)


@contextmanager
def viewing(ohif: Path) -> Iterator[Viewer]:
    """Start OHIF, whose files are in ``ohif``, before the running server."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_WEBGL_WITHOUT_GPU)
        context = browser.new_context(viewport={"width": 1600, "height": 1000}, service_workers="block")
        context.route("**/*", lambda route: _serve(ohif, route))
        context.add_init_script(_NO_TOUR)
        yield Viewer(context.new_page())
        browser.close()


def _serve(ohif: Path, route: Route) -> None:
    """Answer for a web server that has OHIF at its root and hands ``/dicom-web`` on to the server of images."""
    path = urlsplit(route.request.url).path
    file = ohif / path.lstrip("/")
    if path.startswith("/dicom-web/"):
        route.continue_()
    elif path == "/app-config.js":
        route.fulfill(path=_SETTINGS)
    else:
        route.fulfill(path=file if file.is_file() else ohif / "index.html")
