// Upper and lower case, as Python compares them: by lower case, and by the upper case of that.

let caseFamilies = null; // of each character with case those that count as the same: in ASCII, and up to U+FFFF

/** The codes that are the same as one of a range but for case. */
function sameButCase(low, high, isAscii) {
  caseFamilies ??= [familiesBelow(0x80), familiesBelow(0x10000)];
  const found = new Set();
  for (const [code, family] of caseFamilies[isAscii ? 0 : 1])
    if (low <= code && code <= high) family.forEach((other) => found.add(other));
  return [...found];
}

function familiesBelow(end) {
  const { byLower, byUpper } = casesBelow(end);
  const families = new Map();
  for (const lowers of byUpper.values()) {
    const family = [...lowers].flatMap((lower) => [...byLower.get(lower)]);
    for (const code of family) families.set(code, family);
  }
  return families;
}

/** The codes of each lower case, and the lower cases of each upper case. */
function casesBelow(end) {
  const [byLower, byUpper] = [new Map(), new Map()];
  const add = (map, at, value) => map.set(at, (map.get(at) ?? new Set()).add(value));
  for (let code = 0; code < end; code += 1) {
    const char = charOf(code);
    const lower = charOf(codeOf(char.toLowerCase()));
    if (lower === char && char.toUpperCase() === char) continue;
    add(byLower, codeOf(lower), code).get(codeOf(lower)).add(codeOf(lower));
    add(byUpper, lower.toUpperCase(), codeOf(lower));
  }
  return { byLower, byUpper };
}
