//! The probe: checks that published messages arrive. A Redis can accept everything and deliver nothing.

use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::error::ConnectionError;
use super::pipeline::RequestQueue;
use super::replies;
use super::scripts::Call;

const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Publishes numbers over one connection that must arrive over another, of the same server or not. Ends when one does
/// not.
pub(super) async fn probe(
    server: String,
    publisher: RequestQueue,
    publish: &'static str,
    topic: String,
    subscribed: oneshot::Receiver<()>,
    mut received: watch::Receiver<u64>,
) -> ConnectionError {
    if subscribed.await.is_err() {
        // The connection that failed to subscribe reports its error.
        return std::future::pending().await;
    }
    let mut number = 0_u64;
    loop {
        number += 1;
        drop(publisher.send_urgent(vec![Call::new(publish).arg(&topic).arg(number)], replies::ignore));
        match timeout(PROBE_TIMEOUT, received.wait_for(|received| *received >= number)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return ConnectionError::ProbeLost(server),
        }
        sleep(PROBE_INTERVAL).await;
    }
}
