// Finds where tokens can end in the characters of a key: all places at once, so that no pattern is slow.

const MAX_STEPS = 5_000_000;

const isBoundary = (char) => char === undefined || char === ".";
const inOrder = (places) => [...new Set(places)].sort((a, b) => a - b);

/** Return the sorted indices at which all tokens can end, for each choice of numbers for names that occur twice. */
function walk(tokens, chars) {
  const spend = walkBudget();
  let ways = new Map([["", { bound: new Map(), at: [0] }]]);
  for (const token of tokens) {
    const next = new Map();
    for (const way of ways.values()) {
      spend(way.at.length);
      if (token.binds) bindNumber(token, chars, way, { next, spend });
      else mergeWay(next, way.bound, placesAfter(token, chars, way.at));
    }
    ways = next;
    if (!ways.size) break;
  }
  return [...ways.values()].map((way) => way.at);
}

function walkBudget() {
  let steps = 0;
  return (cost) => {
    steps += cost;
    if (steps > MAX_STEPS) throw new PatternError("a key takes this page too long to match.");
  };
}

function mergeWay(ways, bound, at) {
  if (!at.length) return;
  const id = bound.size ? [...bound].join() : "";
  const known = ways.get(id);
  if (known) known.at = inOrder([...known.at, ...at]);
  else ways.set(id, { bound, at });
}

/** Add to ``next`` the indices after a name that occurs twice, for each number that it can match. */
function bindNumber(token, chars, { bound, at }, { next, spend }) {
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
    mergeWay(next, following, places);
  }
}

function* numbersAt(chars, begin) {
  let number = "";
  for (let at = begin; at < chars.length && isDigit(chars[at]) && number !== "0"; at += 1) {
    number += chars[at];
    yield number;
  }
}

/** Return the indices at which one token can end if it begins at one of ``at``, sorted and without repeats. */
function placesAfter(token, chars, at) {
  switch (token.kind) {
    case "choice":
      return token.spelling ? afterSpelling(token.spelling, chars, at) : afterChoice(token, chars, at);
    case "double":
      return afterDouble(chars, at);
    case "star":
      return afterStar(chars, at);
    case "number":
      return afterNumber(chars, at);
    default: // "one" and "class"
      return at.filter((i) => !isBoundary(chars[i]) && inClass(token, codeOf(chars[i]))).map((i) => i + 1);
  }
}

const afterSpelling = (spelling, chars, at) =>
  at.filter((i) => spelling.every((char, j) => char === chars[i + j])).map((i) => i + spelling.length);

function afterChoice({ byLength }, chars, at) {
  const to = [];
  for (const i of at)
    for (const [length, words] of byLength)
      if (i + length <= chars.length && words.has(chars.slice(i, i + length).join(""))) to.push(i + length);
  return byLength.size > 1 ? inOrder(to) : to;
}

function afterDouble(chars, at) {
  const to = [];
  const first = at.find((i) => isBoundary(chars[i])) ?? Infinity;
  for (let i = first; i <= chars.length; i += 1) if (isBoundary(chars[i])) to.push(i);
  return to;
}

function afterStar(chars, at) {
  const to = [];
  for (let i of at) {
    if (i < to.at(-1)) continue; // a star that began earlier has passed this index
    if (i !== to.at(-1)) to.push(i);
    while (!isBoundary(chars[i])) to.push((i += 1));
  }
  return to;
}

function afterNumber(chars, at) {
  const to = [];
  for (let i of at) {
    if (i < to.at(-1)) continue; // a number that began earlier has passed this index
    if (chars[i] === "0") to.push(i + 1);
    else while (i < chars.length && isDigit(chars[i])) to.push((i += 1));
  }
  return to;
}

const inClass = ({ ranges, negated }, code) =>
  !ranges || ranges.some(([low, high]) => low <= code && code <= high) !== negated;
