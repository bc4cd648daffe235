// Parses the segments of a pattern, as keys/pattern_parser.py. A segment is null for "**", else a list of tokens.

const MAX_ALTERNATIVES = 10_000;
const CLOSES = { "[": "]", "{": "}" };

function parseSegments(chars) {
  const fail = (why, hint = "") => new PatternError(`pattern ${pythonRepr(chars.join(""))}: ${why}.`, hint);
  const segments = [];
  for (const part of splitAtDots(chars, fail)) segments.push(parseSegment(part, fail));
  return segments;
}

function* splitAtDots(chars, fail) {
  let start = 0;
  for (let at = 0; at < chars.length;) {
    if (chars[at] === ".") {
      yield chars.slice(start, at);
      start = at += 1;
    } else if (chars[at] in CLOSES) at = closingAt(chars, at, fail) + 1;
    else at += chars[at] === "\\" ? 2 : 1;
  }
  yield chars.slice(start);
}

/** Return the index of the bracket or brace that closes the one at the index ``opened``. */
function closingAt(chars, opened, fail) {
  const close = CLOSES[chars[opened]];
  let at = opened + 1;
  if (close === "]") {
    if (chars[at] === "!") at += 1;
    if (chars[at] === "]") at += 1;
  }
  while (at < chars.length && chars[at] !== close) at += chars[at] === "\\" ? 2 : 1;
  if (at >= chars.length)
    throw fail(`${pythonRepr(chars[opened])} is never closed`, `Write \\${chars[opened]} for the character.`);
  return at;
}

function parseSegment(part, fail) {
  if (part.length === 2 && part[0] === "*" && part[1] === "*") return null;
  if (!part.length) throw fail("it has an empty segment", "Write no dot at the ends and no two in a row.");
  const tokens = [...tokensOf(part, fail)];
  if (tokens.some((token, i) => token.kind === "star" && tokens[i + 1]?.kind === "star"))
    throw fail('"**" must be a whole segment', "Use * inside a segment.");
  if (tokens.reduce((product, token) => product * (token.count ?? 1), 1) > MAX_ALTERNATIVES)
    throw fail(`${part.join("")} expands to more than ${MAX_ALTERNATIVES} names`, "Use {n} for any number.");
  return tokens;
}

function* tokensOf(part, fail) {
  for (let at = 0; at < part.length;) {
    const [token, end] = tokenAt(part, at, fail);
    yield token;
    at = end;
  }
}

/** Return [the token that begins at the index ``at``, the index after it]. */
function tokenAt(part, at, fail) {
  const char = part[at];
  if (char in CLOSES) {
    const end = closingAt(part, at, fail);
    const raw = part.slice(at + 1, end);
    return [char === "[" ? classToken(raw, fail) : braceToken(raw, fail), end + 1];
  }
  if (char === "]" || char === "}")
    throw fail(`${pythonRepr(char)} closes nothing`, `Write \\${char} for the character itself.`);
  if (char === "*" || char === "?") return [{ kind: char === "*" ? "star" : "one" }, at + 1];
  if (char !== "\\") return [choiceToken([[char]]), at + 1];
  if (at + 1 === part.length) throw fail("it ends in a backslash", "Write \\\\ for the character itself.");
  return [choiceToken([[part[at + 1]]]), at + 2];
}

/** Return [whether it is escaped, character] for each character. */
function unescapedPairs(raw) {
  const pairs = [];
  for (let at = 0; at < raw.length; at += 1) {
    const isEscaped = raw[at] === "\\" && at + 1 < raw.length;
    if (isEscaped) at += 1;
    pairs.push([isEscaped, raw[at]]);
  }
  return pairs;
}

function classToken(raw, fail) {
  const negated = raw[0] === "!";
  const pairs = unescapedPairs(negated ? raw.slice(1) : raw);
  const ranges = [];
  for (let at = 0; at < pairs.length;) {
    const spans = at + 2 < pairs.length && pairs[at + 1][1] === "-" && !pairs[at + 1][0];
    const low = codeOf(pairs[at][1]);
    const high = codeOf(pairs[spans ? at + 2 : at][1]);
    if (low > high) throw fail(`the class [${raw.join("")}] has a reversed range`);
    ranges.push([low, high]);
    at += spans ? 3 : 1;
  }
  if (!ranges.length) throw fail(`the class [${raw.join("")}] is empty`);
  return { kind: "class", ranges, negated };
}

function braceToken(chars, fail) {
  const raw = chars.join("");
  const numbers = /^([0-9]{1,18})\.\.([0-9]{1,18})$/.exec(raw);
  if (numbers) return rangeToken(raw, BigInt(numbers[1]), BigInt(numbers[2]), fail);
  const words = wordsOfList(chars);
  if (words.length > 1) {
    for (const word of words) checkWord(word, fail);
    return choiceToken(words.map((word) => unescapedPairs(word).map(([, char]) => char)));
  }
  if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(raw)) return { kind: "number", name: raw };
  if (/^[A-Za-z0-9_+*/% -]+$/.test(raw) && /[A-Za-z]/.test(raw))
    throw fail(
      `{${raw}} is arithmetic, which only a target may contain`,
      "Capture the number with {n}, compute with it in the target, and leave layers out with --exclude.",
    );
  throw fail(`{${raw}} is neither a list {a,b}, a range {0..11} nor a name {n}`, "Write \\{ for the character itself.");
}

function rangeToken(raw, low, high, fail) {
  if (low > high) throw fail(`the range {${raw}} is reversed`);
  if (high - low >= MAX_ALTERNATIVES) throw fail(`{${raw}} expands to more than ${MAX_ALTERNATIVES} names`, "Use {n}.");
  return choiceToken(Array.from({ length: Number(high - low) + 1 }, (_, i) => [...String(low + BigInt(i))]));
}

/** Throw if a word of a list has pattern syntax: in a list, words are literal. */
function checkWord(chars, fail) {
  const word = chars.join("");
  const plain = unescapedPairs(chars)
    .map(([isEscaped, char]) => (isEscaped ? "x" : char))
    .join("");
  const found = /\*+|[?[\]{]/.exec(plain);
  if (found)
    throw fail(
      `'${found[0]}' is in a list, whose words are literal text`,
      `Write a pattern for each word of the list, or \\${found[0][0]} for the character.`,
    );
  if (word.startsWith("re:"))
    throw fail("re: is inside a list, but can only begin a whole pattern", "Write \\re: for the characters.");
  if (/^[0-9]+\.\.[0-9]+$/.test(word))
    throw fail(`${word} in a list is not a range`, "Write each number: {0,1,2,5}.");
  if (plain.includes("..")) throw fail(`${word} in a list has an empty segment`, "Write no two dots in a row.");
}

/** Return the words of a list, each an array of characters; escapes stay. */
function wordsOfList(chars) {
  const words = [[]];
  for (const [isEscaped, char] of unescapedPairs(chars)) {
    if (char === "," && !isEscaped) words.push([]);
    else words.at(-1).push(...(isEscaped ? ["\\", char] : [char]));
  }
  return words;
}

/** Return the token for one of several words, each an array of characters. */
function choiceToken(spellings) {
  const byLength = new Map();
  const known = new Set();
  const texts = new Set();
  for (const chars of spellings) {
    const text = chars.join("");
    known.add(chars.join("\\"));
    // The two halves of a surrogate pair are two characters in Python; no key of a page has them.
    if ([...text].length !== chars.length) continue;
    texts.add(text);
    if (!byLength.has(chars.length)) byLength.set(chars.length, new Set());
    byLength.get(chars.length).add(text);
  }
  const dots = spellings.some((chars) => chars.includes("."));
  const spelling = spellings.length === 1 ? spellings[0] : null;
  return { kind: "choice", count: known.size, texts, byLength, dots, spelling };
}
