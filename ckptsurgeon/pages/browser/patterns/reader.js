// A regular expression of Python's while it is read: where reading stands and what was met, as Python's re._parser.

class ExpressionReader {
  index = 0; // behind ``next``
  next = null; // the character that comes next, a backslash with the one behind it; null at the end
  globals = { i: false, m: false, s: false, x: false, a: false, u: false };
  groups = [null]; // of each group its widths, null while it is open
  names = new Map();
  conditions = new Map(); // of each group that a condition asks for by its number, where
  lookbehindFrom = null; // the first group that is in the lookbehind being read
  hasVariableLookbehind = false;
  refused = ""; // the first thing met that JavaScript cannot do; errors of Python's behind it come first

  constructor(text, chars) {
    this.text = text;
    this.chars = chars;
    this.advance();
  }

  advance() {
    const { chars, index } = this;
    this.next = chars[index] ?? null;
    if (this.next === "\\") {
      if (index + 1 === chars.length) throw this.malformed("bad escape (end of pattern)", index);
      this.next += chars[index + 1];
    }
    this.index += lengthOf(this.next);
  }

  /** Where ``next`` begins. */
  tell() {
    return this.index - lengthOf(this.next);
  }

  seek(index) {
    this.index = index;
    this.advance();
  }

  get() {
    const token = this.next;
    if (token !== null) this.advance();
    return token;
  }

  /** Read a token if it comes next, and say whether it did. */
  match(token) {
    if (this.next !== token) return false;
    this.advance();
    return true;
  }

  getWhile(limit, allowed) {
    let taken = "";
    while (taken.length < limit && this.next !== null && allowed.test(this.next)) taken += this.get();
    return taken;
  }

  getUntil(terminator, what) {
    for (let taken = ""; ;) {
      const token = this.get();
      if (token === null && !taken) throw this.error(`missing ${what}`);
      if (token === null) throw this.error(`missing ${terminator}, unterminated name`, lengthOf(taken));
      if (token === terminator && !taken) throw this.error(`missing ${what}`, 1);
      if (token === terminator) return taken;
      taken += token;
    }
  }

  /** Python's error, of the place that lies ``back`` characters before ``next``. */
  error(why, back = 0) {
    return this.malformed(why, this.tell() - back);
  }

  malformed(why, at = null) {
    const { text, chars } = this;
    let where = at === null ? "" : ` at position ${at}`;
    if (where && chars.includes("\n")) {
      const before = chars.slice(0, at);
      where += ` (line ${before.filter((c) => c === "\n").length + 1}, column ${at - before.lastIndexOf("\n")})`;
    }
    return new PatternError(`${text} is not a regular expression: ${why}${where}.`);
  }

  /** Note what JavaScript cannot do, and read on: the rest may be an error. */
  cannot(what) {
    this.refused ||= what;
  }

  /** The error for what only this page cannot do. */
  refusal(what) {
    const hint = "ckpt itself can, on the command line.";
    return new PatternError(`this page cannot follow ${this.text}: it has ${what}.`, hint, true);
  }
}

const lengthOf = (token) => (token === null ? 0 : [...token].length);
