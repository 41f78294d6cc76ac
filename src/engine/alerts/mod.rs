//! Alerts: each channel has a task that claims what is due, sends it, and records how that went. Beside deliveries, and
//! never in their way.
//!
//! **Repeats.** An alert that was sent and not yet recorded when the process dies is sent again, under the same id. So
//! that this is one at most, alerts go out one at a time in the whole process, from the sending to the record of it. But a
//! place that takes long loses its turn after a second, and those to a place that did not answer the last one, or not so
//! soon, go aside, several at once, so that it does not hold up the others.
//!
//! **Where** an alert goes was decided when it was written, but for the operational webhook, of which the project says so
//! when it is sent.

mod answer;
pub mod certificates;
mod given_up;
mod mail;
mod places;
mod render;
mod room;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use mail::{MailSettings, MailTls, Mailer};

use super::Shared;
use super::writer::chain;
use crate::dispatch::Dispatcher;
use crate::domain::alert::{Alert, AlertPlace, Channel};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AlertId, LeaseId};
use crate::domain::retry::{RetryPolicy, RetryStrategy};
use crate::domain::signature::{self, STANDARD_HEADER, SignatureSettings};
use crate::domain::url_rules::UrlRules;
use crate::metrics::Metrics;
use crate::store::{AlertFate, AlertTarget, ClaimedAlert, HeldAlert, Lane, Result, Store, StoreError};
use answer::Answer;
use given_up::GivenUp;
use places::Places;
use room::Room;

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
/// Alerts that are looked at in one query, and queries one after the other where places with a backlog hide the others.
const PAGE: usize = 64;
const LOOKS: usize = 6;
/// Places that had their turn in this round; more than these are not remembered.
const SERVED_MOST: usize = 1024;
/// How long an alert may keep others from being sent.
const TURN_LONGEST: Duration = Duration::from_secs(1);
/// One attempt.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Mail servers like to think.
const MAIL_TIMEOUT: Duration = Duration::from_secs(20);
const STEP_LONGEST: Duration = Duration::from_secs(10);
/// The pause before a record that failed is tried again.
const RECORD_AGAIN: Duration = Duration::from_millis(500);
/// When an alert is sent again of which the database refused to record how it went.
const REFUSED_AGAIN: Duration = Duration::from_secs(60);

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
    given_up: GivenUp,
}

impl Sender {
    pub(super) fn new(
        store: Store,
        shared: Arc<Shared>,
        rules: UrlRules,
        retry: RetryPolicy,
        mailer: Option<Mailer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            dispatcher: shared.dispatcher.clone(),
            metrics: shared.metrics.clone(),
            shared,
            rules,
            retry,
            mailer,
            turn: Mutex::default(),
            places: Places::default(),
            given_up: GivenUp::default(),
        })
    }

    /// The channels that this process can send by.
    pub(super) fn channels(&self) -> impl Iterator<Item = Channel> {
        let has_mail = self.mailer.is_some();
        Channel::ALL.into_iter().filter(move |channel| *channel != Channel::Email || has_mail)
    }

    /// Sends a channel's alerts until told to stop; what is being sent then is sent to its end.
    pub(super) async fn run(self: Arc<Self>, channel: Channel, stop: CancellationToken) {
        let mut written = self.store.alerts();
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut sending = JoinSet::new();
        let (mut held, mut served) = (HashMap::new(), HashSet::new());
        while !stop.is_cancelled() {
            written.mark_unchanged();
            match self.claim(channel, &held, &mut served).await {
                Ok(claimed) => {
                    for alert in claimed {
                        let one = alert.held;
                        let task = sending.spawn(self.clone().process(alert, stop.clone()));
                        held.insert(task.id(), one);
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
                Some(ended) = sending.join_next_with_id() => self.settle(&mut held, ended).await,
                Ok(()) = written.changed() => {}
                _ = round.tick() => self.given_up.tell(channel),
                () = stop.cancelled() => {}
            }
        }
        while let Some(ended) = sending.join_next_with_id().await {
            self.settle(&mut held, ended).await;
        }
        self.given_up.tell(channel);
    }

    /// Claims alerts that are due, as far as there is room beside those that are held.
    async fn claim(
        &self,
        channel: Channel,
        held: &HashMap<Id, HeldAlert>,
        served: &mut HashSet<AlertPlace>,
    ) -> Result<Vec<ClaimedAlert>> {
        let lease = self.shared.keeper.lease();
        if !self.shared.keeper.may_send(lease) {
            return Ok(Vec::new());
        }
        let chosen = self.choose(channel, held, served).await?;
        if chosen.is_empty() {
            return Ok(Vec::new());
        }
        let claim = async {
            let tx = self.store.begin(Lane::Engine).await?;
            let claimed = tx.claim_alerts(channel, lease, &chosen).await?;
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

    /// The oldest first, but each place in its turn: one that was taken up has to wait until no other is due.
    async fn choose(
        &self,
        channel: Channel,
        held: &HashMap<Id, HeldAlert>,
        served: &mut HashSet<AlertPlace>,
    ) -> Result<Vec<AlertId>> {
        let mut room = Room::beside(held.values().map(|alert| alert.place), &self.places);
        let mut chosen = Vec::new();
        if served.len() >= SERVED_MOST {
            served.clear();
        }
        for _ in 0..LOOKS {
            if room.is_full() {
                break;
            }
            let hides = served.iter().any(|place| room.has_slot(*place));
            let except: Vec<AlertPlace> = room.left_out().union(served).copied().collect();
            let look = self.store.due_alerts(channel, &except, PAGE);
            let due = self.store.in_time(STEP_LONGEST, look).await?;
            let is_last = due.len() < PAGE;
            for (id, place) in due {
                if !chosen.contains(&id) && room.takes(place) {
                    chosen.push(id);
                    served.insert(place);
                }
            }
            if is_last {
                // The next round begins, of those for which there are slots.
                served.retain(|place| !room.has_slot(*place));
                if !hides {
                    break;
                }
            }
        }
        Ok(chosen)
    }

    /// Sends one and records how that went: in its turn, or aside where its place is suspect.
    async fn process(self: Arc<Self>, alert: ClaimedAlert, stop: CancellationToken) {
        let place = alert.held.place;
        let turn = match self.places.is_suspect(place) {
            true => None,
            false => Some(self.turn.lock().await),
        };
        // The one before it may have met with a failure there while this one waited.
        let turn = turn.filter(|_| !self.places.is_suspect(place));
        // The lease may be late to be renewed, and its claims stand; where it is given up, this changes nothing.
        if stop.is_cancelled() || !self.shared.keeper.may_send(alert.held.claim.lease) {
            return self.record(&alert.held, &AlertFate::GivenBack).await;
        }
        let (fate, turn) = match &alert.content {
            Ok((content, target)) => {
                let (answer, turn) = self.send_in_turn(&alert.held, content, target, turn).await;
                (self.fate(&alert.held, answer), turn)
            }
            Err(why) => (AlertFate::Failed { error: (*why).to_owned() }, turn),
        };
        self.record(&alert.held, &fate).await;
        drop(turn);
    }

    /// Sends, and keeps the turn for the record of it; where that takes long, the turn goes to the next one meanwhile.
    async fn send_in_turn<'a>(
        &self,
        alert: &HeldAlert,
        content: &Alert,
        target: &AlertTarget,
        turn: Option<MutexGuard<'a, ()>>,
    ) -> (Answer, Option<MutexGuard<'a, ()>>) {
        let sending = self.send(alert, content, target);
        tokio::pin!(sending);
        match tokio::time::timeout(TURN_LONGEST, &mut sending).await {
            Ok(answer) => {
                self.note(alert, answer.came());
                (answer, turn)
            }
            Err(_) => {
                // Before the turn ends, so that the next one to that place does not take it. It stays so, whatever the
                // answer: it is a slow one.
                self.note(alert, false);
                drop(turn);
                (sending.await, None)
            }
        }
    }

    /// Notes whether its place answered, and soon.
    fn note(&self, alert: &HeldAlert, answered: bool) {
        if !answered && !self.places.is_suspect(alert.place) {
            let channel = alert.channel.as_str();
            tracing::info!(channel, alert = %alert.id, "a place gave no answer in time; alerts to it go aside");
        }
        self.places.note(alert.place, answered);
    }

    fn fate(&self, alert: &HeldAlert, answer: Answer) -> AlertFate {
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

    async fn send(&self, alert: &HeldAlert, content: &Alert, target: &AlertTarget) -> Answer {
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

    /// Records how it went. What the database refuses for good is given back, to be sent again after a while: at least
    /// once.
    async fn record(&self, alert: &HeldAlert, fate: &AlertFate) {
        if let Some(result) = result_of(fate) {
            self.metrics.engine.alert(alert.channel.as_str(), result);
        }
        if let AlertFate::Failed { error } = fate {
            self.given_up.note(alert, error);
        }
        let Err(error) = self.insist(alert, fate).await else { return };
        tracing::error!(
            alert = %alert.id,
            error = chain(&error),
            "the database refused to record how an alert went; it is sent again"
        );
        self.release(alert).await;
    }

    async fn release(&self, alert: &HeldAlert) {
        if let Err(error) = self.insist(alert, &AlertFate::Unrecorded { wait: REFUSED_AGAIN }).await {
            tracing::error!(alert = %alert.id, error = chain(&error), "its claim stays until the lease ends");
        }
    }

    /// Tries for as long as the database is out of reach and the claim stands; fails where it refuses.
    async fn insist(&self, alert: &HeldAlert, fate: &AlertFate) -> Result<()> {
        while let Err(error) = self.store.in_time(STEP_LONGEST, self.store.finish_alert(alert, fate)).await {
            if !error.is_transient() {
                return Err(error);
            }
            tracing::warn!(error = chain(&error), "how an alert went could not be recorded");
            if !self.is_held(alert.claim.lease) {
                // Whoever freed the lease made it due again.
                break;
            }
            tokio::time::sleep(RECORD_AGAIN).await;
        }
        Ok(())
    }

    fn is_held(&self, lease: LeaseId) -> bool {
        self.shared.keeper.lease() == lease
    }

    /// Forgets what was sent. A task that failed left its claim behind.
    async fn settle(
        &self,
        held: &mut HashMap<Id, HeldAlert>,
        ended: std::result::Result<(Id, ()), JoinError>,
    ) {
        let (id, failed) = match ended {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error)),
        };
        let alert = held.remove(&id);
        if let (Some(alert), Some(error)) = (alert, failed) {
            tracing::error!(alert = %alert.id, error = %error, "the sending of an alert failed; it is sent again");
            self.release(&alert).await;
        }
    }
}

fn result_of(fate: &AlertFate) -> Option<&'static str> {
    match fate {
        AlertFate::Sent => Some("sent"),
        AlertFate::Retry { .. } => Some("retry"),
        AlertFate::Failed { .. } => Some("failed"),
        AlertFate::GivenBack | AlertFate::Unrecorded { .. } => None,
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
