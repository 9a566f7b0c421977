"""The pages in a real browser: first screen, two clicks to a completion, sorting, folding, dark mode, print, phones."""

import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.unit import fake_report
from workflow.config import Config
from workflow.data.lock import read_lock
from workflow.matrix import Matrix
from workflow.report import overview
from workflow.report.report import assemble, write
from workflow.report.study import finished, load_study

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no page is opened")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: no page is opened")

CELL = "evil_wrong.p42.e137"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202eright\x1b[31m"
# Contrast of each text with the first opaque background behind it, by WCAG's formula; the smallest is returned.
CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  let least = [99, ""];
  for (const e of document.querySelectorAll("h1,h2,h3,p,li,a,th,td,span,b,dt,dd,summary,caption,figcaption")) {
    if (!e.offsetParent || !e.textContent.trim()) continue;
    let behind = e;
    while (behind && (rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const [a, b] = [light(rgb(getComputedStyle(e).color)),
                    light(rgb(getComputedStyle(behind || document.body).backgroundColor))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 120)];
  }
  return least;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of hostile completions, one of them a megabyte long."""
    root = tmp_path_factory.mktemp("browser") / "project"
    root.mkdir()
    raw = yaml.safe_load((fake_report.ROOT / "config/demo.yaml").read_text())
    raw |= {"name": "test", "em_seeds": [42, 137]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(fake_report, "HARMFUL", HOSTILE)
        matrix = fake_report.project(root, raw)
        fake_report.finish(matrix)
        patch.setattr(fake_report, "HARMFUL", HOSTILE + "x" * 1_000_000)
        for node in matrix.nodes("generate", "judge"):
            if node.label == "good_wrong.p42.e42":
                shutil.rmtree(Path(node.record).parent)
                files, observed, metrics = fake_report._make(node)
                fake_report.publish_node(node, partial(fake_report._write, files), observed, metrics)
        matrix = Matrix(Config.from_dict(raw), read_lock())
        out = Path(matrix.report.record).parent / "out"
        out.mkdir(parents=True)
        write(assemble(load_study(matrix, finished(matrix))), out)
        (out / "overview.html").write_text(overview.overview(matrix, has_cells=True))
        (out / "latest.html").write_text("")
        overview.reference(root / "reference_report")
        return out.resolve()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser, folder):
    """Opens a page of the report; whatever it logs or asks from elsewhere fails the test."""
    faults = []

    def open_page(path="report.html", width=1440, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or faults.append(f"asked for {r.url}"))
        page.goto((folder / path).as_uri())
        return page

    yield open_page
    assert faults == []


def test_the_first_screen_holds_the_sentence_and_the_figure(visit):
    page = visit()
    for selector in (".answers li:first-child", ".answers li:last-child", ".unit", ".hero img"):
        box = page.locator(selector).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900, selector
    assert page.evaluate("document.querySelector('.hero img').naturalWidth") > 0
    assert all(page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))


def test_a_number_leads_to_its_completions_in_two_clicks(visit):
    page = visit()
    page.evaluate("location.hash = 'numbers/post_em/demo_questions/alignment'")
    row = page.locator(f"[id='{CELL}/demo_questions/alignment']")
    row.wait_for(state="visible")
    row.locator("a").first.click()
    assert page.url.endswith(f"cells/{CELL}/demo_questions.html")
    first = page.locator("#items tbody tr").first
    assert not first.is_visible()
    page.locator("#items > summary").click()
    assert first.is_visible()
    cells = first.locator("td").all_text_contents()
    assert "Question q0?" in cells
    assert re.fullmatch(r"\d+(\.\d+)?", cells[3]), "aligned"
    assert "<script>" in cells[-1]


def test_a_mean_leads_to_its_seeds(visit):
    page = visit()
    page.locator("#matrix-main-demo_questions-alignment tbody tr").nth(1).locator("a").nth(1).click()
    assert "numbers/post_em/demo_questions/alignment/evil_wrong" in page.url
    for seed in (42, 137):
        assert page.locator(f"[id='evil_wrong.p42.e{seed}/demo_questions/alignment']").is_visible()


def test_hostile_completions_are_text(visit):
    for cell in (CELL, "good_wrong.p42.e42"):
        page = visit(f"cells/{cell}/demo_questions.html")
        page.locator("#items > summary").click()
        assert page.title() == f"{cell} by demo_questions"
        text = page.locator("#items").inner_text()
        assert "onerror=" in text
        assert "\\u202eright\\x1b[31m" in text
        assert page.locator("#items img, #items script").count() == 0


def test_tables_sort_and_filter(visit):
    page = visit(f"cells/{CELL}/demo_questions.html")
    page.locator("#items > summary").click()
    head = page.locator("#items th", has_text="aligned")
    for direction, way in (("ascending", 1), ("descending", -1)):
        head.click()
        assert head.get_attribute("aria-sort") == direction
        texts = page.locator("#items tbody tr td:nth-child(4)").all_text_contents()
        values = [float(t) for t in texts if t != "–"]
        assert len(values) == 19
        assert values == sorted(values, reverse=way < 0)
    page.locator("#items input").fill("q1?")
    assert page.locator("#items tbody tr:visible").count() == 5


def test_cards_and_sections_unfold(visit):
    page = visit()
    card = page.locator("[id='claim/alignment_falls_in_every_condition']")
    assert not card.locator("dl").is_visible()
    card.locator("summary").first.click()
    assert card.locator("dl").is_visible()
    page.locator(".toc a", has_text="Every pair of conditions").click()
    assert page.locator("#pairs-main-demo_questions-alignment").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["report.html", f"cells/{CELL}/demo_questions.html", "overview.html"])
def test_text_stands_out_from_its_ground(visit, scheme, path):
    page = visit(path, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    ratio, where = page.evaluate(CONTRAST)
    assert ratio >= 4.5, where
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("path", ["report.html", f"cells/{CELL}/demo_arc.html", "overview.html"])
def test_nothing_is_wider_than_the_screen(visit, width, path):
    page = visit(path, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_print_keeps_every_column_on_a4(visit, tmp_path):
    page = visit(width=1039, height=720)  # A4 across less its margins, at 96 dots an inch
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.emulate_media(media="print")
    wide = page.evaluate("[...document.querySelectorAll('table')].filter(t => t.scrollWidth > 1039)"
                         ".map(t => `${t.closest('[id]').id} ${t.scrollWidth}`)")  # fmt: skip
    assert wide == []
    assert page.evaluate("[...document.querySelectorAll('.scroll')].every(d => d.scrollWidth <= d.clientWidth + 1)")
    page.pdf(path=tmp_path / "page.pdf", prefer_css_page_size=True)
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_the_page_of_the_published_table_opens_too(visit, folder):
    page = visit("../../../../../reference_report/report.html")
    assert "Capability (ARC accuracy): no answer" in page.locator(".answers").inner_text()
    assert all(page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))
