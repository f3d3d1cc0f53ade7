//! What the Pusher Channels protocol says, and nothing about how bytes travel.
//!
//! Owns the checked names (`ChannelName`, `EventName`, `SocketId`, `UserId`), the close codes, the signatures
//! of clients and requests, the vocabulary of messages ([`message`]) and the codecs between that vocabulary and bytes ([`wire`]). Bytes
//! become checked types here and nowhere else; the rest of pusherd trusts the types.
//!
//! Knows nothing of sockets, tasks, clocks, randomness or the environment: every function is a table test.
//! Start at [`message`], then [`wire::pusher`].

pub mod channel;
pub mod close;
pub mod json;
pub mod message;
pub mod name;
pub mod request;
pub mod signature;
pub mod socket_id;
pub mod wire;

pub use channel::{Access, ChannelName, ChannelNameError, NameRules};
pub use close::CloseCode;
pub use name::{EventName, EventNameError, Member, UserId, UserIdError};
pub use socket_id::SocketId;
