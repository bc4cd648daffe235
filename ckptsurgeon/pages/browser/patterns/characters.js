// Characters and classes in a regular expression of Python's, spelled out for JavaScript's.

const PYTHON_SETS = {
  w: "\\p{L}\\p{N}_",
  d: "\\p{Nd}",
  s: "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000",
};
const ASCII_SETS = { w: "A-Za-z0-9_", d: "0-9", s: "\\t-\\r\\x20" };
const CATEGORIES = "dDsSwW";
const CONTROLS = { a: 7, b: 8, f: 12, n: 10, r: 13, t: 9, v: 11, "\\": 92 };
const ANY_CHARACTER = "\\p{Any}"; // engines of 2023 misread [^] under the flag v

const unicodeEscape = (code) => `\\u{${code.toString(16)}}`;
const setOf = (letter, mode) => (mode.a ? ASCII_SETS : PYTHON_SETS)[letter.toLowerCase()];
const categoryClass = (letter, mode) => `[${letter < "a" ? "^" : ""}${setOf(letter, mode)}]`;

/** What stands in a class for the characters of a range, and for those that are the same but for case. */
function rangeOf(reader, low, high, mode) {
  if (mode.i && high > 0xffff) reader.cannot("characters beyond U+FFFF whose case does not count");
  const others = mode.i ? sameButCase(low, high, mode.a) : [];
  return `${unicodeEscape(low)}-${unicodeEscape(high)}${others.map(unicodeEscape).join("")}`;
}

const literalOf = (reader, code, mode) => (mode.i ? `[${rangeOf(reader, code, code, mode)}]` : unicodeEscape(code));

function wordBoundary(isOne, mode) {
  const word = `[${setOf("w", mode)}]`;
  const [before, behind, noneBefore, noneBehind] = [`(?<=${word})`, `(?=${word})`, `(?<!${word})`, `(?!${word})`];
  if (isOne) return `(?:${before}${noneBehind}|${noneBefore}${behind})`;
  const inSome = `(?:(?<=${ANY_CHARACTER})|(?=${ANY_CHARACTER}))`; // in nothing there is no place that \B finds
  return `(?:${before}${behind}|${noneBefore}${noneBehind}${inSome})`;
}

/** The code of a character by its number or name; null when the escape is something else. */
function numberedEscape(reader, escape) {
  const digits = { x: 2, u: 4, U: 8 }[escape[1]];
  if (digits) return hexEscape(reader, escape, digits);
  if (escape[1] !== "N") return null;
  if (!reader.match("{")) throw reader.error("missing {");
  reader.getUntil("}", "character name");
  reader.cannot("a character by its name");
  return 0;
}

function hexEscape(reader, escape, digits) {
  const hex = reader.getWhile(digits, /^[0-9a-fA-F]$/);
  if (hex.length < digits) throw reader.error(`incomplete escape ${escape}${hex}`, 2 + hex.length);
  const code = parseInt(hex, 16);
  if (code > 0x10ffff) throw reader.error(`bad escape ${escape}${hex}`, 2 + hex.length);
  return code;
}

function plainEscape(reader, escape) {
  if (/^\\[A-Za-z]$/.test(escape)) throw reader.error(`bad escape ${escape}`, 2);
  return codeOf([...escape][1]);
}

/** A whole class, whose bracket has been read. */
function readClass(reader, mode) {
  const here = reader.tell() - 1;
  const negated = reader.match("^");
  const parts = [];
  for (;;) {
    const token = reader.get();
    if (token === null) throw unterminatedClass(reader, here);
    if (token === "]" && parts.length) return `[${negated ? "^" : ""}${parts.join("")}]`;
    parts.push(...classParts(reader, token, { here, mode }));
  }
}

const unterminatedClass = (reader, here) => reader.malformed("unterminated character set", here);

/** One member of a class, or a range of them, that begins with a token; a hyphen before the end is a member too. */
function classParts(reader, token, { here, mode }) {
  const partOf = ({ code, js }) => js ?? rangeOf(reader, code, code, mode);
  const low = classMember(reader, token, mode);
  if (!reader.match("-")) return [partOf(low)];
  if (reader.next === "]") return [partOf(low), partOf({ code: codeOf("-") })];
  const that = reader.get();
  if (that === null) throw unterminatedClass(reader, here);
  const high = classMember(reader, that, mode);
  if (low.js || high.js || high.code < low.code)
    throw reader.error(`bad character range ${token}-${that}`, lengthOf(token) + 1 + lengthOf(that));
  return [rangeOf(reader, low.code, high.code, mode)];
}

/** {code} of one character, or {js} of a category. */
function classMember(reader, token, mode) {
  if (token[0] !== "\\") return { code: codeOf(token) };
  const letter = token[1];
  if (letter in CONTROLS) return { code: CONTROLS[letter] };
  if (CATEGORIES.includes(letter)) return { js: categoryClass(letter, mode) };
  const code = numberedEscape(reader, token);
  if (code !== null) return { code };
  if (/[0-7]/.test(letter)) return { code: octalEscape(reader, letter) };
  if (/[89]/.test(letter)) throw reader.error(`bad escape ${token}`, 2);
  return { code: plainEscape(reader, token) };
}

function octalEscape(reader, letter) {
  const octal = letter + reader.getWhile(2, /^[0-7]$/);
  if (parseInt(octal, 8) > 0o377)
    throw reader.error(`octal escape value \\${octal} outside of range 0-0o377`, 1 + octal.length);
  return parseInt(octal, 8);
}
