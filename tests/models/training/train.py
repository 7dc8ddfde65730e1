"""The training loop: windows of growing length, mixed, within a budget of processor time."""

from __future__ import annotations

import logging
import math
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional

from .compose import LONGEST, Composer, Window
from .network import FRAMES, Shape, Tensor, Whisper
from .start import CLOCK, from_converted, from_nothing
from .synth import Corpus
from .targets import IGNORED, answer
from .tokens import STEP, TIMESTAMPS, Tokens

log = logging.getLogger(__name__)

STAND_INS: Final = 48
"""Positions that stand for all of a window's padding."""
_WINDOWS: Final = (5.0, 10.0, 15.0, LONGEST, LONGEST, LONGEST, LONGEST)
"""Seconds of features a batch is padded to, by chance; most calls use all 30."""


@dataclass(frozen=True)
class Sizes:
    """A batch: the seconds of audio of its windows, and how many."""

    shortest: float
    longest: float
    count: int


_SHORT: Final = (Sizes(0.5, 3.0, 20), Sizes(1.5, 4.5, 14), Sizes(2.5, 6.0, 10))
_MIXED: Final = (
    Sizes(0.4, 3.0, 20),
    Sizes(1.5, 6.0, 12),
    Sizes(3.0, 9.0, 8),
    Sizes(3.0, 9.0, 8),
    Sizes(6.0, 13.0, 5),
    Sizes(6.0, 13.0, 5),
    Sizes(10.0, 20.0, 3),
    Sizes(10.0, 20.0, 3),
)
_FULL: Final = (*_MIXED, Sizes(18.0, LONGEST, 2), Sizes(LONGEST, LONGEST, 2), Sizes(LONGEST, LONGEST, 2))
PLANS: Final[dict[str, tuple[tuple[float, tuple[Sizes, ...]], ...]]] = {
    "nothing": ((0.0, _SHORT), (0.25, (*_SHORT, *_MIXED)), (0.45, _MIXED), (0.6, _FULL)),
    "model": ((0.0, _MIXED), (0.2, _FULL)),
}
"""By where training starts from: from which share of the budget on, which batches."""

GUIDED_BACK: Final = {2: [1, 2]}
"""Encoder heads, by layer, taught to look at the word before: one word alone does not tell the decoder its place."""
GUIDED_HERE: Final = {0: [0, 1]}
"""Decoder heads, by layer, taught to look where the input token was heard."""
GUIDED_NEXT: Final = {1: [0, 1], 2: [0, 1, CLOCK]}
"""Decoder heads taught to look where the next token is heard; those of layer 1 give the word times."""


@dataclass(frozen=True)
class Batch:
    """Tensors of a step."""

    mel: Tensor
    padded: Tensor
    bias: Tensor
    offset: int
    ids: Tensor
    targets: Tensor
    heard: Tensor
    following: Tensor
    """(row, position, first frame, frame behind the last) of each guided look."""
    back: Tensor
    """The same for encoder frames: within a word and in the pause behind it, at the word before."""
    now: Tensor
    before: Tensor


def _labels(tokens: Tokens, window: Window, frames: int, blind: int) -> tuple[Any, Any]:
    """By frame: the class of its word, and of the word last before it."""
    now, before = np.zeros(frames, np.int64), np.zeros(frames, np.int64)
    last, reached = 0, 0
    for word in (word for words in window.segments for word in words):
        start, end = int(word.start / STEP), max(int(word.start / STEP) + 1, int(word.end / STEP))
        before[reached:end] = last
        last, reached = tokens.classes[tokens.word[word.word]], end
        now[start:end] = last
    before[reached:] = last
    if window.cut:  # the rest of the utterance is not in the words
        unknown = int((window.crossing or 0.0) / STEP) if window.crossing is not None else reached
        now[unknown:] = before[unknown:] = IGNORED
    now[blind:] = before[blind:] = IGNORED
    return now, before


def _back(window: Window, row: int, limit: int) -> list[tuple[int, int, int, int]]:
    """Looks from each word, and from the pause behind each, at the word before."""
    words = [word for words in window.segments for word in words]
    looks = []
    for before, word in pairwise(words):
        span = {0: (before.start, before.end)}
        frames = [(word.start + share * (word.end - word.start)) / STEP for share in (0.2, 0.5, 0.8)]
        if word.start - before.end > 0.1:
            frames.append((word.start + before.end) / 2 / STEP)
        for frame in frames:
            looks += [
                (row, min(limit - 1, int(frame)), first, behind) for _, _, first, behind in _frames(span, row, limit)
            ]
    return looks


def _frames(spans: dict[int, tuple[float, float]], row: int, limit: int) -> list[tuple[int, int, int, int]]:
    looks = []
    for position, (start, end) in spans.items():
        first = min(limit - 1, max(0, int(start / STEP)))
        looks.append((row, position, first, min(limit, max(first + 1, int(end / STEP)))))
    return looks


def collate(
    tokens: Tokens, chance: random.Random, windows: list[Window], *, plain: bool = False, timestamps: bool | None = None
) -> Batch:
    """A batch of windows; `plain` for measuring: padded to 30 s, no prompts."""
    lengths = [window.mel.shape[1] for window in windows]
    frames = min(2 * FRAMES, (max(lengths) + 9) // 2 * 2)  # a few zeros: where padding begins is no stand-in's matter
    mel = np.zeros((len(windows), windows[0].mel.shape[0], frames), np.float32)
    for row, window in enumerate(windows):
        mel[row, :, : min(frames, lengths[row])] = window.mel[:, :frames]
    positions = frames // 2
    seconds = LONGEST if plain else chance.choice([size for size in _WINDOWS if size >= frames / 100] or [LONGEST])
    until = round(seconds / STEP)
    offset = 0
    if not plain and chance.random() < 0.12:  # all positions must be known, though few windows are long
        until = positions
        offset = chance.randint(0, FRAMES - positions)
    left = until - positions
    padded, bias = None, None
    if left > 0:
        count = min(STAND_INS, left)
        padded = torch.from_numpy(
            np.stack([np.sort(np.array(chance.sample(range(positions, until), count))) for _ in windows])
        )
        bias = torch.zeros(len(windows), positions + count)
        bias[:, positions:] = math.log(left / count)
    answers = [
        answer(tokens, chance, window, timestamps=timestamps, prompt=False if plain else None) for window in windows
    ]
    longest = max(len(one.inputs) for one in answers)
    ids = torch.full((len(windows), longest), tokens.end)
    targets = torch.full((len(windows), longest), IGNORED)
    heard, following, back, labels = [], [], [], []
    for row, (window, one) in enumerate(zip(windows, answers, strict=True)):
        ids[row, : len(one.inputs)] = torch.tensor(one.inputs)
        asked = torch.tensor(one.targets)
        asked[asked >= tokens.first_stamp] += offset
        targets[row, : len(one.targets)] = asked.clamp(max=tokens.first_stamp + TIMESTAMPS - 1)
        if offset:  # in what was said before, and in the answer's own timestamps
            begun = one.inputs.index(tokens.start)
            row_ids = ids[row, begun : len(one.inputs)]
            row_ids[row_ids >= tokens.first_stamp] += offset
            row_ids.clamp_(max=tokens.first_stamp + TIMESTAMPS - 1)
        heard += _frames(one.heard, row, positions)
        following += _frames(one.next, row, positions)
        back += _back(window, row, positions)
        labels.append(_labels(tokens, window, positions, positions))
    return Batch(
        torch.from_numpy(mel),
        padded,
        bias,
        offset,
        ids,
        targets,
        torch.tensor(heard, dtype=torch.long).reshape(-1, 4),
        torch.tensor(following, dtype=torch.long).reshape(-1, 4),
        torch.tensor(back, dtype=torch.long).reshape(-1, 4),
        torch.from_numpy(np.stack([now for now, _ in labels])),
        torch.from_numpy(np.stack([before for _, before in labels])),
    )


def _guidance(logits: dict[int, Tensor], heads: dict[int, list[int]], looks: Tensor) -> Tensor:
    """How far guided heads look from where they should, averaged."""
    if len(looks) == 0:
        return torch.zeros(())
    row, position, first, behind = looks.T
    total = torch.zeros(())
    for layer in heads:
        seen = functional.log_softmax(logits[layer][row, :, position], -1)
        frame = torch.arange(seen.shape[-1])
        wanted = ((frame >= first[:, None]) & (frame < behind[:, None])).float()
        wanted = wanted / wanted.sum(1, keepdim=True)
        entropy = (wanted * wanted.clamp_min(1e-9).log()).sum(-1).mean()
        total = total - (seen * wanted[:, None]).sum(-1).mean() + entropy
    return total / len(heads)


class Trainer:
    """One training: model, corpus, schedule."""

    def __init__(self, corpus: Corpus, seed: int, init: Path | None) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.tokens = Tokens()
        self._chance = random.Random(seed)
        self._composer = Composer(corpus, seed)
        self._plan = PLANS["nothing" if init is None else "model"]
        self.model = Whisper(Shape(len(self.tokens.ids)), len(self.tokens.classes) + 1)
        if init is None:
            from_nothing(self.model, self.tokens)
        elif init.suffix == ".bin":
            from_converted(self.model, init)
        else:
            self.model.load_state_dict(torch.load(init)["model"])
        self._average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self._class_weight = torch.ones(len(self.tokens.classes) + 1)
        self._class_weight[0] = 0.2  # most frames are of no word
        smear = torch.tensor([math.exp(-0.5 * (step / 1.5) ** 2) for step in range(-3, 4)])
        self._smear = smear / smear.sum()
        self._pools: dict[Sizes, list[Window]] = {}

    def loss(self, batch: Batch, *, train: bool) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
        """Loss of tokens, of frames, of guided heads; and what share of the words, ends and frames is right."""
        tokens, ids, targets = self.tokens, batch.ids, batch.targets
        mel = batch.mel
        if train:
            mel = self._masked(mel)
            ids = self._corrupted(ids, targets)
        with torch.autocast("cpu", torch.bfloat16):
            memory, looks = self.model.encoder(mel, batch.padded, batch.bias, batch.offset, GUIDED_BACK)
            states, logits = self.model.decoder(ids, memory, batch.bias, {**GUIDED_HERE, **GUIDED_NEXT})
            real = memory[:, : batch.now.shape[1]]
            now, before = self.model.now(real).float(), self.model.before(real).float()
        asked = targets != IGNORED
        wanted = targets[asked]
        scores = functional.log_softmax(states[asked].float() @ self.model.decoder.embed_tokens.weight.T, -1)
        each = -scores.gather(1, wanted[:, None])[:, 0]
        stamps = wanted >= tokens.first_stamp
        if stamps.any():  # a timestamp is right to 60 ms
            near = wanted[stamps][:, None] + torch.arange(-3, 4)
            near = near.clamp(tokens.first_stamp, tokens.first_stamp + TIMESTAMPS - 1)
            each = each.masked_scatter(stamps, -(scores[stamps].gather(1, near) * self._smear).sum(1))
        frames = sum(
            functional.cross_entropy(
                guess.flatten(0, 1), label.flatten(), weight=self._class_weight, ignore_index=IGNORED
            )
            for guess, label in ((now, batch.now), (before, batch.before))
        )
        parts = {
            "back": _guidance(looks, GUIDED_BACK, batch.back),
            "here": _guidance(logits, GUIDED_HERE, batch.heard),
            "next": _guidance(logits, GUIDED_NEXT, batch.following),
        }
        with torch.no_grad():
            best = scores.argmax(1)
            words = wanted < tokens.end
            ends = wanted == tokens.end
            shares = {
                "words": (best[words] == wanted[words]).float().mean().item(),
                "ends": (best[ends] == wanted[ends]).float().mean().item(),
                "frames": (now.argmax(-1) == batch.now)[batch.now > 0].float().mean().item(),
                "before": (before.argmax(-1) == batch.before)[batch.before > 0].float().mean().item(),
                "off": (best[stamps] - wanted[stamps]).abs().float().mean().item() * STEP,
                **{name: part.item() for name, part in parts.items()},
            }
        return each.mean(), frames, sum(parts.values()), shares

    def _masked(self, mel: Tensor) -> Tensor:
        """Bands of frequencies left out now and then (SpecAugment)."""
        mel = mel.clone()
        for row in mel:
            if self._chance.random() < 0.5:
                size = self._chance.randint(1, 14)
                first = self._chance.randint(0, len(row) - size)
                row[first : first + size] = 0
        return mel

    def _corrupted(self, ids: Tensor, targets: Tensor) -> Tensor:
        """A few of the words so far made wrong: an error must not carry on."""
        wrong = (targets != IGNORED) & (ids < self.tokens.end) & (torch.rand(ids.shape) < 0.04)
        ids = ids.clone()
        ids[wrong] = torch.tensor(self._chance.choices(self.tokens.words["en"], k=int(wrong.sum())), dtype=torch.long)
        return ids

    def _windows(self, sizes: Sizes) -> list[Window]:
        """Windows of a pool that is renewed slowly: each is used about twice, differently asked and masked."""
        pool = self._pools.setdefault(sizes, [])
        for _ in range(sizes.count if len(pool) < 5 * sizes.count else max(1, round(sizes.count / 2.5))):
            made = self._composer.window(sizes.shortest, sizes.longest)
            if len(pool) < 10 * sizes.count:
                pool.append(made)
            else:
                pool[self._chance.randrange(len(pool))] = made
        return self._chance.sample(pool, sizes.count)

    def run(
        self,
        minutes: float,
        out: Path,
        *,
        peak: float,
        wall: float,
        guide_weight: float = 0.6,
        save_every: float = 180.0,
    ) -> None:
        """Train for `minutes` of processor time, or `wall` minutes if that is sooner; write `out` now and then."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": 0.02},
                {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        begun, begun_wall, saved, step = time.process_time(), time.monotonic(), 0.0, 0
        smooth: dict[str, float] = {}
        while True:
            spent = time.process_time() - begun
            share = max(spent / (60 * minutes), (time.monotonic() - begun_wall) / (60 * wall))
            if share >= 1:
                break
            rate = peak * min(1.0, share / 0.03, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share)) + 1e-5
            for group in optimizer.param_groups:
                group["lr"] = rate
            sizes = self._chance.choice([batches for since, batches in self._plan if since <= share][-1])
            batch = collate(self.tokens, self._chance, self._windows(sizes))
            text, frames, guide, shares = self.loss(batch, train=True)
            optimizer.zero_grad()
            (text + 0.3 * frames + guide_weight * guide).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            step += 1
            self._follow(step)
            for name, value in {
                "text": text.item(),
                "aux": frames.item(),
                f"words<{sizes.longest:g}": shares.pop("words"),
                f"off<{sizes.longest:g}": shares.pop("off"),
                **shares,
            }.items():
                if value == value:
                    smooth[name] = value if name not in smooth else 0.97 * smooth[name] + 0.03 * value
            if step % 50 == 0:
                figures = " ".join(f"{name} {value:.3f}" for name, value in sorted(smooth.items()))
                log.info("step %d cpu %.1f min rate %.1e %s", step, spent / 60, rate, figures)
            if spent - saved > save_every:
                saved = spent
                self.save(out)
        self.save(out)
        log.info("%d steps, %.1f min of processor time", step, (time.process_time() - begun) / 60)

    def _follow(self, step: int) -> None:
        """Keep a running average of the weights: it hears better than any of them."""
        keep = min(0.998, step / (step + 20))
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                self._average[name].lerp_(value, 1 - keep)

    def save(self, out: Path) -> None:
        """Write the averaged weights, and the last ones to go on from."""
        part = out.with_suffix(".part")
        torch.save({"model": self.model.state_dict(), "average": self._average}, part)
        part.replace(out)
