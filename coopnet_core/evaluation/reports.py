"""Reports: report.json for programs, a self-contained report.html for people."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from coopnet_core.files import write_whole

_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
_LARGEST_PNG = 100_000
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:64rem;padding:1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #d0d7de}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}th,td{padding:.3rem .7rem;text-align:right}
th:first-child,td:first-child{text-align:left}tr:nth-child(even) td{background:#f6f8fa}
thead th{border-bottom:2px solid #d0d7de}
.wide{overflow-x:auto}img{max-width:100%;height:auto;border-radius:4px}figure{margin:1rem 0}
figcaption,.note{color:#57606a;font-size:.9rem}
@media(prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}tr:nth-child(even) td{background:#161b22}
h2,thead th{border-color:#30363d}figcaption,.note{color:#9da7b1}}
"""


@dataclass(frozen=True)
class Table:
    """Rows of figures; numbers are rounded to four digits, None is a dash."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Picture:
    """An image file (PNG, JPEG, WebP, GIF) that is written into the page itself."""

    path: Path
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables and pictures under it, in this order."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def write_report(path: Path, title: str, sections: Sequence[Section], intro: Sequence[str] = ()) -> Path:
    """Write one self-contained HTML page: style and pictures inside, no script, readable on a phone.

    Args:
        path: the file to write.
        title: heading of the page.
        sections: in order; pictures whose file is missing are left out.
        intro: paragraphs under the title.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *(_paragraph(text) for text in intro)]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [_paragraph(text) for text in section.text]
        body += [_table(table) for table in section.tables]
        body += [_picture(picture) for picture in section.pictures if picture.path.is_file()]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page + "\n".join(body) + "\n</body></html>\n", encoding="utf-8")
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


def _paragraph(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(number(cell))}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _picture(picture: Picture) -> str:
    """The picture inside the page; large PNG files as JPEG, so that the page opens on a phone."""
    media_type, content = _MEDIA_TYPES[picture.path.suffix.lower()], picture.path.read_bytes()
    if media_type == "image/png" and len(content) > _LARGEST_PNG:
        _, compressed = cv2.imencode(".jpg", cv2.imread(str(picture.path)), [cv2.IMWRITE_JPEG_QUALITY, 88])
        media_type, content = "image/jpeg", compressed.tobytes()
    source = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    caption = html.escape(picture.caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
