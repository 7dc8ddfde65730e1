"""Which words of a growing window are certain: LocalAgreement-2, and what becomes of them.

Whisper hears a window again and again while it grows. A word that two hypotheses in a row have at the same place is
committed: it is shown as certain and never taken back (Macháček, Dabre, Bojar: "Turning Whisper into Real-Time
Transcription System", 2023). The next partial decode is forced to begin with the committed words, so each hypothesis is
a continuation of them. The final decode is free; its text is joined to what is committed.

Words are compared as they sound, not as they are written (`spoken`), and it does not matter where they are split:
`in side` agrees with `inside`. Nothing here knows audio or an engine.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from backends.whisper.window import Piece

KEEP_SECONDS: Final = 1.0
"""A window that is cut keeps at least so much audio: the decoder hears little in less."""
LATE_SECONDS: Final = 0.5
"""So much too late may the alignment place the start of a word (its 90th percentile is about 0.1 s)."""
WORD_SECONDS: Final = 0.6
"""The longest that a word lasts whose time is only known from its neighbours."""
PAUSE_SECONDS: Final = 0.1
"""The least silence between two words that is a pause to cut in."""

_SPOKEN_MARKS: Final = frozenset("%&@#§")  # punctuation to Unicode, words to a speaker
_APOSTROPHES: Final = frozenset("'\u2018\u2019\u02bc")
_OPENING: Final = frozenset({"Ps", "Pi"})
_UNSPACED: Final = re.compile(
    # Thai, Lao, Myanmar, Khmer, ideographs and kana, their compatibility and wide forms, ideographs beyond 16 bits
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_SENTENCE_END: Final = re.compile(
    # of Latin, CJK, Arabic, Devanagari, Urdu, Armenian and Ethiopic, then perhaps what closes a quotation
    r"[.!?\u3002\u061f\u0964\u0965\u06d4\u0589\u1362][\"'\u2019\u201d\u00bb)\]}\u300d\u300f]*$"
)

# Costs of an edit, in hundredths of a word.
_WORD: Final = 100
_SPLIT: Final = 20
_ALIKE: Final = 40


def spoken(text: str) -> str:
    """What of a text is spoken: folded in case and width, without spaces and punctuation. Empty: nothing is.

    Kept are punctuation within a number (`3.5` is not `35`), an apostrophe within a word (`we're` is not `were`), and
    marks that are read out, such as the one for percent.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).strip()
    if folded.isalnum():
        return folded
    kept = []
    for i, char in enumerate(folded):
        kind = unicodedata.category(char)
        if kind[0] in "ZC":
            continue
        before, after = folded[max(i - 1, 0) : i], folded[i + 1 : i + 2]
        if char in _APOSTROPHES:
            if before.isalpha() and after.isalpha():
                kept.append("'")
        elif kind[0] != "P" or char in _SPOKEN_MARKS or (before.isdigit() and after.isdigit()):
            kept.append(char)
    return "".join(kept)


def words(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """The pieces as whole words: punctuation goes to the word it stands at, and `twenty` `-five` is one word.

    Their joined text stays the same; but where no word is spoken (`...`) there are none. Scripts without spaces keep
    their pieces, whatever the tokenizer made of them.
    """
    return tuple(_joined(group) for group in _grouped(pieces))


def timed(words: Sequence[Piece], pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The words with the times and probabilities of pieces that consist of the same tokens, however they are split.

    A word without tokens, or beyond the pieces' last token, stays as it is.
    """
    owners = [piece for piece in pieces for _ in piece.tokens]
    result = []
    position = 0
    for word in words:
        own = owners[position : position + len(word.tokens)]
        position += len(word.tokens)
        if own:
            heard = [piece.probability for piece in own if piece.probability is not None]
            word = dataclasses.replace(  # noqa: PLW2901 - the same word, with its times
                word, start=own[0].start, end=own[-1].end, probability=min(heard, default=None)
            )
        result.append(word)
    return tuple(result)


def joined_text(pieces: Iterable[Piece]) -> str:
    """The pieces' text, without the space that the first one brings."""
    return "".join(piece.text for piece in pieces).lstrip()


class Agreement:
    """The words of one stream's open window.

    Of a partial hypothesis that the guards rejected it is told nothing: what it holds stays as it was.
    """

    def __init__(self) -> None:
        self.committed: tuple[Piece, ...] = ()
        """Certain words since the last final: never taken back. The next partial decode begins with their tokens."""
        self.tail: tuple[Piece, ...] = ()
        """What the newest hypothesis has behind them."""
        self.position = 0
        """Grows with each word committed and with each final. Note it when a partial decode is asked for, and hand
        it to `partial` with the hypothesis, should another answer come between."""
        self._stopped = False  # the newest hypothesis stopped early: the tail is an older one's
        self._heard: float | None = None  # seconds of audio that the tail was heard in
        self._bound: float | None = None  # the committed words lie before it

    @property
    def text(self) -> str:
        """Everything heard since the last final."""
        return joined_text(self.committed + self.tail)

    @property
    def committed_length(self) -> int:
        """How many characters of `text`, from its beginning, no later result changes."""
        return len(joined_text(self.committed).rstrip())

    @property
    def stability(self) -> float:
        """The share of `text` that is committed, 0 to 1; 0 where there is none."""
        text = self.text
        return self.committed_length / len(text) if text else 0.0

    def partial(
        self,
        continuation: Sequence[Piece],
        *,
        settled: int | None = None,
        after: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Take a hypothesis of what follows the committed words, and commit what it shares with the one before it.

        A hypothesis that only stops earlier than the one before, or is empty, says nothing about the words behind:
        they stay in the tail, and go if the next one stops early, too.

        Args:
            continuation: its pieces, without the committed words that the decoder was forced to begin with.
            settled: so many of its pieces, from the first, are complete. None: all but the last word, whose audio
                may go on.
            after: the `position` when the decode was asked for. Words that were committed since are looked for in the
                continuation and left out; where some have left the window, the hypothesis is ignored. None: the present
                one.
            seconds: how much audio the window held; None: unknown. The final finds its place more surely with it.

        Raises:
            ValueError: `after` lies ahead of `position`.
        """
        missed = 0 if after is None else self.position - after
        if missed < 0:
            raise ValueError(f"after {after} of {self.position}")
        if missed > len(self.committed):
            return  # some of them have left, with a final or trimmed
        groups = _grouped(continuation)
        heard = tuple(_joined(group) for group in groups)
        if settled is None:
            whole = len(heard) - 1
        else:
            whole = sum(end <= settled for end in itertools.accumulate(len(group) for group in groups))
        if missed:
            known = self.committed[-missed:]
            place, _ = _align(known, heard)
            heard, whole = _behind(known, heard, place), whole - place
        bounds = _agreed(self.tail, heard)
        if self.tail and bounds[-1][1] == len(heard) and bounds[-1][0] < len(self.tail) and not self._stopped:
            self._stopped = True
            self._commit(self.tail, max(before for before, now in bounds if now <= max(whole, 0)))
        else:
            self._stopped = False
            self._commit(heard, max(now for _, now in bounds if now <= max(whole, 0)))
        self._heard = seconds

    def final(self, hypothesis: Sequence[Piece]) -> tuple[Piece, ...]:
        """Join a free hypothesis of the whole window to the committed words, and begin anew.

        The committed words stay verbatim. What follows them is the hypothesis behind the place up to which it matches
        them best. They get the times of the words they match, those that match none a time between their neighbours'.
        """
        result = self.joined(hypothesis)
        self._reset()
        return result

    def joined(self, hypothesis: Sequence[Piece]) -> tuple[Piece, ...]:
        """What `final` would give, without an end: the first words are the committed ones, with times."""
        heard = words(hypothesis)
        place, groups = _align(self.committed, heard[: self._reach(heard)])
        rest = _behind(self.committed, heard, place)
        return _with_times(self.committed, heard, groups, rest, self._bound) + rest

    def rejected(self) -> tuple[Piece, ...]:
        """The guards rejected the final hypothesis: only the committed words, without times. Begins anew."""
        committed = self.committed
        self._reset()
        return committed

    def trim(self, words: int, seconds: float = 0.0) -> tuple[Piece, ...]:
        """Finalize so many words from the first, committed or else taken from the tail: they leave the window.

        Args:
            words: how many.
            seconds: how much audio leaves the window with them.

        Raises:
            ValueError: there are not so many words.
        """
        if not 0 <= words <= len(self.committed) + len(self.tail):
            raise ValueError(f"{words} of {len(self.committed) + len(self.tail)} words")
        self._commit(self.tail, max(0, words - len(self.committed)))
        gone, self.committed = self.committed[:words], self.committed[words:]
        if self._heard is not None:
            self._heard = max(0.0, self._heard - seconds)
        if self._bound is not None:
            self._bound = max(0.0, self._bound - seconds)
        return gone

    def _commit(self, hypothesis: tuple[Piece, ...], count: int) -> None:
        self.committed += hypothesis[:count]
        self.tail = hypothesis[count:]
        if count:
            self.position += count
            self._bound = self._heard  # the hypothesis before has the words, too

    def _reach(self, heard: Sequence[Piece]) -> int:
        """How many words of a hypothesis may be committed ones: those that begin in the audio these were heard in."""
        if self._bound is None:
            return len(heard)
        late = self._bound + LATE_SECONDS
        return next((i for i, word in enumerate(heard) if word.start is not None and word.start > late), len(heard))

    def _reset(self) -> None:
        self.position += 1  # what is decoded just now belongs to the window that is closed
        self.committed = self.tail = ()
        self._stopped = False
        self._heard = self._bound = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a window is cut: its first `words` leave it, and so do its first `seconds`."""

    words: int
    seconds: float


def cut(
    pieces: Sequence[Piece], committed: int, seconds: float, gaps: Sequence[tuple[float, float]], limit: float
) -> Cut | None:
    """Where to cut a window that has become too long, behind a committed word.

    Best is the end of a sentence, then a pause, then whatever comes latest. At least `KEEP_SECONDS` and at most half of
    the limit stay, so that the next cut is far away.

    Args:
        pieces: the window's words with their times (`timed`): the committed ones, then perhaps the tail.
        committed: how many are committed.
        seconds: the window's length.
        gaps: silences that were heard in it: start and end in seconds.
        limit: the longest that a window may be, in seconds.

    Returns:
        None where no committed word ends late enough.
    """
    best: tuple[tuple[bool, bool, float], Cut] | None = None
    for i, piece in enumerate(pieces[:committed]):
        if piece.end is None:
            continue
        following = pieces[i + 1].start if i + 1 < len(pieces) else seconds
        at, paused = _between(piece.end, following, gaps)
        if not seconds - limit / 2 <= at <= seconds - KEEP_SECONDS or at <= 0:
            continue
        rank = (bool(_SENTENCE_END.search(unicodedata.normalize("NFKC", piece.text).strip())), paused, at)
        if best is None or rank >= best[0]:
            best = rank, Cut(i + 1, at)
    return best[1] if best else None


def forced_cut(
    pieces: Sequence[Piece], seconds: float, gaps: Sequence[tuple[float, float]] = (), *, committed: int = 0
) -> Cut:
    """Where to cut a window at its limit if `cut` finds nothing: behind the last word but two of the hypothesis.

    The last two may be wrong, because their audio goes on. They are given up, too, where more than half of the window
    would stay; and where no word is left, so is the silence. All committed words go. Arguments as for `cut`.
    """
    least = seconds / 2
    for kept in (2, 1):
        count = len(pieces) - kept
        if count < max(1, committed) or (end := pieces[count - 1].end) is None:
            continue
        at, _ = _between(end, pieces[count].start, gaps)
        if least <= at < seconds:
            return Cut(count, at)
    last = pieces[-1].end if pieces else None
    return Cut(len(pieces), min(seconds, max(least, last or 0.0)))


def _between(end: float, following: float | None, gaps: Iterable[tuple[float, float]]) -> tuple[float, bool]:
    """Where to cut between two words, and whether there is a pause: its middle, for the words' times are not exact."""
    start = end if following is None else following
    pauses = [(max(a, end - LATE_SECONDS / 2), min(b, start + LATE_SECONDS / 2)) for a, b in gaps]
    begin, stop = max(pauses, key=lambda pause: pause[1] - pause[0], default=(0.0, 0.0))
    if stop - begin >= PAUSE_SECONDS:
        return (begin + stop) / 2, True
    return (end + start) / 2, False


def _grouped(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """The pieces of each word."""
    groups: list[list[Piece]] = []
    opening: list[Piece] = []  # marks that stand before the next word
    for piece in pieces:
        if not spoken(piece.text):
            if groups and not opening and not _opens(piece.text):
                groups[-1].append(piece)
            else:
                opening.append(piece)
        elif groups and not opening and _glued(groups[-1][-1].text, piece.text):
            groups[-1].append(piece)
        else:
            groups.append([*opening, piece])
            opening = []
    if groups:
        groups[-1] += opening
    return groups


def _opens(mark: str) -> bool:
    """Whether a mark belongs to the word behind it."""
    return mark[:1].isspace() or unicodedata.category(mark[-1:] or " ") in _OPENING or mark[-1:] in "¿¡"


def _glued(before: str, after: str) -> bool:
    """Whether two pieces are one word, because only a space could part them and there is none."""
    ends = before[-1:] + after[:1]
    return not any(char.isspace() for char in ends) and not _UNSPACED.search(ends)


def _joined(group: Sequence[Piece]) -> Piece:
    """A word of its pieces; marks have no time of their own."""
    if len(group) == 1:
        return group[0]
    parts = [piece for piece in group if spoken(piece.text)]
    return Piece(
        "".join(piece.text for piece in group),
        tuple(token for piece in group for token in piece.tokens),
        parts[0].start,
        parts[-1].end,
        min((piece.probability for piece in parts if piece.probability is not None), default=None),
    )


def _agreed(before: Sequence[Piece], now: Sequence[Piece]) -> list[tuple[int, int]]:
    """After how many words of each two hypotheses have said the same: every such place, first (0, 0)."""
    bounds: list[tuple[int, int]] = []
    i = j = 0
    rest_before = rest_now = ""
    while True:
        if not rest_before and not rest_now:
            bounds.append((i, j))
        if not rest_before and i < len(before):
            rest_before, i = spoken(before[i].text), i + 1
        if not rest_now and j < len(now):
            rest_now, j = spoken(now[j].text), j + 1
        size = min(len(rest_before), len(rest_now))
        if not size or rest_before[:size] != rest_now[:size]:
            return bounds
        rest_before, rest_now = rest_before[size:], rest_now[size:]


def _unlike(one: str, other: str) -> int:
    """How much two words differ, 0 to 100: what they share at their two ends tells misheard words well enough."""
    if one == other:
        return 0
    size = min(len(one), len(other))
    head = next((i for i in range(size) if one[i] != other[i]), size)
    tail = next((i for i in range(size - head) if one[-1 - i] != other[-1 - i]), size - head)
    return _WORD - _WORD * (head + tail) // max(len(one), len(other))


def _align(committed: Sequence[Piece], heard: Sequence[Piece]) -> tuple[int, list[tuple[int, int, int, int]]]:
    """The place in `heard` behind its best match of the committed words, and which words match.

    The match is the one of least edit distance, the longer of equal ones; a word may match two that sound like it. It
    is given as ranges: from and to in `committed`, from and to in `heard`.
    """
    ours = [spoken(word.text) for word in committed]
    theirs = [spoken(word.text) for word in heard]
    same = 0  # nearly always all; the table costs the product of the lengths
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    groups = [(i, i + 1, i, i + 1) for i in range(same)]
    if same == len(ours):
        return same, groups
    ours, theirs = ours[same:], theirs[same:]
    costs, steps = _table(ours, theirs)
    i, j = len(ours), max(range(len(theirs) + 1), key=lambda place: (-costs[-1][place], place))
    place = same + j
    matched = []
    while i or j:
        di, dj = steps[i][j]
        if di and dj:
            matched.append((same + i - di, same + i, same + j - dj, same + j))
        i, j = i - di, j - dj
    return place, groups + matched[::-1]


def _table(ours: Sequence[str], theirs: Sequence[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """What it costs to make any beginning of the one of any beginning of the other, and by which last step."""
    costs = [[_WORD * j for j in range(len(theirs) + 1)]]
    steps = [[(0, min(j, 1)) for j in range(len(theirs) + 1)]]
    for i, word in enumerate(ours, 1):
        row, taken = [_WORD * i], [(1, 0)]
        for j, other in enumerate(theirs, 1):
            least, step = costs[i - 1][j - 1] + _unlike(word, other), (1, 1)
            if i > 1 and (unlike := _unlike(ours[i - 2] + word, other)) <= _ALIKE:
                least, step = min((least, step), (costs[i - 2][j - 1] + _SPLIT + unlike, (2, 1)))
            if j > 1 and (unlike := _unlike(word, theirs[j - 2] + other)) <= _ALIKE:
                least, step = min((least, step), (costs[i - 1][j - 2] + _SPLIT + unlike, (1, 2)))
            if costs[i - 1][j] + _WORD < least:
                least, step = costs[i - 1][j] + _WORD, (1, 0)
            if row[j - 1] + _WORD < least:
                least, step = row[j - 1] + _WORD, (0, 1)
            row.append(least)
            taken.append(step)
        costs.append(row)
        steps.append(taken)
    return costs, steps


def _behind(committed: Sequence[Piece], heard: tuple[Piece, ...], place: int) -> tuple[Piece, ...]:
    """The words behind a place, so that they can follow the committed ones: with a space where words have one."""
    rest = heard[place:]
    if not committed or not rest or not _glued(committed[-1].text, rest[0].text):
        return rest
    return (dataclasses.replace(rest[0], text=" " + rest[0].text), *rest[1:])


def _with_times(
    committed: Sequence[Piece],
    heard: Sequence[Piece],
    groups: Iterable[tuple[int, int, int, int]],
    rest: Sequence[Piece],
    bound: float | None,
) -> tuple[Piece, ...]:
    """The committed words with the times of what they match; the others between their neighbours.

    `bound` is where they end at the latest. No word gets a time where nothing around it has one.
    """
    result = [dataclasses.replace(word, start=None, end=None, probability=None) for word in committed]
    for first, last, begin, end in groups:
        sources = heard[begin:end]
        probability = min((word.probability for word in sources if word.probability is not None), default=None)
        spread = _spread(result[first:last], sources[0].start, sources[-1].end)
        result[first:last] = [dataclasses.replace(word, probability=probability) for word in spread]
    at = 0
    while at < len(result):
        if result[at].start is not None:
            at += 1
            continue
        stop = next((k for k in range(at, len(result)) if result[k].start is not None), len(result))
        longest = WORD_SECONDS * (stop - at)
        left = result[at - 1].end if at else None
        right = result[stop].start if stop < len(result) else rest[0].start if rest else None
        if left is None and right is not None:
            left = max(0.0, right - longest)
        elif right is None and left is not None:
            right = left if bound is None else bound
        if left is not None and right is not None:
            right = max(left, min(right, left + longest))
        result[at:stop] = _spread(result[at:stop], left, right)
        at = stop
    return tuple(result)


def _spread(words: Sequence[Piece], start: float | None, end: float | None) -> list[Piece]:
    """The words one after the other between two times, the longer the word, the longer its part."""
    if start is None or end is None:
        return list(words)
    sizes = list(itertools.accumulate((len(spoken(word.text)) for word in words), initial=0))
    times = [start + (end - start) * size / sizes[-1] for size in sizes]
    times[-1] = end
    return [
        dataclasses.replace(word, start=a, end=b) for word, (a, b) in zip(words, itertools.pairwise(times), strict=True)
    ]
