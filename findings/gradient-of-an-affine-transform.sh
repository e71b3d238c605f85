#!/usr/bin/env bash
# TensorFlow 2.21.0: the gradient of ImageProjectiveTransformV3 by the image is wrong for affine maps in general.
#
# This is the operation behind random rotations, zooms and shears. It is linear in the image, so its gradient must
# reproduce it; TensorFlow takes the transform by the inverted map in its place, which is the adjoint only for maps
# that move pixels onto pixels. Saliency maps and adversarial examples through augmentation are affected.
#
# Seen: the sum of gradient times image is not the sum that was differentiated, off by more than 5%.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import tensorflow as tf

random = np.random.default_rng(0)
image, weights = (tf.constant(random.normal(size=(1, 5, 5, 1)), tf.float32) for _ in range(2))
matrix = tf.constant([[0.8, 0.3, 0.2, -0.2, 0.9, 0.4, 0.0, 0.0]])


def transformed_sum(images, transforms):
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=[5, 5],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.reduce_sum(moved * weights)


for name, transforms in (("identity", tf.constant([[1.0, 0, 0, 0, 1.0, 0, 0, 0]])), ("affine", matrix)):
    with tf.GradientTape() as tape:
        tape.watch(image)
        total = transformed_sum(image, transforms)
    by_gradient = float(tf.reduce_sum(tape.gradient(total, image) * image))
    print(f"{name}: sum {float(total):.4f}, by its gradient {by_gradient:.4f}")
    assert np.isclose(by_gradient, float(total), atol=1e-5) == (name == "identity")
assert abs(by_gradient - float(total)) > 0.05 * abs(float(total))
PYTHON
