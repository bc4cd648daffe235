// Matches keys with the segments of a pattern, as keys/matcher.py: segment by segment if possible, else the whole key.

const DOT_TOKEN = choiceToken([["."]]);
const DOUBLE_TOKEN = { kind: "double" };

/** Return a function that tells whether a key matches a pattern, given as its characters; throws PatternError. */
function segmentsMatcher(chars) {
  const segments = parseSegments(chars).map((segment) => segment && joinLiterals(segment));
  const tokens = segments.flatMap((segment) => segment ?? []);
  const repeats = bindRepeated(tokens.filter((token) => token.name));
  // As if a name that occurs twice could match two numbers: this matches more keys, and is fast.
  const alone = segments.map((segment) => segment?.map((token) => ({ ...token, binds: false })) ?? null);
  const quick = tokens.some((token) => token.dots) ? matcherByKey(alone) : matcherBySegment(alone);
  if (!repeats) return quick;
  const exact = matcherByKey(segments);
  return (key) => quick(key) && exact(key);
}

/** Return the tokens with consecutive literals joined into one. */
function joinLiterals(tokens) {
  const found = [];
  for (const token of tokens) {
    if (token.spelling && found.at(-1)?.spelling) found.at(-1).spelling.push(...token.spelling);
    else found.push(token.spelling ? { spelling: [...token.spelling] } : token);
  }
  return found.map((token) => (token.spelling ? choiceToken([token.spelling]) : token));
}

/** Mark the numbers whose names occur twice; return whether there are any. */
function bindRepeated(numbers) {
  const last = new Map(numbers.map((token, i) => [token.name, i]));
  const first = new Map(numbers.map((token, i) => [token.name, i]).reverse());
  numbers.forEach((token, i) => {
    token.binds = first.get(token.name) !== last.get(token.name);
    token.isLast = last.get(token.name) === i;
  });
  return last.size < numbers.length;
}

/** Match whole keys: a literal dot spans segments, and a name that occurs twice must match the same number. */
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
    // The keys of a page are sorted: matching continues at the end of the prefix shared with the previous key.
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

  /** Go back to the last segment within the prefix that ``key`` shares with the previous key. */
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

  /** Return the state in which any of the segments with these indices may come next. */
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
