"""The parts that liver networks are trained and scored on."""

from dataclasses import replace

from experiments.segmentation import liver_unet


def test_copies_of_one_picture_are_never_trained_on_and_scored():
    groups = [["a", "b"], ["c"], ["d", "e"], ["f"], ["g"], ["h", "i"]]
    config = replace(liver_unet.CONFIG, num_test=3, num_folds=2, validation_every=2)
    assert liver_unet.parts_of(groups, 1, config) == {
        "scored": ["f", "h", "i"], "validation": ["d", "e"], "train": ["g"],
    }  # fmt: skip


def test_the_shipped_network_sees_every_picture_and_is_scored_on_none():
    groups = [["a", "b"], ["c"], ["d", "e"], ["f"], ["g"], ["h", "i"]]
    config = replace(liver_unet.CONFIG, num_test=3, num_folds=2, validation_every=2)
    assert liver_unet.parts_of(groups, None, config) == {
        "scored": [], "validation": ["a", "b", "d", "e", "g"], "train": ["c", "f", "h", "i"],
    }  # fmt: skip


def test_the_nearest_of_eight_pairs_stand_together(real_data_dir):
    assert ["benign_018", "benign_007"] in liver_unet.ranked_groups(real_data_dir / "aul")
