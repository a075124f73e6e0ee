#!/usr/bin/env python3
"""Runs a command in a sandbox and prints what it writes as it comes, as an application does it.

usage: run_command.py CONNECTION COMPANY ENVIRONMENT COMMAND

It works through a pooler in transaction mode (PgBouncer), too: each statement is
a transaction of its own and may get another server session, so nothing is kept in
one.  The company is therefore an argument of every call.  The exit code is the
command's, or 125 if it has none, with a line that says why.

The keys make it safe to repeat a request whose answer was lost: the same lease
and the same command come back.
"""

import sys
import uuid

import psycopg2

LEASE_TTL = "2 minutes"     # renewed while we are here, so a lost client's lease ends soon
TURN = "20 seconds"


class Application:
    def __init__(self, connection, company):
        self.connection = psycopg2.connect(connection)
        self.connection.autocommit = True
        self.company = company

    def rows(self, function, *arguments, **named):
        """The rows that a function of Leasehold returns."""
        named["company"] = self.company
        listed = ", ".join(["%s"] * len(arguments) + [f"{name} => %s" for name in named])
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM leasehold.{function}({listed})", [*arguments, *named.values()])
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

    def value(self, function, *arguments, **named):
        return self.rows(function, *arguments, **named)[0][function]

    def lease(self, environment):
        lease = self.value("request_lease", environment, ttl=LEASE_TTL, idempotency_key=str(uuid.uuid4()))
        while True:
            state = self.rows("wait_for_lease", lease, TURN)[0]
            if state["status"] == "active":
                return lease
            if state["done"]:
                raise SystemExit(f"no sandbox: {state['failure_reason'] or state['status']}")
            print(f"waiting for {state['waiting_for'] or 'the provider'}", file=sys.stderr)

    def run(self, lease, command):
        command = self.value("start_command", lease, shell=command, idempotency_key=str(uuid.uuid4()))
        read = 0
        while True:
            for piece in self.rows("read_output", command, read, TURN):
                read = piece["seq"]
                stream = sys.stdout if piece["stream"] == "stdout" else sys.stderr
                stream.buffer.write(piece["data"])
                stream.flush()
            state = self.rows("wait_for_command", command, "0 seconds")[0]
            # what came between the two calls is still to be read
            if state["done"] and not self.rows("read_output", command, read):
                return state
            self.value("renew_lease", lease, LEASE_TTL)

    def release(self, lease):
        self.value("release_lease", lease)


def main():
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    connection, company, environment, command = sys.argv[1:]
    application = Application(connection, company)
    lease = application.lease(environment)
    try:
        state = application.run(lease, command)
    finally:
        application.release(lease)
    if state["outcome"] == "exited":
        sys.exit(state["exit_code"])
    print(f"{state['outcome']}: {state['failure_reason'] or state['signal'] or ''}", file=sys.stderr)
    sys.exit(125)


if __name__ == "__main__":
    main()
