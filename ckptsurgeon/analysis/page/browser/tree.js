// The tree of modules as rows; only the visible rows are elements of the page.

const ROW = 26; // height of a row in pixels, as in page.css
const AROUND = 12; // rows that are made above and below the visible ones
const DEEPEST = 24; // the most levels of indentation

class Tree {
  constructor(box, model, search, { select, hover, zoom, describe }) {
    Object.assign(this, { box, model, search, select, hover, zoom, describe });
    this.rows = [];
    this.selected = null;
    this.sheet = el("div.sheet", { role: "presentation" });
    box.append(this.sheet);
    box.addEventListener("scroll", () => this.drawSoon(), { passive: true });
    box.addEventListener("keydown", (event) => this.pressed(event));
    box.addEventListener("mouseleave", () => hover(null));
    new ResizeObserver(() => this.drawSoon()).observe(box);
  }

  /** Collect the rows of all open modules, and draw the visible ones. */
  refresh() {
    this.rows = [];
    const left = [this.model.root];
    while (left.length) {
      const node = left.pop();
      if (node !== this.model.root) this.rows.push(node);
      const parts = node.open ? this.shownParts(node) : [];
      for (let at = parts.length - 1; at >= 0; at--) {
        parts[at].place = at + 1;
        parts[at].beside = parts.length;
        left.push(parts[at]);
      }
    }
    this.sheet.style.height = `${this.rows.length * ROW}px`;
    this.drawn = null;
    this.draw();
  }

  shownParts(node) {
    return this.search.isActive ? node.children.filter((child) => this.search.within(child)) : node.children;
  }

  drawSoon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  draw() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - AROUND);
    const last = Math.min(this.rows.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + AROUND);
    const drawn = `${first} ${last}`;
    if (this.drawn === drawn) return;
    this.drawn = drawn;
    const made = [];
    for (let at = first; at < last; at++) made.push(this.element(this.rows[at], at));
    this.sheet.replaceChildren(...made);
    this.tell();
  }

  element(node, at) {
    const { colour, size, share, note, odd } = this.describe(node);
    const row = el(
      "div.row",
      {
        id: `row-${at}`,
        role: "treeitem",
        "aria-level": String(node.depth + 1),
        "aria-selected": String(node === this.selected),
        "aria-setsize": String(node.beside),
        "aria-posinset": String(node.place),
        onclick: (event) => this.clicked(node, event),
        onmouseenter: () => this.hover(node),
        ondblclick: () => this.zoom(node),
      },
      el("span.twist", { "aria-hidden": "true" }),
      nameElement(node.name),
      el(odd ? "span.note.odd" : "span.note", {}, note),
      el("span.bar", { "aria-hidden": "true" }, el("span")),
      el("span.size", {}, size),
    );
    if (!node.isTensor) row.setAttribute("aria-expanded", String(node.open));
    row.style.top = `${at * ROW}px`;
    row.style.setProperty("--level", Math.min(node.depth, DEEPEST));
    row.style.setProperty("--tone", colour ? `var(${colour})` : "transparent");
    row.style.setProperty("--share", `${Math.max(0, Math.min(100, 100 * share))}%`);
    return row;
  }

  clicked(node, event) {
    const onTwist = event.target.classList.contains("twist");
    if (!node.isTensor && (onTwist || node === this.selected || !node.open)) this.toggle(node);
    if (!onTwist) this.select(node);
    this.box.focus({ preventScroll: true });
  }

  toggle(node, open = !node.open) {
    if (node.isTensor || node.open === open) return;
    node.open = open;
    this.refresh();
  }

  /** Select a node: open the modules that contain it, and scroll to it. */
  reveal(node) {
    this.selected = node;
    let opened = false;
    for (let at = node?.parent; at; at = at.parent) {
      opened ||= !at.open;
      at.open = true;
    }
    this.drawn = null;
    if (opened) this.refresh();
    const place = this.rows.indexOf(node);
    if (place >= 0) this.bring(place);
    this.draw();
  }

  bring(place) {
    const { scrollTop, clientHeight } = this.box;
    const top = place * ROW;
    if (top < scrollTop) this.box.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.box.scrollTop = top + ROW - clientHeight;
  }

  /** Tell assistive technology which row is selected. */
  tell() {
    const place = this.rows.indexOf(this.selected);
    if (place >= 0 && $(`row-${place}`)) this.box.setAttribute("aria-activedescendant", `row-${place}`);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Handle the keys of a tree view (WAI-ARIA Authoring Practices 1.2). */
  pressed(event) {
    const place = this.rows.indexOf(this.selected);
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const moves = {
      ArrowDown: place + 1,
      ArrowUp: place - 1,
      Home: 0,
      End: this.rows.length - 1,
      PageDown: place + page,
      PageUp: place - page,
    };
    const node = this.selected;
    if (event.ctrlKey || event.metaKey || event.altKey || !this.rows.length) return;
    if (event.key in moves) this.select(this.rows[Math.max(0, Math.min(this.rows.length - 1, moves[event.key]))]);
    else if (event.key === "*") this.openBeside(node ?? this.rows[0]);
    else if (node === null || place < 0) return;
    else if (event.key === "ArrowRight" && !node.isTensor && !node.open) this.toggle(node, true);
    else if (event.key === "ArrowRight" && node.open) this.select(this.rows[place + 1]);
    else if (event.key === "ArrowLeft" && node.open) this.toggle(node, false);
    else if (event.key === "ArrowLeft" && node.parent.parent) this.select(node.parent);
    else if (event.key === "Enter") this.zoom(node);
    else if (event.key === " ") this.toggle(node);
    else return;
    event.preventDefault();
  }

  openBeside(node) {
    for (const one of node.parent.children) if (!one.isTensor) one.open = true;
    this.refresh();
  }
}
