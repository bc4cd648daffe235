// Elements from which views are made: facts, sections, badges, lists.

/** Return a list of facts, each given as [name, ...values]. */
function factsOf(facts) {
  const rows = facts.flatMap(([name, ...said]) => [el("dt", {}, name), el("dd", {}, ...said.map((one) => one ?? ""))]);
  return el("dl.facts", {}, ...rows);
}

const section = (title, ...content) => el("section", {}, el("h3", {}, title), ...content);

function badge(label, colour) {
  const swatch = el("span.swatch", { "aria-hidden": "true" });
  swatch.style.setProperty("--tone", colour ? `var(${colour})` : "transparent");
  return el("span.badge", {}, swatch, nameElement(label));
}

/** Return a list of names under a title that opens it; ``number`` is the number of all names. '' if that is 0. */
function longList(title, names, number = names.length) {
  if (!number) return "";
  const shown = names.map((name) => el("li", {}, nameElement(name)));
  const more = number - shown.length;
  const rest = more > 0 ? el("p.quiet", {}, `and ${grouped(more)} more`) : null;
  const summary = el("summary", {}, `${title}: ${grouped(number)}`);
  return el("details", { open: number <= 12 }, summary, el("ul.names", {}, ...shown), rest);
}

/** Return a table that scrolls sideways if it is wider than the page. */
const wideTable = (head, rows) =>
  el("div.wide", {}, el("table", {}, head ? el("thead", {}, head) : null, el("tbody", {}, ...rows)));
