"""What a run is told of: the three numbers (how many, how late, how wrong), with what keeps them honest beside them."""

from __future__ import annotations

from typing import Any

from bench.load.plan import FRAME_SECONDS, Plan
from bench.load.results import Seen

Report = dict[str, Any]


def report(plan: Plan, seen: Seen) -> Report:
    """Latencies in milliseconds, on the audio's own clock.

    `latency_ms`: from sending audio to the first partial that covers it. `final_latency_ms`: to the final that ends
    there. `speech_end_ms`: from the end of an utterance, as the recording has it, to the final that holds it.
    `word_error_rate` is None where no backend listened.
    """
    audio = seen.frames * FRAME_SECONDS or 1
    heard = seen.words_said > 0
    return {
        "sessions": plan.sessions,
        "seconds": plan.seconds,
        "ramp": plan.ramp,
        "jitter": plan.jitter,
        "think": plan.think,
        "hold": plan.hold,
        "lasting": plan.lasting,
        "protocol": plan.dialect,
        "backends": seen.backends,
        "completed": seen.completed,
        "refused": seen.refused,
        "dropped": seen.dropped,
        "failures": seen.failures,
        "frames": seen.frames,
        "lost_frames": seen.lost_frames,
        "latency_ms": seen.partial.milliseconds(),
        "final_latency_ms": seen.final.milliseconds(),
        "speech_end_ms": seen.speech_end.milliseconds() if heard else {},
        "word_error_rate": round(seen.word_errors / seen.words_said, 4) if heard else None,
        "words": seen.words_said,
        "partials": seen.partials,
        "finals": seen.finals,
        "partials_per_second": round(seen.partials / audio, 2),
        "flicker": round(seen.words_changed / seen.words_shown, 4) if seen.words_shown else None,
        "opening_ms": seen.opening.milliseconds(),
        "generator_lag_ms": seen.lag.milliseconds(),
        "generator_cpu_seconds": round(seen.cpu_seconds, 2),
    }
