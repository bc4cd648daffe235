// Matches regular expressions with the browser's engine: Python's syntax is translated into JavaScript's. Syntax without
// an equivalent is refused, so that no expression matches other keys here than in ckpt.

const WORD = "\\p{L}\\p{N}_";
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const CATEGORIES = { w: WORD, d: "\\p{Nd}", s: SPACE };
// Other characters that Python's (?i) takes for these letters.
const OTHER_CASES = { i: "\u0130\u0131", k: "\u212a", s: "\u017f" };
// In (?=…): like \b in Python, it cannot be repeated.
const BOUNDARY = `(?=(?<=[${WORD}])(?![${WORD}])|(?<![${WORD}])(?=[${WORD}]))`;
const EQUALS = { ".": "[^\\n]", $: "(?=\\n?$)", "\\A": "^", "\\Z": "$", "\\b": BOUNDARY };
const REPEAT = String.raw`(?:[*+?]|\{(?!\})(\d*)(,?\d*)\})`;
const CLASS = String.raw`\[(\^|(?!\^))((?:\\.|[^\\])(?:\\.|[^\]\\])*)\]`;
const FIXED = String.raw`(?:${CLASS}|\\.|[^\\\[()*+?{|])*`; // matches texts of one length, without groups

/** [syntax in Python, its translation or why it is refused, hint]; the first syntax that matches counts. */
const SYNTAX = [
  [String.raw`${REPEAT}\+`, "a possessive quantifier"],
  [String.raw`\{(?:\d{10,},?\d*|\d*,\d{10,})\}`, "more than 999,999,999 times"],
  [REPEAT, ([token, least, most]) => (token[0] === "{" ? `{${least || 0}${most}}` : token)],
  [String.raw`\((?!\?)|\(\?[:=!]|[)|^]|\(\?<[=!](?=${FIXED}\))`, ([token]) => token],
  [String.raw`\(\?<[=!]`, "a lookbehind of more than characters and classes"],
  [String.raw`\(\?P<([A-Za-z_]\w*)>(?!.*\(\?P<\1>)`, () => "("],
  [String.raw`\(\?P<`, "a name has ASCII letters and digits, and stands once"],
  [String.raw`\(\?<`, "named groups are written (?P<name>…)", "Or write ( alone."],
  [String.raw`\(\?>`, "an atomic group"],
  [String.raw`\(\?\(`, "a conditional group"],
  [String.raw`\(\?#`, "a comment"],
  [String.raw`\(\?P=|\\[1-9]`, "a reference to a group, or an octal number"],
  [String.raw`\(\?`, "the only flag is (?i), at the start"],
  [CLASS, ([, not, members], text) => `[${not}${classMembers(members, text)}]`],
  [String.raw`\[`, "a class that is never closed", "Write \\[ for the character."],
  [String.raw`[.$]|\\[AZb]`, ([token]) => EQUALS[token]],
  [String.raw`\\[dDsSwW]`, ([token]) => category(token)],
  [String.raw`\\[^A-Za-z0-9]|\\[fnrtv]|[^\\]`, ([token], text) => `[${range(token, token, text)}]`],
  [String.raw`\\[0NUux]`, "a character by its number or name", "Write the character itself."],
  [String.raw`\\.?`, "not an escape of this page", "Write \\\\ for a backslash."],
].map(([source, ...rest]) => [new RegExp(source, "suy"), ...rest]);

/** Return a function that tells whether a whole key matches an expression; throws PatternError. */
function expressionMatcher(text) {
  // The expression is first compiled alone: within the group around it, ")(" would be valid.
  const compiled = orRefused(text, () => new RegExp(`^(?:${new RegExp(spelledOut(text), "v").source})$`, "v"));
  orRefused(text, () => compiled.test("\u0100")); // some engines notice only here that an expression is too large
  return (key) => orRefused(text, () => compiled.test(key));
}

function orRefused(text, work) {
  try {
    return work();
  } catch (error) {
    if (error instanceof PatternError) throw error;
    throw new PatternError(`this browser cannot follow ${text}: ${error.message.split(": ").at(-1)}.`);
  }
}

function spelledOut(text) {
  const parts = [];
  for (let at = isCaseless(text) ? 7 : 3; at < text.length;) {
    const [found, meaning, hint] = nextOf(text, at);
    if (typeof meaning === "string") throw refusal(text, found[0], meaning, hint);
    parts.push(meaning(found, text));
    at += found[0].length;
  }
  return parts.join("");
}

function nextOf(text, at) {
  for (const [expression, ...rest] of SYNTAX) {
    expression.lastIndex = at;
    const found = expression.exec(text);
    if (found) return [found, ...rest];
  }
}

const isCaseless = (text) => text.startsWith("re:(?i)");
const refusal = (text, found, why, hint = "On the command line ckpt reads all that Python does.") =>
  new PatternError(`this page cannot read ${found} in ${text}: ${why}.`, hint);

const category = (token) => `[${token[1] < "a" ? "^" : ""}${CATEGORIES[token[1].toLowerCase()]}]`;
const classMembers = (members, text) =>
  members.replace(/(\\?.)(?:-(\\?.))?/gsu, (all, low, high) =>
    /^\\[dDsSwW]$/.test(all) ? category(all) : range(low, high ?? low, text),
  );

/** Return the part of a class that stands for the characters from ``low`` to ``high``. */
function range(low, high, text) {
  const unknown = [low, high].find((token) => /^\\(?![fnrtv])[A-Za-z0-9]/.test(token));
  if (unknown) throw refusal(text, unknown, "not a character in a class");
  const both = `${escaped(low)}-${escaped(high)}`;
  if (!isCaseless(text)) return both;
  if (/[^\x00-\x7f]/.test(low + high)) throw refusal(text, high, "with (?i) this page reads ASCII only");
  const within = new RegExp(`[${both}]`, "v");
  const letters = [..."abcdefghijklmnopqrstuvwxyz"].filter((one) => within.test(one) || within.test(one.toUpperCase()));
  return both + letters.map((one) => one + one.toUpperCase() + (OTHER_CASES[one] ?? "")).join("");
}

const escaped = (token) => (/^\\[fnrtv]/.test(token) ? token : `\\u{${codeOf([...token].at(-1)).toString(16)}}`);
