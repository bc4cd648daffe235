// Flags within a regular expression of Python's: (?i), (?i-s:...).

const FLAGS = "iLmsxatu";

/** The mode in which a group is read that begins with flags; null where they are for the whole expression. */
function flaggedMode(reader, char, mode, { start, isFirst }) {
  if (!FLAGS.includes(char) && char !== "-") throw reader.error(`unknown extension ?${char}`, lengthOf(char) + 1);
  const { isGlobal, changes } = readFlags(reader, char);
  if (!isGlobal) return { ...mode, ...changes, ...(changes.u && { a: false }) };
  if (!isFirst) throw reader.error("global flags not at the start of the expression", reader.tell() - start);
  reader.globals = { ...reader.globals, ...changes };
  return null;
}

/** Read flags of which the first is read: whether they are for the whole expression, and what they change. */
function readFlags(reader, char) {
  const [on, off] = [new Set(), new Set()];
  const end = char === "-" ? char : flagsOn(reader, char, on);
  if (end === "-") flagsOff(reader, off);
  if ([...on].some((flag) => off.has(flag))) throw reader.error("bad inline flags: flag turned on and off", 1);
  const changes = [...[...on].map((flag) => [flag, true]), ...[...off].map((flag) => [flag, false])];
  return { isGlobal: end === ")", changes: Object.fromEntries(changes) };
}

/** Read flags that are turned on, and return what ends them. */
function flagsOn(reader, char, on) {
  do {
    if (char === "L") throw reader.error("bad inline flags: cannot use 'L' flag with a str pattern");
    on.add(char);
    if (on.has("a") && on.has("u")) throw reader.error("bad inline flags: flags 'a', 'u' and 'L' are incompatible");
    if (char === "t") reader.cannot("the flag t");
    char = reader.get();
    if (char === null || !`)-:${FLAGS}`.includes(char)) throw wrongFlag(reader, "missing -, : or )", char);
  } while (FLAGS.includes(char));
  return char;
}

function flagsOff(reader, off) {
  let char = reader.get();
  if (char === null || !FLAGS.includes(char)) throw wrongFlag(reader, "missing flag", char);
  do {
    if ("aLu".includes(char)) throw reader.error("bad inline flags: cannot turn off flags 'a', 'u' and 'L'");
    off.add(char);
    char = reader.get();
    if (char === null || !`:${FLAGS}`.includes(char)) throw wrongFlag(reader, "missing :", char);
  } while (char !== ":");
}

function wrongFlag(reader, missing, token) {
  if (token === null) return reader.error(missing);
  return reader.error(/^\p{L}+$/u.test(token) ? "unknown flag" : missing, lengthOf(token));
}
