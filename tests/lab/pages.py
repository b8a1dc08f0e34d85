"""Tests the pages in a real browser: layout, keyboard, without scripts, on a telephone screen, in dark mode.

pages.py live BASE KIND             waits until an incident of KIND appears on a page that is already open
pages.py look BASE INCIDENT FOLDER  tests the pages of one incident; screenshots are written to FOLDER
pages.py text BASE INCIDENT         prints the text of an incident's pages as JSON, to check data from hostile peers
"""

import json
import pathlib
import sys
from contextlib import contextmanager

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

LIMIT = 20_000  # time limit of every wait, ms
DESK = {"width": 1280, "height": 900}
TELEPHONE = {"width": 360, "height": 740}


class Reader:
    """A browser window that records every console warning and error."""

    def __init__(self, browser, base, **settings):
        self.base, self.wrong = base, []
        self.context = browser.new_context(viewport=settings.pop("viewport", DESK), **settings)
        self.context.set_default_timeout(LIMIT)
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda asked: None if asked.url.startswith(base + "/") else self.wrong.append(asked.url))

    def open(self, path, status=200):
        answer = self.page.goto(self.base + path, wait_until="load")
        assert answer.status == status, f"{path}: {answer.status}"
        if status != 200:  # the browser's console tells of it, and is right
            self.wrong = [text for text in self.wrong if "Failed to load resource" not in text]
        assert not self.wrong, f"{path}: {self.wrong}"
        return answer


@contextmanager
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def live(base, kind):
    with browser() as chromium:
        reader = Reader(chromium, base)
        reader.open("/")
        reader.page.evaluate("window.same = true")
        reader.page.locator("#live", has_text="live").wait_for()
        assert reader.page.locator("#incidents tr").count() == 0
        print("open", flush=True)
        reader.page.locator("#incidents a", has_text=kind).first.wait_for()
        assert reader.page.evaluate("window.same"), "the page was loaded again"
        assert kind in reader.page.locator("#live").inner_text(), reader.page.locator("#live").inner_text()
        assert not reader.wrong, reader.wrong


def accessible(reader, path):
    found = Axe().run(reader.page)
    assert found.violations_count == 0, f"{path}: {found.generate_report()}"


def paths(incident, finding):
    return ["/", "/incidents", f"/incidents/{incident}", f"/findings/{finding}", "/peers"]


def everywhere(chromium, base, incident, finding, folder):
    for scheme, viewport, name in [("light", DESK, "light"), ("dark", DESK, "dark"), ("light", TELEPHONE, "phone"), ("dark", TELEPHONE, "phone-dark")]:
        reader = Reader(chromium, base, color_scheme=scheme, viewport=viewport, reduced_motion="reduce")
        for path, file in zip(paths(incident, finding), ["now", "incidents", "incident", "finding", "peers"]):
            reader.open(path)
            reader.page.screenshot(path=str(folder / f"{file}-{name}.png"), full_page=True)
            accessible(reader, path)
            reader.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
            accessible(reader, path)
            wide = reader.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{path} is {wide} pixels wider than a {viewport['width']} pixel screen"
        grounds = reader.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (grounds == "rgb(255, 255, 255)") == (scheme == "light"), f"{scheme}: {grounds}"


def without_scripts(chromium, base, incident):
    reader = Reader(chromium, base, java_script_enabled=False)
    page = reader.page
    reader.open("/")
    page.get_by_role("link", name="All incidents").click()
    page.get_by_label("Severity").select_option("low")
    page.get_by_label("Peer").fill(" *.example.net ")
    page.get_by_role("button", name="Filter").click()
    assert "severity=low" in page.url, page.url
    assert page.locator(f"#incidents a[href='/incidents/{incident}']").count() == 1
    assert page.get_by_label("Severity").input_value() == "low"
    page.get_by_label("Peer").fill("203.0.113.0/24")
    page.get_by_role("button", name="Filter").click()
    assert "None match" in page.locator("main").inner_text()
    page.get_by_label("Last seen after").fill("yesterday")
    page.get_by_role("button", name="Filter").click()
    wrong = page.get_by_role("alert").inner_text()
    assert wrong.startswith("since: expected"), wrong
    assert page.get_by_label("Last seen after").input_value() == "yesterday"
    page.get_by_role("link", name="Show all").click()
    page.locator(f"#incidents a[href='/incidents/{incident}']").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Capture file").click()
    assert download.value.suggested_filename == f"smtpwatch-{incident}.pcapng", download.value.suggested_filename
    reader.open("/incidents/00000000", 404)
    reader.open("/nothing", 404)


def by_keyboard(chromium, base, incident):
    reader = Reader(chromium, base)
    page = reader.page
    focused = lambda what: page.evaluate(f"document.activeElement.{what}")
    reader.open("/")
    page.keyboard.press("Tab")
    assert focused("className") == "skip" and page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert focused("id") == "main", focused("outerHTML")
    for _ in range(30):
        page.keyboard.press("Tab")
        if focused("getAttribute('href')") == f"/incidents/{incident}":
            break
    assert focused("getAttribute('href')") == f"/incidents/{incident}"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/incidents/{incident}")
    assert page.evaluate("document.querySelectorAll('h1').length") == 1


def nothing_foreign_runs(chromium, base):
    """The Content Security Policy of the pages blocks injected markup and scripts."""
    reader = Reader(chromium, base)
    reader.open("/")
    reader.page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<img src="http://192.0.2.1/x" onerror="window.ran = true">');
        }"""
    )
    reader.page.wait_for_timeout(300)
    assert reader.page.evaluate("window.ran") is None
    assert sum("Content Security Policy" in text for text in reader.wrong) >= 2, reader.wrong


def difference(chromium, base, incident):
    """The rows of the EHLO comparison as displayed: class, expected, observed, mark."""
    reader = Reader(chromium, base)
    reader.open(f"/incidents/{incident}")
    rows = reader.page.locator("section[aria-labelledby=difference] tbody tr")
    table = [[row.get_attribute("class"), *row.locator("td").all_inner_texts()] for row in rows.all()]
    bars = reader.page.locator("svg.timeline rect:not(.incident)").count()
    finding = reader.page.locator("section[aria-labelledby=record] a").first.get_attribute("href")
    dialogue = reader.page.locator(".dialogue").inner_text()
    return {"difference": table, "bars": bars, "finding": finding.removeprefix("/findings/"), "dialogue": dialogue}


def look(base, incident, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        found = difference(chromium, base, incident)
        everywhere(chromium, base, incident, found["finding"], folder)
        without_scripts(chromium, base, incident)
        by_keyboard(chromium, base, incident)
        nothing_foreign_runs(chromium, base)
    print(json.dumps(found))


def text(base, incident):
    told = {}
    with browser() as chromium:
        reader = Reader(chromium, base)
        found = difference(chromium, base, incident)
        for path in paths(incident, found["finding"]):
            reader.open(path)
            page = reader.page
            told[path] = {
                "text": page.evaluate("document.body.textContent"),
                "elements": page.evaluate("[...new Set([...document.querySelectorAll('body *')].map(one => one.localName))].sort()"),
                "handlers": page.evaluate(
                    "[...document.querySelectorAll('*')].flatMap(one => [...one.attributes]).filter(one => one.name.startsWith('on')).length"
                ),
                "ran": page.evaluate("window.ran === undefined ? null : String(window.ran)"),
            }
            accessible(reader, path)
    print(json.dumps(told))


if __name__ == "__main__":
    {"live": live, "look": look, "text": text}[sys.argv[1]](*sys.argv[2:])
