// The pictures that every study has. Rows in colour are chosen once, for all of them.
let D; // what report/charts.py wrote
const chosen = new Map(); // row -> the colour it holds: while few rows are in colour, no two share one
function choose(row) {
  const taken = new Set(chosen.values());
  let slot = 0;
  while (taken.has(slot)) slot++;
  chosen.set(row, slot);
}
const tone = row => (row === null ? ink().faint : chosen.has(row) ? hue(chosen.get(row)) : ink().pale);
const DRAW = {};
const plain = text => String(text).replace(/[<>&]/g, c => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[c]);
const percent = { ticksuffix: " %", hoverformat: ".1f" };
const few = () => innerWidth < 640;

// labels of rows stand beside the panel; on a narrow screen they are cut, and whole under the pointer
function names(list) {
  const room = few() ? 20 : 42;
  return list.map(name => plain(name.length > room ? name.slice(0, room - 1) + "…" : name));
}

function error(points, of = "y") {
  const known = points.map(p => p.low !== null);
  return {
    type: "data", symmetric: false, thickness: 2, width: 0,
    array: points.map((p, i) => (known[i] ? p.high - p[of] : 0)), arrayminus: points.map((p, i) => (known[i] ? p[of] - p.low : 0)),
  };
}

const span = p => (p.low === null ? "no interval" : p.low.toFixed(1) + " to " + p.high.toFixed(1));
const ring = colour => ({ symbol: "circle-open", size: 7, color: colour, line: { width: 1.3 } });

// one line a row: the estimate with its interval, its seeds below it
function dots(id, points, { label, colour, unit, shapes = [], title, say, beside = null }) {
  const lines = points.map((p, i) => ({
    x: [p.y], y: [i], mode: "markers", marker: { size: 9, color: colour(p, i) }, error_x: { ...error([p]), color: colour(p, i) },
    hovertemplate: plain(label(p)) + "<br><b>" + p.y.toFixed(1) + "</b> (" + span(p) + ")" + unit + plain(say(p)) + "<extra></extra>",
  }));
  const seeds = points.map((p, i) => ({
    x: p.seeds.map(s => s[1]), y: p.seeds.map(() => i + 0.24), mode: "markers", marker: ring(colour(p, i)),
    text: p.seeds.map(s => "seed " + s[0]), hovertemplate: plain(label(p)) + ", %{text}: %{x:.1f}<extra></extra>",
  }));
  const ticks = names(points.map(label));
  return paint(id, [...lines, ...seeds], {
    height: 90 + 34 * points.length, shapes, margin: { l: 56, r: beside && !few() ? 170 : 14, t: 14, b: 44 },
    annotations: beside && !few() ? points.map((p, i) => ({ text: plain(beside(p)), x: 1, xref: "paper", xanchor: "left", xshift: 8, y: i, showarrow: false, align: "left", font: { color: ink().faint, size: 12 } })) : [],
    xaxis: axis({ title: { text: title }, ticksuffix: unit === " points" ? "" : " %" }),
    yaxis: axis({ tickvals: points.map((_, i) => i), ticktext: ticks, range: [points.length - 0.4, -0.6], showgrid: false, fixedrange: true }),
  });
}

DRAW.differences = () => {
  const band = { type: "rect", layer: "below", xref: "x", yref: "paper", x0: -D.margin, x1: D.margin, y0: 0, y1: 1, line: { width: 0 }, fillcolor: ink().margin };
  const zero = { type: "line", layer: "below", xref: "x", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: ink().faint, width: 1 } };
  dots("differences", D.differences, {
    label: p => p.name, colour: () => hue(0), unit: " points", shapes: [band, zero], title: few() ? "difference, points" : "difference in accuracy, percentage points",
    say: p => ": " + p.verdict + "; interval over " + p.kind, beside: p => p.verdict,
  });
};

DRAW.accuracy = () => {
  const shapes = D.references.map(r => ({ type: "line", layer: "below", xref: "x", yref: "paper", x0: r.y, x1: r.y, y0: 0, y1: 1, line: { color: ink().faint, width: 1, dash: "dot" } }));
  const before = D.references.map(r => ({ ...r, seeds: [], row: null, kind: "problems" }));
  dots("accuracy", [...before, ...D.accuracy], {
    label: p => (p.row === null ? p.name : D.rows[p.row]), unit: " %", shapes, title: "accuracy, greedy",
    colour: p => tone(p.row), say: p => ", interval over " + p.kind,
  });
};

DRAW.curves = () => {
  const panel = D.curves[$("[data-metric]").value], where = $("[data-axis]").value;
  const unit = panel.percent ? " %" : "", form = panel.percent ? ".1f" : ".4~g";
  const behind = [], traces = [], coloured = [], alpha = chosen.size > 3 ? 0.09 : 0.16;
  for (const r of panel.rows) {
    const x = r.x[where];
    if (!x) continue;
    if (!chosen.has(r.row)) {
      behind.push({ x, y: r.mean, mode: "lines", line: { color: ink().pale, width: 1 }, hoverinfo: "skip" });
      continue;
    }
    const colour = tone(r.row), style = chosen.get(r.row), name = plain(D.rows[r.row]);
    const band = r.band === "bootstrap" ? "95 %" : "seeds";
    if (r.seeds.length > 1 || r.band === "bootstrap") {
      traces.push({ x: [...x, ...[...x].reverse()], y: [...r.high, ...[...r.low].reverse()], fill: "toself", fillcolor: veil(colour, alpha), line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
    }
    for (const s of r.seeds) {
      if (!s.x[where]) continue;
      if (r.seeds.length > 1) traces.push({ x: s.x[where], y: s.y, mode: "lines", line: { color: veil(colour, 0.4), width: 0.8 }, hoverinfo: "skip" });
      if (s.diverged) traces.push({ x: s.x[where].slice(-1), y: s.y.slice(-1), mode: "markers", marker: { symbol: "x", size: 9, color: colour }, hovertemplate: name + ", seed " + s.seed + " diverged<extra></extra>" });
    }
    coloured.push({
      x, y: r.mean, mode: panel.rare && x.length <= 40 ? "lines+markers" : "lines", line: { color: colour, width: 2.4, dash: dash(style) }, marker: { size: 6, symbol: symbol(style) },
      customdata: r.low.map((low, i) => [low, r.high[i]]),
      hovertemplate: "<b>" + name + "</b>  %{y:" + form + "}" + unit + "  (" + band + " %{customdata[0]:" + form + "} to %{customdata[1]:" + form + "})<br>at %{x:,.5~g}<extra></extra>",
    });
  }
  paint("curves", [...behind, ...traces, ...coloured], {
    height: few() ? 330 : 430, xaxis: axis({ title: { text: D.axes[where] }, rangemode: "tozero", tickformat: ",.7~g" }),
    yaxis: axis(panel.percent ? percent : {}),
  });
};

DRAW.cost = () => {
  const cost = $("[data-cost]").value;
  const points = D.cost.filter(r => cost in r.mean);
  const traces = points.flatMap(r => {
    const on = chosen.has(r.row), colour = tone(r.row), name = plain(D.rows[r.row]);
    return [
      { x: [r.mean[cost]], y: [r.y], mode: "markers", marker: { size: 10, color: colour, symbol: symbol(chosen.get(r.row) ?? 0) }, error_y: { ...error([r]), color: colour }, hovertemplate: "<b>" + name + "</b>  " + r.y.toFixed(1) + " % (" + span(r) + ")<br>%{x:,.4~g} " + plain(D.costs[cost]) + "<extra></extra>" },
      { x: r.seeds.map(s => s[cost]), y: r.seeds.map(s => s.y), mode: "markers", marker: ring(colour), text: r.seeds.map(s => "seed " + s.seed), hovertemplate: name + ", %{text}: %{y:.1f} %, %{x:,.4~g}<extra></extra>", visible: on },
    ];
  });
  paint("cost", traces, { xaxis: axis({ title: { text: D.costs[cost] }, rangemode: "tozero", tickformat: ",.7~g" }), yaxis: axis({ ...percent, title: { text: few() ? "" : "accuracy on the final test" } }) });
};

DRAW.phases = () => {
  const ticks = names(D.phases.map(p => D.rows[p.row])), places = D.phases.map((_, i) => i);
  const bars = D.phaseNames.map((phase, k) => ({
    type: "bar", orientation: "h", y: places, x: D.phases.map(p => p.mean[k]), name: phase, marker: { color: hue(k) }, text: D.phases.map(p => plain(D.rows[p.row])), textposition: "none",
    hovertemplate: "%{text}: " + phase + " %{x:.3~g} s<extra></extra>",
  }));
  const rings = D.phases.map((p, i) => ({ x: p.seeds.map(s => s[1]), y: p.seeds.map(() => i), mode: "markers", marker: ring(ink().ink), text: p.seeds.map(s => "seed " + s[0]), hovertemplate: "%{text}: %{x:.3~g} s<extra></extra>", showlegend: false }));
  paint("phases", [...bars, ...rings], {
    barmode: "stack", height: 110 + 26 * D.phases.length, showlegend: true, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" }, margin: { l: 56, r: 14, t: few() ? 60 : 34, b: 44 },
    xaxis: axis({ title: { text: "seconds per 1,000 training samples" } }), yaxis: axis({ tickvals: places, ticktext: ticks, range: [D.phases.length - 0.4, -0.6], showgrid: false, fixedrange: true }),
  });
};

DRAW.passes = () => {
  const ks = [...new Set(D.passes.flatMap(p => p.ks))].sort((a, b) => a - b);
  const traces = D.passes.flatMap(p => {
    const on = p.row === null || chosen.has(p.row), colour = tone(p.row), name = plain(p.name);
    const points = p.mean.map((y, i) => ({ y, low: p.low[i], high: p.high[i] }));
    return [
      { x: p.ks, y: p.mean, mode: "lines+markers", line: { color: colour, width: 2.2, dash: p.row === null ? "dot" : dash(chosen.get(p.row) ?? 0) }, marker: { size: 7 }, error_y: { ...error(points), color: colour }, text: points.map(span), hovertemplate: "<b>" + name + "</b>  pass@%{x}: %{y:.1f} % (%{text})<extra></extra>" },
      ...p.seeds.map(([seed, values]) => ({ x: p.ks, y: values, mode: "markers", marker: ring(colour), visible: on, hovertemplate: name + ", seed " + seed + ": %{y:.1f} %<extra></extra>" })),
    ];
  });
  paint("passes", traces, { xaxis: axis({ type: "log", tickvals: ks, ticktext: ks.map(String), title: { text: "k, sampled answers a problem" } }), yaxis: axis(percent) });
};

function chips() {
  const box = $(".chips");
  if (!box) return;
  D.rows.forEach((name, i) => {
    const button = make("button", { type: "button", class: "chip" }, make("i"), name);
    button.addEventListener("click", () => { chosen.has(i) ? chosen.delete(i) : choose(i); redraw(); });
    box.append(button);
  });
  $("[data-all]").addEventListener("click", () => { D.rows.forEach((_, i) => chosen.has(i) || choose(i)); redraw(); });
  $("[data-none]").addEventListener("click", () => { chosen.clear(); redraw(); });
}

function redraw() {
  $$(".chip").forEach((chip, i) => {
    chip.setAttribute("aria-pressed", chosen.has(i));
    chip.style.setProperty("--c", tone(i));
    $("i", chip).style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted" }[dash(chosen.get(i) ?? 0)];
  });
  for (const [name, draw] of Object.entries(DRAW)) if ($("#chart-" + name)) draw();
}
