"""Which devices compute, in which precision, and how repeatably."""

import contextlib
import os
import tempfile

from src.errors import InputError


@contextlib.contextmanager
def _quiet():
    """Holds back what is written to stderr; shows it after all if the block fails."""
    with tempfile.TemporaryFile() as held:
        stderr = os.dup(2)
        try:
            os.dup2(held.fileno(), 2)
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


# TensorFlow greets with a screenful about CUDA before anything can turn it down; our own messages would drown in it.
with contextlib.nullcontext() if "TF_CPP_MIN_LOG_LEVEL" in os.environ else _quiet():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    tf.config.list_physical_devices("GPU")


def select(gpu_ids, deterministic=False):
    """Chooses the devices for this process; to be called before TensorFlow computes anything.

    Args:
        gpu_ids: list of int; empty: the CPU. Without any visible GPU, one line says so and the CPU is taken.
        deterministic: the same bits in every run: TensorFlow's deterministic kernels, and on the CPU one thread, since
            with more the order of sums varies.
    Returns: a tf.distribute.Strategy. InputError if there is no such GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpu_ids and not gpus:
        why = " (TF_CPP_MIN_LOG_LEVEL=0 shows why)" if os.path.exists("/proc/driver/nvidia") else ""
        print(f"No GPU is visible to TensorFlow{why}: going on on the CPU.", flush=True)
    elif gpu_ids and max(gpu_ids) >= len(gpus):
        raise InputError(f"--gpu-ids {','.join(map(str, gpu_ids))}: this machine has GPUs 0 to {len(gpus) - 1}")
    chosen = [gpus[i] for i in gpu_ids] if gpus else []
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        tf.config.experimental.set_memory_growth(gpu, True)  # the rest of the GPU stays free for others
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        if not chosen:
            tf.config.threading.set_inter_op_parallelism_threads(1)
            tf.config.threading.set_intra_op_parallelism_threads(1)
    return tf.distribute.MirroredStrategy() if len(chosen) > 1 else tf.distribute.get_strategy()


def _gpu():
    visible = tf.config.get_visible_devices("GPU")
    return visible[0] if visible else None


def precision(wish):
    """The --precision to compute in: "auto" is bfloat16 on GPUs that have it (compute capability 8 on), else float32."""
    if wish != "auto":
        return wish
    capability = tf.config.experimental.get_device_details(_gpu()).get("compute_capability", (0,)) if _gpu() else (0,)
    return "bfloat16" if capability[0] >= 8 else "float32"


def jit(wish, strategy):
    """Whether to compile with XLA: "auto" is on one GPU. On CPUs its convolutions are several times slower."""
    several = strategy.num_replicas_in_sync > 1
    if wish is True and several:
        raise InputError("--jit True: only on one device; replicas meet in the middle of an iteration")
    return _gpu() is not None and not several if wish == "auto" else wish


def describe():
    """The devices' names for people, such as "NVIDIA H200" or "CPU"."""
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
             for gpu in tf.config.get_visible_devices("GPU")]
    return ", ".join(names) or "CPU"
