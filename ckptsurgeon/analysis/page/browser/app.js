// The page: its views, keys, colours and address.

class App {
  constructor(data) {
    this.data = data;
    this.model = new Model(data);
    this.head();
    this.network = this.model.size ? new Network(this.model) : null;
    this.tabs();
    this.keys();
    this.fromAddress();
  }

  head() {
    const { data, model } = this;
    const [first, second] = data.sources;
    $("title").replaceChildren(nameElement(document.title));
    const lines = [first, second].filter(Boolean).map(summary);
    if (second && lines[0].join() === lines[1].join()) lines.splice(0, 2, ["both", ...lines[0]]);
    else if (second) ["from", "to"].forEach((side, at) => lines[at].unshift(side));
    if (data.receipt) lines[0].push(`made by ckpt ${visible(data.receipt.verb)}`);
    $("facts").replaceChildren(...lines.map((facts) => el("span.line", {}, ...facts.flatMap((one) => [el("span", {}, one), " "]))));
    if (!model.size) $("network").replaceChildren(el("p.empty", {}, "The run has not saved a checkpoint yet."));
    $("theme").addEventListener("click", () => this.turn());
    $("theme").textContent = otherTheme();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      $("theme").textContent = otherTheme();
      this.network?.map.redraw();
    });
  }

  tabs() {
    const { data, model } = this;
    const views = [["network", "Network", () => []]];
    if (data.merge)
      views.unshift(["merge", "Merge", () => mergeView(model, (node) => this.open(node), (name) => this.showMap(name))]);
    if (model.size && measuresOf(model).length)
      views.push(["layers", "Layers", () => layersView(model, (node) => this.open(node))]);
    if (data.check) views.push(["check", checkLabel(data.check), () => checkedView(data.check, model, (node) => this.open(node))]);
    if (data.receipt) views.push(["receipt", "Receipt", () => receiptView(model, (node) => this.open(node))]);
    if (data.run) views.push(["run", "Run", () => runView(data.run)]);
    views.push(["about", aboutLabel(data.sources), () => aboutView(data)]);
    for (const [id, label, made] of views) {
      const given = { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": id };
      const tab = el(
        "button",
        { ...given, onclick: () => this.view(id), onkeydown: (event) => this.besides(event) },
        ...[label].flat(),
      );
      $("tabs").append(tab);
      $(id).append(...shownOrSaid(label, made).filter((part) => part !== ""));
    }
    this.view(data.run ? "run" : data.merge ? "merge" : model.changes ? "layers" : "network", { focus: true });
  }

  view(id, { focus = false } = {}) {
    this.shown = id;
    for (const tab of $("tabs").children) {
      const chosen = tab.id === `tab-${id}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (id === "network") this.network?.map.redraw();
    else if (focus) $(id).focus({ preventScroll: true }); // so that arrow keys scroll the view
  }

  besides(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tabs = [...$("tabs").children];
    const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  }

  /** Show a measure in the view Layers. */
  showMap(name) {
    $("measure").value = name;
    $("measure").dispatchEvent(new Event("change"));
    this.view("layers", { focus: true });
  }

  /** Show the network, and select a node in it. */
  open(node) {
    this.view("network");
    this.network.moved = false;
    this.network.select(node);
  }

  /** Switch between the light and the dark theme. */
  turn() {
    document.documentElement.dataset.theme = otherTheme();
    $("theme").textContent = otherTheme();
    this.network?.map.redraw();
  }

  keys() {
    const acts = new Map([
      ["t", () => this.turn()],
      ["?", () => this.view(this.shown === "about" ? "network" : "about", { focus: true })],
    ]);
    for (const [key, act] of this.network?.acts() ?? []) acts.set(key, act);
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = /^(INPUT|SELECT)$/.test(event.target.tagName) && event.key !== "Escape";
      const act = typing ? undefined : acts.get(event.key);
      if (!act) return;
      if (event.key === "/") this.view("network");
      act();
      event.preventDefault();
    });
  }

  /** Select the tensor or module whose name is after # in the page's address, if it exists. */
  fromAddress() {
    let key = "";
    try {
      key = decodeURIComponent(location.hash.slice(1));
    } catch {
      return; // this page did not write the address
    }
    const node = key && this.network ? this.model.find(key) : null;
    if (node) this.open(node);
  }
}

/** Return the theme that the page does not have now: light or dark. */
function otherTheme() {
  const { theme } = document.documentElement.dataset;
  const now = theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  return now === "dark" ? "light" : "dark";
}

/** Return the label of the view Check: with the number of checks that failed or, if none did, warned. */
function checkLabel({ rows }) {
  const [status, number] = ["FAIL", "WARN"]
    .map((one) => [one, rows.filter((row) => row.status === one).length])
    .find(([, found]) => found) ?? ["PASS", 0];
  return ["Check ", el(`span.status.${STATUS[status]}`, {}, number ? `${number} ${status}` : status)];
}

/** Return the label of the view About: with the number of warnings, if there are any. */
function aboutLabel(sources) {
  const number = sources.reduce((sum, { serious }) => sum + serious, 0);
  return number ? ["About ", el("span.status.bad", {}, plural(number, "warning"))] : "About";
}

/** Return the elements of a view; if making them fails, a message, so that the other views still work. */
function shownOrSaid(label, made) {
  try {
    return made();
  } catch (error) {
    console.error(error);
    return [el("p.bad", {}, `${[label].flat()[0].trim()} could not be shown: ${error.message}`)];
  }
}

/** Return the facts about a file that the head of the page shows. */
const summary = (source) => [
    ...source.said,
    source.format,
    bytesText(source.nbytes_files),
    plural(source.tensors, "tensor"),
    atLeast(source) + parametersText(source.parameters),
    ...(source.root ? [`root ${source.root}`] : []),
  ];

new App(JSON.parse($("data").textContent));
