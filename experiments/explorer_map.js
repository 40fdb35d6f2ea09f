// The map: every latent a point; the open one stands out, a click opens the nearest.
const colours = getComputedStyle(document.documentElement);
const PAD = 14;

function scales(canvas) {
  const along = (values, size) => {
    const known = values.filter((value) => value !== null);
    const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    return (value) => PAD + (size - 2 * PAD) * (high > low ? (value - low) / (high - low) : 0.5);
  };
  const [x, y] = [along(data.columns.x, canvas.clientWidth), along(data.columns.y, canvas.clientHeight)];
  return (latent) => [x(data.columns.x[latent]), canvas.clientHeight - y(data.columns.y[latent])];
}

function drawMap(canvas) {
  if (!canvas.clientWidth) return;
  const sharp = devicePixelRatio || 1;
  [canvas.width, canvas.height] = [canvas.clientWidth * sharp, canvas.clientHeight * sharp];
  const [pen, place] = [canvas.getContext("2d"), scales(canvas)];
  pen.scale(sharp, sharp);
  const dot = (latent, radius, colour) => {
    const [x, y] = place(latent);
    pen.fillStyle = colours.getPropertyValue(colour).trim();
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fill();
  };
  pen.globalAlpha = 0.5;
  for (const latent of all) dot(latent, data.width > 2000 ? 1.3 : 2, "--soft");
  pen.globalAlpha = 1;
  for (const latent of Object.keys(data.verdicts)) dot(latent, 3.5, `--${data.verdicts[latent]}`);
  dot(state.open, 7, "--card");
  dot(state.open, 5.5, "--link");
}

function nearest(canvas, event) {
  const place = scales(canvas);
  const box = canvas.getBoundingClientRect();
  const [px, py] = [event.clientX - box.left, event.clientY - box.top];
  const away = (latent) => { const [x, y] = place(latent); return (x - px) ** 2 + (y - py) ** 2; };
  const best = all.reduce((found, latent) => (away(latent) < found[0] ? [away(latent), latent] : found), [400, null]);
  return best[1];
}

function mapSection(latent) {
  const canvas = make("canvas", { class: "map", role: "img", "aria-label": `map of the latents, ${latent} marked` });
  const says = make("p", { class: "soft says" }, data.map, ". Point at a latent to see its tokens, click to open it.");
  canvas.addEventListener("mousemove", (event) => {
    const near = nearest(canvas, event);
    if (near !== null) says.replaceChildren(make("b", {}, `#${near} `), ...tokens(data.tokens[near]));
  });
  canvas.addEventListener("click", (event) => {
    const near = nearest(canvas, event);
    if (near !== null) location.hash = near;
  });
  new ResizeObserver(() => drawMap(canvas)).observe(canvas);
  return section("Map", canvas, says);
}
