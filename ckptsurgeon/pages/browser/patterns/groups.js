// Groups of a regular expression of Python's. A scope is {mode, nested, sure}: the flags, how many groups are open,
// and the groups that have taken part before.

const deeper = (scope) => ({ ...scope, nested: scope.nested + 1 });

/** Read what follows "("; null for what stands for nothing: comments and global flags. */
function readGroup(reader, scope, isFirst) {
  const start = reader.tell() - 1;
  if (!reader.match("?")) return capturingGroup(reader, null, scope, start);
  const char = groupCharacter(reader);
  if (char === "P") return namedGroup(reader, scope, start);
  if (char === "#") return skipComment(reader, start);
  if ("=!<".includes(char)) return lookAround(reader, char, scope, start);
  if (char === "(") return conditionalGroup(reader, scope, start);
  let mode = scope.mode;
  if (char === ">") reader.cannot("an atomic group");
  else if (char !== ":") mode = flaggedMode(reader, char, mode, { start, isFirst });
  if (mode === null) return null;
  const inner = readInner(reader, { ...scope, mode }, start);
  return { ...inner, js: `(?:${inner.js})` };
}

function groupCharacter(reader) {
  const char = reader.get();
  if (char === null) throw reader.error("unexpected end of pattern");
  return char;
}

/** Read what is in a group, and its end. */
function readInner(reader, scope, start) {
  const inner = alternatives(reader, deeper(scope));
  closeGroup(reader, start);
  return inner;
}

function closeGroup(reader, start) {
  if (!reader.match(")")) throw reader.malformed("missing ), unterminated subpattern", start);
}

function capturingGroup(reader, name, scope, start) {
  const id = reader.groups.push(null) - 1;
  if (name !== null) defineName(reader, name, id);
  const inner = readInner(reader, scope, start);
  reader.groups[id] = [inner.lo, inner.hi];
  return { ...inner, js: `(${inner.js})`, sure: [...inner.sure, id] };
}

function defineName(reader, name, id) {
  const { names } = reader;
  if (names.has(name)) {
    const why = `redefinition of group name ${pythonRepr(name)} as group ${id}; was group ${names.get(name)}`;
    throw reader.error(why, lengthOf(name) + 1);
  }
  names.set(name, id);
}

function namedGroup(reader, scope, start) {
  if (reader.match("<")) {
    const name = reader.getUntil(">", "group name");
    checkName(reader, name);
    return capturingGroup(reader, name, scope, start);
  }
  if (reader.match("=")) {
    const name = reader.getUntil(")", "group name");
    checkName(reader, name);
    return reference(reader, groupNamed(reader, name), lengthOf(name) + 1, scope);
  }
  const char = groupCharacter(reader);
  throw reader.error(`unknown extension ?P${char}`, lengthOf(char) + 2);
}

const isName = (name) => /^[\p{XID_Start}_]\p{XID_Continue}*$/u.test(name);

function checkName(reader, name) {
  if (!isName(name)) throw badName(reader, name);
}

const badName = (reader, name) => reader.error(`bad character in group name ${pythonRepr(name)}`, lengthOf(name) + 1);

function groupNamed(reader, name) {
  if (!reader.names.has(name)) throw reader.error(`unknown group name ${pythonRepr(name)}`, lengthOf(name) + 1);
  return reader.names.get(name);
}

function skipComment(reader, start) {
  for (;;) {
    if (reader.next === null) throw reader.malformed("missing ), unterminated comment", start);
    if (reader.get() === ")") return null;
  }
}

function lookAround(reader, char, scope, start) {
  if (char === "<") return lookBehind(reader, scope, start);
  const inner = readInner(reader, scope, start);
  return piece(`(?${char}${inner.js})`, 0);
}

function lookBehind(reader, scope, start) {
  const char = groupCharacter(reader);
  if (char !== "=" && char !== "!") throw reader.error(`unknown extension ?<${char}`, lengthOf(char) + 2);
  const outer = reader.lookbehindFrom;
  reader.lookbehindFrom ??= reader.groups.length;
  const inner = alternatives(reader, deeper(scope));
  reader.lookbehindFrom = outer;
  closeGroup(reader, start);
  if (inner.lo !== inner.hi) reader.hasVariableLookbehind = true;
  return piece(`(?<${char}${inner.js})`, 0);
}

/** Read "(?(1)yes|no)", which JavaScript has not, for its errors. */
function conditionalGroup(reader, scope, start) {
  reader.cannot("a conditional group");
  const name = reader.getUntil(")", "group name");
  const id = isName(name) ? groupNamed(reader, name) : conditionNumber(reader, name);
  checkLookbehind(reader, id);
  const yes = sequence(reader, deeper(scope), false);
  let no = piece("", 0);
  if (reader.match("|")) {
    no = sequence(reader, deeper(scope), false);
    if (reader.next === "|") throw reader.error("conditional backref with more than two branches");
  }
  closeGroup(reader, start);
  return piece("", Math.min(yes.lo, no.lo), Math.max(yes.hi, no.hi));
}

function conditionNumber(reader, name) {
  if (!/^[\s+]*[0-9][0-9_]*\s*$/.test(name)) throw badName(reader, name);
  const id = parseInt(name.replace(/[\s+_]/g, ""), 10);
  if (!id) throw reader.error("bad group number", lengthOf(name) + 1);
  if (!reader.conditions.has(id)) reader.conditions.set(id, reader.tell() - lengthOf(name) - 1);
  return id;
}

/** What a reference to a group matches, whose text is ``back`` characters long. */
function reference(reader, group, back, { mode, sure }) {
  if (!reader.groups[group]) throw reader.error("cannot refer to an open group", back);
  checkLookbehind(reader, group);
  if (mode.i) reader.cannot("a reference to a group whose case does not count");
  if (reader.lookbehindFrom !== null) reader.cannot("a reference to a group behind");
  // Where a group took no part a reference fails in Python and matches nothing at all in JavaScript.
  if (!sure.has(group)) reader.cannot("a reference to a group that may have taken no part");
  return piece(`\\${group}`, ...reader.groups[group]);
}

function checkLookbehind(reader, group) {
  if (reader.lookbehindFrom === null) return;
  if (!reader.groups[group]) throw reader.error("cannot refer to an open group");
  if (group >= reader.lookbehindFrom)
    throw reader.error("cannot refer to group defined in the same lookbehind subpattern");
}
