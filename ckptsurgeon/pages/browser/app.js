// The page: its parts, and what happens between them.

const OPENED = 200; // of what was found, so many are brought into the tree

class App {
  constructor(data) {
    this.data = data;
    this.model = new Model(data);
    this.search = new Search(this.model);
    this.colourings = colouringsOf(this.model);
    this.metric = this.model.parameters[this.model.size] ? "parameters" : "bytes";
    this.selected = null;
    this.head();
    this.tabs();
    if (this.model.size) this.network();
    this.keys();
    this.fromAddress();
  }

  // What stands at the top.

  head() {
    const { data, model } = this;
    $("title").replaceChildren(nameElement(document.title));
    const [first, second] = data.sources;
    const said = (source) => `${source.format}  ${bytesText(source.nbytes_files)}  ${plural(source.tensors, "tensor")}  ${countText(source.parameters)} parameters`;
    if (second) $("facts").textContent = `${said(first)}  against  ${said(second)}`;
    else if (first) $("facts").textContent = said(first);
    if (!model.size) $("network").replaceChildren(el("p.empty", {}, data.run && !data.run.model ? "The run has not saved a checkpoint yet." : "There are no tensors in it."));
    $("theme").addEventListener("click", () => this.turn());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
  }

  tabs() {
    const { data } = this;
    const views = { network: "Network" };
    if (data.receipt) views.receipt = "Receipt";
    if (data.run) views.run = "Run";
    views.about = "About";
    const made = { receipt: () => receiptView(this.model, this), run: () => runView(data.run), about: () => aboutView(data) };
    for (const [id, label] of Object.entries(views)) {
      $("tabs").append(el("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": id, onclick: () => this.view(id), onkeydown: (event) => this.besides(event) }, label));
      if (made[id]) $(id).append(...made[id]().filter((part) => part !== ""));
    }
    this.view(data.run ? "run" : "network");
  }

  view(id) {
    for (const tab of $("tabs").children) {
      const chosen = tab.id === `tab-${id}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !chosen;
    }
    if (id === "network" && this.map) this.map.redraw();
  }

  besides(event) {
    const tabs = [...$("tabs").children];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(event.target) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  }

  // The network: tree, map and panel, which show the same tensor.

  network() {
    const { model, search } = this;
    this.panel = new Panel($("panel"), model, this);
    this.map = new NetworkMap($("canvas"), model, search);
    this.tree = new Tree($("tree"), model, search, {
      select: (node) => this.select(node),
      hover: (node) => this.hover(node),
      zoom: (node) => this.zoom(node),
      describe: (node) => this.describe(node),
    });
    for (let at = model.root; at.children.length === 1; ) [at] = openedParts(at);
    this.colourBy(0);
    this.measureBy(this.metric);
    this.bindSearch();
    this.bindMap();
    this.zoom(model.root);
    this.found();
    this.panel.show(null);
  }

  describe(node) {
    const { model, metric } = this;
    const value = model.value(node, metric);
    const parts = this.colouring.list;
    const first = this.colouring.of[node.from];
    const uniform = node.isTensor || this.uniform(node, first);
    return {
      colour: uniform ? parts[first].colour : null,
      size: metric === "bytes" ? bytesText(value) : countText(value),
      share: value / model.value(model.root, metric) || 0,
      note: node.isTensor ? shapeText(model.shape(node.row)) : plural(this.search.isActive ? this.search.within(node) : node.to - node.from, "tensor"),
    };
  }

  uniform(node, category) {
    for (let row = node.from; row < node.to; row++) if (this.colouring.of[row] !== category) return false;
    return true;
  }

  select(node) {
    this.selected = node;
    this.tree.reveal(node);
    this.map.mark(node);
    this.panel.show(node);
    const key = node ? this.model.keyOf(node) : "";
    history.replaceState(null, "", `#${key.isWellFormed() ? encodeURIComponent(key) : ""}`);
  }

  hover(node) {
    this.panel.show(node ?? this.selected);
    this.map.mark(node ?? this.selected);
  }

  zoom(node) {
    this.map.zoom(node);
    const path = [];
    for (let at = this.map.top; at !== null; at = at.parent) path.unshift(at);
    const links = path.map((one) => el("button.link", { type: "button", onclick: () => this.zoom(one) }, one.parent ? nameElement(one.name) : "all"));
    $("path").replaceChildren(...links.flatMap((link, at) => (at ? [el("span.quiet", {}, " / "), link] : [link])));
  }

  /** Leave a view for a node of the network. */
  open(node) {
    this.view("network");
    this.select(node);
  }

  // What is looked for.

  bindSearch() {
    const input = $("text");
    input.addEventListener("input", () => this.look());
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.next();
    });
    $("mode").addEventListener("click", () => {
      this.search.mode = this.search.mode === "text" ? "pattern" : "text";
      $("mode").setAttribute("aria-pressed", String(this.search.mode === "pattern"));
      this.hintAt();
      this.look();
    });
    this.hintAt();
  }

  hintAt() {
    $("text").placeholder = this.search.mode === "pattern" ? "decoder, **.bias, layers.{0..3}" : "search keys";
  }

  look() {
    this.search.text = $("text").value;
    this.filter();
  }

  filter() {
    this.search.run();
    if (this.search.isActive && !this.search.error) for (const row of this.search.first(OPENED)) openTo(this.model.leaves[row]);
    this.tree.refresh();
    this.map.redraw();
    this.found();
  }

  /** Select what was found behind what is selected. */
  next() {
    const rows = this.search.first(this.model.size);
    if (!this.search.isActive || !rows.length) return;
    const from = this.selected ? this.selected.to : 0;
    this.select(this.model.leaves[rows.find((row) => row >= from) ?? rows[0]]);
  }

  found() {
    const { search, model, metric } = this;
    const box = $("found");
    box.classList.toggle("bad", Boolean(search.error));
    if (search.error) {
      box.replaceChildren(nameElement(`${search.error.message} ${search.error.hint ?? ""}`));
      return;
    }
    const value = search.value(metric);
    const size = metric === "bytes" ? bytesText(value) : `${countText(value)} parameters`;
    const all = plural(model.size, "tensor");
    if (!search.isActive) box.replaceChildren(`${all}, ${size}`);
    else box.replaceChildren(`${grouped(search.count)} of ${all}, ${size}`, ...this.nearby());
  }

  nearby() {
    const near = this.search.count ? null : this.search.deeper();
    if (!near) return [];
    const use = () => {
      $("text").value = near.text;
      this.look();
    };
    return ["; ", el("button.link", { type: "button", onclick: use }, visible(near.text)), ` finds ${grouped(near.number)}`];
  }

  // Sizes and colours.

  measureBy(metric) {
    this.metric = metric;
    $("metric").textContent = `by ${metric}`;
    this.map.measureBy(metric);
    this.tree.refresh();
    this.found();
  }

  colourBy(number) {
    this.coloured = number;
    this.colouring = this.colourings[number];
    $("colouring").textContent = `colour: ${this.colouring.name}`;
    this.map.colouring = this.colouring;
    this.search.categoryOf = this.colouring.of;
    this.search.chosen.clear();
    this.search.run();
    this.panel.shown = undefined;
    this.panel.show(this.selected);
    this.legend();
    this.tree.refresh();
    this.map.redraw();
    this.found();
  }

  legend() {
    const { chosen } = this.search;
    const made = this.colouring.list.map(({ label, colour, count }, at) => {
      if (!count) return "";
      const choose = () => {
        if (!chosen.delete(at)) chosen.add(at);
        this.legend();
        this.filter();
      };
      return el("button.chip", { type: "button", "aria-pressed": String(chosen.has(at)), onclick: choose }, badge(label, colour), el("span.quiet", {}, grouped(count)));
    });
    const focused = [...$("legend").children].indexOf(document.activeElement);
    $("legend").replaceChildren(...made.filter(Boolean));
    if (focused >= 0) $("legend").children[focused]?.focus();
  }

  bindMap() {
    const canvas = $("canvas");
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      return this.map.at(event.clientX - box.left, event.clientY - box.top);
    };
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && this.hover(under(event)));
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("click", (event) => {
      const node = under(event);
      if (node) this.select(node);
    });
    canvas.addEventListener("dblclick", (event) => {
      const node = under(event);
      if (node) this.zoom(partOf(this.map.top, node));
    });
    new ResizeObserver(() => this.map.redraw()).observe($("map"));
    $("metric").addEventListener("click", () => this.measureBy(this.metric === "bytes" ? "parameters" : "bytes"));
    $("colouring").addEventListener("click", () => this.colourBy((this.coloured + 1) % this.colourings.length));
  }

  // Light and dark, keys, the address.

  turn() {
    const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    document.documentElement.dataset.theme = dark === "dark" ? "light" : "dark";
    this.recolour();
  }

  recolour() {
    this.map?.redraw();
  }

  say(text) {
    $("found").replaceChildren(text);
    setTimeout(() => this.found(), 1500);
  }

  keys() {
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape" && this.map) this.escape();
      else if (event.target instanceof HTMLInputElement) return;
      else if (!this.act(event.key)) return;
      event.preventDefault();
    });
  }

  escape() {
    if (document.activeElement === $("text")) $("tree").focus();
    else if (this.search.isActive) {
      $("text").value = "";
      this.search.clear();
      this.legend();
      this.filter();
    } else this.select(null);
  }

  /** What a key does anywhere on the page; returns whether it does anything. */
  act(key) {
    const acts = {
      t: () => this.turn(),
      "?": () => this.view("about"),
    };
    if (this.map) {
      acts["/"] = () => {
        this.view("network");
        $("text").focus();
        $("text").select();
      };
      acts.m = () => this.measureBy(this.metric === "bytes" ? "parameters" : "bytes");
      acts.c = () => this.colourBy((this.coloured + 1) % this.colourings.length);
      acts.Backspace = () => this.map.top.parent && this.zoom(this.map.top.parent);
    }
    acts[key]?.();
    return key in acts;
  }

  /** Select the tensor or module that the address names behind #, if there is one. */
  fromAddress() {
    let key = "";
    try {
      key = decodeURIComponent(location.hash.slice(1));
    } catch {
      return; // it is no address of ours
    }
    const node = key && this.map ? this.model.find(key) : null;
    if (node) this.open(node);
  }
}

/** The part of a module in which a node lies, one level down; the module itself where there is none. */
function partOf(top, node) {
  let at = node;
  while (at.parent !== null && at.parent !== top) at = at.parent;
  return at.isTensor || at.parent === null ? top : at;
}

function openedParts(node) {
  for (const part of node.children) part.open = !part.isTensor;
  return node.children;
}

function openTo(node) {
  for (let at = node.parent; at !== null; at = at.parent) at.open = true;
}

new App(JSON.parse($("data").textContent));
