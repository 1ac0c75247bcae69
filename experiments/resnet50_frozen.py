"""How well does the source paper's system grade: a frozen ResNet-50 with a new head?

Command:
    python experiments/resnet50_frozen.py --manifest MANIFEST_CSV --weights imagenet
    python experiments/resnet50_frozen.py --manifest MANIFEST_CSV --weights random \
        --set split.kind=kfold train.learning_rate=1e-3
Expected time and result: docs/research/resnet50_frozen.md.

CONFIG is the recipe `paper`, what the paper prescribes: patient-level 80/10/10 split stratified by
grade; flips, rotations, zoom on training frames only; ImageNet weights, frozen; dense + ReLU,
dropout 0.5, softmax over four grades; AdamW at 1e-4, batch 32, 100 epochs, class weights, learning
rate reduced when validation accuracy stands still. Ours are the normalisation of the features
(`model.normalize_features`) and the augmented copies (`train.views`; 0: online, as the paper).
"""

from steatosis_tf.recipes import RECIPES
from steatosis_tf.verbs.results import script

CONFIG = RECIPES["paper"].config

if __name__ == "__main__":
    raise SystemExit(script(__doc__, "resnet50_frozen", CONFIG))
