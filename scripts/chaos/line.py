"""A network between namespaces, made of TUN devices. All their packets pass through here: they can be lost,
delayed, held to a speed, and have a bit flipped under a checksum that is right."""

import collections
import fcntl
import os
import random
import select
import struct
import subprocess
import threading
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 9000


def sh(*words):
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def tun(device, space, address, queue=10_000):
    """A TUN device `wan0` in a namespace; its descriptor stays here."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    sh("ip", "link", "set", device, "netns", space)
    inside = ("ip", "-n", space)
    sh(*inside, "link", "set", device, "name", "wan0", "mtu", str(MTU), "txqueuelen", str(queue))
    sh(*inside, "addr", "add", f"{address}/24", "dev", "wan0")
    sh(*inside, "link", "set", "wan0", "up")
    return fd


def checksum(data):
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def flipped(packet, rng):
    """The packet with one bit of its TCP payload flipped and its checksum made right; None: it has none."""
    head = (packet[0] & 15) * 4
    if packet[0] >> 4 != 4 or packet[9] != 6:
        return None
    start = head + (packet[head + 12] >> 4) * 4
    if len(packet) - start < 1024:
        return None  # content, not conversation
    made = bytearray(packet)
    made[rng.randrange(start + 64, len(made))] ^= 1 << rng.randrange(8)
    made[head + 16 : head + 18] = b"\0\0"
    pseudo = bytes(made[12:20]) + struct.pack("!BBH", 0, 6, len(made) - head)
    made[head + 16 : head + 18] = struct.pack("!H", checksum(pseudo + bytes(made[head:])))
    return bytes(made)


class Line(threading.Thread):
    """Carries packets between hosts, by address, until it is closed."""

    def __init__(self, hosts, delay=0.0, seed=0):
        """hosts: address -> descriptor."""
        super().__init__(daemon=True)
        self.fds = {bytes(int(part) for part in address.split(".")): fd for address, fd in hosts.items()}
        self.delay, self.rng, self.open = delay, random.Random(seed), True
        self.cuts = set()  # (from, to) as addresses in bytes; None stands for anybody
        self.flips, self.flip_one_in = 0, 0
        # One connection in so many, of those that do not lead to `aside`, has one bit flipped.
        self.flip_connections, self.connections, self.chosen = 0, 0, set()
        self.aside = bytes(4)

    def cut(self, source, target):
        self.cuts.add((source, target))

    def heal(self, source, target):
        self.cuts.discard((source, target))

    def passes(self, source, target):
        cuts = self.cuts
        return not cuts or not {(source, target), (source, None), (None, target)} & cuts

    def carry(self, packet, queue):
        source, target = packet[12:16], packet[16:20]
        if not self.passes(source, target) or target not in self.fds:
            return
        if self.flip_connections:
            packet = self.of_connection(packet)
        if self.flip_one_in and len(packet) > 2048 and not self.rng.randrange(self.flip_one_in):
            made = flipped(packet, self.rng)
            if made:
                packet, self.flips = made, self.flips + 1
        queue.append((time.monotonic() + self.delay, self.fds[target], packet))

    def of_connection(self, packet):
        """The packet, flipped if it is the first with content in a connection that was chosen."""
        head = (packet[0] & 15) * 4
        if packet[0] >> 4 != 4 or packet[9] != 6 or self.aside in (packet[12:16], packet[16:20]):
            return packet
        ports = packet[head : head + 4]
        # The same for both directions.
        name = frozenset([(packet[12:16], ports[:2]), (packet[16:20], ports[2:])])
        if packet[head + 13] & 0x12 == 0x02:  # the first SYN of it
            self.chosen.discard(name)
            self.connections += 1
            if self.connections % self.flip_connections == 1:
                self.chosen.add(name)
        made = flipped(packet, self.rng) if name in self.chosen and len(packet) > 2048 else None
        if not made:
            return packet
        self.chosen.discard(name)
        self.flips += 1
        return made

    def run(self):
        queue, poll = collections.deque(), select.poll()
        for fd in self.fds.values():
            poll.register(fd, select.POLLIN)
        while self.open:
            wait = max(0.0, queue[0][0] - time.monotonic()) if queue else 0.2
            for fd, _ in poll.poll(wait * 1000):
                try:
                    for _ in range(256):
                        self.carry(os.read(fd, 65536), queue)
                except BlockingIOError:
                    pass
                except OSError:
                    return
            now = time.monotonic()
            while queue and queue[0][0] <= now:
                _, fd, packet = queue.popleft()
                try:
                    os.write(fd, packet)
                except OSError:
                    pass  # a full device drops, as a line does

    def close(self):
        self.open = False
        self.join(2)
        for fd in self.fds.values():
            os.close(fd)
