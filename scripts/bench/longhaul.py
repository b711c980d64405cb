"""Longhaul's side: master, store and agents as processes that stay up for all rounds of a set."""

import json
import os
import shutil
import subprocess
import time

from meter import Failed, Process, await_port, forget_peak, free_port, stop_all
from sides import Side, account, timed


class Longhaul(Side):
    name, text = "longhaul", "BLAKE3 of every byte on both ends, flushed; owner, mode, times, links, attributes"
    package, options = "--ctl BIN names it", ()

    def __init__(self, bench, ctl):
        super().__init__(bench)
        self.ctl = self.program = ctl
        self.services, self.local, self.opened, self.prefix = [], False, 0, []
        self.store = "Redis" if shutil.which("redis-server") else "embedded store"

    def version(self):
        said = subprocess.run([self.ctl, "version"], capture_output=True, text=True, check=False).stdout
        return f"{(said.splitlines() or ['?'])[0]}, master on {self.store}"

    def opens(self, local):
        """Starts everything, with one agent that has both paths or with two."""
        self.close()
        self.prepare()
        self.local, self.opened = local, self.opened + 1
        self.state = os.path.join(self.bench.state, f"{self.name}.{self.opened}")
        os.makedirs(self.state)
        port, store = free_port(), f"data_dir: {self.state}/master\n"
        if self.store == "Redis":
            store_port = free_port()
            redis = self.start("redis", ["redis-server", "--port", str(store_port), "--bind", "127.0.0.1",
                                         "--dir", self.state, "--appendonly", "yes", "--save", ""])
            await_port(store_port, redis)
            store = f"redis: {{ host: 127.0.0.1, port: {store_port} }}\n"
        self.url = f"http://127.0.0.1:{port}"
        self.write("master.yml", f"{self.listen(port)}data_dir: {self.state}/master\n{store}")
        master = self.start("master", [self.ctl, "master", "--config", f"{self.state}/master.yml"])
        await_port(port, master)
        src, dst = self.bench.sources, self.bench.dst
        workers = {"agent": (src, dst)} if local else {"source agent": (src,), "destination agent": (dst,)}
        config = f"{self.access(port)}data_dir: {self.state}/agents\nworkers:\n"
        for role, paths in workers.items():
            name = role.replace(" ", "-")
            config += (f"  - worker_id: {name}\n    storage_paths: {json.dumps(paths)}\n{self.join(name, paths)}"
                       f'    network: {{ data_plane_endpoints: ["127.0.0.1:{free_port()}"] }}\n')
        self.write("agents.yml", config)
        for role in workers:
            self.start(role, [self.ctl, "agent", "--worker-id", role.replace(" ", "-"),
                              "--config", f"{self.state}/agents.yml"])
        self.await_workers(len(workers))

    def prepare(self):
        """Before the processes are started."""

    def listen(self, port):
        """Where the master serves, and how agents find it, and join it."""
        return f"listen: 127.0.0.1:{port}\n"

    def access(self, port):
        return f"master_url: http://127.0.0.1:{port}\n"

    def join(self, _worker, _paths):
        return ""

    def write(self, name, text):
        with open(os.path.join(self.state, name), "w") as file:
            file.write(text)

    def start(self, role, argv):
        log = os.path.join(self.state, role.replace(" ", "-") + ".log")
        process = Process(role, [*self.prefix, *argv], log, service=True)
        self.services.append(process)
        return process

    def await_workers(self, count, seconds=30.0):
        until = time.monotonic() + seconds
        ask = [*self.prefix, self.ctl, "--master-url", self.url, "workers", "list", "-o", "json"]
        while True:
            said = subprocess.run(ask, capture_output=True, text=True, check=False)
            if said.returncode == 0 and len(json.loads(said.stdout).get("active", [])) == count:
                return
            for process in self.services:
                if process.gone():
                    raise Failed(f"{process.role} ended: {process.last_words()}")
            if time.monotonic() > until:
                raise Failed(f"the agents are not there: {said.stderr.strip() or said.stdout.strip()}")
            time.sleep(0.02)

    def run(self, src, dst, again):
        if not self.services:
            self.opens(self.local)
        try:
            for process in self.services:
                forget_peak(process.pid)
            before = [process.cpu() for process in self.services]
            client, seconds = timed(self.bench, lambda: [self.submit(src, dst)])
            used = account(seconds, client)
            used.cpu.update({p.role: p.cpu() - was for p, was in zip(self.services, before)})
            used.peak_kib.update({p.role: p.peak() for p in self.services})
            return used
        except (Failed, OSError):
            # What it may still have in hand must not come into the next side's round.
            self.close()
            raise
        finally:
            stop_all(but_services=True)

    def submit(self, src, dst):
        return Process("client", [*self.prefix, self.ctl, "--master-url", self.url, "sync", "submit", src, dst, "--wait",
                                  "-q", "--progress", "none", *self.options], os.path.join(self.state, "client.log"))

    def close(self):
        """Ends everything; only logs stay."""
        for process in reversed(self.services):
            process.stop()
        if self.services:
            self.services = []
            for entry in os.scandir(self.state):
                if entry.is_dir():
                    shutil.rmtree(entry.path)
                elif not entry.name.endswith(".log"):
                    os.remove(entry.path)


class LikeRsync(Longhaul):
    """For the comparison with rsync -a of work that is the same."""

    name, text, named_only = "longhaul-a", "longhaul, keeping no more than rsync -a does", True
    options = ("--preserve", "mode,owner,group,times")


class Encrypted(Longhaul):
    """Agents that have joined a master with TLS. All processes are in a network namespace, because no address of
    loopback has TLS."""

    name, text, named_only = "longhaul-tls", "longhaul with TLS between the agents", True
    encrypts, address, holder = "true", "10.77.0.1", None

    def absent(self):
        if os.getuid() != 0:
            return "it makes a network namespace, for which it needs root"
        missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
        return f"{', '.join(missing)} not installed (apt install util-linux iproute2)" if missing else super().absent()

    def prepare(self):
        setup = f"ip link set lo up && ip addr add {self.address}/32 dev lo && echo ready && exec sleep infinity"
        self.holder = Process("namespace", ["unshare", "--net", "sh", "-c", setup], self.log("namespace.log"),
                              stdout=subprocess.PIPE, service=True)
        if self.holder.popen.stdout.readline() != b"ready\n":
            raise Failed(f"no network namespace: {self.holder.last_words()}")
        self.prefix = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]

    def listen(self, port):
        return f'listen: ["127.0.0.1:{port}", "{self.address}:{port}"]\n'

    def access(self, port):
        return f"master_url: https://{self.address}:{port}\nencrypt_content: {self.encrypts}\n"

    def join(self, worker, paths):
        grants = [option for path in paths for option in ("--path", path)]
        ask = [*self.prefix, self.ctl, "--master-url", self.url, "token", "create", "--join", "--worker", worker, *grants]
        until = time.monotonic() + 20
        while True:
            made = subprocess.run(ask, capture_output=True, text=True, check=False)
            # 5: it does not rule yet.
            if made.returncode != 5 or time.monotonic() > until:
                break
            time.sleep(0.02)
        if made.returncode != 0:
            raise Failed(f"no join token: {made.stderr.strip()}")
        self.write(f"{worker}.token", made.stdout)
        os.chmod(os.path.join(self.state, f"{worker}.token"), 0o600)
        return f"    join_token_file: {self.state}/{worker}.token\n"

    def close(self):
        super().close()
        if self.holder:
            self.holder.stop()
        self.holder, self.prefix = None, []


class ClearContent(Encrypted):
    """… on a network that nobody else can read."""

    name, text = "longhaul-clear", "longhaul-tls with `encrypt_content: false`: content is not encrypted, its digests are"
    encrypts = "false"
