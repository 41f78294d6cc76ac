//! Alerts: each channel has a task that claims what is due, sends it, and records how that went. Beside deliveries, and
//! never in their way.
//!
//! **Repeats.** An alert that was sent and not yet recorded when the process dies is sent again, under the same id. So
//! that this is one at most, alerts go out one at a time in the whole process, from the sending to the record of it. Only
//! those to a place that gave no answer to the last one go aside, several at once, so that it does not hold up other channels.
//!
//! **Where** an alert goes was decided when it was written, but for the operational webhook, of which the project says so
//! when it is sent.

pub mod certificates;
mod mail;
mod places;
mod render;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use mail::{MailSettings, MailTls};

use super::Shared;
use super::writer::chain;
use crate::dispatch::Dispatcher;
use crate::domain::alert::{Alert, Channel};
use crate::domain::attempt::AttemptOutcome;
use crate::domain::clock::Timestamp;
use crate::domain::error::Error;
use crate::domain::id::LeaseId;
use crate::domain::retry::{RetryPolicy, RetryStrategy};
use crate::domain::signature::{self, STANDARD_HEADER, SignatureSettings};
use crate::domain::url_rules::UrlRules;
use crate::metrics::Metrics;
use crate::store::{AlertFate, AlertTarget, ClaimedAlert, Lane, Result, Store, StoreError};
use mail::Mailer;
use places::{Place, Places};

/// How alerts are sent.
#[derive(Clone, Debug)]
pub struct SenderSettings {
    /// The operator's mail server; none: this process sends no mail.
    pub mail: Option<MailSettings>,
    pub retry: RetryPolicy,
    /// How long alerts are kept.
    pub retention: Duration,
}

impl SenderSettings {
    /// Waits of `base × 3ⁿ`, two hours at most.
    pub fn retry(base: Duration, max_attempts: u16) -> RetryPolicy {
        let strategy =
            RetryStrategy::Exponential { base, factor: 3.0, cap: Duration::from_secs(2 * 3600), jitter: 0.2 };
        RetryPolicy { strategy, max_attempts }
    }
}

/// The slow round, which also finds what is tried again, and what other nodes left behind.
const ROUND: Duration = Duration::from_secs(1);
/// Alerts of a channel that are held at once.
const BATCH: usize = 8;
/// One attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Mail servers like to think.
const MAIL_TIMEOUT: Duration = Duration::from_secs(20);
const STEP_LONGEST: Duration = Duration::from_secs(10);
/// The pause before a record that failed is tried again.
const RECORD_AGAIN: Duration = Duration::from_millis(500);

/// What the channels' tasks share.
pub struct Sender {
    store: Store,
    shared: Arc<Shared>,
    dispatcher: Dispatcher,
    rules: UrlRules,
    retry: RetryPolicy,
    mailer: Option<Mailer>,
    metrics: Arc<Metrics>,
    /// Held from the sending of an alert to the record of it.
    turn: Mutex<()>,
    places: Places,
}

impl Sender {
    pub(super) fn new(
        store: Store,
        shared: Arc<Shared>,
        rules: UrlRules,
        settings: SenderSettings,
    ) -> crate::domain::error::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            store,
            dispatcher: shared.dispatcher.clone(),
            metrics: shared.metrics.clone(),
            shared,
            rules,
            retry: settings.retry,
            mailer: settings.mail.map(Mailer::new).transpose().map_err(Error::internal)?,
            turn: Mutex::default(),
            places: Places::default(),
        }))
    }

    /// The channels that this process can send by.
    pub(super) fn channels(&self) -> impl Iterator<Item = Channel> {
        let has_mail = self.mailer.is_some();
        Channel::ALL.into_iter().filter(move |channel| *channel != Channel::Email || has_mail)
    }

    /// Sends a channel's alerts until told to stop; what is being sent then is sent to its end.
    pub(super) async fn run(self: Arc<Self>, channel: Channel, stop: CancellationToken) {
        let mut written = self.store.alerts();
        let mut sending = JoinSet::new();
        while !stop.is_cancelled() {
            written.mark_unchanged();
            match self.claim(channel, BATCH - sending.len()).await {
                Ok(claimed) => {
                    for alert in claimed {
                        sending.spawn(self.clone().process(alert, stop.clone()));
                    }
                }
                Err(error) => {
                    let channel = channel.as_str();
                    tracing::warn!(
                        channel,
                        error = chain(&error),
                        "alerts could not be claimed; tried again"
                    );
                }
            }
            tokio::select! {
                Some(ended) = sending.join_next() => settled(ended),
                Ok(()) = written.changed() => {}
                () = tokio::time::sleep(ROUND) => {}
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = sending.join_next().await {
            settled(ended);
        }
    }

    /// Claims alerts that are due, so many at most.
    async fn claim(&self, channel: Channel, room: usize) -> Result<Vec<ClaimedAlert>> {
        let lease = self.shared.keeper.lease();
        if room == 0
            || !self.shared.keeper.may_send(lease)
            || !self.store.in_time(STEP_LONGEST, self.store.has_due_alerts(channel)).await?
        {
            return Ok(Vec::new());
        }
        let claim = async {
            let tx = self.store.begin(Lane::Engine).await?;
            let claimed = tx.claim_alerts(channel, lease, room).await?;
            tx.commit().await?;
            Ok::<_, StoreError>(claimed)
        };
        let claimed = self.store.in_time(STEP_LONGEST, claim).await;
        if claimed.as_ref().is_err_and(|error| error.is_ambiguous() || matches!(error, StoreError::LeaseGone))
        {
            // It may have claimed what nobody here knows of, or the lease is another's to free.
            self.shared.keeper.give_up(lease);
        }
        claimed
    }

    /// Sends one and records how that went: in its turn, or aside where its place is suspect.
    async fn process(self: Arc<Self>, alert: ClaimedAlert, stop: CancellationToken) {
        let place = Place::of(&alert);
        let turn = match self.places.is_suspect(place) {
            true => None,
            false => Some(self.turn.lock().await),
        };
        // The one before it may have met with a failure there while this one waited.
        let turn = turn.filter(|_| !self.places.is_suspect(place));
        // The lease may be late to be renewed, and its claims stand; where it is given up, this changes nothing.
        if stop.is_cancelled() || !self.shared.keeper.may_send(alert.claim.lease) {
            return self.record(&alert, &AlertFate::GivenBack).await;
        }
        let fate = match &alert.content {
            Ok((content, target)) => {
                let answer = self.send(&alert, content, target).await;
                self.places.note(place, answer.came());
                self.fate(&alert, answer)
            }
            Err(why) => AlertFate::Failed { error: (*why).to_owned() },
        };
        self.record(&alert, &fate).await;
        drop(turn);
    }

    fn fate(&self, alert: &ClaimedAlert, answer: Answer) -> AlertFate {
        let (error, retry_after) = match answer {
            Answer::Taken => return AlertFate::Sent,
            Answer::Refused { error, retry_after } => (error, retry_after),
            Answer::None { error } => (error, None),
        };
        match self.retry.wait_after(alert.attempts.saturating_add(1), rand::random(), retry_after) {
            Some(wait) => AlertFate::Retry { wait, error },
            None => AlertFate::Failed { error },
        }
    }

    async fn send(&self, alert: &ClaimedAlert, content: &Alert, target: &AlertTarget) -> Answer {
        let id = alert.id.to_string();
        match (alert.channel, target) {
            (Channel::Email, AlertTarget::Given(address)) => match &self.mailer {
                Some(mailer) => mailer.send(address, &id, content, MAIL_TIMEOUT).await,
                None => Answer::refused("this process has no mail server"),
            },
            (Channel::Slack, AlertTarget::Given(url)) => {
                self.post(url.expose(), HeaderMap::new(), render::slack(content, &id)).await
            }
            (Channel::Teams, AlertTarget::Given(url)) => {
                self.post(url.expose(), HeaderMap::new(), render::teams(content, &id)).await
            }
            (_, AlertTarget::Operational(target)) => {
                let body = render::operational(content);
                let now = Timestamp::now();
                let signature =
                    signature::sign(&SignatureSettings::Standard, &target.secrets, &id, now, body.as_bytes());
                let headers = signed(&id, now, &signature);
                self.post(&target.url, headers, body).await
            }
            (Channel::Operational, AlertTarget::Given(_)) => Answer::refused("it goes nowhere"),
        }
    }

    /// One POST by the guarded client. Rules may have changed since the URL was accepted.
    async fn post(&self, url: &str, headers: HeaderMap, json: String) -> Answer {
        let Ok(url) = self.rules.parse(url) else {
            return Answer::refused("the URL is not allowed by the server's present rules");
        };
        Answer::of(self.dispatcher.post_json(url, headers, json.into(), TIMEOUT).await)
    }

    /// Records how it went, for as long as the claim stands.
    async fn record(&self, alert: &ClaimedAlert, fate: &AlertFate) {
        if let Some(result) = result_of(fate) {
            self.metrics.engine.alert(alert.channel.as_str(), result);
        }
        if let AlertFate::Failed { error } = fate {
            let (id, channel) = (alert.id, alert.channel.as_str());
            tracing::warn!(alert = %id, channel, error, "an alert could not be sent, and is given up");
        }
        loop {
            match self.store.in_time(STEP_LONGEST, self.store.finish_alert(alert, fate)).await {
                Ok(_) => return,
                Err(error) if error.is_transient() && self.is_held(alert.claim.lease) => {
                    tracing::warn!(
                        error = chain(&error),
                        "how an alert went could not be recorded; tried again"
                    );
                    tokio::time::sleep(RECORD_AGAIN).await;
                }
                Err(error) => {
                    tracing::error!(alert = %alert.id, error = chain(&error), "how an alert went was not recorded");
                    return;
                }
            }
        }
    }

    fn is_held(&self, lease: LeaseId) -> bool {
        self.shared.keeper.lease() == lease
    }
}

fn settled(ended: std::result::Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(error = %error, "the sending of an alert failed; it is sent again under another lease");
    }
}

fn result_of(fate: &AlertFate) -> Option<&'static str> {
    match fate {
        AlertFate::Sent => Some("sent"),
        AlertFate::Retry { .. } => Some("retry"),
        AlertFate::Failed { .. } => Some("failed"),
        AlertFate::GivenBack => None,
    }
}

/// What a place answered, without anything that it chose itself.
enum Answer {
    Taken,
    Refused {
        error: String,
        retry_after: Option<Duration>,
    },
    /// Nothing: it is out of reach, or too slow.
    None {
        error: String,
    },
}

impl Answer {
    fn refused(error: impl Into<String>) -> Self {
        Self::Refused { error: error.into(), retry_after: None }
    }

    fn of(outcome: AttemptOutcome) -> Self {
        let error = match outcome.error {
            None => return Self::Taken,
            Some((class, detail)) if detail.is_empty() => class.as_str().to_owned(),
            Some((_, detail)) => detail,
        };
        match outcome.status {
            Some(_) => Self::Refused { error, retry_after: outcome.retry_after },
            None => Self::None { error },
        }
    }

    const fn came(&self) -> bool {
        !matches!(self, Self::None { .. })
    }
}

/// The headers of Standard Webhooks.
fn signed(id: &str, at: Timestamp, signature: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(4);
    let seconds = at.as_secs().to_string();
    for (name, value) in [("webhook-id", id), ("webhook-timestamp", &seconds), (STANDARD_HEADER, signature)] {
        // Ids, digits and base64 are ASCII.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    headers
}
