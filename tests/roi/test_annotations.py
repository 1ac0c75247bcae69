"""COCO and Label Studio files in both directions."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from steatosis_tf.cli import main
from steatosis_tf.cohort.manifest import read_manifest
from steatosis_tf.roi.review.exchange import (
    export_annotations,
    import_annotations,
    read_annotations,
    write_annotations,
)
from steatosis_tf.roi.review.formats import LabelledBox
from steatosis_tf.roi.views import Rectangle

HEIGHT, WIDTH = 200, 300


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Three frames of 300 x 200 px (width x height); a proposal, a person's box, none."""
    folder = tmp_path / "study"
    (folder / "f").mkdir(parents=True)
    for name in ("a", "b", "c"):
        cv2.imwrite(str(folder / f"f/{name}.png"), np.full((HEIGHT, WIDTH), 90, np.uint8))
    path = folder / "manifest.csv"
    path.write_text(
        "frame_id,path,patient_id,grade,fat_percent,pixels_sha256,roi_top,roi_left,roi_height,"
        "roi_width,roi_source,roi_quality,roi_reason,roi_state,roi_reviewer,roi_reviewed_at\n"
        "a1,f/a.png,1,,,x,10,20,30,40,auto,0.9,,,,\n"
        "b2,f/b.png,1,,,x,11,21,31,41,person,0.2,,corrected,CD,2026-01-01T00:00:00.000Z\n"
        "c3,f/c.png,2,,,x,,,,,auto,,no liver found,,,\n"
    )
    return path


def coco(**changes: object) -> dict:
    """As CVAT writes it: a box for frame c."""
    content = {
        "images": [{"id": 7, "file_name": "c.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 3, "name": "ROI"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [50.4, 60.6, 70, 80],
             "area": 5600, "segmentation": [], "iscrowd": 0},
        ],
    }  # fmt: skip
    return {**content, **changes}


def task(*regions: dict, image: str = "/data/upload/4/0a1b2c3d-c.png", **more: object) -> dict:
    """As Label Studio exports it."""
    annotations = [{"id": 5, "completed_by": 1, "was_cancelled": False, "result": list(regions)}]
    return {
        "id": 9,
        "data": {"image": image},
        "annotations": annotations,
        "predictions": [],
        **more,
    }


def region(kind: str, label: str, **value: object) -> dict:
    return {
        "id": "x1", "type": kind, "from_name": "label", "to_name": "image",
        "original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0,
        "value": {**value, kind: [label]},
    }  # fmt: skip


# 10 % of 300 px is 30 px, 20 % of 200 px is 40 px.
LS_BOX = region("rectanglelabels", "roi", x=10, y=20, width=30, height=40, rotation=0)
LS_LIVER = region("polygonlabels", "Liver", points=[[10, 10], [90, 10], [50, 90]], closed=True)


def write(folder: Path, content: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def roi(manifest: Path, frame_id: str) -> tuple:
    row = read_manifest(manifest).set_index("frame_id").loc[frame_id]
    return tuple(row[["roi_top", "roi_left", "roi_height", "roi_width"]])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # left 50.4 -> 50, top 60.6 -> 61, right 120.4 -> 120, bottom 140.6 -> 141
        (coco(), (61, 50, 80, 70)),
        ([task(LS_BOX)], (40, 30, 80, 90)),
        ([task(LS_BOX, image="/data/local-files/?d=study%2Ff%2Fc.png")], (40, 30, 80, 90)),
        ([task(LS_BOX, image="s3://bucket/study/f/c.png")], (40, 30, 80, 90)),
        ([task(LS_BOX, image="f\\c.png")], (40, 30, 80, 90)),
    ],
    ids=["coco", "upload", "local file", "bucket", "windows"],
)
def test_a_box_comes_in_as_a_persons(manifest, tmp_path, content, expected):
    summary = import_annotations(write(tmp_path, content), manifest, reviewer="EF")
    assert (summary.num_boxes, summary.rejected) == (1, ())
    assert roi(manifest, "c3") == expected
    row = read_manifest(manifest).iloc[2]
    assert (row["roi_source"], row["roi_state"], row["roi_reviewer"], row["roi_reason"]) == (
        "person", "corrected", "EF", "imported",
    )  # fmt: skip


def test_no_box_comes_in_where_the_model_sees_beam_space(manifest, tmp_path):
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{header},roi_view", *(f"{row},beamspace" for row in rows)]))
    summary = import_annotations(write(tmp_path, coco()), manifest, reviewer="EF")
    assert summary.num_boxes == 0
    assert summary.rejected == (
        ("c.png", "the model sees its beamspace, not a box; correct its fan instead"),
    )


def test_what_a_person_decided_before_stays(manifest, tmp_path):
    images = [
        {"id": at, "file_name": f"f/{name}.png", "height": HEIGHT, "width": WIDTH}
        for at, name in enumerate("abx")
    ]
    boxes = [
        {"id": at, "image_id": at, "category_id": 3, "bbox": [1, 2, 50, 60]} for at in range(3)
    ]
    path = write(tmp_path, coco(images=images, annotations=boxes))
    summary = import_annotations(path, manifest, reviewer="EF")
    assert roi(manifest, "a1") == (2, 1, 60, 50)
    assert roi(manifest, "b2") == (11, 21, 31, 41)
    assert summary.rejected == (
        ("f/b.png", "corrected by CD already; reopen it to import"),
        ("f/x.png", "no frame of the manifest has this path"),
    )
    assert pd.read_csv(summary.rejected_path)["path"].tolist() == ["f/b.png", "f/x.png"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (coco(images=[{"id": 7, "file_name": "c.png", "height": 100, "width": 150}]),
         "annotated at 150 x 100 px, but the frame has 300 x 200 px"),
        ([task(LS_BOX, LS_BOX)], "2 boxes labelled roi"),
        ([task(region("rectanglelabels", "roi", x=80, y=20, width=30, height=40))],
         "leaves the frame of 300 x 200 px"),
        ([task(region("brushlabels", "roi", format="rle", rle=[0]))], "type='brushlabels'"),
        ([task(LS_BOX, annotations=[{"result": [LS_BOX]}, {"result": [LS_BOX]}])],
         "2 people annotated it"),
        ([task(annotations=[], predictions=[{"result": [LS_BOX]}])], "not drawn by a person"),
        (coco(annotations=[{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 9, 9],
                            "segmentation": {"counts": "abc", "size": [2, 2]}}]),
         "run-length masks are not read"),
        (coco(annotations=[{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 0, 9]}]),
         "the box is empty"),
    ],
)  # fmt: skip
def test_what_cannot_go_in_is_listed_with_its_reason(manifest, tmp_path, content, reason):
    before = read_manifest(manifest)
    summary = import_annotations(write(tmp_path, content), manifest, reviewer="EF")
    assert summary.num_boxes == 0
    assert [reason in text for _, text in summary.rejected] == [True]
    pd.testing.assert_frame_equal(read_manifest(manifest), before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expected JSON. Received: annotations.json"),
        ('{"a": 1}', "Received: annotations.json with neither"),
        ('{"images": [{"id": 1}]}', "a file without 'categories'"),
        ('[{"id": 3, "image": "a.png", "label": []}]', "not JSON-MIN.*task 3 without 'data'"),
    ],
)
def test_other_files_are_refused(manifest, tmp_path, text, message):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        import_annotations(path, manifest, reviewer="EF")


def test_a_file_without_the_label_says_which_it_has(manifest, tmp_path):
    path = write(tmp_path, coco(categories=[{"id": 3, "name": "spleen"}]))
    with pytest.raises(ValueError, match=r"labelled roi.*with the labels spleen"):
        import_annotations(path, manifest, reviewer="EF")
    assert import_annotations(path, manifest, reviewer="EF", roi_label="Spleen").num_boxes == 1


def test_the_verb_says_what_came_in_and_what_did_not(manifest, tmp_path, capsys):
    images = [*coco()["images"], {"id": 8, "file_name": "x.png", "height": 9, "width": 9}]
    boxes = [
        *coco()["annotations"],
        {"id": 2, "image_id": 8, "category_id": 3, "bbox": [1, 1, 5, 5]},
    ]
    path = write(tmp_path, coco(images=images, annotations=boxes))
    assert main(["import-boxes", str(path), str(manifest), "--reviewer", "EF"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"1 boxes and 0 masks taken: {manifest}",
        f"1 rejected: {manifest.parent / 'annotations_rejected.csv'}",
        "  x.png: no frame of the manifest has this path",
    ]


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="file_format='voc'"):
        write_annotations([], tmp_path / "a.json", file_format="voc")


@pytest.mark.parametrize("file_format", ["coco", "label_studio"])
def test_boxes_and_outlines_survive_the_way_out_and_back(manifest, tmp_path, file_format):
    masks = tmp_path / "masks"
    masks.mkdir()
    liver = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(liver, (150, 100), (90, 60), 20, 0, 360, 255, -1)
    liver[150:190, 5:40] = 255  # a second piece
    cv2.imwrite(str(masks / "a_liver.png"), liver)
    output = tmp_path / "out.json"
    num = export_annotations(manifest, output, file_format=file_format, masks_dir=masks)
    assert num == 2  # frame c has neither

    frames, skipped = read_annotations(output)
    assert skipped == []
    assert [frame.path for frame in frames] == ["f/a.png", "f/b.png"]
    assert frames[1].boxes[0].rectangle == Rectangle(11, 21, 31, 41)
    assert len(frames[0].polygons) == 2

    target = tmp_path / "study" / "blank.csv"
    table = read_manifest(manifest)
    table[["roi_source", "roi_state", "roi_reviewer", "roi_reviewed_at"]] = ""
    table[["roi_top", "roi_left", "roi_height", "roi_width"]] = pd.NA
    table.to_csv(target, index=False)
    back = tmp_path / "back"
    summary = import_annotations(output, target, reviewer="EF", masks_dir=back)
    assert (cv2.imread(str(back / "a_liver.png"), cv2.IMREAD_UNCHANGED) == liver).all()
    assert roi(target, "b2") == (11, 21, 31, 41)
    assert (summary.num_boxes, summary.num_masks) == (1, 1)
    assert roi(target, "a1") == (pd.NA,) * 4  # a proposal does not become a person's box


def test_coco_is_what_pycocotools_reads(manifest, tmp_path):
    tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    masks = tmp_path / "masks"
    masks.mkdir()
    liver = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.ellipse(liver, (150, 100), (90, 60), 20, 0, 360, 255, -1)
    cv2.imwrite(str(masks / "a_liver.png"), liver)
    export_annotations(manifest, tmp_path / "o.json", file_format="coco", masks_dir=masks)
    read = tools.COCO(str(tmp_path / "o.json"))
    box = read.loadAnns(read.getAnnIds(catIds=read.getCatIds(["roi"])))[0]
    assert box["bbox"] == [20, 10, 40, 30]
    outline = read.loadAnns(read.getAnnIds(catIds=read.getCatIds(["liver"])))[0]
    theirs = read.annToMask(outline).astype(bool)
    ours = liver > 0
    assert (theirs & ours).sum() / (theirs | ours).sum() > 0.98
    # The outline runs through the centres of the border pixels, half a px inside.
    assert outline["area"] == pytest.approx(ours.sum(), rel=0.03)


def test_label_studio_gets_percent_and_knows_proposals_from_drawings(manifest, tmp_path):
    export_annotations(manifest, tmp_path / "o.json", file_format="label_studio")
    proposed, drawn = json.loads((tmp_path / "o.json").read_text())
    assert proposed["data"]["image"] == "/data/local-files/?d=f/a.png"
    assert (proposed["annotations"], drawn["predictions"]) == ([], [])
    prediction = proposed["predictions"][0]
    assert prediction["score"] == 0.9
    value = prediction["result"][0]["value"]
    # left 20 of 300, top 10 of 200, width 40 of 300, height 30 of 200
    assert (value["x"], value["y"]) == (pytest.approx(6.6667, abs=1e-4), 5)
    assert (value["width"], value["height"]) == (pytest.approx(13.3333, abs=1e-4), 15)
    assert drawn["annotations"][0]["result"][0]["type"] == "rectanglelabels"


def test_a_turned_rectangle_becomes_a_polygon(tmp_path):
    turned = region("rectanglelabels", "liver", x=50, y=50, width=10, height=10, rotation=90)
    frames, skipped = read_annotations(write(tmp_path, [task(turned, LS_LIVER)]))
    assert skipped == []
    # 30 x 20 px at (150, 100), turned clockwise by 90 degrees around that corner. It is upright
    # again, so it counts as a box: from x 130 to 150, y 100 to 130.
    assert frames[0].boxes == (LabelledBox("liver", Rectangle(100, 130, 30, 20)),)
    assert frames[0].polygons[0].points == ((30, 20), (270, 20), (150, 180))
    slanted = region("rectanglelabels", "liver", x=50, y=50, width=10, height=10, rotation=30)
    frames, _ = read_annotations(write(tmp_path, [task(slanted)]))
    # width 30 px: (150 + 30 cos 30, 100 + 30 sin 30) = (175.98, 115)
    assert frames[0].polygons[0].points[1] == pytest.approx((175.981, 115.0), abs=1e-3)


@pytest.mark.parametrize(
    ("ring", "saved", "reason"),
    [
        ([10, 20, 60, 20, 60, 70, 10, 70], 1, ""),
        ([10, 20, 60, 20, 60, 70, 10, 70, 10, 20], 1, ""),
        ([10, 20, 60, 70, 60, 20, 10, 70], 0, "is no upright rectangle"),
        ([10, 20, 60, 20, 35, 70], 0, "is no upright rectangle"),
    ],
    ids=["four corners", "closed", "bow tie", "triangle"],
)
def test_a_roi_stored_as_a_polygon(manifest, tmp_path, ring, saved, reason):
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 50, 50]}
    content = coco(annotations=[{**annotation, "segmentation": [ring]}])
    summary = import_annotations(write(tmp_path, content), manifest, reviewer="EF")
    assert summary.num_boxes == saved
    assert all(reason in text for _, text in summary.rejected)
    assert roi(manifest, "c3") == ((20, 10, 50, 50) if saved else (pd.NA,) * 4)


def test_two_frames_of_one_name_need_a_longer_path(manifest, tmp_path):
    folder = manifest.parent
    (folder / "g").mkdir()
    (folder / "g/c.png").write_bytes((folder / "f/c.png").read_bytes())
    with manifest.open("a") as stream:
        stream.write("d4,g/c.png,2,,,x,,,,,auto,,,,,\n")
    summary = import_annotations(write(tmp_path, coco()), manifest, reviewer="EF")
    assert summary.rejected == (("c.png", "2 frames of the manifest end in this path"),)
    longer = [{"id": 7, "file_name": "export/g/c.png", "height": HEIGHT, "width": WIDTH}]
    assert (
        import_annotations(write(tmp_path, coco(images=longer)), manifest, reviewer="EF").num_boxes
        == 1
    )
    assert roi(manifest, "d4") == (61, 50, 80, 70)
