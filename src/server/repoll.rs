//! Polling a future again at once when it woke itself.
//!
//! hyper wakes its own connection once a POST while it is being polled. The runtime answers that with a wake-up
//! of an idle worker: one and a half system calls and a context switch for each request, a third of its cost.
//! Here the wake is noted and the future polled again in place.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

/// Polls in place before the runtime gets its turn, should a future never come to rest.
const ROUNDS: usize = 8;

/// Polls one future through a waker of its own.
#[derive(Debug)]
pub(super) struct Repoll {
    echo: Arc<Echo>,
    waker: Waker,
}

#[derive(Debug)]
struct Echo {
    task: Mutex<Waker>,
    polling: AtomicBool,
    woken: AtomicBool,
}

impl Wake for Echo {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.polling.load(Ordering::SeqCst) {
            self.woken.store(true, Ordering::SeqCst);
            // The poll may have ended just now, and not seen the note.
            if self.polling.load(Ordering::SeqCst) {
                return;
            }
        }
        self.task.lock().wake_by_ref();
    }
}

impl Default for Repoll {
    fn default() -> Self {
        let echo = Arc::new(Echo {
            task: Mutex::new(Waker::noop().clone()),
            polling: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        });
        Self { waker: Waker::from(Arc::clone(&echo)), echo }
    }
}

impl Repoll {
    /// Polls `future`, again while it wakes itself.
    pub(super) fn poll<F: Future>(
        &mut self,
        cx: &mut Context<'_>,
        mut future: Pin<&mut F>,
    ) -> Poll<F::Output> {
        let echo = &self.echo;
        let mut task = echo.task.lock();
        if !task.will_wake(cx.waker()) {
            task.clone_from(cx.waker());
        }
        drop(task);
        let mut own = Context::from_waker(&self.waker);
        echo.polling.store(true, Ordering::SeqCst);
        let mut polled = Poll::Pending;
        for _ in 0..ROUNDS {
            // A swap, not a store: what the waker wrote before it woke is seen by the poll that follows.
            echo.woken.swap(false, Ordering::SeqCst);
            polled = future.as_mut().poll(&mut own);
            if polled.is_ready() || !echo.woken.load(Ordering::SeqCst) {
                break;
            }
        }
        echo.polling.store(false, Ordering::SeqCst);
        // Woken after the last look, or out of rounds.
        if polled.is_pending() && echo.woken.load(Ordering::SeqCst) {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn a_future_that_wakes_itself_is_polled_again_in_place() {
        let outer = AtomicUsize::new(0);
        let mut rounds = 0;
        let mut inner = std::pin::pin!(poll_fn(|cx| {
            rounds += 1;
            cx.waker().wake_by_ref();
            if rounds == 5 { Poll::Ready(()) } else { Poll::Pending }
        }));
        let mut repoll = Repoll::default();
        poll_fn(|cx| {
            outer.fetch_add(1, Ordering::Relaxed);
            repoll.poll(cx, inner.as_mut())
        })
        .await;
        assert_eq!(outer.into_inner(), 1);
    }

    #[tokio::test]
    async fn a_future_that_never_rests_lets_others_run_and_ends() {
        let mut rounds = 0;
        let mut inner = std::pin::pin!(poll_fn(|cx| {
            rounds += 1;
            cx.waker().wake_by_ref();
            if rounds == 100 { Poll::Ready(()) } else { Poll::Pending }
        }));
        let mut repoll = Repoll::default();
        poll_fn(|cx| repoll.poll(cx, inner.as_mut())).await;
        assert_eq!(rounds, 100);
    }

    #[tokio::test]
    async fn a_wake_from_elsewhere_is_never_lost() {
        for _ in 0..200 {
            let (send, receive) = tokio::sync::oneshot::channel();
            let mut receive = std::pin::pin!(receive);
            std::thread::spawn(move || send.send(7));
            let mut repoll = Repoll::default();
            assert_eq!(poll_fn(|cx| repoll.poll(cx, receive.as_mut())).await, Ok(7));
        }
    }
}
