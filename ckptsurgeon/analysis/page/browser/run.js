// The view Run: the curves and the checks of a training run, and the verdict on whether knowledge was transferred.

const WHEN = { before: "before the first step", during: "while it trained", after: "after the last step" };
const VERDICTS = { KNOWLEDGE: "good", NONE: "bad", "SCALE ONLY": "warn" };

function runView(run) {
  const { result, checks } = run;
  const [first, rest] = curvesOf(run);
  return [
    el("div.cards", {}, stateCard(run), verdictCard(run), bestCard(run), checksCard(checks)),
    el(
      "div.board",
      {},
      el("div.figures", {}, figuresOf(run), section("The run", factsOf(runFacts(run)))),
      el("div.curves", {}, el("div.charts", {}, ...first), result?.controls ? controlsOf(result.controls) : null),
    ),
    worstClips(run.clips),
    rest.length ? section("More curves", el("div.charts", {}, ...rest)) : "",
    ...Object.entries(WHEN).map(([when, title]) =>
      checksOf(
        `Checks: ${title}`,
        checks.filter((check) => check.when === when),
      ),
    ),
    result ? longList("Notes", result.notes) : "",
  ];
}

const card = (title, css, big, ...more) =>
  el(
    "section.card",
    {},
    el("h3", {}, title),
    el(`p.big.${css}`, {}, ...[big].flat()),
    ...more.map((one) => el("p.quiet", {}, ...[one].flat())),
  );

function stateCard({ steps, result, checks, lineage }) {
  const last = grouped(steps.at(-1)?.[0] ?? 0);
  const all = lineage.steps === null ? "" : ` of ${grouped(lineage.steps)}`;
  if (!result)
    return card("State", "plain", "under way, or ended without a result", `step ${last}${all} is the last in its log`);
  const took = result.elapsed_s === null ? "" : `, ${durationText(result.elapsed_s)}`;
  const css = checks.some((check) => check.status === "FAIL") ? "bad" : "plain";
  const done = `${result.step === null ? "?" : grouped(result.step)} of ${result.steps === null ? "?" : grouped(result.steps)} steps${took}`;
  const failed = css === "bad" ? ["a check failed"] : [];
  return card("State", css, own(WAYS, result.ended, result.ended || "checked"), done, ...failed);
}

function verdictCard({ result }) {
  const { controls } = result ?? {};
  if (!controls)
    return card("Did knowledge move", "quiet", "not judged", "that takes --controls: the same run from other weights");
  return card(
    "Did knowledge move",
    own(VERDICTS, controls.verdict, "warn"),
    nameElement(controls.verdict),
    decidedText(controls),
  );
}

function bestCard({ result, evaluations }) {
  const { metric } = result ?? {};
  const last = evaluations.at(-1);
  if (metric && result.best !== null) {
    const test = own(result.test, metric, null);
    const said = `dev, at step ${result.best_step === null ? "?" : grouped(result.best_step)}${test === null ? "" : `; test ${figureText(test)}`}`;
    return card("Best", "plain", [nameElement(metric), ` ${figureText(result.best)}`], said);
  }
  const name = last && Object.keys(last[1])[0];
  if (name === undefined) return card("Best", "quiet", "not evaluated");
  return card(
    "Last evaluation",
    "plain",
    [nameElement(name), ` ${figureText(last[1][name])}`],
    `dev, at step ${grouped(last[0])}`,
  );
}

/** Return the card with the number of checks of each status, and the names of those that failed or warned. */
function checksCard(checks) {
  if (!checks.length) return card("Checks", "quiet", "none yet");
  const count = (status) => checks.filter((check) => check.status === status).length;
  const tallies = Object.keys(STATUS)
    .filter(count)
    .flatMap((status) => [el(`span.tally.${STATUS[status]}`, {}, `${count(status)} ${status}`), " "]);
  const wrong = ["FAIL", "WARN"].flatMap((status) => checks.filter((check) => check.status === status));
  const named = wrong
    .slice(0, 3)
    .map((check) => [el(`span.${STATUS[check.status]}`, {}, check.status), " ", nameElement(check.name)]);
  const more = wrong.length > 3 ? [`and ${wrong.length - 3} more, below`] : [];
  return card("Checks", "plain", tallies, ...named, ...more);
}

/** Return the table of metrics: on dev for the best and for the last weights, and on test. */
function figuresOf({ evaluations, result }) {
  const best = result && evaluations.findLast(([step]) => step === result.best_step);
  const last = evaluations.at(-1);
  const columns = [];
  if (best) columns.push([`dev, step ${grouped(best[0])}`, best[1]]);
  if (last && last !== best) columns.push([`dev, step ${grouped(last[0])}`, last[1]]);
  if (result && Object.keys(result.test).length) columns.push(["test", result.test]);
  const names = [...new Set(columns.flatMap(([, figures]) => Object.keys(figures)))];
  if (!names.length) return "";
  names.sort((a, b) => (b === result?.metric) - (a === result?.metric));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col" }, "figure"),
    ...columns.map(([title]) => el("th.number", { scope: "col" }, title)),
  );
  const rows = names.map((name) =>
    el(
      name === result?.metric ? "tr.chosen" : "tr",
      {},
      el("th", { scope: "row" }, nameElement(name)),
      ...columns.map(([, figures]) =>
        el("td.number", {}, Object.hasOwn(figures, name) ? figureText(figures[name]) : ""),
      ),
    ),
  );
  return section("Figures", wideTable(head, rows));
}

function runFacts({ lineage, result }) {
  const facts = [["from", lineage.init === null ? "scratch" : nameElement(lineage.init)]];
  if (result?.task || lineage.task) facts.push(["task", nameElement(result?.task || lineage.task)]);
  if (lineage.seed !== null) facts.push(["seed", String(lineage.seed)]);
  if (lineage.device)
    facts.push(["device", `${lineage.device}${lineage.processes > 1 ? `, ${lineage.processes} processes` : ""}`]);
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

function durationText(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  return minutes < 60
    ? `${minutes}:${two(seconds % 60)}`
    : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
}

const decidedText = (controls) =>
  `decided with ${controls.decided_on === "frozen" ? "the body frozen" : "all of it trained"}, ${controls.metric} after ${controls.steps} steps, ${plural(controls.seeds ?? 0, "seed")}`;

function controlsOf(controls) {
  const head = el(
    "tr",
    {},
    ...["start", "trained", `mean ${controls.metric}`, "by seed"].map((name) => el("th", { scope: "col" }, name)),
  );
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
  return section("The same run from other weights", wideTable(head, rows));
}

/** Return the charts: first those that are always visible, then the others. */
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
  const note = run.every > 1 ? el("p.quiet", {}, `One of every ${run.every} steps is drawn.`) : null;
  const [metric, ...others] = evaluated.filter(Boolean);
  const [first, rest] = [
    [both("loss", 1), metric].filter(Boolean),
    [...others, both("gradient norm", 2), rates].filter(Boolean),
  ];
  const moved = first.length < 2 ? rest.splice(0, 2 - first.length) : [];
  return [[...first, ...moved, note].filter(Boolean), rest];
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
