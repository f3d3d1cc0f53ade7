"""A pusherd process, and a WebSocket client that shows its frames."""

import json
import os
import re
import subprocess
import tempfile
import threading
from pathlib import Path
from queue import Empty, Queue

from websockets.sync.client import connect

BINARY = Path(
    os.environ.get("PUSHERD_BIN")
    or Path(__file__).resolve().parents[3] / "target" / "debug" / "pusherd"
)
HOST = "127.0.0.1"
START_TIMEOUT_SECS = 15
STOP_TIMEOUT_SECS = 10
RECEIVE_TIMEOUT_SECS = 10

APP_ID, KEY, SECRET = "1001", "demo-key", "demo-secret"
CONFIG = f"""
[server]
activity_timeout_secs = 30
drain_secs = 0
ping_interval_secs = 50
pong_timeout_secs = 30

[[apps]]
id = "{APP_ID}"
key = "{KEY}"
secret = "{SECRET}"
client_events = "members"
watchlist = true
cache_ttl_secs = 1800
"""


class Pusherd:
    """A server on a free port, in an empty directory and with an empty environment.

    `app` are further settings of the app, as TOML.
    """

    def __init__(self, app=""):
        self._directory = tempfile.TemporaryDirectory(prefix="pusherd-compat-")
        config = Path(self._directory.name) / "pusherd.toml"
        config.write_text(CONFIG + app, encoding="utf-8")
        self._process = subprocess.Popen(
            [BINARY, "serve", "--config", config, "--host", HOST, "--port", "0"],
            cwd=self._directory.name,
            env={"PATH": os.environ["PATH"], "HOME": self._directory.name},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self._printed = []
        ports = Queue()
        self._reader = threading.Thread(target=self._read, args=(ports,), daemon=True)
        self._reader.start()
        try:
            self.port = ports.get(timeout=START_TIMEOUT_SECS)
        except Empty:
            self.port = None
        if self.port is None:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            self._process.stdout.close()
            raise RuntimeError(f"pusherd did not start; it printed:\n{self.output}")

    def _read(self, ports):
        for line in self._process.stdout:
            self._printed.append(line)
            if found := re.search(r"listening on [^\s]*:(\d+)", line):
                ports.put(int(found[1]))
        ports.put(None)

    @property
    def output(self):
        return "".join(self._printed)

    def stop(self):
        """Sends SIGTERM, and checks that the process exits with code 0."""
        self._process.terminate()
        try:
            code = self._process.wait(STOP_TIMEOUT_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        self._directory.cleanup()
        if code != 0:
            raise RuntimeError(f"pusherd exited with code {code}; it printed:\n{self.output}")


def open_socket(server, path, **options):
    """Opens a WebSocket to a path of the server."""
    return connect(f"ws://{HOST}:{server.port}{path}", max_size=None, **options)


class Connection:
    """An established connection."""

    def __init__(self, server, path=f"/app/{KEY}?protocol=7&client=python&version=1.0"):
        self.socket = open_socket(server, path)
        frame = self.receive()
        if frame["event"] != "pusher:connection_established":
            raise RuntimeError(f"not established: {frame}")
        self.established = frame
        self.socket_id = json.loads(frame["data"])["socket_id"]

    def receive(self):
        """The next frame, decoded."""
        return json.loads(self.socket.recv(RECEIVE_TIMEOUT_SECS))

    def receive_text(self):
        """The next frame as text."""
        return self.socket.recv(RECEIVE_TIMEOUT_SECS)

    def send(self, event, data, **fields):
        self.socket.send(json.dumps({"event": event, "data": data, **fields}))

    def subscribe(self, channel, **fields):
        """Subscribes, and returns the next frame."""
        self.send("pusher:subscribe", {"channel": channel, **fields})
        return self.receive()

    def close(self):
        self.socket.close()
