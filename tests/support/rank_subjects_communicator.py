"""Sums, gathers and broadcasts on ranks."""

import tensorflow as tf
from rank_subjects import misuse, subject

from tfopt import communicator as communicators


@subject
def reductions(ranks, folder):
    before = ranks.bytes_reduced
    mine = ranks.rank + 1.0
    eager = ranks.allreduce_sum([tf.constant([mine, 2 * mine]), tf.constant(ranks.rank, tf.int64)])
    mean = ranks.allreduce_mean([tf.constant(mine, tf.float64), tf.constant([6e4], tf.float16)])

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None])])
    def in_graph(x):
        first = ranks.allreduce_sum([x])[0]
        second = ranks.allreduce_sum([2.0 * x, tf.ones([2, 2], tf.float64)])
        return first, *second, *ranks.allreduce_mean([x])

    graph = in_graph(tf.constant([mine, mine, mine]))
    counted = ranks.bytes_reduced - before
    graph = in_graph(tf.constant([mine]))
    return {
        "eager": [eager[0].numpy().tolist(), int(eager[1])],
        "mean": [float(mean[0]), mean[1].numpy().tolist()],
        "graph": [part.numpy().tolist() for part in graph],
        "shapes": [part.shape.as_list() for part in eager],
        "bytes": counted,
        "bytes_of_second_run": ranks.bytes_reduced - before - counted,
    }


@subject
def other_collectives(ranks, folder):
    root = ranks.size - 1
    rows = tf.fill([ranks.rank + 1, 2], float(ranks.rank))
    gathered = ranks.allgather(rows)
    in_graph = tf.function(lambda: ranks.broadcast([tf.constant(ranks.rank)], root)[0], autograph=False)()
    ranks.barrier()
    return {
        "gathered": gathered.numpy().tolist(),
        "objects": ranks.allgather_object({"rank": ranks.rank}),
        "broadcast": [int(t) for t in ranks.broadcast([tf.constant(ranks.rank), tf.constant(10 + ranks.rank)], root)],
        "in_graph": int(in_graph),
        "current_is_the_same": communicators.current() is ranks,
    }


@subject
def joining(ranks, folder):
    """The first rank calls fewer sums than the last; the others receive zeros in its place, several times."""
    sums = []
    for _ in range(3):
        for _ in range(ranks.rank + 1):
            sums.append(float(ranks.allreduce_sum([tf.constant(1.0)], name="joining")[0]))
        ranks.join()
    return sums


@subject
def order_in_graphs(ranks, folder):
    """Operations of the same name whose operands are ready in a different order on each rank."""

    def late(value, is_late):
        # One of the ranks computes its operand in a long loop.
        count = tf.constant(200_000 if is_late else 1)
        body = lambda i, x: (i + 1, x + 0.0)  # noqa: E731
        return tf.while_loop(lambda i, _: i < count, body, [0, tf.convert_to_tensor(value)])[1]

    one = tf.function(lambda v: ranks.allreduce_sum([v])[0], autograph=False)
    two = tf.function(lambda v: ranks.allreduce_sum([v])[0], autograph=False)

    @tf.function(autograph=False)
    def both():
        return one(late(1.0, ranks.rank == 0)), two(late(10.0, ranks.rank == 1))

    @tf.function(autograph=False)
    def in_conditions():
        sums = []
        for value, rank in ((1.0, 0), (10.0, 1)):
            operand = late(value, ranks.rank == rank)
            sums.append(tf.cond(operand > 0.0, lambda v=operand: ranks.allreduce_sum([v])[0], lambda v=operand: v))
        return sums

    @tf.function(autograph=False)
    def in_a_loop():
        body = lambda i, total: (i + 1, total + ranks.allreduce_sum([tf.cast(i, tf.float32)])[0])  # noqa: E731
        return tf.while_loop(lambda i, _: i < 20, body, [0, 0.0], parallel_iterations=10)[1]

    @tf.function(autograph=False)
    def apart():
        # Only the counter of the loop connects its iterations.
        array = tf.TensorArray(tf.float32, 20)
        body = lambda i, a: (i + 1, a.write(i, ranks.allreduce_sum([tf.cast(i, tf.float32)])[0]))  # noqa: E731
        return tf.while_loop(lambda i, _: i < 20, body, [0, array], parallel_iterations=10)[1].stack()

    return {
        "functions": [float(v) for v in both()],
        "conditions": [float(v) for v in in_conditions()],
        "loop": float(in_a_loop()),
        "apart": [float(v) for v in apart()],
    }


@misuse
def other_calls(ranks, folder):
    ranks.allgather_object(ranks.rank, "apples" if ranks.rank else "pears")


@misuse
def gather_of_a_scalar(ranks, folder):
    ranks.allgather(tf.constant(1.0))


@misuse
def root_that_is_no_rank(ranks, folder):
    ranks.broadcast([tf.constant(1.0)], root_rank=ranks.size)
