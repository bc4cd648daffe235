// The clips that a run transcribed with the most errors: reference and transcript, with differing letters marked.

const LONGEST_ALIGNED = 1000; // letters; the memory of an alignment grows with their square

/** Return the letters of a text as people see them: a combining mark stays with its letter. */
const lettersOf = (text) =>
  [...new Intl.Segmenter("und", { granularity: "grapheme" }).segment(text)].map((one) => one.segment);

/**
 * Align two lists of letters with the fewest deletions, insertions and substitutions.
 * Returns, for each list, [[letter, whether the other has the same letter there], …].
 */
function differences(right, read) {
  const width = read.length + 1;
  const cost = new Uint16Array((right.length + 1) * width);
  for (let i = 0; i <= right.length; i++)
    for (let j = 0; j <= read.length; j++)
      cost[i * width + j] =
        i && j
          ? Math.min(
              cost[(i - 1) * width + j - 1] + (right[i - 1] === read[j - 1] ? 0 : 1),
              cost[(i - 1) * width + j] + 1,
              cost[i * width + j - 1] + 1,
            )
          : i + j;
  const [left, other] = [[], []];
  let [i, j] = [right.length, read.length];
  while (i || j) {
    const here = cost[i * width + j];
    const same = i && j && right[i - 1] === read[j - 1];
    if (i && j && here === cost[(i - 1) * width + j - 1] + (same ? 0 : 1)) {
      left.push([right[--i], same]);
      other.push([read[--j], same]);
    } else if (i && here === cost[(i - 1) * width + j] + 1) left.push([right[--i], false]);
    else other.push([read[--j], false]);
  }
  return [left.reverse(), other.reverse()];
}

/** Return a text in which all letters that are not the same in both texts are in elements with this tag. */
function markedText(letters, tag) {
  const parts = [];
  for (const [letter, same] of letters) {
    const last = parts.at(-1);
    if (last && last.same === Boolean(same)) last.text += letter;
    else parts.push({ same: Boolean(same), text: letter });
  }
  return el("bdi.said", { dir: "auto" }, ...parts.map(({ same, text }) => (same ? text : el(tag, {}, text))));
}

function bothTexts({ reference, hypothesis }) {
  const [right, read] = [lettersOf(reference), lettersOf(hypothesis)];
  const long = Math.max(right.length, read.length) > LONGEST_ALIGNED;
  const plain = (letters) => letters.map((letter) => [letter, true]);
  const [left, other] = long ? [plain(right), plain(read)] : differences(right, read);
  const nothing = el("span.quiet", {}, "nothing");
  return el(
    "dl.texts",
    {},
    el("dt", {}, "said"),
    el("dd", {}, right.length ? markedText(left, "del") : nothing.cloneNode(true)),
    el("dt", {}, "read"),
    el("dd", {}, read.length ? markedText(other, "ins") : nothing),
  );
}

const playerOf = (clip) =>
  el("audio", { controls: true, preload: "none", src: clip.sound, "aria-label": `the sound of ${visible(clip.clip)}` });

function clipRow(clip, plays) {
  const share = clip.cer === null ? "" : ` ${Math.round(100 * clip.cer)} %`;
  const length = clip.seconds === null ? "" : `, ${durationText(clip.seconds)}`;
  const about = el("div.about", {}, el("strong", {}, plural(clip.errors, "error")), el("span.quiet", {}, share));
  const where = el("div.where.quiet", {}, nameElement(clip.clip), length);
  const player = plays
    ? clip.sound
      ? playerOf(clip)
      : el("span.quiet", {}, "its sound is not beside the page")
    : null;
  return el("li.clip", {}, el("div.head", {}, about, where, player), bothTexts(clip));
}

const AT_ONCE = 10;

/** Return the section on the dev clips with the most errors; '' if the run has no transcripts. */
function worstClips(found) {
  if (!found) return "";
  const { clips, wrong, worst } = found;
  const title = "Worst clips of dev";
  if (!worst.length) return section(title, el("p.quiet", {}, `No clip of ${grouped(clips)} has an error.`));
  const some = worst.length < wrong ? `, of which the ${grouped(worst.length)} with the most are here` : "";
  const marks = [el("del", {}, "letters that were missed"), " and ", el("ins", {}, "letters that were not said"), "."];
  const said = `${grouped(wrong)} of ${plural(clips, "clip")} ${wrong === 1 ? "has" : "have"} errors${some}. Marked are `;
  const plays = worst.some((clip) => clip.sound);
  const rows = worst.map((clip) => clipRow(clip, plays));
  const more = rows.splice(AT_ONCE);
  const rest = more.length
    ? el("details", {}, el("summary", {}, `${more.length} more`), el("ol.clips", {}, ...more))
    : null;
  return section(title, el("p.quiet", {}, said, ...marks), el("ol.clips", {}, ...rows), rest);
}
