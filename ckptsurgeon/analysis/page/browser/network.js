// The network: tree, map and panel, which show the same tensor, and what is looked for in them.

class Network {
  constructor(model) {
    this.model = model;
    this.search = new Search(model);
    this.colourings = colouringsOf(model);
    this.metric = model.parameters[model.size] ? "parameters" : "bytes";
    this.selected = null;
    const { search } = this;
    this.panel = new Panel($("panel"), model, this);
    this.map = new NetworkMap($("canvas"), model, search);
    this.tree = new Tree($("tree"), model, search, {
      select: (node) => this.select(node),
      hover: (node) => this.hover(node),
      zoom: (node) => this.zoom(node),
      describe: (node) => this.describe(node),
    });
    for (let at = model.root; at.children.length === 1;) [at] = openedParts(at);
    this.finder = new Finder(model, search, {
      changed: () => this.refresh(),
      select: (node) => this.select(node),
      metric: () => this.metric,
    });
    this.colourBy(0);
    this.measureBy(this.metric);
    this.bindMap();
    this.zoom(model.root);
    this.panel.show(null);
  }

  /** Draw what is shown anew, for other tensors are looked for. */
  refresh() {
    this.tree.refresh();
    this.map.redraw();
  }

  /** What a row of the tree says of a node; where something is looked for, of what was found in it. */
  describe(node) {
    const { model, metric, search, colouring } = this;
    const tone = colouring.tone(node);
    const value = search.valueWithin(node, metric);
    const text = metric === "bytes" ? bytesText(value) : countText(value);
    const number = search.within(node);
    return {
      colour: tone < 0 ? null : colouring.list[tone].colour,
      size: value || !number ? text : "-",
      share: value / search.valueWithin(model.root, metric) || 0,
      note: node.isTensor ? shapeText(model.shape(node.row)) : plural(number, "tensor"),
    };
  }

  select(node) {
    this.selected = node;
    this.finder.from = node ? node.to : 0;
    this.tree.reveal(node);
    this.map.mark(node);
    this.panel.show(node);
    const key = node ? this.model.keyOf(node) : "";
    remember(key);
  }

  hover(node) {
    this.panel.show(node ?? this.selected);
    this.map.mark(node ?? this.selected);
  }

  zoom(node) {
    this.map.zoom(node);
    const path = [];
    for (let at = this.map.top; at !== null; at = at.parent) path.unshift(at);
    const links = path.map((one) =>
      el("button.link", { type: "button", onclick: () => this.zoom(one) }, one.parent ? nameElement(one.name) : "all"),
    );
    $("path").replaceChildren(...links.flatMap((link, at) => (at ? [el("span.quiet", {}, " / "), link] : [link])));
  }

  // Sizes and colours.

  measureBy(metric) {
    this.metric = metric;
    $("metric").textContent = `by ${metric}`;
    this.map.measureBy(metric);
    this.tree.refresh();
    this.finder.tell();
  }

  colourBy(number) {
    this.coloured = number;
    this.colouring = this.colourings[number];
    $("colouring").textContent = `colour: ${this.colouring.name}`;
    this.map.colouring = this.colouring;
    this.search.categoryOf = this.colouring.of;
    this.search.chosen.clear();
    this.panel.shown = undefined;
    this.panel.show(this.selected);
    this.legend();
    this.finder.run();
  }

  legend() {
    const { chosen } = this.search;
    const made = this.colouring.list.map(({ label, colour, count }, at) => {
      if (!count) return "";
      const choose = () => {
        if (!chosen.delete(at)) chosen.add(at);
        this.legend();
        this.finder.run();
      };
      return el(
        "button.chip",
        { type: "button", "aria-pressed": String(chosen.has(at)), onclick: choose },
        badge(label, colour),
        el("span.quiet", {}, grouped(count)),
      );
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

  /** Leave the search, take back what was looked for, or else what is selected. */
  escape() {
    if (document.activeElement === $("text")) $("tree").focus();
    else if (this.search.isActive) {
      this.finder.clear();
      this.legend();
    } else this.select(null);
  }

  /** What keys do wherever the focus is. */
  acts() {
    return [
      ["/", () => this.finder.focus()],
      ["m", () => this.measureBy(this.metric === "bytes" ? "parameters" : "bytes")],
      ["c", () => this.colourBy((this.coloured + 1) % this.colourings.length)],
      ["Backspace", () => this.map.top.parent && this.zoom(this.map.top.parent)],
      ["Escape", () => this.escape()],
    ];
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

/** Let the address name what is shown, where it may: not in a notebook's frame, nor too often. */
function remember(key) {
  try {
    history.replaceState(null, "", `#${key.isWellFormed() ? encodeURIComponent(key) : ""}`);
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
  }
}
