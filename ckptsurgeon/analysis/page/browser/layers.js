// The view Layers: tables with a row for each layer and a column for each role, with changes or statistics.

const FULL_SHADE = 70; // the strongest shade, in percent of the colour
const FACTOR = 4; // a value that is this many times its column's median has the strongest shade
const MOST_ROLES = 60; // the most columns of a table
const MOST_LAYERS = 200; // the most rows of a table
const MOST_COUNTS = 6; // the most models whose differing tensors are counted in each row
const ELSEWHERE = 40; // the most tensors outside all lists of layers that are shown

/**
 * Return the measures that tables can show. Each has a name, the meaning of its shades, and the function ``of``, which
 * returns the value of a row (NaN: unknown, null: no value).
 */
function measuresOf(model) {
  const found = [];
  if (model.relative) {
    const meaning = "the norm of the difference, in percent of the norm before";
    found.push({ ...changeMeasure(model.shades), name: "change", meaning, of: (row) => model.change(row) });
  }
  if (model.changes) found.push(...measuresOfChanges(model.changes));
  if (model.figures) {
    const { std, min, max, zeros } = model.figures;
    const meaning = `amber: larger than the median of its column, blue: smaller; the fullest shade is ${FACTOR} times as much`;
    const size = (row) => model.shape(row).reduce((a, b) => a * b, 1);
    found.push(
      { name: "deviation", meaning, of: (row) => std[row], text: shortText, shade: medianShade },
      {
        name: "largest magnitude",
        meaning,
        of: (row) => (max[row] === null ? null : Math.max(Math.abs(min[row]), Math.abs(max[row]))),
        text: shortText,
        shade: medianShade,
      },
      {
        name: "zeros",
        meaning: "the share of elements that are 0, in percent",
        of: (row) => (zeros[row] === null ? null : zeros[row] / Math.max(1, size(row))),
        text: percentText,
        shade: (value) => [value, "--c-amber"],
      },
    );
  }
  return found;
}

const cosineText = (value) => value.toFixed(2).replace("-0.00", "0.00");

const changeMeasure = (shades) => ({
  shades,
  text: percentText,
  shade: (value) => (value ? [1, shades[shadeOf(value, shades)][2]] : [0, "--c-amber"]),
  said: changeText,
  full: 100,
  quiet: 0,
  counts: true,
});

/** Return the measures for several models: the change of each from the base, and how far each pair agrees. */
function measuresOfChanges({ models, letters, couples, shades, rows }) {
  const changes = letters.map((letter, at) => ({
    ...changeMeasure(shades[at]),
    name: `change of ${letter}`,
    meaning: `how much ${models[at]} has changed: the norm of the difference, in percent of the norm of the base`,
    of: (row) => rows.get(row)?.changes[at] ?? null,
    each: letters.map((one, other) => [one, (row) => rows.get(row)?.changes[other] ?? null]),
  }));
  const cosines = couples.map((couple, at) => ({
    name: `cosine of ${couple}`,
    meaning: "the cosine between the changes of both models: red where they cancel each other, blue where they agree",
    of: (row) => rows.get(row)?.cosines[at] ?? null,
    text: cosineText,
    shade: (value) => [Math.min(1, Math.abs(value)), value < 0 ? "--c-red" : "--c-blue"],
    lowest: true,
  }));
  const signs = couples.map((couple, at) => ({
    name: `same sign of ${couple}`,
    meaning: "of the values that both models changed, the percentage that moved in the same direction: 50 by chance",
    of: (row) => rows.get(row)?.signs[at] ?? null,
    text: percentText,
    shade: (value) => [Math.min(1, Math.abs(2 * value - 1)), value < 0.5 ? "--c-red" : "--c-blue"],
    lowest: true,
  }));
  return [...changes, ...cosines, ...signs];
}

/** Return the tables of all models and of all pairs of models, with figures over all tensors. */
function changesTables({ base, models, letters, couples, total }) {
  const head = (...names) => el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)));
  const share = (value) => (value === null ? "-" : value === 0 ? "none" : `${percentText(value)} %`);
  const ofModels = models.map((name, at) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, letters[at]),
      el("td", {}, nameElement(name)),
      el("td.number", {}, Number.isNaN(total.changes[at]) ? "?" : share(total.changes[at])),
      el("td.number", {}, share(total.shares[at])),
    ),
  );
  const odd = total.odd ? el("p.quiet", {}, `${plural(total.odd, "value")} not finite, left out of all figures`) : null;
  const ofPairs = couples.map((couple, at) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, couple),
      el("td.number", {}, total.cosines[at] === null ? "-" : cosineText(total.cosines[at])),
      el("td.number", {}, share(total.signs[at])),
      el("td.number", {}, share(total.both[at])),
    ),
  );
  const parts = [
    section("Changes from ", wideTable(head("", "model", "change", "values changed"), ofModels), odd),
    couples.length ? section("Do they agree?", wideTable(head("", "cosine", "same sign", "changed by both"), ofPairs)) : null,
  ];
  parts[0].querySelector("h3").append(nameElement(base));
  return el("div.totals", {}, ...parts);
}

/** Return [shade from 0 to 1, colour] of a value, by its ratio to the median of its column. */
function medianShade(value, median) {
  if (!value || !median) return [value === median ? 0 : 1, value > median ? "--c-amber" : "--c-blue"];
  const far = Math.log(value / median) / Math.log(FACTOR);
  return [Math.min(1, Math.abs(far)), far > 0 ? "--c-amber" : "--c-blue"];
}

const shortText = (value) => {
  if (value === 0) return "0";
  if (value >= 1e-3 && value < 99.5) return value.toPrecision(2);
  return value >= 99.5 && value < 1e5 ? String(Math.round(value)) : value.toExponential(0).replace("e+", "e");
};

/** Return the lists of layers: by name, the rows of each role and layer; and the rows outside all lists. */
function stacksOf(keys) {
  const stacks = new Map();
  let elsewhere = [];
  keys.forEach((key, row) => {
    const parts = key.split(".");
    const at = parts.findIndex((part) => /^\d+$/.test(part));
    if (at < 0) {
      elsewhere.push(row);
      return;
    }
    const name = parts.slice(0, at).join(".");
    const role = parts.slice(at + 1).map((part) => (/^\d+$/.test(part) ? "{n}" : part)).join(".");
    const stack = made(stacks, name, () => ({ layers: new Set(), roles: new Map(), rows: [] }));
    stack.layers.add(Number(parts[at]));
    stack.rows.push(row);
    made(made(stack.roles, role, () => new Map()), Number(parts[at]), () => []).push(row);
  });
  for (const [name, stack] of stacks)
    if (stack.layers.size < 2) {
      elsewhere = elsewhere.concat(stack.rows);
      stacks.delete(name);
    }
  return { stacks, elsewhere: elsewhere.sort((a, b) => a - b) };
}

function layersView(model, open) {
  const measures = measuresOf(model);
  const { stacks, elsewhere } = stacksOf(model.keys);
  const box = el("div");
  const meaning = el("span.quiet");
  const legend = el("p.legend");
  const choice = el("select", { id: "measure" }, ...measures.map(({ name }) => el("option", { value: name }, name)));
  const draw = () => {
    const measure = measures[choice.selectedIndex];
    const tables = [...stacks].map(([name, stack]) => stackTable(name, stack, measure));
    meaning.textContent = measure.meaning;
    legend.replaceChildren(...(measure.shades ?? []).map(([, label, colour]) => badge(label, colour)));
    box.replaceChildren(...tables, elsewhereTable(model, elsewhere, measure));
  };
  choice.addEventListener("change", draw);
  box.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-row]");
    if (cell) open(model.leaves[Number(cell.dataset.row)]);
  });
  if (model.data.merge && model.changes.couples.length) choice.value = `cosine of ${model.changes.couples[0]}`;
  draw();
  const totals = model.changes && !model.data.merge ? [changesTables(model.changes)] : []; // the view Merge has them
  const gone = model.difference ? onlyInOne(model) : [];
  return [...totals, el("p.chooser", {}, el("label.choice", {}, "show ", choice), " ", meaning), legend, box, ...gone];
}

/** Return lists of the tensors that only one of two checkpoints has. */
function onlyInOne({ difference: { states, state }, keys }) {
  return ["removed", "added"].map((name) => {
    const place = states.indexOf(name);
    return longList(`${name === "added" ? "Added" : "Removed"}`, keys.filter((_, row) => state[row] === place).slice(0, 500));
  });
}

/** Return [value, row] for the rows of a cell: the largest value, or the lowest; NaN if one is unknown. */
function extremeOf(rows, { of, lowest }) {
  let [value, at] = [null, rows[0]];
  for (const row of rows) {
    const one = of(row);
    if (one === null || one === undefined) continue;
    if (value === null || Number.isNaN(one) || (lowest ? one < value : one > value)) [value, at] = [one, row];
    if (Number.isNaN(value)) break;
  }
  return [value, at];
}

function stackTable(name, { layers, roles }, measure) {
  const sorted = [...layers].sort((a, b) => a - b);
  const numbers = sorted.slice(0, MOST_LAYERS);
  const columns = [...roles].map(([role, byLayer]) => {
    const cells = new Map([...byLayer].map(([layer, rows]) => [layer, [...extremeOf(rows, measure), rows.length]]));
    const known = [...cells.values()].map(([value]) => value).filter((value) => value !== null && !Number.isNaN(value));
    return { role, cells, median: medianOf(known) };
  });
  const there = columns.filter(({ cells }) => [...cells.values()].some(([value]) => value !== null));
  const shown = there.slice(0, MOST_ROLES);
  if (!shown.length) return "";
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "layer"),
    ...shown.map(({ role }) => el("th.role", { scope: "col", title: role }, nameElement(role.replace(/\.weight$/, "")))),
    ...countsOf(measure).map(([letter]) => el("th.number", { scope: "col" }, `${letter} differs`.replace(/^ differs/, "differ"))),
  );
  const body = numbers.map((layer) =>
    el(
      "tr",
      {},
      el("th.number", { scope: "row" }, String(layer)),
      ...shown.map(({ role, cells, median }) => cellOf(cells.get(layer), `${layer}.${role}`, measure, median)),
      ...countsOf(measure).map(([, of]) => el("td.counts", {}, differing(roles, layer, of))),
    ),
  );
  const [moreRoles, moreLayers] = [there.length - shown.length, sorted.length - numbers.length];
  const more = [moreRoles && plural(moreRoles, "more role"), moreLayers && plural(moreLayers, "more layer")];
  const rest = moreRoles || moreLayers ? el("p.quiet", {}, `and ${more.filter(Boolean).join(", ")}`) : null;
  const table = el("div.wide", {}, el("table.heat", {}, el("thead", {}, head), el("tbody", {}, ...body)));
  return el("section", {}, el("h3", {}, nameElement(name || "layers")), table, rest);
}

/** Return a column of counts for each model: [letter, function of a row]; of two checkpoints, the letter is "". */
const countsOf = (measure) => (measure.counts ? (measure.each ?? [["", measure.of]]).slice(0, MOST_COUNTS) : []);

/** Return how many of the tensors of a layer that were compared differ: 7 of 9. */
function differing(roles, layer, of) {
  const rows = [...roles.values()].flatMap((byLayer) => byLayer.get(layer) ?? []);
  const values = rows.map((row) => of(row)).filter((value) => value !== null && value !== undefined);
  return `${grouped(values.filter((value) => value !== 0).length)} of ${grouped(values.length)}`;
}

function cellOf(found, name, measure, median) {
  if (found === undefined || found[0] === null) return el("td");
  const [value, row, number] = found;
  const unknown = Number.isNaN(value);
  const of = number > 1 ? `, the ${measure.lowest ? "lowest" : "largest"} of ${number}` : "";
  const title = `${name}: ${unknown ? "cannot be measured" : (measure.said ?? figureText)(value)}${of}`;
  const cell = el("td", { title }, unknown ? "?" : measure.text(value));
  cell.dataset.row = String(row);
  const [shade, colour] = unknown ? [1, "--c-red"] : measure.shade(value, median);
  cell.style.setProperty("--shade", `${Math.round((measure.full ?? FULL_SHADE) * shade)}%`);
  cell.style.setProperty("--tone", `var(${colour})`);
  return cell;
}

function medianOf(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[sorted.length >> 1] : 0;
}

/** Return the table of the tensors outside all lists of layers, those with the most notable values first. */
function elsewhereTable(model, rows, measure) {
  const found = rows.map((row) => [row, measure.of(row)]).filter(([, value]) => value !== null && value !== undefined);
  if (!found.length) return "";
  const order = (value) => (Number.isNaN(value) ? Infinity : value);
  const told = found.filter(([, value]) => value !== measure.quiet).sort((a, b) => (measure.lowest ? -1 : 1) * (order(b[1]) - order(a[1])));
  const plain = measure.full || measure.lowest ? measure : { ...measure, shade: () => [0, "--c-amber"] };
  const shown = told.slice(0, ELSEWHERE).map(([row, value]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, nameElement(model.keys[row])),
      cellOf([value, row, 1], model.keys[row], plain, 0),
    ),
  );
  const more = told.length - shown.length;
  const same = found.length - told.length;
  const rest = [more && `and ${plural(more, "tensor")} more`, same && `${plural(same, "tensor")} without a change of values`].filter(Boolean);
  const table = shown.length ? el("div.wide", {}, el("table.heat.list", {}, el("tbody", {}, ...shown))) : null;
  return el("section", {}, el("h3", {}, "Outside the layers"), table, ...rest.map((one) => el("p.quiet", {}, one)));
}
