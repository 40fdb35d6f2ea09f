const at = (id) => document.getElementById(id);
const percent = (share) => (share === null ? "–" : `${number(100 * share)}%`);
const within = (share) => `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;

// What shows nothing, or moves what stands beside it: controls, direction marks, joiners, halves of pairs, fillers.
const UNSEEN = /[\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\u{e0100}-\u{e01ef}]|(?! )\p{Zs}/u;
const NAMED = { "\n": "↵", "\r": "␍", "\t": "⇥", "\u007f": "␡" };

function seen(sign) {
  if (NAMED[sign]) return NAMED[sign];
  const code = sign.codePointAt(0);
  return code < 32 ? String.fromCharCode(0x2400 + code) : `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

// A token alone in its direction of writing. `spaces` shows each as a mark; without it only those of a blank token.
function token(text, spaces = true) {
  const shown = make("bdi", { class: "token", dir: "ltr" });
  const blank = spaces || /^ *$/.test(text);
  let plain = /^\p{M}/u.test(text) ? "◌" : "";
  const flush = () => { if (plain) shown.append(plain); plain = ""; };
  for (const sign of text) {
    if (sign === " " && blank) { flush(); shown.append(make("span", { class: "mark" }, "␣")); }
    else if (UNSEEN.test(sign)) { flush(); shown.append(make("span", { class: "mark" }, seen(sign))); }
    else plain += sign;
  }
  flush();
  if (!text) shown.append(make("span", { class: "mark" }, "∅"));
  return shown;
}

const tokens = (texts) => texts.flatMap((text) => [token(text), " "]);
const badge = (verdict) => make("span", { class: "badge" }, make("i", { class: verdict }), verdict);
const section = (title, ...children) => make("section", {}, make("h2", {}, title), ...children);
