"""What a method looks like, everywhere and always, and the colours of the page.

A colour has a light and a dark form. Figures are drawn in the light form; on the page each light
colour becomes a CSS variable, so that one drawing suits both. Hues are Okabe and Ito's (2008),
told apart by colour-blind readers too, darkened or lightened until they stand out from the paper;
a method also has its own marker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

TITLES = {
    "zero_shot": "Zero-shot / inference",
    "mezo": "MeZO",
    "ft_sgd": "FT-SGD",
    "ft_adamw": "FT-AdamW",
}
"""Method -> how the literature writes it; also the order in which known methods appear."""


@dataclass(frozen=True)
class Colour:
    """A named colour: hexadecimal, for light and for dark paper."""

    name: str
    light: str
    dark: str


PAPER = (
    Colour("page", "#f6f7f9", "#0e1116"),
    Colour("surface", "#fefefe", "#171b22"),
    Colour("ink", "#1b2330", "#e7ebf1"),
    Colour("muted", "#5b6675", "#9aa5b4"),
    Colour("line", "#dfe3e9", "#2d3440"),
    Colour("accent", "#1f5fc4", "#7db1ff"),
    Colour("good", "#17724a", "#5fcf9b"),
    Colour("bad", "#b3261e", "#ff8d84"),
    Colour("warn", "#8a5a00", "#f2bd5c"),
)
_PAPER = {colour.name: colour.light for colour in PAPER}
_KNOWN = {
    "zero_shot": (Colour("zero-shot", "#707b8a", "#a3aebd"), "D"),
    "mezo": (Colour("mezo", "#0072b2", "#56b4e9"), "o"),
    "ft_sgd": (Colour("ft-sgd", "#00875f", "#2fc79a"), "s"),
    "ft_adamw": (Colour("ft-adamw", "#d55e00", "#ff9a4d"), "^"),
}
_OTHER = (
    Colour("other-1", "#b0578d", "#e39cc6"),
    Colour("other-2", "#a87900", "#e6b93c"),
    Colour("other-3", "#5b4fc0", "#a79df5"),
    Colour("other-4", "#8c3b2a", "#e08a77"),
    Colour("other-5", "#2b8a99", "#6fd0de"),
    Colour("other-6", "#6a7f1e", "#b5cc5a"),
)
_PHASES = {
    "load": "muted",
    "train": "accent",
    "evaluate": "good",
    "perturb": "other-3",
    "forward": "other-5",
    "backward": "other-4",
    "update": "other-2",
    "anchor": "other-1",
}
"""Phase -> name of its colour; all others share one."""
_OTHER_MARKERS = ("v", "P", "X", "h", "<", "p", ">")


def title_of(method: str) -> str:
    """Return the title of a method; of an unknown one, its name."""
    return TITLES.get(method, method)


def by_method(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (method, series) pairs, once each, methods in their order and series as they came."""
    return sorted(dict.fromkeys(pairs), key=lambda pair: rank(pair[0]))


def rank(method: str) -> tuple[int, str]:
    """Return the place of a method among others: known ones first, then by name."""
    known = list(TITLES)
    return (known.index(method) if method in known else len(known), method)


@dataclass(frozen=True)
class Theme:
    """Colours and markers for one page. A method looks the same whatever stands beside it."""

    def paper(self, name: str) -> str:
        """Return one of the page's own colours by name, such as ``ink``."""
        return _PAPER[name]

    def colour(self, method: str) -> str:
        """Return the colour of a method."""
        if method in _KNOWN:
            return _KNOWN[method][0].light
        return _OTHER[_stable(method) % len(_OTHER)].light

    def marker(self, method: str) -> str:
        """Return the marker of a method."""
        if method in _KNOWN:
            return _KNOWN[method][1]
        return _OTHER_MARKERS[_stable(method) % len(_OTHER_MARKERS)]

    def phase(self, name: str) -> str:
        """Return the colour of a phase of a run."""
        wanted = _PHASES.get(name, "warn")
        return next(colour.light for colour in self.colours() if colour.name == wanted)

    def colours(self) -> list[Colour]:
        """Return every colour that a figure or the page may use."""
        return [*PAPER, *(colour for colour, _ in _KNOWN.values()), *_OTHER]


def _stable(method: str) -> int:
    """Return a number that depends on the name alone (6 colours x 7 markers: 42 pairs)."""
    return int.from_bytes(hashlib.sha256(method.encode()).digest()[:4], "big")
