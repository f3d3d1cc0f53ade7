//! Signing in. Source: protocol.md §6.1.

use std::collections::HashSet;
use std::time::Duration;

use super::{Action, Session, SignedIn};
use crate::limits::Limit;
use crate::protocol::json;
use crate::protocol::message::SignIn;
use crate::protocol::{CloseCode, Member, UserId, UserIdError};
use crate::rejections::{Mistake, Rejection};

impl Session {
    pub(super) fn sign_in<'m>(&mut self, request: SignIn<'m>, now: Duration) -> Action<'m> {
        let refused_by = |limit: Option<Limit>, reason: String| {
            let setting = limit.map(|limit| format!(" ({} of the app)", limit.setting()));
            let message = format!("Sign-in refused: {reason}{}", setting.unwrap_or_default());
            let why = limit.map_or(Mistake::SignIn.into(), Rejection::from);
            Action::Error { code: Some(CloseCode::Unauthorized.number()), message, why }
        };
        let refused = |reason: &str| refused_by(None, reason.to_owned());
        let Some(user_data) = request.user_data else {
            return self.malformed("Missing parameter: data.user_data", now);
        };
        let Some(auth) = request.auth else { return self.malformed("Missing parameter: data.auth", now) };
        let verified = auth.split_once(':').is_some_and(|(key, signature)| {
            let secret = self.app.secret(key);
            secret.is_some_and(|secret| secret.verifies_sign_in(signature, self.socket, &user_data))
        });
        if !verified {
            return refused("invalid signature");
        }
        if json::is_too_deep(user_data.as_bytes()) {
            return refused(&format!("user_data is nested more than {} levels deep", json::DEPTH_MAX));
        }
        let limits = &self.app.limits;
        let Ok([id, info, watchlist]) = json::pick(&user_data, ["id", "user_info", "watchlist"]) else {
            return refused("user_data is not a JSON object");
        };
        let Some(id) = id else { return refused("user_data has no id") };
        let id = match UserId::from_json(id, limits.user_id_chars_max).and_then(UserId::with_channel) {
            Ok(id) => id,
            Err(why @ UserIdError::TooLong { .. }) => {
                return refused_by(Some(Limit::UserIdChars), why.to_string());
            }
            Err(why @ (UserIdError::Type | UserIdError::Alphabet)) => return refused(&why.to_string()),
        };
        let info = info.map_or("null", |info| info.get());
        let (bytes, bytes_max) = (info.len(), limits.presence_user_info_bytes_max);
        if bytes > bytes_max {
            let why = format!("user_info has {bytes} bytes, more than the {bytes_max} allowed");
            return refused_by(Some(Limit::UserInfoBytes), why);
        }
        if self.signed_in().is_some_and(|before| before.member.id != id) {
            return refused("the connection is signed in as another user");
        }
        let (watchlist, truncated_to) = match watchlist.filter(|_| self.app.watchlist) {
            Some(list) => watchlist_of(list.get(), limits.watchlist_users_max, limits.user_id_chars_max),
            None => (Vec::new(), None),
        };
        let signed_in = SignedIn { member: Member { id, info: info.into() }, watchlist };
        let before = self.signed_in.replace(Box::new(signed_in.clone()));
        let previous_watchlist = before.map(|before| before.watchlist).unwrap_or_default();
        Action::SignIn { user_data, signed_in, previous_watchlist, truncated_to }
    }
}

/// The ids of a watchlist without duplicates and invalid ids, truncated to `users_max`, and that limit if it truncated.
fn watchlist_of(list: &str, users_max: usize, chars_max: usize) -> (Vec<UserId>, Option<usize>) {
    let (mut users, mut seen) = (Vec::new(), HashSet::new());
    for item in json::items(list, usize::MAX - 1).unwrap_or_default() {
        let Ok(user) = UserId::from_json(item, chars_max) else { continue };
        if !seen.insert(user.clone()) {
            continue;
        }
        if users.len() == users_max {
            return (users, Some(users_max));
        }
        users.push(user);
    }
    (users, None)
}
