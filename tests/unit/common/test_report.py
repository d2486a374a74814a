"""Report pages: well-formed, self-contained, escaped, repeatable."""

from __future__ import annotations

import subprocess
import sys

import pytest

from common.report import INK, PALETTE, Page, cell_text, legend, log_axis, new_axes, new_figure
from tests.support.html import Checked, assert_self_contained

HOSTILE = "<script>alert('x')</script> & \"quoted\" $\\frac{1}{0}$ \x00 \U0001f600 ]]>"


def _page(text: str = "plain") -> Page:
    page = Page(text, text)
    page.section(text, text)
    page.table(["name", text], [[text, 1.5], ["other", None]], text)
    for _ in range(2):
        figure = new_figure()
        axes = new_axes(figure, text, text, title=text)
        log_axis(axes, "x", base=2)
        axes.plot([16, 512, 4096], [1, 2, 3], color=PALETTE[0], marker="o", label=text)
        legend(axes)
        page.figure(figure, text)
    return page


@pytest.mark.parametrize("text", ["plain", HOSTILE])
def test_a_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    """Tags match, nothing is fetched, ids of two equal figures differ; also with hostile text everywhere."""
    page = _page(text).render()
    assert_self_contained(page)
    read = Checked(page)
    assert ("script" in page) == (text == HOSTILE)
    assert [tag for tag, _ in read.tags].count("svg") == 2
    assert "\x00" not in page


def test_hostile_text_is_shown_as_text() -> None:
    """What looks like markup or a formula is shown literally, in tables and in figures."""
    read = Checked(_page(HOSTILE).render())
    assert read.text.count("<script>alert('x')</script> & \"quoted\" $\\frac{1}{0}$") >= 6


def test_a_page_can_be_read_aloud() -> None:
    """Figures have a label and a caption, tables a caption and scopes, scrolling regions a name."""
    read = Checked(_page().render())
    for tag, attributes in read.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "html":
            assert attributes["lang"] == "en"
    names = [tag for tag, _ in read.tags]
    assert names.count("figure") == names.count("figcaption") == 2
    assert names.count("caption") == 1
    assert names.count("h1") == 1


def test_the_same_page_gives_the_same_bytes() -> None:
    """No time, no random id gets into a page."""
    assert _page().render() == _page().render()


def test_figures_take_the_colour_of_the_page() -> None:
    """Axes and labels are drawn in the text's colour, on a clear ground, with text that stays text."""
    page = _page().render()
    assert INK not in page
    assert "currentColor" in page
    assert "fill: #ffffff" not in page
    assert "4,096" in Checked(page).text


def test_numbers_in_tables() -> None:
    """Numbers have four significant digits or are whole, and stand right; what is missing is a dash."""
    shown = [cell_text(cell) for cell in (None, "", True, False, 12345, 0.000123456, 12345.6, "text")]
    assert shown == ["–", "–", "yes", "no", "12,345", "0.0001235", "12,346", "text"]
    page = Page("t")
    page.table(["name", "amount", "mixed"], [["x", 1, 2], ["y", None, "z"]])
    read = Checked(page.render())
    right = [attributes.get("class") for tag, attributes in read.tags if tag == "th"]
    assert right[:3] == [None, "number", None]


def test_a_row_that_does_not_fit_is_refused() -> None:
    """A forgotten cell is a mistake of the caller, not a crooked table."""
    with pytest.raises(ValueError, match="2 cells in a table of 3"):
        Page("t").table(["a", "b", "c"], [["x", 1]])


def test_an_empty_page_and_an_empty_table() -> None:
    """Nothing to say is said without a fault."""
    page = Page("t")
    page.table(["a", "b"], [])
    figure = new_figure()
    legend(new_axes(figure, "x", "y"))
    page.figure(figure, "nothing was measured")
    assert_self_contained(page.render())


def test_services_do_not_pay_for_figures() -> None:
    """Importing the module does not import matplotlib."""
    code = "import sys, common.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
