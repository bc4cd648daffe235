// Squarified treemaps (Bruls, Huizing and van Wijk, 2000): the area of a rectangle is its value, its sides are similar.

/**
 * Place items in a rectangle; ``items`` are {item, value}, the largest value first, and ``total`` is their sum.
 * Returns [item, x, y, width, height] for each item; those with an area under ``least`` square pixels are left out.
 */
function squarified(items, total, x, y, width, height, least) {
  const placed = [];
  let left = total;
  let at = 0;
  while (at < items.length && left > 0 && width > 0 && height > 0) {
    const scale = (width * height) / left;
    if (items[at].value * scale < least) break;
    const side = Math.min(width, height);
    const end = rowEnd(items, at, side, scale);
    const sum = sumOf(items, at, end);
    const depth = (sum * scale) / side;
    let along = 0;
    for (let i = at; i < end; i++) {
      const length = (items[i].value / sum) * side;
      placed.push(
        width >= height ? [items[i].item, x, y + along, depth, length] : [items[i].item, x + along, y, length, depth],
      );
      along += length;
    }
    if (width >= height) {
      x += depth;
      width -= depth;
    } else {
      y += depth;
      height -= depth;
    }
    left -= sum;
    at = end;
  }
  return placed;
}

/**
 * Place numbered items in reading order, in rows of the same number of items; the heights of rows and the widths in
 * them are proportional to values (a strip treemap: Bederson, Shneiderman and Wattenberg, 2002).
 */
function inRows(items, total, x, y, width, height) {
  const wanted = Math.max(1, Math.min(items.length, Math.round(Math.sqrt((items.length * width) / height))));
  const columns = Math.ceil(items.length / Math.ceil(items.length / wanted)); // the last row is as full as may be
  const placed = [];
  for (let at = 0; at < items.length; at += columns) {
    const end = Math.min(items.length, at + columns);
    const sum = sumOf(items, at, end);
    const tall = (sum / total) * height;
    let along = 0;
    for (let i = at; i < end; i++) {
      const wide = (items[i].value / sum) * width;
      placed.push([items[i].item, x + along, y, wide, tall]);
      along += wide;
    }
    y += tall;
  }
  return placed;
}

/** Return the index after the last item of a row along a side: with one more, rectangles become less square. */
function rowEnd(items, at, side, scale) {
  let sum = 0;
  let worst = Infinity;
  let end = at;
  while (end < items.length && items[end].value > 0) {
    sum += items[end].value;
    const area = sum * scale;
    const now = Math.max(
      (side * side * items[at].value * scale) / (area * area),
      (area * area) / (side * side * items[end].value * scale),
    );
    if (now > worst) break;
    worst = now;
    end += 1;
  }
  return Math.max(end, at + 1);
}

function sumOf(items, from, to) {
  let sum = 0;
  for (let i = from; i < to; i++) sum += items[i].value;
  return sum;
}
