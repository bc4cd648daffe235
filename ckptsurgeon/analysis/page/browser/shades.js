// The scale of relative changes: five shades, from the smallest to the largest change of the page.

const DECADES = [
  [1e-3, "changed by <0.1 %", "--d1"],
  [1e-2, "0.1 to 1 %", "--d2"],
  [1e-1, "1 to 10 %", "--d3"],
  [1, "10 to 100 %", "--d4"],
  [Infinity, "100 % and more", "--d5"],
]; // [upper limit of the relative change, label, colour]
const COLOURS = { 2: ["--d2", "--d4"], 3: ["--d1", "--d3", "--d5"], 4: ["--d1", "--d2", "--d4", "--d5"] };
const WIDE = 300; // changes that are further apart than by this factor are shaded by steps of ten
const NARROW = 1.15; // the smallest factor between the limits of a shade

/**
 * Return the shades for relative changes, as [upper limit, label, colour].
 * Steps of ten would give one colour to the changes of most fine-tunings. So if all changes of the page are of similar
 * size, the shades divide the range from the smallest to the largest of them into equal factors.
 */
function shadesOf(changes) {
  const [low, high] = extent(changes.filter((one) => one > 0 && one < Infinity));
  const number = Math.min(5, Math.floor(Math.log(high / low) / Math.log(NARROW)));
  if (!(high / low <= WIDE) || number < 2) return DECADES;
  const limit = (at) => Number((low * (high / low) ** (at / number)).toPrecision(2));
  const colours = COLOURS[number] ?? DECADES.map(([, , colour]) => colour);
  return colours.map((colour, at) => {
    const [from, to] = [percentText(limit(at)), percentText(limit(at + 1))];
    if (at < number - 1) return [limit(at + 1), `${from} to ${to} %`, colour];
    return [Infinity, changes.includes(Infinity) ? `${from} % and more` : `${from} to ${to} %`, colour];
  });
}

/** Return the index of a relative change in a list of shades; -1 if the change is NaN. */
const shadeOf = (relative, shades) =>
  relative === Infinity ? shades.length - 1 : shades.findIndex(([below]) => relative < below);

function extent(numbers) {
  let [low, high] = [Infinity, -Infinity];
  for (const number of numbers) [low, high] = [Math.min(low, number), Math.max(high, number)];
  return [low, high];
}
