"""A suite file becomes runs: a fixed part, axes whose product is taken, include and exclude.

::

    title = "Peak memory against model size"
    [run]                                    # fixed for every run of the file
    steps = 3
    [[group]]                                # one or more; a file without is one group "main"
    name = "memory"
    title = "Peak memory"
    [group.run]                              # fixed within the group
    task = "random_tokens"
    [group.axes]                             # their product
    method = ["mezo", "ft_adamw"]
    model = ["opt-125m", "opt-350m"]
    "options.eps" = [1e-3, 1e-2]             # a key of a table may be an axis
    [[group.exclude]]                        # combinations to leave out
    method = "ft_adamw"
    model = "opt-350m"
    [[group.include]]                        # a combination matched on its axes gets the rest set;
    method = "mezo"                          # one that matches nothing is added as it stands
    lr = 1e-6

``include`` and ``exclude`` mean what they mean in a matrix of GitHub Actions. Keys are those of
:class:`bench.records.RunSpec`.
"""

from __future__ import annotations

import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from bench import tasks, tuning
from bench.built import agree
from bench.builtin import suites_folder
from bench.cell import Cell
from bench.models.resolve import resolve
from bench.records import RunSpec, UserError, unknown
from zo_core import Method, Params, methods

Table = dict[str, Any]

_FILE_KEYS = ("title", "description", "run", "axes", "include", "exclude", "group")
_FILE_KEYS_WITH_GROUPS = ("title", "description", "run", "group")
_TABLES = ("options", "tuning_options")
_GROUP_KEYS = ("name", "title", "run", "axes", "include", "exclude")


@dataclass(frozen=True)
class Suite:
    """A suite, expanded."""

    name: str
    title: str
    description: str
    cells: tuple[Cell, ...]


def names() -> dict[str, str]:
    """Return the built-in suites: name -> title."""
    found = sorted(suites_folder().glob("*.toml"))
    return {p.stem: str(_read(p).get("title", p.stem)) for p in found}


def load(name: str) -> Suite:
    """Expand a built-in suite, or a suite file, into its cells.

    Raises:
        UserError: no such suite, not TOML, or anything in it that is unknown or out of range.

    """
    path = find(name)
    table = _read(path)
    groups = _groups(table, str(path))
    cells: dict[str, Cell] = {}
    for group in groups:
        for cell in _group(path, table, group):
            cells.setdefault(cell.spec.key, cell)
    if not cells:
        raise UserError(f"{path} expands to no run. Give it [axes], or [run] with what to run.")
    return Suite(
        path.stem,
        table.get("title", path.stem),
        table.get("description", ""),
        tuple(cells.values()),
    )


def find(name: str) -> Path:
    """Return the file of a suite: a path as it stands, or a built-in suite by name."""
    path = Path(name)
    if path.suffix == ".toml":
        if path.is_file():
            return path
        raise UserError(f"No suite file {path}.")
    builtin = suites_folder() / f"{name}.toml"
    if builtin.is_file():
        return builtin
    raise unknown("suite", name, [p.stem for p in suites_folder().glob("*.toml")])


def _read(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}.") from error
    except OSError as error:
        raise UserError(f"Can't read {path}: {error.strerror}.") from error


def _groups(table: Table, where: str) -> list[Table]:
    """Return the groups of a file; one without any is a group by itself."""
    if "group" not in table:
        _shaped(table, _FILE_KEYS, where)
        return [{k: v for k, v in table.items() if k in _GROUP_KEYS}]
    _shaped(
        table, _FILE_KEYS_WITH_GROUPS, f"{where} (axes go inside a [[group]] where there is one)"
    )
    for group in table["group"]:
        _shaped(group, _GROUP_KEYS, f"{where}, group '{group.get('name', 'main')}'")
    return list(table["group"])


def _shaped(table: Table, known: tuple[str, ...], where: str) -> None:
    """Refuse unknown keys, and tables that are not tables."""
    _known_keys(table, known, where)
    for key in ("run", "axes"):
        if not isinstance(table.get(key, {}), dict):
            raise UserError(f"{where}: '{key}' must be a table, [{key}]; got {table[key]!r}.")
    for key in ("include", "exclude", "group"):
        entries = table.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise UserError(f"{where}: '{key}' must be tables, [[{key}]]; got {entries!r}.")


def _known_keys(table: Table, known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where}: {unknown('key', key, known)}")


def _group(path: Path, table: Table, group: Table) -> list[Cell]:
    name = str(group.get("name", "main"))
    where = f"{path}, group '{name}'"
    fixed = {**_flat(table.get("run", {})), **_flat(group.get("run", {}))}
    title = str(group.get("title", name))
    combinations = _combinations(group, where)
    if "group" in fixed or any("group" in c for c in combinations):
        raise UserError(f"{where}: 'group' is no key of a run; name the [[group]] instead.")
    return [
        Cell(
            suite=path.stem,
            group_title=title,
            spec=_spec({**fixed, **combination, "group": name}, where),
        )
        for combination in combinations
    ]


def _combinations(group: Table, where: str) -> list[Table]:
    axes = _flat(group.get("axes", {}))
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{where}: axis '{key}' must be a list of values, got {values!r}.")
    product = [dict(zip(axes, c, strict=True)) for c in itertools.product(*axes.values())]
    excluded = [_flat(e) for e in group.get("exclude", [])]
    for entry in excluded:
        if not any(_matches(c, entry, where, axes) for c in product):
            raise UserError(f"{where}: exclude {entry} matches no combination of the axes.")
    kept = [c for c in product if not any(_matches(c, e, where, axes) for e in excluded)]
    if not axes and "include" in group:
        kept = []
    original = [dict(c) for c in kept]
    for entry in map(_flat, group.get("include", [])):
        on_axes = {k: v for k, v in entry.items() if k in axes}
        hits = [i for i, c in enumerate(original) if on_axes.items() <= c.items()]
        for i in hits:
            kept[i].update(entry)
        if not hits:
            kept.append(entry)
    return kept


def _matches(combination: Table, entry: Table, where: str, axes: Table) -> bool:
    for key in entry:
        if key not in axes:
            raise UserError(f"{where}: exclude names '{key}': {unknown('axis', key, axes)}")
    return entry.items() <= combination.items()


def _flat(table: Table, prefix: str = "") -> Table:
    """Return nested tables with dotted keys, so that one key of ``options`` can be set alone."""
    flat: Table = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _spec(flat: Table, where: str) -> RunSpec:
    nested: Table = {}
    for key, value in flat.items():
        table, dot, name = key.partition(".")
        if dot and table in _TABLES:
            nested.setdefault(table, {})[name] = value
        else:
            nested[key] = value
    for key in nested:
        if key not in RunSpec.model_fields:
            raise UserError(f"{where}: {unknown('key', key, RunSpec.model_fields)}")
    try:
        spec = RunSpec.model_validate(nested)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from error
    _check_names(spec, where)
    return spec


def _trains(method: Method) -> bool:
    """A method that neither draws noise nor differentiates changes nothing."""
    cost = method.cost(Params([("any", torch.zeros(1))]))
    return cost.noise_passes + cost.backwards > 0


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"'{key}' is missing; every run needs it."
    if first["loc"][0] in _TABLES and len(first["loc"]) > 1:
        key = f"{first['loc'][0]}.{first['loc'][1]}"
        return f"'{key}' must be one finite number, text or true/false, got {first['input']!r}."
    if first["type"] == "string_pattern_mismatch":
        wanted = {"device": "cpu, cuda, cuda:N, xpu, xpu:N or mps"}.get(
            key, "lower-case letters, digits, _ . -"
        )
        return f"'{key}' must be {wanted}, got {first['input']!r}."
    if key == "measure":
        return (
            f"'measure' must be memory or time, got {first['input']!r}: what reads memory exactly "
            'spoils times. Make two runs: measure = ["memory", "time"] among the group\'s axes.'
        )
    return f"'{key}': {first['msg']}, got {first['input']!r}."


def _check_names(spec: RunSpec, where: str) -> None:
    if spec.task not in tasks.names():
        raise UserError(f"{where}: {unknown('task', spec.task, tasks.names())}")
    prompts = tasks.prompts(spec.task)
    if spec.prompt is not None and spec.prompt not in prompts:
        raise UserError(f"{where}: {unknown('prompt', spec.prompt, prompts)}")
    try:
        method = methods.build(spec.method, **spec.options)
        if spec.steps and not spec.lr and _trains(method):
            raise UserError("'lr' is missing; with 0, the default, nothing would be trained.")
        tuning.build(spec.tuning, spec.tuning_options)
        agree(spec, method)
        resolve(spec.model)
    except (ValueError, UserError) as error:
        raise UserError(f"{where}: {error}") from error
