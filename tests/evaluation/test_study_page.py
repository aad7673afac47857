from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hyperdreambooth.baselines.methods import METHODS
from hyperdreambooth.errors import BadPicture, NotWritable
from hyperdreambooth.evaluation import study_page as pages
from hyperdreambooth.evaluation.records import RunFolder
from hyperdreambooth.evaluation.study import Kind, Study, make_study
from hyperdreambooth.evaluation.study_page import study_page, write_study
from hyperdreambooth.evaluation.study_scores import score
from hyperdreambooth.portraits.styles import stylize
from hyperdreambooth.sheet import to_image
from tests.evaluation.test_study import OTHER, OURS, PEOPLE, PROMPTS, tiny_run

LEFT, RIGHT, DOWN, BACKSPACE, ENTER = "\ue012", "\ue014", "\ue015", "\ue003", "\ue007"  # WebDriver's names of keys


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("run"))


def made(run_folder: RunFolder, kind: Kind = "identity", pairs: int = 6) -> Study:
    return make_study(run_folder, OURS, OTHER, kind, 3, pairs, torch.Generator().manual_seed(0))


def said(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="study">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    values: dict[str, Any] = json.loads(found[1])
    return values


@pytest.mark.parametrize("kind", ["identity", "style"])
def test_the_page_says_nothing_of_methods_people_prompts_or_files(kind: Kind, run_folder: RunFolder) -> None:
    study = made(run_folder, kind)
    page = study_page(study, run_folder)
    words = re.sub(r"base64,[\w+/=]+", "", page)  # short names stand in pictures by chance
    for secret in (*PEOPLE, *PROMPTS, OURS, OTHER, study.salt, str(run_folder.path), "[V]", "ours", "http:", "https:"):
        assert secret not in words
    assert not [name for name in METHODS if name in words]
    assert set(said(page)) == {"format", "id", "styled", "questions", "pictures"}
    assert all(uri.startswith("data:image/png;base64,") for uri in said(page)["pictures"])


def test_pictures_are_shown_where_the_key_says_and_nothing_but_pixels_is_left(run_folder: RunFolder) -> None:
    study = made(run_folder, "style", pairs=4)
    shown = said(study_page(study, run_folder))

    def picture(index: int) -> Image.Image:
        image = Image.open(io.BytesIO(base64.b64decode(shown["pictures"][index].partition(",")[2])))
        image.load()
        return image

    assert len(shown["questions"]) == len(study.questions)
    for asked, one in zip(shown["questions"], study.questions, strict=True):
        assert asked["id"] == one.id and one.style_of not in (None, one.person)
        for place, path in (
            ("person", run_folder.reference(one.person)),
            ("left", run_folder.path / one.left_file),
            ("right", run_folder.path / one.right_file),
        ):
            assert picture(asked[place]).info == {}
            with Image.open(path) as file:
                assert file.info["Comment"] and picture(asked[place]).tobytes() == file.tobytes()
        with Image.open(run_folder.reference(str(one.style_of))) as file:
            plain = torch.tensor(list(file.tobytes())).view(64, 64, 3).permute(2, 0, 1) / 255
        drawn = stylize(plain[None], "watercolor" if "watercolor" in one.prompt else "pixel art")[0]
        assert picture(asked["style"]).tobytes() == to_image(drawn).tobytes()


def test_a_picture_that_several_questions_show_is_there_once_and_large_ones_are_reduced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder = tiny_run(tmp_path)
    monkeypatch.setattr(pages, "LARGEST_SIDE", 32)
    shown = said(study_page(made(run_folder, pairs=6), run_folder))
    assert len(shown["pictures"]) == 3 + 2 * 6  # references and pictures
    with Image.open(io.BytesIO(base64.b64decode(shown["pictures"][0].partition(",")[2]))) as image:
        assert image.size == (32, 32)
    run_folder.reference(PEOPLE[0]).write_bytes(b"no picture")
    with pytest.raises(BadPicture, match=f"{PEOPLE[0]}.png"):
        study_page(made(run_folder, pairs=6), run_folder)


def test_a_key_is_never_overwritten_by_another(run_folder: RunFolder, tmp_path: Path) -> None:
    first, second = made(run_folder, pairs=6), made(run_folder, pairs=5)
    size = write_study(tmp_path, first, run_folder)
    assert (tmp_path / "page.html").stat().st_size == size
    write_study(tmp_path, first, run_folder)  # the same again
    with pytest.raises(NotWritable, match="of another study"):
        write_study(tmp_path, second, run_folder)
    assert Study.open(tmp_path / "key.json") == first


@dataclass
class Browser:
    """A headless Chromium, through chromedriver's HTTP interface (W3C WebDriver)."""

    port: int
    session: str = ""

    def call(self, method: str, path: str, **values: object) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            body = json.dumps(values) if method == "POST" else None
            connection.request(method, f"/session{self.session}{path}", body)
            answer = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        assert not (isinstance(answer, dict) and "error" in answer), answer["message"]
        return answer

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=[])

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def click(self, name: str) -> None:
        (element,) = self.call("POST", "/element", using="css selector", value=f"#{name}").values()
        self.call("POST", f"/element/{element}/click")

    def shows(self, screen: str) -> bool:
        return bool(self.run(f"return !document.getElementById('{screen}').hidden"))

    @property
    def count(self) -> str:
        return str(self.run("return document.getElementById('count').textContent"))

    @property
    def pressed(self) -> list[str]:
        return list(self.run("return [...document.querySelectorAll('[aria-pressed=true]')].map((one) => one.id)"))


@contextmanager
def browsing(folder: Path, width: int = 1280, height: int = 800) -> Iterator[Browser]:
    """A browser of this size whose downloads go into a folder."""
    arguments = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--window-size={width},{height}",
        f"--user-data-dir={folder / 'profile'}",
    ]
    options = {"args": arguments, "prefs": {"download.default_directory": str(folder)}}
    if binary := shutil.which("chromium") or shutil.which("google-chrome"):
        options["binary"] = binary
    capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout
            ports = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
            browser = Browser(next(int(port[1]) for port in ports if port))
            session = browser.call("POST", "", capabilities=capabilities)
            browser.session = f"/{session['sessionId']}"
            yield browser
            browser.call("DELETE", "")
        finally:
            driver.terminate()


needs_browser = pytest.mark.skipif(
    not (shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))),
    reason="no Chromium with its chromedriver here: on Debian, apt-get install chromium chromium-driver",
)


@needs_browser
def test_a_study_is_answered_in_a_browser_and_scored(run_folder: RunFolder, tmp_path: Path) -> None:
    """By keyboard and once by mouse, with a reload in the middle and a step back; then somebody else."""
    study = made(run_folder, pairs=6)
    write_study(tmp_path, study, run_folder)
    with browsing(tmp_path) as browser:
        browser.call("POST", "/url", url=(tmp_path / "page.html").as_uri())
        assert browser.shows("intro") and not browser.shows("ask")
        browser.press(ENTER)
        assert browser.shows("ask") and browser.count == "1 of 6" and browser.pressed == []
        browser.press(LEFT, RIGHT, DOWN)
        assert browser.count == "4 of 6"

        browser.call("POST", "/refresh")
        assert browser.shows("ask") and browser.count == "4 of 6"
        browser.press(BACKSPACE)
        assert browser.count == "3 of 6" and browser.pressed == ["undecided"]
        browser.press(RIGHT)  # thought better of it

        browser.click("stop")  # a part can be saved
        assert len(json.loads(browser.run("return document.getElementById('json').value"))["answers"]) == 3
        browser.click("on")
        assert browser.count == "4 of 6"
        browser.press(LEFT)
        browser.click("undecided")
        browser.press(LEFT)
        assert browser.shows("end") and browser.count == "6 of 6 answered"

        text = browser.run("return document.getElementById('json').value")
        answers = json.loads(text)
        browser.press(ENTER)  # the focus is on saving
        saved = tmp_path / f"answers-{study.id}-{answers['participant']}.json"
        until = time.monotonic() + 10
        while not saved.exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert saved.read_text() == text
        browser.click("next")
        browser.call("POST", "/alert/accept")
        assert browser.shows("intro") and browser.run("return state.participant") != answers["participant"]
        assert [line for line in browser.call("POST", "/se/log", type="browser") if line["level"] == "SEVERE"] == []

    assert [one["choice"] for one in answers["answers"]] == ["left", "right", "right", "left", "undecided", "left"]
    assert {one["question"] for one in answers["answers"]} == {one.id for one in study.questions}
    sides = {one.id: {"left": one.left, "right": one.right} for one in study.questions}
    ours = sum(sides[one["question"]].get(one["choice"]) == OURS for one in answers["answers"])
    result = score(study, [saved]).people
    assert result and (result.answers.ours, result.answers.other, result.answers.undecided) == (ours, 5 - ours, 1)


@needs_browser
def test_on_a_phone_nothing_lies_outside_the_screen_and_everything_has_a_name(
    run_folder: RunFolder, tmp_path: Path
) -> None:
    write_study(tmp_path, made(run_folder, "style", pairs=4), run_folder)
    with browsing(tmp_path) as browser:
        metrics = {"width": 390, "height": 760, "deviceScaleFactor": 1, "mobile": True}
        browser.call("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)
        browser.call("POST", "/url", url=(tmp_path / "page.html").as_uri())
        browser.click("start")
        inside = "return [...document.querySelectorAll('#ask button, #ask img')].every((one) => {"
        inside += (
            "const box = one.getBoundingClientRect(); return box.left >= 0 && box.right <= 390 && box.bottom <= 760})"
        )
        assert browser.run(inside)
        assert browser.run("return [...document.images].every((one) => one.alt && one.naturalWidth === 64)")
        unnamed = "[...document.querySelectorAll('button, a, textarea, progress')].filter((one) => "
        unnamed += "!(one.textContent.trim() || one.ariaLabel || (one.labels && one.labels.length)))"
        assert browser.run(f"return {unnamed}.length") == 0
        assert browser.run("return document.activeElement.id") == "question"
