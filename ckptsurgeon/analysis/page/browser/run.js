// A training run: how it went, what was checked, and the verdict on whether knowledge moved.

const STATUS = { PASS: "good", WARN: "warn", FAIL: "bad", "NOT RUN": "quiet" };
const WHEN = { before: "Before the first step", during: "While it trained", after: "After the last step" };
const VERDICTS = { KNOWLEDGE: "good", NONE: "bad", "SCALE ONLY": "warn" };

function runView(run) {
  const { result, checks } = run;
  return [
    section("The run", factsOf(runFacts(run))),
    checkCounts(checks),
    result?.controls ? controlsOf(result.controls) : "",
    el("div.charts", {}, ...curvesOf(run)),
    ...Object.entries(WHEN).map(([when, title]) =>
      checksOf(
        title,
        checks.filter((check) => check.when === when),
      ),
    ),
    result ? longList("Notes", result.notes) : "",
  ];
}

function runFacts(run) {
  const { lineage, result } = run;
  const facts = [
    ["state", stateOf(run)],
    ["from", lineage.init === null ? "scratch" : nameElement(lineage.init)],
  ];
  if (result?.task || lineage.task) facts.push(["task", nameElement(result?.task || lineage.task)]);
  if (result?.metric && result.best !== null)
    facts.push(["best", nameElement(result.metric), ` ${figureText(result.best)} at step ${result.best_step}`]);
  for (const [name, value] of Object.entries(run.evaluations.at(-1)?.[1] ?? {}))
    facts.push([`dev ${name}`, figureText(value)]);
  for (const [name, value] of Object.entries(result?.test ?? {})) facts.push([`test ${name}`, figureText(value)]);
  if (lineage.seed !== null) facts.push(["seed", String(lineage.seed)]);
  if (lineage.device)
    facts.push(["device", `${lineage.device}${lineage.processes > 1 ? `, ${lineage.processes} processes` : ""}`]);
  if (result && result.elapsed_s !== null) facts.push(["took", durationText(result.elapsed_s)]);
  return facts;
}

const WAYS = {
  done: "done",
  unchecked: "trained; the checks after its last step are still to come",
  patience: "ended early: it had not become better for long",
  nonfinite: "stopped: too many steps in a row were not finite",
  collapsed: "stopped: nothing more could come of it",
  lost: "stopped: another of its processes ended",
  SIGINT: "interrupted",
  SIGTERM: "terminated",
  SIGHUP: "hung up",
};

function stateOf({ steps, result, checks, lineage }) {
  const last = grouped(steps.at(-1)?.[0] ?? 0);
  const all = lineage.steps === null ? "" : ` of ${grouped(lineage.steps)}`;
  if (!result) return `under way, or ended without a result: step ${last}${all} is the last in its log`;
  const failed = checks.filter((check) => check.status === "FAIL").length;
  const said = `${own(WAYS, result.ended, result.ended || "checked")}; ${result.step} of ${result.steps} steps`;
  return failed ? el("strong.bad", {}, `${said}; ${plural(failed, "check")} failed`) : said;
}

function durationText(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes}:${two(seconds % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
}

function controlsOf(controls) {
  const verdict = el(`p.verdict.${own(VERDICTS, controls.verdict, "warn")}`, {}, controls.verdict);
  const said = `decided with ${controls.decided_on === "frozen" ? "the body frozen" : "all of it trained"}, ${controls.metric} after ${controls.steps} steps, ${plural(controls.seeds ?? 0, "seed")}`;
  const head = el("tr", {}, ...["start", "trained", "mean", "by seed"].map((name) => el("th", { scope: "col" }, name)));
  const rows = controls.arms.map((arm) => {
    const mean = arm.values.length ? arm.values.reduce((a, b) => a + b, 0) / arm.values.length : null;
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, nameElement(arm.name)),
      el("td", {}, arm.frozen ? "body frozen" : "all"),
      el("td", {}, figureText(mean)),
      el("td", {}, arm.values.map(figureText).join("  ")),
    );
  });
  return section("Did knowledge move", verdict, el("p.quiet", {}, said), wideTable(head, rows));
}

function curvesOf(run) {
  const { result } = run;
  const column = (at) => run.steps.map((row) => [row[0], row[at]]).filter(([x]) => x !== null);
  const last = run.steps.at(-1)?.[0] ?? null;
  const around = Math.max(1, Math.round(run.steps.length / 60));
  const both = (title, at) =>
    chart(
      title,
      [
        { points: column(at), css: "line faint" },
        { points: smoothed(column(at), around), css: "line s1" },
      ],
      { last },
    );
  const names = [...new Set(run.evaluations.flatMap(([, figures]) => Object.keys(figures)))];
  names.sort((a, b) => (b === result?.metric) - (a === result?.metric));
  const evaluated = names.map((name) => {
    const points = run.evaluations
      .map(([step, figures]) => [step, own(figures, name, null)])
      .filter(([x]) => x !== null);
    const best = name === result?.metric ? points.find(([step]) => step === result.best_step) : null;
    return chart(`dev ${name}`, [{ points, css: "line s2", dots: true }], {
      mark: best && best[1] !== null ? best : null,
      last,
    });
  });
  const rates = chart(
    "learning rate",
    run.rates.map((name, at) => ({ name, points: column(3 + at) })),
    { last },
  );
  const note = run.every > 1 ? el("p.quiet", {}, `Of the steps, each ${run.every}th is drawn.`) : null;
  return [both("loss", 1), ...evaluated, both("gradient norm", 2), rates, note].filter(Boolean);
}

/** How many checks passed, warned, failed, did not run. */
function checkCounts(checks) {
  if (!checks.length) return "";
  const counts = Object.keys(STATUS).map((status) => [
    status,
    checks.filter((check) => check.status === status).length,
  ]);
  const said = counts
    .filter(([, number]) => number)
    .map(([status, number]) => el(`span.tally.${STATUS[status]}`, {}, `${number} ${status}`));
  return section("Checks", el("p", {}, ...said));
}

function checksOf(title, checks) {
  if (!checks.length) return "";
  const rows = checks.map((check) =>
    el(
      "tr.check",
      {},
      el(`td.status.${own(STATUS, check.status, "quiet")}`, {}, check.status),
      el("th", { scope: "row" }, nameElement(check.name)),
      el("td", {}, nameElement(check.says)),
    ),
  );
  return section(title, wideTable(null, rows));
}
