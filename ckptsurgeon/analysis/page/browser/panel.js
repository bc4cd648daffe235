// The panel with the facts about the tensor or module that is selected or under the pointer.

class Panel {
  constructor(box, model, network) {
    Object.assign(this, { box, model, network });
    this.columns = model.difference ? sparseDifference(model.difference) : null;
    this.origins = model.receipt ? sparseReceipt(model.receipt) : null;
  }

  show(node) {
    if (node === this.shown) return;
    this.shown = node;
    this.box.replaceChildren(...(node ? this.about(node) : overview(this.model, (row) => this.link(row), (key) => this.network.select(this.model.find(key)))));
  }

  about(node) {
    const key = this.model.keyOf(node);
    const title = el("h2", {}, nameElement(key || "the whole network", "bdi.key"));
    // No copy of a key that does not look as it is, such as one with invisible characters.
    const plain = key && visible(key) === key && navigator.clipboard;
    const copy = plain
      ? el("button.small", { type: "button", title: "Copy the key", onclick: () => this.copy(key) }, "copy")
      : null;
    const close = el("button.small.close", { type: "button", onclick: () => this.network.select(null) }, "close");
    const head = el("div.panel-head", {}, title, copy, close);
    return [head, el("div.panel-body", {}, ...(node.isTensor ? this.tensor(node.row) : this.module(node)))];
  }

  async copy(key) {
    await navigator.clipboard.writeText(key).then(
      () => this.network.finder.say("copied"),
      () => this.network.finder.say("not allowed to copy"),
    );
  }

  tensor(row) {
    const { model } = this;
    const [dtype, shape, nbytes, parameters, opaque] = model.kinds[model.kind[row]];
    const facts = [
      ["shape", shapeText(shape)],
      ["dtype", dtype],
      ["bytes", `${bytesText(nbytes)} (${grouped(nbytes)})`],
    ];
    const without = model.coded.parts.has(row) ? "it is a part of a quantised weight" : `it has no floats (${dtype})`;
    facts.push(["parameters", parameters ? grouped(parameters) : `none: ${without}`]);
    facts.push(...this.quantised(row));
    if (opaque) facts.push(["values", nameElement(opaque)]);
    if (model.file.length && model.files[model.file[row]])
      facts.push(["file", nameElement(model.files[model.file[row]])]);
    const owner = model.tiedTo.get(row);
    if (owner !== undefined) facts.push(["tied to", this.link(owner)]);
    const tied = model.tiedFrom.get(row);
    if (tied)
      facts.push([
        "tied with",
        ...tied.slice(0, 8).map((one) => this.link(one)),
        tied.length > 8 ? `and ${tied.length - 8} more` : null,
      ]);
    const parts = [factsOf(facts)];
    const found = model.findings.get(row) ?? [];
    if (found.length) parts.push(section("Check", ...found.map(findingElement)));
    if (this.columns) parts.push(section("Difference", factsOf(this.difference(row))));
    if (model.changes) parts.push(section("Changes", factsOf(this.changed(row))));
    if (this.origins) parts.push(section("Where it comes from", factsOf(this.origin(row))));
    if (model.figures) parts.push(this.values(row));
    return parts;
  }

  /** Return the facts about the codes of a quantised weight, or about its scales. */
  quantised(row) {
    const { weights, parts, partsOf } = this.model.coded;
    const [method, decoded, outermost] = weights.get(row) ?? [];
    const facts = [];
    if (method) facts.push(["codes of", nameElement(decoded ? `a weight ${shapeText(decoded)}, ${method}` : method)]);
    for (const part of partsOf.get(row) ?? []) facts.push(["decoded by", this.link(part), this.partText(part)]);
    if (outermost) facts.push(["outermost codes", `${grouped(outermost[0])} (${percent(...outermost)})`]);
    if (parts.has(row)) facts.push(["decodes", this.link(parts.get(row))]);
    return facts;
  }

  /** Return the shape and the dtype of a part of a quantised weight, and the range of its values if it is known. */
  partText(row) {
    const { model } = this;
    const [dtype, shape] = model.kinds[model.kind[row]];
    const [low, high] = [model.figures?.min[row] ?? null, model.figures?.max[row] ?? null];
    return ` ${shapeText(shape)} ${dtype}${low === null ? "" : `, ${figureText(low)} to ${figureText(high)}`}`;
  }

  link(row) {
    return el(
      "button.link",
      { type: "button", onclick: () => this.network.select(this.model.leaves[row]) },
      nameElement(this.model.keys[row]),
    );
  }

  values(row) {
    const figures = this.model.figures;
    if (figures.zeros[row] === null)
      return section("Values", el("p.quiet", {}, "no figures: its values are not plain numbers"));
    const facts = [
      ["mean", figureText(figures.mean[row])],
      ["deviation", figureText(figures.std[row])],
    ];
    facts.push(["min", exactText(figures.min[row])], ["max", exactText(figures.max[row])]);
    const number = this.model.shape(row).reduce((a, b) => a * b, 1);
    facts.push([
      "zeros",
      figures.zeros[row] ? `${grouped(figures.zeros[row])} (${percent(figures.zeros[row], number)})` : "0",
    ]);
    for (const name of ["nan", "inf"])
      if (figures[name][row])
        facts.push([name === "nan" ? "NaN" : "infinite", el("strong.bad", {}, grouped(figures[name][row]))]);
    const heights = figures.histogram[row];
    return section("Values", factsOf(facts), heights ? histogram(heights, figures.min[row], figures.max[row]) : null);
  }

  difference(row) {
    const { states, state, values } = this.model.difference;
    const { was, kind, encodings, numbers, why } = this.columns;
    const shade = states[state[row]] === "changed" ? shadeOf(this.model.relative?.get(row) ?? NaN, this.model.shades) : -1;
    const colour = shade < 0 ? STATE_COLOURS[states[state[row]]] : this.model.shades[shade][2];
    const facts = [["state", badge(states[state[row]], colour)]];
    if (was.has(row)) facts.push(["was called", nameElement(was.get(row)[0])]);
    if (kind.has(row)) {
      const [dtype, shape] = this.model.kinds[kind.get(row)[0]];
      facts.push(["was", `${shapeText(shape)} ${dtype}`]);
    }
    if (encodings.has(row)) facts.push(["stored as", encodings.get(row).join(", then ")]);
    if (why.has(row)) facts.push(["why", nameElement(why.get(row)[0])]);
    if (numbers.has(row)) {
      const [differing, maxAbs, , cosine, , inf, nanFirst, nanSecond, infFirst, infSecond] = numbers.get(row);
      facts.push(["elements", differing ? `${grouped(differing)} differ` : "equal in value, in other bits"]);
      const lone = [
        ["NaN in the first only", nanFirst],
        ["NaN in the second only", nanSecond],
        ["infinite in the first only", infFirst],
        ["infinite in the second only", infSecond],
        ["another infinity in each", inf - infFirst - infSecond],
      ].filter(([, number]) => number);
      for (const [name, number] of lone) facts.push([name, el("strong.bad", {}, grouped(number))]);
      const rest = lone.length ? ", finite ones" : "";
      facts.push([`max abs${rest}`, figureText(maxAbs)], ["change", changeText(this.model.relative.get(row))]);
      facts.push([`cosine${rest}`, exactText(cosine)]);
    }
    if (states[state[row]] === "same") facts.push(["compared", values ? "byte for byte" : "by headers alone"]);
    return facts;
  }

  /** Return how much each model has changed a tensor of the base, and how far their changes agree, as facts. */
  changed(row) {
    const { letters, couples } = this.model.changes;
    const found = this.model.changesOf(row);
    if (!found) return [["models", "none of them has it, or it is not compared"]];
    return [
      ...letters.map((letter, at) => [letter, changeText(found.changes[at])]),
      ...couples
        .map((couple, at) => [couple, found.cosines[at]])
        .filter(([, cosine]) => cosine !== null)
        .map(([couple, cosine]) => [couple, `cosine ${cosine.toFixed(3)}`]),
    ];
  }

  origin(row) {
    const { receipt } = this.model;
    const { key, more, weights, method } = this.origins;
    const kind = receipt.classes[receipt.class[row]];
    const facts = [["class", badge(kind || "not in the recipe", CLASS_COLOURS[kind])]];
    const from = (source, name) => [
      nameElement(name),
      " of ",
      nameElement(receipt.sources[source]?.[0] ?? `source ${source}`),
    ];
    if (receipt.from[row] >= 0)
      facts.push(["from", ...from(receipt.from[row], key.get(row)?.[0] ?? this.model.keys[row])]);
    for (const [source, name] of more.get(row) ?? []) facts.push(["and", ...from(source, name)]);
    if (weights.has(row)) facts.push(["weights", weights.get(row).map(figureText).join(", ")]);
    if (method.has(row)) facts.push(["method", nameElement(method.get(row)[0])]);
    const operation = receipt.ops[receipt.op[row]];
    if (operation && operation !== "copy") facts.push(["operation", operation]);
    const policy = receipt.policies[receipt.policy[row]];
    if (policy && policy !== operation) facts.push(["policy", nameElement(policy)]);
    const rule = receipt.rules[receipt.rule[row]];
    if (rule) facts.push(["rule", el("code", {}, nameElement(rule))]);
    const reason = receipt.reasons[receipt.reason[row]];
    if (reason) facts.push(["because", reason]);
    return facts;
  }

  module(node) {
    const { model, network } = this;
    const [number, bytes, parameters] = [
      node.to - node.from,
      model.value(node, "bytes"),
      model.value(node, "parameters"),
    ];
    const whole = model.root;
    const facts = [
      ["tensors", grouped(number)],
      ["parameters", `${countText(parameters)} ${percent(parameters, model.value(whole, "parameters"))}`],
      ["bytes", `${bytesText(bytes)} ${percent(bytes, model.value(whole, "bytes"))}`],
    ];
    const { colouring } = network;
    const counts = new Map();
    for (let row = node.from; row < node.to; row++)
      counts.set(colouring.of[row], (counts.get(colouring.of[row]) ?? 0) + 1);
    const parts = [...counts].map(([category, times]) => [
      badge(colouring.list[category].label, colouring.list[category].colour),
      `${grouped(times)} of ${grouped(number)}`,
    ]);
    return [factsOf(facts), section(`By ${colouring.name}`, factsOf(parts))];
  }
}

const byRow = (rows) => new Map(rows.map(([row, ...rest]) => [row, rest]));

function sparseDifference({ was, kind, encodings, numbers, why }) {
  return {
    was: byRow(was),
    kind: byRow(kind),
    encodings: byRow(encodings),
    numbers: byRow(numbers),
    why: byRow(why),
  };
}

function sparseReceipt({ key, more, weights, method }) {
  return { key: byRow(key), more: byRow(more), weights: byRow(weights), method: byRow(method) };
}
