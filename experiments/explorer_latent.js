// A latent's page.
const FACTS = ["density", "l0_share", "max", "mean", "fvu", "kurtosis", "cosine"];

function facts(latent) {
  const known = FACTS.filter((metric) => data.columns[metric]);
  return make("dl", { class: "tiles" }, ...known.map((metric) =>
    make("div", {}, make("dt", {}, METRICS[metric]), make("dd", {}, told(latent, metric)))));
}

function coloured(text, value, highest, best) {
  const shown = token(text, false);
  shown.classList.toggle("best", best);
  shown.style.setProperty("--on", highest > 0 ? Math.max(0, value) / highest : 0);
  if (value > 0) shown.title = number(value);
  return shown;
}

function context(one, highest) {
  const line = one.tokens.map((text, i) => coloured(text, one.values[i], highest, i === one.at));
  const place = data.alone ? `token ${one.document}` : `document ${one.document}, token ${one.position}`;
  return make("li", {}, make("span", { class: "peak" }, number(one.values[one.at])),
    make("span", { class: "text" }, ...line), make("span", { class: "soft where" }, place, one.held_out ? ", held out" : ""));
}

function contextSection(latent, page) {
  if (!page.contexts.length) return section("Top contexts", make("p", { class: "soft" }, `never on in ${data.rows.toLocaleString("en")} rows`));
  const highest = data.columns.max[latent];
  return section(data.alone ? "Top tokens" : "Top contexts", make("ol", { class: "contexts" }, ...page.contexts.map((one) => context(one, highest))));
}

function histogram(latent, page) {
  const heights = page.bars.map((count) => Math.log1p(count));
  const tallest = Math.max(...heights, 1e-9);
  const wide = 100 / page.bars.length;
  const bars = heights.map((height, place) => mark("rect", { class: "bar", x: `${place * wide}%`, width: `${0.9 * wide}%`,
    y: 80 - 76 * height / tallest, height: 76 * height / tallest }, mark("title", {}, `${page.bars[place]} rows`)));
  const total = page.bars.reduce((sum, count) => sum + count, 0);
  const ends = make("div", { class: "ends soft" }, make("span", {}, "0"), make("span", {}, number(data.columns.max[latent])));
  return section("Activation density", mark("svg", { class: "histogram", role: "img", "aria-label": `histogram of ${total} values` },
    ...bars), ends, make("p", { class: "soft" }, `on in ${total.toLocaleString("en")} of ${data.rows.toLocaleString("en")} rows; heights by the logarithm of the count`));
}

function effectList(name, pairs, largest) {
  const lines = pairs.map(([text, effect]) => {
    const bar = make("span", { class: `effect ${effect > 0 ? "up" : "down"}` });
    bar.style.width = within(Math.abs(effect) / largest);
    return make("li", {}, token(text), make("span", { class: "number" }, number(effect)), make("span", { class: "rail" }, bar));
  });
  return make("div", {}, make("h3", {}, name), make("ol", { class: "effects" }, ...lines));
}

function logitSection(page) {
  if (!page.logits) return section("Logit effects", make("p", { class: "soft" }, "not computed: these rows are not known to be added to what the unembedding reads"));
  const largest = Math.max(...[...page.logits.raised, ...page.logits.lowered].map(([, effect]) => Math.abs(effect)), 1e-9);
  return section("Logit effects", make("div", { class: "two" }, effectList("raised", page.logits.raised, largest),
    effectList("lowered", page.logits.lowered, largest)), make("p", { class: "soft" }, data.logits));
}

function nearList(name, pairs) {
  const lines = pairs.map(([other, near]) => make("li", {}, make("a", { href: `#${other}` }, `#${other}`),
    make("span", { class: "number" }, number(near)), make("span", { class: "words" }, ...tokens(data.tokens[other]))));
  return make("div", {}, make("h3", {}, name), lines.length ? make("ol", { class: "near" }, ...lines) : make("p", { class: "soft" }, "none"));
}

function nearSection(page) {
  return section("Nearest latents", make("div", { class: "two" }, nearList("by the cosine of decoder rows", page.direction),
    nearList("by being on together (Jaccard)", page.company)));
}

function show(latent, page, evidence) {
  const held = document.activeElement;
  const inside = at("page").contains(held), again = inside && held.classList.contains("step") ? held.getAttribute("aria-label") : null;
  const step = (label, sign, by) => {
    const button = make("button", { class: "step", "aria-label": label, title: label }, sign);
    button.addEventListener("click", () => go(beside(by)));
    return button;
  };
  const leave = make("button", { class: "leave" }, "← all latents");
  leave.addEventListener("click", close);
  const head = make("header", {}, leave, make("h1", {}, `Latent ${latent}`), ...(evidence ? [badge(evidence.verdict)] : []),
    make("span", { class: "steps" }, step("previous latent (k)", "‹", -1), step("next latent (j)", "›", 1)));
  at("page").replaceChildren(head, facts(latent), make("div", { class: "columns" }, make("div", {}, contextSection(latent, page),
    logitSection(page), evidenceSection(evidence)), make("div", {}, histogram(latent, page), mapSection(latent), nearSection(page))));
  at("page").scrollTop = 0;
  // What had the keyboard's focus is gone with the page before.
  if (inside) (again ? at("page").querySelector(`[aria-label="${again}"]`) : at("page")).focus({ preventScroll: true });
}
