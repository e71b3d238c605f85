"""Averaged gradients, and training on ranks compared with one process."""

import keras
import numpy as np
import parity
import tensorflow as tf
from rank_subjects import subject

from tfopt.distributed import DistributedOptimizer
from tfopt.distributed.gradients import mean_gradients, merge_rows


def sparse_gradients(ranks, num_rows, num_tokens):
    """The same tokens twice on each rank, and some of them on all ranks."""
    variable = keras.Variable(np.zeros((num_rows, 3), "float32"))
    indices = np.arange(num_tokens).repeat(2) * (1 + ranks.rank) % num_rows
    values = np.random.default_rng(ranks.rank).normal(size=(len(indices), 3)).astype("float32")
    slices = tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([num_rows, 3]))
    dense = np.zeros((num_rows, 3), "float32")
    np.add.at(dense, indices, values)
    return slices, variable, dense


@subject
def sparse_means(ranks, folder):
    results = {}
    for name, num_rows, num_tokens in (("small", 50, 7), ("gathered", 10_000, 7), ("averaged", 10_000, 9_000)):
        slices, variable, dense = sparse_gradients(ranks, num_rows, num_tokens)
        other = keras.Variable(np.zeros(2, "float32"))
        before = ranks.bytes_reduced

        @tf.function(autograph=False)
        def mean(slices=slices, variable=variable, other=other):
            return mean_gradients([slices, None, tf.ones(2)], [variable, other, other], ranks)

        found, nothing, ones = mean()
        moved = ranks.bytes_reduced - before
        (expected,) = ranks.allreduce_mean([tf.constant(dense)])
        is_sparse = isinstance(found, tf.IndexedSlices)
        results[name] = {
            "is_sparse": is_sparse,
            "bytes": moved,
            "num_rows": int(tf.size(found.indices)) if is_sparse else None,
            "rows_are_different": bool(len(np.unique(found.indices)) == len(found.indices)) if is_sparse else None,
            "error": float(np.abs(tf.convert_to_tensor(found).numpy() - expected.numpy()).max()),
            "others": [nothing is None, ones.numpy().tolist()],
        }
    merged = merge_rows(tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([3, 1, 3])))
    results["merged"] = [merged.indices.numpy().tolist(), merged.values.numpy().tolist()]
    return results


@subject
def several_tables(ranks, folder):
    """Embedding gradients that are averaged as whole tables, together with each other and with a dense gradient."""
    tables = [keras.Variable(np.zeros((2000, 16), "float32")) for _ in range(2)]
    other = keras.Variable(np.zeros(3, "float32"))
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.build([*tables, other])

    @tf.function(autograph=False)
    def step():
        gradients = []
        for place in range(2):
            # Rank 0's first and rank 1's second gradient are late.
            count = tf.constant(20_000 if ranks.rank == place else 1)
            value = tf.while_loop(lambda i, _, c=count: i < c, lambda i, x: (i + 1, x + 0.0), [0, 1.0 + place])[1]
            gradients.append(tf.IndexedSlices(tf.fill([2000, 16], value), tf.range(2000), tf.constant([2000, 16])))
        optimizer.apply([*gradients, tf.ones(3)], [*tables, other])

    for _ in range(5):
        step()
    return [np.unique(table.numpy()).tolist() for table in [*tables, other]]


@subject
def compressed_means(ranks, folder):
    gradients = [tf.constant([1.0 + ranks.rank, 1e-3]), tf.constant([4.0 * ranks.rank], tf.float64)]
    variables = [keras.Variable(np.zeros(2)), keras.Variable(np.zeros(1), dtype="float64")]
    before = ranks.bytes_reduced
    means = mean_gradients(gradients, variables, ranks, "float16")
    return {
        "means": [mean.numpy().tolist() for mean in means],
        "dtypes": [mean.dtype.name for mean in means],
        "bytes": ranks.bytes_reduced - before,
    }


@subject
def repeated_tokens(ranks, folder):
    """Adam on an embedding with repeated tokens, compared with Adam on the dense mean gradient."""
    tokens = np.array([[1, 2, 1, 1], [2, 2, 3, 1]])[[ranks.rank % 2]]
    table = keras.layers.Embedding(5, 2, embeddings_initializer="ones")
    table.build()
    rate = 0.1
    optimizer = DistributedOptimizer(keras.optimizers.Adam(rate))
    expected = keras.Variable(table.embeddings.numpy())
    dense_optimizer = keras.optimizers.Adam(rate)
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(table(tokens) ** 2)
        gradients = tape.gradient(loss, [table.embeddings.value])
        dense = tf.math.unsorted_segment_sum(gradients[0].values, gradients[0].indices, 5)
        optimizer.apply(gradients, [table.embeddings])
        dense_optimizer.apply(ranks.allreduce_mean([dense]), [expected])
    return float(np.abs(table.embeddings.numpy() - expected.numpy()).max())


@subject
def overwritten_variables(ranks, folder):
    """Float8 layers pass the next value of a variable in place of a gradient; the value of rank 0 is used."""
    plain, scale = keras.Variable(np.ones(2)), keras.Variable(np.ones(3))
    scale.overwrite_with_gradient = True
    optimizer = DistributedOptimizer(keras.optimizers.SGD(1.0))
    optimizer.apply([tf.fill([2], float(ranks.rank)), tf.fill([3], 10.0 + ranks.rank)], [plain, scale])
    return [plain.numpy().tolist(), scale.numpy().tolist()]


# --- parity


@subject
def parity_with_one_process(ranks, folder):
    results, num_bytes = {}, {}
    for case in parity.cases(ranks.size):
        before = ranks.bytes_reduced
        found = parity.train(case, ranks, DistributedOptimizer)
        num_bytes[case] = ranks.bytes_reduced - before
        results |= {f"{case}/{name}": value for name, value in found.items()}
    np.savez(folder / f"parity-{ranks.rank}.npz", **results)
    return num_bytes
