"""Times the training iteration, on a batch that stays on the device, against the machine's rate of float32 matrix products.

    python benchmarks/train_step.py --dataset cifar10 --precision float32 --batch-size 128

The iteration is the one that train.py runs, Model.train_step, after warm-up; the operations are those it needs (flops.py).
With several --gpu-ids the batch is that of all together. With --loop also the training loop around it: how much longer an
iteration takes in `training.run`, input, progress and logs included, and how long the loop itself keeps the host busy, seen
with a step that does nothing.

The last line is a JSON object. Rates are medians over the timed iterations; the loop's figures are means.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.common import finish, flops_per_image, prepared_model, random_images
from src import devices, options, training
from src.backend import tf
from src.data import DATASETS
from src.model import Model


def seconds(function, times):
    """How long each of `times` calls takes until its result is on the host."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        tf.nest.map_structure(lambda tensor: tensor.numpy(), function())
        taken.append(time.perf_counter() - start)
    return taken


def matrix_product(side, precision="float32"):
    """Returns a function that multiplies two matrices of (side, side) and hands back one number."""
    a, b = (tf.cast(tf.random.stateless_normal((side, side), (1, seed)), precision) for seed in (1, 2))
    return tf.function(lambda: tf.matmul(a, b)[0, 0])


def peak_memory():
    """Bytes: of the GPU's memory, or on the CPU of the process's own."""
    if tf.config.get_visible_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_the_loop(arguments, step=None):
    """Runs the training loop on generated images, with `step` in place of Model.train_step if one is given.

    Returns: seconds that an iteration takes, and those of them in which the loop's thread computes outside of the step.
    """
    marks = []

    class Marked(Model):
        """Notes when an iteration is handed out, and what the loop's thread has computed outside of it."""

        def prepare_training(self, *args, **kwargs):
            super().prepare_training(*args, **kwargs)
            bare, inside = step or self.train_step, 0.0

            def marked(images):
                nonlocal inside
                marks.append((time.perf_counter(), time.thread_time() - inside))
                start = time.thread_time()
                scalars = bare(images)
                inside += time.thread_time() - start
                return scalars

            self.train_step = marked

    with tempfile.TemporaryDirectory() as folder:
        iterations = arguments.warm_up + (arguments.iterations if step is None else 1000)
        images = random_images(4 * arguments.batch_size, arguments.size)
        names = [str(i) for i in range(len(images))]
        DATASETS["generated"] = type(
            "Generated",
            (DATASETS["demo"],),
            {"network": arguments.dataset, "size": arguments.size, "load": lambda *_: (images, names)},
        )
        command = ["--dataset=generated", f"--checkpoints-path={folder}", "--seed=1", f"--epochs={-(-iterations // 4)}"]
        command += [f"--{name}=False" for name in ("save", "sample", "validate")]
        command += [f"--filters={arguments.filters if step is None else 1}", f"--batch-size={arguments.batch_size}"]
        command += [f"--precision={arguments.precision}", f"--jit={arguments.jit}", f"--gpu-ids={arguments.gpu_ids}"]
        before, training.Model = training.Model, Marked
        try:
            training.run(options.parse(command, "train", DATASETS))
        finally:
            training.Model = before
    (begin, busy), (end, busy_then) = marks[arguments.warm_up], marks[-1]
    count = len(marks) - 1 - arguments.warm_up
    return (end - begin) / count, (busy_then - busy) / count


def read(arguments):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", choices=["cifar10", "places365"], default="cifar10")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    parser.add_argument("--tf32", type=options.boolean, default=True, help="let GPUs round float32 products to TF32")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--jit", choices=["auto", "True", "False"], default="auto")
    parser.add_argument("--gpu-ids", default="0", help="as train.py's; -1: the CPU")
    parser.add_argument("--iterations", type=int, default=10, help="timed ones")
    parser.add_argument("--warm-up", type=int, default=3, help="iterations before")
    parser.add_argument("--matrix", type=int, default=4096, help="side of the matrices")
    parser.add_argument(
        "--matrix-precision",
        choices=["float32", "same"],
        default="float32",
        help="same: multiply matrices in the iteration's precision, not in float32",
    )
    parser.add_argument("--loop", action="store_true", help="time the training loop as well")
    parser.add_argument("--profile", metavar="FOLDER", help="write TensorFlow's profile of one more iteration, for XProf")
    return parser.parse_args(arguments)


def bare(arguments, strategy):
    """Times the iteration and matrix products -> the result, and the compiled iteration as a function without arguments."""
    model = prepared_model(
        arguments.dataset,
        arguments.filters,
        devices.precision(arguments.precision),
        devices.jit(options.boolean_or_auto(arguments.jit), strategy),
        strategy=strategy,
    )
    arguments.size, replicas = model.size, strategy.num_replicas_in_sync
    images = tf.constant(random_images(arguments.batch_size // replicas, model.size))
    if replicas > 1:
        images = strategy.experimental_distribute_values_from_function(lambda _, part=images: part)
    matrices = "float32" if arguments.matrix_precision == "float32" else model.precision
    product = matrix_product(arguments.matrix, matrices)

    def step():
        return {name: strategy.experimental_local_results(value)[0] for name, value in model.train_step(images).items()}

    seconds(product, 2)
    warm_up = seconds(step, arguments.warm_up)
    # The matrix product before and after, for the machine's clock may change in between.
    products = seconds(product, 5)
    steps = seconds(step, arguments.iterations)
    products += seconds(product, 5)
    median = statistics.median(steps)
    result = {
        "dataset": arguments.dataset,
        "precision": model.precision,
        "batch_size": arguments.batch_size,
        "images_per_s": arguments.batch_size / median,
        "flops_per_s": flops_per_image(model) * arguments.batch_size / median,
        "matrix_flops_per_s": 2 * arguments.matrix**3 * replicas / statistics.median(products),
    }
    result["ratio"] = result["flops_per_s"] / result["matrix_flops_per_s"]
    return {
        **result,
        "device": devices.describe(),
        "replicas": replicas,
        "jit": model.jit,
        "tf32": arguments.tf32,
        "matrix_precision": matrices,
        "gflop_per_image": flops_per_image(model) / 1e9,
        "peak_memory_mb": peak_memory() / 1e6,
        "ms_per_iteration": 1e3 * median,
        "ms_mean": 1e3 * statistics.mean(steps),
        "ms_least": 1e3 * min(steps),
        "ms_most": 1e3 * max(steps),
        "first_iteration_s": warm_up[0] if warm_up else None,
    }, step


def main(arguments=None):
    arguments = read(arguments)
    strategy = devices.select(options.gpu_ids(arguments.gpu_ids))
    tf.config.experimental.enable_tensor_float_32_execution(arguments.tf32)
    result, step = bare(arguments, strategy)
    print(
        f"{arguments.dataset}, {result['precision']}, batches of {arguments.batch_size}, on {result['device']}: "
        f"{result['images_per_s']:.1f} images/s, {result['flops_per_s'] / 1e9:.1f} GFLOP/s; a {result['matrix_precision']} "
        f"matrix product {result['matrix_flops_per_s'] / 1e9:.1f} GFLOP/s; ratio {result['ratio']:.3f}",
        flush=True,
    )
    if arguments.profile:
        with tf.profiler.experimental.Profile(arguments.profile):
            seconds(step, 1)
    if arguments.loop:
        whole, _ = in_the_loop(arguments)
        mean = result["ms_mean"] / 1e3  # as the loop's, for what the loop does besides does not fall on every iteration
        scalars = step()
        _, host = in_the_loop(arguments, lambda images: scalars)
        result |= {
            "loop_ms_per_iteration": 1e3 * whole,
            "bare_ms_per_iteration": 1e3 * mean,
            "loop_share": whole / mean - 1,
            "host_ms_per_iteration": 1e3 * host,
        }
        print(
            f"In the training loop an iteration takes {1e3 * whole:.1f} ms on average, bare {1e3 * mean:.1f} "
            f"({100 * result['loop_share']:+.1f}%); the loop keeps the host's thread busy for {1e3 * host:.2f} ms of it"
        )
    return finish(result)


if __name__ == "__main__":
    main()
