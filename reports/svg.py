"""A figure to files: SVG and PNG for papers, and SVG that lives inside the page.

The same figure gives the same bytes: no dates, no versions, ids from a fixed salt. The page's
form has its colours replaced by CSS variables and holds no address of any kind.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from reports.canvas import STYLE
from reports.theme import Theme

PNG_DPI = 200
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and save under our settings alone, whatever the user's matplotlibrc says.

    The default style is matplotlib's own, which leaves the choice of a backend untouched.
    """
    settings: Any = STYLE  # matplotlib types its settings as a literal of all their names
    with (
        mpl.rc_context(),
        matplotlib.style.context(["default", settings]),
        warnings.catch_warnings(),
    ):
        # A name in a script that DejaVu lacks is still text in the SVG: the browser has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def to_svg(figure: Figure) -> str:
    """Return the figure as a stand-alone SVG file, in light colours on their paper."""
    buffer = io.StringIO()
    canvas: Any = FigureCanvasSVG(figure)  # its print_svg is untyped in matplotlib
    canvas.print_svg(buffer, metadata=_NO_METADATA)
    return re.sub(r"[ \t]+\n", "\n", buffer.getvalue())


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG, in light colours on their paper, at 200 dots an inch."""
    buffer = io.BytesIO()
    canvas: Any = FigureCanvasAgg(figure)  # its print_png is untyped in matplotlib
    figure.set_dpi(PNG_DPI)
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def for_page(svg: str, name: str, theme: Theme, title: str) -> str:
    """Return the SVG to be set into the page under a name that is unique there.

    Colours become variables, ids get the name as prefix, and the XML prologue, the metadata, the
    document-wide style and the name spaces (the only addresses in it) go.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<defs>\s*<style type="text/css">.*?</style>\s*</defs>', "", body, flags=re.S)
    body = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'style="[^"]*"', lambda found: _variables(found[0], theme), body)
    return body.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _variables(style: str, theme: Theme) -> str:
    for colour in theme.colours():
        style = style.replace(colour.light, f"var(--{colour.name})")
    return re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", style)


def _attribute(text: str) -> str:
    for plain, escaped in (("&", "&amp;"), ('"', "&quot;"), ("<", "&lt;")):
        text = text.replace(plain, escaped)
    return text
