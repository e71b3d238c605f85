"""Misuse that must end in a clear error on every rank."""

import warnings

import keras
import numpy as np
import parity
import tensorflow as tf
from rank_subjects import TwoOptimizers, fit, make_data, make_model, misuse

from tfopt import models
from tfopt.callbacks import (
    AverageMetrics,
    BroadcastVariables,
    Convexity,
    GradientBreakdown,
    GradientNoiseScale,
    WeightNorms,
)
from tfopt.curvature import HessianOperator, NotCoveredError, Probe, gradient_noise
from tfopt.distributed import DistributedOptimizer


@misuse
def a_measurement_on_one_rank(ranks, folder):
    data = make_data(8)
    callbacks = [BroadcastVariables()] + [Convexity(data)] * (ranks.rank == 0)
    fit(make_model(), data, callbacks=callbacks)


@misuse
def a_sum_over_rows(ranks, folder):
    """Each rank has one batch, so no rank alone can detect that the loss depends on the split of rows into batches."""
    HessianOperator(make_model(), keras.losses.MeanSquaredError(reduction="sum"), *make_data(8))


@misuse
def masks_that_differ_between_ranks(ranks, folder):
    """The rows of each rank have one length, so the loss is not a mean only over all ranks."""
    x, y = np.random.default_rng(ranks.rank).normal(size=(8, 4, 2)), np.zeros((8, 4), int)
    x[:, 3 - ranks.rank :] = 0.0
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.Masking(), keras.layers.Dense(3, "softmax")])
    model.set_weights([np.ones_like(part) for part in model.get_weights()])
    gradient_noise(model, "sparse_categorical_crossentropy", x, y)


@misuse
def masks_on_one_rank(ranks, folder):
    x, y = np.random.default_rng(ranks.rank).normal(size=(8, 4)), np.ones(8, int)
    y[7] = 0 if ranks.rank == ranks.size - 1 else 1
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), ignoring, jit_compile=False)
    fit(model, (x, y), callbacks=[BroadcastVariables(), GradientNoiseScale((x, y), group_size=2)])


@misuse
def a_certificate_that_one_rank_refuses(ranks, folder):
    x = tf.zeros((4, 3))
    weights = tf.ones(4) if ranks.rank == 1 else None
    probe = Probe(x, tf.zeros((4, 1)), weights)
    model = models.mlp(3, (2,), 1, use_bias=False, weight_decay=0.1, seed=0)
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    try:
        fit(model, (x, tf.zeros((4, 1))), callbacks=[BroadcastVariables(), Convexity(probe, certificate=True)])
    except NotCoveredError as error:
        raise ValueError(str(error)) from None  # NotCoveredError is a ValueError


@misuse
def measuring_unequal_weights(ranks, folder):
    data = make_data(8)
    fit(make_model(seed=10 * ranks.rank), data, callbacks=[GradientBreakdown(data)])


class CompileAgain(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse", jit_compile=False)
            self.model.make_train_function()


@misuse
def compiled_again_on_one_rank(ranks, folder):
    data = make_data(8)
    again = [CompileAgain()] * (ranks.rank == 1)
    fit(make_model(), data, epochs=2, callbacks=[BroadcastVariables(), *again, Convexity(data, eigenvalues=False)])


@misuse
def a_plain_optimizer_of_its_own(ranks, folder):
    model = TwoOptimizers(keras.optimizers.SGD(0.1))
    model.compile(DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def a_plain_optimizer_that_takes_a_step(ranks, folder):
    """It could have been unused, so that nothing is wrong before the first batch."""
    model = TwoOptimizers(DistributedOptimizer(keras.optimizers.SGD(0.1)))
    model.compile(loss="mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def sample_weights_on_one_rank(ranks, folder):
    data = make_data(8)
    weights = tf.range(8.0) if ranks.rank == 1 else None
    callbacks = [BroadcastVariables(), Convexity(data, eigenvalues=False)]
    fit(make_model(), data, sample_weight=weights, callbacks=callbacks)


@misuse
def noise_of_a_plain_optimizer(ranks, folder):
    fit(make_model(optimizer=keras.optimizers.SGD(0.1)), make_data(8), callbacks=[GradientNoiseScale()])


@misuse
def noise_of_accumulated_gradients(ranks, folder):
    optimizer = DistributedOptimizer(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[BroadcastVariables(), GradientNoiseScale()])


@misuse
def noise_of_batches_of_unknown_size(ranks, folder):
    def batches():
        while True:
            yield make_data(4)

    callbacks = [BroadcastVariables(), GradientNoiseScale()]
    make_model().fit(batches(), steps_per_epoch=2, verbose=0, callbacks=callbacks)


@misuse
def different_numbers_of_batches(ranks, folder):
    fit(make_model(), make_data(8 + 4 * ranks.rank), callbacks=[BroadcastVariables(), AverageMetrics()])


@misuse
def unknown_numbers_of_batches(ranks, folder):
    data = tf.data.Dataset.from_tensor_slices(make_data(40)).batch(4)
    limit = 4 + 3 * (ranks.rank == 1)
    endless = data.take(limit).filter(lambda *_: True)
    make_model().fit(endless, epochs=3, verbose=0, callbacks=[AverageMetrics(), BroadcastVariables()])


@misuse
def unknown_numbers_with_sparse_gradients(ranks, folder):
    parity.set_precision("sparse")
    try:
        x, y = parity.make_data("sparse")
        rows = tf.data.Dataset.from_tensor_slices((tuple(x), y)).batch(4)
        model = parity.make_model("sparse")
        model.compile(DistributedOptimizer("adam"), "mse", jit_compile=False)
        data = rows.take(5 - (ranks.rank == 1)).filter(lambda *_: True)
        model.fit(data, epochs=2, verbose=0, callbacks=[BroadcastVariables()])
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


@misuse
def frozen_on_one_rank(ranks, folder):
    model = make_model()
    model.layers[0].trainable = ranks.rank != 1
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def frozen_on_one_rank_without_callbacks(ranks, folder):
    model = make_model()
    model.layers[0].trainable = ranks.rank != 1
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8))


@misuse
def other_learning_rate(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1 + 0.1 * ranks.rank)))
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def other_optimizer_state(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1, momentum=0.5 * ranks.rank)))
    model.optimizer.build(model.trainable_variables)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def other_clipping(ranks, folder):
    optimizer = keras.optimizers.SGD(0.1, clipnorm=0.01 if ranks.rank == 1 else None)
    fit(make_model(optimizer=DistributedOptimizer(optimizer)), make_data(8))


@misuse
def frozen_later_on_one_rank(ranks, folder):
    model = make_model(optimizer=DistributedOptimizer(keras.optimizers.SGD(0.1)))
    fit(model, make_data(8), callbacks=[BroadcastVariables()])
    model.layers[0].trainable = ranks.rank != 1
    model.compile(model.optimizer, "mse", jit_compile=False)
    fit(model, make_data(8), callbacks=[BroadcastVariables()])


@misuse
def a_callback_on_one_rank(ranks, folder):
    callbacks = [BroadcastVariables()] + [AverageMetrics()] * (ranks.rank == 0)
    fit(make_model(), make_data(8), callbacks=callbacks)


@misuse
def the_only_callback_on_one_rank(ranks, folder):
    fit(make_model(), make_data(8), callbacks=[AverageMetrics()] * (ranks.rank == 0))


@misuse
def plain_optimizer(ranks, folder):
    fit(make_model(optimizer=keras.optimizers.SGD(0.1)), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def plain_optimizer_on_one_rank(ranks, folder):
    optimizer = keras.optimizers.SGD(0.1)
    optimizer = optimizer if ranks.rank == 1 else DistributedOptimizer(optimizer)
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def xla(ranks, folder):
    fit(make_model(jit_compile=True), make_data(8), callbacks=[BroadcastVariables()])


@misuse
def xla_without_callbacks(ranks, folder):
    fit(make_model(jit_compile=True), make_data(8))


@misuse
def horovods_own_wrapper(ranks, folder):
    import horovod.tensorflow.keras as horovod_keras

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = horovod_keras.DistributedOptimizer(keras.optimizers.SGD(0.1))
    fit(make_model(optimizer=optimizer), make_data(8), callbacks=[WeightNorms()])


@misuse
def early_stopping_on_local_metrics(ranks, folder):
    class StopOnOneRank(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = ranks.rank == 1

    fit(make_model(), make_data(8), epochs=4, callbacks=[BroadcastVariables(), AverageMetrics(), StopOnOneRank()])


@misuse
def model_built_by_its_first_step(ranks, folder):
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(DistributedOptimizer("sgd"), "mse", jit_compile=False)
    fit(model, make_data(8))


@misuse
def optimizer_inside_loss_scaling(ranks, folder):
    keras.optimizers.LossScaleOptimizer(DistributedOptimizer("sgd"))
