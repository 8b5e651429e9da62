"""Reports: report.json for programs, a self-contained report.html for people."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2

from coopnet_core.files import write_whole

_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
}
_LARGEST_PNG = 100_000
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#57606a;--line:#d0d7de;--shade:#f6f8fa;
--good:#1a7f37;--poor:#9a6700;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--paper:#0d1117;--faint:#9da7b1;--line:#30363d;--shade:#161b22;
--good:#3fb950;--poor:#d29922;--bad:#f85149}}
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem;color:var(--ink);
background:var(--paper);overflow-wrap:anywhere}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid var(--line)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;overflow-wrap:normal;margin:.5rem 0}
th,td{padding:.3rem .7rem;text-align:right;vertical-align:top}
th:first-child,td:first-child,.text{text-align:left}td.text{min-width:5rem;max-width:24rem;overflow-wrap:break-word}
tr:nth-child(even) td{background:var(--shade)}thead th{border-bottom:2px solid var(--line);vertical-align:bottom}
.wide,pre{overflow-x:auto}img{max-width:100%;height:auto;border-radius:4px}figure{margin:1rem 0}
.grid{display:grid;gap:0 .8rem}.grid figure{margin:.5rem 0}.grid img{width:100%}
.of2{grid-template-columns:repeat(auto-fill,minmax(max(min(100%,21rem),34%),1fr))}
.of4{grid-template-columns:repeat(auto-fill,minmax(max(9rem,22%),1fr))}
figcaption,.note{color:var(--faint);font-size:.9rem}
pre{background:var(--shade);padding:.6rem .8rem;border-radius:4px;font-size:.85rem;overflow-wrap:normal}
summary{cursor:pointer;font-size:1.15rem;font-weight:600;margin-top:2rem}
.verdict{font-size:1.2rem;font-weight:600;border-left:.4rem solid;padding:.2rem .8rem}
ul.remarks{list-style:none;padding-left:0}.remarks li{padding-left:1.5rem;text-indent:-1.5rem;margin:.3rem 0}
.remarks b{display:inline-block;width:1.5rem;text-indent:0}
.verdict.good{border-color:var(--good)}.verdict.poor{border-color:var(--poor)}.verdict.bad{border-color:var(--bad)}
.good b{color:var(--good)}.poor b{color:var(--poor)}.bad b{color:var(--bad)}
"""
State = Literal["good", "poor", "bad", "plain"]
_SIGNS: dict[State, tuple[str, str]] = {
    "good": ("\u2713", "good"),
    "poor": ("!", "doubtful"),
    "bad": ("\u2717", "bad"),
    "plain": ("\u2013", "note"),
}


@dataclass(frozen=True)
class Table:
    """Rows of figures; numbers are rounded to four digits, None is a dash. Columns of words are set to the left.

    A header of empty names is left out.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """An image file (PNG, JPEG, WebP, GIF, SVG) that is written into the page itself; the caption is its alt text."""

    path: Path
    caption: str = ""


@dataclass(frozen=True)
class Remark:
    """A sentence with a sign before it that says whether it is good news."""

    text: str
    state: State = "plain"


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, commands, tables, remarks and pictures under it, in this order.

    Attributes:
        title: the heading.
        text: paragraphs.
        remarks: a list.
        commands: to be copied, one block each.
        tables: each scrolls within its own box.
        pictures: those whose file is missing are left out.
        columns: pictures side by side, where the window is wide enough: 1, 2 or 4 (on a phone 1, 1 or 2).
        folded: closed until the reader opens it.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    remarks: Sequence[Remark] = ()
    commands: Sequence[str] = ()
    columns: Literal[1, 2, 4] = 1
    folded: bool = False


def write_report(
    path: Path, title: str, sections: Sequence[Section], intro: Sequence[str] = (), verdict: Remark | None = None
) -> Path:
    """Write one self-contained HTML page: style and pictures inside, no script, readable on a phone.

    Args:
        path: the file to write; it is replaced whole.
        title: heading of the page.
        sections: in order.
        intro: paragraphs under the title.
        verdict: what matters most, in a sentence that is seen first.

    Raises:
        OSError: the disk refuses.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    if verdict is not None:
        body.append(f'<p class="verdict {verdict.state}">{html.escape(verdict.text)}</p>')
    body += [*(_paragraph(text) for text in intro), *map(_section, sections)]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
    )
    page += "\n".join(body) + "\n</body></html>\n"
    write_whole(path, lambda partial: partial.write_text(page, encoding="utf-8"))
    return path


def write_json(path: Path, report: Mapping[str, object]) -> Path:
    """Write a report as JSON; numbers that are not finite become null. The file is replaced whole."""
    text = json.dumps(finite(report), indent=2, allow_nan=False) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def finite(value: object) -> object:
    """The same structure with None for every float that is not finite.

    >>> finite({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def number(value: object) -> str:
    """A cell of a table: four digits for floats, a dash for None.

    >>> number(0.123456), number(None), number(12)
    ('0.1235', '-', '12')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def evaluation_tables(report: Mapping[str, dict]) -> dict[str, Table]:
    """The tables of depth, odometry, flow, mask and reconstruction: the prediction beside its baselines."""
    keys = {
        "depth": ("abs_rel", "sq_rel", "rmse", "rmse_log", "silog", "a1", "a2", "a3"),
        "odometry": ("ate_7dof_m", "t_err_pct", "r_err_deg_per_100m", "t_err_short_pct",
                     "r_err_short_deg_per_100m", "rotation_deg_per_frame",
                     "direction_deg_per_frame", "rpe_m", "scale_spread", "rotation_nees"),
        "flow": ("epe", "fl_pct", "epe_image_mean", "fl_pct_image_mean"),
        "mask": ("auc", "iou_moving", "iou_static", "iou_mean"),
    }  # fmt: skip
    tables = {}
    for part, names in keys.items():
        trivial = report["baselines"][part]
        rows = [
            [name, report[part].get(name), *((figures or {}).get(name) for figures in trivial.values())]
            for name in names
        ]
        tables[part] = Table(["", "prediction", *(name.replace("_", " ") for name in trivial)], rows)
    photometric = report["photometric"]
    if photometric:
        rows = [
            [kind, photometric[kind], photometric.get(f"{kind}_over_identity")]
            for kind in ("identity", "rigid", "flow")
        ]
        tables["photometric"] = Table(["reconstruction", "mean error", "over identity"], rows)
    parts = [
        [
            name,
            report["flow"][name]["epe"],
            report["flow"][name]["fl_pct"],
            (report["baselines"]["flow"]["zero"] or {}).get(name, {}).get("epe"),
        ]
        for name in ("noc", "occ", "static", "moving")
        if isinstance(report["flow"].get(name), dict)
    ]
    if parts:
        tables["flow_parts"] = Table(["flow on", "epe", "fl_pct", "epe of zero flow"], parts)
    return tables


def _section(section: Section) -> str:
    title = html.escape(section.title)
    pictures = "\n".join(_picture(picture) for picture in section.pictures if picture.path.is_file())
    parts = [
        *(_paragraph(text) for text in section.text),
        *(f'<pre tabindex="0"><code>{html.escape(command)}</code></pre>' for command in section.commands),
        *(_table(table) for table in section.tables),
        _remarks(section.remarks),
        f'<div class="grid of{section.columns}">{pictures}</div>' if pictures and section.columns > 1 else pictures,
    ]
    content = "\n".join(part for part in parts if part)
    if section.folded:
        return f"<details><summary>{title}</summary>\n{content}\n</details>"
    return f"<section>\n<h2>{title}</h2>\n{content}\n</section>"


def _remarks(remarks: Sequence[Remark]) -> str:
    if not remarks:
        return ""
    items = (
        f'<li class="{remark.state}"><b role="img" aria-label="{_SIGNS[remark.state][1]}">{_SIGNS[remark.state][0]}</b>'
        f"{html.escape(remark.text)}</li>"
        for remark in remarks
    )
    return f'<ul class="remarks">{"".join(items)}</ul>'


def _paragraph(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _table(table: Table) -> str:
    words = [
        any(isinstance(cell, str) for cell in column) and all(cell is None or isinstance(cell, str) for cell in column)
        for column in zip(*table.rows, strict=False)
    ]
    words += [False] * (len(table.header) - len(words))
    head = ""
    if any(table.header):
        head = _cells("th", [(str(name), text) for name, text in zip(table.header, words, strict=True)])
        head = f"<thead><tr>{head}</tr></thead>"
    rows = (_cells("td", [(number(cell), text) for cell, text in zip(row, words, strict=False)]) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _cells(tag: str, cells: Sequence[tuple[str, bool]]) -> str:
    """Table cells from (content, whether it is of words)."""
    words = ' class="text"'
    return "".join(f"<{tag}{words if text else ''}>{html.escape(content)}</{tag}>" for content, text in cells)


def _picture(picture: Picture) -> str:
    """The picture inside the page; large PNG files as JPEG, so that the page opens on a phone."""
    media_type, content = _MEDIA_TYPES[picture.path.suffix.lower()], picture.path.read_bytes()
    if media_type == "image/png" and len(content) > _LARGEST_PNG:
        _, compressed = cv2.imencode(".jpg", cv2.imread(str(picture.path)), [cv2.IMWRITE_JPEG_QUALITY, 88])
        media_type, content = "image/jpeg", compressed.tobytes()
    source = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    caption = html.escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
