// Texts, and elements with texts. Keys are untrusted: they only ever become the text of an element.

const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0\u2800]/u;
const MARK = /[\p{Mn}\p{Me}]/u;
const MARKS = 4; // the most combining marks of one letter; a hundred would cover the lines above and below

/** Return a text with escapes for invisible characters, changes of direction and piles of combining marks. */
function visible(text) {
  if (/^[\x20-\x7e]*$/.test(text)) return text;
  let marks = 0;
  let shown = "";
  for (const char of text) {
    marks = MARK.test(char) ? marks + 1 : 0;
    shown += HIDDEN.test(char) || marks > MARKS ? spelled(char) : char;
  }
  return shown;
}

const SHORT = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

function spelled(char) {
  if (char in SHORT) return SHORT[char];
  const code = char.codePointAt(0);
  if (code < 0x100) return `\\x${code.toString(16).padStart(2, "0")}`;
  if (code < 0x10000) return `\\u${code.toString(16).padStart(4, "0")}`;
  return `\\U${code.toString(16).padStart(8, "0")}`;
}

function scaled(number, units, plain) {
  if (number < 1000) return `${number} ${plain}`.trim();
  let unit = 0;
  while (Math.round(number * 10) / 10 >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return `${number.toFixed(1)} ${units[unit]}`;
}

/** A size in decimal units: 42.1 MB. */
const bytesText = (number) => scaled(number, ["B", "kB", "MB", "GB", "TB", "PB"], "B");

/** A number of elements: 37.4 k, 8.1 M. */
const countText = (number) => scaled(number, ["", "k", "M", "B", "T", "Q"], "");

/** The CSS class of each result of a check. */
const STATUS = { PASS: "good", WARN: "warn", FAIL: "bad", "NOT RUN": "quiet" };

const grouped = (number) => number.toLocaleString("en-US").replaceAll(",", "\u202f");

const plural = (number, noun) => `${grouped(number)} ${noun}${number === 1 ? "" : "s"}`;

const shapeText = (shape) => `(${shape.join(", ")})`;

/** Return a share in percent; as on the terminal, only the whole is 100 %, and only nothing is 0 %. */
function percent(part, whole) {
  if (!whole) return "";
  if (part <= 0 || part >= whole) return part <= 0 ? "0 %" : "100 %";
  const share = (100 * part) / whole;
  if (share < 0.05 || share >= 99.5) return share < 0.05 ? "<0.1 %" : ">99 %";
  return `${share.toFixed(share < 9.95 ? 1 : 0)} %`;
}

/** Return a share in percent with two digits, without the sign %, for tables: 0.52, 3, 47. */
function percentText(value) {
  if (value === Infinity) return "new"; // all values were zeros before
  const share = 100 * value;
  if (share === 0) return "·";
  if (share < 0.01) return "<0.01";
  return share < 10 ? String(Number(share.toPrecision(2))) : share < 1e5 ? String(Math.round(share)) : share.toExponential(0).replace("e+", "e");
}

/** Return a relative change in words. */
function changeText(change) {
  if (change === null) return "has none";
  if (Number.isNaN(change)) return "not measured";
  if (change === 0) return "unchanged";
  return change === Infinity ? "from zeros to other values" : `${percentText(change)} % of the norm`;
}

/** Return a number with all its digits; integers in groups of three. */
function exactText(value) {
  if (value === null) return "none";
  return Number.isInteger(value) && Math.abs(value) < 1e15 ? grouped(value) : String(value);
}

/** Return "at least " if the headers give only a lower bound of the number of parameters, else ''. */
const atLeast = (source) => (source.counted ? "" : "at least ");

/** Parameters in words: 37.4 k parameters. */
const parametersText = (number) => `${countText(number)} parameter${number === 1 ? "" : "s"}`;

/** Return a number with at most four significant digits. */
function figureText(value) {
  if (value === null || value === undefined) return "none";
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

/** Return an element: el("p.note", {title: "x"}, "text", otherElement). Strings become text, never HTML. */
function el(name, given = {}, ...children) {
  const [tag, ...classes] = name.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [property, value] of Object.entries(given)) {
    if (property.startsWith("on")) made.addEventListener(property.slice(2), value);
    else if (property in made && !property.includes("-")) made[property] = value;
    else made.setAttribute(property, value);
  }
  for (const child of children) {
    if (typeof child === "string") made.append(visible(child));
    else if (child !== null && child !== undefined) made.append(child);
  }
  return made;
}

/** Return an element with a name from a checkpoint, written from left to right whatever surrounds it. */
const nameElement = (text, css = "bdi.name") =>
  el(css, { dir: "ltr" }, text.trim() === "" ? `"${visible(text)}"` : visible(text));

const SVG = "http://www.w3.org/2000/svg";

/** Return an SVG element with its attributes. */
function drawn(tag, given = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(given)) made.setAttribute(name, visible(String(value)));
  made.append(...children);
  return made;
}

/** Return the property ``name`` that an object has itself, not one that it inherits; else ``other``. */
const own = (things, name, other) => (Object.hasOwn(things, name) ? things[name] : other);

const $ = (id) => document.getElementById(id);
