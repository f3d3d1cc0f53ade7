"""Webhooks, verified by the Python SDK."""

import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import pusher

from pusherd import APP_ID, HOST, KEY, SECRET, Connection, Pusherd

TAKE_TIMEOUT_SECS = 10

receiver = None
server = None


class Receiver(ThreadingHTTPServer):
    """Accepts every webhook, and keeps its headers and its body."""

    daemon_threads = True

    def __init__(self):
        self.requests = Queue()
        super().__init__((HOST, 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://{HOST}:{self.server_port}/hooks"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.requests.put((self.headers, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def setUpModule():
    global receiver, server
    receiver = Receiver()
    server = Pusherd(f'webhooks = [{{ url = "{receiver.url}" }}]')


def tearDownModule():
    server.stop()
    receiver.shutdown()
    receiver.server_close()


def sdk(**changes):
    return pusher.Pusher(**{"app_id": APP_ID, "key": KEY, "secret": SECRET, **changes})


def validated(client, headers, body):
    return client.validate_webhook(headers["X-Pusher-Key"], headers["X-Pusher-Signature"], body)


class Webhooks(unittest.TestCase):
    def take(self):
        return receiver.requests.get(timeout=TAKE_TIMEOUT_SECS)

    def test_the_sdk_accepts_a_webhook(self):
        connection = Connection(server)
        self.addCleanup(connection.close)
        connection.subscribe("news")
        headers, body = self.take()
        self.assertEqual(headers["Content-Type"], "application/json")
        webhook = validated(sdk(), headers, body)
        self.assertEqual(webhook["events"], [{"name": "channel_occupied", "channel": "news"}])
        self.assertRegex(headers["X-Pusherd-Event-Ids"], "^[0-9a-f]{16}-[0-9a-f]+$")

    def test_the_sdk_accepts_a_client_event_with_any_text(self):
        connection = Connection(server)
        self.addCleanup(connection.close)
        channel = "private-room"
        auth = sdk().authenticate(channel, connection.socket_id)
        connection.subscribe(channel, **auth)
        events = [validated(sdk(), *self.take())["events"][0]]
        text = "Zoë \U0001f600 \"quoted\" </script>"
        connection.send("client-x", text, channel=channel)
        while events[-1]["name"] != "client_event":
            events.append(validated(sdk(), *self.take())["events"][0])
        self.assertEqual(events[-1]["data"], text)
        self.assertEqual(events[-1]["socket_id"], connection.socket_id)

    def test_the_sdk_rejects_a_changed_webhook_and_one_that_another_app_signed(self):
        connection = Connection(server)
        self.addCleanup(connection.close)
        connection.subscribe("orders")
        headers, body = self.take()
        self.assertIsNotNone(validated(sdk(), headers, body))
        self.assertIsNone(validated(sdk(), headers, body + " "))
        self.assertIsNone(validated(sdk(secret="other-secret"), headers, body))
        self.assertIsNone(validated(sdk(key="other-key"), headers, body))


if __name__ == "__main__":
    unittest.main()
