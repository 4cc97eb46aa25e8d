"""How numbers are written: the only place for GiB, %, seconds and M parameters.

Records hold raw bytes and raw seconds; so do the CSV files. Only text that a person reads passes
through here. GiB is 2**30 bytes.
"""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30
NA = "n/a"
DASH = "\N{EN DASH}"


def digits(value: float, significant: int = 3) -> str:
    """Return ``value`` with about three significant digits and no exponent.

    >>> digits(1234.5), digits(108.0), digits(1.1), digits(0.05678)
    ('1,234', '108', '1.10', '0.0568')

    """
    if value == 0:
        return "0"
    exponent = int(f"{value:.{significant - 1}e}".split("e")[1])  # after rounding, not before
    return f"{value:,.{max(0, significant - 1 - exponent)}f}"


def size(n: float) -> str:
    """Return bytes in the unit that suits them.

    >>> size(2**31), size(108 * 2**20), size(512)
    ('2.00 GiB', '108 MiB', '512 B')

    """
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(n) >= 0.9995 * unit:
            return f"{digits(n / unit)} {name}"
    return f"{n:.0f} B"


def tick_size(n: float, _: object = None) -> str:
    """Return bytes for an axis: without needless decimals.

    >>> tick_size(2**30), tick_size(3 * 2**29)
    ('1 GiB', '1.5 GiB')

    """
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(n) >= unit:
            return f"{n / unit:,.4g} {name}"
    return f"{n:.0f} B" if n else "0"


def quantity(value: float, unit: str) -> str:
    """Return a number of a unit that records use: B, s, h, J, degC, or 1 for a count.

    >>> quantity(2**20, "B"), quantity(0.5, "s"), quantity(1234, "1"), quantity(31, "degC")
    ('1.00 MiB', '500 ms', '1,234', '31 °C')

    """
    if unit == "degC":
        return f"{value:g} °C"
    words = {"B": size, "s": duration, "h": hours, "J": joules}.get(unit)
    return words(value) if words else f"{value:,}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> duration(0.0123), duration(0.572), duration(95), duration(7200)
    ('12.3 ms', '572 ms', '95.0 s', '120 min')

    """
    if seconds == 0:
        return "0 s"
    if seconds < 1e-3:
        return f"{digits(seconds * 1e6)} µs"
    if seconds < 1:
        return f"{digits(seconds * 1e3)} ms"
    if seconds < 600:
        return f"{digits(seconds)} s"
    return f"{digits(seconds / 60)} min" if seconds < 10800 else f"{digits(seconds / 3600)} h"


def interval(low: float, high: float) -> str:
    """Return a range of times, with the unit once where both ends share it.

    >>> interval(0.571, 0.611) == f"571{DASH}611 ms"
    True

    """
    first, last = duration(low), duration(high)
    if first.split(" ")[1] == last.split(" ")[1]:
        first = first.split(" ")[0]
    return f"{first}{DASH}{last}"


def joules(value: float) -> str:
    """Return an energy in the unit that suits it.

    >>> joules(1234), joules(2_500_000)
    ('1.23 kJ', '2.50 MJ')

    """
    for unit, name in ((1e6, "MJ"), (1e3, "kJ")):
        if abs(value) >= 0.9995 * unit:
            return f"{digits(value / unit)} {name}"
    return f"{digits(value)} J"


def watt_hours(joules: float) -> str:
    """Return an energy as electricity is billed.

    >>> watt_hours(3600), watt_hours(7.2e6)
    ('1.00 Wh', '2.00 kWh')

    """
    value = joules / 3600
    return f"{digits(value / 1e3)} kWh" if abs(value) >= 999.5 else f"{digits(value)} Wh"


def hours(value: float) -> str:
    """Return device-hours.

    >>> hours(0.0158)
    '0.0158 h'

    """
    return f"{digits(value)} h"


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal.

    >>> percent(0.79)
    '79.0 %'

    """
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign.

    >>> points(-0.105)
    '\u221210.5 points'

    """
    return f"{signed(100 * share)} points"


def signed(value: float) -> str:
    """Return a number with one decimal and a true minus sign."""
    return f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")


def accuracy(share: float, spread: float | None, n: int) -> str:
    """Return an accuracy with its standard error and the number of examples.

    >>> accuracy(0.79, 0.0288, 200)
    '79.0 % ± 2.9 (n=200)'

    """
    plus_minus = "" if spread is None else f" ± {100 * spread:.1f}"
    return f"{percent(share)}{plus_minus} (n={n:,})"


def count(n: float) -> str:
    """Return a number of parameters.

    >>> count(134_515_008), count(1.3e9), count(2048)
    ('135M', '1.30B', '2.05K')

    """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= 0.9995 * unit:
            return f"{digits(n / unit)}{name}"
    return f"{n:.0f}"


def probability(p: float) -> str:
    """Return a p-value.

    >>> probability(0.0312), probability(1e-6)
    ('0.031', '< 0.001')

    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def plural(n: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "run"), plural(3, "run")
    ('1 run', '3 runs')

    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
