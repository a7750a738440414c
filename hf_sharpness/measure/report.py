"""What was measured, as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """The results in aligned columns; what was not measured is left out."""
    blocks = [_heading(results)]
    if "loss" in results:
        rows = [
            [split, _number(entry["loss"]), _number(entry["error"]), f"{entry['examples']:,}"]
            for split, entry in results["loss"].items()
        ]
        if "generalization_gap" in results:
            gap = results["generalization_gap"]
            rows.append(["gap (test - train)", _number(gap["loss"]), _number(gap["error"]), ""])
        blocks.append(_columns(["", "loss", "error", "examples"], rows))
    for name, title in (("sharpness", "SAM, rho"), ("adaptive_sharpness", "ASAM, rho")):
        if name in results:
            rows = [
                [f"{e['rho']:g}", _number(e["loss"]), _number(e["sharpness"]), _number(e["linear"])]
                for e in results[name]
            ]
            blocks.append(_columns([title, "loss", "sharpness", "linear"], rows))
    if "worst_loss" in results:
        rows = [
            [f"{e['rho']:g}", _number(e["loss"]), _number(e["sharpness"]), str(e["steps"])]
            for e in results["worst_loss"]
        ]
        blocks.append(_columns(["worst, rho", "loss", "sharpness", "ascents"], rows))
    rows = [
        [f"along {_UPDATES[kind]}", *_critical(entry)] for kind, entry in results.get("critical_sharpness", {}).items()
    ]
    for direction, entries in results.get("relative_critical_sharpness", {}).items():
        if isinstance(entries, Mapping):
            rows += [[f"{_RELATIVE[direction]} {_UPDATES[kind]}", *_critical(e)] for kind, e in entries.items()]
    if rows:
        blocks.append(_columns(["critical sharpness", "2/eta_c", "eta_c", "passes"], rows))
    if "hessian" in results:
        blocks.append(_hessian(results["hessian"]))
    return "\n\n".join(blocks)


def _hessian(found: Mapping[str, Any]) -> str:
    trace = found["trace"]
    rows = [
        [f"eigenvalue {i + 1}", _number(value), _number(residual)]
        for i, (value, residual) in enumerate(zip(found["eigenvalues"], found["residuals"], strict=True))
    ]
    rows.append(["trace", _number(trace["value"]), _number(trace["standard_error"])])
    return _columns([f"Hessian ({found['products']} products)", "value", "+-"], rows)


_UPDATES = {"gradient": "the gradient", "adamw": "AdamW's first update"}
_RELATIVE = {
    "of_data_along_other": "of the data, along the other's",
    "of_other_along_data": "of the other, along the data's",
}


def _heading(results: Mapping[str, Any]) -> str:
    about = results["about"]
    lines = [
        f"{about['model']} on {about['data']}",
        f"  {about['examples']:,} training examples, {about['perturbed_parameters']:,} of {about['parameters']:,} "
        f"parameters perturbed, {about['dtype']}, dropout off",
    ]
    norms = [
        f"{name} {results[key]:.4g}"
        for key, name in (("gradient_norm", "||g||"), ("weight_norm", "||w||"))
        if key in results
    ]
    return "\n".join([*lines, *([f"  {'   '.join(norms)}"] if norms else [])])


def _critical(entry: Mapping[str, Any]) -> list[str]:
    return [_number(entry["sharpness"]), _number(entry["step"]), str(entry["passes"])] + (
        [entry["note"]] if entry["note"] else []
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if 0.01 <= abs(value) < 1000 or value == 0 else f"{value:.3e}"


def _columns(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first to the left, numbers to the right, a note as it is."""
    widths = [max(len(row[i]) for row in [titles, *rows] if i < len(row)) for i in range(len(titles))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        return "  ".join([*cells, *row[len(titles) :]]).rstrip()

    return "\n".join([line(titles), *map(line, rows)])
