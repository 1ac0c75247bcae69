"""experiments/pretrain.py: what is trained on, the loss without labels, and that a run goes on."""

import cv2
import numpy as np
import pytest

from experiments import pretrain
from steatosis_tf.sources.phantom.study import simulate_patient


def test_twins_that_agree_cost_nothing_and_exchanged_numbers_cost_all():
    one = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    assert float(pretrain.barlow_twins(None, np.vstack([one, one]))) == pytest.approx(0, abs=1e-5)
    # Correlations [[0, 1], [1, 0]]: 1 for each number that disagrees, 0.005 for each pair.
    exchanged = float(pretrain.barlow_twins(None, np.vstack([one, one[:, ::-1]])))
    assert exchanged == pytest.approx(2 * 1 + 2 * 0.005, abs=1e-3)


@pytest.fixture(scope="module")
def phantom_rois():
    return np.stack([pretrain.phantom(number)[0] for number in range(3)])


def trained_twice(way, rois, folder):
    """Features of a network that was just trained, and of the same read from disk."""
    config = pretrain.Config(
        num_phantoms=6, held_out=2, phantom_epochs=1, pair_epochs=1, batch_size=2
    )
    first, again = (
        pretrain.features_of(way, pretrain.trained(way, config, folder, folder), rois)
        for _ in range(2)
    )
    assert set(pretrain.PARTS[f"{way} weights"].columns) <= set(first)
    assert np.isfinite(first.to_numpy()).all()
    return first, again


def test_phantoms_train_once(phantom_rois, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert phantom_rois.shape == (3, 224, 224, 1)
    assert phantom_rois.dtype == np.uint8
    first, again = trained_twice("phantoms", phantom_rois, tmp_path)
    assert first.equals(again)
    assert set(pretrain.ANSWERS) <= set(first)
    assert capsys.readouterr().out.count("R2_phantom_fat") == 1


@pytest.mark.slow
def test_pairs_need_no_label(phantom_rois, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "aul" / "images"
    pictures.mkdir(parents=True)
    for number in range(4):
        frames, _ = simulate_patient(9.0, num_frames=1, generator=np.random.default_rng(number))
        cv2.imwrite(str(pictures / f"{number}.png"), frames[0])
    cv2.imwrite(str(pictures / "dark.png"), np.zeros((300, 400), np.uint8))
    first, again = trained_twice("pairs", phantom_rois, tmp_path)
    assert first.equals(again)
    assert "4 pictures without labels; 1 more show no sector" in capsys.readouterr().out


def test_no_system_sees_a_label():
    parts = {part for systems in (pretrain.ALONE, pretrain.ADDED) for p in systems.values()
             for part in p}  # fmt: skip
    seen = {name for part in parts for name in part.columns}
    assert not seen & {"fat_percent", "grade", "frame_index", "patient_id"}
    assert next(iter(pretrain.ALONE)) == "random weights"
    assert next(iter(pretrain.ADDED)) == "three signs"
