// The search box, and the line with the result of the search.

const OPENED = 200; // the most found tensors to which the tree is opened

class Finder {
  /**
   * ``changed`` is called when the search changes, ``select`` with the node to show. ``metric`` returns the measure of
   * size, "parameters" or "bytes"; ``differing`` returns how many tensors differ, ``colouring`` by
   * what they are coloured, such as "change of A".
   */
  constructor(model, search, { changed, select, metric, differing, colouring }) {
    Object.assign(this, { model, search, changed, select, metric, differing, colouring });
    $("text").addEventListener("input", () => this.look());
    $("find").addEventListener("submit", (event) => {
      event.preventDefault();
      this.next();
    });
    $("mode").addEventListener("click", () => this.turn());
    this.suggest();
  }

  /** Switch between a search by words and by pattern. */
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

  /** Select the first found tensor from row ``from`` on; if there is none, the first of all. */
  next(from = this.from ?? 0) {
    const rows = this.search.isActive ? this.search.first(this.model.size) : [];
    const row = rows.find((one) => one >= from) ?? rows[0];
    if (row !== undefined) this.select(this.model.leaves[row]);
  }

  focus() {
    $("text").focus();
    $("text").select();
  }

  /** Show the number and size of the found tensors, or what is wrong with the pattern. */
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
    const of = model.changes ? ` (${this.colouring()})` : ""; // of several models, those of one are counted
    if (!search.isActive) box.replaceChildren(model.compares ? `${grouped(this.differing())} of ${all} differ${of}` : "");
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

  /** Show another text for a moment. */
  say(text) {
    $("found").replaceChildren(text);
    setTimeout(() => this.tell(), 1500);
  }
}

function openTo(node) {
  for (let at = node.parent; at !== null; at = at.parent) at.open = true;
}
