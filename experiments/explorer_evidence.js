// A verdict and what is beneath it: the three axes with their intervals, the controls.
const AXES = { D: "beyond its token", W: "beyond networks that were not trained so", C: "moves the rest of the network" };

function interval(axis) {
  const [low, high] = axis.bounds || [0.25, 0];
  const [from, to] = [-low, Math.max(5 * low, 1.25 * high)];
  const place = (value) => within((value - from) / (to - from));
  const line = (kind, a, b, y1, y2) => mark("line", { class: kind, x1: a, x2: b, y1, y2 });
  const marks = [line("zero", place(0), place(0), 1, 17)];
  if (axis.bounds) marks.push(...axis.bounds.map((bound) => line("edge", place(bound), place(bound), 1, 17)));
  marks.push(line("reach", place(axis.low ?? from), place(axis.high ?? to), 9, 9));
  if (axis.effect >= from && axis.effect <= to) marks.push(mark("circle", { class: "at", cx: place(axis.effect), cy: 9, r: 4 }));
  return mark("svg", { class: "track", "aria-hidden": "true" }, ...marks);
}

function axisRow(name, axis) {
  const head = make("div", {}, make("b", {}, name), ` ${AXES[name]}`);
  if (!axis) return [head, make("div", { class: "soft" }, "not asked"), make("div", {})];
  if (axis.effect === null) return [head, make("div", { class: "soft" }, "not measured"), make("bdi", { class: "soft" }, axis.why)];
  const numbers = make("div", {}, `${number(axis.effect)} [${number(axis.low)}, ${number(axis.high)}]: `, make("b", {}, axis.settled));
  if (axis.why) numbers.append(make("br", {}), make("bdi", { class: "soft" }, axis.why));
  return [head, interval(axis), numbers];
}

function fate(control) {
  const [kind, word] = control.survived === null ? ["few", control.is_test ? "too few draws" : "no test"]
    : control.survived ? ["passed", "survived"] : ["failed", "not survived"];
  return make("td", { class: kind }, word);
}

function controlTable(controls) {
  const head = ["control", "observed", "p", "draws", ""].map((name) => make("th", { scope: "col" }, name));
  const body = controls.map((one) => make("tr", {}, make("td", {}, make("bdi", {}, one.control), make("br", {}),
    make("bdi", { class: "soft" }, one.statistic)), ...["observed", "p", "draws"].map((name) =>
    make("td", { class: "number" }, number(one[name]))), fate(one)));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
}

function evidenceSection(told) {
  if (!told) return section("Verdict", make("p", { class: "soft" }, "not audited: python -m controls audit with --sae and --latents judges it"));
  const lead = make("p", { class: "lead" }, badge(told.verdict), ` p ${number(told.p)} against ${number(told.threshold)}; ${told.place}`);
  for (const [name, text] of [["", told.why], ["What would settle it: ", told.settle]]) {
    if (text) lead.append(make("br", {}), name, make("bdi", {}, text));
  }
  const asked = told.controls.filter((one) => one.survived !== null);
  const kept = asked.filter((one) => one.survived).length;
  const found = make("p", {}, `Found at all: r ${number(told.r.effect)} [${number(told.r.low)}, ${number(told.r.high)}], p ${number(told.r.p)}.`);
  const about = make("p", { class: "soft" }, "Judged on ", make("bdi", {}, told.audit.corpus), `, budget ${told.audit.budget}. Intervals of 95%; below the first dashed line an effect counts as absent, beyond the second as present. `);
  if (told.audit.link) about.append(make("a", { href: told.audit.link }, "The audit's page"));
  const controls = make("details", { class: "controls" }, make("summary", {}, `${kept} of ${asked.length} controls survived`), controlTable(told.controls));
  return section("Verdict", lead, make("div", { class: "axes" }, ...Object.keys(AXES).flatMap((name) => axisRow(name, told.axes[name]))), found, controls, about);
}
