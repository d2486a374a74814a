"""Every process of a lab on a host of its own: network namespaces on one bridge, and cuts between pairs of them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

# RFC 2544 reserves 198.18.0.0/15 for tests of network devices: nobody routes it.
_SUBNETS = [f"198.{second}.{third}" for second in (18, 19) for third in range(256)]
_NAME = re.compile(r"fl(\d+)-[0-9a-z-]+")
_TABLE = "add table inet cuts; add chain inet cuts input { type filter hook input priority 0; policy accept; }"


def missing_for_namespaces() -> str | None:
    """Says why this machine cannot make network namespaces with cuts; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    if absent:
        return f"{' and '.join(absent)} missing: install iproute2 and nftables"
    probe = f"fl{os.getpid()}-probe"
    try:
        _run("ip", "netns", "add", probe)
        _run("ip", "netns", "exec", probe, "nft", _TABLE)
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


def _run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


class Loopback:
    """All processes on 127.0.0.1; nothing can be cut."""

    def address(self, host: str) -> str:
        """The address of a host."""
        return "127.0.0.1"

    def enter(self, host: str) -> list[str]:
        """The beginning of a command that shall run on a host."""
        return []

    def heal(self) -> None:
        """Nothing was cut."""

    def close(self) -> None:
        """Nothing was made."""


class Namespaces:
    """One network namespace per host, joined by a bridge in a namespace of its own; this process is joined too.

    Args:
        hosts: Their names: lower-case letters, digits and dashes.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        _sweep()
        self._prefix = f"fl{os.getpid()}-"
        self._link = f"fl{os.getpid()}"
        self._net = random.choice(_free_subnets())
        self._numbers = {host: number for number, host in enumerate(hosts, start=2)}
        self._cut: set[str] = set()
        hub = self._prefix + "hub"
        lines = [f"netns add {hub}", f"-n {hub} link add br0 type bridge", f"-n {hub} link set br0 up"]
        lines += [f"link add {self._link} type veth peer name v1 netns {hub}"]
        lines += [f"addr add {self._net}.1/24 dev {self._link}", f"link set {self._link} up"]
        lines += [f"-n {hub} link set v1 master br0", f"-n {hub} link set v1 up"]
        for host, number in self._numbers.items():
            name = self._prefix + host
            lines += [f"netns add {name}", f"link add eth0 netns {name} type veth peer name v{number} netns {hub}"]
            lines += [f"-n {hub} link set v{number} master br0", f"-n {hub} link set v{number} up"]
            lines += [f"-n {name} addr add {self._net}.{number}/24 dev eth0"]
            lines += [f"-n {name} link set eth0 up", f"-n {name} link set lo up"]
        try:
            for line in lines:
                _run("ip", *line.split())
            for host in hosts:
                _run(*self.enter(host), "nft", _TABLE)
        except BaseException:
            self.close()
            raise

    def address(self, host: str) -> str:
        """The address of a host."""
        return f"{self._net}.{self._numbers[host]}"

    def enter(self, host: str) -> list[str]:
        """The beginning of a command that shall run on a host."""
        return ["ip", "netns", "exec", self._prefix + host]

    def cut(self, one: Sequence[str], other: Sequence[str]) -> None:
        """Drops every packet between two groups of hosts, silently and in both directions, until `heal`."""
        for here, there in ((one, other), (other, one)):
            for host in here:
                sources = ", ".join(self.address(name) for name in there)
                _run(*self.enter(host), "nft", f"add rule inet cuts input ip saddr {{ {sources} }} drop")
                self._cut.add(host)

    def heal(self) -> None:
        """Ends every cut."""
        for host in self._cut:
            _run(*self.enter(host), "nft", "flush chain inet cuts input")
        self._cut.clear()

    def close(self) -> None:
        """Removes everything that was made."""
        _remove(self._prefix, self._link)


def _free_subnets() -> list[str]:
    taken = {
        info["local"].rpartition(".")[0]
        for link in json.loads(_run("ip", "-j", "-4", "addr", "show"))
        for info in link.get("addr_info", ())
        if "local" in info
    }
    return [subnet for subnet in _SUBNETS if subnet not in taken]


def _names() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]


def _remove(prefix: str, link: str) -> None:
    for name in _names():
        if name.startswith(prefix):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)


def _sweep() -> None:
    """Removes what test processes left that were killed."""
    for owner in {match[1] for name in _names() if (match := _NAME.fullmatch(name))}:
        if not Path(f"/proc/{owner}").exists():
            _remove(f"fl{owner}-", f"fl{owner}")
