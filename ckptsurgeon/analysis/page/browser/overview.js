// What the panel shows while nothing is selected: what to look at first, with links.

const MOST_SHOWN = 8; // the most lines of one list

/**
 * Return elements with what is most notable in the network. ``link`` returns a link to the tensor of a row, ``show``
 * selects the node with a key.
 */
function overview(model, link, show) {
  const parts = [checkPart(model, show), ...changedParts(model, link)];
  if (!parts.some(Boolean)) parts.push(largestPart(model, link), dtypesPart(model));
  const hint = el("p.quiet", {}, "Point at a tensor in the map or the tree to see what is known of it.");
  return [el("div.panel-body.overview", {}, ...parts), hint];
}

/** Return a finding of ckpt check in one line: FAIL not-finite: what was found. */
const findingElement = ({ id, status, what }) =>
  el("p", {}, el(`span.status.${STATUS[status]}`, {}, status), " ", nameElement(id), ": ", nameElement(what));

function checkPart({ data: { check }, findings }, show) {
  if (!check) return null;
  const found = ["FAIL", "WARN"].flatMap((status) =>
    check.rows.flatMap(({ id, found }) => found.filter((one) => one.status === status).map((one) => ({ ...one, id }))),
  );
  const more = found.length - MOST_SHOWN;
  const line = (one) => {
    const said = findingElement(one);
    const [key] = one.keys;
    if (key !== undefined && findings.size) said.append(" ", el("button.link", { type: "button", onclick: () => show(key) }, "show"));
    return said;
  };
  return section(
    "What ckpt check found",
    ...(found.length ? found.slice(0, MOST_SHOWN).map(line) : [el("p.good", {}, "nothing to look at")]),
    more > 0 ? el("p.quiet", {}, `and ${more} more`) : null,
  );
}

/** Return the lists of the tensors that two checkpoints differ in most, or that each of several models has changed most. */
function changedParts(model, link) {
  if (model.relative) return [mostPart("Largest changes", model, (row) => model.change(row), link)];
  if (!model.changes) return [];
  const { letters } = model.changes;
  return letters.map((letter, at) =>
    mostPart(`Largest changes of ${letter}`, model, (row) => model.changes.rows.get(row)?.changes[at] ?? null, link),
  );
}

function mostPart(title, model, of, link) {
  const size = (change) => (Number.isNaN(change) ? Infinity : change); // with NaN or other shapes, it is not measured
  const found = model.keys.map((_, row) => [row, of(row)]).filter(([, change]) => size(change) > 0);
  found.sort((a, b) => size(b[1]) - size(a[1]) || 0);
  const said = (row, change) =>
    Number.isNaN(model.relative?.get(row)) ? "NaN or infinite values in one" : changeText(change);
  const rows = found.slice(0, MOST_SHOWN).map(([row, change]) => [link(row), said(row, change)]);
  return section(title, rows.length ? listOf(rows) : el("p.quiet", {}, "no changes of values"));
}

/** Return the largest tensors; those of all layers that differ in numbers alone share a line. */
function largestPart(model, link) {
  const size = (row) => model.bytes[row + 1] - model.bytes[row];
  const groups = new Map();
  model.keys.forEach((key, row) => {
    if (!model.tiedTo.has(row)) made(groups, `${key.replace(/\d+/g, "{n}")} ${size(row)}`, () => []).push(row);
  });
  const all = (rows) => rows.length * size(rows[0]);
  const found = [...groups.values()].sort((a, b) => size(b[0]) - size(a[0])).slice(0, MOST_SHOWN);
  const said = (rows) => (rows.length > 1 ? ` and ${rows.length - 1} like it, ${bytesText(all(rows))}` : ` ${bytesText(size(rows[0]))}`);
  return section("Largest tensors", listOf(found.map((rows) => [link(rows[0]), shapeText(model.shape(rows[0])) + said(rows)])));
}

function dtypesPart(model) {
  const found = new Map();
  for (let row = 0; row < model.size; row++) {
    const one = made(found, model.dtype(row), () => [0, 0]);
    one[0] += 1;
    one[1] += model.bytes[row + 1] - model.bytes[row];
  }
  const rows = [...found].sort((a, b) => b[1][1] - a[1][1]).slice(0, MOST_SHOWN);
  return section(
    "By dtype",
    factsOf(rows.map(([dtype, [number, bytes]]) => [dtype, `${plural(number, "tensor")}, ${bytesText(bytes)}`])),
  );
}

/** Return a list of links, each with a text behind it. */
const listOf = (rows) => el("ul.plain", {}, ...rows.map(([link, said]) => el("li", {}, link, " ", el("span.quiet", {}, said))));
