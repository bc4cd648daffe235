// The view About: other facts about the files, and how to use the page.

function aboutView(data) {
  const parts = data.sources.map((source, at) => {
    const facts = [
      ["path", nameElement(source.path)],
      ["format", source.format],
      ["size", `${bytesText(source.nbytes_files)} (${grouped(source.nbytes_files)})`],
    ];
    facts.push([
      "tensors",
      `${grouped(source.tensors)}, ${atLeast(source)}${countText(source.parameters)} parameters, ${bytesText(source.nbytes)}`,
    ]);
    for (const said of source.said) facts.push(["what it is", nameElement(said)]);
    if (source.root) facts.push(["root", nameElement(source.root)]);
    if (source.other_roots.length)
      facts.push(["other state dicts", ...joined(source.other_roots.map((root) => root || "the top level"))]);
    if (source.stripped.length) facts.push(["stripped", ...joined(source.stripped), " from every key"]);
    source.notes.forEach((note, place) => facts.push([place < source.serious ? "warning" : "note", nameElement(note)]));
    const title = data.sources.length > 1 ? ["From", "To"][at] : data.changes ? "The base" : "The file";
    return el(
      "div",
      {},
      section(title, factsOf(facts)),
      pairs(
        "Also in it",
        source.extras.map(([key, type, value]) => [key, value ?? `(${type})`]),
        source.more.extras,
      ),
      pairs("Metadata", source.metadata, source.more.metadata),
    );
  });
  if (data.changes) {
    const { letters, models } = changesOf(data.changes);
    parts.push(section("The models", factsOf(models.map((path, at) => [letters[at], nameElement(path)]))));
  }
  if (data.difference?.rules.length)
    parts.push(longList("Rules that rename the first's keys to the second's (--map)", data.difference.rules));
  return [
    ...parts,
    section("Keys", factsOf(KEYS.map(([keys, what]) => [el("kbd", {}, keys), what]))),
    el("p.quiet", {}, `Made by ${data.made}. This page ${LOADS[Boolean(data.run)]}.`),
  ];
}

const LOADS = {
  false: "loads nothing and sends nothing",
  true: "sends nothing, and loads nothing but the sounds of clips, which stay where they were",
};

const KEYS = [
  ["/", "search; Escape leaves it, and once more clears it"],
  ["arrows", "move in the tree, open and close modules"],
  ["Home End PageUp PageDown", "move further"],
  ["Enter", "show a module alone in the map"],
  ["*", "open all modules beside this one"],
  ["Backspace", "one module up in the map"],
  ["m", "measure by parameters or bytes"],
  ["c", "another colouring"],
  ["t", "light or dark"],
  ["?", "this list"],
];

const joined = (names) => names.flatMap((name, at) => [at ? ", " : "", nameElement(name)]);

function pairs(title, entries, more) {
  if (!entries.length) return "";
  const facts = factsOf(entries.map(([key, value]) => [nameElement(key), nameElement(value)]));
  const summary = el("summary", {}, `${title}: ${grouped(entries.length + more)}`);
  const rest = more > 0 ? el("p.quiet", {}, `and ${grouped(more)} more`) : null;
  return el("details", { open: entries.length <= 24 }, summary, facts, rest);
}
