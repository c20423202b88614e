// How pictures look: by the reader's light or dark, and light on paper.
const DASHES = ["solid", "dash", "dot"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross"];
// hues that the common colour-vision deficiencies keep apart (after Okabe and Ito), each dark or light enough for its paper
const HUES = {
  light: ["#0072b2", "#d0500a", "#00855f", "#a8518a", "#b07a00", "#3d94c9", "#3f3f3f"],
  dark: ["#5db4ee", "#ff8f56", "#35cb9e", "#e49cc9", "#e7bc4f", "#a9d6f5", "#d0d0d0"],
};
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

const scheme = () => (dark.matches && !printing ? "dark" : "light");
const hue = i => HUES[scheme()][i % HUES[scheme()].length];
const dash = i => DASHES[Math.floor(i / HUES.light.length) % DASHES.length];
const symbol = i => SYMBOLS[Math.floor(i / HUES.light.length) % SYMBOLS.length];
const variable = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const veil = (colour, alpha) => "rgba(" + [1, 3, 5].map(i => parseInt(colour.slice(i, i + 2), 16)).join(",") + "," + alpha + ")";

function ink() {
  if (!printing) return { ink: variable("ink"), faint: variable("faint"), grid: variable("grid"), pale: variable("pale"), panel: variable("panel"), margin: variable("margin") };
  return { ink: "#1c2430", faint: "#5b6675", grid: "#e8ebef", pale: "#c3cad3", panel: "#f6f7f9", margin: "rgba(90,105,125,.13)" };
}

function axis(more = {}) {
  const { grid, faint } = ink();
  return { gridcolor: grid, zeroline: false, linecolor: faint, automargin: true, fixedrange: false, ...more };
}

function layout(more = {}) {
  const { ink: text, faint, panel, grid } = ink();
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, hovermode: "closest", dragmode: touch ? false : "zoom", separators: ".,",
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12.5, color: text },
    hoverlabel: { bgcolor: panel, bordercolor: grid, font: { color: text }, align: "left", namelength: -1 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: faint, activecolor: text },
    margin: { l: 56, r: 14, t: 14, b: 44 }, height: 380, ...more,
  };
}

// under a finger a picture must not take the gesture that scrolls the page
const touch = !matchMedia("(hover: hover)").matches;
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: touch ? false : "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

function paint(id, traces, shape) {
  const node = $("#chart-" + id + " .plot");
  const width = printing ? { width: 660, autosize: false } : { autosize: true };
  return Plotly.react(node, traces, { ...layout(shape), ...width }, CONFIG);
}
