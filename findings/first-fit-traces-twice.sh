#!/usr/bin/env bash
# Keras 3.15.1 on TensorFlow 2.21.0: the first step of `fit` is traced twice if the optimizer has a state (momentum, Adam)
# that `fit` must make. With `optimizer.build(model.trainable_variables)` before `fit`, it is traced once.
#
# The optimizer makes its variables inside the compiled step. TensorFlow then traces the step again, without the branch
# that makes variables. For a deep network, tracing is most of the time until the first step.
#
# Seen, as the number of times that Python runs a layer's `call` in `fit` (fresh: not built before): sgd fresh 1, sgd
# built 1, momentum fresh 2, momentum built 1, adam fresh 2, adam built 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.4.6
export TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES= KERAS_BACKEND=tensorflow
cat > "$folder/count.py" <<'PYTHON'
import keras
import numpy as np

calls = []


class Counted(keras.layers.Dense):
    def call(self, inputs):
        calls.append(inputs)
        return super().call(inputs)


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": keras.optimizers.Adam,
}
for name, make in OPTIMIZERS.items():
    for is_built in (False, True):
        optimizer = make()
        model = keras.Sequential([keras.Input((3,)), Counted(2)])
        model.compile(optimizer, "mse", jit_compile=False)
        if is_built:
            optimizer.build(model.trainable_variables)
        calls.clear()
        model.fit(np.ones((8, 3)), np.ones((8, 2)), epochs=2, verbose=0)
        print(name, "built" if is_built else "fresh", len(calls))
PYTHON
"$folder/venv/bin/python" "$folder/count.py" > "$folder/found" 2> "$folder/errors" || { cat "$folder/errors"; exit 1; }
cat "$folder/found"
[ "$(tr '\n' ' ' < "$folder/found")" = "sgd fresh 1 sgd built 1 momentum fresh 2 momentum built 1 adam fresh 2 adam built 1 " ]
