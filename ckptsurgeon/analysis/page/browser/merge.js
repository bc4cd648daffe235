// The view Merge: the changes of the models to merge, the layers in which they oppose each other, and what methods keep.

const FEW_MODELS = 4; // with more models, a cell has the lowest and the highest share instead of a column for each model

/** Return the view; ``open`` shows a tensor or module, ``showMap`` the table of a measure by layers and roles. */
function mergeView(model, open, showMap) {
  const { merge } = model.data;
  const { changes } = model;
  const maps = changes.couples.length
    ? el(
        "p",
        {},
        "By layers and roles: ",
        ...links([...changes.couples.map((couple) => `cosine of ${couple}`), `same sign of ${changes.couples[0]}`, `change of ${changes.letters[0]}`], showMap),
      )
    : null;
  return [
    changesTables(changes),
    maps,
    conflictsPart(merge, model, open),
    methodsPart(merge, changes.letters),
    notComparedPart(merge),
  ].filter((part) => part !== null);
}

const MOST_LINKS = 8;

/** Return buttons with commas between them, one for each name; at most ``MOST_LINKS``. */
function links(names, act) {
  const button = (name) => el("button.link", { type: "button", onclick: () => act(name) }, name);
  const shown = names.slice(0, MOST_LINKS).flatMap((name, at) => [at ? ", " : "", button(name)]);
  return names.length > MOST_LINKS ? [...shown, " and more in the view Layers"] : shown;
}

/** Return the table of the layers in which the changes of two models oppose each other, the worst first. */
function conflictsPart({ conflicts, more_conflicts: moreLayers, opposition }, model, open) {
  const title = "Layers with opposing changes";
  if (!model.changes.couples.length) return null;
  if (!conflicts.length)
    return section(title, el("p.good", {}, "None: no changes of two models oppose each other by more than 5 % and by more than chance."));
  const name = (key, layer = "") => {
    const shown = nameElement(layer && key.startsWith(`${layer}.`) ? key.slice(layer.length + 1) : key);
    const node = model.find(key);
    return node ? el("button.link", { type: "button", title: key, onclick: () => open(node) }, shown) : shown;
  };
  const rows = conflicts.map(([layer, pair, weight, cosine, same, tensors, more]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, name(layer), tensorsList(tensors.map((key) => name(key, layer)), more)),
      el("td.couple", {}, pair.map((at) => model.changes.letters[at]).join(" and ")),
      el("td.number", {}, percent(weight, opposition)),
      el("td.number", {}, cosine === null ? "-" : cosineText(cosine)),
      el("td.number", {}, same === null ? "-" : `${percentText(same)} %`),
    ),
  );
  const head = el(
    "tr",
    {},
    ...["layer and tensors", "models"].map((said) => el("th", { scope: "col" }, said)),
    ...["share", "cosine", "same sign"].map((said) => el("th.number", { scope: "col" }, said)),
  );
  const rest = moreLayers ? el("p.quiet", {}, `and ${grouped(moreLayers)} more`) : null;
  return section(title, el("p.quiet", {}, CONFLICTS), wideTable(head, rows), rest);
}

const CONFLICTS =
  "Tensors whose changes oppose each other by more than 5 % (the cosine is below -0.05, or 5 % more signs differ than " +
  "agree), and by more than chance. The worst layers come first: " +
  "the share counts each tensor by the norms of both changes. Cosine and same sign are those of these tensors together.";

const tensorsList = (names, more) =>
  el("ul.plain.members", {}, ...names.map((name) => el("li", {}, name)), more ? el("li.quiet", {}, `and ${grouped(more)} more`) : null);

/** Return the table of the methods: which share of each change they keep, and how large the merged change is. */
function methodsPart({ methods, not_tried: notTried, sampled, values }, letters) {
  const several = letters.length <= FEW_MODELS;
  const groups = ["after trimming", "after signs", "in the result"];
  const head = [
    el(
      "tr",
      {},
      ...["method", "parameters"].map((said) => el("th", { scope: "col", rowSpan: several ? 2 : 1 }, said)),
      ...groups.map((said) => el("th.group", { scope: several ? "colgroup" : "col", colSpan: several ? letters.length : 1 }, said)),
      el("th.number.first", { scope: "col", rowSpan: several ? 2 : 1 }, "norm"),
    ),
    several ? el("tr", {}, ...groups.flatMap((_, group) => letters.map((letter, at) => el(!at ? "th.number.first" : "th.number", { scope: "col" }, letter)))) : null,
  ];
  const rows = methods.map(([name, parameters, planned, norm, models]) =>
    el(
      planned ? "tr.chosen" : "tr",
      {},
      el("th", { scope: "row" }, nameElement(name), planned ? el("span.quiet", {}, " (planned)") : null),
      el("td.settings", {}, ...(parameters.length ? parameters.map((said) => el("span", {}, said)) : ["defaults"])),
      ...groups.flatMap((_, group) => shares(models.map((one) => one[group]), several)),
      el("td.number.first", {}, norm === null ? "-" : norm.toFixed(2)),
    ),
  );
  const table = el("div.wide", {}, el("table.methods", {}, el("thead", {}, ...head), el("tbody", {}, ...rows)));
  const all = sampled >= values;
  const from = all ? `From all ${grouped(values)} values.` : `An estimate: from samples of ${countText(sampled)} of ${countText(values)} values, rows at equal distances in each tensor.`;
  return section(
    "What methods would keep",
    el("p.quiet", {}, `${from} Other methods than the planned get its weight and density; density is 0.5 if it has none.`),
    table,
    factsOf([
      ["after trimming", "% of the values that a model changed which are left after small, large or random ones are dropped"],
      ["after signs", "% of them that are left after the election of a sign for each value, too"],
      ["in the result", "% of a model's change that the merged change has in its direction; 100 adds all of it"],
      ["norm", "the norm of the merged change, divided by the mean of the norms of the models' changes"],
    ]),
    notTried.length ? el("details", {}, el("summary", {}, `Not tried: ${grouped(notTried.length)}`), factsOf(notTried.map(([name, why]) => [nameElement(name), nameElement(why)]))) : null,
  );
}

/** Return a cell for the share of each model, or one cell with the lowest and the highest share. */
function shares(values, several) {
  const said = (value) => (value === null ? "-" : percentText(value));
  if (several) return values.map((value, at) => el(at ? "td.number" : "td.number.first", {}, said(value)));
  const known = values.filter((value) => value !== null);
  if (!known.length) return [el("td.number.first", {}, "-")];
  const [low, high] = [said(Math.min(...known)), said(Math.max(...known))];
  return [el("td.number.first", {}, low === high ? low : `${low} to ${high}`)];
}

function notComparedPart({ not_compared: keys, more_not_compared: more }) {
  if (!keys.length) return null;
  const facts = factsOf(keys.map(([key, why]) => [nameElement(key), nameElement(why)]));
  const rest = more ? el("p.quiet", {}, `and ${grouped(more)} more`) : null;
  return el("details", {}, el("summary", {}, `Not compared: ${grouped(keys.length + more)}`), facts, rest);
}
