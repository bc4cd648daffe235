// Key patterns, in the browser: what ckptsurgeon/keys means by them, with the same errors.
//
//     pattern  = "re:" regex | segment { "." segment }
//     segment  = "**" | { literal | "*" | "?" | "[" class "]" | "{" list, range or name "}" }
//
// parsePattern(text) returns {text, matches(key)} or throws parsePattern.PatternError {message, hint, onlyHere}.
// Characters are code points, as in Python. tests/keys/cases.json holds the cases that both must pass.

const parsePattern = (() => {
  "use strict";

  const MAX_CHARACTERS = 100_000;
  const MAX_ALTERNATIVES = 10_000;
  const MAX_STEPS = 5_000_000;
  const MAX_NESTING = 200;

  // onlyHere: the pattern is good, and `ckpt` follows it, but the page cannot.
  class PatternError extends Error {
    name = "PatternError";
    constructor(message, hint = "", onlyHere = false) {
      super(message);
      Object.assign(this, { hint, onlyHere });
    }
  }

  function parsePattern(text) {
    const chars = [...text];
    if (chars.length > MAX_CHARACTERS)
      throw new PatternError(`a pattern has ${chars.length} characters; at most ${MAX_CHARACTERS} are read.`);
    if (!chars.length) throw new PatternError("a pattern is empty.", "Name a key or a module, or ** for every key.");
    return { text, matches: text.startsWith("re:") ? expression(text, chars.slice(3)) : dotted(chars) };
  }

  const codeOf = (char) => char.codePointAt(0);
  const from = (code) => String.fromCodePoint(code);

  // As Python's repr writes a text.
  function repr(text) {
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

  // ---------------------------------------------------------------- reading segments: keys/parse.py

  const CLOSES = { "[": "]", "{": "}" };

  function parseSegments(chars) {
    const fail = (why, hint = "") => new PatternError(`pattern ${repr(chars.join(""))}: ${why}.`, hint);
    const segments = [];
    for (const part of split(chars, fail)) segments.push(segment(part, fail));
    return segments;
  }

  function* split(chars, fail) {
    let start = 0;
    for (let at = 0; at < chars.length; ) {
      if (chars[at] === ".") {
        yield chars.slice(start, at);
        start = at += 1;
      } else if (chars[at] in CLOSES) at = closing(chars, at, fail) + 1;
      else at += chars[at] === "\\" ? 2 : 1;
    }
    yield chars.slice(start);
  }

  function closing(chars, opened, fail) {
    const close = CLOSES[chars[opened]];
    let at = opened + 1;
    if (close === "]") {
      if (chars[at] === "!") at += 1;
      if (chars[at] === "]") at += 1;
    }
    while (at < chars.length && chars[at] !== close) at += chars[at] === "\\" ? 2 : 1;
    if (at >= chars.length)
      throw fail(`${repr(chars[opened])} is never closed`, `Write \\${chars[opened]} for the character.`);
    return at;
  }

  // A segment is null for "**", else its tokens.
  function segment(part, fail) {
    if (part.length === 2 && part[0] === "*" && part[1] === "*") return null;
    if (!part.length) throw fail("it has an empty segment", "Write no dot at the ends and no two in a row.");
    const tokens = [...tokensOf(part, fail)];
    if (tokens.some((token, i) => token.kind === "star" && tokens[i + 1]?.kind === "star"))
      throw fail('"**" must be a whole segment', "Use * inside a segment.");
    if (tokens.reduce((product, token) => product * (token.count ?? 1), 1) > MAX_ALTERNATIVES)
      throw fail(`${part.join("")} stands for more than ${MAX_ALTERNATIVES} names`, "Use {n} for any number.");
    return tokens;
  }

  function* tokensOf(part, fail) {
    for (let at = 0; at < part.length; at += 1) {
      let char = part[at];
      if (char in CLOSES) {
        const end = closing(part, at, fail);
        const raw = part.slice(at + 1, end);
        yield char === "[" ? classOf(raw, fail) : braceOf(raw, fail);
        at = end;
        continue;
      }
      if (char === "]" || char === "}")
        throw fail(`${repr(char)} closes nothing`, `Write \\${char} for the character itself.`);
      if (char === "*" || char === "?") {
        yield { kind: char === "*" ? "star" : "one" };
        continue;
      }
      if (char === "\\") {
        at += 1;
        if (at === part.length) throw fail("it ends in a backslash", "Write \\\\ for the character itself.");
        char = part[at];
      }
      yield choice([[char]]);
    }
  }

  // Pairs of [whether it is escaped, character].
  function unescaped(raw) {
    const pieces = [];
    for (let at = 0; at < raw.length; at += 1) {
      const escaped = raw[at] === "\\" && at + 1 < raw.length;
      if (escaped) at += 1;
      pieces.push([escaped, raw[at]]);
    }
    return pieces;
  }

  function classOf(raw, fail) {
    const negated = raw[0] === "!";
    const pieces = unescaped(negated ? raw.slice(1) : raw);
    const ranges = [];
    for (let at = 0; at < pieces.length; ) {
      const spans = at + 2 < pieces.length && pieces[at + 1][1] === "-" && !pieces[at + 1][0];
      const low = codeOf(pieces[at][1]);
      const high = codeOf(pieces[spans ? at + 2 : at][1]);
      if (low > high) throw fail(`the class [${raw.join("")}] runs backwards`);
      ranges.push([low, high]);
      at += spans ? 3 : 1;
    }
    if (!ranges.length) throw fail(`the class [${raw.join("")}] is empty`);
    return { kind: "class", ranges, negated };
  }

  function braceOf(chars, fail) {
    const raw = chars.join("");
    const numbers = /^([0-9]{1,18})\.\.([0-9]{1,18})$/.exec(raw);
    if (numbers) {
      const [low, high] = [BigInt(numbers[1]), BigInt(numbers[2])];
      if (low > high) throw fail(`the range {${raw}} runs backwards`);
      if (high - low >= MAX_ALTERNATIVES)
        throw fail(`{${raw}} stands for more than ${MAX_ALTERNATIVES} names`, "Use {n}.");
      return choice(Array.from({ length: Number(high - low) + 1 }, (_, i) => [...String(low + BigInt(i))]));
    }
    const words = [[]];
    for (const [escaped, char] of unescaped(chars)) {
      if (char === "," && !escaped) words.push([]);
      else words.at(-1).push(char);
    }
    if (words.length > 1) return choice(words);
    if (/^[A-Za-z_][A-Za-z0-9_]*$/.test(raw)) return { kind: "number", name: raw };
    if (/^[A-Za-z0-9_+*/% -]+$/.test(raw) && /[A-Za-z]/.test(raw))
      throw fail(
        `{${raw}} is arithmetic, which only a target has`,
        "Catch the number with {n}, compute with it in the target, and leave layers out with --exclude.",
      );
    throw fail(
      `{${raw}} is neither a list {a,b}, a range {0..11} nor a name {n}`,
      "Write \\{ for the character itself.",
    );
  }

  // One of some words, each an array of characters.
  function choice(spellings) {
    const byLength = new Map();
    const known = new Set();
    const texts = new Set();
    for (const chars of spellings) {
      const text = chars.join("");
      known.add(chars.join("\\"));
      // Halves of a surrogate pair beside each other are two characters in Python, and in no key of a page.
      if ([...text].length !== chars.length) continue;
      texts.add(text);
      if (!byLength.has(chars.length)) byLength.set(chars.length, new Set());
      byLength.get(chars.length).add(text);
    }
    const dots = spellings.some((chars) => chars.includes("."));
    const spelling = spellings.length === 1 ? spellings[0] : null;
    return { kind: "choice", count: known.size, texts, byLength, dots, spelling };
  }

  // ---------------------------------------------------------------- matching segments: keys/matcher.py

  const DOT = choice([["."]]);
  const DOUBLE = { kind: "double" };

  function dotted(chars) {
    const segments = parseSegments(chars).map((segment) => segment && joined(segment));
    const tokens = segments.flatMap((segment) => segment ?? []);
    const repeats = bindRepeated(tokens.filter((token) => token.name));
    // As if each name stood alone; where one stands twice this only rules most keys out.
    const alone = segments.map((segment) => segment?.map((token) => ({ ...token, binds: false })) ?? null);
    const quick = tokens.some((token) => token.dots) ? byKey(alone) : bySegments(alone);
    if (!repeats) return quick;
    const exact = byKey(segments);
    return (key) => quick(key) && exact(key);
  }

  // The tokens with literals beside each other made one.
  function joined(tokens) {
    const found = [];
    for (const token of tokens) {
      if (token.spelling && found.at(-1)?.spelling) found.at(-1).spelling.push(...token.spelling);
      else found.push(token.spelling ? { spelling: [...token.spelling] } : token);
    }
    return found.map((token) => (token.spelling ? choice([token.spelling]) : token));
  }

  function bindRepeated(numbers) {
    const last = new Map(numbers.map((token, i) => [token.name, i]));
    const first = new Map(numbers.map((token, i) => [token.name, i]).reverse());
    numbers.forEach((token, i) => {
      token.binds = first.get(token.name) !== last.get(token.name);
      token.isLast = last.get(token.name) === i;
    });
    return last.size < numbers.length;
  }

  // The whole key at once, since a literal dot spans its segments and a name that stands twice ties them together.
  function byKey(segments) {
    const tokens = segments.flatMap((segment) => (segment ? [DOT, ...segment] : [DOUBLE]));
    return (key) => {
      const chars = [...`.${key}`];
      return walk(tokens, chars).some((at) => at.some((i) => i && isBoundary(chars[i])));
    };
  }

  // A deterministic automaton over whole segments, built as keys need it.
  function bySegments(segments) {
    const states = new Map();
    const stateAt = (places) => {
      const closed = new Set();
      for (let at of places) {
        closed.add(at);
        while (at < segments.length && segments[at] === null) closed.add((at += 1));
      }
      const waiting = [...closed].sort((a, b) => a - b);
      const known = waiting.join();
      if (!states.has(known)) states.set(known, { matched: closed.has(segments.length), waiting, after: new Map() });
      return states.get(known);
    };
    const step = (state, text) => {
      const places = [];
      for (const at of state.waiting) {
        if (segments[at] === null) places.push(at);
        else if (fits(segments[at], text)) places.push(at + 1);
      }
      const following = stateAt(places);
      state.after.set(text, following);
      return following;
    };
    // The keys of a page stand in order: each goes on from where it parts from the one before.
    const trail = [[0, stateAt([0])]];
    let previous = "";
    return (key) => {
      let shared = 0;
      while (shared < previous.length && key.charCodeAt(shared) === previous.charCodeAt(shared)) shared += 1;
      while (trail.at(-1)[0] > shared) trail.pop();
      previous = key;
      let [begin, state] = trail.at(-1);
      while (!state.matched && state.waiting.length && begin <= key.length) {
        const dot = key.indexOf(".", begin);
        const text = key.slice(begin, dot < 0 ? key.length : dot);
        state = state.after.get(text) ?? step(state, text);
        if (dot < 0) break;
        trail.push([(begin = dot + 1), state]);
      }
      return state.matched;
    };
  }

  function fits(tokens, text) {
    if (tokens.length === 1 && tokens[0].kind === "star") return true;
    if (tokens.length === 1 && tokens[0].kind === "choice") return tokens[0].texts.has(text);
    const chars = [...text];
    return walk(tokens, chars).some((at) => at.at(-1) === chars.length);
  }

  // Where the tokens may end in the characters, in order, for each way to bind the names that stand twice.
  function walk(tokens, chars) {
    let ways = new Map([["", { bound: new Map(), at: [0] }]]);
    let steps = 0;
    const spend = (cost) => {
      steps += cost;
      if (steps > MAX_STEPS) throw new PatternError("a key takes this page too long to match.", "", true);
    };
    for (const token of tokens) {
      const next = new Map();
      for (const { bound, at } of ways.values()) {
        spend(at.length);
        if (token.binds) bind(token, chars, at, bound, next, spend);
        else merge(next, bound, advanced(token, chars, at));
      }
      ways = next;
      if (!ways.size) break;
    }
    return [...ways.values()].map((way) => way.at);
  }

  const ordered = (places) => [...new Set(places)].sort((a, b) => a - b);

  function merge(ways, bound, at) {
    if (!at.length) return;
    const id = bound.size ? [...bound].join() : "";
    const known = ways.get(id);
    if (known) known.at = ordered([...known.at, ...at]);
    else ways.set(id, { bound, at });
  }

  function bind(token, chars, at, bound, next, spend) {
    const ends = new Map();
    for (const begin of at)
      for (const number of numbersAt(chars, begin)) {
        spend(number.length);
        if (bound.has(token.name) && bound.get(token.name) !== number) continue;
        if (!ends.has(number)) ends.set(number, []);
        ends.get(number).push(begin + number.length);
      }
    for (const [number, places] of ends) {
      const following = new Map(bound).set(token.name, number);
      if (token.isLast) following.delete(token.name);
      merge(next, following, places);
    }
  }

  const isDigit = (char) => char >= "0" && char <= "9" && char.length === 1;
  const isBoundary = (char) => char === undefined || char === ".";

  function* numbersAt(chars, begin) {
    let number = "";
    for (let at = begin; at < chars.length && isDigit(chars[at]) && number !== "0"; at += 1) {
      number += chars[at];
      yield number;
    }
  }

  // The places reached from those in `at` across one token; all in order, and each once.
  function advanced(token, chars, at) {
    if (token.kind === "choice") return token.spelling ? spelled(token.spelling, chars, at) : chosen(token, chars, at);
    if (token.kind === "one" || token.kind === "class")
      return at.filter((i) => !isBoundary(chars[i]) && inClass(token, codeOf(chars[i]))).map((i) => i + 1);
    const to = [];
    if (token.kind === "double") {
      const first = at.find((i) => isBoundary(chars[i])) ?? Infinity;
      for (let i = first; i <= chars.length; i += 1) if (isBoundary(chars[i])) to.push(i);
      return to;
    }
    for (let i of at) {
      if (i < to.at(-1)) continue; // in what a star or a number before has taken
      if (token.kind === "star") {
        if (i !== to.at(-1)) to.push(i);
        while (!isBoundary(chars[i])) to.push((i += 1));
      } else if (chars[i] === "0") to.push(i + 1);
      else while (i < chars.length && isDigit(chars[i])) to.push((i += 1));
    }
    return to;
  }

  const spelled = (spelling, chars, at) =>
    at.filter((i) => spelling.every((char, j) => char === chars[i + j])).map((i) => i + spelling.length);

  function chosen({ byLength }, chars, at) {
    const to = [];
    for (const i of at)
      for (const [length, words] of byLength)
        if (i + length <= chars.length && words.has(chars.slice(i, i + length).join(""))) to.push(i + length);
    return byLength.size > 1 ? ordered(to) : to;
  }

  const inClass = ({ ranges, negated }, code) =>
    !ranges || ranges.some(([low, high]) => low <= code && code <= high) !== negated;

  // ---------------------------------------------------------------- regular expressions: Python's re._parser

  const MAX_REPEAT = 4_294_967_295;
  const SETS = {
    w: "\\p{L}\\p{N}_",
    d: "\\p{Nd}",
    s: "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000",
  };
  const ASCII_SETS = { w: "A-Za-z0-9_", d: "0-9", s: "\\t-\\r\\x20" };
  const CONTROLS = { a: 7, b: 8, f: 12, n: 10, r: 13, t: 9, v: 11, "\\": 92 };
  const [ANY, END] = ["\\p{Any}", "(?!\\p{Any})"]; // engines of 2023 misread [^] under the flag v
  const FLAGS = "iLmsxatu";

  // The whole key has to match. Python's classes, anchors and cases are spelled out, so no flag of JavaScript's counts.
  function expression(text, chars) {
    const hint = "ckpt itself can, on the command line.";
    const refuse = (what) => new PatternError(`this page cannot follow ${text}: it has ${what}.`, hint, true);
    const { js, refused } = translated(text, chars, refuse);
    if (refused) throw refuse(refused);
    try {
      const compiled = new RegExp(`^(?:${js})$`, "v");
      compiled.test("");
      compiled.test("\u0100"); // an engine may find only now that an expression is too large for it
      return (key) => {
        try {
          return compiled.test(key);
        } catch {
          throw refuse("more to try than this browser does");
        }
      };
    } catch {
      throw refuse("more than this browser can hold");
    }
  }

  function translated(text, chars, refuse) {
    let [index, next] = [0, null];
    let globals = { i: false, m: false, s: false, x: false, a: false, u: false };
    let [refused, lookbehindFrom, variable] = ["", null, false];
    const groups = [null]; // of each group its widths, null while it is open
    const names = new Map();
    const conditions = new Map();

    const size = (token) => (token === null ? 0 : [...token].length);
    const malformed = (why, at = null) => {
      let where = at === null ? "" : ` at position ${at}`;
      if (where && chars.includes("\n")) {
        const before = chars.slice(0, at);
        where += ` (line ${before.filter((c) => c === "\n").length + 1}, column ${at - before.lastIndexOf("\n")})`;
      }
      return new PatternError(`${text} is not a regular expression: ${why}${where}.`);
    };
    const tell = () => index - size(next);
    const error = (why, back = 0) => malformed(why, tell() - back);
    const cannot = (what) => (refused ||= what);

    function advance() {
      next = chars[index] ?? null;
      if (next === "\\") {
        if (index + 1 === chars.length) throw malformed("bad escape (end of pattern)", index);
        next += chars[index + 1];
      }
      index += size(next);
    }
    function get() {
      const token = next;
      if (token !== null) advance();
      return token;
    }
    const match = (token) => next === token && (advance(), true);
    function getWhile(limit, allowed) {
      let taken = "";
      while (taken.length < limit && next !== null && allowed.test(next)) taken += get();
      return taken;
    }
    function getUntil(terminator, what) {
      for (let taken = ""; ; ) {
        const token = get();
        if (token === null && !taken) throw error(`missing ${what}`);
        if (token === null) throw error(`missing ${terminator}, unterminated name`, size(taken));
        if (token === terminator && !taken) throw error(`missing ${what}`, 1);
        if (token === terminator) return taken;
        taken += token;
      }
    }

    // ---- characters and classes

    const written = (code) => `\\u{${code.toString(16)}}`;
    const setOf = (letter, mode) => (mode.a ? ASCII_SETS : SETS)[letter.toLowerCase()];
    const category = (letter, mode) => `[${letter < "a" ? "^" : ""}${setOf(letter, mode)}]`;

    // What stands in a class for the characters of a range, and for those that are the same but for case.
    function range(low, high, mode) {
      if (mode.i && high > 0xffff) cannot("characters beyond U+FFFF whose case does not count");
      return `${written(low)}-${written(high)}${mode.i ? alike(low, high, mode.a).map(written).join("") : ""}`;
    }
    const literal = (code, mode) => (mode.i ? `[${range(code, code, mode)}]` : written(code));

    function boundary(isOne, mode) {
      const word = `[${setOf("w", mode)}]`;
      const [before, behind, noneBefore, noneBehind] = [`(?<=${word})`, `(?=${word})`, `(?<!${word})`, `(?!${word})`];
      if (isOne) return `(?:${before}${noneBehind}|${noneBefore}${behind})`;
      return `(?:${before}${behind}|${noneBefore}${noneBehind}(?:(?<=${ANY})|(?=${ANY})))`; // no boundary in nothing
    }

    // The code of a character by its number or control letter; null when the escape is something else.
    function numbered(escape) {
      const letter = escape[1];
      const digits = { x: 2, u: 4, U: 8 }[letter];
      if (digits) {
        const hex = getWhile(digits, /^[0-9a-fA-F]$/);
        if (hex.length < digits) throw error(`incomplete escape ${escape}${hex}`, 2 + hex.length);
        const code = parseInt(hex, 16);
        if (code > 0x10ffff) throw error(`bad escape ${escape}${hex}`, 2 + hex.length);
        return code;
      }
      if (letter === "N") {
        if (!match("{")) throw error("missing {");
        getUntil("}", "character name");
        cannot("a character by its name");
        return 0;
      }
      return null;
    }

    function plainEscape(escape) {
      if (/^\\[A-Za-z]$/.test(escape)) throw error(`bad escape ${escape}`, 2);
      return codeOf([...escape][1]);
    }

    // {code} of one character, or {js} of a category.
    function classEscape(escape, mode) {
      const letter = escape[1];
      if (letter in CONTROLS) return { code: CONTROLS[letter] };
      if ("dDsSwW".includes(letter)) return { js: category(letter, mode) };
      const code = numbered(escape);
      if (code !== null) return { code };
      if (/[0-7]/.test(letter)) {
        const octal = letter + getWhile(2, /^[0-7]$/);
        if (parseInt(octal, 8) > 0o377)
          throw error(`octal escape value \\${octal} outside of range 0-0o377`, 1 + octal.length);
        return { code: parseInt(octal, 8) };
      }
      if (/[89]/.test(letter)) throw error(`bad escape ${escape}`, 2);
      return { code: plainEscape(escape) };
    }

    function readClass(mode) {
      const here = tell() - 1;
      const unterminated = () => malformed("unterminated character set", here);
      const negated = match("^");
      const parts = [];
      const one = (token) => (token[0] === "\\" ? classEscape(token, mode) : { code: codeOf(token) });
      const add = ({ code, js }) => parts.push(js ?? range(code, code, mode));
      for (;;) {
        const token = get();
        if (token === null) throw unterminated();
        if (token === "]" && parts.length) break;
        const low = one(token);
        if (!match("-")) {
          add(low);
          continue;
        }
        const that = get();
        if (that === null) throw unterminated();
        if (that === "]") {
          add(low);
          add({ code: codeOf("-") });
          break;
        }
        const high = one(that);
        if (low.js || high.js || high.code < low.code)
          throw error(`bad character range ${token}-${that}`, size(token) + 1 + size(that));
        parts.push(range(low.code, high.code, mode));
      }
      return `[${negated ? "^" : ""}${parts.join("")}]`;
    }

    // ---- items: {js, lo, hi, kind, sure}, `sure` the groups that have taken part when it has matched

    class Sure {
      own = new Set();
      constructor(before = null) {
        this.before = before;
      }
      has(group) {
        return this.own.has(group) || (this.before?.has(group) ?? false);
      }
    }

    const item = (js, lo = 1, hi = lo, { kind = "", sure = [] } = {}) => ({ js, lo, hi, kind, sure });
    const anchor = (js) => item(js, 0, 0, { kind: "anchor" });

    function reference(group, back, mode, sure) {
      if (!groups[group]) throw error("cannot refer to an open group", back);
      checkLookbehind(group);
      if (mode.i) cannot("a reference to a group whose case does not count");
      if (lookbehindFrom !== null) cannot("a reference to a group behind");
      // Where a group took no part a reference fails in Python and matches nothing at all in JavaScript.
      if (!sure.has(group)) cannot("a reference to a group that may have taken no part");
      return item(`\\${group}`, ...groups[group]);
    }

    function checkLookbehind(group) {
      if (lookbehindFrom === null) return;
      if (!groups[group]) throw error("cannot refer to an open group");
      if (group >= lookbehindFrom) throw error("cannot refer to group defined in the same lookbehind subpattern");
    }

    function escaped(escape, mode, sure) {
      const letter = escape[1];
      if (letter === "A") return anchor(`(?<!${ANY})`);
      if (letter === "Z") return anchor(END);
      if (letter === "b" || letter === "B") return anchor(boundary(letter === "b", mode));
      if ("dDsSwW".includes(letter)) return item(category(letter, mode));
      if (letter in CONTROLS) return item(literal(CONTROLS[letter], mode));
      const code = numbered(escape);
      if (code !== null) return item(literal(code, mode));
      if (letter === "0") return item(literal(parseInt(letter + getWhile(2, /^[0-7]$/), 8), mode));
      if (!isDigit(letter)) return item(literal(plainEscape(escape), mode));
      let digits = letter + getWhile(1, /^[0-9]$/);
      if (/^[0-7]{2}$/.test(digits) && /^[0-7]$/.test(next)) {
        digits += get();
        if (parseInt(digits, 8) > 0o377) throw error(`octal escape value \\${digits} outside of range 0-0o377`, 4);
        return item(literal(parseInt(digits, 8), mode));
      }
      if (Number(digits) >= groups.length) throw error(`invalid group reference ${digits}`, digits.length);
      return reference(Number(digits), 1 + digits.length, mode, sure);
    }

    // The least and most of a quantifier; null where "{" is a character like any other.
    function repetition(token, here) {
      if (token !== "{") return { "?": [0, 1], "*": [0, Infinity], "+": [1, Infinity] }[token];
      if (next === "}") return null;
      const low = getWhile(Infinity, /^[0-9]$/);
      const high = match(",") ? getWhile(Infinity, /^[0-9]$/) : low;
      if (!match("}")) {
        index = here;
        advance();
        return null;
      }
      const [min, max] = [low ? Number(low) : 0, high ? Number(high) : Infinity];
      if (min >= MAX_REPEAT || (high && max >= MAX_REPEAT)) throw malformed("the repetition number is too large");
      if (max < min) throw error("min repeat greater than max repeat", tell() - here);
      return [min, max];
    }

    function repeated(items, [min, max], here, sure) {
      const last = items.pop();
      if (!last || last.kind === "anchor") throw error("nothing to repeat", tell() - here + 1);
      if (last.kind === "repeat") throw error("multiple repeat", tell() - here + 1);
      const lazy = match("?");
      if (!lazy && match("+")) cannot("a possessive quantifier");
      const js = `(?:${last.js}){${min},${max === Infinity ? "" : max}}${lazy ? "?" : ""}`;
      const hi = last.hi && max ? last.hi * max : 0;
      const once = min === 1 && max === 1;
      if (!once) last.sure.forEach((group) => sure.own.delete(group));
      items.push(item(js, last.lo * min, hi, { kind: "repeat", sure: once ? last.sure : [] }));
    }

    function checkName(name) {
      if (!/^[\p{XID_Start}_]\p{XID_Continue}*$/u.test(name))
        throw error(`bad character in group name ${repr(name)}`, size(name) + 1);
    }

    // ---- groups

    const close = (start) => {
      if (!match(")")) throw malformed("missing ), unterminated subpattern", start);
    };

    // Read what follows "("; null for what stands for nothing: comments and global flags.
    function group(mode, nested, sure, isFirst) {
      const start = tell() - 1;
      if (!match("?")) return capturing(null, mode, nested, sure, start);
      const char = get();
      if (char === null) throw error("unexpected end of pattern");
      if (char === "P") return namedGroup(mode, nested, sure, start);
      if (char === "#") return comment(start);
      if ("=!<".includes(char)) return look(char, mode, nested, sure, start);
      if (char === "(") return conditional(mode, nested, sure, start);
      if (char === ">") cannot("an atomic group");
      else if (char !== ":") {
        if (!FLAGS.includes(char) && char !== "-") throw error(`unknown extension ?${char}`, size(char) + 1);
        const changed = flags(char);
        if (changed.isGlobal) {
          if (!isFirst) throw error("global flags not at the start of the expression", tell() - start);
          globals = { ...globals, ...changed.mode };
          return null;
        }
        mode = { ...mode, ...changed.mode };
        if (changed.mode.u) mode.a = false;
      }
      const inner = alternatives(mode, nested + 1, sure);
      close(start);
      return { ...inner, js: `(?:${inner.js})`, kind: "" };
    }

    function capturing(name, mode, nested, sure, start) {
      const id = groups.push(null) - 1;
      if (name !== null) {
        if (names.has(name)) {
          const why = `redefinition of group name ${repr(name)} as group ${id}; was group ${names.get(name)}`;
          throw error(why, size(name) + 1);
        }
        names.set(name, id);
      }
      const inner = alternatives(mode, nested + 1, sure);
      close(start);
      groups[id] = [inner.lo, inner.hi];
      return { ...inner, js: `(${inner.js})`, kind: "", sure: [...inner.sure, id] };
    }

    function namedGroup(mode, nested, sure, start) {
      if (match("<")) {
        const name = getUntil(">", "group name");
        checkName(name);
        return capturing(name, mode, nested, sure, start);
      }
      if (match("=")) {
        const name = getUntil(")", "group name");
        checkName(name);
        if (!names.has(name)) throw error(`unknown group name ${repr(name)}`, size(name) + 1);
        return reference(names.get(name), size(name) + 1, mode, sure);
      }
      const char = get();
      if (char === null) throw error("unexpected end of pattern");
      throw error(`unknown extension ?P${char}`, size(char) + 2);
    }

    function comment(start) {
      for (;;) {
        if (next === null) throw malformed("missing ), unterminated comment", start);
        if (get() === ")") return null;
      }
    }

    function look(char, mode, nested, sure, start) {
      const outer = lookbehindFrom;
      const isBehind = char === "<";
      if (isBehind) {
        char = get();
        if (char === null) throw error("unexpected end of pattern");
        if (char !== "=" && char !== "!") throw error(`unknown extension ?<${char}`, size(char) + 2);
        lookbehindFrom ??= groups.length;
      }
      const inner = alternatives(mode, nested + 1, sure);
      lookbehindFrom = outer;
      close(start);
      if (isBehind && inner.lo !== inner.hi) variable = true;
      return item(`(?${isBehind ? "<" : ""}${char}${inner.js})`, 0);
    }

    function conditional(mode, nested, sure, start) {
      cannot("a conditional group");
      const name = getUntil(")", "group name");
      let id = names.get(name);
      if (/^[\p{XID_Start}_]\p{XID_Continue}*$/u.test(name)) {
        if (id === undefined) throw error(`unknown group name ${repr(name)}`, size(name) + 1);
      } else {
        if (!/^[\s+]*[0-9][0-9_]*\s*$/.test(name))
          throw error(`bad character in group name ${repr(name)}`, size(name) + 1);
        id = parseInt(name.replace(/[\s+_]/g, ""), 10);
        if (!id) throw error("bad group number", size(name) + 1);
        if (!conditions.has(id)) conditions.set(id, tell() - size(name) - 1);
      }
      checkLookbehind(id);
      const yes = sequence(mode, nested + 1, sure, false);
      let no = item("", 0);
      if (match("|")) {
        no = sequence(mode, nested + 1, sure, false);
        if (next === "|") throw error("conditional backref with more than two branches");
      }
      close(start);
      return item("", Math.min(yes.lo, no.lo), Math.max(yes.hi, no.hi));
    }

    function flags(char) {
      const [on, off] = [new Set(), new Set()];
      const wrong = (missing, token) =>
        token === null
          ? error(missing === "missing -, : or )" || missing === "missing flag" ? missing : "missing :")
          : error(/^\p{L}+$/u.test(token) ? "unknown flag" : missing, size(token));
      if (char !== "-")
        do {
          if (char === "L") throw error("bad inline flags: cannot use 'L' flag with a str pattern");
          on.add(char);
          if (on.has("a") && on.has("u")) throw error("bad inline flags: flags 'a', 'u' and 'L' are incompatible");
          if (char === "t") cannot("the flag t");
          char = get();
          if (char === null || (!")-:".includes(char) && !FLAGS.includes(char))) throw wrong("missing -, : or )", char);
        } while (!")-:".includes(char));
      const mode = Object.fromEntries([...on].map((flag) => [flag, true]));
      if (char === ")") return { isGlobal: true, mode };
      if (char === "-") {
        char = get();
        if (char === null || !FLAGS.includes(char)) throw wrong("missing flag", char);
        do {
          if ("aLu".includes(char)) throw error("bad inline flags: cannot turn off flags 'a', 'u' and 'L'");
          off.add(char);
          char = get();
          if (char === null || (char !== ":" && !FLAGS.includes(char))) throw wrong("missing :", char);
        } while (char !== ":");
      }
      if ([...on].some((flag) => off.has(flag))) throw error("bad inline flags: flag turned on and off", 1);
      for (const flag of off) mode[flag] = false;
      return { isGlobal: false, mode };
    }

    // ---- sequences and alternatives

    function alternatives(mode, nested, sure) {
      if (nested > MAX_NESTING) throw refuse("groups nested too deeply");
      const branches = [];
      do branches.push(sequence(nested ? mode : globals, nested, sure, !nested && !branches.length));
      while (match("|"));
      if (branches.length === 1) return branches[0];
      const [lows, highs] = [branches.map(({ lo }) => lo), branches.map(({ hi }) => hi)];
      const [lo, hi] = [lows.reduce((a, b) => Math.min(a, b)), highs.reduce((a, b) => Math.max(a, b))];
      return item(branches.map(({ js }) => js).join("|"), lo, hi);
    }

    function sequence(mode, nested, before, isFirst) {
      const items = [];
      const sure = new Sure(before);
      while (next !== null && next !== "|" && next !== ")") {
        const token = get();
        if (mode.x && /^[ \t\n\r\v\f]$/.test(token)) continue;
        if (mode.x && token === "#") {
          for (let skipped = get(); skipped !== null && skipped !== "\n"; ) skipped = get();
          continue;
        }
        const here = tell();
        if (token[0] === "\\") items.push(escaped(token, mode, sure));
        else if ("*+?{".includes(token)) {
          const bounds = repetition(token, here);
          if (bounds) repeated(items, bounds, here, sure);
          else items.push(item(literal(codeOf(token), mode)));
        } else if (token === "[") items.push(item(readClass(mode)));
        else if (token === ".") items.push(item(mode.s ? ANY : "[^\\n]"));
        else if (token === "^") items.push(anchor(mode.m ? "(?<![^\\n])" : `(?<!${ANY})`));
        else if (token === "$") items.push(anchor(mode.m ? "(?![^\\n])" : `(?=\\n?${END})`));
        else if (token === "(") {
          const read = group(mode, nested, sure, isFirst && !items.length);
          read?.sure.forEach((group) => sure.own.add(group));
          if (read) items.push(read);
          else if (!nested) mode = globals;
        } else items.push(item(literal(codeOf(token), mode)));
      }
      const sum = (side) => items.reduce((total, item) => total + item[side], 0);
      const js = items.map((item) => item.js).join("");
      return item(js, sum("lo"), sum("hi"), { sure: items.flatMap((item) => item.sure) });
    }

    advance();
    const { js } = alternatives(globals, 0, null);
    if (globals.a && globals.u) throw malformed("ASCII and UNICODE flags are incompatible");
    if (next !== null) throw error("unbalanced parenthesis");
    for (const [id, at] of conditions)
      if (id >= groups.length) throw malformed(`invalid group reference ${id}`, at);
    if (variable) throw malformed("look-behind requires fixed-width pattern");
    return { js, refused };
  }

  // ---- upper and lower case, as Python compares them: by lower case, and by the upper case of that

  let families = null; // of each character with case those that count as the same

  function alike(low, high, isAscii) {
    families ??= [casesBelow(0x80), casesBelow(0x10000)];
    const found = new Set();
    for (const [code, family] of families[isAscii ? 0 : 1])
      if (low <= code && code <= high) family.forEach((other) => found.add(other));
    return [...found];
  }

  function casesBelow(end) {
    const [byLower, byUpper] = [new Map(), new Map()];
    const add = (map, at, value) => map.set(at, (map.get(at) ?? new Set()).add(value));
    for (let code = 0; code < end; code += 1) {
      const char = from(code);
      const lower = from(codeOf(char.toLowerCase()));
      if (lower === char && char.toUpperCase() === char) continue;
      add(byLower, codeOf(lower), code).get(codeOf(lower)).add(codeOf(lower));
      add(byUpper, lower.toUpperCase(), codeOf(lower));
    }
    const all = new Map();
    for (const lowers of byUpper.values()) {
      const family = [...lowers].flatMap((lower) => [...byLower.get(lower)]);
      for (const code of family) all.set(code, family);
    }
    return all;
  }

  return Object.assign(parsePattern, { PatternError });
})();
