//! The Pusher Channels protocol: names, messages, signatures, close codes, and their encodings.
//!
//! This module owns the checked names (`ChannelName`, `EventName`, `SocketId`, `UserId`), the positions of
//! messages in channels ([`Position`]), the close codes, the signatures of clients and requests, the messages ([`message`]) and the codecs between messages and bytes ([`wire`]).
//! Bytes become checked types here and nowhere else; the rest of pusherd trusts the types.
//!
//! It is pure: no sockets, tasks, clocks, randomness or environment, so every function has a table test.
//! Start at [`message`], then [`wire::pusher`].

pub mod channel;
pub mod close;
pub mod json;
pub mod message;
pub mod name;
pub mod position;
pub mod request;
pub mod signature;
pub mod socket_id;
pub mod wire;

pub use channel::{Access, ChannelName, ChannelNameError, NameRules};
pub use close::CloseCode;
pub use name::{EventName, EventNameError, Member, UserId, UserIdError};
pub use position::{Epoch, Offset, Position};
pub use socket_id::SocketId;
