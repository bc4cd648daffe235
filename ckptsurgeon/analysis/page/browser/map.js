// The map of the network: the area of each tensor is its size. Modules are divided as far as there is room.

const HEAD = 15; // height of a module's name, in pixels
const LEAST = 6; // the smallest area that is drawn, in square pixels
const MOST = 12; // a module with less room for each tensor, in square pixels, is drawn as one tensor
const FONT = '11px ui-sans-serif, system-ui, "DejaVu Sans", sans-serif';

class NetworkMap {
  constructor(canvas, model, search) {
    this.canvas = canvas;
    this.model = model;
    this.search = search;
    this.metric = "parameters";
    this.top = model.root;
    this.colouring = null;
    this.picture = document.createElement("canvas");
    this.marked = null;
    this.boxes = [];
    this.ordered = new Map();
  }

  /** Draw with the next frame, only once for all calls until then. */
  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  measureBy(metric) {
    this.metric = metric;
    this.ordered.clear();
    this.redraw();
  }

  draw() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.pen = this.penOf(this.picture, width, height);
    this.pen.font = FONT;
    this.pen.textBaseline = "middle";
    this.ink = {
      text: styleColour("--ink"),
      head: styleColour("--raised"),
      deep: styleColour("--deep"),
      mark: styleColour("--mark"),
    };
    this.fills = this.colouring.list.map(({ colour }) => styleColour(colour));
    this.boxes = [];
    this.place(this.top, [0, 0, width, height], { isTop: true });
    this.show();
  }

  /** Return a drawing context for a canvas of this size, in CSS pixels. */
  penOf(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    return pen;
  }

  /** Copy the drawn picture to the page, and put a frame around the marked node. */
  show() {
    const { width, height } = this.canvas.getBoundingClientRect();
    const pen = this.penOf(this.canvas, width, height);
    if (width && height) pen.drawImage(this.picture, 0, 0, width, height);
    this.frame(pen, this.marked);
  }

  /** Return the parts of a module with their sizes, the largest first; parts of size 0 are left out. */
  parts(node) {
    let found = this.ordered.get(node);
    if (!found) {
      found = node.children.map((item) => ({ item, value: this.model.value(item, this.metric) }));
      found = found.filter(({ value }) => value > 0).sort((a, b) => b.value - a.value);
      this.ordered.set(node, found);
    }
    return found;
  }

  place(start, [x, y, width, height], { isTop = false, within = "" } = {}) {
    const node = isTop ? start : this.alone(start);
    const name = within + this.chain(start, node);
    if (node.isTensor) {
      this.tensor(node, name, x, y, width, height);
      return;
    }
    const headed = !isTop && width > 44 && height > 2.4 * HEAD;
    if (!isTop && width * height < MOST * Math.min(node.to - node.from, 8)) {
      this.tensor(node, name, x, y, width, height);
      return;
    }
    if (!isTop) this.module(node, headed ? name : "", x, y, width, height);
    const gap = isTop ? 0 : Math.min(width, height) > 24 ? 2 : 0.5;
    const top = headed ? HEAD : gap;
    const inside = [x + gap, y + top, width - 2 * gap, height - top - gap];
    const total = this.model.value(node, this.metric);
    const placed = this.placed(node, total, inside);
    if (!placed.length) this.crowd(node, inside, total);
    // A module without room for its name adds it to the names of its parts.
    const around = headed || isTop ? "" : `${name}.`;
    for (const [part, ...box] of placed) this.place(part, box, { within: around });
  }

  /** Return the rectangles of a module's parts: of layers of similar size in reading order, else by size. */
  placed(node, total, inside) {
    const parts = this.parts(node);
    const [, , width, height] = inside;
    const [first, last] = [parts[0]?.value, parts.at(-1)?.value];
    const isRoomy = parts.length > 2 && (last / total) * width * height >= LEAST;
    if (!isRoomy || first > 4 * last || !parts.every(({ item }) => item.isNumbered))
      return squarified(parts, total, ...inside, LEAST);
    const ordered = [...parts].sort((a, b) => a.item.from - b.item.from);
    return inRows(ordered, total, ...inside);
  }

  /** Draw a module whose parts are too small to be drawn, or have no size. */
  crowd(node, [x, y, width, height], total) {
    const number = plural(node.to - node.from, "tensor");
    if (total) this.tensor(node, `${number}, too small to be drawn`, x, y, width, height);
    else this.label(`${number} without parameters: m measures by bytes`, x + 4, y + 10, width - 8);
  }

  /** Return the first node from ``node`` down that is not a module with a single part. Parts of size 0 do not count. */
  alone(node) {
    while (!node.isTensor) {
      const parts = this.parts(node);
      if (parts.length !== 1) break;
      node = parts[0].item;
    }
    return node;
  }

  /** Return the names from one node down to another, joined by dots: layer.0.weight. */
  chain(start, end) {
    const names = [];
    for (let at = end; at !== start; at = at.parent) names.unshift(at.name);
    return [start.name, ...names].join(".");
  }

  module(node, name, x, y, width, height) {
    this.boxes.push([node, x, y, width, height]);
    this.pen.fillStyle = node.depth % 2 ? this.ink.deep : this.ink.head;
    this.pen.fillRect(x + 0.5, y + 0.5, width - 1, height - 1);
    this.pen.globalAlpha = this.fade(node);
    if (name) this.label(name, x + 4, y + 8, width - 8);
    this.pen.globalAlpha = 1;
  }

  /** Draw a tensor, or a module that is too small to be divided, in the colour of its category. */
  tensor(node, name, x, y, width, height) {
    this.boxes.push([node, x, y, width, height]);
    this.pen.globalAlpha = this.fade(node);
    const tone = this.colouring.tone(node);
    this.pen.fillStyle = this.fills[tone < 0 ? this.colouring.most(node) : tone];
    const gap = width > 3 && height > 3 ? 0.5 : 0;
    this.pen.fillRect(x + gap, y + gap, width - 2 * gap, height - 2 * gap);
    if (width > 34 && height > 13) this.label(name, x + 4, y + Math.min(height / 2, 9), width - 8);
    this.pen.globalAlpha = 1;
  }

  fade(node) {
    return this.search.isActive && !this.search.within(node) ? 0.16 : 1;
  }

  label(name, x, y, room) {
    const text = visible(name);
    const fits = Math.floor(room / 6.2);
    if (fits < 3) return;
    this.pen.fillStyle = this.ink.text;
    this.pen.fillText(text.length > fits ? `${text.slice(0, fits - 1)}…` : text, x, y, room);
  }

  /** Put a frame around a node or, if it is not drawn, around the smallest drawn module that contains it. */
  frame(pen, node) {
    for (let at = node && this.alone(node); at !== null; at = at.parent) {
      const box = this.boxes.find(([one]) => one === at);
      if (!box) continue;
      const [, x, y, width, height] = box;
      pen.strokeStyle = this.ink.mark;
      pen.lineWidth = 2;
      pen.strokeRect(x + 1, y + 1, Math.max(width - 2, 1), Math.max(height - 2, 1));
      return;
    }
  }

  mark(node) {
    this.marked = node;
    if (!this.waiting && this.pen) this.show();
  }

  /** Return the node at a point of the canvas, null if there is none. */
  at(x, y) {
    for (let i = this.boxes.length - 1; i >= 0; i--) {
      const [node, left, top, width, height] = this.boxes[i];
      if (x >= left && x < left + width && y >= top && y < top + height) return node;
    }
    return null;
  }

  zoom(node) {
    this.top = node.isTensor ? node.parent : node;
    this.redraw();
  }
}
