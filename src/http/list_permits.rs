//! The limit on lists of channels: one request of each app is served at a time, in order, and 15 may wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::ApiError;
use super::per_app::PerApp;
use crate::apps::App;
use crate::limits::Count;

/// Lists of one app that are served or waiting.
const LISTS_MAX: u32 = 16;

/// The permits of all apps.
#[derive(Debug, Default)]
pub(super) struct ListPermits(PerApp<AppQueue>);

#[derive(Debug)]
struct AppQueue {
    semaphore: Arc<Semaphore>,
    /// Requests that are served or waiting.
    requests: Arc<Count>,
}

impl Default for AppQueue {
    fn default() -> Self {
        Self { semaphore: Arc::new(Semaphore::new(1)), requests: Arc::default() }
    }
}

/// The permit of one request. Dropping it lets the next request continue.
#[derive(Debug)]
pub(super) struct ListPermit {
    _permit: Option<OwnedSemaphorePermit>,
    requests: Arc<Count>,
}

impl Drop for ListPermit {
    fn drop(&mut self) {
        self.requests.release();
    }
}

impl ListPermits {
    /// Waits for a permit of the app, at most for `wait_max`.
    pub(super) async fn acquire(&self, app: &App, wait_max: Duration) -> Result<ListPermit, ApiError> {
        let queue = self.0.of(app);
        if !queue.requests.try_acquire(Some(LISTS_MAX)) {
            return Err(ApiError::TooManyLists(LISTS_MAX));
        }
        let mut list = ListPermit { _permit: None, requests: Arc::clone(&queue.requests) };
        match timeout(wait_max, Arc::clone(&queue.semaphore).acquire_owned()).await {
            Ok(permit) => list._permit = permit.ok(),
            Err(_) => return Err(ApiError::TooManyLists(LISTS_MAX)),
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const WAIT_MAX: Duration = Duration::from_secs(10);

    fn permits() -> (ListPermits, App) {
        (ListPermits::default(), App::new("1", "k", "s"))
    }

    #[tokio::test(start_paused = true)]
    async fn one_list_of_an_app_is_served_at_a_time() {
        let (permits, app) = permits();
        let first = permits.acquire(&app, WAIT_MAX).await.unwrap();
        let begin = Instant::now();
        assert!(matches!(permits.acquire(&app, WAIT_MAX).await, Err(ApiError::TooManyLists(_))));
        assert_eq!(begin.elapsed(), WAIT_MAX, "after the longest wait");
        permits.acquire(&App::new("2", "k2", "s"), WAIT_MAX).await.unwrap();
        drop(first);
        permits.acquire(&app, Duration::ZERO).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn above_the_limit_of_waiting_lists_a_request_is_rejected_at_once() {
        let (permits, app) = permits();
        let _first = permits.acquire(&app, WAIT_MAX).await.unwrap();
        let waiting = (1..LISTS_MAX).map(|_| permits.acquire(&app, WAIT_MAX));
        let mut waiting: Vec<_> = waiting.map(Box::pin).collect();
        for list in &mut waiting {
            let _ = timeout(Duration::ZERO, list).await;
        }
        let begin = Instant::now();
        let rejected = permits.acquire(&app, WAIT_MAX).await.unwrap_err();
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert!(rejected.to_string().contains("15 may wait"), "{rejected}");
        // A client that disconnects frees a position in the queue.
        drop(waiting.pop());
        assert!(timeout(Duration::ZERO, permits.acquire(&app, WAIT_MAX)).await.is_err(), "it waits");
    }
}
