"""How many cores: each source on its own, on machines that are faked in a directory."""

import os
from contextvars import copy_context
from threading import Thread
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parmap import available_cores, cores

V2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
# What stands around it on a hybrid machine.
OTHERS = (
    "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "31 23 0:28 / /sys/fs/cgroup rw shared:3 master:1 - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
)
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"


def write(root, path, text):
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())


def v2(root, mounts=V2, group="/a/b", quotas=None):
    """A machine with mounts, this process's cgroup, and quotas by directory."""
    write(root, "/proc/self/mountinfo", mounts)
    write(root, "/proc/self/cgroup", f"0::{group}\n")
    for directory, text in (quotas or {}).items():
        write(root, f"{directory}/cpu.max", text)
    return str(root)


def v1(root, mounts=V1, group="/a/b", quotas=None, controllers="cpu,cpuacct"):
    write(root, "/proc/self/mountinfo", OTHERS + mounts)
    write(root, "/proc/self/cgroup", f"5:cpuset:/other\n4:{controllers}:{group}\n")
    for directory, (quota, period) in (quotas or {}).items():
        write(root, f"{directory}/cpu.cfs_quota_us", quota)
        write(root, f"{directory}/cpu.cfs_period_us", period)
    return str(root)


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """64 cores, and nothing else that limits them."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(cores, "_ROOT", str(tmp_path))
    monkeypatch.setattr(cores, "_granted", None)
    return monkeypatch


def batch(environ, root="/nowhere"):
    return {k: v for k, v in cores._batch_system(str(root), environ).items() if v is not None}


# the machine and the mask


def test_the_real_machine():
    assert 1 <= available_cores() <= os.cpu_count()
    assert available_cores(explain=True)["machine"] == os.cpu_count()


def test_nothing_limits(bare):
    assert available_cores() == 64
    assert available_cores(explain=True) == {"machine": 64, "affinity mask": 64}


@pytest.mark.parametrize(("count", "mask", "n"), [(8, 3, 3), (2, 3, 2), (None, 3, 3), (8, 0, 1)])
def test_machine_and_mask(bare, count, mask, n):
    bare.setattr(os, "cpu_count", lambda: count)
    bare.setattr(os, "sched_getaffinity", lambda pid: set(range(mask)))
    assert available_cores() == n


def test_a_system_without_masks(bare):
    bare.delattr(os, "sched_getaffinity")
    assert available_cores(explain=True) == {"machine": 64}


def test_a_mask_that_cannot_be_read(bare):
    def refuse(pid):
        raise PermissionError

    bare.setattr(os, "sched_getaffinity", refuse)
    assert available_cores(explain=True) == {"machine": 64}


def test_nobody_knows_anything(bare):
    bare.delattr(os, "sched_getaffinity")
    bare.setattr(os, "cpu_count", lambda: None)
    assert available_cores(explain=True) == {}
    assert available_cores() == 1


# cgroup v2


@pytest.mark.parametrize(
    ("quotas", "found"),
    [
        ({"/a/b": "200000 100000\n"}, ("/a/b", 2)),
        ({"/a/b": "150000 100000\n"}, ("/a/b", 1.5)),
        ({"/a/b": "5000 10000\n"}, ("/a/b", 0.5)),
        ({"/a/b": "max 100000\n", "/a": "300000 100000\n"}, ("/a", 3)),
        ({"/a/b": "400000 100000\n", "/a": "300000 100000\n"}, ("/a", 3)),
        ({"/a/b": "200000 100000\n", "/a": "300000 100000\n"}, ("/a/b", 2)),
        ({"/a/b": "400000 100000\n", "": "100000 100000\n"}, ("", 1)),
        ({"/a/b": "max 100000\n"}, None),
        ({"/a/b/c": "100000 100000\n", "/other": "100000 100000\n"}, None),
        ({}, None),
    ],
)
def test_v2(tmp_path, quotas, found):
    top = "/sys/fs/cgroup"
    root = v2(tmp_path, quotas={top + path: text for path, text in quotas.items()})
    expected = {f"cgroup v2 quota of {top}{found[0]}": found[1]} if found else {}
    assert cores._quotas(root) == expected


GARBAGE = [
    b"",
    b"\n",
    b"nonsense",
    b"200000",
    b"0 100000",
    b"-1 100000",
    b"200000 0",
    b"2e5 1e5",
    b"1 2 3",
    b"\xff\xfe \x00",
    b"9" * 400 + b" 1",
    b"9" * 5000 + b" 1",
]


@pytest.mark.parametrize("text", GARBAGE)
def test_v2_garbage_says_nothing(tmp_path, text):
    assert cores._quotas(v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": text})) == {}


@pytest.mark.parametrize("file", ["proc/self/mountinfo", "proc/self/cgroup"])
def test_a_file_that_cannot_be_read(tmp_path, file):
    root = v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": "200000 100000"})
    assert cores._quotas(root)
    (tmp_path / file).unlink()
    assert cores._quotas(root) == {}
    (tmp_path / file).mkdir()
    assert cores._quotas(root) == {}


def test_a_quota_that_cannot_be_read_hides_no_other(tmp_path):
    root = v2(tmp_path, quotas={"/sys/fs/cgroup/a": "200000 100000"})
    (tmp_path / "sys/fs/cgroup/a/b/cpu.max").mkdir(parents=True)
    assert cores._quotas(root) == {"cgroup v2 quota of /sys/fs/cgroup/a": 2}


@pytest.mark.parametrize("file", ["mountinfo", "cgroup"])
@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" - ",
        b"0:",
        b"::",
        b"a - b",
        b"\xff\x00\n",
        b"1 2 3 / /x\\9 rw - cgroup2 none rw",
        b"1 2 3 / /x\x00 rw - cgroup2 none rw",
    ],
)
def test_garbage_in_proc(tmp_path, file, text):
    root = v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": "200000 100000"})
    write(tmp_path, f"/proc/self/{file}", text)
    assert cores._quotas(root) == {}


def test_garbage_hides_no_other_line(tmp_path):
    root = v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": "200000 100000"})
    mounts = b"nonsense\n\n1 2 3 / /\xff\\9 rw - cgroup2 none rw\n" + V2.encode()
    write(tmp_path, "/proc/self/mountinfo", mounts)
    write(tmp_path, "/proc/self/cgroup", b"nonsense\n\n9:\xff:/\n0::/a/b\n")
    assert cores._quotas(root) == {"cgroup v2 quota of /sys/fs/cgroup/a/b": 2}


@given(st.text())
def test_no_text_is_too_odd(text):
    for version in ("v1", "v2"):
        list(cores._directories(text, cores._mounts(version, [V1 + text, text + V2])))
        cores._group(version, [text])
    number = cores._number(text)
    assert number is None or number > 0


# where cgroups are mounted


@pytest.mark.parametrize("escaped", [r"/my\040groups", r"/my\011groups", r"/my\134groups", "/é"])
def test_a_mount_point_with_odd_characters(tmp_path, escaped):
    point = escaped.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\134", "\\")
    mounts = f"29 23 0:26 / {escaped} rw - cgroup2 cgroup2 rw\n"
    root = v2(tmp_path, mounts, quotas={f"{point}/a/b": "200000 100000"})
    assert cores._quotas(root) == {f"cgroup v2 quota of {point}/a/b": 2}


def test_a_group_with_colons_and_spaces(tmp_path):
    group = "/a b/c:d\re"
    root = v2(tmp_path, group=group, quotas={f"/sys/fs/cgroup{group}": "200000 100000"})
    assert cores._quotas(root) == {f"cgroup v2 quota of /sys/fs/cgroup{group}": 2}


def inner(top):
    return f"29 23 0:26 {top} /sys/fs/cgroup ro - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(
    ("top", "group", "bound"),
    [
        ("/", "/", ""),  # a container with a namespace of its own
        ("/", "/own", "/own"),  # and a cgroup of its own in it
        ("/docker/123", "/docker/123", ""),  # without: a sub-path is mounted
        ("/docker/123", "/docker/123/own", "/own"),
        ("/docker/123", "/docker/1234", ""),  # what /proc names is not mounted
        ("/", "/docker/123", ""),  # nor here, though it might be
        ("/", "/../123", ""),  # it moved out of its namespace
        ("/..", "/", ""),
        ("/../box", "/../box/own", "/own"),
    ],
)
def test_container(tmp_path, top, group, bound):
    where = "/sys/fs/cgroup" + bound
    root = v2(tmp_path, inner(top), group, {where: "200000 100000"})
    write(tmp_path, "/sys/fs/123/cpu.max", "100000 100000")
    write(tmp_path, "/sys/fs/cgroup4/cpu.max", "100000 100000")
    assert cores._quotas(root) == {f"cgroup v2 quota of {where}": 2}


@pytest.mark.parametrize("first", [True, False])
def test_the_mount_that_has_the_own_cgroup_counts(tmp_path, first):
    other = "50 23 0:26 /docker/123 /var/lib/box rw - cgroup2 cgroup rw\n"
    mounts = V2 + other if first else other + V2
    quotas = {"/sys/fs/cgroup/a/b": "200000 100000", "/var/lib/box": "100000 100000"}
    root = v2(tmp_path, mounts, quotas=quotas)
    assert cores._quotas(root) == {"cgroup v2 quota of /sys/fs/cgroup/a/b": 2}


# cgroup v1, and both


@pytest.mark.parametrize("controllers", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
@pytest.mark.parametrize(
    ("quotas", "found"),
    [
        ({"/a/b": ("200000\n", "100000\n")}, ("/a/b", 2)),
        ({"/a/b": ("-1\n", "100000\n")}, None),
        ({"/a/b": ("-1\n", "100000\n"), "/a": ("25000\n", "50000\n")}, ("/a", 0.5)),
        ({"/a/b": ("300000\n", "100000\n"), "": ("100000\n", "100000\n")}, ("", 1)),
        ({"/a/b": ("x", "100000")}, None),
        ({"/a/b": ("200000", "")}, None),
        ({"/a/b": ("200000", "0")}, None),
    ],
)
def test_v1(tmp_path, controllers, quotas, found):
    top = f"/sys/fs/cgroup/{controllers}"
    mounts = V1.replace("cpu,cpuacct", controllers)
    found_at = {top + path: pair for path, pair in quotas.items()}
    root = v1(tmp_path, mounts, quotas=found_at, controllers=controllers)
    expected = {f"cgroup v1 quota of {top}{found[0]}": found[1]} if found else {}
    assert cores._quotas(root) == expected


def test_v1_in_a_container(tmp_path):
    mounts = V1.replace(" / /sys", " /docker/123 /sys")
    quotas = {"/sys/fs/cgroup/cpu,cpuacct": ("150000", "100000")}
    root = v1(tmp_path, mounts, "/docker/123", quotas)
    assert cores._quotas(root) == {"cgroup v1 quota of /sys/fs/cgroup/cpu,cpuacct": 1.5}


def test_other_controllers_have_no_say(tmp_path):
    quotas = {"/sys/fs/cgroup/cpuset/a/b": ("100000", "100000")}
    assert cores._quotas(v1(tmp_path, mounts="", quotas=quotas)) == {}
    assert cores._quotas(v1(tmp_path, quotas=quotas, controllers="cpuacct")) == {}


@pytest.mark.parametrize(("two", "one", "n"), [("3", "2", 2), ("2", "3", 2)])
def test_hybrid(bare, tmp_path, two, one, n):
    quotas = {"/sys/fs/cgroup/cpu,cpuacct/a/b": (f"{one}00000", "100000")}
    v1(tmp_path, V1 + UNIFIED, quotas=quotas)
    with (tmp_path / "proc/self/cgroup").open("a") as file:
        file.write("1:name=systemd:/c\n0::/c\n")
    write(tmp_path, "/sys/fs/cgroup/unified/c/cpu.max", f"{two}00000 100000")
    assert list(available_cores(explain=True).items())[2:] == [
        ("cgroup v2 quota of /sys/fs/cgroup/unified/c", float(two)),
        ("cgroup v1 quota of /sys/fs/cgroup/cpu,cpuacct/a/b", float(one)),
    ]
    assert available_cores() == n


@pytest.mark.parametrize(
    ("quota", "n"),
    [("150000", 2), ("50000", 1), ("100", 1), ("200000", 2), ("200001", 3), ("9900000", 64)],
)
def test_fractions_are_rounded_up(bare, tmp_path, quota, n):
    v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": f"{quota} 100000"})
    assert available_cores() == n


# batch systems


@pytest.mark.parametrize(
    "name",
    [
        "SLURM_CPUS_PER_TASK",
        "SLURM_CPUS_ON_NODE",
        "PBS_NUM_PPN",
        "NCPUS",
        "PBS_NCPUS",
        "PJM_VNODE_CORE",
        "NSLOTS",
        "LSB_DJOB_NUMPROC",
        "LSB_MAX_NUM_PROCESSORS",
        "PYTHON_CPU_COUNT",
        "OMP_NUM_THREADS",
    ],
)
def test_each_variable(bare, name):
    bare.setitem(os.environ, name, "3")
    assert available_cores() == 3
    assert list(available_cores(explain=True).items())[2:] == [(name, 3)]
    bare.setitem(os.environ, name, "99")
    assert available_cores() == 64
    for text in ("", "0", "-4", "many", "2.5", "default", "9" * 400, "4(x2)"):
        bare.setitem(os.environ, name, text)
        assert available_cores(explain=True) == {"machine": 64, "affinity mask": 64}


def test_a_slurm_step_that_got_less_than_its_job():
    assert batch({"SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "2"}) == {
        "SLURM_CPUS_PER_TASK": 8,
        "SLURM_CPUS_ON_NODE": 2,
    }


def test_slurm_on_several_nodes():
    environ = {"SLURM_CPUS_ON_NODE": "36", "SLURM_JOB_CPUS_PER_NODE": "72(x2),36"}
    assert batch(environ | {"SLURM_JOB_NUM_NODES": "3"}) == {"SLURM_CPUS_ON_NODE": 36}


def test_pbs_on_several_nodes(tmp_path):
    total = {"PBS_NCPUS": "96", "PBS_NODEFILE": "/nodes"}
    write(tmp_path, "/nodes", "one\none\n")
    assert batch(total, tmp_path) == {"PBS_NCPUS": 96}
    assert batch(total | {"NCPUS": "48"}, tmp_path) == {"NCPUS": 48}
    write(tmp_path, "/nodes", "one\ntwo\n")
    assert batch(total, tmp_path) == {}


@pytest.fixture
def two(monkeypatch):
    host = SimpleNamespace(nodename="two.cluster")
    monkeypatch.setattr(os, "uname", lambda: host, raising=False)
    return host


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("one 8 q@one UNDEFINED\ntwo 4 q@two UNDEFINED\n", {"PE_HOSTFILE": 4}),
        ("one.x 8 q@one <NULL>\ntwo.x 4 q@two <NULL>\n", {"PE_HOSTFILE": 4}),
        ("two 4 q@two 0,1\none 6 q@one 0,1\ntwo 2 r@two 0,2\n", {"PE_HOSTFILE": 6}),
        ("one 8 q@one\nthree 3 q@three\n", {"PE_HOSTFILE": 3}),
        ("one\ntwo 4 q@two\n", {"PE_HOSTFILE": 4}),
        ("nonsense\n", {"NSLOTS / NHOSTS": 6}),
    ],
)
def test_grid_engine_on_two_hosts(tmp_path, two, lines, found):
    write(tmp_path, "/pe", lines)
    environ = {"NSLOTS": "12", "NHOSTS": "2", "PE_HOSTFILE": "/pe"}
    assert batch(environ, tmp_path) == found


def test_grid_engine_without_its_file():
    assert batch({"NSLOTS": "7", "NHOSTS": "2"}) == {"NSLOTS / NHOSTS": 3.5}
    assert batch({"NSLOTS": "7", "NHOSTS": "1", "PE_HOSTFILE": "/no"}) == {"NSLOTS": 7}
    assert batch({"NSLOTS": "0", "NHOSTS": "2"}) == {}


@pytest.mark.parametrize(
    ("hosts", "found"),
    [
        ("two 12", {"LSB_DJOB_NUMPROC": 12}),
        ("one 8 two 4", {"LSB_MCPU_HOSTS": 4}),
        ("one 8 two.cluster 4 three 2", {"LSB_MCPU_HOSTS": 4}),
        ("one 8 three 5", {"LSB_MCPU_HOSTS": 5}),
        ("one 8 three", {"LSB_DJOB_NUMPROC": 12}),
        ("one x two y", {}),
        ("", {"LSB_DJOB_NUMPROC": 12}),
    ],
)
def test_lsf_hosts(two, hosts, found):
    assert batch({"LSB_DJOB_NUMPROC": "12", "LSB_MCPU_HOSTS": hosts}) == found


def test_a_system_that_does_not_tell_its_name(monkeypatch):
    monkeypatch.delattr(os, "uname", raising=False)
    assert batch({"LSB_MCPU_HOSTS": "one 8 two 4"}) == {"LSB_MCPU_HOSTS": 4}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Arch = "X86_64"\nTotalCpus = 64.0\nCpus = 1\nMemory = 9\n', 1),
        ("cpus=4\n", 4),
        ("Cpus = many\n", None),
        ("", None),
    ],
)
def test_htcondor(tmp_path, text, found):
    write(tmp_path, "/ad", text)
    environ = {"_CONDOR_MACHINE_AD": "/ad"}
    expected = {"Cpus of _CONDOR_MACHINE_AD": found} if found else {}
    assert batch(environ, tmp_path) == expected
    assert batch({"_CONDOR_MACHINE_AD": "/no"}, tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "n"),
    [("1", None), ("2", 2), ("4,2", 4), ("1,8", None), (" 3 ", 3), (",4", None), ("0", None)],
)
def test_openmp(text, n):
    assert cores._openmp({"OMP_NUM_THREADS": text}) == n


# the worker's share


def test_a_process_is_granted_its_share(bare):
    cores.grant(3)
    assert available_cores() == 3
    assert available_cores(explain=True)["worker's share"] == 3
    cores.grant(100)
    assert available_cores() == 64
    cores.grant(None)
    assert available_cores(explain=True) == {"machine": 64, "affinity mask": 64}


def test_a_thread_has_its_own_share(bare):
    cores.grant(8)
    seen = {}

    def work(name, n):
        if n is not None:
            cores.share.set(n)
        seen[name] = available_cores()

    for name, n in {"less": 2, "more": 12, "none": None}.items():
        thread = Thread(target=copy_context().run, args=(work, name, n))
        thread.start()
        thread.join()
    assert seen == {"less": 2, "more": 12, "none": 8}
    assert available_cores() == 8


# all of them


@pytest.mark.parametrize("least", range(8))
def test_the_least_counts_whoever_says_it(bare, tmp_path, least):
    n = [10 + i for i in range(8)]
    n[least] = 2
    bare.setattr(os, "cpu_count", lambda: n[0])
    bare.setattr(os, "sched_getaffinity", lambda pid: set(range(n[1])))
    v2(tmp_path, quotas={"/sys/fs/cgroup/a/b": f"{n[2]}000 1000"})
    bare.setitem(os.environ, "PYTHON_CPU_COUNT", str(n[6]))
    bare.setitem(os.environ, "OMP_NUM_THREADS", str(n[5]))
    bare.setitem(os.environ, "NSLOTS", str(n[4]))
    bare.setitem(os.environ, "SLURM_CPUS_PER_TASK", str(n[3]))
    cores.grant(n[7])
    assert available_cores() == 2
    assert list(available_cores(explain=True).items()) == [
        ("machine", n[0]),
        ("affinity mask", n[1]),
        ("cgroup v2 quota of /sys/fs/cgroup/a/b", n[2]),
        ("SLURM_CPUS_PER_TASK", n[3]),
        ("NSLOTS", n[4]),
        ("OMP_NUM_THREADS", n[5]),
        ("PYTHON_CPU_COUNT", n[6]),
        ("worker's share", n[7]),
    ]
    assert all(type(value) is float for value in available_cores(explain=True).values())


@pytest.mark.parametrize("n", [0, -3, 1])
def test_never_less_than_one(bare, n):
    cores.grant(n)
    assert available_cores() == 1
