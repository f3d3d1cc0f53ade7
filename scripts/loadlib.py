"""What scripts/load, scripts/curves and scripts/compare-servers share: building, servers, runs. Standard library only."""

import atexit
import json
import math
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APP = {"app-id": "app-id", "key": "app-key", "secret": "app-secret"}
# Below the kernel's ephemeral ports, which the generator's own connections use.
PORTS = range(7100, 7200)


class Failed(Exception):
    """Ends the script, or one row of it, with this text."""


class Skip(Exception):
    """The reason why a row cannot be measured on this machine."""


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- processes: the list contains every process that was started and is still running ----

_running = []


def spawn(command, **options):
    process = subprocess.Popen([str(word) for word in command], **options)
    _running.append(process)
    return process


def end(process, how=signal.SIGTERM, patience=15):
    """Ends one process that `spawn` started, and waits for it."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process in _running:
        _running.remove(process)


@atexit.register
def _end_all():
    for process in list(_running):
        end(process, patience=5)


def run_main(name, main):
    """Runs `main`: Ctrl-C and SIGTERM end what was started, failures are one line."""

    def stop(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        sys.exit(main())
    except Failed as failure:
        say(f"{name}: {failure}")
        sys.exit(1)


# ---- binaries ----


def _target_directory(manifest):
    out = subprocess.run(
        ["cargo", "metadata", "--format-version=1", "--no-deps", "--offline", "--manifest-path", manifest],
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if out.returncode != 0:
        raise Failed(f"cargo metadata of {manifest} failed")
    return Path(json.loads(out.stdout)["target_directory"])


def _build(manifest, profile):
    if not shutil.which("cargo"):
        raise Failed("cargo is missing: please install a Rust toolchain")
    command = ["cargo", "build", "--profile", profile, "--locked", "--manifest-path", manifest.relative_to(ROOT)]
    say(f"== {' '.join(map(str, command))} ==")
    if subprocess.run(command, check=False, cwd=ROOT).returncode:
        raise Failed("the build failed")
    return _target_directory(manifest) / profile


class Binaries:
    """pusherd (or PUSHERD_BIN), pusherload and limitd (or those in PUSHERLOAD_BIN_DIR), built where needed."""

    def __init__(self, pusherd=True):
        tools = os.environ.get("PUSHERLOAD_BIN_DIR")
        tools = Path(tools) if tools else _build(ROOT / "load" / "Cargo.toml", "release")
        self.pusherload, self.limitd = tools / "pusherload", tools / "limitd"
        if pusherd:
            own = os.environ.get("PUSHERD_BIN")
            self.pusherd = Path(own) if own else _build(ROOT / "Cargo.toml", "dist") / "pusherd"
        for binary in (self.pusherload, self.limitd, *([self.pusherd] if pusherd else [])):
            if not os.access(binary, os.X_OK):
                raise Failed(f"there is no program {binary}")


def raise_file_limit(wanted=20_000):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((max(hard, 1 << 20), max(hard, 1 << 20)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (ValueError, OSError):
            continue
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        raise Failed(f"the file limit is {soft}; {wanted} are needed: ulimit -n {wanted}")


# ---- servers ----

_next_port = 0


def free_port():
    global _next_port
    for _ in PORTS:
        port = PORTS[_next_port % len(PORTS)]
        _next_port += 1
        with socket.socket() as s:
            # Like servers, so that lingering connections of the last run do not matter.
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("127.0.0.1", port))
                s.listen(1)
                return port
            except OSError:
                continue
    raise Failed(f"no free port between {PORTS[0]} and {PORTS[-1]}")


class Server:
    """A server with its own port and folder; `with` stops it."""

    name = ""
    patience = 15

    def __init__(self, command, port, wrapper=(), ws_port=None, host="127.0.0.1"):
        self.host, self.port, self.ws_port = host, port, ws_port
        self.log = tempfile.TemporaryFile()
        self.process = spawn([*wrapper, *command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.pid = self.process.pid
        self.slow = bool(wrapper)
        deadline = time.monotonic() + (90 if self.slow else 15)
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                text = self.output()
                self.stop()
                raise Failed(f"{self.name} does not start: {text.strip()[-2000:]}")
            time.sleep(0.02)
        time.sleep(0.2)

    def _listens(self):
        for port in {self.port, self.ws_port or self.port}:
            try:
                socket.create_connection((self.host, port), 1).close()
            except OSError:
                return False
        return True

    def output(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")

    def stop(self):
        end(self.process, patience=120 if self.slow else self.patience)

    def alive(self):
        return self.process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        self.log.close()


class Limitd(Server):
    name = "limitd"

    def __init__(self, binaries, *options, wrapper=()):
        port = free_port()
        super().__init__([binaries.limitd, "--port", port, *options], port, wrapper)


LIMITS = {
    "client_events_per_second": 1_000_000,
    "messages_per_second": 1_000_000,
    "messages_burst": 1_000_000,
    "presence_members": 100_000,
}


def _toml(table):
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())


def pusherd_config(folder, server=None, limits=None, app=None, sections=None):
    """Writes a configuration with limits that are never reached; returns its path."""
    path = Path(folder) / "pusherd.toml"
    others = "".join(f"[{name}]\n{_toml(values)}" for name, values in (sections or {}).items())
    path.write_text(
        f"{others}[server]\n{_toml({'host': '127.0.0.1', 'drain_secs': 0, **(server or {})})}"
        f"[[apps]]\n{_toml({'id': APP['app-id'], 'key': APP['key'], 'secret': APP['secret'], **(app or {})})}"
        f"[apps.limits]\n{_toml({**LIMITS, **(limits or {})})}"
    )
    return path


def _clean_environment():
    """The environment without variables of pusherd."""
    families = ("PUSHERD_", "PUSHER_", "REVERB_", "SOKETI_", "LARAVEL_WEBSOCKETS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(families)}


class Pusherd(Server):
    name = "pusherd"

    def __init__(
        self, binaries, wrapper=(), server=None, limits=None, app=None, ws_port=None, sections=None, host="127.0.0.1", port=None
    ):
        port = port or free_port()
        self.folder = tempfile.TemporaryDirectory(prefix="pusherd-load-")
        config = pusherd_config(self.folder.name, {"port": port, **(server or {})}, limits, app, sections)
        # In the temporary folder, so that no .env is found.
        here, before = os.getcwd(), dict(os.environ)
        os.chdir(self.folder.name)
        os.environ.clear()
        os.environ.update(_clean_environment())
        try:
            super().__init__([binaries.pusherd, "serve", "--config", config], port, wrapper, ws_port, host)
        finally:
            os.chdir(here)
            os.environ.update(before)

    def __exit__(self, *rest):
        super().__exit__(*rest)
        self.folder.cleanup()


def knows_settings(binaries, server=None, app=None, limits=None):
    """Whether this pusherd accepts these settings."""
    with tempfile.TemporaryDirectory(prefix="pusherd-load-") as folder:
        config = pusherd_config(folder, server, limits, app)
        check = subprocess.run(
            [binaries.pusherd, "config", "check", "--config", config],
            cwd=folder,
            env=_clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return check.returncode == 0, check.stdout.strip()


# ---- runs ----


def load(binaries, arguments, host="127.0.0.1", port=None, pid=None, app=APP, extra=(), patience=900):
    """Runs pusherload; returns its report."""
    command = [binaries.pusherload, *arguments, "--quiet", "--host", host, "--port", port]
    for key, value in app.items():
        command += [f"--{key}", value]
    if pid:
        command += ["--server-pid", pid]
    process = spawn([*command, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        raise Failed(f"pusherload {' '.join(map(str, arguments))} did not end within {patience} s") from None
    finally:
        end(process)
    if process.returncode != 0:
        raise Failed(f"pusherload {' '.join(map(str, arguments))}: {err.strip()[-1000:]}")
    report = json.loads(out.strip().splitlines()[-1])
    report["arguments"] = [str(word) for word in arguments]
    return report


def other_cpu(report):
    """The maximum CPU usage of other processes during the run, in % of a core."""
    values = [value for key, value in report.items() if key.endswith("other_cpu_pct") and value is not None]
    return max(values, default=0.0)


def noisy(report):
    return bool(report.get("noisy")) or other_cpu(report) > 10


def median(values):
    values = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.median(values) if values else None


def figure(value):
    """A number with three significant digits."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def table(rows):
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def machine():
    """The machine, without values that change between boots."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} × {model}, {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}"


def commit():
    """The commit that was measured."""
    if os.environ.get("PUSHERD_BIN"):
        return "of PUSHERD_BIN"
    out = subprocess.run(
        ["git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=10"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return out.stdout.strip() or "unknown"


def write_between(path, mark, text):
    """Replaces what stands between `<!-- mark -->` and `<!-- /mark -->`."""
    path = Path(path)
    page = path.read_text()
    start, stop = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    if page.count(start) != 1 or page.count(stop) != 1:
        raise Failed(f"{path} has no {start.strip()} … {stop}")
    head, rest = page.split(start)
    path.write_text(f"{head}{start}\n{text.strip()}\n\n{stop}{rest.split(stop)[1]}")
