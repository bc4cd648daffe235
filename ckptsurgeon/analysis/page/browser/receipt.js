// The view Receipt, for an output of ckptsurgeon: what was done, with which sources, and the result by module.

function receiptView(model, open) {
  const { receipt } = model;
  const facts = [["made by", `ckpt ${receipt.verb}, ckptsurgeon ${receipt.version}`]];
  receipt.sources.forEach(([name, path, role]) =>
    facts.push([role, nameElement(name), ...(path !== name ? [" at ", nameElement(path)] : [])]),
  );
  if (receipt.target[1] && receipt.target[0] !== "edit")
    facts.push(["into", nameElement(receipt.target[1]), ` (${receipt.target[0]})`]);
  if (receipt.classes.includes("initialised") || receipt.verb === "merge") facts.push(["seed", String(receipt.seed)]);
  if (receipt.vocabulary.length) {
    const [source, destination, size, rows, kept, moved, fresh, policy] = receipt.vocabulary;
    facts.push([
      "vocabulary",
      nameElement(source),
      ` (${size}) to `,
      nameElement(destination),
      ` (${rows}): ${kept} kept, ${moved} of them moved, ${fresh} new (${policy})`,
    ]);
  }
  const parts = [section("What was done", factsOf(facts)), section("By module", classTable(model, open))];
  if (receipt.arguments.length)
    parts.push(
      section(
        "Arguments",
        factsOf(receipt.arguments.map(([name, value]) => [nameElement(name), el("code", {}, nameElement(value))])),
      ),
    );
  parts.push(
    longList(
      "Not used of the sources",
      receipt.unexpected.map(([source, key]) => `${receipt.sources[source]?.[0] ?? source}: ${key}`),
      receipt.numbers.unexpected,
    ),
  );
  parts.push(longList("In the recipe, and not in the file", receipt.gone, receipt.numbers.gone));
  return parts;
}

/** Return a table with a row for each top-level module: its tensors by class, and the share from sources. */
function classTable(model, open) {
  const { receipt } = model;
  const { top } = model;
  const parts = new Map(receipt.part);
  const shown = top.children.slice(0, 200);
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "module"),
    ...receipt.classes.map((name) =>
      el("th.number", { scope: "col" }, badge(name || "not in the recipe", CLASS_COLOURS[name])),
    ),
    el("th.number", { scope: "col" }, "from sources"),
    el("th", { scope: "col" }, "by parameters"),
  );
  const rows = [...shown, model.root].map((node) => {
    const [counts, sizes] = [receipt.classes.map(() => 0), receipt.classes.map(() => 0)];
    let [from, all] = [0, 0];
    for (let row = node.from; row < node.to; row++) {
      const size = model.parameters[row + 1] - model.parameters[row];
      counts[receipt.class[row]] += 1;
      sizes[receipt.class[row]] += size;
      all += size;
      if (receipt.from[row] >= 0) from += size * (parts.get(row) ?? 1);
    }
    const label =
      node === model.root
        ? "total"
        : el("button.link", { type: "button", onclick: () => open(node) }, nameElement(node.name));
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, label),
      ...counts.map((number) => el("td.number", {}, number ? grouped(number) : "-")),
      el("td.number", {}, percent(from, all) || "-"),
      el("td", {}, stacked(sizes, all, receipt.classes)),
    );
  });
  const more = top.children.length - shown.length;
  const rest = more > 0 ? el("p.quiet", {}, `and ${more} more modules, in the total`) : null;
  return el("div", {}, wideTable(head, rows), rest);
}

/** Return a bar with a part for each class, in proportion to ``sizes``. */
function stacked(sizes, all, classes) {
  const bar = el("span.stack", { "aria-hidden": "true" });
  sizes.forEach((size, at) => {
    if (!size) return;
    const part = el("span");
    part.style.setProperty("--tone", `var(${CLASS_COLOURS[classes[at]]})`);
    part.style.width = `${(100 * size) / all}%`;
    bar.append(part);
  });
  return bar;
}
