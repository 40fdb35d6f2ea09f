const $ = (selector, within = document) => [...within.querySelectorAll(selector)];
const percent = (share) => `${(100 * share).toFixed(2)}%`;
const line = (kind, x1, x2, y1, y2) =>
  mark("line", { class: kind, x1: percent(x1), x2: percent(x2), y1, y2 });
const label = (text, x, y, anchor) => mark("text", { x: percent(x), y, "text-anchor": anchor }, text);
const drawing = (kind, says, ...marks) => mark("svg", { class: kind, role: "img", "aria-label": says }, ...marks);

// An effect with its interval; what is cut off at an end of the drawing ends there in an arrow.
function interval(axis, from, to) {
  const place = (value) => Math.min(1, Math.max(0, (value - from) / (to - from)));
  const marks = [line("zero", place(0), place(0), 2, 22), label("0", place(0), 32, "middle")];
  if (axis.bounds) {
    const [low, high] = axis.bounds;
    marks.unshift(mark("rect", { class: "absent", x: 0, width: percent(place(low)), y: 2, height: 20 }),
      mark("rect", { class: "present", x: percent(place(high)), width: percent(1 - place(high)), y: 2, height: 20 }));
    marks.push(line("edge", place(low), place(low), 2, 22), line("edge", place(high), place(high), 2, 22),
      label(number(low), place(low), 32, "middle"), label(number(high), place(high), 32, "middle"));
  }
  const [low, high] = [axis.low ?? from, axis.high ?? to];
  marks.push(line("reach", place(low), place(high), 12, 12));
  if (low < from || axis.low === null) marks.push(mark("text", { class: "beyond", x: 0, y: 18 }, "◂"));
  if (high > to || axis.high === null) marks.push(mark("text", { class: "beyond", x: "100%", y: 18, "text-anchor": "end" }, "▸"));
  if (axis.effect >= from && axis.effect <= to) marks.push(mark("circle", { class: "at", cx: percent(place(axis.effect)), cy: 12, r: 4.5 }));
  return drawing("track", `${number(axis.effect)}, from ${number(axis.low)} to ${number(axis.high)}`, ...marks);
}

function axisRow(name, what, axis) {
  const head = make("div", {}, make("b", {}, name), ` ${what}`);
  if (axis === null) return [head, make("div", { class: "soft" }, "not asked"), make("div", {})];
  const told = [axis.effect === null ? "" : `${number(axis.effect)} [${number(axis.low)}, ${number(axis.high)}], `];
  told.push(`p ${number(axis.p)}`);
  if (axis.settled) told.push(`, absent p ${number(axis.p_absent)}: `, make("b", {}, axis.settled));
  if (axis.why) told.push("; ", make("bdi", { class: "soft" }, axis.why));
  const [low, high] = axis.bounds || [0.25, 0];
  const drawn = axis.effect === null ? make("div", { class: "soft" }, "not measured")
    : interval(axis, -low, Math.max(5 * low, 1.25 * high));
  return [head, drawn, make("div", {}, ...told)];
}

function nullDrawing(control) {
  const { low, high, bars } = control.null;
  const place = (value) => (high > low ? 0.02 + 0.96 * (value - low) / (high - low) : 0.5);
  const [tallest, wide] = [Math.max(...bars), bars.length > 1 ? 0.96 / bars.length : 0.02];
  const left = bars.length > 1 ? 0.02 : 0.49;
  const marks = bars.flatMap((count, at) => (count ? [mark("rect", { class: "bar", x: percent(left + at * wide),
    width: percent(wide), y: 32 - 26 * count / tallest, height: 26 * count / tallest })] : []));
  marks.push(line("frame", 0, 1, 32, 32));
  if (high > low) marks.push(label(number(low), 0.02, 42, "start"), label(number(high), 0.98, 42, "end"));
  else marks.push(label(number(low), 0.5, 42, "middle"));
  if (control.observed !== null) marks.push(line("observed", place(control.observed), place(control.observed), 0, 34));
  const colour = control.survived === null ? "untold" : control.survived ? "survived" : "fell";
  return drawing(`null ${colour}`, `null distribution and observed ${number(control.observed)}`, ...marks);
}

function controlRow(control) {
  const [kind, word] = control.survived === null ? ["few", control.is_test ? "too few draws" : "no test"]
    : control.survived ? ["passed", "survived"] : ["failed", "not survived"];
  const what = control.statistic + (control.larger ? "" : " (smaller speaks for the feature)");
  const named = make("td", {}, make("b", {}, control.control), make("br", {}));
  if (control.finder) named.prepend(make("bdi", {}, control.finder), " · ");
  named.append(make("bdi", {}, what));
  if (control.note) named.append(make("br", {}), make("bdi", { class: "soft" }, control.note));
  const told = [["observed", control.observed], ["p", control.p], ["draws", control.draws]];
  return make("tr", {}, named, make("td", {}, control.null ? nullDrawing(control) : "no draws"),
    ...told.map(([name, value]) => make("td", { class: "number", "data-name": name }, number(value))),
    make("td", { class: "fate" }, make("span", { class: kind }, word)));
}

function controlTable(controls) {
  const head = ["control", "null, and observed (upright line)", "observed", "p", "draws", ""];
  return make("div", { class: "scroll" }, make("table", { class: "controls" },
    make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name)))),
    make("tbody", {}, ...controls.map(controlRow))));
}

function curve(steering) {
  const known = ["on", "off"].map((name) => steering.sizes.map((x, at) => [x, steering[name][at]])
    .filter(([x, y]) => x !== null && y !== null && y !== undefined));
  const points = known.flat();
  if (!points.length) return make("p", { class: "soft" }, "no steering was measured");
  const [xs, ys] = [0, 1].map((which) => points.map((point) => point[which]));
  const ends = (values) => [Math.min(0, ...values), Math.max(0, ...values)];
  const scale = ([low, high], to, back) => (value) => to + (back - to) * (high > low ? (value - low) / (high - low) : 0.5);
  const [x, y] = [scale(ends(xs), 0.12, 0.97), scale(ends(ys), 140, 12)];
  const marks = [line("frame", 0.12, 0.97, y(0), y(0)), mark("line", { class: "frame", x1: percent(x(0)), x2: percent(x(0)), y1: 12, y2: 140 })];
  for (const size of new Set(xs)) marks.push(label(number(size), x(size), 156, "middle"));
  for (const end of new Set(ends(ys))) marks.push(label(number(end), 0.11, y(end) + 4, "end"));
  ["on", "off"].forEach((kind, which) => known[which].forEach(([size, effect], at) => {
    const before = known[which][at - 1];
    if (before) marks.push(line(kind, x(before[0]), x(size), y(before[1]), y(effect)));
    marks.push(mark("circle", { class: kind, cx: percent(x(size)), cy: y(effect), r: 3 },
      mark("title", {}, `${kind} target, size ${number(size)}: ${number(effect)}`)));
  }));
  return make("div", { class: "steering" }, drawing("curve", "effect of steering by its size", ...marks),
    make("div", { class: "soft" }, "by size, in lengths of the direction from label 0 to 1: on target (solid), off target (dashed)"));
}

function detail(told) {
  const lead = [make("b", {}, told.verdict), `, p ${number(told.p)} against ${number(told.threshold)}`];
  if (told.why) lead.push(make("br", {}), make("bdi", {}, told.why));
  if (told.settle) lead.push(make("br", {}), "What would settle it: ", make("bdi", {}, told.settle));
  const axes = [axisRow("r", "found at all", told.r), axisRow("D", "beyond its token", told.axes.D),
    axisRow("W", "beyond null networks", told.axes.W), axisRow("C", "moves the rest", told.axes.C)];
  const parts = [make("p", { class: "lead" }, ...lead), make("div", { class: "axes" }, ...axes.flat()),
    make("p", { class: "soft" }, "Intervals of 95%. In the grey an effect counts as absent, in the green as present; the tests beside decide.")];
  if (told.controls.length) parts.push(make("h3", {}, "Controls"), controlTable(told.controls));
  if (told.steering) parts.push(make("h3", {}, "Steering"), curve(told.steering));
  return parts;
}

const body = $(".features tbody")[0];
const rows = $(".feature");
const opened = new Map();

function toggle(row) {
  const button = $(".open", row)[0];
  const open = button.getAttribute("aria-expanded") !== "true";
  button.setAttribute("aria-expanded", open);
  if (!opened.has(row)) {
    const cell = make("td", { colspan: row.cells.length }, ...detail(data.features[row.dataset.at]));
    opened.set(row, make("tr", { class: "detail" }, cell));
    row.after(opened.get(row));
  }
  opened.get(row).hidden = !open;
}

body.addEventListener("click", (event) => {
  const row = event.target.closest(".feature");
  if (row && (event.target.closest(".open") || String(getSelection()) === "")) toggle(row);
});

const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? null : Number(cell.dataset.value);
};
const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));

// Unknown values stand last both ways; ties keep the order of the audit.
function sort(head, column) {
  const down = head.getAttribute("aria-sort") === "ascending";
  $(".features th").forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = rows.map((row) => [value(row, column), row]);
  keyed.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : (down ? -1 : 1) * compare(a, b)));
  body.append(...keyed.flatMap(([, row]) => (opened.has(row) ? [row, opened.get(row)] : [row])));
}
$(".features th button").forEach((button) =>
  button.addEventListener("click", () => sort(button.closest("th"), Number(button.dataset.column))));

const [text, family] = [document.getElementById("text"), document.getElementById("family")];
const pressed = (kind) => $(`[data-filter="${kind}"][aria-pressed="true"]`).map((button) => button.dataset.value);
const textOf = (row, name) => $(`[data-name="${name}"]`, row)[0].textContent;

function filter() {
  const [verdicts, places, wanted] = [pressed("verdict"), pressed("place"), text.value.toLowerCase()];
  let count = 0;
  for (const row of rows) {
    const told = data.features[row.dataset.at];
    const words = ["feature", "family", "verdict", "place"].map((name) => textOf(row, name)).concat(told.why, told.settle);
    const shown = (!verdicts.length || verdicts.includes(told.verdict)) && words.join("\n").toLowerCase().includes(wanted)
      && (!places.length || places.includes(textOf(row, "place"))) && (!family.value || textOf(row, "family") === family.value);
    row.hidden = !shown;
    const expanded = $(".open", row)[0].getAttribute("aria-expanded") === "true";
    if (opened.has(row)) opened.get(row).hidden = !shown || !expanded;
    count += shown;
  }
  document.getElementById("shown").textContent = `${count} of ${rows.length} shown`;
}

$("[data-filter]").forEach((button) => button.addEventListener("click", () => {
  button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
  filter();
}));
text.addEventListener("input", filter);
family.addEventListener("change", filter);
document.getElementById("clear").addEventListener("click", () => {
  $("[data-filter]").forEach((button) => button.setAttribute("aria-pressed", "false"));
  text.value = family.value = "";
  filter();
});
filter();
const finders = document.getElementById("finders");
if (finders) finders.append(controlTable(data.finders));
