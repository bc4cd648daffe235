// Charts: histograms and curves.

const HEIGHTS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/** Return the histogram of a tensor: bins of equal width from min to max, heights relative to the highest bin. */
function histogram(heights, min, max) {
  const [width, height] = [320, 72];
  const top = HEIGHTS.length - 1;
  const step = width / heights.length;
  const bars = [...heights].map((letter, at) => {
    const tall = (HEIGHTS.indexOf(letter) / top) * height;
    return drawn("rect", {
      x: at * step,
      y: height - tall,
      width: Math.max(step - 1, 0.5),
      height: tall,
      class: "bin",
    });
  });
  const label = `histogram from ${figureText(min)} to ${figureText(max)}`;
  const picture = drawn(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      class: "histogram",
      role: "img",
      "aria-label": label,
      preserveAspectRatio: "none",
    },
    ...bars,
  );
  if (min < 0 && max > 0) {
    const zero = (-min / (max - min)) * width;
    picture.append(drawn("line", { x1: zero, x2: zero, y1: 0, y2: height, class: "zero" }));
  }
  const scale = el("div.scale", {}, el("span", {}, figureText(min)), el("span", {}, figureText(max)));
  return el("figure.histogram-figure", {}, picture, scale);
}

/** Return about ``number`` round numbers between ``low`` and ``high``, for an axis. */
function ticks(low, high, number) {
  const rough = (high - low) / number;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-12); at++)
    found.push(Number((at * step).toPrecision(12)));
  return found.length > 1 ? found : [low, high];
}

/**
 * Return a chart of curves over steps; null if there are fewer than two steps.
 * ``series`` are {name, points: [[x, y]], css, dots}; a point whose y is null is a gap. ``mark`` is a point [x, y] to
 * highlight, ``last`` is the last step of the axis.
 */
function chart(title, series, { mark = null, last = null } = {}) {
  const [width, height, left, bottom, top] = [400, 200, 58, 28, 10];
  const points = series.flatMap((one) => one.points.filter(([, y]) => y !== null));
  if (new Set(points.map(([x]) => x)).size < 2) return null;
  const [lowX, highX] = extent(points.map(([x]) => x).concat(last === null ? [] : [0, last]));
  const [lowY, highY] = padded(extent(points.map(([, y]) => y)));
  const atX = (x) => left + ((x - lowX) / (highX - lowX || 1)) * (width - left - 12);
  const atY = (y) => height - bottom - ((y - lowY) / (highY - lowY)) * (height - bottom - top);
  const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": title });
  for (const y of ticks(lowY, highY, 5)) {
    picture.append(drawn("line", { x1: left, x2: width - 12, y1: atY(y), y2: atY(y), class: "grid" }));
    picture.append(drawn("text", { x: left - 8, y: atY(y) + 4, class: "tick end" }, figureText(y)));
  }
  for (const x of ticks(lowX, highX, 5))
    picture.append(drawn("text", { x: atX(x), y: height - 8, class: "tick middle" }, grouped(x)));
  series.forEach((one, number) => {
    const css = one.css ?? `line s${number + 1}`;
    picture.append(drawn("path", { d: pathOf(one.points, atX, atY), class: css }));
    if (one.dots)
      for (const [x, y] of one.points)
        if (y !== null)
          picture.append(drawn("circle", { cx: atX(x), cy: atY(y), r: 2.5, class: css.replace("line", "dot") }));
  });
  if (mark) picture.append(drawn("circle", { cx: atX(mark[0]), cy: atY(mark[1]), r: 5, class: "best" }));
  const names = series
    .filter((one) => one.name)
    .map((one, at) => el("span.key", {}, el(`span.swatch.s${at + 1}`), nameElement(one.name)));
  const caption = el("figcaption", {}, el("strong", {}, nameElement(title)), ...(names.length > 1 ? names : []));
  return el("figure.chart-figure", {}, caption, picture, el("div.axis", {}, "step"));
}

function padded([low, high]) {
  const room = (high - low) * 0.04 || Math.abs(high) * 0.05 || 1;
  return [low >= 0 && low < 2 * room ? 0 : low - room, high + room];
}

function pathOf(points, atX, atY) {
  let path = "";
  let pen = "M";
  for (const [x, y] of points) {
    if (y === null) pen = "M";
    else {
      path += `${pen}${atX(x).toFixed(1)} ${atY(y).toFixed(1)}`;
      pen = "L";
    }
  }
  return path;
}

/** Return the points with each y replaced by the mean of itself and of up to ``around`` points on each side. */
function smoothed(points, around) {
  return points.map(([x], at) => {
    const near = points
      .slice(Math.max(0, at - around), at + around + 1)
      .map(([, y]) => y)
      .filter((y) => y !== null);
    return [x, near.length ? near.reduce((a, b) => a + b) / near.length : null];
  });
}
