"""Pages and summaries for people who look at a pipeline's run in Kubeflow: one HTML file each, with nothing outside it.

Kubeflow shows HTML in a closed frame, without access to other files, so that pictures lie in the page as data.
"""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ganflow.data.card import SPLITS, DataCard
from ganflow.tracking.sweeps import Trial

_CURVES = (
    ("What both players lose", "loss", {"generator_loss": "generator", "discriminator_loss": "discriminator"}),
    (
        "What the discriminator believes",
        "mean output: a probability, or a score",
        {"d_real": "real pictures", "d_fake": "generated pictures"},
    ),
    (
        "How strongly they are pulled",
        "norm of the gradient",
        {"generator_grad_norm": "generator", "discriminator_grad_norm": "discriminator"},
    ),
    ("How varied the samples are", "1: as real pictures", {"sample_variety": "averaged generator"}),
    ("FID against the validation split", "FID", {"validation_fid": "averaged generator", "best_fid": "best so far"}),
)
_CURVES_A_ROW = 3
_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:1.5em;color:#222}img{image-rendering:pixelated;max-width:100%}"
    "img.curves{image-rendering:auto}table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;"
    "border-bottom:1px solid #ddd}td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}"
    "p.caution{background:#fff3cd;border-left:4px solid #d39e00;padding:.6em 1em;max-width:60em}"
)


def training_page(trained: Path, title: str) -> str:
    """Show what went wrong, the last sample grid and the curves of the training that left the folder `trained`."""
    history = [row for name in ("history.csv", "fid.csv") for row in _rows(trained / name)]
    samples = sorted((trained / "samples").glob("*.png"), key=lambda path: int(path.stem))
    parts = [f"<h2>{escape(title)}</h2>"]
    parts += [f"<p class=caution>{escape(text)}</p>" for text in _warnings(trained / "warnings.json")]
    if samples:
        parts.append(f"<h3>Samples after {int(samples[-1].stem):,} images</h3>{_image(samples[-1].read_bytes(), 512)}")
    if history:
        parts.append(f"<h3>Curves</h3>{_image(_curves(history), 960, 'curves')}")
    return _page(title, parts)


def evaluation_page(evaluated: Path, title: str) -> str:
    """Show real and generated pictures side by side, the metrics with how they were measured, and the nearest pairs."""
    metrics = json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))
    protocol = json.loads((evaluated / "protocol.json").read_text(encoding="utf-8"))
    picture, pairs = (
        _image((evaluated / name).read_bytes(), 960) for name in ("real_and_generated.png", "nearest_pairs.png")
    )
    notes = [metrics.pop(key, None) for key in ("caution", "no_discriminator")]
    cautions = "".join(f"<p class=caution>{escape(note)}</p>" for note in notes if note)
    special = [
        f"<h3>{escape(path.stem.replace('_', ' ').capitalize())}</h3>{_image(path.read_bytes(), 640)}"
        for path in sorted(evaluated.glob("sheets/*.png"))
    ]
    return _page(
        title,
        [
            f"<h2>{escape(title)}</h2><h3>Real test pictures, and generated ones</h3>{picture}",
            *special,
            f"<h3>Metrics</h3>{cautions}{_metrics(metrics)}",
            f"<h3>Generated pictures, each beside the training picture that it is nearest to</h3>{pairs}",
            f"<h3>How they were measured</h3>{_table(protocol)}",
        ],
    )


def sweep_page(trials: Sequence[Trial], best: Trial) -> str:
    """Show the trials of a sweep, the lowest FID first."""
    rows = [
        f"<tr><td>{escape(' '.join(trial.overrides) or 'as in params.yaml')}{' &#9733;' if trial is best else ''}</td>"
        f'<td class="number">{_shown(trial.fid)}</td><td>{escape(trial.run_id)}</td></tr>'
        for trial in sorted(trials, key=lambda trial: (trial.fid is None, trial.fid or 0.0))
    ]
    head = "<tr><th>changed</th><th>FID</th><th>MLflow run</th></tr>"
    return _page("Sweep", [f"<h2>{len(trials)} trials</h2><table>{head}{''.join(rows)}</table>"])


def data_summary(card: DataCard) -> str:
    """Say in Markdown what a data card holds."""
    rows = [
        ("pictures", ", ".join(f"{card.splits[split].count} {split}" for split in SPLITS)),
        ("size", f"{card.resolution} x {card.resolution}, {card.channels} channel(s)"),
        ("classes", "no labels" if card.classes is None else str(len(card.classes))),
        ("left out", str(len(card.skipped))),
        ("digest", f"`{card.digest}`"),
    ]
    return _markdown(f"Data set {card.name}", rows)


def registration_summary(result: Mapping[str, Any]) -> str:
    """Say in Markdown what `register` decided."""
    version = f"{result['model']}, version {result['version']}" if result["version"] else "none"
    rows = [
        ("version", version),
        ("alias", result["alias"] or "none"),
        ("reason", result["reason"]),
        ("FID", _shown(result["fid"])),
        ("caution", result.get("caution") or "none"),
        ("MLflow run", f"`{result['run_id']}`"),
        ("weights", f"`{result['weights_digest']}`"),
        ("data", f"`{result['data_digest']}`"),
    ]
    return _markdown("Registration", rows)


def _warnings(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [f"At {x['images']:,} images, {x['text']}." for x in json.loads(path.read_text(encoding="utf-8"))]


def _rows(path: Path) -> list[dict[str, str]]:
    """Read a table; a training without FIDs on its way has none of them."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _curves(history: Sequence[Mapping[str, str]]) -> bytes:
    curves = [curve for curve in _CURVES if any(row.get(column) for column in curve[2] for row in history)]
    across = max(min(len(curves), _CURVES_A_ROW), 1)
    rows = max(ceil(len(curves) / across), 1)
    figure = Figure(figsize=(6 * across, 4 * rows), dpi=80, layout="constrained")
    for place, (title, label, columns) in enumerate(curves, 1):
        axes = figure.add_subplot(rows, across, place)
        for column, name in columns.items():
            points = [(int(row["images"]), float(row[column])) for row in history if row.get(column)]
            if points:
                axes.plot(*zip(*points, strict=True), label=name)
        axes.set(title=title, xlabel="real images shown", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _page(title: str, parts: Sequence[str]) -> str:
    head = f"<meta charset='utf-8'><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _image(png: bytes, width: int, kind: str = "") -> str:
    return f'<img class="{kind}" width="{width}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><td>{escape(str(key))}</td><td class="number">{_shown(value)}</td></tr>' for key, value in values.items()
    )
    return f"<table>{rows}</table>"


def _metrics(metrics: Mapping[str, Any]) -> str:
    """Show each metric in a row with what belongs to it: floor and ceiling, or the ends of its interval."""
    ends = {"floor": ("_floor", "_ceiling"), "interval": ("_low", "_high")}
    own = {f"{name}{end}" for name in metrics for pair in ends.values() for end in pair} & metrics.keys()
    rows = []
    for name, value in metrics.items():
        if name not in own:
            cells = [_shown(value)]
            for low, high in ends.values():
                between = f"{name}{low}" in metrics
                cells.append(f"{_shown(metrics[name + low])} to {_shown(metrics[name + high])}" if between else "")
            rows.append(f"<tr><td>{escape(name)}</td>{''.join(f'<td class=number>{cell}</td>' for cell in cells)}</tr>")
    names = ("metric", "value", "floor to ceiling", "95 % interval")
    head = "".join(f"<th class=number>{name}</th>" for name in names[1:])
    return f"<table><tr><th>{names[0]}</th>{head}</tr>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    if value is None:
        return "no value"
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _markdown(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {name} | {' '.join(str(text).split()).replace('|', '/')} |" for name, text in rows]
    return "\n".join([f"# {title}", "", "| | |", "|---|---|", *lines]) + "\n"
