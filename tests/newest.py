"""Runs pytest on a Python that this machine does not have, in a Debian that does, as root.

``python tests/newest.py FOLDER VERSION EXTRAS ARGUMENT...`` makes a chroot of Debian's suite in
FOLDER, or uses the one there, installs the checkout with its extras into an environment of
Python VERSION inside, and runs pytest with the arguments. ``--check`` prints what is missing.

Debian's mirror, the settings of pip and the certificates are this machine's own. All mounts are
made in a mount namespace: the kernel removes them when the last process in it ends, also if
it is killed.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "forky"
PYTHONS = ("3.14", "3.15")
PACKAGES = [f"python{one}{part}" for one in PYTHONS for part in ("", "-venv")]
PACKAGES += ["ca-certificates", "openmpi-bin"]
ROOT = Path(__file__).resolve().parents[1]
INSIDE = "inside"  # the first argument, once it runs in a mount namespace of its own
# Where a variable names a file or a folder, it is there inside, too.
PASSED = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "TERM", "CI")
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")


def missing():
    """Say why a chroot cannot be made here; nothing if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a chroot needs root on Linux"
    if not shutil.which("debootstrap") and not shutil.which("apt-get"):
        return "debootstrap is missing"
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"]).returncode:
        return "this machine allows no mount namespaces"
    if not mirror() and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL)  # its lists may be missing
    return "" if mirror() else "apt knows no mirror of Debian"


def mirror():
    """Give the address from which this machine's own Debian comes, as apt's lists say."""
    if not shutil.which("apt-get"):
        return ""
    form = "$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", form], capture_output=True, text=True
    )
    found = (line.split() for line in done.stdout.splitlines())
    return next((words[3] for words in found if words[:3] == ["Debian", "Debian", "main"]), "")


def made(folder):
    """Make the chroot, unless it is there; give its folder."""
    root, part = folder / SUITE, folder / "part"
    if root.exists():
        return root
    if not shutil.which("debootstrap"):
        call("apt-get", "install", "-y", "--no-install-recommends", "debootstrap")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        call(
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            # An older debootstrap does not know the suite: all new ones are made as sid is.
            *(SUITE, part, mirror(), "/usr/share/debootstrap/scripts/sid"),
        )
    except subprocess.CalledProcessError:
        log = part / "debootstrap" / "debootstrap.log"
        sys.stderr.write(log.read_text()[-3000:] if log.exists() else "")
        raise
    part.rename(root)
    return root


def settings():
    """Give the environment inside: pip's settings, as variables, and what leads to the network."""
    lines = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    chosen = {}
    for line in lines:  # those of the environment come first, and win
        name, _, value = line.partition("=")
        variable = "PIP_" + name.rpartition(".")[2].upper().replace("-", "_")
        chosen.setdefault(variable, " ".join(shlex.split(value)).replace("\\n", " "))
    wanted = {*PASSED, *PROXIES, *map(str.upper, PROXIES)}
    return chosen | {name: os.environ[name] for name in wanted & os.environ.keys()}


def mount(root, environment):
    """Mount the system's own folders, the checkout, and all that the settings name."""
    call("mount", "-t", "proc", "proc", root / "proc")
    for folder in ("/dev", "/sys"):
        call("mount", "--rbind", folder, f"{root}{folder}")
    words = " ".join(environment.values()).split()
    named = {word for word in words if word.startswith("/")}
    # An index refers to files that lie beside it.
    urls = (word.removeprefix("file://") for word in words if word.startswith("file:///"))
    named |= {os.path.dirname(url.rstrip("/")) for url in urls} - {"/"}
    same = [*sorted(named), "/etc/resolv.conf", "/etc/hosts"]
    for source, target in [(ROOT, root / "src"), *((one, f"{root}{one}") for one in same)]:
        if os.path.isdir(source):
            os.makedirs(target, exist_ok=True)
        elif os.path.exists(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            Path(target).touch()
        else:
            continue
        call("mount", "--bind", os.path.realpath(source), target)


def run(root, environment, *command):
    """Run a command inside, in the checkout, with nothing of this environment but the settings."""
    own = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    # Bytecode would be written to the checkout.
    own |= {"PYTHONDONTWRITEBYTECODE": "1", **environment}
    assignments = [f"{name}={value}" for name, value in own.items()]
    call("chroot", root, "env", "-i", "--chdir=/src", *assignments, *command)


def call(*command):
    subprocess.run([os.fspath(part) for part in command], check=True)


def main(folder, version, extras, *arguments):
    root, environment = made(Path(folder)), settings()
    mount(root, environment)
    venv = f"/python{version}"  # where also other users may read
    run(root, environment, f"python{version}", "-m", "venv", venv)
    run(root, environment, f"{venv}/bin/pip", "install", "-q", f".[{extras}]")
    environment["PATH"] = f"{venv}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    run(root, environment, "python", "-m", "pytest", "-p", "no:cacheprovider", *arguments)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        print(missing())
    elif sys.argv[1] != INSIDE:
        me = [sys.executable, __file__, INSIDE, *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", *me])
    else:
        try:
            main(*sys.argv[2:])
        except subprocess.CalledProcessError as error:
            sys.exit(error.returncode)
        except KeyboardInterrupt:
            sys.exit(130)
