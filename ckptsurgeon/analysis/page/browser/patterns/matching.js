// Matching keys by the segments of a pattern, as keys/matcher.py: segment after segment where that can be.

const DOT_TOKEN = choiceToken([["."]]);
const DOUBLE_TOKEN = { kind: "double" };

/** What tells whether a key matches segments. */
function segmentsMatcher(chars) {
  const segments = parseSegments(chars).map((segment) => segment && joinLiterals(segment));
  const tokens = segments.flatMap((segment) => segment ?? []);
  const repeats = bindRepeated(tokens.filter((token) => token.name));
  // As if each name stood alone; where one stands twice this only rules most keys out.
  const alone = segments.map((segment) => segment?.map((token) => ({ ...token, binds: false })) ?? null);
  const quick = tokens.some((token) => token.dots) ? matcherByKey(alone) : matcherBySegment(alone);
  if (!repeats) return quick;
  const exact = matcherByKey(segments);
  return (key) => quick(key) && exact(key);
}

/** The tokens with literals beside each other made one. */
function joinLiterals(tokens) {
  const found = [];
  for (const token of tokens) {
    if (token.spelling && found.at(-1)?.spelling) found.at(-1).spelling.push(...token.spelling);
    else found.push(token.spelling ? { spelling: [...token.spelling] } : token);
  }
  return found.map((token) => (token.spelling ? choiceToken([token.spelling]) : token));
}

/** Mark the names that stand twice, and say whether any does. */
function bindRepeated(numbers) {
  const last = new Map(numbers.map((token, i) => [token.name, i]));
  const first = new Map(numbers.map((token, i) => [token.name, i]).reverse());
  numbers.forEach((token, i) => {
    token.binds = first.get(token.name) !== last.get(token.name);
    token.isLast = last.get(token.name) === i;
  });
  return last.size < numbers.length;
}

/** The whole key at once, since a literal dot spans its segments and a name that stands twice ties them together. */
function matcherByKey(segments) {
  const tokens = segments.flatMap((segment) => (segment ? [DOT_TOKEN, ...segment] : [DOUBLE_TOKEN]));
  return (key) => {
    const chars = [...`.${key}`];
    return walk(tokens, chars).some((at) => at.some((i) => i && isBoundary(chars[i])));
  };
}

function matcherBySegment(segments) {
  const automaton = new SegmentAutomaton(segments);
  return (key) => automaton.matches(key);
}

/** A deterministic automaton over whole segments, built as keys need it. */
class SegmentAutomaton {
  states = new Map();
  previous = "";

  constructor(segments) {
    this.segments = segments;
    // The keys of a page stand in order: each goes on from where it parts from the one before.
    this.trail = [[0, this.stateAt([0])]];
  }

  matches(key) {
    const trail = this.trail;
    this.rewind(key);
    let [begin, state] = trail.at(-1);
    while (!state.matched && state.waiting.length && begin <= key.length) {
      const dot = key.indexOf(".", begin);
      const text = key.slice(begin, dot < 0 ? key.length : dot);
      state = state.after.get(text) ?? this.step(state, text);
      if (dot < 0) break;
      trail.push([(begin = dot + 1), state]);
    }
    return state.matched;
  }

  /** Go back to where a key parts from the one before. */
  rewind(key) {
    const { previous, trail } = this;
    let shared = 0;
    while (shared < previous.length && key.charCodeAt(shared) === previous.charCodeAt(shared)) shared += 1;
    while (trail.at(-1)[0] > shared) trail.pop();
    this.previous = key;
  }

  step(state, text) {
    const places = [];
    for (const at of state.waiting) {
      if (this.segments[at] === null) places.push(at);
      else if (fitsSegment(this.segments[at], text)) places.push(at + 1);
    }
    const following = this.stateAt(places);
    state.after.set(text, following);
    return following;
  }

  /** The state in which any of some segments may come next. */
  stateAt(places) {
    const { segments, states } = this;
    const closed = new Set();
    for (let at of places) {
      closed.add(at);
      while (at < segments.length && segments[at] === null) closed.add((at += 1));
    }
    const waiting = [...closed].sort((a, b) => a - b);
    const known = waiting.join();
    if (!states.has(known)) states.set(known, { matched: closed.has(segments.length), waiting, after: new Map() });
    return states.get(known);
  }
}

function fitsSegment(tokens, text) {
  if (tokens.length === 1 && tokens[0].kind === "star") return true;
  if (tokens.length === 1 && tokens[0].kind === "choice") return tokens[0].texts.has(text);
  const chars = [...text];
  return walk(tokens, chars).some((at) => at.at(-1) === chars.length);
}
