//! Messages to subscribers of a Laravel application, from small to large. The data of an event is JSON, escaped into a string
//! of the JSON message.

use pusherd::protocol::message::ServerMessage;
use pusherd::protocol::wire::{Frame, pusher};
use pusherd::protocol::{ChannelName, NameRules};
use serde_json::{Value, json};

/// The name of each message, and its frame.
pub(crate) fn frames() -> Vec<(&'static str, Frame)> {
    let order_with_everything = {
        let mut order = order(1);
        order["customer"] = json!({
            "id": 3084, "name": "Acme GmbH", "email": "orders@acme.example", "email_verified_at": null,
            "phone": "+49 40 1234567", "locale": "de",
            "created_at": "2024-02-11T09:30:00.000000Z", "updated_at": "2026-11-02T10:00:12.000000Z",
        });
        order["items"] = ["Oak shelf, 80 cm", "Wall bracket, black", "Wood screws, box of 100"]
            .iter()
            .zip(0..)
            .map(|(name, at)| {
                json!({
                    "id": 99_120 + at, "order_id": 48_218, "product_id": 311 + at * 17,
                    "sku": format!("SKU-{:05}", 1311 + at * 77), "name": name, "quantity": 1 + at,
                    "unit_price": format!("{}.{:02}", 89 - at * 31, 90 - at * 7),
                    "created_at": "2026-11-21T08:11:17.000000Z", "updated_at": "2026-11-21T08:11:17.000000Z",
                })
            })
            .collect();
        order["address"] =
            json!({ "street": "Große Elbstraße 12", "zip": "22767", "city": "Hamburg", "country": "DE" });
        order
    };
    let user = json!({
        "id": 42, "name": "Zoë Müller", "avatar_url": "https://cdn.example.com/avatars/42.png",
    });
    let body =
        "Can you have a look at the invoice for the Hamburg order? The address was wrong on the last one.";
    vec![
        (
            "price",
            frame("price", "cache-btc", &json!({ "eur": 61_234.5, "usd": 66_120.1, "at": 1_763_774_218 })),
        ),
        (
            "chat message",
            frame(
                "App\\Events\\MessageSent",
                "presence-chat.17",
                &json!({
                    "message": {
                        "id": 90_211, "chat_id": 17, "user_id": 42, "body": body,
                        "created_at": "2026-11-22T01:10:18.000000Z",
                    },
                    "user": user,
                }),
            ),
        ),
        (
            "notification",
            frame(
                "Illuminate\\Notifications\\Events\\BroadcastNotificationCreated",
                "private-App.Models.User.42",
                &json!({
                    "id": "5b0e9a4f-3e3c-44f5-9d6e-0d5b7a3d2f11", "type": "App\\Notifications\\InvoicePaid",
                    "title": "Invoice paid", "body": "Invoice 2026-1187 over 249.00 EUR was paid by Acme GmbH.",
                    "action_url": "https://shop.example.com/invoices/2026-1187",
                    "invoice": { "id": 1187, "number": "2026-1187", "amount": "249.00", "currency": "EUR" },
                }),
            ),
        ),
        (
            "model with relations",
            frame(
                "App\\Events\\OrderShipped",
                "private-orders.48218",
                &json!({ "order": order_with_everything }),
            ),
        ),
        (
            "list of 40 models",
            frame(
                "App\\Events\\DashboardRefreshed",
                "private-dashboard.3",
                &json!({ "orders": (0..40).map(order).collect::<Vec<_>>() }),
            ),
        ),
    ]
}

/// A model without its relations. The fields that differ between models are those that differ in practice.
fn order(at: u64) -> Value {
    let time = |hour: u64, second: u64| {
        format!("2026-11-2{}T0{}:1{}:{:02}.000000Z", at % 3, hour % 9, at % 6, second % 60)
    };
    json!({
        "id": 48_211 + at * 7,
        "uuid": format!("9c1f{:04x}-2b6e-4f0{}-9a3c-{:012x}", at * 7919 % 0xffff, at % 10, at * 987_654_321),
        "customer_id": 3071 + at * 13,
        "status": (["pending", "paid", "shipped", "delivered"][at as usize % 4]),
        "currency": "EUR",
        "total": format!("{}.{:02}", 20 + at * 37 % 400, at * 31 % 100),
        "notes": null,
        "created_at": time(at, at * 17),
        "updated_at": time(at + 1, at * 23),
    })
}

/// The message as Laravel publishes it and subscribers get it.
fn frame(event: &str, channel: &str, data: &Value) -> Frame {
    let channel = ChannelName::parse(channel, &NameRules::default()).expect("a valid name");
    let data = Value::from(data.to_string()).to_string();
    pusher::encode(&ServerMessage::Event { channel: &channel, event, data: &data, user: None })
}
