"""Verb on what can be measured of frames without training: measure."""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from steatosis_tf.grades import NOTICE
from steatosis_tf.verbs.common import Result


def measure(args: Namespace) -> Result:
    """Measure one patient's frames: hepatorenal index, attenuation, speckle, landmarks."""
    from steatosis_tf.quantitative.display import Display
    from steatosis_tf.quantitative.measure import measure_patient

    display = Display(args.dynamic_range_db, args.px_per_cm)
    of_frames, mean = measure_patient(args.frames, display)
    values = {
        "frames": [
            {"path": path} | _plain(asdict(numbers))
            for path, numbers in zip(args.frames, of_frames, strict=True)
        ],
        "mean": _plain(asdict(mean)),
        "notice": NOTICE,
    }
    text = [f"mean over {len(of_frames)} frame(s), taken as one patient's", mean.reading()]
    return Result(values, "\n".join([*text, "", NOTICE]))


def _plain(numbers: dict) -> dict:
    """NaN is no JSON: what was not measured is null."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in numbers.items()
    }


def _measure_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("frames", nargs="+", metavar="FRAME", help="images of one patient")
    parser.add_argument(
        "--dynamic-range-db", type=float, metavar="DB", help="dB between black and white, if known"
    )
    parser.add_argument("--px-per-cm", type=float, metavar="PX", help="of the image, if known")


VERBS = (("measure", measure, _measure_arguments),)
