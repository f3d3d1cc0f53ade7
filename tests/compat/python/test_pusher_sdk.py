"""The Python SDK, with a plain WebSocket client as the subscriber."""

import json
import unittest

import pusher
from pusher.errors import PusherBadAuth, PusherBadRequest, PusherBadStatus
from websockets.exceptions import ConnectionClosed

from pusherd import APP_ID, HOST, KEY, SECRET, Connection, Pusherd, open_socket

MASTER_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

server = None


def setUpModule():
    global server
    server = Pusherd()


def tearDownModule():
    server.stop()


def sdk(**changes):
    """The SDK. `changes` override its options."""
    options = {"app_id": APP_ID, "key": KEY, "secret": SECRET, **changes}
    return pusher.Pusher(
        host=HOST, port=server.port, ssl=False, encryption_master_key_base64=MASTER_KEY, **options
    )


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.sdk = sdk()
        # Each test has its own channels and users.
        self.mark = self.id().rsplit(".", 1)[-1]

    def connect(self, **options):
        connection = Connection(server, **options)
        self.addCleanup(connection.close)
        return connection

    def subscriber(self, channel, user=None):
        """A connection that is subscribed to a channel, with an authorisation of the SDK if necessary."""
        connection = self.connect()
        auth = {}
        if channel.startswith(("private-", "presence-")):
            custom = {"user_id": user, "user_info": {"name": user}} if user else None
            auth = self.sdk.authenticate(channel, connection.socket_id, custom)
        answer = connection.subscribe(channel, **auth)
        self.assertEqual(answer["event"], "pusher_internal:subscription_succeeded", answer)
        return connection

    def signed_in(self, user):
        """A signed-in connection that is subscribed to the channel of its user."""
        connection = self.connect()
        connection.send("pusher:signin", self.sdk.authenticate_user(connection.socket_id, {"id": user}))
        answer = connection.receive()
        self.assertEqual(answer["event"], "pusher:signin_success", answer)
        answer = connection.subscribe(f"#server-to-user-{user}", auth="")
        self.assertEqual(answer["event"], "pusher_internal:subscription_succeeded", answer)
        return connection

    def assert_nothing_before(self, connection, channel):
        """Asserts that nothing arrives before a fence."""
        self.sdk.trigger(channel, "fence", "now")
        self.assertEqual(connection.receive(), {"event": "fence", "channel": channel, "data": "now"})


class Frames(Case):
    """The text of frames, which pusher-js does not show."""

    def test_the_first_frame_has_a_socket_id_and_the_activity_timeout(self):
        frame = self.connect().established
        self.assertEqual(set(frame), {"event", "data"})
        data = json.loads(frame["data"])
        self.assertRegex(data["socket_id"], r"\A[0-9]+\.[0-9]+\Z")
        self.assertEqual(data["activity_timeout"], 30)

    def test_subscription_succeeded_has_string_data(self):
        answer = self.connect().subscribe(self.mark)
        expected = {"event": "pusher_internal:subscription_succeeded", "channel": self.mark, "data": "{}"}
        self.assertEqual(answer, expected)

    def test_pong_has_string_data(self):
        connection = self.connect()
        for data in ({}, "{}", None):
            connection.send("pusher:ping", data)
            self.assertEqual(connection.receive(), {"event": "pusher:pong", "data": "{}"})

    def test_error_has_object_data(self):
        connection = self.connect()
        connection.send("nonsense", {})
        frame = connection.receive()
        self.assertEqual(set(frame), {"event", "data"})
        self.assertEqual(set(frame["data"]), {"code", "message"})
        self.assertIsNone(frame["data"]["code"])

    def test_a_refused_subscription_gets_an_error_of_the_channel_and_then_of_the_connection(self):
        connection = self.connect()
        channel = f"private-{self.mark}"
        frame = connection.subscribe(channel, auth=f"{KEY}:{'0' * 64}")
        self.assertEqual((frame["event"], frame["channel"]), ("pusher:subscription_error", channel))
        self.assertIsInstance(frame["data"], str)
        data = json.loads(frame["data"])
        self.assertEqual((data["type"], data["status"]), ("AuthError", 401))
        frame = connection.receive()
        self.assertEqual((frame["event"], frame["data"]["code"]), ("pusher:error", 4009))

    def test_the_data_of_a_subscription_may_be_a_string(self):
        connection = self.connect()
        connection.send("pusher:subscribe", json.dumps({"channel": self.mark}))
        self.assertEqual(connection.receive()["event"], "pusher_internal:subscription_succeeded")

    def test_client_event_keeps_the_type_of_its_data(self):
        channel = f"private-{self.mark}"
        sender, receiver = self.subscriber(channel), self.subscriber(channel)
        for data in ({"on": True}, '{"on":true}', "text", "", 5, 12345678901234567890, [1], True, None):
            sender.send("client-typing", data, channel=channel)
            self.assertEqual(receiver.receive(), {"event": "client-typing", "channel": channel, "data": data})

    def test_client_event_on_a_presence_channel_names_its_sender(self):
        channel = f"presence-{self.mark}"
        receiver = self.subscriber(channel, "ada")
        sender = self.subscriber(channel, "bob")
        frame = receiver.receive()
        self.assertEqual(frame["event"], "pusher_internal:member_added")
        self.assertEqual(json.loads(frame["data"]), {"user_id": "bob", "user_info": {"name": "bob"}})
        sender.send("client-typing", {"on": True}, channel=channel)
        expected = {"event": "client-typing", "channel": channel, "data": {"on": True}, "user_id": "bob"}
        self.assertEqual(receiver.receive(), expected)


class Handshake(Case):
    """Handshakes of other clients than pusher-js."""

    def test_the_queries_of_other_clients_are_accepted(self):
        for query in (
            "",
            "?protocol=5&client=java-client&version=2.4.4",
            "?protocol=5&client=pusher-dotnet-client&version=2.1.0",
            "?protocol=6",
            "?protocol=7&client=js&version=8.6.0&flash=false",
            "?protocol=",
            "?anything=else",
        ):
            with self.subTest(query):
                self.connect(path=f"/app/{KEY}{query}")

    def test_a_rejection_has_the_same_code_in_the_frame_and_in_the_close(self):
        for path, code in (
            ("/app/no-such-key?protocol=7", 4001),
            (f"/app/{KEY}?protocol=4", 4007),
            (f"/app/{KEY}?protocol=8", 4007),
            (f"/app/{KEY}?protocol=x", 4007),
            ("/elsewhere", 4005),
        ):
            with self.subTest(path):
                self.assert_rejected(path, code)

    def assert_rejected(self, path, code):
        with open_socket(server, path) as socket:
            frame = json.loads(socket.recv(10))
            self.assertEqual(frame["event"], "pusher:error")
            self.assertEqual(frame["data"]["code"], code)
            with self.assertRaises(ConnectionClosed) as closed:
                socket.recv(10)
            self.assertEqual(closed.exception.rcvd.code, code)

    def test_the_subprotocol_of_swift_is_selected(self):
        name = "pusher-channels-protocol-7"
        with open_socket(server, f"/app/{KEY}?protocol=7", subprotocols=["other", name]) as socket:
            self.assertEqual(socket.subprotocol, name)

    def test_a_binary_frame_closes_with_1003(self):
        connection = self.connect()
        connection.socket.send(b"\x00\x01")
        with self.assertRaises(ConnectionClosed) as closed:
            connection.receive()
        self.assertEqual(closed.exception.rcvd.code, 1003)

    def test_a_frame_above_the_limit_closes_with_1009(self):
        connection = self.connect()
        connection.send("client-big", "x" * 40_000, channel="private-x")
        with self.assertRaises(ConnectionClosed) as closed:
            connection.receive()
        self.assertEqual(closed.exception.rcvd.code, 1009)


class Trigger(Case):
    def test_returns_an_object_and_delivers_the_event(self):
        connection = self.subscriber(self.mark)
        self.assertEqual(self.sdk.trigger(self.mark, "greeted", {"text": "Grüße 😀"}), {})
        frame = connection.receive()
        self.assertEqual(set(frame), {"event", "channel", "data"})
        self.assertEqual((frame["event"], frame["channel"]), ("greeted", self.mark))
        self.assertEqual(json.loads(frame["data"]), {"text": "Grüße 😀"})

    def test_the_data_string_is_not_changed(self):
        connection = self.subscriber(self.mark)
        for data in (
            "5",
            '"5"',
            "",
            "null",
            "text",
            "😀 Grüße 漢字 \U0010ffff",
            r'{"escaped":"caf\u00e9 \ud83d\ude00 \/"}',
            r'{"lone":"\ud83d"}',
            '{ "spaces" :  1.0 , "big": 12345678901234567890, "e": 1E5 }',
            "</script>\u2028\u2029\u0000\u001f\u007f",
            '{"broken":',
        ):
            with self.subTest(data):
                self.sdk.trigger(self.mark, "text", data)
                self.assertEqual(connection.receive(), {"event": "text", "channel": self.mark, "data": data})

    def test_a_lone_surrogate_in_the_body_is_delivered_as_an_escape(self):
        connection = self.subscriber(self.mark)
        # The SDK sends it as the JSON escape "\\ud83d".
        self.sdk.trigger(self.mark, "text", "half \ud83d of it")
        frame = connection.receive_text()
        self.assertIn(r"half \ud83d of it", frame.lower())

    def test_an_event_to_100_channels_reaches_their_subscribers(self):
        channels = [f"{self.mark}-{n}" for n in range(100)]
        connections = [self.subscriber(channel) for channel in channels[::33]]
        self.sdk.trigger(channels, "greeted", "x")
        for connection, channel in zip(connections, channels[::33]):
            self.assertEqual(connection.receive(), {"event": "greeted", "channel": channel, "data": "x"})

    def test_an_event_reaches_private_and_presence_channels(self):
        for kind in ("private", "presence", "private-cache", "presence-cache"):
            channel = f"{kind}-{self.mark}"
            connection = self.subscriber(channel, "ada")
            if "cache" in kind:
                expected = {"event": "pusher:cache_miss", "channel": channel, "data": "{}"}
                self.assertEqual(connection.receive(), expected)
            self.sdk.trigger(channel, "greeted", "x")
            self.assertEqual(connection.receive(), {"event": "greeted", "channel": channel, "data": "x"})

    def test_an_event_of_an_encrypted_channel_is_encrypted(self):
        channel = f"private-encrypted-{self.mark}"
        connection = self.connect()
        auth = self.sdk.authenticate(channel, connection.socket_id)
        self.assertEqual(
            connection.subscribe(channel, auth=auth["auth"])["event"], "pusher_internal:subscription_succeeded"
        )
        self.sdk.trigger(channel, "secret", {"a": 1})
        frame = connection.receive()
        self.assertEqual(set(json.loads(frame["data"])), {"nonce", "ciphertext"})

    def test_the_excluded_socket_receives_nothing(self):
        excluded, other = self.subscriber(self.mark), self.subscriber(self.mark)
        self.sdk.trigger(self.mark, "greeted", "x", excluded.socket_id)
        self.assertEqual(other.receive()["event"], "greeted")
        self.assert_nothing_before(excluded, self.mark)

    def test_a_reserved_event_name_is_rejected(self):
        connection = self.subscriber(self.mark)
        with self.assertRaises(PusherBadRequest):
            self.sdk.trigger(self.mark, "pusher:error", "x")
        self.assert_nothing_before(connection, self.mark)


class TriggerBatch(Case):
    def test_delivers_in_order(self):
        connection = self.subscriber(self.mark)
        batch = [{"channel": self.mark, "name": "n", "data": str(n)} for n in range(10)]
        self.assertEqual(self.sdk.trigger_batch(batch), {})
        for n in range(10):
            self.assertEqual(connection.receive(), {"event": "n", "channel": self.mark, "data": str(n)})

    def test_excludes_a_socket_per_event(self):
        connection = self.subscriber(self.mark)
        batch = [
            {"channel": self.mark, "name": "one", "data": "1", "socket_id": connection.socket_id},
            {"channel": self.mark, "name": "two", "data": "2"},
        ]
        self.sdk.trigger_batch(batch)
        self.assertEqual(connection.receive()["event"], "two")

    def test_a_batch_of_eleven_events_is_rejected_as_a_whole(self):
        connection = self.subscriber(self.mark)
        with self.assertRaises(PusherBadRequest):
            self.sdk.trigger_batch([{"channel": self.mark, "name": "n", "data": "x"}] * 11)
        self.assert_nothing_before(connection, self.mark)


class Queries(Case):
    """GET requests, which this SDK signs with the MD5 of an empty body."""

    def test_channels_info_returns_the_occupied_channels(self):
        room = f"presence-{self.mark}"
        self.subscriber(room, "ada")
        self.subscriber(room, "bob")
        self.subscriber(room, "bob")
        self.assertEqual(self.sdk.channels_info(room, ["user_count"]), {"channels": {room: {"user_count": 2}}})
        self.assertEqual(self.sdk.channels_info(f"{room}-none"), {"channels": {}})
        self.assertIn(room, self.sdk.channels_info()["channels"])

    def test_channels_info_with_user_count_needs_a_presence_prefix(self):
        with self.assertRaises(PusherBadRequest):
            self.sdk.channels_info("news", ["user_count"])

    def test_channel_info_returns_the_counts(self):
        room = f"presence-{self.mark}"
        self.assertEqual(self.sdk.channel_info(room, ["user_count"]), {"occupied": False, "user_count": 0})
        self.subscriber(room, "ada")
        attributes = ["user_count", "subscription_count"]
        expected = {"occupied": True, "user_count": 1, "subscription_count": 1}
        self.assertEqual(self.sdk.channel_info(room, attributes), expected)

    def test_channel_info_rejects_an_attribute_of_another_kind(self):
        with self.assertRaises(PusherBadRequest):
            self.sdk.channel_info(self.mark, ["user_count"])

    def test_users_info_returns_each_user_once(self):
        room = f"presence-{self.mark}"
        self.assertEqual(self.sdk.users_info(room), {"users": []})
        for user in ("ada", "bob", "bob"):
            self.subscriber(room, user)
        users = self.sdk.users_info(room)["users"]
        self.assertEqual(sorted(user["id"] for user in users), ["ada", "bob"])

    def test_users_info_rejects_other_channels(self):
        with self.assertRaises(PusherBadRequest):
            self.sdk.users_info(self.mark)


class Authenticate(Case):
    def test_custom_data_is_accepted_on_a_private_channel(self):
        channel = f"private-{self.mark}"
        connection = self.connect()
        auth = self.sdk.authenticate(channel, connection.socket_id, {"note": "ä/x"})
        answer = connection.subscribe(channel, **auth)
        self.assertEqual(answer["event"], "pusher_internal:subscription_succeeded")

    def test_presence_data_becomes_the_member(self):
        channel = f"presence-{self.mark}"
        connection = self.connect()
        member = {"user_id": 7, "user_info": {"name": "Zoë"}}
        auth = self.sdk.authenticate(channel, connection.socket_id, member)
        answer = connection.subscribe(channel, **auth)
        presence = json.loads(answer["data"])["presence"]
        self.assertEqual(presence, {"ids": ["7"], "hash": {"7": {"name": "Zoë"}}, "count": 1})

    def test_an_authorisation_is_valid_for_one_channel_and_connection_only(self):
        channel = f"private-{self.mark}"
        other = self.connect()
        for authenticate in (
            lambda socket_id: self.sdk.authenticate(f"{channel}-elsewhere", socket_id),
            lambda socket_id: self.sdk.authenticate(channel, other.socket_id),
            lambda socket_id: sdk(secret="wrong").authenticate(channel, socket_id),
            lambda socket_id: sdk(key="wrong").authenticate(channel, socket_id),
        ):
            connection = self.connect()
            answer = connection.subscribe(channel, **authenticate(connection.socket_id))
            self.assertEqual(answer["event"], "pusher:subscription_error")
            self.assertEqual(connection.receive()["event"], "pusher:error")
        self.assertEqual(self.sdk.channel_info(channel), {"occupied": False})

    def test_a_forged_sign_in_is_rejected(self):
        connection = self.connect()
        forged = sdk(secret="wrong").authenticate_user(connection.socket_id, {"id": "ada"})
        connection.send("pusher:signin", forged)
        frame = connection.receive()
        self.assertEqual((frame["event"], frame["data"]["code"]), ("pusher:error", 4009))


class Users(Case):
    def test_send_to_user_reaches_only_that_user(self):
        ada, bob = self.signed_in(f"ada-{self.mark}"), self.signed_in(f"bob-{self.mark}")
        self.assertEqual(self.sdk.send_to_user(f"ada-{self.mark}", "hello", "x"), {})
        channel = f"#server-to-user-ada-{self.mark}"
        self.assertEqual(ada.receive(), {"event": "hello", "channel": channel, "data": "x"})
        self.sdk.send_to_user(f"bob-{self.mark}", "fence", "x")
        self.assertEqual(bob.receive()["event"], "fence")

    def test_terminate_user_connections_closes_all_connections_of_the_user(self):
        user = f"ada-{self.mark}"
        connections = [self.signed_in(user), self.signed_in(user)]
        bystander = self.signed_in(f"bob-{self.mark}")
        self.assertEqual(self.sdk.terminate_user_connections(user), {})
        for connection in connections:
            frame = connection.receive()
            self.assertEqual((frame["event"], frame["data"]["code"]), ("pusher:error", 4009))
            with self.assertRaises(ConnectionClosed) as closed:
                connection.receive()
            self.assertEqual(closed.exception.rcvd.code, 4009)
        bystander.send("pusher:ping", {})
        self.assertEqual(bystander.receive()["event"], "pusher:pong")


class Rejections(Case):
    def requests(self, client):
        channel = self.mark
        return {
            "trigger": lambda: client.trigger(channel, "forged", "x"),
            "trigger_batch": lambda: client.trigger_batch([{"channel": channel, "name": "forged", "data": "x"}]),
            "channels_info": lambda: client.channels_info(),
            "channel_info": lambda: client.channel_info(channel),
            "users_info": lambda: client.users_info(f"presence-{channel}"),
            "terminate_user_connections": lambda: client.terminate_user_connections("ada"),
            "send_to_user": lambda: client.send_to_user("ada", "forged", "x"),
        }

    def test_a_wrong_secret_or_key_raises(self):
        connection = self.subscriber(self.mark)
        for change in ({"secret": "wrong"}, {"key": "wrong"}):
            for name, request in self.requests(sdk(**change)).items():
                with self.subTest(name, **change), self.assertRaises(PusherBadAuth):
                    request()
        self.assert_nothing_before(connection, self.mark)

    def test_an_unknown_app_raises(self):
        requests = self.requests(sdk(app_id="9999"))
        # This SDK sends the request without the app id; the key names the app.
        del requests["terminate_user_connections"]
        for name, request in requests.items():
            with self.subTest(name), self.assertRaisesRegex(PusherBadStatus, "^404"):
                request()


if __name__ == "__main__":
    unittest.main()
