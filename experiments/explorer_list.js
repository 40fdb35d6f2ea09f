// The list: which latents are shown, in which order, and the few rows of it that are on the screen.
const ROW = 54;
const SPARE = 6;
const METRICS = { number: "number", density: "density", max: "largest value", mean: "mean when on",
  l0_share: "share of L0", fvu: "FVU added without it", kurtosis: "kurtosis of logits",
  cosine: "cosine to nearest", verdict: "verdict" };
const SHARES = new Set(["density", "l0_share"]);
const NONE = "not audited";

const all = Array.from({ length: data.width }, (_, latent) => latent);
const verdictOf = (latent) => data.verdicts[latent] || NONE;
const [list, rows, find, sort, way, chips] = ["list", "rows", "find", "sort", "way", "chips"].map(at);
const state = { order: all, open: null, down: false };
const words = [];

function wordsOf(latent) {
  words[latent] ??= [...data.tokens[latent], ...(data.raised[latent] || [])].join("\n").toLowerCase();
  return words[latent];
}

function value(latent, metric) {
  if (metric === "number") return latent;
  if (metric !== "verdict") return data.columns[metric][latent];
  const kind = data.kinds.indexOf(verdictOf(latent));
  return kind < 0 ? null : kind;
}
const told = (latent, metric) => (SHARES.has(metric) ? percent : number)(value(latent, metric));

// The number that was asked for stands first, unknown values last both ways; ties keep the order of numbers.
function sorted(latents, wanted) {
  const metric = sort.value;
  const keyed = latents.map((latent) => [value(latent, metric), latent]);
  const named = (latent) => String(latent) === wanted.replace("#", "");
  const compare = ([a, i], [b, j]) => named(j) - named(i) || (a === null || b === null
    ? (a === null) - (b === null) : (state.down ? b - a : a - b)) || i - j;
  return keyed.sort(compare).map(([, latent]) => latent);
}

function matches(latent, wanted, kinds) {
  if (kinds.length && !kinds.includes(verdictOf(latent))) return false;
  if (!wanted) return true;
  if (/^#\d+$/.test(wanted)) return `#${latent}` === wanted;
  return (/^\d+$/.test(wanted) && String(latent).startsWith(wanted)) || wordsOf(latent).includes(wanted);
}

function arrange() {
  const kinds = [...chips.querySelectorAll('[aria-pressed="true"]')].map((chip) => chip.dataset.value);
  const wanted = find.value.toLowerCase();
  state.order = sorted(all.filter((latent) => matches(latent, wanted, kinds)), wanted);
  at("shown").textContent = `${state.order.length.toLocaleString("en")} of ${data.width.toLocaleString("en")} latents`;
  rows.style.height = `${state.order.length * ROW}px`;
  way.textContent = state.down ? "↓" : "↑";
  list.scrollTop = 0;
  draw();
}

function row(latent, place) {
  const open = latent === state.open;
  const metric = ["number", "verdict", "density"].includes(sort.value) ? "density" : sort.value;
  const head = make("div", { class: "head" }, make("b", {}, `#${latent}`));
  if (verdictOf(latent) !== NONE) head.append(badge(verdictOf(latent)));
  head.append(make("span", { class: "soft value" }, `${METRICS[metric]} ${told(latent, metric)}`));
  const drawn = make("div", { class: "row", role: "option", id: `row-${latent}`, "aria-selected": open, "aria-posinset": place + 1,
    "aria-setsize": state.order.length, "data-latent": latent }, head, make("div", { class: "words" },
    ...(data.tokens[latent].length ? tokens(data.tokens[latent]) : [make("span", { class: "soft" }, "never on")])));
  drawn.style.top = `${place * ROW}px`;
  return drawn;
}

function draw() {
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
  const last = Math.min(state.order.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
  rows.replaceChildren(...state.order.slice(first, last).map((latent, place) => row(latent, first + place)));
  if (at(`row-${state.open}`)) list.setAttribute("aria-activedescendant", `row-${state.open}`);
  else list.removeAttribute("aria-activedescendant");
}

// The row of the open latent comes into view, by as little as it takes.
function reveal() {
  const place = state.order.indexOf(state.open);
  if (place >= 0) list.scrollTop = Math.min(place * ROW, Math.max(list.scrollTop, (place + 1) * ROW - list.clientHeight));
  draw();
}

function beside(step) {
  const place = state.order.indexOf(state.open);
  return state.order[place < 0 ? 0 : Math.min(state.order.length - 1, Math.max(0, place + step))];
}

function prepare() {
  const has = (metric) => metric === "number" || (metric === "verdict" ? Object.keys(data.verdicts).length : data.columns[metric]);
  for (const [metric, name] of Object.entries(METRICS)) if (has(metric)) sort.append(make("option", { value: metric }, name));
  const counts = new Map([...data.kinds, NONE].map((kind) => [kind, 0]));
  for (const latent of all) counts.set(verdictOf(latent), counts.get(verdictOf(latent)) + 1);
  for (const [kind, count] of counts) {
    if (count) chips.append(make("button", { class: "chip", "aria-pressed": "false", "data-value": kind },
      make("i", { class: kind === NONE ? "none" : kind }), `${kind} `, make("b", {}, count.toLocaleString("en"))));
  }
  if (counts.get(NONE) === data.width) chips.replaceChildren(make("span", { class: "soft" },
    "No audit of this SAE lies in the runs folder: no verdicts."));
  chips.addEventListener("click", (event) => {
    const chip = event.target.closest(".chip");
    if (!chip) return;
    chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
    arrange();
  });
  find.addEventListener("input", arrange);
  sort.addEventListener("change", () => { state.down = !["number", "verdict"].includes(sort.value); arrange(); });
  way.addEventListener("click", () => { state.down = !state.down; arrange(); });
  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
}
