// The view Check: the verdict of ckpt check, its findings and what to do, then what passed and what was not run.

const NAMED = 12; // the most tensors that a finding lists

function checkedView(check, model, open) {
  const tallies = ["FAIL", "WARN", "PASS", "NOT RUN"].flatMap((status) => {
    const number = check.rows.filter((row) => row.status === status).length;
    return number ? [el(`span.tally.${STATUS[status]}`, {}, `${number} ${status === "NOT RUN" ? "not run" : status}`), " "] : [];
  });
  const wrong = ["FAIL", "WARN"].flatMap((status) =>
    check.rows.flatMap((row) => row.found.filter((one) => one.status === status).map((one) => [row, one])),
  );
  const found = wrong.map(([row, one]) => findingOf(row, one, model, open));
  return [
    el("p.verdict", {}, ...tallies),
    found.length
      ? section("What is to be looked at", wideTable(null, found))
      : el("p.quiet", {}, "No check found anything to look at."),
    ...["PASS", "NOT RUN"].map((status) => quietChecks(status, check.rows.filter((row) => row.status === status))),
  ];
}

function findingOf(row, one, model, open) {
  const nodes = one.keys.slice(0, NAMED).map((key) => [key, model.find(key)]);
  const names = nodes.flatMap(([key, node], at) => [
    at ? ", " : "",
    node ? el("button.link", { type: "button", onclick: () => open(node) }, nameElement(key)) : nameElement(key),
  ]);
  return el(
    "tr.check",
    {},
    el(`td.status.${STATUS[one.status]}`, {}, one.status),
    el("th", { scope: "row" }, nameElement(row.id)),
    el(
      "td",
      {},
      el("p", {}, nameElement(one.what)),
      one.todo ? el("p.quiet", {}, nameElement(one.todo)) : null,
      names.length ? el("p", {}, el("span.quiet", {}, "in the network: "), ...names) : null,
    ),
  );
}

function quietChecks(status, rows) {
  if (!rows.length) return "";
  const facts = factsOf(rows.map((row) => [row.id, `${row.title}${row.why ? `: ${row.why}` : ""}`]));
  const title = status === "PASS" ? `Passed: ${rows.length}` : `Do not apply, or were left out: ${rows.length}`;
  return el("details", {}, el("summary", {}, title), facts);
}
