// Which latent is open, fetching its chunk, the keyboard.
const chunks = new Map();

function arrived(chunk, pages, evidence) {
  chunks.set(chunk, { pages, evidence });
  if (state.open !== null && Math.floor(state.open / data.per_chunk) === chunk) fill();
}
globalThis.arrived = arrived;

function fill() {
  const { pages, evidence } = chunks.get(Math.floor(state.open / data.per_chunk));
  show(state.open, pages[state.open % data.per_chunk], evidence[state.open]);
}

function fetchChunk(chunk) {
  const name = `chunk-${String(chunk).padStart(3, "0")}.js`;
  const script = make("script", { src: name, "data-chunk": chunk });
  const failed = () => {
    script.remove();
    if (Math.floor(state.open / data.per_chunk) !== chunk) return;
    at("page").replaceChildren(make("p", { class: "failed" }, `${name} cannot be read: it belongs beside this page. Run python -m experiments report again.`));
  };
  script.addEventListener("error", failed);
  script.addEventListener("load", () => { if (!chunks.has(chunk)) failed(); });
  document.head.append(script);
}

function open(latent) {
  state.open = latent;
  document.title = `#${latent} · ${at("side").querySelector("h1").textContent}`;
  const chunk = Math.floor(latent / data.per_chunk);
  if (chunks.has(chunk)) fill();
  else if (!document.querySelector(`[data-chunk="${chunk}"]`)) fetchChunk(chunk);
  reveal();
}

// Keys and buttons leave no trail in the browser's history; links do.
const go = (latent) => { if (latent !== undefined) location.replace(`#${latent}`); };
function close() {
  document.body.classList.remove("one");
  list.focus();
  reveal();
}

function follow() {
  const named = location.hash.slice(1);
  const known = /^\d+$/.test(named) && Number(named) < data.width;
  document.body.classList.toggle("one", known);
  if (known) open(Number(named));
  else if (state.open === null && data.width) open(state.order[0]);
}

const STEPS = { j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 };

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === find && event.key === "Enter") go(state.order[0]);
  else if (event.key === "Escape") escape();
  else if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
  else if (event.key === "/") { document.body.classList.remove("one"); find.focus(); find.select(); }
  else if (event.key in STEPS && (list.contains(event.target) || !event.key.match(/Up|Down/))) go(beside(STEPS[event.key]));
  else return;
  event.preventDefault();
}

function escape() {
  if (document.activeElement === find && find.value) { find.value = ""; arrange(); }
  else if (document.activeElement === find) find.blur();
  else close();
}

prepare();
arrange();
list.addEventListener("click", (event) => {
  const chosen = event.target.closest(".row");
  if (chosen) { location.hash = chosen.dataset.latent; document.body.classList.add("one"); }
});
at("skip").addEventListener("click", (event) => { event.preventDefault(); at("page").focus(); });
addEventListener("keydown", key);
addEventListener("hashchange", follow);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.querySelectorAll(".map").forEach(drawMap));
follow();
