"""The processes: Redis, masters and agents, each in a namespace of the line, restarted on request."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time

from line import Line, sh, tun

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ENDED = ("COMPLETED", "FAILED", "CANCELLED")
# What the program logs; tests/scripts.rs checks that it does.
LOG_LEADER = "leader ready"
LOG_CORRUPTION = "was corrupted in transit"


def release():
    """The release binary, built if need be."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "release", "ctl")


def differs(source, destination):
    """How two trees differ, in words; empty: they don't."""
    argv = [f"{ROOT}/scripts/compare-trees.py", source, destination]
    compared = subprocess.run(argv, capture_output=True, text=True, check=False)
    return compared.stdout + compared.stderr


class Host:
    """A process that can be killed, stopped and started again."""

    def __init__(self, lab, name, space, argv):
        self.lab, self.name, self.space, self.argv = lab, name, space, argv
        self.process, self.stopped, self.starts = None, False, 0

    def start(self):
        if self.process and self.process.poll() is None:
            return
        log = open(self.log(), "ab")
        argv = ["ip", "netns", "exec", self.space, *self.argv]
        self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.stopped, self.starts = False, self.starts + 1

    def log(self):
        return f"{self.lab.dir}/{self.name}.log"

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.stopped = True
        self.signal(signal.SIGSTOP)

    def go_on(self):
        self.signal(signal.SIGCONT)
        self.stopped = False

    def alive(self):
        return self.process is not None and self.process.poll() is None


class Lab:
    """Everything that runs, and the directories."""

    MASTERS = "10.78.0.100"
    # A process that has ended is noticed soon.
    SHORT = "worker_heartbeat_timeout: 6s\nlease: 6s\n"

    def __init__(self, args, name, times=SHORT):
        self.args, self.name, self.dir, self.times = args, name, os.path.join(args.dir, name), times
        self.agents, self.masters, self.spaces, self.line, self.redis = [], [], [], None, None

    def open(self):
        for part in ("src", "state"):
            os.makedirs(f"{self.dir}/{part}")
        os.makedirs(f"{self.dir}/dst")
        sh("mount", "-t", "tmpfs", "-o", f"size={self.args.room}m", "tmpfs", f"{self.dir}/dst")
        hosts, self.addresses = {}, {}
        for number, host in enumerate(["a1", "a2", "b1", "b2", "m"]):
            address = self.MASTERS if host == "m" else f"10.78.0.{number + 1}"
            space = f"{self.name}-{host}"
            sh("ip", "netns", "add", space)
            self.spaces.append(space)
            sh("ip", "-n", space, "link", "set", "lo", "up")
            hosts[address] = tun(f"cx{os.getpid() % 10000}{host}", space, address)
            self.addresses[host] = address
        self.line = Line(hosts, delay=0.0005, seed=self.args.seed)
        self.line.start()
        self.configure()
        self.redis.start()
        self.until(lambda: self.redis_cli("ping").stdout.strip() == "PONG", 20, "Redis answers")
        for process in [*self.masters, *self.agents]:
            process.start()
        self.until(lambda: len(self.workers()) == 4, 60, "the workers are there")

    def configure(self):
        space = f"{self.name}-m"
        self.redis = Host(self, "redis", space, ["redis-server", "--port", "6379", "--bind", "127.0.0.1", "--dir",
                                                 f"{self.dir}/state", "--appendonly", "yes", "--save", "",
                                                 "--enable-debug-command", "local", "--logfile", ""])
        urls = []
        beat = "heartbeat_interval: 1s\n" if self.times else ""
        for number in range(self.args.masters):
            port, config = 8888 + number, f"{self.dir}/master{number}.yml"
            urls.append(f"http://{self.MASTERS}:{port}")
            with open(config, "w") as file:
                file.write(f"listen: {self.MASTERS}:{port}\ninsecure: true\ndata_dir: {self.dir}/state/master{number}\n"
                           f"installation: lab\nredis: {{host: 127.0.0.1, port: 6379}}\n{beat}{self.times}")
            argv = [self.args.ctl, "master", "--config", config]
            self.masters.append(Host(self, f"master{number}", space, argv))
        self.urls = ",".join(urls)
        with open(f"{self.dir}/agents.yml", "w") as file:
            file.write(f"master_url: {json.dumps(urls)}\ndata_dir: {self.dir}/state/agents\n{beat}workers:\n")
            for host in ("a1", "a2", "b1", "b2"):
                path = f"{self.dir}/{'src' if host[0] == 'a' else 'dst'}"
                file.write(f"  - worker_id: {host}\n    storage_paths: [{path}]\n"
                           f'    network: {{ data_plane_endpoints: ["{self.addresses[host]}"] }}\n')
        for host in ("a1", "a2", "b1", "b2"):
            argv = [self.args.ctl, "agent", "--worker-id", host, "--config", f"{self.dir}/agents.yml"]
            self.agents.append(Host(self, host, f"{self.name}-{host}", argv))

    def until(self, holds, seconds, what):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.SubprocessError, ValueError, KeyError):
                if holds():
                    return
            time.sleep(0.2)
        raise SystemExit(f"chaos.sh: in vain for {seconds} s: {what}; see {self.dir}/*.log")

    def redis_cli(self, *words, timeout=30):
        argv = ["ip", "netns", "exec", f"{self.name}-m", "redis-cli", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    def ctl(self, *words, timeout=60):
        argv = ["ip", "netns", "exec", f"{self.name}-m", self.args.ctl, "--master-url", self.urls, *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False)

    def workers(self):
        return json.loads(self.ctl("workers", "list", "-o", "json").stdout)["active"]

    def heal(self):
        """Everything runs and reaches everything."""
        self.line.cuts.clear()
        self.line.flip_one_in = 0
        for process in [self.redis, *self.masters, *self.agents]:
            if process.stopped:
                process.go_on()
            process.start()

    def close(self):
        for process in [*self.agents, *self.masters, self.redis]:
            if process and process.process:
                process.go_on()
                process.kill()
        if self.line:
            self.line.close()
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], check=False)
        subprocess.run(["umount", "-l", f"{self.dir}/dst"], check=False, stderr=subprocess.DEVNULL)
        if not self.args.keep:
            shutil.rmtree(self.dir, ignore_errors=True)
