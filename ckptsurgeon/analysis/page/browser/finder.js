// The box in which one says what is looked for, and what is said of what was found.

const OPENED = 200; // of what was found, so many are brought into the tree

class Finder {
  /**
   * ``changed`` is told when other tensors are looked for, ``select`` which to show; ``metric`` says what sizes are,
   * ``differing`` how many tensors differ.
   */
  constructor(model, search, { changed, select, metric, differing }) {
    Object.assign(this, { model, search, changed, select, metric, differing });
    $("text").addEventListener("input", () => this.look());
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.next();
    });
    $("mode").addEventListener("click", () => this.turn());
    this.suggest();
  }

  /** From words to patterns, or back. */
  turn() {
    this.search.mode = this.search.mode === "text" ? "pattern" : "text";
    $("mode").setAttribute("aria-pressed", String(this.search.mode === "pattern"));
    this.suggest();
    this.look();
  }

  suggest() {
    $("text").placeholder = this.search.mode === "pattern" ? "decoder, **.bias, layers.{0..3}" : "search keys";
  }

  look() {
    this.search.text = $("text").value;
    this.run();
  }

  clear() {
    $("text").value = "";
    this.search.clear();
    this.run();
  }

  run() {
    const { model, search } = this;
    search.run();
    if (search.isActive && !search.error) for (const row of search.first(OPENED)) openTo(model.leaves[row]);
    this.changed();
    this.tell();
  }

  /** Select what was found behind row ``from``, or else the first. */
  next(from = this.from ?? 0) {
    const rows = this.search.isActive ? this.search.first(this.model.size) : [];
    const row = rows.find((one) => one >= from) ?? rows[0];
    if (row !== undefined) this.select(this.model.leaves[row]);
  }

  focus() {
    $("text").focus();
    $("text").select();
  }

  /** Say what was found, or what is wrong with the pattern. */
  tell() {
    const { search, model } = this;
    const box = $("found");
    box.classList.toggle("bad", Boolean(search.error));
    if (search.error) {
      box.replaceChildren(nameElement(`${search.error.message} ${search.error.hint ?? ""}`));
      return;
    }
    const metric = this.metric();
    const value = search.valueWithin(model.root, metric);
    const size = metric === "bytes" ? bytesText(value) : parametersText(value);
    const all = plural(model.size, "tensor");
    if (!search.isActive) box.replaceChildren(model.compares ? `${grouped(this.differing())} of ${all} differ` : "");
    else box.replaceChildren(`${grouped(search.count)} of ${all}, ${size}`, ...this.nearby());
  }

  nearby() {
    const near = this.search.count ? null : this.search.deeper();
    if (!near) return [];
    const use = () => {
      $("text").value = near.text;
      this.look();
    };
    return [
      "; ",
      el("button.link", { type: "button", onclick: use }, visible(near.text)),
      ` finds ${grouped(near.number)}`,
    ];
  }

  /** Say something else for a moment. */
  say(text) {
    $("found").replaceChildren(text);
    setTimeout(() => this.tell(), 1500);
  }
}

function openTo(node) {
  for (let at = node.parent; at !== null; at = at.parent) at.open = true;
}
