"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const known = (values) => values.map((value) => (value === null ? NaN : value));
const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

function viridis(share) {
  const at = Math.min(STOPS.length - 2, Math.floor(share * (STOPS.length - 1)));
  const part = share * (STOPS.length - 1) - at;
  return `rgb(${STOPS[at].map((low, i) => Math.round(low + part * (STOPS[at + 1][i] - low))).join()})`;
}

function axis(title, log) {
  return { title: { text: title, font: { size: 12 } }, type: log ? "log" : "linear", gridcolor: css("--line"),
    zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
}

function layout(panel) {
  return { title: { text: panel.title, font: { size: 13 }, x: 0.5 }, height: 320, margin: { l: 50, r: 16, t: 40, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--text"), family: "inherit" },
    hoverlabel: { font: { family: "inherit" } }, legend: { orientation: "h", y: -0.32, font: { size: 11 } } };
}

function curves(series, theory = css("--soft")) {
  const names = [...new Set(series.map((one) => one.name))];
  return series.flatMap((one, at) => {
    const dashed = one.style === "dashed";
    const colour = dashed ? theory : data.colours[names.indexOf(one.name) % data.colours.length];
    const first = one.name !== "" && series.findIndex((other) => other.name === one.name) === at;
    const mode = { line: "lines", dashed: "lines", points: "markers", both: "lines+markers" }[one.style];
    const trace = { x: known(one.x), y: known(one.y), mode, name: one.name, legendgroup: one.name, showlegend: first,
      type: "scatter", line: { color: colour, width: 1.8, dash: dashed ? "dash" : "solid" },
      marker: { color: colour, size: 4 } };
    if (one.low === null) return [trace];
    const edge = { x: known(one.x), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false,
      legendgroup: one.name, type: "scatter" };
    return [{ ...edge, y: known(one.low) },
      { ...edge, y: known(one.high), fill: "tonexty", fillcolor: colour + "33" }, trace];
  });
}

// A legend below the axis title, with as much room as it takes: long names have a line each.
function below(series) {
  const names = [...new Set(series.map((one) => one.name))].filter((name) => name !== "");
  const lines = names.some((name) => name.length > 12) ? names.length : Math.ceil(names.length / 3);
  const bottom = 50 + 20 * lines;
  return { height: 280 + bottom, margin: { ...layout({}).margin, b: bottom },
    legend: { orientation: lines === names.length ? "v" : "h", font: { size: 11 }, x: 0, y: 0, yref: "container",
      yanchor: "bottom" } };
}

function plot(panel) {
  const levels = Object.entries(panel.levels || {});
  const shapes = levels.map(([, y]) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
    line: { color: css("--soft"), width: 1, dash: "dot" } }));
  const annotations = levels.map(([name, y]) => ({ text: name, xref: "paper", x: 1, xanchor: "right", yanchor: "bottom",
    y: panel.log_y ? Math.log10(y) : y, showarrow: false, font: { size: 10, color: css("--soft") } }));
  return [curves(panel.series), { ...layout(panel), ...below(panel.series), shapes, annotations,
    xaxis: axis(panel.x, panel.log_x), yaxis: axis(panel.y, panel.log_y) }];
}

function heatmap(panel) {
  const places = panel.x_at !== null;
  const count = panel.categories.length;
  const trace = { type: "heatmap", z: panel.values, zmin: -panel.limit, zmax: panel.limit,
    colorscale: [[0, "#2166ac"], [0.5, css("--card")], [1, "#b2182b"]], colorbar: { thickness: 10, len: 0.8 } };
  if (places) Object.assign(trace, { x: panel.x_at, y: panel.y_at });
  const chosen = { ...layout(panel), xaxis: axis(panel.x, places), yaxis: axis(panel.y, places) };
  const extra = [];
  if (count) {
    const colour = (at) => data.colours[at % data.colours.length];
    trace.colorscale = panel.categories.flatMap((_, at) => [[at / count, colour(at)], [(at + 1) / count, colour(at)]]);
    Object.assign(trace, { zmin: -0.5, zmax: count - 0.5, showscale: false, hovertemplate: "%{x:.3g}, %{y:.3g}<br>%{text}<extra></extra>",
      text: panel.values.map((row) => row.map((value) => panel.categories[value])) });
    panel.categories.forEach((name, at) => extra.push({ x: [null], y: [null], mode: "markers", name,
      marker: { color: colour(at), symbol: "square", size: 10 } }));
    chosen.showlegend = true;
  }
  if (!places) {
    const [rows, columns] = [panel.values.length, panel.values[0].length];
    const line = { color: css("--text"), width: 1 };
    Object.assign(chosen.yaxis, { autorange: "reversed", constrain: "domain", showticklabels: false, ticks: "" });
    Object.assign(chosen.xaxis, { constrain: "domain", showticklabels: false, ticks: "" });
    if (rows === columns) chosen.yaxis.scaleanchor = "x";
    if (panel.halves) chosen.shapes = [
      { type: "line", x0: -0.5, x1: columns - 0.5, y0: rows / 2 - 0.5, y1: rows / 2 - 0.5, line },
      { type: "line", y0: -0.5, y1: rows - 0.5, x0: columns / 2 - 0.5, x1: columns / 2 - 0.5, line }];
  }
  return [[trace, ...extra, ...curves(panel.lines, count ? "#f2c200" : css("--text"))], chosen];
}

function arrows(panel) {
  const traces = panel.ends.map(([x, y], at) => {
    const colour = data.colours[(panel.groups[at] || 0) % data.colours.length];
    return { x: [0, x], y: [0, y], mode: "lines+markers", type: "scatter", showlegend: false, line: { color: colour, width: 2.5 },
      marker: { color: colour, symbol: "arrow", angleref: "previous", size: [0, 11], line: { width: 0 } }, name: `feature ${at}` };
  });
  const limit = 1.15 * Math.max(1, ...panel.ends.flat().map(Math.abs));
  const bare = { range: [-limit, limit], showgrid: false, zeroline: true, zerolinecolor: css("--line"), showticklabels: false };
  return [traces, { ...layout(panel), margin: { l: 10, r: 10, t: 40, b: 10 }, height: 260, xaxis: { ...bare, constrain: "domain" },
    yaxis: { ...bare, scaleanchor: "x" } }];
}

function stack(panel) {
  const parts = panel.values[0].length;
  const traces = Array.from({ length: parts }, (_, part) => ({ type: "bar", y: panel.values.map((bar) => bar[part]),
    name: `${panel.part} ${part}`, marker: { color: viridis(parts > 1 ? part / (parts - 1) : 0) }, showlegend: false }));
  return [traces, { ...layout(panel), barmode: "stack", xaxis: axis(panel.x, false),
    yaxis: axis(`${panel.y}, by ${panel.part}`, false) }];
}

// Plotly reads tags, entities and formulas in texts; tokens are shown as they are.
const MARKUP = { "&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;" };
const shown = (text) => text.replace(/[&<>$]/g, (sign) => MARKUP[sign]);

function scatter(panel) {
  const groups = panel.groups.length ? panel.groups : panel.points.map(() => 0);
  const traces = [...new Set(groups)].sort((a, b) => a - b).map((group) => {
    const members = panel.points.map((_, at) => at).filter((at) => groups[at] === group);
    const colour = data.colours[group % data.colours.length];
    return { x: known(members.map((at) => panel.points[at][0])), y: known(members.map((at) => panel.points[at][1])),
      text: members.map((at) => shown(panel.hover[at])), hovertemplate: "%{text}<extra></extra>", type: "scatter",
      mode: panel.written ? "markers+text" : "markers", textposition: "top center", textfont: { size: 11 }, cliponaxis: false,
      name: panel.categories.length ? shown(panel.categories[group]) : "", showlegend: panel.categories.length > 0,
      marker: { color: colour, size: panel.points.length > 200 ? 4.5 : 8, opacity: 0.85 } };
  });
  if (panel.joined) {
    const ring = [...panel.points, panel.points[0]];
    traces.unshift({ x: ring.map((point) => point[0]), y: ring.map((point) => point[1]), mode: "lines", type: "scatter",
      hoverinfo: "skip", showlegend: false, line: { color: css("--soft"), width: 1 } });
  }
  const bare = (title) => ({ ...axis(title, false), showticklabels: false, showgrid: false, zeroline: false });
  return [traces, { ...layout(panel), height: panel.points.length > 200 ? 440 : 360, hovermode: "closest",
    legend: { orientation: "h", y: -0.1, font: { size: 11 }, itemsizing: "constant" }, xaxis: bare(panel.x),
    yaxis: { ...bare(panel.y), scaleanchor: "x" } }];
}

const KINDS = { plot, heatmap, arrows, stack, scatter };
const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

function draw(element) {
  const panel = data.figures[element.dataset.figure].panels[element.dataset.panel];
  Plotly.react(element, ...KINDS[panel.kind](panel), settings);
  element.dataset.drawn = "yes";
}

const panels = [...document.querySelectorAll(".panel")];
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "600px" });
panels.forEach((panel) => seen.observe(panel));

// Figures take their colours from the page, so a change of theme and a print draw them anew.
const redraw = () => panels.filter((panel) => panel.dataset.drawn).forEach(draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("beforeprint", () => panels.forEach(draw));
