// Key patterns in the browser, with the meaning and the errors of ckptsurgeon/planning/keys.
//
//     pattern  = "re:" regex | segment { "." segment }
//     segment  = "**" | { literal | "*" | "?" | "[" class "]" | "{" list, range or name "}" }
//
// Characters are code points, as in Python. tests/planning/keys/cases.json holds the cases that both must pass.
// One error is only here: for a regular expression that the page cannot read as Python does.

const MAX_CHARACTERS = 100_000;

class PatternError extends Error {
  name = "PatternError";
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

/** Return a pattern as {text, matches(key)}; throws PatternError. */
function parsePattern(text) {
  const chars = [...text];
  if (chars.length > MAX_CHARACTERS)
    throw new PatternError(`a pattern has ${chars.length} characters, more than the limit of ${MAX_CHARACTERS}.`);
  if (!chars.length) throw new PatternError("a pattern is empty.", "Write a key or a module, or ** for every key.");
  return { text, matches: text.startsWith("re:") ? expressionMatcher(text) : segmentsMatcher(chars) };
}

const codeOf = (char) => char.codePointAt(0);
const isDigit = (char) => char >= "0" && char <= "9" && char.length === 1;

/** Return a text as Python's repr writes it. */
function pythonRepr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const short = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", [quote]: `\\${quote}` };
  const written = (char) => {
    if (short[char] || char === " " || !/[\p{C}\p{Z}]/u.test(char)) return short[char] ?? char;
    const hex = codeOf(char).toString(16);
    if (hex.length <= 2) return `\\x${hex.padStart(2, "0")}`;
    return hex.length <= 4 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  };
  return quote + [...text].map(written).join("") + quote;
}
