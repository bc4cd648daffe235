// Colourings: what the colours of tensors mean, such as module, role, dtype, difference, origin or values.

const STATE_COLOURS = {
  same: "--quiet",
  close: "--c-grey",
  changed: "--c-amber",
  decoded: "--c-yellow",
  retyped: "--c-teal",
  reshaped: "--c-purple",
  renamed: "--c-blue",
  added: "--c-green",
  removed: "--s11",
  "not compared": "--c-slate",
};
const CLASS_COLOURS = {
  copied: "--c-blue",
  cast: "--c-teal",
  reshaped: "--c-cyan",
  derived: "--c-indigo",
  resized: "--c-amber",
  mapped: "--c-yellow",
  merged: "--c-purple",
  initialised: "--c-red",
  kept: "--c-grey",
  "": "--c-slate",
};
const VALUE_COLOURS = {
  ordinary: "--quiet",
  constant: "--c-amber",
  "all zero": "--c-blue",
  "NaN or infinite": "--c-red",
};
const FINDINGS = { "nothing found": "--quiet", WARN: "--c-amber", FAIL: "--c-red" };
const ORDINARY = new Set(["same", "copied", "ordinary", "nothing found"]);
const SERIES = 12; // the most colours that can be told apart
const ALL_THERE_IS = 0.7; // a module with a larger share of the tensors is nearly the whole network

/** A colouring: ``of`` is the category of each row, ``list`` the label, colour and count of each category. */
class Colouring {
  /** If ``mixed`` is false, ``tone`` never returns -1. */
  constructor(name, labels, colours, of, { mixed = true } = {}) {
    this.name = name;
    this.mixed = mixed;
    this.of = of;
    this.tones = new Map();
    this.list = labels.map((label, at) => ({ label, colour: colours[at], count: 0 }));
    for (const category of of) this.list[category].count += 1;
  }

  /** Return how many tensors of a node have a category that is not in ``ORDINARY``. */
  oddWithin(node) {
    if (!this.before) {
      this.before = new Int32Array(this.of.length + 1);
      for (let row = 0; row < this.of.length; row++)
        this.before[row + 1] = this.before[row] + (ORDINARY.has(this.list[this.of[row]].label) ? 0 : 1);
    }
    return this.before[node.to] - this.before[node.from];
  }

  /**
   * Return the category in which a node is shown: the one of all its tensors.
   * If there are several, it is the most frequent one that is not in ``ORDINARY``; if ``mixed`` is true and none is in
   * ``ORDINARY``, it is -1.
   */
  tone(node) {
    let found = this.tones.get(node);
    if (found === undefined) {
      const counts = new Uint32Array(this.list.length);
      for (let row = node.from; row < node.to; row++) counts[this.of[row]] += 1;
      const there = [...counts.keys()].filter((at) => counts[at]);
      const odd = there.filter((at) => !ORDINARY.has(this.list[at].label)).sort((a, b) => counts[b] - counts[a]);
      found = there.length === 1 ? there[0] : odd.length < there.length || !this.mixed ? odd[0] : -1;
      this.tones.set(node, found);
    }
    return found;
  }

  /** Return the most frequent category of a node's tensors, from a sample of up to 32 of them. */
  most(node) {
    const step = Math.ceil((node.to - node.from) / 32);
    const counts = new Uint8Array(this.list.length);
    let best = this.of[node.from];
    for (let row = node.from; row < node.to; row += step)
      if (++counts[this.of[row]] > counts[best]) best = this.of[row];
    return best;
  }
}

/** Return all colourings that apply to the page's data; the first is shown first. */
function colouringsOf(model) {
  const found = [];
  if (model.difference) {
    found.push(byDifference(model));
  }
  model.changes?.letters.forEach((letter, at) => found.push(byChange(model, letter, at)));
  if (model.findings.size) found.push(byCheck(model));
  if (model.receipt) {
    const { classes } = model.receipt;
    const colours = classes.map((name) => CLASS_COLOURS[name]);
    const labels = classes.map((name) => name || "not in the recipe");
    found.push(new Colouring("origin", labels, colours, Uint8Array.from(model.receipt.class)));
  }
  const modules = byModule(model);
  const roles = byRole(model);
  // Colours of modules say little if nearly all tensors are in one module, or if the modules are layers.
  const one = modules.list.some(({ count }) => count > ALL_THERE_IS * model.size);
  const layers = model.top.children.filter((child) => child.isNumbered).length > 1;
  found.push(...(one || layers ? [roles, modules] : [modules, roles]), byDtype(model));
  if (model.figures) found.push(byValues(model));
  return found;
}

/** Colour by difference; changed tensors by the size of their change, if it was measured. */
function byDifference(model) {
  const { states, state } = model.difference;
  const changed = states.indexOf("changed");
  const shades = model.shades.map(([, label, colour]) => [label, colour]);
  const tones = states.map((name) => [name, STATE_COLOURS[name]]);
  tones.splice(changed, 0, ...shades); // before "changed", which is left for changes that were not measured
  const of = Uint8Array.from(state, (one, row) => {
    if (one !== changed) return one < changed ? one : one + shades.length;
    const shade = model.relative ? shadeOf(model.relative.get(row) ?? NaN, model.shades) : -1;
    return changed + (shade < 0 ? shades.length : shade);
  });
  const [labels, colours] = [tones.map(([label]) => label), tones.map(([, colour]) => colour)];
  return new Colouring("difference", labels, colours, of, { mixed: false });
}

/** Colour by how much one of several models, with the index ``at``, has changed each tensor of their base. */
function byChange(model, letter, at) {
  const shades = model.changes.shades[at];
  const labels = ["same", ...shades.map(([, label]) => label), "not in it", "not measured"];
  const colours = ["--quiet", ...shades.map(([, , colour]) => colour), "--c-slate", "--c-red"];
  const of = Uint8Array.from({ length: model.size }, (_, row) => {
    const change = model.changesOf(row)?.changes[at] ?? null;
    if (change === null) return labels.length - 2;
    if (Number.isNaN(change)) return labels.length - 1;
    return change === 0 ? 0 : 1 + shadeOf(change, shades);
  });
  return new Colouring(`change of ${letter}`, labels, colours, of, { mixed: false });
}

/** Colour by the worst that ckpt check found in each tensor. */
function byCheck(model) {
  const labels = Object.keys(FINDINGS);
  const of = new Uint8Array(model.size);
  for (const [row, found] of model.findings) of[row] = Math.max(...found.map(({ status }) => labels.indexOf(status)));
  return new Colouring("check", labels, Object.values(FINDINGS), of);
}

/**
 * Colour by role in a layer, such as query, dense or LayerNorm; a weight and its bias have the same role.
 * Of an adapter's tensors, the role is that of the adapted module, and the factor: q_proj.lora_A.
 */
function byRole(model) {
  const sizes = new Map();
  const roles = model.keys.map((key, row) => {
    const parts = key.split(".").filter((part) => !/^\d+$/.test(part));
    const factor = parts.findIndex((part) => part.startsWith("lora_"));
    const role = factor > 0 ? parts.slice(factor - 1, factor + 1).join(".") : (parts.length > 1 && parts.at(-2)) || parts.at(-1) || key;
    sizes.set(role, (sizes.get(role) ?? 0) + model.parameters[row + 1] - model.parameters[row]);
    return role;
  });
  const labels = [...sizes.keys()].sort((a, b) => sizes.get(b) - sizes.get(a));
  const shown = labels.length > SERIES ? SERIES - 1 : labels.length;
  const places = new Map(labels.map((label, at) => [label, Math.min(at, shown)]));
  const said = labels.slice(0, shown);
  if (labels.length > shown) said.push(`${labels.length - shown} others`);
  const colours = said.map((_, at) => `--s${(at % SERIES) + 1}`);
  return new Colouring("role", said, colours, Uint8Array.from(roles, (role) => places.get(role)));
}

function byModule(model) {
  const parts = [...model.top.children].sort((a, b) => model.value(b, "parameters") - model.value(a, "parameters"));
  const shown = parts.length > SERIES ? SERIES - 1 : parts.length;
  const of = new Uint8Array(model.size).fill(shown);
  parts.slice(0, shown).forEach((part, at) => of.fill(at, part.from, part.to));
  const labels = parts.slice(0, shown).map((part) => model.keyOf(part));
  if (parts.length > shown) labels.push(`${parts.length - shown} others`);
  return new Colouring(
    "module",
    labels,
    labels.map((_, at) => `--s${(at % SERIES) + 1}`),
    of,
  );
}

function byDtype(model) {
  const labels = [...new Set(model.kinds.map((kind) => kind[0]))];
  const of = Uint8Array.from(model.kind, (kind) => labels.indexOf(model.kinds[kind][0]));
  return new Colouring(
    "dtype",
    labels,
    labels.map((_, at) => `--s${(at % SERIES) + 1}`),
    of,
  );
}

function byValues(model) {
  const { zeros, nan, inf, std, min, max } = model.figures;
  const labels = Object.keys(VALUE_COLOURS);
  const of = new Uint8Array(model.size);
  for (let row = 0; row < model.size; row++) {
    if (nan[row] || inf[row]) of[row] = 3;
    else if (zeros[row] && min[row] === 0 && max[row] === 0) of[row] = 2;
    else if (std[row] === 0 && model.kinds[model.kind[row]][1].reduce((a, b) => a * b, 1) > 1) of[row] = 1;
  }
  return new Colouring("values", labels, Object.values(VALUE_COLOURS), of);
}

/** Return the present colour of a CSS variable, in the light or dark theme, in a form that a canvas accepts. */
function styleColour(name) {
  const probe = $("probe");
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}
