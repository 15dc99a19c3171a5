// An audit's page: small parts, and numbers in words.

/** An element with a class and what is in it: elements and texts; nothing is read as HTML. */
function make(tag, kind, ...inside) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  made.append(...inside.filter((part) => part !== null && part !== undefined && part !== ""));
  return made;
}

function button(kind, does, ...inside) {
  const made = make("button", kind, ...inside);
  made.type = "button";
  if (does) made.dataset.do = does;
  return made;
}

/** A verdict as a chip: its sign, its name, its colour. */
function chip(look, text) {
  const sign = make("i", "", look.sign);
  sign.setAttribute("aria-hidden", "true");
  return make("span", `chip ${look.slug}`, sign, ` ${text === undefined ? look.name : text}`);
}

const known = (value) => value !== null && value !== undefined;

/** "+1.23": three or four digits, the sign always there. */
function nats(value) {
  if (!known(value)) return "–";
  const size = Math.abs(value), digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  return `${value < 0 ? "−" : "+"}${size.toFixed(digits)}`;
}

/** How many times as likely, "×7.4" for 2 nats. */
function times(value) {
  if (!known(value)) return "";
  if (Math.abs(value) >= Math.log(1e6)) return `×10${superscript(Math.round(value / Math.LN10))}`;
  const ratio = Math.exp(value);
  return ratio < 0.01 ? `×1/${two(1 / ratio)}` : `×${two(ratio)}`;
}

/** "+2.00 nats (×7.4)" */
function worth(value) { return `${nats(value)} nats (${times(value)})`; }

function superscript(power) {
  return [...String(power)].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("");
}

/** Two digits that count: "7.4", "0.14", "12,000". */
function two(value) {
  const place = Math.floor(Math.log10(value));
  if (place < 1) return String(Number(value.toFixed(1 - place)));
  const size = 10 ** (place - 1);
  return (Math.round(value / size) * size).toLocaleString("en");
}

/** A p value: two digits, "< .001" below that. */
function chance(value) {
  if (!known(value)) return "–";
  return value < 0.001 ? "< 0.001" : value < 0.1 ? value.toPrecision(2).replace(/0+$/, "") : value.toFixed(2);
}

function plural(count, what) { return `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`; }

/** The colours of scores on light and on dark paper. */
class Shades {
  constructor(palettes) {
    this.papers = ["light", "dark"].map((name) => palettes[name].slice(0, 7).map(
      (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))));
  }
  at(paper, share) {
    const place = (Math.min(1, Math.max(-1, share)) + 1) * 3, low = Math.min(Math.floor(place), 5);
    return this.papers[paper][low].map((a, i) => Math.round(a + (this.papers[paper][low + 1][i] - a) * (place - low)));
  }
  /** A colour of both papers, for a style. */
  colour(share) { return `light-dark(${[0, 1].map((paper) => `rgb(${this.at(paper, share).join(" ")})`).join(", ")})`; }
  /** Black or white, what can be read on it. */
  ink(share) { return `light-dark(${[0, 1].map((paper) => ink(this.at(paper, share))).join(", ")})`; }
  /** From blue to red, with what its ends are. */
  key(end, said) {
    const bar = make("i", "", ""), stops = [-1, -0.67, -0.33, 0, 0.33, 0.67, 1].map((share) => this.colour(share));
    bar.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    return make("div", "key", make("span", "", nats(-end)), bar, make("span", "", nats(end)), make("span", "", said));
  }
}

function ink(colour) {
  const [red, green, blue] = colour.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.179 ? "#fff" : "#000";
}

/** The runs of letters that have the same of everything that `kinds(i)` tells of a letter. */
function runs(length, kinds) {
  const found = [];
  let start = 0, now = length ? kinds(0) : null;
  for (let i = 1; i <= length; i++) {
    const next = i < length ? kinds(i) : null;
    if (next && next.every((kind, k) => kind === now[k])) continue;
    found.push([start, i, ...now]);
    [start, now] = [i, next];
  }
  return found;
}

/** Which of some [start, end) each letter lies in, −1 for none; the first that claims it has it. */
function claimed(length, spans) {
  const owner = new Int32Array(length).fill(-1);
  spans.forEach(([start, end], k) => {
    for (let i = Math.max(0, start); i < Math.min(end, length); i++) if (owner[i] === -1) owner[i] = k;
  });
  return owner;
}
