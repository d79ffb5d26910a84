"""The memory that a process of a test's has needed."""


def peak():
    """KB at most so far. What resource.getrusage tells would also count those of the process that started this one."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM:")).split()[1])
