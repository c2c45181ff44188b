"""What code in a container tries in order to get out. Runs inside; each returns what it managed, so [] is isolation.

Standard library only: this file is the bundle of the containers under test. T-numbers: docs/explanation/isolation.md.
"""

import ctypes
import errno
import os
import re
import resource
import signal
import socket
import stat
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
ALLOWED_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"}
ALLOWED_DEVICES |= {"fd", "stdin", "stdout", "stderr"}
OWN_VARIABLES = re.compile(
    r"(PATH|HOME|LANG|PYTHONPATH|TMPDIR|SQUALL_\w+|MODAL_(IS_REMOTE|IMAGE_ID|TASK_ID)|(CUDA|NVIDIA)_VISIBLE_DEVICES"
    r"|\w+_NUM_THREADS|VECLIB_MAXIMUM_THREADS)\Z"
)
BASIC = 0x800005FB
NEW_USER = 0x10000000
# x86-64; what a container must not be able to ask the kernel for.
CALLS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "ptrace": 101, "bpf": 321,
    "keyctl": 250, "add_key": 248, "userfaultfd": 323, "io_uring_setup": 425, "perf_event_open": 298,
    "init_module": 175, "kexec_load": 246, "open_by_handle_at": 304, "open_tree": 428, "fsopen": 430,
    "mount_setattr": 442, "process_vm_readv": 310, "swapon": 167, "reboot": 169, "settimeofday": 164,
    "sethostname": 170, "chroot": 161, "fanotify_init": 300, "iopl": 172, "quotactl": 179, "memfd_secret": 447,
    "modify_ldt": 154,
}  # fmt: skip


def environment():
    """T21: variables, other processes, the agent's memory."""
    got = [f"variable {name}" for name in os.environ if not OWN_VARIABLES.match(name)]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    got += [f"sees process {pid}" for pid in pids if pid not in (1, os.getpid())]
    for name in ("environ", "mem", "maps") if os.getpid() != 1 else ():
        got += _reads(f"/proc/1/{name}")
    return got


def network(targets):
    """T22 to T24: listeners of the host, of other containers, of a cloud; abstract unix sockets."""
    got = []
    for family, address in targets:
        with socket.socket(socket.AddressFamily[family]) as sock:
            sock.settimeout(1)
            try:
                sock.connect(tuple(address) if isinstance(address, list) else address)
                got.append(f"reached {address}")
            except OSError:
                pass
    return got


def files(canary):
    """T26: files of the host, and writes outside of its own layer."""
    if os.path.exists(canary):
        return [f"reads {canary}"]
    got = []
    for folder, _, names in os.walk("/", onerror=None):
        if folder.startswith(("/proc", "/sys")):
            continue
        if os.path.basename(canary) in names:
            got.append(f"found the canary in {folder}")
    import squall_runner

    for path in (squall_runner.__file__, "/proc/sys/kernel/core_pattern", "/sys/kernel/mm/ksm/run"):
        try:
            with open(path, "r+b"):
                got.append(f"opens {path} for writing")
        except OSError:
            pass
    return got


def kernel(own_kernel=False):
    """T27: rights, and calls that reach beyond the container. Ids of a kernel of one's own mean nothing outside."""
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    got = ["is root of the host"] if not own_kernel and _host_id() == 0 else []
    got += [f"{name} {status[name]}" for name in ("CapEff", "CapPrm", "CapBnd") if int(status[name], 16) & ~BASIC]
    got += [] if LIBC.prctl(39, 0, 0, 0, 0) == 1 else ["may gain privileges"]
    got += [] if status["Seccomp"] == "2" else ["has no filter"]
    for name, number in CALLS.items():
        code = _call(number)
        if code not in (errno.EPERM, errno.ENOSYS):
            got.append(f"{name}: {errno.errorcode.get(code, code)}")
    for family in set(range(46)) - {1, 2, 10, 16}:
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
            got.append(f"sockets of family {family}")
        except OSError as error:
            refused = (errno.EPERM, errno.EAFNOSUPPORT) if own_kernel else (errno.EPERM,)
            got += [] if error.errno in refused else [f"sockets of family {family}: {error}"]
    return got


def clones():
    """T27: new user namespaces by clone and clone3; another machine's calls."""
    got = []
    if _child(lambda: os._exit(0 if LIBC.syscall(56, NEW_USER | signal.SIGCHLD, 0, 0, 0, 0) < 0 else 1)) != 0:
        got.append("clone makes user namespaces")
    if LIBC.syscall(435, ctypes.create_string_buffer(64), 64) >= 0 or ctypes.get_errno() != errno.ENOSYS:
        got.append("clone3 is there")
    if _child(lambda: LIBC.syscall(0x40000000 | 39)) != -signal.SIGSYS:
        got.append("x32 calls are looked at by number alone")
    if _child(_call_as_32_bit) != -signal.SIGSYS:
        got.append("32-bit calls are looked at by number alone")
    return got


def _host_id():
    """What the user of this process is outside."""
    with open("/proc/self/uid_map") as file:
        for inside, outside, count in (map(int, line.split()) for line in file):
            if 0 <= os.getuid() - inside < count:
                return outside + os.getuid() - inside
    return None


def devices(own_kernel=False):
    """T28, T47: device nodes, and files of the kernel that command it."""
    own = {"net", "fuse"} if own_kernel else set()  # gVisor's
    got = [f"/dev/{name}" for name in os.listdir("/dev") if name not in ALLOWED_DEVICES | own]
    try:
        if own_kernel:
            raise OSError  # the nodes that it makes are its own devices, too
        os.mknod("/tmp/squall-null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        got.append("makes device nodes")
        os.unlink("/tmp/squall-null")
    except OSError:
        pass
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/kernel/uevent_helper"):
        try:
            os.close(os.open(path, os.O_WRONLY))
            got.append(f"may write {path}")
        except OSError:
            pass
    for path in ("/proc/kcore", "/proc/keys", "/sys/firmware/acpi/tables/DSDT", "/proc/timer_list"):
        got += _reads(path)
    return got


def forks(count):
    """T29: how many processes it can have."""
    pids = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                signal.pause()
            pids.append(pid)
        return [f"started {count} processes"]
    except OSError as error:
        return [] if error.errno == errno.EAGAIN else [str(error)]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def disk(mib):
    """T31: how much it can write, in its root and in shared memory; how many files it can have."""
    got = []
    for folder in ("/root", "/tmp", "/dev/shm"):
        path = f"{folder}/squall-much"
        try:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, mib << 20)
            got.append(f"{mib} MiB in {folder}")
        except OSError as error:
            got += [] if error.errno in (errno.ENOSPC, errno.ENOMEM) else [f"{folder}: {error}"]
        finally:
            if os.path.exists(path):
                os.unlink(path)
    return got


def descriptors(count):
    """T32: how many files a process can have open."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    got = [] if most < count else [f"may have {most} files open"]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, most + 1))
        got.append("raises its limits")
    except (OSError, ValueError):
        pass
    return got


def listen():
    """A listener on all addresses of this container, as it knows them."""
    server = socket.create_server(("", 0))
    globals()["_server"] = server
    return server.getsockname()[1], socket.gethostname()


def interfaces():
    """T25: its network interfaces, and whether it can ask for names."""
    try:
        socket.getaddrinfo("example.org", 80)
        return [*sorted(os.listdir("/sys/class/net")), "resolves names"]
    except OSError:
        return sorted(os.listdir("/sys/class/net"))


def address(target):
    """Of its end of the way to somewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target, 9))
        return sock.getsockname()[0]


def fill_memory(mib, how):
    """T30: takes memory until the kernel objects."""
    if how == "anonymous":
        kept = bytearray(mib << 20)
        for place in range(0, len(kept), 4096):
            kept[place] = 1
    else:
        with open(f"{how}/squall-much", "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))


def forge(what):
    """T33: words to the agent that the runner never says."""
    import gc
    import time

    from squall_runner.frames import FromRunner, encode

    frames = {
        "junk": b"\xff" * 64,
        "huge": struct.pack("!BIQ", FromRunner.LOG, 2, 1 << 32) + b"{}",
        "path": encode(FromRunner.OUTPUT, {"call": "fc-evil", "index": 0, "items": 0, "file": "../../../etc/passwd"}),
        "other": encode(FromRunner.FAILED, {"call": "fc-of-somebody-else", "index": 0}),
    }
    sock = next(found for found in gc.get_objects() if isinstance(found, socket.socket) and found.fileno() > 2)
    os.write(sock.fileno(), frames[what])
    time.sleep(0.5)
    return "still here"


def _reads(path):
    try:
        with open(path, "rb") as file:
            return [f"reads {path}"] if file.read(64) else []
    except OSError:
        return []


def _call(number):
    """The errno of a call without sense in its arguments; in a child, in case that it is granted."""
    read, write = os.pipe()

    def attempt():
        result = LIBC.syscall(number, 0, 0, 0, 0, 0, 0)
        os.write(write, struct.pack("i", ctypes.get_errno() if result < 0 else 0))

    _child(attempt)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read(4)
    return struct.unpack("i", data)[0] if data else -1


def _child(attempt):
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _call_as_32_bit():
    import mmap

    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


def attack(name, *args):
    """One of them by name."""
    return globals()[name](*args)
