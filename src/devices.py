"""Which devices compute, on one machine or several, in which precision, and how repeatably."""

import contextlib
import functools
import itertools
import os
import signal
import socket
import time

from src.backend import tf
from src.errors import InputError

connected = False  # to other workers


def cluster():
    """The workers of which this process is one, as TF_CONFIG or a Slurm step of several tasks tells.

    Returns: None if it is alone, else the first arguments of a tf.distribute.cluster_resolver.SimpleClusterResolver.
    InputError if it cannot be told which worker this is.
    """
    resolvers, told = tf.distribute.cluster_resolver, os.environ.get("TF_CONFIG")
    try:
        if told:
            resolver = resolvers.TFConfigClusterResolver()
        elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            # Ports by the job's number, since two may share a machine; which GPUs is for --gpu-ids to say.
            resolver = resolvers.SlurmClusterResolver(
                port_base=20_000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 10_000,
                gpus_per_node=1024,
                gpus_per_task=1,
                auto_set_gpu=False,
            )
        else:
            return None
        spec = resolver.cluster_spec()
        if sum(map(spec.num_tasks, spec.jobs)) < 2:
            return None
        kind, number = resolver.task_type, int(resolver.task_id)
        host, node = spec.task_address(kind, number).rsplit(":", 1)[0], os.environ.get("SLURMD_NODENAME")
        if not set(spec.jobs) <= {"chief", "worker"}:
            raise ValueError(f"its jobs are {', '.join(spec.jobs)}, and can be chief and worker")
        for address in itertools.chain.from_iterable(map(spec.job_tasks, spec.jobs)):
            name, _, port = address.rpartition(":")
            if not name or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
                raise ValueError(f"{address} is no HOST:PORT with a port from 1 to 65535")
        if not told and node not in (None, host):  # it sorts n10 before n2
            raise ValueError(f"TensorFlow takes {host} for worker {number}, which is on {node}; name the workers in TF_CONFIG")
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{'TF_CONFIG' if told else 'Slurm'} does not tell which of several workers this is ({error}); see "
            '"Several machines" in docs/training.md'
        ) from error
    return {"cluster_spec": spec, "task_type": kind, "task_id": number}


def select(gpu_ids, deterministic=False, workers=None):
    """Chooses the devices for this process; to be called before TensorFlow computes anything.

    Args:
        gpu_ids: list of int, of this machine; empty: the CPU. Without any visible GPU, one line says so and the CPU is taken.
        deterministic: the same bits in every run: TensorFlow's deterministic kernels, and on the CPU one thread, since
            with more the order of sums varies.
        workers: what `cluster` returned, to wait for the others and compute with them.
    Returns: a tf.distribute.Strategy. InputError if there is no such GPU.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpu_ids and not gpus:
        why = " (TF_CPP_MIN_LOG_LEVEL=0 shows why; see docs/gpu.md)" if os.path.exists("/proc/driver/nvidia") else ""
        print(f"No GPU is visible to TensorFlow{why}: going on on the CPU.", flush=True)
    elif gpu_ids and max(gpu_ids) >= len(gpus):
        raise InputError(f"--gpu-ids {','.join(map(str, gpu_ids))}: this machine has GPUs 0 to {len(gpus) - 1}")
    chosen = [gpus[i] for i in gpu_ids] if gpus else []
    tf.config.set_visible_devices(chosen, "GPU")
    for gpu in chosen:
        tf.config.experimental.set_memory_growth(gpu, True)  # the rest of the GPU stays free for others
        if _capability(gpu)[0] > _newest_built_for():
            print(
                f"{gpu.name} has compute capability {'.'.join(map(str, _capability(gpu)))}, newer than this TensorFlow was "
                "built for: it may fail; see docs/gpu.md.",
                flush=True,
            )
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        if not chosen:
            tf.config.threading.set_inter_op_parallelism_threads(1)
            tf.config.threading.set_intra_op_parallelism_threads(1)
    if workers:
        return _connect(workers, len(chosen))
    # By name, since of its own it would look into TF_CONFIG.
    several = [f"GPU:{i}" for i in range(len(chosen))]
    return tf.distribute.MirroredStrategy(several) if len(chosen) > 1 else tf.distribute.get_strategy()


def _connect(workers, gpus):
    """The strategy of this worker, once all are there."""
    global connected
    _wait_for_all(workers)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if handlers[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python cannot hear Ctrl-C while TensorFlow connects
    strategy = tf.distribute.MultiWorkerMirroredStrategy(
        tf.distribute.cluster_resolver.SimpleClusterResolver(**workers, num_accelerators={"GPU": gpus}, rpc_layer="grpc")
    )
    for number, handler in handlers.items():
        signal.signal(number, handler)  # TensorFlow has one of its own in SIGTERM's place, which ignores it
    connected = True
    return strategy


def _wait_for_all(workers):
    """Returns when each of the other workers' ports has answered, to this function there or already to TensorFlow.

    TensorFlow would wait as well, but with a handler of its own that ignores SIGTERM, and without letting Python run.
    """
    spec = workers["cluster_spec"]
    own = spec.task_address(workers["task_type"], workers["task_id"])
    others = [address for job in spec.jobs for address in spec.job_tasks(job) if address != own]
    both = socket.has_dualstack_ipv6()
    try:
        listening = socket.create_server(
            ("", int(own.rpartition(":")[2])), dualstack_ipv6=both, family=socket.AF_INET6 if both else socket.AF_INET
        )
    except OSError as error:
        raise InputError(
            f"this worker's address {own} is not free on this machine ({error.strerror}); is another run using "
            "it? Choose another port, in TF_CONFIG on all workers"
        ) from error
    with listening:
        for address in others:
            host, _, port = address.rpartition(":")
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                    break
                time.sleep(0.2)


def is_chief(strategy):
    """Whether this process is the one that writes and prints: the first of several workers, or the only one."""
    return strategy.extended.should_checkpoint


def several_workers(strategy):
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def total(strategy, values):
    """The sums of numbers or arrays (or a list of them) over all workers, which wait for each other here; if there is but
    one worker, the values."""
    return _summing(strategy)(tf.nest.map_structure(tf.convert_to_tensor, values)) if several_workers(strategy) else values


@functools.cache  # compiled once; run eagerly, it would leave a pool of threads behind when a worker is lost
def _summing(strategy):
    return tf.function(
        lambda values: tf.nest.map_structure(lambda value: strategy.reduce("SUM", value, axis=None), values), autograph=False
    )


def from_chief(strategy, values):
    """The chief's numbers or arrays, on every worker; those of the others must have their shapes and types."""
    return total(strategy, values if is_chief(strategy) else tf.nest.map_structure(tf.zeros_like, values))


@contextlib.contextmanager
def lost_workers_told():
    """Makes one InputError of what TensorFlow raises in the block when another worker has ended or is not to be reached.

    It notices by a connection that breaks, at once, or by ten seconds without a sign of life.
    """
    try:
        yield
    except tf.errors.OpError as error:
        # Besides Unavailable there are Internal, Cancelled and others, of a collective that is aborted and while connecting.
        lost = "Collective ops is aborted" in str(error) or "CoordinationService" in str(error)
        # XLA without its compiler says Unavailable as well.
        if not (lost or (isinstance(error, tf.errors.UnavailableError) and not explained(error))):
            raise
        raise InputError(
            "another worker has ended or cannot be reached, and training needs all; that worker's own messages "
            "may say why. The same commands, on all workers, go on from the last save"
        ) from error


# What the GPU's libraries say when something is missing -> what to do.
GPU_FAULTS = {
    "No PTX compilation provider": 'XLA finds no ptxas: pip install "tensorflow[and-cuda]", or compile without it: --jit False',
    "libdevice not found": 'XLA finds no libdevice: pip install "tensorflow[and-cuda]", or compile without it: --jit False',
    "DNN library initialization failed": "cuDNN does not start: another version is found first, or the GPU's memory is full",
    "No DNN in stream executor": "cuDNN does not start: another version is found first, or the GPU's memory is full",
    "CUDA_ERROR_INVALID_PTX": "TensorFlow has no kernels for this GPU",
    "CUDA_ERROR_INVALID_HANDLE": "TensorFlow has no kernels for this GPU",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "the NVIDIA driver is older than CUDA's kernels",
    "NCCL": "the GPUs cannot talk to each other",
}


def explained(error):
    """The InputError that tells a user what to do about an exception of TensorFlow's, or None."""
    if isinstance(error, tf.errors.ResourceExhaustedError) and "alloc" in str(error).lower():  # a full disk says it, too
        return InputError("the device has not enough memory; a smaller --batch-size needs less. docs/gpu.md tells more")
    if isinstance(error, tf.errors.OpError):
        for words, cure in GPU_FAULTS.items():
            if words in str(error):
                return InputError(f"{cure}. docs/gpu.md tells more. TensorFlow said: ...{words}...")
    return None


def _gpu():
    visible = tf.config.get_visible_devices("GPU")
    return visible[0] if visible else None


def _capability(gpu):
    """Compute capability of a GPU, e.g. (9, 0)."""
    return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))


def _newest_built_for():
    """The newest major compute capability that this TensorFlow has kernels for."""
    built = tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])  # such as "sm_80", "compute_90"
    return max((int(name.rpartition("_")[2]) // 10 for name in built), default=99)


def precision(wish, inference=False):
    """The --precision to compute in: "auto" is bfloat16 on GPUs that have it (compute capability 8 on), at inference also on
    CPUs that have it, else float32."""
    if wish != "auto":
        return wish
    has_it = _capability(_gpu())[0] >= 8 if _gpu() else inference and _cpu_has_bfloat16()
    return "bfloat16" if has_it else "float32"


def _cpu_has_bfloat16():
    """Whether the CPU multiplies bfloat16 itself; else it would be slower than float32. Told on Linux only."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def jit(wish, strategy):
    """Whether to compile with XLA: "auto" is on one GPU that it was built for: for a newer one it aborts the process. On CPUs
    its convolutions are several times slower."""
    several = strategy.num_replicas_in_sync > 1
    if wish is True and several:
        raise InputError("--jit True: only on one device; replicas meet in the middle of an iteration")
    if wish != "auto":
        return wish
    return _gpu() is not None and not several and _capability(_gpu())[0] <= _newest_built_for()


def describe(strategy=None):
    """The devices' names for people, such as "NVIDIA H200", "CPU" or "2 workers with CPU"."""
    names = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.get_visible_devices("GPU")
    ]
    workers = strategy.num_replicas_in_sync // max(1, len(names)) if strategy else 1
    return (f"{workers} workers with " if workers > 1 else "") + (", ".join(names) or "CPU")
