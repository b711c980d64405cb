#!/usr/bin/env python3
"""Floods a master and the data ports of agents from this host, with one process that costs little itself.

  flood.py --master HOST:PORT [--tls] [--token FILE] [--data HOST:PORT]... --pace N --stats FILE

  slow heads          1,000 connections to the master that send one byte of a request every 5 s
  idle connections    4,000 to the master and 4,000 to each data port, that send one byte and nothing more
  trickled bodies     a request that announces 256 MB, and four with 63 MiB of 63.9 MiB and then a byte every 5 s
  fake heartbeats     20,000 workers, with one heartbeat each and then again

What the other side closes is opened again, at most N connections a second of each kind: the flood holds as many as
it can get. It ends with SIGTERM; FILE then has what it did as JSON. "up" is written to standard output when each kind
had all its connections once, or as many as it got within 30 s.
"""
import argparse
import json
import resource
import selectors
import signal
import socket
import ssl
import sys
import time

BODY_BYTES = (63 << 20) + (900 << 10)
SENT_BYTES = 63 << 20


class Connection:
    """A connection that is kept open; `step` sends what its kind sends."""

    def __init__(self, kind):
        self.kind = kind
        self.sock = socket.socket()
        self.sock.setblocking(False)
        # That of the TLS socket as well.
        self.fd = self.sock.fileno()
        self.sock.connect_ex(kind.address)
        self.is_ready = False
        self.pending = memoryview(kind.first())
        self.next_byte = 0.0
        kind.count("opened")

    def step(self, now):
        """What to wait for next: selectors.EVENT_*. Raises OSError when the other side has closed."""
        if not self.is_ready:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, "connect")
            if self.kind.tls is not None:
                if not isinstance(self.sock, ssl.SSLSocket):
                    self.sock = self.kind.tls.wrap_socket(self.sock, do_handshake_on_connect=False)
                try:
                    self.sock.do_handshake()
                except ssl.SSLWantReadError:
                    return selectors.EVENT_READ
                except ssl.SSLWantWriteError:
                    return selectors.EVENT_WRITE
            self.is_ready = True
            self.kind.count("connected")
            self.next_byte = now + self.kind.interval
        for _ in range(8):
            if not self.pending:
                break
            try:
                self.pending = self.pending[self.sock.send(self.pending[: 256 << 10]) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                return selectors.EVENT_WRITE
            except ssl.SSLWantReadError:
                return selectors.EVENT_READ
        if self.pending:
            return selectors.EVENT_WRITE
        try:
            received = self.sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return selectors.EVENT_READ
        if not received:
            raise OSError("closed")
        self.kind.received(self, received)
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self.pending else 0)

    def trickle(self, now):
        if self.is_ready and not self.pending and self.kind.interval and now >= self.next_byte:
            self.next_byte = now + self.kind.interval
            try:
                self.sock.send(b"x")
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass


class Kind:
    """One kind of flood: so many connections that begin with these bytes."""

    def __init__(self, name, address, number, begin, tls=None, interval=0):
        self.name, self.address, self.number, self.begin = name, address, number, begin
        self.tls, self.interval = tls, interval
        self.open = set()
        self.stats = {}
        self.was_full = False
        self.allowance = 0.0

    def first(self):
        """What a new connection sends."""
        return self.begin

    def count(self, what, number=1):
        self.stats[what] = self.stats.get(what, 0) + number

    def received(self, connection, data):
        self.count("answers")

    def wanted(self):
        return self.number - len(self.open)


class Heartbeats(Kind):
    """Each of another worker. Where they are accepted, one after another; else one for each connection, which is closed
    after the refusal."""

    WORKERS = 20_000

    def __init__(self, address, host, tls):
        self.host, self.next_worker = host, 0
        super().__init__("heartbeats", address, 64 if tls else 8, b"", tls)

    def first(self):
        return self.request() if self.tls else b""

    def request(self):
        body = json.dumps({"worker_id": f"fake-{self.next_worker % self.WORKERS}", "status": "IDLE",
                           "storage_paths": ["/nowhere"]}).encode()
        self.next_worker += 1
        return request("POST", "/workers/heartbeat", self.host, len(body)) + body

    def received(self, connection, data):
        for status in (b"200", b"401", b"403", b"429"):
            self.count(status.decode(), data.count(b"HTTP/1.1 " + status))
        if self.tls:
            raise OSError("refused: nothing else is answered on this connection")

    def send_some(self, number):
        """So many requests, on connections that have sent theirs; returns these."""
        idle = [one for one in self.open if one.is_ready and not one.pending and not self.tls]
        for one in idle:
            one.pending = memoryview(b"".join(self.request() for _ in range(max(1, number // len(idle)))))
        return idle


def request(method, path, host, length, headers=""):
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n"
    return head.encode()


def address_of(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--master", required=True)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("--token")
    parser.add_argument("--data", action="append", default=[])
    parser.add_argument("--pace", type=float, default=200)
    parser.add_argument("--beats", type=float, default=2000, help="heartbeats a second")
    parser.add_argument("--stats", required=True)
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    tls = None
    if args.tls:
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    token = f"Authorization: Bearer {open(args.token).read().strip()}\r\n" if args.token else ""
    master = address_of(args.master)
    large = request("POST", "/sync", args.master, BODY_BYTES, token) + b" " * SENT_BYTES
    kinds = [
        Kind("slow heads", master, 1000, b"GET /workers HTTP/1.1\r\nX: ", tls, 5),
        Kind("idle at the master", master, 4000, b"\x16" if args.tls else b"G"),
        Kind("announced bodies", master, 1, request("POST", "/sync", args.master, 256 << 20, token) + b"{", tls, 5),
        Kind("trickled bodies", master, 4, large, tls, 5),
        Heartbeats(master, args.master, tls),
    ]
    kinds += [Kind(f"idle at {data}", address_of(data), 4000, b"G") for data in args.data]
    run(kinds, args)


def run(kinds, args):
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    selector = selectors.DefaultSelector()
    tick = 0.05
    begin = last = time.monotonic()
    is_up = False

    def close(connection):
        connection.kind.open.discard(connection)
        connection.kind.count("closed by the other side")
        selector.unregister(connection.fd)
        connection.sock.close()

    def advance(connection, now):
        try:
            events = connection.step(now)
        except OSError:
            return close(connection)
        selector.modify(connection.fd, events, connection)

    while not stopped:
        now = time.monotonic()
        passed, last = now - last, now
        for kind in kinds:
            # The first filling may be faster than what is opened again.
            pace = args.pace if kind.was_full else max(args.pace, kind.number / 5)
            kind.allowance = min(kind.allowance + passed * pace, pace)
            while kind.wanted() > 0 and kind.allowance >= 1:
                kind.allowance -= 1
                connection = Connection(kind)
                kind.open.add(connection)
                selector.register(connection.fd, selectors.EVENT_WRITE, connection)
            kind.was_full = kind.was_full or kind.wanted() == 0
            if kind.interval:
                for connection in list(kind.open):
                    try:
                        connection.trickle(now)
                    except OSError:
                        close(connection)
            if isinstance(kind, Heartbeats):
                for connection in kind.send_some(int(args.beats * passed)):
                    advance(connection, now)
        if not is_up and (all(kind.was_full for kind in kinds) or now - begin > 30):
            is_up = True
            print("up", flush=True)
        end = now + tick
        while True:
            ready = selector.select(max(0, end - time.monotonic()))
            now = time.monotonic()
            for key, _ in ready:
                if key.data in key.data.kind.open:
                    advance(key.data, now)
            if now >= end or stopped:
                break
    used = resource.getrusage(resource.RUSAGE_SELF)
    stats = {kind.name: dict(kind.stats, open=len(kind.open)) for kind in kinds}
    stats["seconds"] = round(time.monotonic() - begin, 1)
    stats["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    with open(args.stats, "w") as file:
        json.dump(stats, file)


if __name__ == "__main__":
    sys.exit(main())
