"""One page about a run, with pictures: `report.html`, complete in itself."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ..cams.results import Row, describe_fit, describe_mode, read_rows
from ..errors import UserError
from ..files import read_json, write_atomic
from ..pictures.contact_sheet import contact_sheet
from ..pictures.curves import last_epochs, loss_curves, read_metrics
from ..pictures.overlays import inline

_STYLE = """
:root { --ink: #22303a; --soft: #66747e; --line: #e1e6ea; --ground: #f6f8f9; --mark: #1b6ca8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, Roboto, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; margin: 0; }
h2 { font-size: 19px; margin: 40px 0 12px; }
p { margin: 6px 0; max-width: 80ch; }
.soft { color: var(--soft); }
.card { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px; margin: 12px 0; }
.card { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.n, th.n { text-align: right; }
td.best { font-weight: 700; color: var(--mark); }
tr:last-child td { border-bottom: 0; }
.settings { columns: 3 300px; font-size: 13px; }
.settings div { break-inside: avoid; margin-bottom: 10px; }
.settings b { display: block; }
.sheet { table-layout: fixed; width: 100%; min-width: 720px; }
.sheet td, .sheet th { padding: 4px; border: 0; vertical-align: top; white-space: normal; }
.sheet img { display: block; width: 100%; max-width: 240px; border-radius: 4px; }
.legend span { display: inline-block; margin-right: 16px; }
.legend i { display: inline-block; width: 13px; height: 13px; border-radius: 3px; margin-right: 6px; }
.none { color: var(--soft); font-style: italic; }
img.curves { width: 100%; height: auto; }
"""


def write_report(run_dir: Path, data: Path | None = None) -> Path:
    """Writes `run_dir/report.html` and returns its path. `data`: where the data set lies, if not where it was.

    It shows what the run's folder holds: settings (config.json), scores (results.json), training (metrics.jsonl), and
    up to 8 images with masks (masks/<stage>/<split>/<name>.png) beside photograph and truth from the data set that
    config.json names. What is not there, or not readable any more, is said in its place.

    Raises:
        UserError: no such folder, or a page that cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir}: no such run")
    config = _or_note(lambda: _config(run_dir / "config.json") | ({"data": str(data)} if data else {}))
    sections = [
        ("Scores", _section(lambda: _scores(run_dir / "results.json"))),
        ("Masks", _section(lambda: _sheet(run_dir, config))),
        ("Training", _section(lambda: _training(run_dir / "metrics.jsonl"))),
        ("Settings", _section(lambda: _settings(config))),
    ]
    name = escape(run_dir.resolve().name)
    body = "".join(f"<h2>{title}</h2>\n{content}\n" for title, content in sections)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>CamGuide: {name}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n{_lead(config)}\n{body}</main>\n</body>\n</html>\n"
    )
    path = run_dir / "report.html"
    write_atomic(path, page.encode())
    return path


def _section(content: Callable[[], str]) -> str:
    made = _or_note(content)
    return f'<p class="none">{escape(made.text)}</p>' if isinstance(made, _Note) else made


@dataclass(frozen=True)
class _Note:
    """Why a part of the page is missing."""

    text: str


def _or_note(content: Callable[[], Any]) -> Any:
    try:
        return content()
    except UserError as error:
        return _Note(str(error))


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the settings of a run")
    return config


def _lead(config: dict[str, Any] | _Note) -> str:
    if isinstance(config, _Note):
        return ""
    parts = [f"{key} {config[key]}" for key in ("data", "preset", "seed") if config.get(key) is not None]
    return f'<p class="soft">{escape(", ".join(parts))}</p>'


def _scores(path: Path) -> str:
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: no scores yet")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["labels"]), []).append(row)
    tables = [_score_table(split, labels, group) for (split, labels), group in groups.items()]
    note = (
        '<p class="soft">IoU in percent. <b>fitted</b>: thresholds are best on the very split that is scored, which '
        "flatters; <b>from</b> another split: transferred. The best mIoU of each kind is marked.</p>"
    )
    return note + "".join(tables)


def _score_table(split: str, labels: str, rows: list[Row]) -> str:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    rows = sorted(rows, key=lambda row: stages.index(row["stage"]))
    classes = list(dict.fromkeys(name for row in rows for name in row["iou"]))
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        kind = row["threshold_mode"], row["fitted_on"]
        best[kind] = max(best.get(kind, 0.0), row["miou"] or 0.0)
    body = []
    for i, row in enumerate(rows):
        stage = row["stage"] if i == 0 or rows[i - 1]["stage"] != row["stage"] else ""
        marked = " best" if row["miou"] == best[row["threshold_mode"], row["fitted_on"]] else ""
        cells = [f"<td>{escape(text)}</td>" for text in (stage, describe_mode(row), describe_fit(row))]
        cells.append(f'<td class="n{marked}">{_percent(row["miou"])}</td>')
        cells += [f'<td class="n">{_percent(row["iou"].get(name))}</td>' for name in classes]
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in ("stage", "threshold", "fit"))
    head += "".join(f'<th class="n">{escape(name)}</th>' for name in ("mIoU", *classes))
    images = f", {rows[0]['images']} images" if "images" in rows[0] else ""
    title = f"<p><b>{escape(split)}</b>{images}, {escape(labels)} labels</p>"
    return f'<div class="card">{title}<table><tr>{head}</tr>{"".join(body)}</table></div>'


def _percent(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.1f}"


def _training(path: Path) -> str:
    lines = read_metrics(path)
    curves = loss_curves(lines)
    if curves is None:
        raise UserError(f"{path}: no training step yet")
    stages = last_epochs(lines)
    keys = list(dict.fromkeys(key for numbers in stages.values() for key in numbers))
    head = "<th>last epoch of</th>" + "".join(f'<th class="n">{escape(key)}</th>' for key in keys)
    body = ""
    for stage, numbers in stages.items():
        cells = "".join(f'<td class="n">{_number(numbers.get(key))}</td>' for key in keys)
        body += f"<tr><td>{escape(stage)}</td>{cells}</tr>"
    picture = f'<img class="curves" alt="loss by stage" src="{inline(curves, "svg+xml")}">'
    table = f'<div class="card"><table><tr>{head}</tr>{body}</table></div>' if keys else ""
    return f'<div class="card">{picture}</div>{table}'


def _number(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _settings(config: dict[str, Any] | _Note) -> str:
    if isinstance(config, _Note):
        raise UserError(config.text)
    groups: dict[str, list[str]] = {}
    for key, value in _flat(config):
        group, _, name = key.removeprefix("config.").partition(".")
        entry = (name, value) if name else (group, value)
        groups.setdefault(group if name else "run", []).append(f"{escape(entry[0])} = {escape(entry[1])}<br>")
    blocks = "".join(f"<div><b>{escape(group)}</b>{''.join(entries)}</div>" for group, entries in groups.items())
    return f'<div class="card settings">{blocks}</div>'


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sheet(run_dir: Path, config: dict[str, Any] | _Note) -> str:
    if isinstance(config, _Note):
        raise UserError(config.text)
    if not config.get("data"):
        raise UserError(f"{run_dir / 'config.json'}: names no data set, so there are no photographs to show")
    scored = _or_note(lambda: read_rows(run_dir / "results.json"))
    order = [] if isinstance(scored, _Note) else [row["stage"] for row in scored]
    return contact_sheet(run_dir / "masks", Path(config["data"]), order)
