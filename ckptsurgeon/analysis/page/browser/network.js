// The view Network: tree, map and panel show the same tensor; a search applies to tree and map.

const OPENED_ROWS = 36; // the most rows of the tree that are opened at first, to show tensors that differ or have NaN

const FEW_ROWS = 12; // with fewer rows, more modules are opened

class Network {
  constructor(model) {
    this.model = model;
    this.search = new Search(model);
    this.colourings = colouringsOf(model);
    this.metric = model.parameters[model.size] ? "parameters" : "bytes";
    this.selected = null;
    this.moved = true; // whether the pointer has moved since the view was opened
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
      differing: () => this.oddWithin(model.root),
      colouring: () => this.colouring.name,
    });
    [this.colouring] = this.colourings;
    openOdd(model, (node) => this.oddWithin(node));
    openFirst(model);
    this.choices();
    this.colourBy(0);
    this.measureBy(this.metric);
    this.bindMap();
    this.zoom(model.root);
    this.panel.show(null);
  }

  /** Draw tree and map again, after the search has changed. */
  refresh() {
    this.tree.refresh();
    this.map.redraw();
  }

  /** Return what the tree shows of a node; during a search, only what was found in the node counts. */
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
      ...(node.to - node.from === 1 ? this.tensorNote(node.from) : this.note(node, number)),
    };
  }

  /** Return as ``note`` what check found in a tensor, how much it has changed, or its shape; the last is not ``odd``. */
  tensorNote(row) {
    const { model } = this;
    const found = model.findings.get(row);
    if (found) return { note: [...new Set(found.map(({ status, id }) => `${status} ${id}`))].join(", "), odd: true };
    const change = model.relative ? model.change(row) : 0;
    if (change > 0) return { note: change === Infinity ? changeText(change) : `changed by ${percentText(change)} %`, odd: true };
    return { note: shapeText(model.shape(row)), odd: false };
  }

  /** Return as ``note`` the number of a module's tensors; if it is ``odd``, also how many differ or have findings. */
  note(node, number) {
    const odd = this.search.isActive ? 0 : this.oddWithin(node);
    if (!odd || !(this.model.compares || this.model.findings.size)) return { note: plural(number, "tensor"), odd: false };
    return { note: `${grouped(odd)} of ${grouped(number)} ${this.model.compares ? "differ" : "to look at"}`, odd: true };
  }

  /** Return how many tensors of a node differ; if the colours show differences, by these. */
  oddWithin(node) {
    return this.colouring.mixed ? this.model.oddWithin(node) : this.colouring.oddWithin(node);
  }

  /** Set up the menus for sizes and colours. */
  choices() {
    const colours = this.colourings.map(({ name }, at) => el("option", { value: String(at) }, name));
    $("colouring").replaceChildren(...colours);
    $("metric").addEventListener("change", () => this.measureBy($("metric").value));
    $("colouring").addEventListener("change", () => this.colourBy(Number($("colouring").value)));
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
    if (!this.moved) return; // the pointer rests, and the page moved under it
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
    $("metric").value = metric;
    this.map.measureBy(metric);
    this.tree.refresh();
    this.finder.tell();
  }

  colourBy(number) {
    this.coloured = number;
    this.colouring = this.colourings[number];
    $("colouring").value = String(number);
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
    const moved = (event) => {
      const place = `${event.clientX} ${event.clientY}`;
      this.moved ||= this.pointer !== place;
      this.pointer = place;
    };
    for (const name of ["pointerover", "pointermove"]) document.addEventListener(name, moved, true);
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
  }

  /** Leave the search box; if the focus is not in it, end the search; if there is none, select nothing. */
  escape() {
    if (document.activeElement === $("text")) $("tree").focus();
    else if (this.search.isActive) {
      this.finder.clear();
      this.legend();
    } else this.select(null);
  }

  /** Return [key, function] for each key that works wherever the focus is. */
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

/** Return the child module of ``top`` that contains ``node``; ``top`` itself if there is none. */
function partOf(top, node) {
  let at = node;
  while (at.parent !== null && at.parent !== top) at = at.parent;
  return at.isTensor || at.parent === null ? top : at;
}

/**
 * Open the modules with tensors that differ or have NaN, level by level, up to ``OPENED_ROWS`` rows. Those with the
 * largest change or the worst finding are first. ``oddWithin`` returns how many such tensors a node has.
 */
function openOdd(model, oddWithin) {
  let left = model.root.children;
  let rows = left.length;
  while (left.length) {
    const next = [];
    const worst = new Map(left.map((node) => [node, model.worstWithin(node)]));
    for (const node of left.toSorted((a, b) => worst.get(b) - worst.get(a))) {
      const odd = oddWithin(node);
      // All of its tensors: nothing to single out.
      if (node.isTensor || !odd || (odd === node.to - node.from && node.parent.parent)) continue;
      if (!node.open) {
        if (rows + node.children.length > OPENED_ROWS) continue;
        rows += node.children.length;
        node.open = true;
      }
      next.push(...node.children);
    }
    left = next;
  }
}

/** Open the largest modules, level by level, while the tree has few rows; of layers only the first. */
function openFirst(model) {
  let rows = model.root.children;
  if (rows.some((node) => node.open)) return;
  while (rows.length < FEW_ROWS) {
    const closed = rows.filter((node) => node.to - node.from > 2 && !node.open && !(node.isNumbered && node.place));
    closed.sort((a, b) => model.value(b, "bytes") - model.value(a, "bytes"));
    const [node] = closed;
    if (!node) return;
    node.open = true;
    rows = rows.toSpliced(rows.indexOf(node) + 1, 0, ...node.children);
  }
}

function openedParts(node) {
  for (const part of node.children) part.open = !part.isTensor;
  return node.children;
}

/** Put a key into the page's address. Browsers refuse this in a notebook's frame, and if it happens too often. */
function remember(key) {
  try {
    history.replaceState(null, "", `#${key.isWellFormed() ? encodeURIComponent(key) : ""}`);
  } catch (error) {
    if (error.name !== "SecurityError") throw error;
  }
}
