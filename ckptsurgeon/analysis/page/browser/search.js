// The search for tensors: by words anywhere in a key, or a key pattern as for --include; and by category.

class Search {
  constructor(model) {
    this.model = model;
    this.mode = "text";
    this.text = "";
    this.chosen = new Set(); // categories of the colouring to which the search is limited; empty: all
    this.categoryOf = null;
    this.error = null;
    this.clear();
  }

  clear() {
    this.text = "";
    this.chosen.clear();
    this.run();
  }

  get isActive() {
    return this.text !== "" || this.chosen.size > 0;
  }

  /** Search all keys; after an error in the pattern, the previous result stays. */
  run() {
    this.error = null;
    try {
      this.look(matcherOf(this.mode, this.text));
    } catch (error) {
      if (!(error instanceof PatternError)) throw error;
      this.error = error;
    }
  }

  look(matches) {
    const { keys, size } = this.model;
    const before = new Int32Array(size + 1);
    const hit = new Uint8Array(size);
    for (let row = 0; row < size; row++) {
      const wanted = !this.chosen.size || this.chosen.has(this.categoryOf[row]);
      hit[row] = wanted && matches(keys[row]) ? 1 : 0;
      before[row + 1] = before[row] + hit[row];
    }
    this.hit = hit;
    this.before = before;
    this.found = { bytes: this.foundOf(this.model.bytes), parameters: this.foundOf(this.model.parameters) };
  }

  /** Return, for each row, the sum over the found rows before it. */
  foundOf(sums) {
    const found = new Float64Array(this.model.size + 1);
    for (let row = 0; row < this.model.size; row++)
      found[row + 1] = found[row] + (this.hit[row] ? sums[row + 1] - sums[row] : 0);
    return found;
  }

  /** Return the size of the found tensors of a node. */
  valueWithin(node, metric) {
    return this.found[metric][node.to] - this.found[metric][node.from];
  }

  get count() {
    return this.before[this.model.size];
  }

  /** Return how many tensors of a node were found. */
  within(node) {
    return this.before[node.to] - this.before[node.from];
  }

  /** Return the first found rows, at most ``limit``. */
  first(limit) {
    const rows = [];
    for (let row = 0; row < this.model.size && rows.length < limit; row++) if (this.hit[row]) rows.push(row);
    return rows;
  }

  /** Return the pattern with **. before it, and how many tensors this finds; null if it finds none. */
  deeper() {
    if (this.mode !== "pattern" || this.error || /^(\*\*|re:)/.test(this.text)) return null;
    const text = `**.${this.text}`;
    const matches = matcherOf("pattern", text);
    const number = this.model.keys.reduce((total, key) => total + (matches(key) ? 1 : 0), 0);
    return number ? { text, number } : null;
  }
}

/** Return a function that tells whether a key matches the search; throws PatternError. */
function matcherOf(mode, text) {
  if (text === "") return () => true;
  if (mode === "pattern") {
    const pattern = parsePattern(text);
    return (key) => pattern.matches(key);
  }
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return (key) => {
    const low = key.toLowerCase();
    return words.every((word) => low.includes(word));
  };
}
