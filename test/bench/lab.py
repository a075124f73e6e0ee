"""What is measured, and what it is measured with: a private server with the
extension, providers on loopback, and clients.  Everything that is started here
is stopped at the end, and nothing runs without a limit in count or time."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import psycopg2

HERE = os.path.dirname(os.path.abspath(__file__))
PATIENCE_S = 180

SETTINGS = {
    # as installed: fsync, full_page_writes and synchronous_commit are on
    "max_connections": 120,
    "shared_buffers": "1GB",
    # no checkpoint in the middle of a measurement
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "track_commit_timestamp": "on",
    "leasehold.lease_retention": 36500,
}

NGINX_CONF = """\
worker_processes 1;
pid nginx.pid;
error_log error.log warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    log_format size '$content_length';
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type application/json;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location /rpc {{ return 200 '{answer}'; }}
        location /sized {{ access_log size.log size; return 200 '{answer}'; }}
    }}
}}
"""
# the headers repeat what the worker needs to find in the body
ANSWER = ('{"jsonrpc":"2.0","id":"$http_leasehold_request_id","result":{"ok":true,'
          '"supportedMethods":["environmentFindLease","environmentExecute"],"providerLeaseId":"sbx-$http_idempotency_key",'
          '"metadata":{"remoteCwd":"/w"},"exitCode":0,"timedOut":false,"stdout":"ok","stderr":""}}')


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def wait_until(condition, what, patience=PATIENCE_S, pause=0.01):
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {patience} s in vain for {what}")
        time.sleep(pause)


def free_port():
    import socket  # pylint: disable=import-outside-toplevel
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(pid):
    """Processor time that a process has used, to the nanosecond."""
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
        return int(f.read().split()[0]) / 1e9


def memory_kb(pid):
    """Private memory of a process: what it has of shared buffers does not count."""
    with open(f"/proc/{pid}/status", encoding="ascii") as f:
        return int(re.search(r"RssAnon:\s+(\d+)", f.read()).group(1))


class Program:
    """A process that is ended at the end, by its id."""

    def __init__(self, lab, arguments, **options):
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, **options)
        self.pid = self.process.pid
        lab.at_end(self.stop)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class Nginx(Program):
    """The provider that costs as little as possible."""

    def __init__(self, lab):
        self.directory = lab.make_directory("nginx")
        self.port = free_port()
        conf = os.path.join(self.directory, "nginx.conf")
        with open(conf, "w", encoding="utf8") as f:
            f.write("daemon off;\n" + NGINX_CONF.format(port=self.port, answer=ANSWER))
        super().__init__(lab, ["nginx", "-p", self.directory, "-c", conf, "-e", "error.log"])
        wait_until(lambda: os.path.exists(os.path.join(self.directory, "nginx.pid")), "nginx", 10)
        self.url = f"http://127.0.0.1:{self.port}/rpc"
        self.sized_url = f"http://127.0.0.1:{self.port}/sized"

    def last_size(self):
        """Bytes of the body of the last request to sized_url."""
        path = os.path.join(self.directory, "size.log")
        with open(path, encoding="ascii") as f:
            return int(f.read().split()[-1])


class LatencyServer(Program):
    """The provider that answers after a while, or never (a negative delay)."""

    def __init__(self, lab, delay_ms, log=False):
        directory = lab.make_directory("latency")
        port_file = os.path.join(directory, "port")
        self.log = os.path.join(directory, "arrivals") if log else None
        super().__init__(lab, [lab.program("latency_server"), port_file, str(delay_ms)] + ([self.log] if log else []))
        wait_until(lambda: os.path.exists(port_file), "the provider", 10)
        with open(port_file, encoding="ascii") as f:
            self.url = f"http://127.0.0.1:{int(f.read())}/rpc"

    def arrivals(self):
        """When each request came, by idempotency key, in microseconds since 1970."""
        with open(self.log, encoding="ascii") as f:
            return {key: int(at) for key, at in (line.split() for line in f if line.endswith("\n") and line[0] != " ")}


class Server:
    """A private cluster."""

    def __init__(self, lab, settings=None, environment=None):
        self.lab = lab
        self.data = os.path.join(lab.make_directory("server"), "data")
        self.sockets = tempfile.mkdtemp(prefix="lh")
        self.log = os.path.join(os.path.dirname(self.data), "server.log")
        self.environment = dict(os.environ, **(environment or {}))
        lab.at_end(self.remove)
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        with open(os.path.join(self.data, "postgresql.conf"), "a", encoding="utf8") as conf:
            conf.write(f"listen_addresses = ''\nport = {lab.port}\nunix_socket_directories = '{self.sockets}'\n"
                       "shared_preload_libraries = 'leasehold'\n")
            for name, value in {**SETTINGS, **(settings or {})}.items():
                conf.write(f"{name} = '{value}'\n")
        self.run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "start", stdout=subprocess.DEVNULL)
        with self.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute("CREATE ROLE bench_client LOGIN")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.remove()

    def run(self, program, *arguments, **options):
        options.setdefault("stdout", subprocess.PIPE)
        result = subprocess.run([self.lab.pg(program), *arguments], stderr=subprocess.PIPE, text=True,
                                env=self.environment, check=False, **options)
        if result.returncode != 0:
            raise RuntimeError(f"{program}: {result.stderr}")
        return result.stdout

    @contextlib.contextmanager
    def connect(self, database, user="postgres", options=""):
        connection = self.open(database, user, options)
        try:
            yield connection
        finally:
            connection.close()

    def open(self, database, user="postgres", options=""):
        connection = psycopg2.connect(host=self.sockets, port=self.lab.port, user=user, dbname=database,
                                      options=options, connect_timeout=10)
        connection.autocommit = True
        return connection

    def stop(self):
        if os.path.exists(os.path.join(self.data, "postmaster.pid")):
            subprocess.run([self.lab.pg("pg_ctl"), "-D", self.data, "-m", "immediate", "-w", "stop"],
                           stdout=subprocess.DEVNULL, check=False)

    def remove(self):
        self.stop()
        shutil.rmtree(self.sockets, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)


class Database:
    """A fresh database with a company, and environments of the given providers."""

    def __init__(self, server, providers, name="bench"):
        self.server = server
        self.name = name
        self.drop()
        with server.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
        self.connection = server.open(name)
        self.run("CREATE EXTENSION leasehold")
        self.run("GRANT leasehold_app TO bench_client")
        self.run("SELECT leasehold.create_company('acme')")
        self.run("SELECT leasehold.grant_company('acme', 'bench_client', 'user')")
        self.run("SELECT leasehold.grant_company('acme', 'postgres', 'manager')")
        for key, url in providers.items():
            self.add_provider(key, url)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()
        self.drop()

    def drop(self):
        with self.server.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute("SET leasehold.allow_drop = on")
            cursor.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")

    def add_provider(self, key, url, ready=True):
        manifest = {
            "id": key, "apiVersion": 1, "version": "1.0.0", "displayName": key, "categories": ["automation"],
            "capabilities": ["environment.drivers.register"], "entrypoints": {"worker": "worker.js"},
            "environmentDrivers": [{"driverKey": key, "kind": "sandbox_provider", "displayName": key,
                                    "configSchema": {"type": "object"}}]}
        self.run("SELECT leasehold.register_plugin(%s, %s, ARRAY['127.0.0.0/8'])", json.dumps(manifest),
                 json.dumps({"type": "http", "url": url}))
        if ready:
            wait_until(lambda: self.value("SELECT status = 'ready' FROM leasehold.plugins WHERE key = %s", key),
                       f"plugin {key}", 30)
        else:
            self.run("UPDATE leasehold.plugins SET status = 'ready', supported_methods = '{environmentFindLease}'"
                     " WHERE key = %s", key)
            self.run("DELETE FROM leasehold_internal.calls WHERE operation = 'initialize' AND payload ->> 'plugin' = %s", key)
        self.run("SELECT leasehold.create_environment(%s, %s, '{\"template\": \"base\"}', company => 'acme')", key, key)

    def run(self, sql, *arguments):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, arguments or None)

    def rows(self, sql, *arguments):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, arguments or None)
            return cursor.fetchall()

    def value(self, sql, *arguments):
        return self.rows(sql, *arguments)[0][0]

    def worker_pid(self):
        return wait_until(
            lambda: (self.rows("SELECT pid FROM pg_stat_activity WHERE backend_type = 'leasehold worker'"
                               " AND datname = %s", self.name) or [[None]])[0][0], "a worker")

    def pause(self):
        self.run("SELECT leasehold.pause_worker('measurement')")
        wait_until(lambda: self.value("SELECT state = 'paused' FROM leasehold_internal.worker_states()"),
                   "the pause", 30)
        wait_until(lambda: self.value("SELECT in_flight = 0 FROM leasehold_internal.worker_states()"),
                   "calls that are out", 60)

    def resume(self):
        self.run("SELECT leasehold.resume_worker()")

    def request(self, environment, count):
        """Asks for leases, some hundreds in a transaction."""
        while count > 0:
            step = min(count, 500)
            self.run("SELECT leasehold.request_lease(%s) FROM generate_series(1, %s)", environment, step)
            count -= step

    def settle(self):
        """Puts what was done so far out of the way of what is measured next."""
        self.run("VACUUM (ANALYZE) leasehold.leases, leasehold_internal.calls, leasehold_internal.provider_resources")
        self.run("CHECKPOINT")

    def pgbench(self, script, clients, seconds=None, transactions=None, **variables):
        """Transactions a second of a script of this directory."""
        arguments = ["-h", self.server.sockets, "-p", str(self.server.lab.port), "-U", variables.pop("user", "bench_client"),
                     "-n", "-M", "prepared", "-c", str(clients), "-j", "2",
                     "-f", os.path.join(HERE, script + ".sql")]
        arguments += ["-T", str(seconds)] if seconds else ["-t", str(transactions)]
        for name, value in variables.items():
            arguments += ["-D", f"{name}={value}"]
        output = self.server.run("pgbench", *arguments, self.name)
        failed = re.search(r"number of failed transactions: (\d+)", output)
        if failed and failed.group(1) != "0":
            raise RuntimeError(output)
        return float(re.search(r"tps = ([\d.]+)", output).group(1))


class Lab:
    """Directories, programs, and what is to be stopped."""

    def __init__(self, bin_dir, directory, port):
        self.bin = bin_dir
        self.port = port
        self.directory = tempfile.mkdtemp(prefix="bench-", dir=directory)
        self.ends = contextlib.ExitStack()
        self.programs = self.make_directory("programs")
        for name in ("curl_yardstick", "latency_server"):
            subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", self.program(name), os.path.join(HERE, name + ".c"),
                            "-lcurl"], check=True)
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-o", self.program("hanging_resolver.so"),
                        os.path.join(HERE, "hanging_resolver.c")], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ends.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def at_end(self, function):
        self.ends.callback(function)

    def make_directory(self, name):
        return tempfile.mkdtemp(prefix=name + "-", dir=self.directory)

    def program(self, name):
        return os.path.join(self.programs, name)

    def pg(self, name):
        return os.path.join(self.bin, name)

    def yardstick(self, nginx, count, concurrency, body_bytes):
        """Answers a second, and CPU microseconds per answer, of a bare libcurl loop."""
        output = subprocess.run([self.program("curl_yardstick"), nginx.url, str(count), str(concurrency),
                                 str(body_bytes)], stdout=subprocess.PIPE, text=True, check=True).stdout
        rate, cpu = output.split()
        return float(rate), float(cpu)
