"""The page in headless Chromium: search, history, recommendations that move, pictures, keyboard, escaping."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from python_tests.serve.test_process import wait_for
from python_tests.support.server import Server, running
from recgrela.runs.items import Items, read_items, write_items

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
CHROMIUM, DRIVER = (
    shutil.which(name) or shutil.which(other)
    for name, other in (("chromium", "google-chrome"), ("chromedriver", "chromium-driver"))
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not installed"
)
TOKEN = "0123456789abcdef0123456789abcdef"
TITLE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\"> & \"Co\""


class Page:
    """The page of a server in a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.search = self.all("#search")[0]

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of elements, read at one moment."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.driver.execute_script(script, selector)

    def wait(self, is_done: Callable[[], bool]) -> None:
        wait_for(is_done)

    def find(self, text: str) -> None:
        self.search.clear()
        self.search.send_keys(text)
        self.wait(lambda: all(text.lower() in found.lower() for found in self.texts("#found .title")))

    def after_turn(self, act: Callable[[], None]) -> None:
        """Acts, and waits until the recommendations have followed."""
        turn = self.driver.execute_script("return document.body.dataset.turn")
        act()
        self.wait(lambda: self.driver.execute_script("return document.body.dataset.turn") != turn)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token and an item whose title is a script."""
    folder = tmp_path_factory.mktemp("page")
    run = shutil.copytree(trained_run, folder / "run")
    items = read_items(run / "items.parquet", 41)
    titles = [*items.titles[:-1], TITLE]
    write_items(run / "items.parquet", Items(items.tokens, titles, items.retired))
    with running(run, folder / "store.sqlite", RECGRELA_SERVE_TOKEN=TOKEN) as server:
        server.client.headers["authorization"] = f"Bearer {TOKEN}"
        events = [{"user": "a/b", "item": item, "time": t} for t, item in enumerate(items.tokens[1:4])]
        assert server.post("/events", events).status_code == 200
        yield server


def test_the_page(driver: Any, server: Server) -> None:
    keys = webdriver.Keys
    page = Page(driver, server.url)
    page.wait(lambda: page.texts("#status") == ["a valid token is needed: Authorization: Bearer TOKEN"])
    page.all("#token")[0].send_keys(TOKEN, keys.ENTER)
    page.wait(lambda: len(page.texts("#found .title")) == 40)
    assert not page.all("#login")[0].is_displayed() and page.texts("#status") == [""]
    assert "best.safetensors" in page.texts("#model")[0] and "40 items" in page.texts("#model")[0]

    # By keyboard alone: from the search into the list, one item added, and back.
    page.find("cluster 0 / item 1")
    found = page.texts("#found .title")
    page.after_turn(lambda: page.press(keys.ARROW_DOWN, keys.ARROW_DOWN, keys.ENTER))
    assert page.texts("#history .title") == found[1:2]
    first = page.texts("#recommended .title")
    assert len(first) == 12 and page.texts("#recommended .move") == [""] * 12
    assert driver.switch_to.active_element.text.startswith(found[1])  # the focus stays
    page.press(keys.ARROW_UP, keys.ARROW_UP)
    assert driver.switch_to.active_element == page.search

    # By the mouse: a recommendation becomes an item, and the others move.
    page.after_turn(page.all("#recommended button")[0].click)
    assert page.texts("#history .title") == [first[0], found[1]]
    second = page.texts("#recommended .title")
    assert second != first and first[0] not in second
    for title, moved in zip(second, page.texts("#recommended .move"), strict=True):
        change = first.index(title) - second.index(title) if title in first else None
        expected = (
            "new" if change is None else f"{'▲' if change > 0 else '▼'}{abs(change)}" if change else "="
        )
        assert moved == expected

    # The pictures show what the service says.
    catalogue = {item["title"]: item["item"] for item in server.get("/items?limit=100").json()["items"]}
    layers = server.post("/states", {"items": [catalogue[found[1]], catalogue[first[0]]]}).json()["layers"]
    for id, name in (("gate", "gate"), ("state", "state")):
        shown = [f"{value:.2f}" for layer in layers for value in layer[name]]
        assert page.texts(f"#{id} svg text.light, #{id} svg text.dark") == shown
        assert "layer 1" in page.all(f"#{id} svg")[0].get_attribute("aria-label")
    assert len(page.all("#change rect")) == 4

    # Removal by keyboard, then no history.
    driver.execute_script("document.querySelector('#history button').focus()")
    page.after_turn(lambda: page.press(keys.ENTER))
    assert page.texts("#history .title") == found[1:2] and page.texts("#recommended .title") == first
    page.all("#clear")[0].click()
    assert page.texts("#history .title") == page.texts("#recommended .title") == []

    # A stored user.
    page.all("#user")[0].send_keys("a/b")
    page.after_turn(lambda: page.press(keys.ENTER))
    recommended = server.get("/users/a%2Fb/recommendations?k=12").json()["items"]
    assert page.texts("#recommended .title") == [item["title"] for item in recommended]
    page.all("#user")[0].send_keys("/unknown", keys.ENTER)
    page.wait(lambda: page.texts("#status") == ["user 'a/b/unknown' has no events"])

    # A title with markup is text.
    page.find("script")
    assert page.texts("#found .title") == [TITLE]
    page.after_turn(lambda: page.press(keys.ARROW_DOWN, keys.ENTER))
    assert page.texts("#history .title")[0] == TITLE and driver.title == "recgrela"
    assert page.all("main img, main script") == []

    # Apart from the refused requests, the browser has nothing to complain about.
    complaints = [entry["message"] for entry in driver.get_log("browser")]
    assert all("401" in text or "404" in text for text in complaints), complaints


def test_the_documentation(driver: Any, server: Server) -> None:
    driver.get(f"{server.url}/docs")
    wait_for(lambda: len(driver.find_elements("css selector", "#api article")) == 13)
    text = driver.find_element("css selector", "#api").text
    assert "POST /events" in text and '"user":"196"' in text and "The disk of the store is full." in text
    assert driver.get_log("browser") == []
