// The pictures of a study of one knob: the group size, the KL coefficient.
function family(one, at, i, more = {}) {
  const points = one.points.filter(p => at(p) !== undefined && at(p) !== null), colour = hue(i);
  return [
    { x: points.map(at), y: points.map(p => p.y), mode: "lines+markers+text", text: points.map(p => (more.label ? plain(p.value) : "")), textposition: "top right", name: plain(one.name), line: { color: colour, width: 1.4 }, marker: { size: 9 }, error_y: { ...error(points), color: colour },
      customdata: points.map(p => [plain(p.label), span(p)]), hovertemplate: "<b>%{customdata[0]}</b>  %{y:.1f} % (%{customdata[1]})<extra></extra>" },
    ...points.map(p => ({ x: p.seeds.map(s => (more.of ? s[more.of] : at(p))), y: p.seeds.map(s => s.y), mode: "markers", marker: ring(colour), showlegend: false, text: p.seeds.map(s => "seed " + s.seed), hovertemplate: plain(p.label) + ", %{text}: %{y:.1f} %<extra></extra>" })),
  ];
}

const below = several => ({ showlegend: several, legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom" }, margin: { l: 56, r: 14, t: several ? 60 : 14, b: 44 } });
const sizes = () => [...new Set(D.groups.families.flatMap(f => f.points.map(p => p.value)))].sort((a, b) => a - b);
const bySize = () => axis({ type: "log", tickvals: sizes(), ticktext: sizes().map(String), title: { text: "group size G" } });

DRAW.signal = () => {
  const traces = D.groups.families.flatMap((one, i) => [["first", "solid", "first step"], ["last", "dash", "last fifth"]].flatMap(([what, style, words]) => {
    const points = one.points.filter(p => what in p.mean), colour = hue(i);
    return [
      { x: points.map(p => p.value), y: points.map(p => 100 * p.mean[what]), mode: "lines+markers", line: { color: colour, dash: style, width: 2 }, marker: { size: 8 }, name: plain(one.name) + ": " + words, hovertemplate: "G = %{x}: %{y:.1f} %, " + words + "<extra></extra>" },
      ...points.map(p => ({ x: p.seeds.map(() => p.value), y: p.seeds.map(s => 100 * s[what]), mode: "markers", marker: ring(colour), showlegend: false, hoverinfo: "skip" })),
    ];
  }));
  for (const e of D.groups.expected)
    traces.push({ x: e.x, y: e.y, mode: "lines+markers", line: { color: ink().ink, dash: "dot", width: 2 }, marker: { symbol: "x", size: 8 }, name: "p^G + (1 − p)^G, " + plain(e.name), hovertemplate: "expected at G = %{x}: %{y:.1f} %<extra></extra>" });
  paint("signal", traces, { ...below(true), xaxis: bySize(), yaxis: axis({ ...percent, rangemode: "tozero" }) });
};

DRAW.groups = () => paint("groups", D.groups.families.flatMap((one, i) => family(one, p => p.value, i)), { ...below(D.groups.families.length > 1), xaxis: bySize(), yaxis: axis(percent) });

DRAW.kl = () => {
  const what = $("[data-drift]").value, words = $("[data-drift]").selectedOptions[0].textContent;
  const values = [...new Set(D.kl.flatMap(f => f.points.map(p => p.value)))].sort((a, b) => a - b);
  // coefficients are spread over decades and begin at 0: evenly spaced in their order
  const at = what === "value" ? p => values.indexOf(p.value) : p => p.mean[what];
  const x = what === "value" ? { tickvals: values.map((_, i) => i), ticktext: values.map(String) } : { rangemode: "tozero" };
  const traces = D.kl.flatMap((one, i) => family(one, at, i, what === "value" ? {} : { of: what, label: true }));
  paint("kl", traces, { ...below(D.kl.length > 1), xaxis: axis({ title: { text: words }, ...x }), yaxis: axis(percent) });
};
