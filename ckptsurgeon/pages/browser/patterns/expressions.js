// Python's regular expressions as JavaScript's, read as Python's re._parser reads them, with its errors.

const MAX_NESTING = 200;
const MAX_REPEAT = 4_294_967_295;
const QUANTIFIERS = { "?": [0, 1], "*": [0, Infinity], "+": [1, Infinity] };
const NOT_BEFORE_ANY = `(?!${ANY_CHARACTER})`;
const NOT_BEHIND_ANY = `(?<!${ANY_CHARACTER})`;

/** What tells whether the whole of a key matches. Classes, anchors and cases are spelled out, so no flag counts. */
function expressionMatcher(text, chars) {
  const reader = new ExpressionReader(text, chars);
  const js = translatedExpression(reader);
  if (reader.refused) throw reader.refusal(reader.refused);
  try {
    const compiled = new RegExp(`^(?:${js})$`, "v");
    compiled.test("");
    compiled.test("\u0100"); // an engine may find only now that an expression is too large for it
    return (key) => {
      try {
        return compiled.test(key);
      } catch {
        throw reader.refusal("more to try than this browser does");
      }
    };
  } catch {
    throw reader.refusal("more than this browser can hold");
  }
}

function translatedExpression(reader) {
  const { js } = alternatives(reader, { mode: reader.globals, nested: 0, sure: null });
  if (reader.globals.a && reader.globals.u) throw reader.malformed("ASCII and UNICODE flags are incompatible");
  if (reader.next !== null) throw reader.error("unbalanced parenthesis");
  for (const [id, at] of reader.conditions)
    if (id >= reader.groups.length) throw reader.malformed(`invalid group reference ${id}`, at);
  if (reader.hasVariableLookbehind) throw reader.malformed("look-behind requires fixed-width pattern");
  return js;
}

/** A piece of the translation: its widths, and the groups that have taken part when it has matched. */
const piece = (js, lo = 1, hi = lo, { kind = "", sure = [] } = {}) => ({ js, lo, hi, kind, sure });
const anchor = (js) => piece(js, 0, 0, { kind: "anchor" });

/** The groups that have taken part wherever a sequence has been read to, with those before it. */
class SureGroups {
  own = new Set();
  constructor(before = null) {
    this.before = before;
  }
  has(group) {
    return this.own.has(group) || (this.before?.has(group) ?? false);
  }
}

function alternatives(reader, scope) {
  const { nested } = scope;
  if (nested > MAX_NESTING) throw reader.refusal("groups nested too deeply");
  const branches = [];
  do {
    const mode = nested ? scope.mode : reader.globals;
    branches.push(sequence(reader, { ...scope, mode }, !nested && !branches.length));
  } while (reader.match("|"));
  if (branches.length === 1) return branches[0];
  const lo = branches.map((branch) => branch.lo).reduce((a, b) => Math.min(a, b));
  const hi = branches.map((branch) => branch.hi).reduce((a, b) => Math.max(a, b));
  return piece(branches.map(({ js }) => js).join("|"), lo, hi);
}

function sequence(reader, outer, isFirst) {
  const scope = { ...outer, sure: new SureGroups(outer.sure) };
  const pieces = [];
  while (reader.next !== null && reader.next !== "|" && reader.next !== ")") {
    const token = reader.get();
    if (scope.mode.x && skipVerbose(reader, token)) continue;
    if (token === "(") addGroup(reader, pieces, scope, isFirst && !pieces.length);
    else if ("*+?{".includes(token)) addRepetition(reader, token, pieces, scope);
    else pieces.push(readPiece(reader, token, scope));
  }
  const sum = (side) => pieces.reduce((total, one) => total + one[side], 0);
  const js = pieces.map((one) => one.js).join("");
  return piece(js, sum("lo"), sum("hi"), { sure: pieces.flatMap((one) => one.sure) });
}

/** Skip a space, or a comment to the end of its line. */
function skipVerbose(reader, token) {
  if (/^[ \t\n\r\v\f]$/.test(token)) return true;
  if (token !== "#") return false;
  for (let skipped = reader.get(); skipped !== null && skipped !== "\n";) skipped = reader.get();
  return true;
}

function addGroup(reader, pieces, scope, isFirst) {
  const group = readGroup(reader, scope, isFirst);
  if (group) {
    group.sure.forEach((id) => scope.sure.own.add(id));
    pieces.push(group);
  } else if (!scope.nested) scope.mode = reader.globals;
}

/** What a token stands for that is no group and repeats nothing. */
function readPiece(reader, token, scope) {
  const { mode } = scope;
  if (token[0] === "\\") return escapedPiece(reader, token, scope);
  if (token === "[") return piece(readClass(reader, mode));
  if (token === ".") return piece(mode.s ? ANY_CHARACTER : "[^\\n]");
  if (token === "^") return anchor(mode.m ? "(?<![^\\n])" : NOT_BEHIND_ANY);
  if (token === "$") return anchor(mode.m ? "(?![^\\n])" : `(?=\\n?${NOT_BEFORE_ANY})`);
  return piece(literalOf(reader, codeOf(token), mode));
}

function escapedPiece(reader, escape, scope) {
  const { mode } = scope;
  const letter = escape[1];
  if (letter === "A") return anchor(NOT_BEHIND_ANY);
  if (letter === "Z") return anchor(NOT_BEFORE_ANY);
  if (letter === "b" || letter === "B") return anchor(wordBoundary(letter === "b", mode));
  if (CATEGORIES.includes(letter)) return piece(categoryClass(letter, mode));
  if (isDigit(letter) && letter !== "0") return referenceOrOctal(reader, letter, scope);
  return piece(literalOf(reader, escapedCode(reader, escape), mode));
}

function escapedCode(reader, escape) {
  const letter = escape[1];
  if (letter in CONTROLS) return CONTROLS[letter];
  if (letter === "0") return parseInt(letter + reader.getWhile(2, /^[0-7]$/), 8);
  return numberedEscape(reader, escape) ?? plainEscape(reader, escape);
}

function referenceOrOctal(reader, letter, scope) {
  let digits = letter + reader.getWhile(1, /^[0-9]$/);
  if (/^[0-7]{2}$/.test(digits) && /^[0-7]$/.test(reader.next)) {
    digits += reader.get();
    const code = parseInt(digits, 8);
    if (code > 0o377) throw reader.error(`octal escape value \\${digits} outside of range 0-0o377`, 4);
    return piece(literalOf(reader, code, scope.mode));
  }
  if (Number(digits) >= reader.groups.length) throw reader.error(`invalid group reference ${digits}`, digits.length);
  return reference(reader, Number(digits), 1 + digits.length, scope);
}

function addRepetition(reader, token, pieces, scope) {
  const here = reader.tell();
  const bounds = token === "{" ? boundsInBraces(reader, here) : QUANTIFIERS[token];
  if (bounds) pieces.push(repeatedPiece(reader, pieces.pop(), bounds, { here, sure: scope.sure }));
  else pieces.push(piece(literalOf(reader, codeOf(token), scope.mode)));
}

/** The least and most of a quantifier; null where "{" is a character like any other. */
function boundsInBraces(reader, here) {
  if (reader.next === "}") return null;
  const low = reader.getWhile(Infinity, /^[0-9]$/);
  const high = reader.match(",") ? reader.getWhile(Infinity, /^[0-9]$/) : low;
  if (!reader.match("}")) {
    reader.seek(here);
    return null;
  }
  const [min, max] = [low ? Number(low) : 0, high ? Number(high) : Infinity];
  if (min >= MAX_REPEAT || (high && max >= MAX_REPEAT)) throw reader.malformed("the repetition number is too large");
  if (max < min) throw reader.error("min repeat greater than max repeat", reader.tell() - here);
  return [min, max];
}

function repeatedPiece(reader, last, [min, max], { here, sure }) {
  if (!last || last.kind === "anchor") throw reader.error("nothing to repeat", reader.tell() - here + 1);
  if (last.kind === "repeat") throw reader.error("multiple repeat", reader.tell() - here + 1);
  const lazy = reader.match("?");
  if (!lazy && reader.match("+")) reader.cannot("a possessive quantifier");
  const js = `(?:${last.js}){${min},${max === Infinity ? "" : max}}${lazy ? "?" : ""}`;
  const hi = last.hi && max ? last.hi * max : 0;
  const once = min === 1 && max === 1;
  if (!once) last.sure.forEach((group) => sure.own.delete(group));
  return piece(js, last.lo * min, hi, { kind: "repeat", sure: once ? last.sure : [] });
}
