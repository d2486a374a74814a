"""Reports as one HTML page that needs nothing else: no script, nothing fetched, figures inline.

The page is light or dark as its reader's system is, prints, and can be read aloud: every figure has a caption and a
label, every table names its columns and rows. All text is escaped; a content security policy in the page keeps even a
hostile one from fetching anything.

Figures are matplotlib's, drawn without pyplot's global state. What has the colour `INK` takes the colour of the page's
text, so that axes and labels can be read on both grounds; the colours of `PALETTE` can be told apart on both, also by
people who see few colours. The same figures give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK: Final = "#010203"
"""Stands for the colour of the page's text."""

PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c8c8c")
"""Colours of series. Source: Okabe and Ito, Color Universal Design (2008), without black and yellow, which one of the
grounds would swallow."""

SEQUENTIAL: Final = "cividis"
"""Colour map of amounts: brightness grows with them, for everybody."""

Cell = str | int | float | bool | None
"""What a table shows: text as it is, numbers aligned right, None as a dash."""

_FIGURE_WIDTH_IN, _FIGURE_HEIGHT_IN = 7.6, 4.2
# Characters that the font matplotlib measures text with is sure to have: Latin and a few signs.
_LATIN_END = 0x250
_SIGNS = frozenset("–—‘’“”…µμ×±≤≥→·√Δ")
# matplotlib keeps its settings and fonts in global variables.
_DRAWING = threading.Lock()

_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--panel:#f6f8fa}
@media(prefers-color-scheme:dark){:root{--ground:#14171c;--ink:#e6e8eb;--soft:#9aa4ae;--line:#343b44;--panel:#1c2128}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:64rem;background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .5rem}
h2{font-size:1.2rem;margin:2.4rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
p{margin:.5rem 0;max-width:46rem}
.summary{font-size:1.05rem;color:var(--soft)}
figure{margin:1.2rem 0;padding:.8rem;background:var(--panel);border:1px solid var(--line);border-radius:6px}
figure svg{display:block;width:100%;height:auto;color:var(--ink)}
figcaption{margin-top:.5rem;font-size:.92rem;color:var(--soft)}
.wide{overflow-x:auto;margin:1rem 0}
.wide:focus-visible{outline:2px solid var(--soft)}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.4rem;color:var(--soft)}
th,td{padding:.3rem .8rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{border-bottom-width:2px;vertical-align:bottom}
tbody th{font-weight:600}
.number{text-align:right}
@media print{
:root{color-scheme:light;--ground:#fff;--ink:#000;--soft:#333;--line:#999;--panel:#fff}
body{max-width:none;padding:0;font-size:10.5pt}
figure,tr{break-inside:avoid}
h2{break-after:avoid}
thead{display:table-header-group}
.wide{overflow:visible}}
"""


class Page:
    """A report, put together from top to bottom.

    Args:
        title: What it is about.
        summary: One or two sentences: what came out.
    """

    def __init__(self, title: str, summary: str = "") -> None:
        self._title = title
        self._summary = summary
        self._parts: list[str] = []
        self._figures = 0

    def section(self, title: str, text: str = "") -> None:
        """Begins a section.

        Args:
            title: Its heading.
            text: A paragraph below it; empty for none.
        """
        self._parts.append(f"<h2>{_escaped(title)}</h2>")
        if text:
            self.text(text)

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(f"<p>{_escaped(text)}</p>")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell]], caption: str = "") -> None:
        """Adds a table; the first cell of every row names the row.

        Args:
            columns: The headings.
            rows: As many cells each as there are columns. A column whose cells are all numbers is aligned right.
            caption: What the table shows; empty for none.

        Raises:
            ValueError: A row has more or fewer cells than there are columns.
        """
        held = [list(row) for row in rows]
        for row in held:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        right = [bool(held) and all(_is_number(row[index]) for row in held) for index in range(len(columns))]
        classes = [' class="number"' if number else "" for number in right]
        head = "".join(
            f'<th scope="col"{kind}>{_escaped(name)}</th>' for name, kind in zip(columns, classes, strict=True)
        )
        label = _escaped(caption or f"table of {', '.join(columns)}")
        self._parts.append(f'<div class="wide" role="region" tabindex="0" aria-label="{label}"><table>')
        if caption:
            self._parts.append(f"<caption>{_escaped(caption)}</caption>")
        self._parts.append(f"<thead><tr>{head}</tr></thead><tbody>")
        for row in held:
            first, *rest = (_escaped(cell_text(cell)) for cell in row)
            cells = "".join(f"<td{kind}>{text}</td>" for text, kind in zip(rest, classes[1:], strict=True))
            self._parts.append(f'<tr><th scope="row"{classes[0]}>{first}</th>{cells}</tr>')
        self._parts.append("</tbody></table></div>")

    def figure(self, figure: Figure, caption: str, label: str = "") -> None:
        """Adds a figure.

        Args:
            figure: As made by `new_figure`. Its texts are taken literally, never as formulas.
            caption: What it shows and how to read it.
            label: What it shows, read aloud in its place; the caption when empty.
        """
        self._figures += 1
        drawn = _svg(figure, f"f{self._figures}", label or caption)
        self._parts.append(f"<figure>{drawn}<figcaption>{_escaped(caption)}</figcaption></figure>")

    def render(self) -> str:
        """The whole page, UTF-8 when written to a file."""
        summary = f'<p class="summary">{_escaped(self._summary)}</p>\n' if self._summary else ""
        body = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
            f"<title>{_escaped(self._title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{_escaped(self._title)}</h1>\n{summary}{body}\n</main>\n</body>\n</html>\n"
        )


def cell_text(cell: Cell) -> str:
    """How a table shows a value: numbers to four significant digits or whole, None as a dash."""
    if cell is None or cell == "":
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}"
    return cell


def new_figure(*, width_in: float = _FIGURE_WIDTH_IN, height_in: float = _FIGURE_HEIGHT_IN) -> Figure:
    """An empty figure with a clear ground.

    Args:
        width_in: Width, inches: the page scales it to its own, so this sets how large the text looks.
        height_in: Height, inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def new_axes(figure: Figure, x: str, y: str, *, place: tuple[int, int, int] = (1, 1, 1), title: str = "") -> Axes:
    """Axes in the house's style.

    Args:
        figure: The figure.
        x: What runs to the right, with its unit.
        y: What runs up, with its unit.
        place: Rows and columns of axes in the figure, and which of them this is, from 1.
        title: Above the axes; for figures with several.
    """
    axes = figure.add_subplot(*place)
    axes.patch.set_alpha(0.0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.grid(True, color=INK, alpha=0.13, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=INK, fontsize=9.5)
    axes.set_ylabel(y, color=INK, fontsize=9.5)
    if title:
        axes.set_title(title, color=INK, fontsize=10)
    return axes


def log_axis(axes: Axes, which: str, *, base: int = 10) -> None:
    """Makes an axis logarithmic with plain numbers beside it.

    Args:
        axes: The axes.
        which: "x" or "y".
        base: Distance of the marks: 2 for lengths, 10 for spans of many orders.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=base)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(base=base, subs=(1, 2, 5) if base == 10 else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Axes) -> None:
    """Names the series, if there are any to name."""
    handles, names = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, names, frameon=False, fontsize=8.5, labelcolor=INK)


def _svg(figure: Figure, prefix: str, label: str) -> str:
    """The figure as an element of an HTML page, whose ids begin with `prefix`."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text("".join(sign if _drawable(sign) else "?" for sign in text.get_text()))
    written = io.StringIO()
    with _DRAWING, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    # Ids must differ between the figures of one page; a reference is `#id`, in a link or in url().
    drawn = re.sub(r'\bid="', f'id="{prefix}-', drawn)
    drawn = re.sub(r'xlink:href="#', f'href="#{prefix}-', drawn)
    drawn = drawn.replace("url(#", f"url(#{prefix}-").replace(INK, "currentColor")
    drawn = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{_escaped(label)}"', 1).strip()


def _drawable(sign: str) -> bool:
    return sign == "\n" or (sign.isprintable() and (ord(sign) < _LATIN_END or sign in _SIGNS))


def _escaped(text: str) -> str:
    """Text for HTML, attributes included; characters that HTML does not allow are replaced."""
    return html.escape("".join("\ufffd" if sign < " " and sign not in "\n\t" else sign for sign in text))


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
