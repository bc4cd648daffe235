// The data of the page: the columns of its table, and the tree of modules over the table's rows.

/** A module or a tensor. Its tensors are the rows from ``from`` to before ``to``; ``row`` is -1 for a module. */
class Node {
  constructor(name, parent, from, row = -1) {
    this.name = name;
    this.parent = parent;
    this.depth = parent === null ? -1 : parent.depth + 1;
    this.from = from;
    this.to = from + 1;
    this.row = row;
    this.children = [];
    this.named = null;
    this.open = false;
  }

  get isTensor() {
    return this.row >= 0;
  }

  /** Whether this is a layer, or an expert: its name is a number. */
  get isNumbered() {
    return /^\d+$/.test(this.name);
  }
}

class Model {
  constructor(data) {
    const { tensors } = data;
    this.data = data;
    this.keys = frontDecoded(tensors.shared, tensors.rest);
    this.size = this.keys.length;
    this.kinds = tensors.kinds;
    this.kind = tensors.kind;
    this.files = tensors.files;
    this.file = tensors.file;
    this.tiedTo = new Map(tensors.ties);
    this.tiedFrom = ownersOf(tensors.ties);
    this.coded = codedOf(data.coded);
    this.figures = data.figures;
    this.difference = data.difference;
    this.relative = relativesOf(data.difference);
    this.changes = data.changes ? changesOf(data.changes) : null;
    this.receipt = data.receipt;
    this.bytes = this.sums(2);
    this.parameters = this.sums(3);
    this.root = this.tree();
    this.leaves = this.leavesOf();
    this.findings = this.findingsOf(data.check);
    this.shades = shadesOf(this.relative ? [...this.relative.values()] : []);
    this.odd = this.oddRows();
  }

  /** Whether the page shows differences between checkpoints. */
  get compares() {
    return Boolean(this.difference || this.changes);
  }

  dtype(row) {
    return this.kinds[this.kind[row]][0];
  }

  shape(row) {
    return this.kinds[this.kind[row]][1];
  }

  /** Return the relative change of a tensor: 0 if equal, NaN if not measured, null if only one checkpoint has it. */
  change(row) {
    const { states, state } = this.difference;
    const name = states[state[row]];
    if (name === "added" || name === "removed") return null;
    if (name === "same" || name === "renamed") return this.relative.get(row) ?? 0;
    return this.relative.get(row) ?? NaN;
  }

  /** Return what ckpt check found in tensors: by row, a list of {id, status, what, todo}. */
  findingsOf(check) {
    const rows = new Map();
    for (const { id, found } of check?.rows ?? [])
      for (const one of found) {
        if (one.status === "PASS") continue;
        for (const node of one.keys.map((key) => this.find(key)))
          if (node?.isTensor) made(rows, node.row, () => []).push({ ...one, id });
      }
    return rows;
  }

  /** Return how several models have changed a tensor; for a tied tensor, how they have changed the stored one. */
  changesOf(row) {
    return this.changes.rows.get(this.tiedTo.get(row) ?? row);
  }

  /** Return, for each row, how many rows before it differ, have NaN or infinite values, or a finding of ckpt check. */
  oddRows() {
    const { difference, figures, size } = this;
    const found = new Int32Array(size + 1);
    for (let row = 0; row < size; row++) {
      const changed = this.changes && this.changesOf(row)?.changes.some((one) => one !== null && one !== 0);
      const differs = changed || (difference && difference.states[difference.state[row]] !== "same");
      const bad = figures?.nan[row] || figures?.inf[row] || this.findings.has(row);
      found[row + 1] = found[row] + (differs || bad ? 1 : 0);
    }
    return found;
  }

  /** Return how many tensors of a node differ, have NaN or infinite values, or a finding of ckpt check. */
  oddWithin(node) {
    return this.odd[node.to] - this.odd[node.from];
  }

  /** Return the largest change in a node, of several models the first one's; or 2 and 1 for what FAILs and what WARNs. */
  worstWithin(node) {
    let worst = 0;
    for (let row = node.from; row < node.to; row++) {
      const change = this.relative ? this.change(row) : this.changes && this.changesOf(row)?.changes[0];
      const found = this.findings.get(row);
      const rank = found ? (found.some(({ status }) => status === "FAIL") ? 2 : 1) : 0;
      worst = Math.max(worst, rank, Number.isNaN(change) ? Number.MAX_VALUE : Math.min(change ?? 0, Number.MAX_VALUE));
    }
    return worst;
  }

  /** Return, for each row, the sum of a column over the rows before it; a tied tensor counts once. */
  sums(column) {
    const found = new Float64Array(this.size + 1);
    for (let row = 0; row < this.size; row++) {
      found[row + 1] = found[row] + (this.tiedTo.has(row) ? 0 : this.kinds[this.kind[row]][column]);
    }
    return found;
  }

  /** Return the tree. The rows of a module are consecutive, since keys are sorted. */
  tree() {
    const root = new Node("", null, 0);
    root.open = true;
    for (let row = 0; row < this.size; row++) {
      const names = this.keys[row].split(".");
      let node = root;
      for (let at = 0; at < names.length - 1; at++) {
        node.to = row + 1;
        node = moduleOf(node, names[at], row);
      }
      node.to = row + 1;
      node.children.push(new Node(names.at(-1), node, row, row));
    }
    root.to = this.size;
    return root;
  }

  leavesOf() {
    const found = new Array(this.size);
    const left = [this.root];
    while (left.length) {
      const node = left.pop();
      if (node.isTensor) found[node.row] = node;
      for (const child of node.children) left.push(child);
    }
    return found;
  }

  /** The innermost module that contains all tensors. */
  get top() {
    let top = this.root;
    while (top.children.length === 1 && !top.children[0].isTensor) [top] = top.children;
    return top;
  }

  /** Return the size of a node in "parameters" or "bytes". */
  value(node, metric) {
    const sums = metric === "bytes" ? this.bytes : this.parameters;
    return sums[node.to] - sums[node.from];
  }

  keyOf(node) {
    if (node.isTensor) return this.keys[node.row];
    const names = [];
    for (let at = node; at.parent !== null; at = at.parent) names.unshift(at.name);
    return names.join(".");
  }

  /** Return the tensor or module called ``key``, null if there is none. */
  find(key) {
    let node = this.root;
    const names = key.split(".");
    for (let at = 0; at < names.length; at++) {
      const last = at === names.length - 1;
      const leaf = last && node.children.find((child) => child.isTensor && child.name === names[at]);
      const next = leaf || node.named?.get(names[at]);
      if (!next) return null;
      node = next;
    }
    return node;
  }
}

/** Return the value of a key in a map; if there is none, make and store it. */
function made(map, key, make) {
  if (!map.has(key)) map.set(key, make());
  return map.get(key);
}

function moduleOf(node, name, row) {
  node.named ??= new Map();
  let found = node.named.get(name);
  if (found === undefined) {
    found = new Node(name, node, row);
    node.named.set(name, found);
    node.children.push(found);
  }
  return found;
}

/**
 * Return how several models have changed from this checkpoint, their base: in all, for each row, and in which shades.
 * A change is null for a model without the tensor, NaN if it was not measured, Infinity if all values were zeros.
 */
function changesOf({ base, models, pairs, total, rows }) {
  const named = ([changes, shares, cosines, signs, both, odd, ofModels]) => ({
    changes: changes.map((one, at) => {
      if (one === null) return shares[at] ? Infinity : null; // changed from zeros, or not in this model
      return one === 0 && ofModels[at] ? NaN : one; // only values that are not finite differ, which no norm measures
    }),
    odd,
    shares,
    cosines,
    signs,
    both,
  });
  const letters = models.map((_, at) => String.fromCharCode(65 + (at % 26)) + (at < 26 ? "" : Math.floor(at / 26)));
  const couples = pairs.map(([a, b]) => `${letters[a]} and ${letters[b]}`);
  const byRows = new Map(rows.map(([row, ...sums]) => [row, named(sums)]));
  const shades = models.map((_, at) => shadesOf([...byRows.values()].map(({ changes }) => changes[at])));
  return { base, models, letters, couples, shades, total: named(total), rows: byRows };
}

/** Return the weights that rows of codes stand for, as [method, shape, outermost codes] by row, and the rows of other parts. */
function codedOf(coded) {
  const weights = (coded?.weights ?? []).map(([row, method, ...rest]) => [row, [coded.methods[method], ...rest]]);
  return { weights: new Map(weights), parts: new Map(coded?.parts ?? []), partsOf: ownersOf(coded?.parts ?? []) };
}

/** Return the relative change by row, NaN if it is not known; null if no values were compared. */
function relativesOf(difference) {
  if (!difference?.values) return null;
  return new Map(
    difference.numbers.map(([row, differing, , relative, , nan, inf]) => {
      if (nan || inf) return [row, NaN];
      return [row, differing ? (relative ?? Infinity) : 0]; // Infinity: changed from zeros
    }),
  );
}

function frontDecoded(shared, rest) {
  const keys = new Array(rest.length);
  let before = "";
  for (let row = 0; row < rest.length; row++) {
    before = before.slice(0, shared[row]) + rest[row];
    keys[row] = before;
  }
  return keys;
}

/** Return a map from each row to the rows that are tied to it. */
function ownersOf(ties) {
  const found = new Map();
  for (const [row, owner] of ties) {
    if (!found.has(owner)) found.set(owner, []);
    found.get(owner).push(row);
  }
  return found;
}
