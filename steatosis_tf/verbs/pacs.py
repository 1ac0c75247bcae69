"""Verbs that answer a PACS: sr, node."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from steatosis_tf.grades import NOTICE
from steatosis_tf.verbs.common import OutputDir, Result, add_model_argument


def sr(args: Namespace) -> Result:
    """Write the structured report and key image of one DICOM study, for the PACS.

    Example:
        steatosis sr study_folder --output answers
    """
    from steatosis_tf.deploy.key_image import answer_lines
    from steatosis_tf.deploy.predict import open_model
    from steatosis_tf.deploy.sr import answer_study, write_answer
    from steatosis_tf.deploy.study import read_study

    earlier = sorted(Path(args.output).glob("steatosis-sr-*.dcm"))
    study = read_study(args.study, earlier)
    grader = open_model(args.model)
    answer, made = answer_study(study, grader)
    paths = [str(path) for path in write_answer(made, args.output)]
    values = {
        "files": paths,
        "kind": answer.kind,
        "reason": answer.reason,
        "grade": answer.grade,
        "num_images": len(study.images),
        "passed_over": study.passed_over,
        "notice": NOTICE,
    }
    passed = [f"passed over: {number} x {why}" for why, number in study.passed_over.items()]
    return Result(
        values, "\n".join([*answer_lines(answer, grader.num_training), *passed, *paths, NOTICE])
    )


def _sr_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY_DIR", help="folder or zip with one DICOM study")
    parser.add_argument("--output", required=True, type=OutputDir, metavar="DIR",
                        help="gets steatosis-sr-*.dcm and steatosis-key-*.dcm")  # fmt: skip
    add_model_argument(parser)


def node(args: Namespace) -> Result:
    """Answer every study that arrives at an Orthanc, until it is ended.

    Example:
        steatosis node --orthanc http://127.0.0.1:8042
    """
    from steatosis_tf.deploy.node import Orthanc, Worker
    from steatosis_tf.deploy.predict import open_model
    from steatosis_tf.deploy.sr import PacsAnswer, answer_study, is_answered, model_name
    from steatosis_tf.deploy.study import read_study

    orthanc, grader = Orthanc(args.orthanc), open_model(args.model)

    def answer(folder: Path) -> PacsAnswer | None:
        study = read_study(folder)
        if is_answered(study, model_name(grader)):
            return None
        return answer_study(study, grader)[1]

    Worker(orthanc, args.state, answer).run()
    return Result({}, "")


def _node_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--orthanc", required=True, metavar="URL", help="its REST interface")
    parser.add_argument(
        "--state", default="steatosis-node", type=OutputDir, metavar="DIR",
        help="folder of this worker alone: its place, and what failed with its reason",
    )  # fmt: skip
    add_model_argument(parser)


VERBS = (("sr", sr, _sr_arguments), ("node", node, _node_arguments))
