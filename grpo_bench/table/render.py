"""A comparison as Markdown, LaTeX (booktabs), CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from grpo_bench.records import METRICS
from grpo_bench.table.arms import Arm, Difference
from grpo_bench.table.compare import Comparison, Reference
from grpo_bench.table.heading import Heading
from grpo_bench.table.hypotheses import Finding
from grpo_bench.table.layout import Bold, Sheet
from grpo_bench.table.pairs import Estimate

_TEX = {
    "\\": r"\textbackslash{}", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "±": r"$\pm$", "Δ": r"$\Delta$",
    "γ": r"$\gamma$", "λ": r"$\lambda$", "–": "--", "−": "$-$", "×": r"$\times$", "≥": r"$\geq$",
    "≤": r"$\leq$", "δ": r"$\delta$", "β": r"$\beta$", "ε": r"$\varepsilon$", "π": r"$\pi$", "α": r"$\alpha$",
    "²": r"$^2$", "‖": r"$\Vert$", "σ": r"$\sigma$", "…": r"\ldots{}",
}  # fmt: skip


def markdown(heading: Heading, sheets: list[Sheet], comparison: Comparison, figures: list[str]) -> str:
    """The whole page: what was run, the tables, what is left out, the figures."""
    parts = [f"# {heading.title}", "\n".join(f"- {name}: {text}" for name, text in heading.lines)]
    for sheet in sheets:
        parts += [f"## {sheet.title}", as_markdown(sheet)]
        if sheet.notes:
            parts.append("\n".join(f"- {note}" for note in sheet.notes))
    if comparison.left_out:
        parts += ["## Runs missing, failed, diverged or running", "\n".join(f"- {x}" for x in comparison.left_out)]
    if comparison.notes:
        parts += ["## To be known", "\n".join(f"- {note}" for note in comparison.notes)]
    if figures:
        parts += ["## Figures", "\n\n".join(f"![{name.rsplit('.', 1)[0]}]({name})" for name in figures)]
    return "\n\n".join(parts) + "\n"


def as_markdown(sheet: Sheet) -> str:
    """One table, without its title and notes."""
    align = " :--- " if sheet.wide else " ---: "
    lines = [_row(sheet.header), "|" + "|".join([" :--- ", *[align] * (len(sheet.header) - 1)]) + "|"]
    return "\n".join([*lines, *[_row(row) for row in sheet.rows]])


def latex(heading: Heading, sheets: list[Sheet], comparison: Comparison) -> str:
    r"""One ``table`` environment per sheet, to be \input into a paper that loads booktabs and graphicx."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{graphicx}", f"% {heading.title}"]
    parts += [f"% {name}: {text}" for name, text in heading.lines]
    for sheet in sheets:
        width = len(sheet.header)
        # sentences wrap in columns of equal width; numbers stay on one line and the table is scaled to fit
        column = f"p{{{0.84 / (width - 1):.3f}\\linewidth}}" if sheet.wide else "r"
        columns = "l" + column * (width - 1)
        body = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *_tex_header(sheet.header), "\\midrule"]
        body += [_tex_row(row) for row in sheet.rows]
        body += ["\\bottomrule", "\\end{tabular}"]
        if not sheet.wide:
            body = ["\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%", *body, "}"]
        caption = " ".join([sheet.title + ".", *sheet.notes])
        top = ["\\begin{table}[t]", "\\centering", "\\small", f"\\caption{{{tex(caption)}}}"]
        top.append(f"\\label{{tab:{sheet.name}}}")
        parts.append("\n".join([*top, *body, "\\end{table}"]))
    known = [*comparison.left_out, *comparison.notes]
    parts += ["\n".join(f"% {line}" for line in known)] if known else []
    return "\n".join(parts) + "\n"


def _tex_header(header: list[str]) -> list[str]:
    r"""The header's row; above it, where columns share a prefix, that once with a \cmidrule under it."""
    spans: list[tuple[str, int]] = []
    for cell in header:
        group = cell.partition(": ")[0] if ": " in cell else ""
        if spans and group and spans[-1][0] == group:
            spans[-1] = (group, spans[-1][1] + 1)
        else:
            spans.append((group, 1))
    if all(width == 1 for _, width in spans):
        return [_tex_row(header)]
    above, rules, names, column = [], [], [], 0
    for group, width in spans:
        cells = header[column : column + width]
        wide = width > 1
        above.append(f"\\multicolumn{{{width}}}{{c}}{{{tex(group)}}}" if wide else "")
        rules += [f"\\cmidrule(lr){{{column + 1}-{column + width}}}"] if wide else []
        names += [cell.partition(": ")[2] for cell in cells] if wide else cells
        column += width
    return [" & ".join(above) + " \\\\", " ".join(rules), _tex_row(names)]


def tex(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return re.sub("|".join(map(re.escape, _TEX)), lambda match: _TEX[match[0]], text)


def as_csv(comparison: Comparison) -> str:
    """One line per row of the table, unrounded, fractions instead of percent; empty where unknown."""
    members: list[Arm | Reference] = [*comparison.references, *comparison.arms]
    rows = [_flat(one, comparison.baseline) for one in members]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    return out.getvalue()


def sheet_csv(sheet: Sheet) -> str:
    """One table as it reads, a line per row; the numbers behind it, unrounded, are in table.csv and table.json."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([sheet.header, *sheet.rows])
    return out.getvalue()


def as_json(heading: Heading, sheets: list[Sheet], comparison: Comparison, findings: Sequence[Finding] = ()) -> str:
    """Everything that the table says and what it was made from, by row and by seed."""
    contrasts = []
    for contrast in comparison.contrasts:
        entry = {k: getattr(contrast, k) for k in ("first", "second", "p", "test", "sign_flip", "holm", "verdict")}
        entry["difference"] = _difference(contrast.difference)
        entry["bootstrap_two_level"] = asdict(contrast.bootstrap) if contrast.bootstrap else None
        entry["problems"] = asdict(contrast.problems) if contrast.problems else None
        entry["mcnemar"] = [asdict(one) for one in contrast.discordance]
        entry["judged"] = asdict(contrast.judged) if contrast.judged else None
        contrasts.append(entry)
    content = {
        "title": heading.title,
        "about": dict(heading.lines),
        "baseline": comparison.baseline,
        "margin": comparison.margin,
        "contrasts_declared": comparison.declared != "no",
        "references": [_reference(reference) for reference in comparison.references],
        "arms": [_arm(arm) for arm in comparison.arms],
        "contrasts": contrasts,
        "left_out": comparison.left_out,
        "notes": comparison.notes,
        "hypotheses": [_finding(finding) for finding in findings],
        "tables": {
            sheet.name: {"title": sheet.title, "header": sheet.header, "rows": sheet.rows, "notes": sheet.notes}
            for sheet in sheets
        },
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(cells: list[str]) -> str:
    shown = [f"**{cell}**" if isinstance(cell, Bold) else cell for cell in cells]
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in shown) + " |"


def _tex_row(cells: list[str]) -> str:
    shown = [f"\\textbf{{{tex(cell)}}}" if isinstance(cell, Bold) else tex(cell) for cell in cells]
    # a bracket after the \\ of the line above would be read as its optional argument
    shown[0] = "{}" + shown[0] if shown[0].startswith("[") else shown[0]
    return " & ".join(shown) + " \\\\"


def _flat(one: Arm | Reference, baseline: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"row": one.label, "model": one.model}
    if isinstance(one, Arm):
        row |= {"arm": one.arm, "algo": one.algo, "config_hash": one.config_hash}
        row |= {"runs": len(one.runs), "seeds": len(one.scored), "incomplete": int(one.incomplete)}
    for metric in METRICS:
        row |= _columns(metric, one.accuracy.get(metric))
    if isinstance(one, Arm):
        for name, difference in (("to_base", one.to_base), ("to_baseline", one.to_baseline)):
            for metric in METRICS:
                row |= _columns(f"{metric}_{name}", difference.by.get(metric))
            row[f"{name}_refused"] = difference.refused
        row["baseline"] = baseline
        row |= one.cost | one.stability
    return row | one.evals


def _columns(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {}
    i = estimate.interval
    bounds = {f"{name}_low": i.low, f"{name}_high": i.high} if i.known else {}
    return {name: i.estimate, **bounds, f"{name}_interval": estimate.kind}


def _reference(reference: Reference) -> dict[str, Any]:
    shown = {"label": reference.label, "which": reference.which, "model": reference.model, "eval": reference.evals}
    return shown | {"accuracy": {metric: _estimate(e) for metric, e in reference.accuracy.items()}}


def _arm(arm: Arm) -> dict[str, Any]:
    shown: dict[str, Any] = {k: getattr(arm, k) for k in ("label", "row", "arm", "algo", "model", "config_hash")}
    shown |= {"incomplete": arm.incomplete, "cost": arm.cost, "stability": arm.stability, "eval": arm.evals}
    shown["accuracy"] = {metric: _estimate(estimate) for metric, estimate in arm.accuracy.items()}
    shown |= {"to_base": _difference(arm.to_base), "to_baseline": _difference(arm.to_baseline)}
    shown["runs"] = [
        {"run_id": run.run_id, "seed": run.seed, "status": run.status, "reason": run.reason, "final": run.final}
        for run in arm.runs
    ]
    return shown


def _finding(finding: Finding) -> dict[str, Any]:
    shown: dict[str, Any] = {k: getattr(finding, k) for k in ("id", "claim", "measure", "criterion", "source", "scale")}
    values = finding.values
    shown["interaction"] = finding.asked is not None and finding.asked.interaction  # of four rows
    shown |= {"outcome": finding.outcome, "why": finding.why, "seeds": values.seeds}
    shown["declared_later"] = finding.later
    shown["rows"] = [{"row": label, "values": row} for label, row in zip(values.labels, values.rows, strict=False)]
    for name in ("interval", "simultaneous"):
        shown[name] = asdict(getattr(finding.judgement, name)) if finding.judgement else None
    return shown


def _difference(difference: Difference) -> dict[str, Any]:
    by = {metric: _estimate(estimate) for metric, estimate in difference.by.items()}
    return {"by": by, "seeds": difference.seeds, "refused": difference.refused}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate.interval) | {"unit": estimate.unit, "seeds": estimate.seeds, "problems": estimate.problems}


def _finite(value: Any) -> Any:
    """JSON has no NaN: an unknown bound is null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
