"""`python -m tests.models.training STEP`; README.md tells the order of the steps."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

log = logging.getLogger(__name__)


def _synth(options: argparse.Namespace) -> None:
    from .synth import write_corpora

    write_corpora(options.data, options.scale)


def _train(options: argparse.Namespace) -> None:
    from .synth import Corpus
    from .train import Trainer

    trainer = Trainer(Corpus(options.data / "train"), options.seed, options.init)
    trainer.run(options.minutes, options.out, peak=options.peak, wall=options.wall or 3 * options.minutes)


def _export(options: argparse.Namespace) -> None:
    from .export import export

    export(options.checkpoint, options.out)


def _evaluate(options: argparse.Namespace) -> None:
    from .evaluate import evaluate
    from .synth import Corpus

    evaluate(options.model, Corpus(options.data / "test"), size=options.size, only=options.only)


def _recordings(options: argparse.Namespace) -> None:
    from .evaluate import Reader
    from .recordings import make_long, make_utterances, mark
    from .synth import Corpus

    make_long(options.out)
    reader = Reader(options.model)
    make_utterances(options.out, reader, Corpus(options.data / "train"))
    log.info("sure of %d of %d utterances", *mark(options.out, reader))


def _mark(options: argparse.Namespace) -> None:
    from .evaluate import Reader
    from .recordings import mark

    log.info("sure of %d of %d utterances", *mark(options.out, Reader(options.model)))


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(prog="python -m tests.models.training")
    steps = parser.add_subparsers(dest="step", required=True)

    synth = steps.add_parser("synth", help="speak the training and test utterances (about 3 min)")
    synth.add_argument("data", type=Path)
    synth.add_argument("--scale", type=float, default=1.0, help="share of the utterances to train on")
    synth.set_defaults(run=_synth)

    train = steps.add_parser("train", help="train on one thread")
    train.add_argument("data", type=Path)
    train.add_argument("out", type=Path, help="checkpoint to write")
    train.add_argument(
        "--init", type=Path, help="a converted model.bin or a checkpoint to begin with; else from nothing"
    )
    train.add_argument("--minutes", type=float, default=60.0, help="processor time")
    train.add_argument("--wall", type=float, help="most minutes by the clock (default: three times the processor's)")
    train.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    train.add_argument("--seed", type=int, default=7)
    train.set_defaults(run=_train)

    export = steps.add_parser("export", help="convert a checkpoint for faster-whisper, int8")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path)
    export.set_defaults(run=_export)

    evaluate = steps.add_parser("evaluate", help="measure a converted model")
    evaluate.add_argument("model", type=Path)
    evaluate.add_argument("data", type=Path)
    evaluate.add_argument("--size", type=float, default=1.0, help="below 1: quicker and coarser")
    evaluate.add_argument("--only", nargs="*", default=(), help="parts to run")
    evaluate.set_defaults(run=_evaluate)

    recordings = steps.add_parser("recordings", help="speak and choose the recordings that tests use")
    recordings.add_argument("model", type=Path)
    recordings.add_argument("data", type=Path)
    recordings.add_argument("out", type=Path)
    recordings.set_defaults(run=_recordings)

    mark = steps.add_parser("mark", help="say which recordings a model is sure of")
    mark.add_argument("model", type=Path)
    mark.add_argument("out", type=Path)
    mark.set_defaults(run=_mark)

    options = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("faster_whisper").setLevel("WARNING")
    options.run(options)


if __name__ == "__main__":
    main()
