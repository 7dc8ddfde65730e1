// Finals as files: plain text, JSON, SubRip and WebVTT; the same as bridge/transcript.py writes, to the letter.

const LINE_CHARS = 42; // what players and broadcasters agree on
const CUE_LINES = 2;

const FORMATS = {
  txt: { type: "text/plain", write: toText },
  srt: { type: "application/x-subrip", write: toSrt },
  vtt: { type: "text/vtt", write: toVtt },
  json: { type: "application/json", write: toJson },
};

/** Finals in a format (`txt`, `srt`, `vtt` or `json`), as text. */
export function writeTranscript(finals, format) {
  return FORMATS[format].write(finals.filter((final) => tokens(final.text).length > 0));
}

/** The same as a file. */
export function transcriptFile(finals, format, name = "transcript") {
  return new File([writeTranscript(finals, format)], `${name}.${format}`, { type: FORMATS[format].type });
}

function toText(finals) {
  return finals.map(({ text }) => `${tokens(text).join(" ")}\n`).join("");
}

function toJson(finals) {
  const segments = finals.map(({ text, start, end, confidence, words = [] }) => ({
    text,
    start,
    end,
    ...(confidence == null ? {} : { confidence }),
    words: words.map(({ text: word, start: from, end: to, confidence: sure, speaker }) => ({
      text: word,
      start: from,
      end: to,
      ...(sure == null ? {} : { confidence: sure }),
      ...(speaker == null ? {} : { speaker }),
    })),
  }));
  return `${JSON.stringify({ text: finals.map(({ text }) => tokens(text).join(" ")).join(" "), segments }, null, 2)}\n`;
}

function toSrt(finals) {
  // The format has no escapes: what a player would take for markup becomes a look-alike.
  const safe = (text) => text.replaceAll("<", "‹").replaceAll(">", "›").replaceAll("{\\", "{/");
  return cues(finals)
    .map(
      ({ from, to, lines }, index) =>
        `${index + 1}\n${clock(from, ",")} --> ${clock(to, ",")}\n${safe(lines.join("\n"))}\n`,
    )
    .join("\n");
}

function toVtt(finals) {
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const blocks = cues(finals).map(
    ({ from, to, lines }) => `${clock(from, ".")} --> ${clock(to, ".")}\n${safe(lines.join("\n"))}\n`,
  );
  return ["WEBVTT\n", ...blocks].join("\n");
}

/** What is on the screen when, in the order of the times: never empty, never two at once. Milliseconds. */
function cues(finals) {
  const result = [];
  let shown = 0;
  for (const final of [...finals].sort((a, b) => a.start - b.start)) {
    const lines = wrap(pieces(final));
    for (let first = 0; first < lines.length; first += CUE_LINES) {
      const block = lines.slice(first, first + CUE_LINES);
      const from = Math.max(milliseconds(block[0][0].start), shown);
      shown = Math.max(milliseconds(block.at(-1).at(-1).end), from + 1);
      result.push({ from, to: shown, lines: block.map((line) => line.map((piece) => piece.text).join(" ")) });
    }
  }
  return result;
}

/** What is never cut again: words with their times, or parts of one that is wider than a line. */
function pieces({ text, start, end, words = [] }) {
  const spoken = tokens(printable(text)).map((token) => [...token]);
  const whole = spoken.reduce((sum, token) => sum + token.length, 0);
  const timed = words.length === spoken.length; // the text may be written otherwise than its words
  const result = [];
  let done = 0;
  spoken.forEach((token, index) => {
    const from = timed ? words[index].start : start + ((end - start) * done) / whole;
    const to = timed ? words[index].end : start + ((end - start) * (done + token.length)) / whole;
    done += token.length;
    const share = (to - from) / token.length;
    for (let at = 0; at < token.length; at += LINE_CHARS) {
      const part = token.slice(at, at + LINE_CHARS);
      result.push({
        text: part.join(""),
        length: part.length,
        start: from + share * at,
        end: from + share * (at + part.length),
      });
    }
  });
  return result;
}

/** Lines as few as there can be, and of about equal length. */
function wrap(parts) {
  const fewest = fill(parts, LINE_CHARS);
  if (fewest.length < 2) return fewest;
  const total = widthOf(parts);
  for (let width = Math.floor(total / fewest.length); width < LINE_CHARS; width += 1) {
    const lines = fill(parts, width);
    if (lines.length === fewest.length && lines.every((line) => widthOf(line) <= LINE_CHARS)) return lines;
  }
  return fewest;
}

function fill(parts, width) {
  const lines = [];
  let room = 0;
  for (const piece of parts) {
    if (lines.length > 0 && piece.length + 1 <= room) {
      lines.at(-1).push(piece);
      room -= piece.length + 1;
    } else {
      lines.push([piece]);
      room = width - piece.length;
    }
  }
  return lines;
}

function widthOf(line) {
  return line.reduce((sum, piece) => sum + piece.length + 1, 0) - 1;
}

/** What Python takes for white space. */
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/gu;

function tokens(text) {
  return text.replace(SPACE, " ").split(" ").filter(Boolean);
}

/** Without control characters; white space of any kind as spaces. */
function printable(text) {
  return text.replace(SPACE, " ").replace(/[\p{Cc}\p{Cs}]/gu, "");
}

/** As Python rounds: halves to the even number. */
function milliseconds(seconds) {
  const value = seconds * 1000;
  const floor = Math.floor(value);
  if (value - floor === 0.5) return floor % 2 === 0 ? floor : floor + 1;
  return Math.round(value);
}

function clock(at, mark) {
  const [ms, s] = [at % 1000, Math.floor(at / 1000)];
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return `${two(hours)}:${two(minutes)}:${two(s % 60)}${mark}${String(ms).padStart(3, "0")}`;
}
