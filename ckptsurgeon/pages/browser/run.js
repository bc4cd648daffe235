// A training run: how it went, what was checked, and the verdict on whether knowledge moved.

const STATUS = { PASS: "good", WARN: "warn", FAIL: "bad", "NOT RUN": "quiet" };
const WHEN = { before: "Before the first step", during: "While it trained", after: "After the last step" };
const VERDICTS = { KNOWLEDGE: "good", NONE: "bad", "SCALE ONLY": "warn" };

function runView(run) {
  const { result, lineage } = run;
  return [
    section("The run", factsOf(runFacts(run, result, lineage))),
    checkCounts(run.checks),
    ...(result.controls ? [controlsOf(result.controls)] : []),
    el("div.charts", {}, ...curvesOf(run, result)),
    ...Object.entries(WHEN).map(([when, title]) => checksOf(title, run.checks.filter((check) => check.when === when))),
    ...(result.notes?.length ? [longList("Notes", result.notes.map(String))] : []),
  ];
}

function runFacts(run, result, lineage) {
  const facts = [["state", stateOf(run, result)]];
  const init = lineage.init;
  facts.push(["from", init ? nameElement(String(init.path ?? init.name ?? "an init")) : "scratch"]);
  if (result.task) facts.push(["task", nameElement(String(result.task))]);
  if (result.metric && typeof result.best === "number") facts.push(["best", nameElement(result.metric), ` ${figureText(result.best)} at step ${result.best_step}`]);
  for (const [name, value] of Object.entries(result.test ?? {})) facts.push([`test ${name}`, figureText(value)]);
  if (typeof lineage.seed === "number") facts.push(["seed", String(lineage.seed)]);
  if (lineage.device) facts.push(["device", `${lineage.device}${lineage.processes > 1 ? `, ${lineage.processes} processes` : ""}`]);
  if (typeof result.elapsed_s === "number") facts.push(["took", durationText(result.elapsed_s)]);
  return facts;
}

function stateOf(run, result) {
  const last = run.steps.at(-1)?.[0] ?? 0;
  if (!("ok" in result)) return `under way, or ended without a result; ${plural(last, "step")} in its log`;
  const failed = run.checks.filter((check) => check.status === "FAIL").length;
  const said = `${result.ended || "checked"}, ${result.step} of ${result.steps} steps`;
  return failed ? el("strong.bad", {}, `${said}; ${plural(failed, "check")} failed`) : said;
}

function durationText(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes}:${two(seconds % 60)}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}:${two(seconds % 60)}`;
}

function controlsOf(controls) {
  const verdict = el(`p.verdict.${VERDICTS[controls.verdict] ?? "warn"}`, {}, String(controls.verdict));
  const said = `decided with ${controls.decided_on === "frozen" ? "the body frozen" : "all of it trained"}, ${controls.metric} after ${controls.steps} steps, ${plural(controls.seeds, "seed")}`;
  const head = el("tr", {}, ...["start", "trained", "mean", "by seed"].map((name) => el("th", { scope: "col" }, name)));
  const rows = (controls.arms ?? []).map((arm) => {
    const mean = arm.values.reduce((a, b) => a + b, 0) / arm.values.length;
    return el("tr", {}, el("th", { scope: "row" }, nameElement(arm.name)), el("td", {}, arm.frozen ? "body frozen" : "all"), el("td", {}, figureText(mean)), el("td", {}, arm.values.map(figureText).join("  ")));
  });
  return section("Did knowledge move", verdict, el("p.quiet", {}, said), el("div.wide", {}, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
}

function curvesOf(run, result) {
  const column = (at) => run.steps.map((row) => [row[0], row[at]]).filter(([x]) => x !== null);
  const last = run.steps.at(-1)?.[0] ?? null;
  const around = Math.max(1, Math.round(run.steps.length / 60));
  const both = (title, at) => chart(title, [{ points: column(at), css: "line faint" }, { points: smoothed(column(at), around), css: "line s1" }], { last });
  const names = [...new Set(run.evaluations.flatMap(([, figures]) => Object.keys(figures)))];
  names.sort((a, b) => (b === result.metric) - (a === result.metric));
  const evaluated = names.map((name) => {
    const points = run.evaluations.map(([step, figures]) => [step, figures[name] ?? null]).filter(([x]) => x !== null);
    const best = name === result.metric ? points.find(([step]) => step === result.best_step) : null;
    return chart(`dev ${name}`, [{ points, css: "line s2", dots: true }], { mark: best && best[1] !== null ? best : null, last });
  });
  const rates = chart("learning rate", run.rates.map((name, at) => ({ name, points: column(3 + at) })), { last });
  const note = run.every > 1 ? el("p.quiet", {}, `Of the steps, each ${run.every}th is drawn.`) : null;
  return [both("loss", 1), ...evaluated, both("gradient norm", 2), rates, note].filter(Boolean);
}

/** How many checks passed, warned, failed, did not run. */
function checkCounts(checks) {
  if (!checks.length) return "";
  const counts = Object.keys(STATUS).map((status) => [status, checks.filter((check) => check.status === status).length]);
  const said = counts.filter(([, number]) => number).map(([status, number]) => el(`span.tally.${STATUS[status]}`, {}, `${number} ${status}`));
  return section("Checks", el("p", {}, ...said));
}

function checksOf(title, checks) {
  if (!checks.length) return "";
  const rows = checks.map((check) => el("tr", {}, el(`td.status.${STATUS[check.status] ?? "quiet"}`, {}, String(check.status)), el("th", { scope: "row" }, nameElement(String(check.name))), el("td", {}, nameElement(String(check.says)))));
  return section(title, el("div.wide", {}, el("table.checks", {}, el("tbody", {}, ...rows))));
}
